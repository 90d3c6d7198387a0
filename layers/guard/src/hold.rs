//! The waiting room of one service while nobody may take its requests: bounded admission, paced release.
//! Between balance and forward in the request walk. Deliberately absent: wakers and locks; the gateway keeps the
//! room under its own lock and asks it for numbers.

use std::time::{Duration, Instant};

/// How many requests may wait, and how long each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldPolicy {
    /// The longest one request waits in all, within its own deadline.
    pub max_wait: Duration,
    /// The most requests of one service that wait at once.
    pub max_requests: usize,
}

/// How a full room empties: so many at once, then so many each millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Requests let go in the first instant.
    pub burst: u64,
    /// Requests let go in each millisecond after that; zero counts as one.
    pub per_ms: u64,
}

impl Default for Release {
    /// 64 at once, then 32 a millisecond: a thousand waiters are through in 30 ms.
    fn default() -> Self {
        Self { burst: 64, per_ms: 32 }
    }
}

impl Release {
    /// When the waiter at `position` (zero first) may go, counted from the release.
    pub fn delay(self, position: u64) -> Duration {
        match position.checked_sub(self.burst) {
            None => Duration::ZERO,
            Some(behind) => Duration::from_millis(behind / self.per_ms.max(1) + 1),
        }
    }
}

/// A waiter's place in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The room holds as many as its policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomFull;

/// One service's waiting room.
#[derive(Debug, Default)]
pub struct Room {
    waiting: usize,
    next: u64,
    /// When the last release began and which ticket was the first it let go.
    released: Option<(Instant, u64)>,
    /// Tickets below this one had been let go when the newest release began.
    settled: u64,
}

impl Room {
    /// Takes a place.
    ///
    /// # Errors
    /// [`RoomFull`] when `max_requests` wait already; a retry is safe.
    pub fn enter(&mut self, max_requests: usize) -> Result<Ticket, RoomFull> {
        if self.waiting >= max_requests {
            return Err(RoomFull);
        }
        self.waiting += 1;
        self.next += 1;
        Ok(Ticket(self.next - 1))
    }

    /// Gives a place back: let go, timed out or gone.
    pub fn leave(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// The service takes requests again as of `now`: those who came after the last release form one line.
    pub fn release(&mut self, now: Instant) {
        self.released = Some((now, self.settled));
        self.settled = self.next;
    }

    /// When a waiter may go after the release it was woken by.
    pub fn go_at(&self, ticket: Ticket, pace: Release, now: Instant) -> Instant {
        match self.released {
            Some((at, first)) if ticket.0 < self.settled => at + pace.delay(ticket.0.saturating_sub(first)),
            _ => now,
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::{Release, Room, RoomFull};
    use std::time::{Duration, Instant};

    #[test]
    fn pace_table() {
        let pace = Release { burst: 2, per_ms: 2 };
        for (position, ms) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (101, 50)] {
            assert_eq!(pace.delay(position), Duration::from_millis(ms), "position {position}");
        }
        assert_eq!(Release { burst: 0, per_ms: 0 }.delay(3), Duration::from_millis(4));
    }

    #[test]
    fn admission_is_bounded_and_places_come_back() {
        let mut room = Room::default();
        assert!(room.enter(2).is_ok() && room.enter(2).is_ok());
        assert_eq!(room.enter(2), Err(RoomFull));
        room.leave();
        assert!(room.enter(2).is_ok());
        assert_eq!(room.waiting(), 2);
        assert_eq!(Room::default().enter(0), Err(RoomFull));
    }

    #[test]
    fn each_release_forms_a_line_of_its_own() {
        let pace = Release { burst: 1, per_ms: 1 };
        let start = Instant::now();
        let mut room = Room::default();
        let first: Vec<_> = (0..3).map(|_| room.enter(9).unwrap()).collect();
        room.release(start);
        let later = start + Duration::from_secs(1);
        let waits: Vec<_> = first.iter().map(|t| room.go_at(*t, pace, start) - start).collect();
        assert_eq!(waits, [0, 1, 2].map(Duration::from_millis));

        let second = room.enter(9).unwrap();
        assert_eq!(room.go_at(second, pace, later), later, "came after the release: nothing to wait for");
        room.release(later);
        assert_eq!(room.go_at(second, pace, later), later, "first of its own line");
    }
}
