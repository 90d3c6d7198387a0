//! Where each log entry lies on disk. Entries are consecutive; this is their index.

use std::collections::VecDeque;

use crate::wire::LogIdV1;

/// One entry's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    pub term: u64,
    pub segment: u64,
    pub offset: u32,
    pub length: u32,
}

/// The places of entries `first..next`.
#[derive(Default, Debug)]
pub(crate) struct Positions {
    first: u64,
    list: VecDeque<Position>,
}

impl Positions {
    /// None yet; the first will be `first`.
    pub(crate) fn starting_at(first: u64) -> Self {
        Self { first, list: VecDeque::new() }
    }

    pub(crate) fn next(&self) -> u64 {
        self.first + self.list.len() as u64
    }

    pub(crate) fn last(&self) -> Option<LogIdV1> {
        self.list.back().map(|position| LogIdV1 { term: position.term, index: self.next() - 1 })
    }

    /// Adds the entry `index`. False if that would leave a hole or go back.
    #[must_use]
    pub(crate) fn push(&mut self, index: u64, position: Position) -> bool {
        if index != self.next() {
            return false;
        }
        self.list.push_back(position);
        true
    }

    /// Drops everything after `last` (`None`: everything).
    pub(crate) fn truncate_after(&mut self, last: Option<u64>) {
        let keep = last.map_or(0, |last| (last + 1).saturating_sub(self.first));
        self.list.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
    }

    /// Drops everything up to `upto`.
    pub(crate) fn purge(&mut self, upto: u64) {
        while self.first <= upto && self.list.pop_front().is_some() {
            self.first += 1;
        }
        if self.list.is_empty() {
            self.first = self.first.max(upto + 1);
        }
    }

    /// The oldest segment still needed.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.list.front().map(|position| position.segment)
    }

    /// The newest entry that lies in a segment before this one.
    pub(crate) fn last_before(&self, segment: u64) -> Option<u64> {
        let before = self.list.partition_point(|position| position.segment < segment) as u64;
        (before > 0).then(|| self.first + before - 1)
    }

    /// Places of `from <= index < to`, as far as they are known.
    pub(crate) fn range(&self, from: u64, to: u64) -> impl Iterator<Item = Position> + '_ {
        let clamp =
            |index: u64| usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.list.len());
        let (start, end) = (clamp(from), clamp(to));
        self.list.range(start..end.max(start)).copied()
    }
}
