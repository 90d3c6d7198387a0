//! How many are under way for each key, as many keys as there is room for: a table of fixed size, in which a key has its
//! place in one of sixteen slots. A key of whom none is under way takes no room. When all sixteen are taken, one more key is
//! let through uncounted, and that is told: who has much to do must not suffer for the crowd. No lock: what is kept of a key
//! (40 bits of its hash) and how many it has are one atomic.
//! Deliberately absent: hashing (the caller's, keyed), and what becomes of those that are too many.

use std::sync::atomic::{AtomicU64, Ordering};

const WAYS: usize = 8;
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Counts of what is under way, by key.
#[derive(Debug)]
pub struct Crowd {
    slots: Box<[AtomicU64]>,
    room: usize,
    uncounted: AtomicU64,
}

/// Whether one more may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// Yes; it is to be given back by [`Crowd::leave`].
    Counted(usize),
    /// Yes, for want of room to count it.
    Uncounted,
    /// There are as many as there may be.
    Full,
}

impl Crowd {
    /// Room for `most` keys, at least eight.
    pub fn new(most: usize) -> Self {
        let room = most.max(WAYS);
        let sets = (room * 2).div_ceil(WAYS);
        Self { slots: (0..sets * WAYS).map(|_| AtomicU64::new(0)).collect(), room, uncounted: AtomicU64::new(0) }
    }

    /// One more of the key with this hash, if fewer than `most` are under way.
    pub fn join(&self, hash: u64, most: u64) -> Joined {
        if most == 0 {
            return Joined::Full;
        }
        let tag = hash & !COUNT_MASK;
        // Who loses a race looks again; somebody has won each time.
        for _ in 0..WAYS {
            if let Some(place) = self.find(hash, tag, None) {
                let seen = self.slots[place].load(Ordering::Acquire);
                if !is_of(seen, tag) {
                    continue;
                }
                if seen & COUNT_MASK >= most.min(COUNT_MASK) {
                    return Joined::Full;
                }
                if self.slots[place].compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return Joined::Counted(place);
                }
                continue;
            }
            let places = || self.places(hash);
            let free = places().find(|&place| self.slots[place].load(Ordering::Acquire) & COUNT_MASK == 0);
            let Some(free) = free else {
                self.uncounted.fetch_add(1, Ordering::Relaxed);
                return Joined::Uncounted;
            };
            let seen = self.slots[free].load(Ordering::Acquire);
            let is_free = seen & COUNT_MASK == 0;
            if !is_free
                || self.slots[free].compare_exchange(seen, tag | 1, Ordering::AcqRel, Ordering::Relaxed).is_err()
            {
                continue;
            }
            // Two that come first at the same moment must not count in two places.
            if self.find(hash, tag, Some(free)).is_none() {
                return Joined::Counted(free);
            }
            self.leave(free);
        }
        self.uncounted.fetch_add(1, Ordering::Relaxed);
        Joined::Uncounted
    }

    /// One that was counted has ended.
    pub fn leave(&self, place: usize) {
        self.slots[place].fetch_sub(1, Ordering::AcqRel);
    }

    fn find(&self, hash: u64, tag: u64, but: Option<usize>) -> Option<usize> {
        self.places(hash)
            .filter(|place| Some(*place) != but)
            .find(|&place| is_of(self.slots[place].load(Ordering::Acquire), tag))
    }

    /// Where a key may stand.
    fn places(&self, hash: u64) -> impl Iterator<Item = usize> {
        let sets = (self.slots.len() / WAYS) as u128;
        let begin = |hash: u64| ((u128::from(hash) * sets) >> 64) as usize * WAYS;
        let (one, other) = (begin(hash), begin(hash.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        (one..one + WAYS).chain(other..other + WAYS)
    }

    /// Keys that have some under way.
    pub fn at_work(&self) -> usize {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) & COUNT_MASK > 0).count()
    }

    /// What is under way and counted, of all keys.
    pub fn active(&self) -> u64 {
        self.slots.iter().map(|slot| slot.load(Ordering::Relaxed) & COUNT_MASK).sum()
    }

    /// So many keys have room for sure.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Those that were let through uncounted.
    pub fn uncounted(&self) -> u64 {
        self.uncounted.load(Ordering::Relaxed)
    }
}

fn is_of(seen: u64, tag: u64) -> bool {
    seen & !COUNT_MASK == tag && seen & COUNT_MASK > 0
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Crowd, Joined};

    fn hash(key: u64) -> u64 {
        let mixed = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    }

    #[test]
    fn each_key_has_so_many_under_way() {
        let crowd = Crowd::new(8);
        let places: Vec<Joined> = (0..3).map(|_| crowd.join(hash(1), 2)).collect();
        assert_eq!((places[0], places[2]), (places[1], Joined::Full));
        assert!(matches!(crowd.join(hash(2), 1), Joined::Counted(_)));
        assert_eq!((crowd.at_work(), crowd.active()), (2, 3));
        let Joined::Counted(place) = places[0] else { panic!("{places:?}") };
        crowd.leave(place);
        assert_eq!(crowd.join(hash(1), 2), places[0]);
        assert_eq!(crowd.join(hash(3), 0), Joined::Full, "nobody");
    }

    #[test]
    fn an_explosion_of_keys_stays_within_its_room_and_refuses_nobody() {
        let crowd = Crowd::new(1_000);
        let joined = (0..100_000).map(|key| crowd.join(hash(key), 1));
        let counted = joined.filter(|joined| *joined != Joined::Uncounted).inspect(|it| assert_ne!(*it, Joined::Full));
        let counted = counted.count();
        assert!((1_000..=2_000).contains(&counted), "{counted}");
        assert_eq!(crowd.uncounted(), 100_000 - counted as u64);
    }

    #[test]
    fn many_threads_never_have_more_under_way_than_there_may_be() {
        let crowd = Crowd::new(8);
        let (active, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Joined::Counted(place) = crowd.join(hash(7), 2) else { continue };
                        most.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        active.fetch_sub(1, Ordering::SeqCst);
                        crowd.leave(place);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 2);
        assert_eq!(crowd.active(), 0);
    }
}
