//! A bulkhead: so many requests of a service at once, so many more wait for a place, the rest is turned away.
//! Between breaker and balance in the request walk; the retry budget ([`crate::budget`]) is one, too. Hystrix' semaphore
//! with a bounded line before it (Envoy's `max_requests` and `max_pending_requests`). When places or line run short, what
//! matters least goes first (criticality in Google's "Site Reliability Engineering", 21).
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

/// How much a request matters when not all can be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// It is before others in line, and if the line is full it has the place of the last that is not.
    Critical,
    /// It waits in line.
    #[default]
    Normal,
    /// It has four fifths of the places, and no place in line.
    Sheddable,
}

/// Who waits, in order: critical ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiter(u64);

/// What becomes of a request that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has a place.
    In,
    /// It waits for one.
    Waits(Waiter),
    /// It waits, and this one, who matters less, does not any more.
    Displaces(Waiter, Waiter),
    /// There is none, not even to wait.
    Full,
    /// What is left is for those that matter more.
    Shed,
}

/// Set in waiters that are not critical.
const NORMAL: u64 = 1 << 63;

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
    pub fn enter(&mut self, places: Places, priority: Priority) -> Entry {
        let room = match priority {
            Priority::Critical | Priority::Normal => places.max,
            Priority::Sheddable => places.max - places.max / 5,
        };
        // Nobody overtakes those who wait.
        if self.active < room.max(1) && self.waiting() == 0 {
            self.active += 1;
            return Entry::In;
        }
        if priority == Priority::Sheddable {
            return Entry::Shed;
        }
        let displaced = if self.waiting() < places.pending {
            None
        } else {
            // Whoever waits in vain has waited least.
            let last = self.line.iter().rev().find(|(waiter, granted)| waiter.0 & NORMAL != 0 && !**granted);
            match (priority, last.map(|(waiter, _)| *waiter)) {
                (Priority::Critical, Some(last)) => Some(last),
                _ => return Entry::Full,
            }
        };
        let waiter = Waiter(self.next | if priority == Priority::Critical { 0 } else { NORMAL });
        self.next += 1;
        self.line.insert(waiter, false);
        match displaced {
            Some(last) => {
                self.line.remove(&last);
                Entry::Displaces(waiter, last)
            }
            None => Entry::Waits(waiter),
        }
    }

    /// Whether a waiter that has not got its place is in line no more, because another one matters more.
    pub fn is_displaced(&self, waiter: Waiter) -> bool {
        !self.line.contains_key(&waiter)
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
    use super::{Bulkhead, Entry, NORMAL, Places, Priority};

    const PLACES: Places = Places { max: 2, pending: 2 };

    const N: Priority = Priority::Normal;

    fn waiter(bulkhead: &mut Bulkhead) -> super::Waiter {
        match bulkhead.enter(PLACES, N) {
            Entry::Waits(waiter) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_then_a_line_then_nothing() {
        let mut bulkhead = Bulkhead::default();
        assert_eq!([bulkhead.enter(PLACES, N), bulkhead.enter(PLACES, N)], [Entry::In, Entry::In]);
        let (first, second) = (waiter(&mut bulkhead), waiter(&mut bulkhead));
        assert_eq!(bulkhead.enter(PLACES, N), Entry::Full);
        assert!(!bulkhead.take(first));
        assert_eq!(bulkhead.leave(PLACES), Some(first));
        assert_eq!(bulkhead.enter(PLACES, N), waits_again(&bulkhead), "the freed place is the first waiter's");
        assert!(bulkhead.take(first) && !bulkhead.take(second));
        assert_eq!((bulkhead.active(), bulkhead.waiting()), (2, 2));
    }

    fn waits_again(bulkhead: &Bulkhead) -> Entry {
        Entry::Waits(super::Waiter((bulkhead.next - 1) | NORMAL))
    }

    #[test]
    fn whoever_gives_up_passes_the_place_on() {
        let mut bulkhead = Bulkhead::default();
        let _ = (bulkhead.enter(PLACES, N), bulkhead.enter(PLACES, N));
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
        let _ = (bulkhead.enter(PLACES, N), bulkhead.enter(PLACES, N));
        let (first, second) = (waiter(&mut bulkhead), waiter(&mut bulkhead));
        let wide = Places { max: 4, pending: 0 };
        assert_eq!(
            [bulkhead.grant(wide), bulkhead.grant(wide), bulkhead.grant(wide)],
            [Some(first), Some(second), None]
        );
        let narrow = Places { max: 1, pending: 1 };
        assert_eq!([bulkhead.leave(narrow), bulkhead.leave(narrow)], [None, None]);
        assert!(bulkhead.take(first), "what was given stays given");
        assert_eq!(bulkhead.enter(Places { max: 0, pending: 0 }, N), Entry::Full);
    }

    #[test]
    fn what_matters_least_goes_first() {
        let places = Places { max: 5, pending: 2 };
        let mut bulkhead = Bulkhead::default();
        for taken in 0..4 {
            assert_eq!(bulkhead.enter(places, Priority::Sheddable), Entry::In, "{taken}");
        }
        assert_eq!(bulkhead.enter(places, Priority::Sheddable), Entry::Shed, "the last fifth is for others");
        assert_eq!(bulkhead.enter(places, N), Entry::In);
        let (first, last) = (bulkhead.enter(places, N), bulkhead.enter(places, N));
        let (Entry::Waits(first), Entry::Waits(last)) = (first, last) else { panic!("{first:?} {last:?}") };
        assert_eq!(bulkhead.enter(places, N), Entry::Full);
        let Entry::Displaces(critical, displaced) = bulkhead.enter(places, Priority::Critical) else { panic!() };
        assert!(displaced == last && bulkhead.is_displaced(last) && !bulkhead.is_displaced(first));
        assert_eq!(bulkhead.leave(places), Some(critical), "before those that came earlier");
        assert!(bulkhead.take(critical) && !bulkhead.take(last));
        assert_eq!(bulkhead.give_up(last, places), None);
        assert_eq!((bulkhead.active(), bulkhead.waiting()), (5, 1));
        let Entry::Waits(second) = bulkhead.enter(places, Priority::Critical) else { panic!() };
        let Entry::Displaces(third, gone) = bulkhead.enter(places, Priority::Critical) else { panic!() };
        assert_eq!(gone, first);
        assert_eq!(bulkhead.enter(places, Priority::Critical), Entry::Full, "critical ones wait in their order");
        assert_eq!([bulkhead.leave(places), bulkhead.leave(places)], [Some(second), Some(third)]);
    }

    #[test]
    fn of_one_place_sheddable_requests_have_one() {
        let places = Places { max: 1, pending: 0 };
        assert_eq!(Bulkhead::default().enter(places, Priority::Sheddable), Entry::In);
    }
}
