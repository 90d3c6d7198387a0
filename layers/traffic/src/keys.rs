//! A pace for each key, as many keys as there is room for: a table of fixed size, in which a key has its place in one of
//! sixteen slots, eight in each of two sets. A key whose time has passed is the same as one that was never seen, so its slot
//! is free for another; only when all sixteen are at work does the one that is nearest to rest lose what is known of it, and
//! that is counted. There are twice as many slots as keys, so that as many keys as there is room for do not meet like this.
//! No lock: a slot is two atomics. Two requests that meet in the moment in which a slot changes its key may both count
//! for the new one. What is kept of a key is whatever fits an atomic and grows with the moment from which on it says nothing.
//! Deliberately absent: hashing (the caller's, keyed, so that nobody can aim at a slot).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pace::Nanos;

const WAYS: usize = 8;
/// Sets that come into being together, when a key has its place in one of them: a thousand limits that nobody meets have no
/// memory, and nobody looks through it.
const PAGE: usize = 64;

#[derive(Debug, Default)]
struct Slot {
    /// The key's hash; zero while it was never used.
    key: AtomicU64,
    next: AtomicU64,
}

/// Paces by key.
#[derive(Debug)]
pub struct Keys {
    pages: Box<[OnceLock<Box<[Slot]>>]>,
    sets: usize,
    room: usize,
    displaced: AtomicU64,
}

impl Keys {
    /// Room for `most` keys, at least eight.
    pub fn new(most: usize) -> Self {
        let room = most.max(WAYS);
        let sets = (room * 2).div_ceil(WAYS);
        let pages = (0..sets.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self { pages, sets, room, displaced: AtomicU64::new(0) }
    }

    /// The pace of the key with this hash.
    pub(crate) fn pace(&self, hash: u64, now: Nanos) -> &AtomicU64 {
        let key = hash | 1;
        let (one, other) = (self.set(hash), self.set(hash.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        // Who loses a race for a slot looks again; somebody has won each time.
        for _ in 0..WAYS {
            let mut free = (0, &one[0], u64::MAX);
            for set in [one, other] {
                let mut here = (0, &set[0], u64::MAX);
                for slot in set {
                    if slot.key.load(Ordering::Acquire) == key {
                        return &slot.next;
                    }
                    let next = slot.next.load(Ordering::Relaxed);
                    here.0 += u32::from(next <= now);
                    if next < here.2 {
                        (here.1, here.2) = (slot, next);
                    }
                }
                // Where there is more room, so that no set is full while others are not.
                if (here.0, std::cmp::Reverse(here.2)) > (free.0, std::cmp::Reverse(free.2)) {
                    free = here;
                }
            }
            let (_, rested, rested_at) = free;
            let known = rested.key.load(Ordering::Acquire);
            if rested.key.compare_exchange(known, key, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                if known != 0 && rested_at > now {
                    self.displaced.fetch_add(1, Ordering::Relaxed);
                }
                rested.next.store(now, Ordering::Relaxed);
                return &rested.next;
            }
        }
        &one[0].next
    }

    fn set(&self, hash: u64) -> &[Slot] {
        let set = ((u128::from(hash) * self.sets as u128) >> 64) as usize;
        let (page, begin) = (set / PAGE, set % PAGE * WAYS);
        let slots = self.pages[page].get_or_init(|| {
            let sets = PAGE.min(self.sets - page * PAGE);
            (0..sets * WAYS).map(|_| Slot::default()).collect()
        });
        &slots[begin..begin + WAYS]
    }

    /// Keys at work now: those that have used some of their rate.
    pub fn at_work(&self, now: Nanos) -> usize {
        let slots = self.pages.iter().filter_map(OnceLock::get).flatten();
        slots.filter(|slot| slot.next.load(Ordering::Relaxed) > now).count()
    }

    /// So many keys at work have room; up to twice as many are remembered while they happen to find it.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Keys that lost what was known of them to another one, because there was no room.
    pub fn displaced(&self) -> u64 {
        self.displaced.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::Keys;
    use std::sync::atomic::Ordering;

    fn hash(key: u64) -> u64 {
        let mixed = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    }

    #[test]
    fn a_key_keeps_its_pace_and_a_rested_one_gives_way() {
        let keys = Keys::new(8);
        assert_eq!(keys.room(), 8);
        for key in 1..=8 {
            keys.pace(hash(key), 100).store(200 + key, Ordering::Relaxed);
        }
        assert_eq!(keys.pace(hash(3), 100).load(Ordering::Relaxed), 203);
        assert_eq!((keys.at_work(100), keys.displaced()), (8, 0));
        assert_eq!(keys.pace(hash(9), 202).load(Ordering::Relaxed), 202, "a slot was free");
        for key in 10..100 {
            keys.pace(hash(key), 100).store(300, Ordering::Relaxed);
        }
        assert!(keys.displaced() > 0, "none had rested");
    }

    #[test]
    fn only_keys_that_came_have_memory() {
        let keys = Keys::new(100_000);
        let made = || keys.pages.iter().filter(|page| page.get().is_some()).count();
        assert_eq!((made(), keys.at_work(0)), (0, 0));
        keys.pace(hash(7), 0).store(1, Ordering::Relaxed);
        assert!((1..=2).contains(&made()) && keys.at_work(0) == 1, "one of its two sets each");
    }

    #[test]
    fn as_many_keys_as_there_is_room_for_keep_what_is_known_of_them() {
        for most in [8, 100, 1_000, 10_000, 100_000] {
            let keys = Keys::new(most);
            for round in 0..3 {
                for key in 0..most as u64 {
                    let known = keys.pace(hash(key), 100);
                    assert_eq!(known.load(Ordering::Relaxed), 100 + round, "{key} of {most}");
                    known.store(101 + round, Ordering::Relaxed);
                }
            }
            assert_eq!(keys.displaced(), 0, "{most}");
        }
    }

    #[test]
    fn an_explosion_of_keys_stays_within_its_room() {
        let keys = Keys::new(1000);
        for key in 0..1_000_000 {
            keys.pace(hash(key), 0).store(1_000, Ordering::Relaxed);
        }
        assert!(keys.at_work(0) <= 2000);
        assert!(keys.displaced() > 990_000);
    }
}
