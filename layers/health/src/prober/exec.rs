//! A command with a time limit; ended with its whole tree when the limit passes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::process::Tree;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// How much of what a command writes to its standard error is quoted.
const MAX_QUOTE: usize = 200;
/// Bytes of what a command writes that are kept while it runs; what is more is read all the same, so that it goes on.
const MAX_KEPT: usize = 4096;
/// To read what is left in the pipes of a command that has ended.
const READING: Duration = Duration::from_millis(50);

/// What the marker of a command's tree begins with, behind the node's own prefix.
const MARK: &str = "exec:";

/// Ends what commands of an earlier process of this node have left: it died before it could. The instances themselves
/// are the keeper's and go on. Returns how many processes that were.
pub fn end_left_over() -> usize {
    let prefix = platform::process::tree_prefix();
    if prefix.is_empty() { 0 } else { platform::process::kill_strays(&format!("{prefix}{MARK}")) }
}

/// Runs `command`; only exit code 0 is a success.
///
/// # Errors
/// In one line: not started, not in time, or its exit status with the first of what it wrote to standard error.
pub async fn run(
    command: &[String],
    env: &BTreeMap<String, String>,
    working_dir: &Path,
    limit: Duration,
) -> Result<(), String> {
    let (status, said) = end(command, env, working_dir, limit, Stdio::null).await?;
    if status.success() {
        return Ok(());
    }
    let quote: String = said.lines().next().unwrap_or_default().trim().chars().take(MAX_QUOTE).collect();
    let (program, how) = (&command[0], platform::process::describe_exit(status));
    Err(if quote.is_empty() { format!("`{program}`: {how}") } else { format!("`{program}`: {how}: {quote}") })
}

/// Runs `command` for its exit code, none if a signal ended it, and for what it writes to both of its outputs, of which the
/// last 4 KiB are kept.
///
/// # Errors
/// In one line: not started, or not in time.
pub async fn judge(
    command: &[String],
    env: &BTreeMap<String, String>,
    working_dir: &Path,
    limit: Duration,
) -> Result<(Option<i32>, String), String> {
    let (status, mut said) = end(command, env, working_dir, limit, Stdio::piped).await?;
    if status.code().is_none() {
        said = format!("{}\n{said}", platform::process::describe_exit(status));
    }
    Ok((status.code(), said))
}

/// Runs it to its end; with what it wrote to standard error, and to standard output where that is a pipe.
async fn end(
    command: &[String],
    env: &BTreeMap<String, String>,
    working_dir: &Path,
    limit: Duration,
    output: fn() -> Stdio,
) -> Result<(ExitStatus, String), String> {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let (program, arguments) = command.split_first().ok_or_else(|| "an empty command".to_owned())?;
    let mut process = Command::new(platform::program::locate(program, working_dir, env));
    process.args(arguments).envs(env).current_dir(working_dir);
    process.stdin(Stdio::null()).stdout(output()).stderr(Stdio::piped());
    let marker = format!(
        "{}{MARK}{}:{}",
        platform::process::tree_prefix(),
        std::process::id(),
        RUNS.fetch_add(1, Ordering::Relaxed)
    );
    let mut tree = Tree::spawn(process, &marker).map_err(|error| format!("cannot start `{program}`: {error}"))?;
    let said = Said::default();
    let (_, output, errors) = tree.pipes();
    let reading = [
        output.map(|pipe| tokio::spawn(said.clone().hear(pipe))),
        errors.map(|pipe| tokio::spawn(said.clone().hear(pipe))),
    ];
    let waited = timeout(limit, tree.wait()).await;
    if waited.is_err() {
        // Ignored: what cannot be killed is not ours to wait for.
        let _ = tree.kill();
        let _ = timeout(Duration::from_secs(1), tree.wait()).await;
    }
    let _ = tree.end(Duration::from_millis(500)).await;
    for mut reader in reading.into_iter().flatten() {
        // Somebody else may hold the pipe open.
        if timeout(READING, &mut reader).await.is_err() {
            reader.abort();
        }
    }
    let status = waited.map_err(|_| format!("`{program}` did not end within {} ms", limit.as_millis()))?;
    Ok((status.map_err(|error| error.to_string())?, said.text()))
}

/// The last of what a command has written.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    async fn hear(self, mut pipe: impl AsyncRead + Unpin) {
        let mut bytes = [0; 1024];
        while let Ok(read @ 1..) = pipe.read(&mut bytes).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&bytes[..read]);
            let over = kept.len().saturating_sub(MAX_KEPT);
            kept.drain(..over);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}
