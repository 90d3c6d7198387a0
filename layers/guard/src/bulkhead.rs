//! A bulkhead: so many requests of a service at once, so many more wait for a place, the rest is turned away.
//! Between breaker and balance in the request walk; the retry budget ([`crate::budget`]) is one, too. Hystrix' semaphore
//! with a bounded line before it (Envoy's `max_requests` and `max_pending_requests`).
//! Deliberately absent: wakers, locks and how long anybody waits.

use std::collections::BTreeMap;

/// How many at once, and how many more wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Requests that have a place; zero counts as one.
    pub max: usize,
    /// Requests that wait for one.
    pub pending: usize,
}

/// Who waits, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiter(u64);

/// What becomes of a request that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has a place.
    In,
    /// It waits for one.
    Waits(Waiter),
    /// There is none, not even to wait.
    Full,
}

/// Places and who waits for one.
#[derive(Debug, Default)]
pub struct Bulkhead {
    active: usize,
    next: u64,
    /// Waiters in order; true once a place is kept for one.
    line: BTreeMap<Waiter, bool>,
    granted: usize,
}

impl Bulkhead {
    /// Somebody comes.
    pub fn enter(&mut self, places: Places) -> Entry {
        // Nobody overtakes those who wait.
        if self.active < places.max.max(1) && self.waiting() == 0 {
            self.active += 1;
            return Entry::In;
        }
        if self.waiting() >= places.pending {
            return Entry::Full;
        }
        let waiter = Waiter(self.next);
        self.next += 1;
        self.line.insert(waiter, false);
        Entry::Waits(waiter)
    }

    /// Whether a waiter's place is there; it then has it, and leaves the line.
    pub fn take(&mut self, waiter: Waiter) -> bool {
        let granted = self.line.get(&waiter).is_some_and(|granted| *granted);
        if granted {
            self.line.remove(&waiter);
            self.granted -= 1;
        }
        granted
    }

    /// Somebody who had a place is done: the waiter whose place it is now, if any.
    #[must_use]
    pub fn leave(&mut self, places: Places) -> Option<Waiter> {
        self.active = self.active.saturating_sub(1);
        self.grant(places)
    }

    /// A waiter goes without its place: who has it now, if it was there already.
    #[must_use]
    pub fn give_up(&mut self, waiter: Waiter, places: Places) -> Option<Waiter> {
        if self.line.remove(&waiter) == Some(true) {
            self.granted -= 1;
            return self.leave(places);
        }
        None
    }

    /// The next waiter whose place is there; asked again and again when there are more places than before.
    #[must_use]
    pub fn grant(&mut self, places: Places) -> Option<Waiter> {
        if self.active >= places.max.max(1) {
            return None;
        }
        let (waiter, granted) = self.line.iter_mut().find(|(_, granted)| !**granted)?;
        *granted = true;
        self.active += 1;
        self.granted += 1;
        Some(*waiter)
    }

    /// Places taken, those kept for waiters included.
    pub fn active(&self) -> usize {
        self.active
    }

    /// How many wait for a place.
    pub fn waiting(&self) -> usize {
        self.line.len() - self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::{Bulkhead, Entry, Places};

    const PLACES: Places = Places { max: 2, pending: 2 };

    fn waiter(bulkhead: &mut Bulkhead) -> super::Waiter {
        match bulkhead.enter(PLACES) {
            Entry::Waits(waiter) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_then_a_line_then_nothing() {
        let mut bulkhead = Bulkhead::default();
        assert_eq!([bulkhead.enter(PLACES), bulkhead.enter(PLACES)], [Entry::In, Entry::In]);
        let (first, second) = (waiter(&mut bulkhead), waiter(&mut bulkhead));
        assert_eq!(bulkhead.enter(PLACES), Entry::Full);
        assert!(!bulkhead.take(first));
        assert_eq!(bulkhead.leave(PLACES), Some(first));
        assert_eq!(bulkhead.enter(PLACES), waits_again(&bulkhead), "the freed place is the first waiter's");
        assert!(bulkhead.take(first) && !bulkhead.take(second));
        assert_eq!((bulkhead.active(), bulkhead.waiting()), (2, 2));
    }

    fn waits_again(bulkhead: &Bulkhead) -> Entry {
        Entry::Waits(super::Waiter(bulkhead.next - 1))
    }

    #[test]
    fn whoever_gives_up_passes_the_place_on() {
        let mut bulkhead = Bulkhead::default();
        let _ = (bulkhead.enter(PLACES), bulkhead.enter(PLACES));
        let (first, second) = (waiter(&mut bulkhead), waiter(&mut bulkhead));
        assert_eq!(bulkhead.leave(PLACES), Some(first));
        assert_eq!(bulkhead.give_up(first, PLACES), Some(second), "it had been given the place");
        assert_eq!(bulkhead.give_up(second, PLACES), None);
        assert_eq!((bulkhead.active(), bulkhead.waiting()), (1, 0));
        assert_eq!(bulkhead.leave(PLACES), None);
        assert_eq!(bulkhead.active(), 0);
    }

    #[test]
    fn more_places_let_waiters_in_and_fewer_turn_nobody_out() {
        let mut bulkhead = Bulkhead::default();
        let _ = (bulkhead.enter(PLACES), bulkhead.enter(PLACES));
        let (first, second) = (waiter(&mut bulkhead), waiter(&mut bulkhead));
        let wide = Places { max: 4, pending: 0 };
        assert_eq!(
            [bulkhead.grant(wide), bulkhead.grant(wide), bulkhead.grant(wide)],
            [Some(first), Some(second), None]
        );
        let narrow = Places { max: 1, pending: 1 };
        assert_eq!([bulkhead.leave(narrow), bulkhead.leave(narrow)], [None, None]);
        assert!(bulkhead.take(first), "what was given stays given");
        assert_eq!(bulkhead.enter(Places { max: 0, pending: 0 }), Entry::Full);
    }
}
