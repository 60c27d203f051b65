//! The `entity-sync` binary.

use std::io::{ErrorKind, Write, stdin, stdout};
use std::process::ExitCode;

use entity_sync::args::Task;
use entity_sync::client;
use entity_sync::log::Log;
use entity_sync::serve::serve;

fn main() -> ExitCode {
    Log.take_panics();
    let (task, sources) = match Task::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        // If nobody reads it, the exit code still tells.
        Err(error) => error.exit(),
    };
    let of_client = |error: client::ClientError| sources.explain(&error, error.flags());
    let result = match task {
        Task::Serve(options) => serve(&options).map_err(|error| sources.explain(&error, error.flags())),
        Task::Watch(watch) => client::watch::watch(&watch, &mut stdout(), &mut Log).map_err(of_client),
        Task::Call(call) => client::api::call(&call, &mut stdin(), &mut stdout()).map_err(of_client),
        Task::Broker(options) => {
            let flags = &["--frontend", "--backend", "--zmq-curve-secret-file"];
            entity_sync::broker::broker(&options).map_err(|error| sources.explain(&error, flags))
        }
        Task::ZmqKeys(file) => entity_sync::keys::zmq_keys(&file, &mut stdout()).map_err(|error| error.to_string()),
        Task::Completions(shell) => completions(shell),
        _ => Ok(()),
    };
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Log.say(format_args!("entity-sync: {error}"));
            ExitCode::FAILURE
        }
    };
    Log.finish();
    code
}

fn completions(shell: clap_complete::Shell) -> Result<(), String> {
    // It panics if it can't write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Task::command(), "entity-sync", &mut script);
    match stdout().write_all(&script).and_then(|()| stdout().flush()) {
        // As with `head`: whoever reads has enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("standard output can't be written: {error}"))
        }
        _ => Ok(()),
    }
}
