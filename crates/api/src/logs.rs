//! Instance logs over HTTP: the kept lines of a service merged by time, and followed as they are written.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use crate::Context;
use crate::problem::Problem;
use crate::query::{Known, Parameters};

/// The most lines of one answer, the newest.
const MAX_LINES: usize = 50_000;
/// How often files are looked at while they are followed.
const LOOK: Duration = Duration::from_millis(150);
/// The most that is read from one file at a look.
const MAX_LOOK: u64 = 1 << 20;

/// What is asked for.
#[derive(Debug, Deserialize)]
pub struct Selection {
    /// Only this instance.
    instance: Option<String>,
    /// Only lines younger than this: a duration (`5m`) or an RFC 3339 time.
    since: Option<String>,
    /// At most so many lines, the newest.
    tail: Option<usize>,
    /// Go on as lines are written.
    #[serde(default)]
    follow: bool,
}

impl Known for Selection {
    const NAMES: &'static [&'static str] = &["instance", "since", "tail", "follow"];
}

/// Reads or follows the logs of a service.
pub async fn read(
    State(context): State<Context>,
    UrlPath(service): UrlPath<String>,
    Parameters(selection): Parameters<Selection>,
) -> Response {
    match tokio::task::spawn_blocking(move || collect(&context.logs, &service, selection)).await {
        Ok(Ok((lines, None))) => text(Body::from(lines)),
        Ok(Ok((lines, Some(followed)))) => text(Body::from_stream(follow(lines, followed))),
        Ok(Err(problem)) => problem.into_response(),
        Err(error) => Problem::internal(error.to_string()).into_response(),
    }
}

fn text(body: Body) -> Response {
    ([("content-type", "text/plain; charset=utf-8")], body).into_response()
}

fn collect(logs: &Path, service: &str, selection: Selection) -> Result<(String, Option<Vec<Followed>>), Problem> {
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain(service) || !selection.instance.as_deref().is_none_or(plain) {
        return Err(Problem::bad_request("not a name", "names are letters, digits and `-`"));
    }
    let since = selection.since.as_deref().map(parse_since).transpose()?;
    let folder = logs.join(service);
    let instances = instances(&folder, selection.instance.as_deref()).map_err(|_| {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("no logs of `{service}`"),
            "`seawall status` lists the services; logs exist once an instance has started",
        )
    })?;
    let tail = selection.tail.unwrap_or(MAX_LINES).min(MAX_LINES);
    let mut lines = VecDeque::new();
    let mut followed = Vec::new();
    for path in instances {
        let end = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        followed.push(Followed { file: None, path: path.clone(), position: end, partial: Vec::new() });
        let mut own = VecDeque::new();
        for file in rotated(&path) {
            read_lines(&file, since.as_deref(), &mut own);
        }
        lines.extend(own);
    }
    // Lines begin with their time in a form that sorts.
    lines.make_contiguous().sort();
    let skip = lines.len().saturating_sub(tail);
    let text: String = lines.into_iter().skip(skip).fold(String::new(), |text, line| text + &line + "\n");
    Ok((text, selection.follow.then_some(followed)))
}

fn parse_since(text: &str) -> Result<String, Problem> {
    if let Some(ago) = model::config::decode::parse_duration(text) {
        let then = jiff::Timestamp::now()
            .checked_sub(ago)
            .map_err(|error| Problem::bad_request(error.to_string(), "write e.g. since=5m"))?;
        return Ok(format!("{then:.6}"));
    }
    let moment: jiff::Timestamp = text.parse().map_err(|_| {
        Problem::bad_request(
            format!("`{text}` is no duration and no time"),
            "write e.g. since=5m or since=2026-01-31T09:30:00Z",
        )
    })?;
    Ok(format!("{moment:.6}"))
}

/// The newest log of each wanted instance. While it is being rotated only older ones stand there, under their numbers.
fn instances(folder: &Path, wanted: Option<&str>) -> io::Result<BTreeSet<PathBuf>> {
    let newest = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let stem = name.split_once(".log").filter(|(_, rest)| rest.is_empty() || number(rest).is_some())?.0;
        wanted.is_none_or(|wanted| stem == wanted).then(|| folder.join(format!("{stem}.log")))
    };
    let paths: BTreeSet<PathBuf> =
        fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).filter_map(newest).collect();
    if paths.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(paths) }
}

/// The number in `.7`.
fn number(extension: &str) -> Option<u32> {
    extension.strip_prefix('.')?.parse().ok()
}

/// Oldest first. Opened by the caller one after the other; numbers may have gaps while the log is being rotated.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let numbered = |number: u32| PathBuf::from(format!("{}.{number}", path.display()));
    let older = (0..=100).rev().map(numbered).filter(|path| path.exists());
    older.chain([path.to_owned()]).collect()
}

fn read_lines(path: &Path, since: Option<&str>, lines: &mut VecDeque<String>) {
    let Ok(file) = File::open(path) else { return };
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if since.is_none_or(|since| line.as_str() >= since) {
            lines.push_back(line);
            if lines.len() > MAX_LINES {
                lines.pop_front();
            }
        }
    }
}

struct Followed {
    file: Option<File>,
    path: PathBuf,
    position: u64,
    partial: Vec<u8>,
}

impl Followed {
    /// Whole lines written since the last look.
    fn look(&mut self) -> io::Result<Vec<u8>> {
        let length = fs::metadata(&self.path)?.len();
        let rotated = length < self.position;
        if self.file.is_none() {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.position))?;
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            let read = file.take(MAX_LOOK).read_to_end(&mut self.partial)?;
            self.position += read as u64;
        }
        if rotated {
            // The old file has been read to its end through the open handle; the new one begins at 0.
            self.file = None;
            self.position = 0;
        }
        let end = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(self.partial.drain(..end).collect())
    }
}

fn follow(first: String, followed: Vec<Followed>) -> impl futures_util::Stream<Item = Result<Bytes, io::Error>> {
    stream::unfold((Some(first), followed), |(first, mut followed)| async move {
        if let Some(first) = first {
            return Some((Ok(Bytes::from(first)), (None, followed)));
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let looked = tokio::task::spawn_blocking(move || {
                let mut lines = Vec::new();
                for file in &mut followed {
                    // A file that is gone for the moment of its rotation is looked at again.
                    lines.extend(file.look().unwrap_or_default());
                }
                (lines, followed)
            });
            let (lines, back) = looked.await.ok()?;
            followed = back;
            if !lines.is_empty() {
                return Some((Ok(Bytes::from(lines)), (None, followed)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_log_in_the_middle_of_its_rotation_is_still_there() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("a-0.log.2", "1 old\n"), ("a-0.log.0", "2 full\n"), ("b-0.log", "3 other\n")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let logs = super::instances(folder.path(), Some("a-0")).unwrap();
        assert_eq!(logs.iter().map(|path| path.file_name().unwrap()).collect::<Vec<_>>(), ["a-0.log"]);
        let mut lines = std::collections::VecDeque::new();
        for file in super::rotated(logs.first().unwrap()) {
            super::read_lines(&file, None, &mut lines);
        }
        assert_eq!(lines, ["1 old", "2 full"]);
        assert_eq!(super::instances(folder.path(), None).unwrap().len(), 2);
    }
}
