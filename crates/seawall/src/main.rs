//! The `seawall` binary: one program, three faces: the command line, the keeper (`up`) and the node process it starts.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
