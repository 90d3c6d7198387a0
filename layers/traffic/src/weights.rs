//! Which of several destinations takes a request: by turns that keep to the weights in every stretch of requests, or by a
//! key, so that whoever brings it again comes to the same one. Between route and guards in the request walk.
//! The turns are nginx' smooth weighted round-robin, worked out once; the choice by key is weighted rendezvous hashing
//! (Thaler and Ravishankar), so that a change of weights moves no more keys than it must.
//! Deliberately absent: what a key is, and destinations themselves.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The most turns until they begin again: finer shares are rounded to this.
const MOST_TURNS: u64 = 10_000;

/// Destinations take turns.
#[derive(Debug)]
pub struct Turns {
    order: Box<[u8]>,
    next: AtomicUsize,
}

impl Turns {
    /// Turns by `weights`, of which there are at most 256; a weight of zero gets none.
    pub fn of(weights: &[u32]) -> Self {
        let weights = reduced(weights);
        let total: i64 = weights.iter().sum();
        let mut current = vec![0_i64; weights.len()];
        let mut order = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        for _ in 0..total {
            for (current, weight) in current.iter_mut().zip(&weights) {
                *current += weight;
            }
            // The first of the largest, so that the order is the same everywhere.
            let largest = (0..weights.len()).rev().max_by_key(|&index| current[index]).unwrap_or(0);
            current[largest] -= total;
            order.push(u8::try_from(largest).expect("at most 256 destinations"));
        }
        Self { order: order.into(), next: AtomicUsize::new(0) }
    }

    /// Whose turn it is; zero if nobody has a weight.
    pub fn next(&self) -> usize {
        if self.order.len() <= 1 {
            return self.order.first().copied().unwrap_or(0).into();
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.order[turn % self.order.len()].into()
    }
}

/// Weights of the same shares that add up to [`MOST_TURNS`] at most.
fn reduced(weights: &[u32]) -> Vec<i64> {
    let divisor = weights.iter().fold(0, |divisor, &weight| greatest_common(divisor, u64::from(weight))).max(1);
    let total = weights.iter().map(|&weight| u64::from(weight)).sum::<u64>() / divisor;
    let share = |&weight: &u32| {
        let weight = u64::from(weight) / divisor;
        if total <= MOST_TURNS || weight == 0 { weight } else { (weight * MOST_TURNS / total).max(1) }
    };
    weights.iter().map(|weight| i64::try_from(share(weight)).unwrap_or(1)).collect()
}

fn greatest_common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common(b, a % b) }
}

/// A stable number for some bytes, the same in every process (FNV-1a, mixed).
pub fn key_of(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    mixed(hash)
}

/// Which destination a key belongs to: `destinations` are their own keys and weights. Zero if nobody has a weight.
pub fn by_key(destinations: impl Iterator<Item = (u64, u32)>, key: u64) -> usize {
    let mut best = (f64::NEG_INFINITY, 0);
    for (index, (own, weight)) in destinations.enumerate().filter(|(_, (_, weight))| *weight > 0) {
        // In (0, 1), so that its logarithm is finite and below zero.
        let chance = ((mixed(own ^ key) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        let score = f64::from(weight) / -chance.ln();
        if score > best.0 {
            best = (score, index);
        }
    }
    best.1
}

/// SplitMix64's end: bits that depend on all bits.
fn mixed(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Turns, by_key, key_of};

    /// nginx: `weight=5` and two of 1 give `a a b a c a a`.
    #[test]
    fn the_order_is_nginx() {
        let turns = Turns::of(&[5, 1, 1]);
        let order: Vec<usize> = (0..7).map(|_| turns.next()).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn every_stretch_keeps_to_the_weights() {
        for weights in [[80, 20, 0], [1, 1, 1], [9999, 1, 0], [33, 33, 34], [1_000_000, 500_000, 1], [7, 0, 0]] {
            let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
            let turns = Turns::of(&weights);
            let mut seen = [0_u64; 3];
            for so_far in 1..=20_000_u64 {
                seen[turns.next()] += 1;
                for (seen, weight) in seen.iter().zip(weights) {
                    let share = so_far as f64 * f64::from(weight) / total as f64;
                    // Shares that had to be rounded drift by a ten-thousandth.
                    let off = (*seen as f64 - share).abs();
                    assert!(off <= 1.5 + so_far as f64 / 5_000.0, "{weights:?}: {seen} of {so_far}, not {share}");
                }
            }
        }
        assert_eq!(Turns::of(&[0, 0]).next(), 0);
    }

    #[test]
    fn a_key_stays_and_moves_only_with_the_weights() {
        let at = |key: u64, weights: [u32; 2]| {
            by_key([(key_of(b"v1"), weights[0]), (key_of(b"v2"), weights[1])].into_iter(), key)
        };
        let keys: Vec<u64> = (0..100_000_u32).map(|user| key_of(&user.to_le_bytes())).collect();
        let mut before: Vec<usize> = keys.iter().map(|&key| at(key, [100, 0])).collect();
        assert!(before.iter().all(|&part| part == 0));
        for percent in [10, 50, 90, 100] {
            let now: Vec<usize> = keys.iter().map(|&key| at(key, [100 - percent, percent])).collect();
            let share = now.iter().sum::<usize>() as f64 / keys.len() as f64 * 100.0;
            assert!((share - f64::from(percent)).abs() < 0.5, "{share} % instead of {percent}");
            assert!(before.iter().zip(&now).all(|(before, now)| before <= now), "somebody was moved back");
            before = now;
        }
    }
}
