//! What happened in a world, in order: a hash over all of it, by which two runs are compared, and the last lines for
//! whoever reads about a failure.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines kept unless all are.
const TAIL: usize = 60;

/// The trace of a world. Clones share it.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    began: Instant,
    hash: u64,
    count: u64,
    keep: usize,
    lines: VecDeque<(Duration, Line)>,
}

#[derive(Debug)]
enum Line {
    Mark(&'static str, [u64; 4]),
    Said(String),
}

impl Trace {
    /// An empty one, from now on; `whole` keeps every line.
    pub fn new(whole: bool) -> Self {
        let keep = if whole { usize::MAX } else { TAIL };
        let lines =
            Lines { began: Instant::now(), hash: 0xCBF2_9CE4_8422_2325, count: 0, keep, lines: VecDeque::new() };
        Self(Arc::new(Mutex::new(lines)))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the world began.
    pub fn elapsed(&self) -> Duration {
        self.lines().began.elapsed()
    }

    /// Something frequent happened.
    pub fn mark(&self, what: &'static str, numbers: [u64; 4]) {
        let mut lines = self.lines();
        lines.mix(what.as_bytes());
        for number in numbers {
            lines.mix(&number.to_le_bytes());
        }
        lines.push(Line::Mark(what, numbers));
    }

    /// Something happened that deserves words.
    pub fn say(&self, text: impl Into<String>) {
        let text = text.into();
        let mut lines = self.lines();
        lines.mix(text.as_bytes());
        lines.push(Line::Said(text));
    }

    /// Over everything so far.
    pub fn hash(&self) -> u64 {
        self.lines().hash
    }

    /// Lines so far.
    pub fn count(&self) -> u64 {
        self.lines().count
    }

    /// What is kept of it, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (at, line) in &self.lines().lines {
            let at = at.as_secs_f64();
            // Ignored: writing into a string never fails.
            let _ = match line {
                Line::Mark(what, numbers) => writeln!(text, "{at:>10.6} {what} {numbers:?}"),
                Line::Said(said) => writeln!(text, "{at:>10.6} {said}"),
            };
        }
        text
    }
}

impl Lines {
    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }

    fn push(&mut self, line: Line) {
        let at = self.began.elapsed();
        self.mix(&at.as_nanos().to_le_bytes());
        self.count += 1;
        if self.lines.len() >= self.keep {
            self.lines.pop_front();
        }
        self.lines.push_back((at, line));
    }
}
