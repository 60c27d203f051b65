//! The `entity-sync` binary.

use std::io::Write;
use std::process::ExitCode;

use entity_sync::args::Options;
use entity_sync::serve::serve;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os()) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If nobody listens, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "entity-sync: {error}");
            ExitCode::FAILURE
        }
    }
}
