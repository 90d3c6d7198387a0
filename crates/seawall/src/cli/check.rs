//! `seawall check FILE`: every mistake at once.

use std::io::Write as _;
use std::path::Path;

use anyhow::anyhow;
use model::config::{Config, Decode as _};
use model::diagnostic::Severity;

use super::client::Client;
use super::{Failure, Outcome};

/// Reports everything wrong or suspicious; exit code 2 when something refuses the file. Another tool's file is read over
/// the configuration `over`, or over what is in force at the node.
pub fn run(file: &Path, over: Option<&Path>, client: impl FnOnce() -> Result<Client, Failure>) -> Outcome {
    let mut read = |path: &Path| std::fs::read_to_string(path);
    let whose = super::over::foreign(file);
    let loaded = match (whose, over) {
        (None, Some(_)) => {
            return Err(Failure::bad_input(anyhow!(
                "{} is no file of another tool: leave `--over` out",
                file.display()
            )));
        }
        (None, None) => node::read(file, &mut read),
        (Some(whose), Some(over)) => {
            let below = node::read(over, &mut read);
            let report = below.diagnostics.render(&below.sources);
            let below =
                below.config.ok_or_else(|| Failure::bad_input(anyhow!("{report}{} has mistakes", over.display())))?;
            super::over::read(whose, file, &in_place(&below)?, &mut read)?
        }
        (Some(whose), None) => super::over::read(whose, file, &super::over::in_force(&client()?)?, &mut read)?,
    };
    let is_foreign = whose.is_some();
    write!(std::io::stdout(), "{}", loaded.diagnostics.render(&loaded.sources))?;
    let (errors, warnings) = (loaded.diagnostics.count(Severity::Error), loaded.diagnostics.count(Severity::Warning));
    let Some(config) = loaded.config else {
        return Err(Failure::bad_input(anyhow!(
            "{}: {}, {}",
            file.display(),
            count(errors, "error"),
            count(warnings, "warning")
        )));
    };
    match node::certificates::described(&config).filter(|_| !is_foreign) {
        Some(Ok(ends)) => writeln!(std::io::stdout(), "{ends}")?,
        // The file may be checked where the node does not run.
        Some(Err(problem)) => writeln!(
            std::io::stdout(),
            "the node's certificate cannot be used here: {problem}; `seawall cluster init`, `issue` or `join` makes one"
        )?,
        None => {}
    }
    if let Some(why) = node::cannot_fail_over(&config).filter(|_| !is_foreign) {
        writeln!(std::io::stdout(), "{why}")?;
    }
    let (services, routes) = (count(config.services.len(), "service"), count(config.routes.len(), "route"));
    writeln!(std::io::stdout(), "{}: ok, {services}, {routes}, {}", file.display(), count(warnings, "warning"))?;
    Ok(())
}

/// As it would be in force.
fn in_place(config: &Config) -> Result<Config, Failure> {
    model::config::decode_effective(&config.encode().to_string()).map_err(|report| Failure::from(anyhow!(report)))
}

fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
