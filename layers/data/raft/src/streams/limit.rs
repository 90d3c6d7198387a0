//! How many bytes of large entries the leader works on at once; the rest waits in the order it came. More than keep disk
//! and processors busy make nothing much faster, and whatever else needs the two stands behind them: a promotion above all.
//! The limit is found as TCP Vegas finds its window: what an entry takes alone is measured now and then, and of what is
//! under way no more than about one entry may be what an entry takes longer. So over a long way to the followers much is
//! under way, and next to them little.
//! In the write walk of streams between `leading.rs` and the log. Deliberately absent: small entries, which pass.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::wal::lock;

/// What may stand in line behind what is worked on: one entry, but so much at least.
const LINE: usize = 64 * 1024;
/// By how much longer than alone an entry may take without that it counts as standing in line: where the way is long it
/// varies by more than the rest takes.
const SLACK: f64 = 1.05;
/// The limit at first,
const FIRST: usize = 256 * 1024;
/// at least, or two of the largest entries,
const LEAST: usize = 128 * 1024;
/// and at most. One entry is let in whatever its size.
const MOST: usize = 32 * 1024 * 1024;
/// While others wait one entry goes alone after so many times what that takes,
const LONE_AFTER: u32 = 200;
/// within these bounds.
const EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// What is known of entries that went alone: of so many the one counts that a quarter were faster than. Others met what else the
/// machine does, and the fastest may have met luck.
const KNOWN: usize = 9;
/// The limit changes after so many entries, and as many bytes as it lets in,
const ROUND: u32 = 16;
/// and by this factor at most.
const STEP: f64 = 1.5;

/// The line at the leader of a group.
pub(crate) struct Limit {
    line: Arc<Mutex<Line>>,
}

struct Line {
    limit: usize,
    /// Bytes that were let in and are not answered,
    under_way: usize,
    /// and how many entries were ever let in.
    entered: u64,
    waiting: VecDeque<Waiting>,
    lone: Lone,
    /// How long the last ones took that were alone.
    alone: VecDeque<Duration>,
    round: Round,
}

struct Waiting {
    bytes: usize,
    turn: oneshot::Sender<Turn>,
}

/// When one goes alone.
#[derive(Clone, Copy, PartialEq)]
enum Lone {
    /// Once somebody has to wait after this.
    After(Instant),
    /// As soon as the others are answered.
    Next,
    /// Now.
    UnderWay,
}

/// What was answered since the limit was last looked at.
#[derive(Default)]
struct Round {
    entries: u32,
    bytes: usize,
    largest: usize,
    took: Duration,
    /// Somebody had to wait: without that, more would not have come.
    full: bool,
}

/// A place among those that are worked on, until it is dropped.
pub(crate) struct Turn {
    line: Arc<Mutex<Line>>,
    bytes: usize,
    /// Its number, if there was no other when it was let in.
    first: Option<u64>,
    begun: Instant,
    took: Option<Duration>,
}

impl Limit {
    pub(crate) fn new() -> Self {
        let line = Line {
            limit: FIRST,
            under_way: 0,
            entered: 0,
            waiting: VecDeque::new(),
            lone: Lone::Next,
            alone: VecDeque::new(),
            round: Round::default(),
        };
        Self { line: Arc::new(Mutex::new(line)) }
    }

    /// How many are worked on at once now.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.line).limit
    }

    /// Waits for a place for so many bytes; `None` if nobody gives places any more.
    pub(crate) async fn enter(&self, bytes: usize) -> Option<Turn> {
        let entered = {
            let mut line = lock(&self.line);
            if line.waiting.is_empty() && line.has_room(bytes) {
                return Some(line.let_in(&self.line, bytes));
            }
            line.round.full = true;
            if matches!(line.lone, Lone::After(at) if at <= Instant::now()) {
                line.lone = Lone::Next;
            }
            let (turn, entered) = oneshot::channel();
            line.waiting.push_back(Waiting { bytes, turn });
            entered
        };
        entered.await.ok()
    }
}

impl Line {
    fn has_room(&self, bytes: usize) -> bool {
        self.under_way == 0 || (matches!(self.lone, Lone::After(_)) && self.under_way + bytes <= self.limit)
    }

    fn let_in(&mut self, line: &Arc<Mutex<Self>>, bytes: usize) -> Turn {
        self.entered += 1;
        let first = (self.under_way == 0).then_some(self.entered);
        self.under_way += bytes;
        if self.lone == Lone::Next {
            self.lone = Lone::UnderWay;
        }
        Turn { line: Arc::clone(line), bytes, first, begun: Instant::now(), took: None }
    }

    fn left(&mut self, turn: &Turn) {
        self.under_way -= turn.bytes;
        let was_alone = turn.first == Some(self.entered);
        if was_alone {
            let pause = (turn.begun.elapsed() * LONE_AFTER).clamp(EVERY.0, EVERY.1);
            self.lone = Lone::After(Instant::now() + pause);
        }
        let Some(took) = turn.took else { return };
        if was_alone {
            self.alone.push_back(took);
            if self.alone.len() > KNOWN {
                self.alone.pop_front();
            }
            return;
        }
        self.round.entries += 1;
        self.round.bytes += turn.bytes;
        self.round.largest = self.round.largest.max(turn.bytes);
        self.round.took += took;
        if self.round.entries >= ROUND && self.round.bytes >= self.limit {
            let round = std::mem::take(&mut self.round);
            self.limit = self.next_limit(&round).unwrap_or(self.limit);
            self.round.full = !self.waiting.is_empty();
        }
    }

    fn next_limit(&self, round: &Round) -> Option<usize> {
        let mut alone: Vec<Duration> = self.alone.iter().copied().collect();
        alone.sort();
        let alone = alone.get(alone.len() / 4)?;
        let mean = (round.took / round.entries).max(Duration::from_micros(1));
        let line = LINE.max(round.bytes / round.entries as usize) as f64;
        let factor = alone.mul_f64(SLACK).div_duration_f64(mean).clamp(1.0 / STEP, STEP);
        let next = ((self.limit as f64 * factor + line) as usize).clamp(LEAST, MOST).max(round.largest * 2);
        // Where nobody waited, more would not have come.
        Some(if round.full { next } else { next.min(self.limit) })
    }
}

/// Lets in who has room now.
fn pass(line: &Arc<Mutex<Line>>) {
    loop {
        let (turn, sender) = {
            let mut locked = lock(line);
            while locked.waiting.front().is_some_and(|waiting| waiting.turn.is_closed()) {
                locked.waiting.pop_front();
            }
            let room = locked.waiting.front().is_some_and(|waiting| locked.has_room(waiting.bytes));
            let Some(next) = locked.waiting.pop_front_if(|_| room) else { return };
            (locked.let_in(line, next.bytes), next.turn)
        };
        // Who has just gone gives the place back with this.
        drop(sender.send(turn));
    }
}

impl Turn {
    /// What it took until now was no work.
    pub(crate) fn begin(&mut self) {
        self.begun = Instant::now();
    }

    /// It is answered.
    pub(crate) fn answered(mut self) {
        self.took = Some(self.begun.elapsed());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.line).left(self);
        pass(&self.line);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{FIRST, LEAST, Limit, MOST};
    use crate::wal::lock;

    const ENTRY: usize = 64 * 1024;

    /// Works that take `alone` for an entry, if that is less than what stands in line at so many bytes a second.
    async fn load(line: &Arc<Limit>, clients: usize, alone: Duration, rate: usize, time: Duration) -> usize {
        let until = Instant::now() + time;
        let free = Arc::new(tokio::sync::Mutex::new(()));
        let client = |line: Arc<Limit>, free: Arc<tokio::sync::Mutex<()>>| async move {
            let mut entries = 0;
            while Instant::now() < until {
                let turn = line.enter(ENTRY).await.unwrap();
                let work = Duration::from_secs_f64(ENTRY as f64 / rate as f64);
                let working = free.lock().await;
                tokio::time::sleep(work).await;
                drop(working);
                tokio::time::sleep(alone.saturating_sub(work)).await;
                turn.answered();
                entries += 1;
            }
            entries
        };
        let clients: Vec<_> = (0..clients).map(|_| tokio::spawn(client(Arc::clone(line), Arc::clone(&free)))).collect();
        let mut entries = 0;
        for client in clients {
            entries += client.await.unwrap();
        }
        (entries as f64 * ENTRY as f64 / time.as_secs_f64()) as usize
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_let_in_than_keeps_the_works_busy() {
        let (line, rate) = (Arc::new(Limit::new()), 64 * 1024 * 1024);
        // So much that nobody has to wait at first.
        lock(&line.line).limit = MOST;
        let got = load(&line, 40, Duration::from_millis(4), rate, Duration::from_secs(30)).await;
        let busy = rate / 250;
        assert!((busy..=busy * 2).contains(&line.bytes()), "{} of {busy}", line.bytes());
        assert!(got > rate * 95 / 100, "{got} of {rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn over_a_long_way_as_much_is_under_way_as_that_takes() {
        let (line, rate) = (Arc::new(Limit::new()), 64 * 1024 * 1024);
        let got = load(&line, 1000, Duration::from_millis(100), rate, Duration::from_secs(60)).await;
        let busy = rate / 10;
        assert!((busy..=busy * 2).contains(&line.bytes()), "{} of {busy}", line.bytes());
        assert!(got > rate * 9 / 10, "{got} of {rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_line_nothing_changes_and_nobody_waits() {
        let line = Arc::new(Limit::new());
        load(&line, 1, Duration::from_millis(4), usize::MAX, Duration::from_secs(1)).await;
        load(&line, 4, Duration::from_millis(4), usize::MAX, Duration::from_secs(5)).await;
        assert_eq!(line.bytes(), FIRST);
        let began = Instant::now();
        let all = [line.enter(ENTRY).await, line.enter(ENTRY).await, line.enter(ENTRY).await];
        assert!(all.iter().all(Option::is_some) && began.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn one_entry_is_let_in_whatever_its_size_and_who_has_gone_is_passed_over() {
        let line = Arc::new(Limit::new());
        lock(&line.line).limit = LEAST;
        let large = line.enter(LEAST * 4).await.unwrap();
        let wait = |bytes| {
            let line = Arc::clone(&line);
            tokio::spawn(async move { line.enter(bytes).await.unwrap() })
        };
        let (gone, next, last) = (wait(ENTRY), wait(LEAST), wait(ENTRY));
        tokio::time::sleep(Duration::from_millis(1)).await;
        gone.abort();
        assert!(gone.await.is_err());
        assert!(!next.is_finished());
        drop(large);
        let next = next.await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!last.is_finished(), "in the order they came");
        drop(next);
        drop(last.await.unwrap());
        assert_eq!(lock(&line.line).under_way, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_takes_is_given_back() {
        let line = Arc::new(Limit::new());
        let first = line.enter(FIRST).await.unwrap();
        let mut waiting = Box::pin(line.enter(FIRST));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        // It has its turn, and does not know it yet.
        drop(first);
        drop(waiting);
        assert_eq!(lock(&line.line).under_way, 0);
    }
}
