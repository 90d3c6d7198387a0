//! The node's end of the pipe to the keeper: reports in on standard input, orders out on standard output.
//! When the pipe closes the keeper is dead: whatever it owned is ended here, and then this process.

use std::io::{self, BufRead as _, Read as _, Write as _};

use runtime::protocol::{MAX_LINE, Order, Report};
use tokio::sync::mpsc;

use crate::Input;

/// Reads the keeper's first line.
///
/// # Errors
/// `InvalidData` when it is not the greeting of a keeper of this version.
pub fn read_hello() -> io::Result<Report> {
    let mut line = String::new();
    io::stdin().lock().take(MAX_LINE as u64).read_line(&mut line)?;
    let hello = serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match &hello {
        Report::Hello { version, .. } if *version == runtime::protocol::VERSION => Ok(hello),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the keeper is of another version: stop it and start `seawall up` again",
        )),
    }
}

/// Passes the keeper's reports on until it is gone; then ends what `tree_prefix` marks, and this process.
pub fn follow(inputs: mpsc::Sender<Input>, tree_prefix: String) -> io::Result<()> {
    let reader = move || {
        // That a process has ended is known here first.
        platform::thread::answer_soon();
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(report) => {
                    if inputs.blocking_send(Input::Keeper(report)).is_err() {
                        return;
                    }
                }
                Err(error) => tracing::error!(%error, "a report of the keeper that this node does not understand"),
            }
        }
        let ended = platform::process::kill_strays(&tree_prefix);
        tracing::error!(ended, "the keeper is gone; everything it ran has been ended");
        std::process::exit(1);
    };
    std::thread::Builder::new().name("keeper-link".into()).spawn(reader).map(drop)
}

/// Orders to the keeper.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keeper;

impl Keeper {
    /// Sends an order. When the keeper is gone [`follow`] ends the process, so a failure here needs no answer.
    pub fn order(&self, order: &Order) {
        let mut line = serde_json::to_string(order).expect("orders always become JSON");
        line.push('\n');
        let mut output = io::stdout().lock();
        let _ = output.write_all(line.as_bytes()).and_then(|()| output.flush());
    }
}
