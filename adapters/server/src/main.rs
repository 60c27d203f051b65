//! The `entity-sync` binary.

use std::io::Write;
use std::process::ExitCode;

use entity_sync::args::Task;
use entity_sync::serve::serve;

fn main() -> ExitCode {
    let result = match Task::parse(std::env::args_os()) {
        Ok(Task::Serve(options)) => serve(&options),
        Ok(Task::Completions(shell)) => {
            clap_complete::generate(shell, &mut Task::command(), "entity-sync", &mut std::io::stdout());
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
