//! Runs worlds, a seed each, and says which seed fails: what `cargo xtask sim` calls.

mod run;

use std::process::ExitCode;

const USAGE: &str = "usage: sim [--seeds N] [--from S] [--parallel P] [--plant NAME] [--whole] [--record FILE]
  --seeds N      so many worlds (1000)
  --from S       the first seed (0)
  --parallel P   worlds at once (one a core)
  --plant NAME   with this bug in them; stops at the first world that notices it (needs the feature `planted`)
  --plants       names the bugs
  --whole        prints all of the trace of the first seed, whether it fails or not
  --record FILE  writes the result there";

fn main() -> ExitCode {
    match run::Wanted::parse(std::env::args().skip(1)).and_then(|wanted| run::run(&wanted)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
