//! A command with a time limit; ended with its whole tree when the limit passes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use platform::process::Tree;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// How much of what a command writes to its standard error is quoted.
const MAX_QUOTE: usize = 200;

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
    judge(command, env, working_dir, limit).await.map_err(|(_, why)| why)
}

/// The same; with what went wrong comes the exit code, if it ended with one.
///
/// # Errors
/// See [`run`].
pub async fn judge(
    command: &[String],
    env: &BTreeMap<String, String>,
    working_dir: &Path,
    limit: Duration,
) -> Result<(), (Option<i32>, String)> {
    let plain = |why: String| (None, why);
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let (program, arguments) = command.split_first().ok_or_else(|| plain("an empty command".to_owned()))?;
    let mut process = Command::new(platform::program::locate(program, working_dir, env));
    process.args(arguments).envs(env).current_dir(working_dir);
    process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let marker = format!(
        "{}{MARK}{}:{}",
        platform::process::tree_prefix(),
        std::process::id(),
        RUNS.fetch_add(1, Ordering::Relaxed)
    );
    let mut tree =
        Tree::spawn(process, &marker).map_err(|error| plain(format!("cannot start `{program}`: {error}")))?;
    let (_, _, errors) = tree.pipes();
    let waited = timeout(limit, tree.wait()).await;
    if waited.is_err() {
        // Ignored: what cannot be killed is not ours to wait for.
        let _ = tree.kill();
        let _ = timeout(Duration::from_secs(1), tree.wait()).await;
    }
    let _ = tree.end(Duration::from_millis(500)).await;
    let status = waited.map_err(|_| plain(format!("`{program}` did not end within {} ms", limit.as_millis())))?;
    let status = status.map_err(|error| plain(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let mut quote = Vec::new();
    if let Some(errors) = errors {
        let _ = timeout(Duration::from_millis(50), errors.take(MAX_QUOTE as u64).read_to_end(&mut quote)).await;
    }
    let quote = String::from_utf8_lossy(&quote);
    let quote = quote.lines().next().unwrap_or_default().trim();
    let how = platform::process::describe_exit(status);
    let why = if quote.is_empty() { format!("`{program}`: {how}") } else { format!("`{program}`: {how}: {quote}") };
    Err((status.code(), why))
}
