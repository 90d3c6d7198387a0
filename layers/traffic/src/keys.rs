//! A pace for each key, as many keys as there is room for: a table of fixed size, in which a key has its place in one of
//! eight slots. A key whose time has passed is the same as one that was never seen, so its slot is free for another; only
//! when all eight are at work does the one that is nearest to rest lose what is known of it, and that is counted.
//! No lock: a slot is two atomics. Two requests that meet in the moment in which a slot changes its key may both count
//! for the new one. Deliberately absent: hashing (the caller's, keyed, so that nobody can aim at a slot).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::pace::Nanos;

const WAYS: usize = 8;

#[derive(Debug, Default)]
struct Slot {
    /// The key's hash; zero while it was never used.
    key: AtomicU64,
    next: AtomicU64,
}

/// Paces by key.
#[derive(Debug)]
pub struct Keys {
    slots: Box<[Slot]>,
    displaced: AtomicU64,
}

impl Keys {
    /// Room for `most` keys, at least eight.
    pub fn new(most: usize) -> Self {
        let sets = (most / WAYS).max(1);
        Self { slots: (0..sets * WAYS).map(|_| Slot::default()).collect(), displaced: AtomicU64::new(0) }
    }

    /// The pace of the key with this hash.
    pub(crate) fn pace(&self, hash: u64, now: Nanos) -> &AtomicU64 {
        let key = hash | 1;
        let sets = (self.slots.len() / WAYS) as u128;
        let begin = ((u128::from(hash) * sets) >> 64) as usize * WAYS;
        let set = &self.slots[begin..begin + WAYS];
        // Who loses a race for a slot looks again; somebody has won each time.
        for _ in 0..WAYS {
            let mut rested = &set[0];
            let mut rested_at = u64::MAX;
            for slot in set {
                if slot.key.load(Ordering::Acquire) == key {
                    return &slot.next;
                }
                let next = slot.next.load(Ordering::Relaxed);
                if next < rested_at {
                    (rested, rested_at) = (slot, next);
                }
            }
            let known = rested.key.load(Ordering::Acquire);
            if rested.key.compare_exchange(known, key, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                if known != 0 && rested_at > now {
                    self.displaced.fetch_add(1, Ordering::Relaxed);
                }
                rested.next.store(now, Ordering::Relaxed);
                return &rested.next;
            }
        }
        &set[0].next
    }

    /// Keys at work now: those that have used some of their rate.
    pub fn at_work(&self, now: Nanos) -> usize {
        self.slots.iter().filter(|slot| slot.next.load(Ordering::Relaxed) > now).count()
    }

    /// Room for so many.
    pub fn room(&self) -> usize {
        self.slots.len()
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
        assert_eq!(keys.pace(hash(9), 202).load(Ordering::Relaxed), 202, "the first had rested");
        assert_eq!(keys.displaced(), 0);
        keys.pace(hash(10), 100);
        assert_eq!(keys.displaced(), 1, "none had");
    }

    #[test]
    fn an_explosion_of_keys_stays_within_its_room() {
        let keys = Keys::new(1000);
        for key in 0..1_000_000 {
            keys.pace(hash(key), 0).store(1_000, Ordering::Relaxed);
        }
        assert!(keys.at_work(0) <= 1000);
        assert!(keys.displaced() > 990_000);
    }
}
