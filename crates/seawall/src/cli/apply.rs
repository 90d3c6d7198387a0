//! `seawall apply -f FILE`: another configuration for the running node, or another tool's file over the one in force.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use serde_json::{Value, json};

use super::client::Client;
use super::{Failure, Outcome};

/// What `apply` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration file, or a file of Sentinel's, Hystrix', Istio's or nginx'
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Seconds to wait until every changed instance is ready
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

/// Checks the file here, sends it with everything it includes, and says what changed.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let main = std::path::absolute(&arguments.file)?;
    let files: RefCell<BTreeMap<PathBuf, String>> = RefCell::default();
    let mut read = |path: &Path| {
        let text = std::fs::read_to_string(path)?;
        files.borrow_mut().insert(path.to_owned(), text.clone());
        Ok(text)
    };
    let loaded = match super::over::foreign(&main) {
        Some(whose) => super::over::read(whose, &main, &super::over::in_force(client)?, &mut read)?,
        None => node::read(&main, &mut read),
    };
    eprint!("{}", loaded.diagnostics.render(&loaded.sources));
    if loaded.config.is_none() {
        return Err(Failure::bad_input(anyhow!("the configuration has mistakes; nothing was changed")));
    }
    let body = json!({ "main": main, "files": files.into_inner() });
    let applied = client.post("/api/v1/apply", &body, Duration::from_secs(arguments.timeout))?;
    let mut lines = Vec::new();
    for (what, word) in [
        ("added", "added"),
        ("removed", "removed"),
        ("rolled", "rolled, all instances ready"),
        ("changed", "changed in place"),
    ] {
        for name in applied[what].as_array().into_iter().flatten().filter_map(Value::as_str) {
            lines.push(format!("{name}: {word}"));
        }
    }
    if applied["routes"] == true {
        lines.push("routes: changed".to_owned());
    }
    lines.push(match lines.as_slice() {
        [] => format!("applied {}: no service and no route changed", arguments.file.display()),
        _ => format!("applied {}", arguments.file.display()),
    });
    writeln!(std::io::stdout(), "{}", lines.join("\n"))?;
    Ok(())
}
