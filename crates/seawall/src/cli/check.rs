//! `seawall check FILE`: every mistake at once.

use std::io::Write as _;
use std::path::Path;

use anyhow::anyhow;
use model::diagnostic::Severity;

use super::{Failure, Outcome};

/// Reports everything wrong or suspicious; exit code 2 when something refuses the file.
pub fn run(file: &Path) -> Outcome {
    let loaded = node::read(file, &mut |path| std::fs::read_to_string(path));
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
    match node::certificates::described(&config) {
        Some(Ok(ends)) => writeln!(std::io::stdout(), "{ends}")?,
        // The file may be checked where the node does not run.
        Some(Err(problem)) => writeln!(
            std::io::stdout(),
            "the node's certificate cannot be used here: {problem}; `seawall cluster init`, `issue` or `join` makes one"
        )?,
        None => {}
    }
    if let Some(why) = node::cannot_fail_over(&config) {
        writeln!(std::io::stdout(), "{why}")?;
    }
    let (services, routes) = (count(config.services.len(), "service"), count(config.routes.len(), "route"));
    writeln!(std::io::stdout(), "{}: ok, {services}, {routes}, {}", file.display(), count(warnings, "warning"))?;
    Ok(())
}

fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
