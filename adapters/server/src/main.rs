//! The `entity-sync` binary.

use std::io::{Write, stderr, stdin, stdout};
use std::process::ExitCode;

use entity_sync::args::Task;
use entity_sync::client;
use entity_sync::serve::serve;

fn main() -> ExitCode {
    let result = match Task::parse(std::env::args_os()) {
        Ok(Task::Serve(options)) => serve(&options).map_err(|error| error.to_string()),
        Ok(Task::Watch(watch)) => {
            client::watch::watch(&watch, &mut stdout(), &mut stderr()).map_err(|error| error.to_string())
        }
        Ok(Task::Call(call)) => {
            client::api::call(&call, &mut stdin(), &mut stdout()).map_err(|error| error.to_string())
        }
        Ok(Task::Broker(options)) => entity_sync::broker::broker(&options).map_err(|error| error.to_string()),
        Ok(Task::Completions(shell)) => {
            clap_complete::generate(shell, &mut Task::command(), "entity-sync", &mut stdout());
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => error.exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If nobody listens, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "entity-sync: {error}");
            ExitCode::FAILURE
        }
    }
}
