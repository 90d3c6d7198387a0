//! A part of all requests, exact in every stretch of them: of any hundred in a row 10 % are ten.
//! Asked by the request walk for mirrors and injected faults. Deliberately absent: which requests; who comes next counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// The whole, in millionths.
const WHOLE: u32 = 1_000_000;

/// A part of the requests that ask.
#[derive(Debug)]
pub struct Portion {
    part: u32,
    sum: AtomicU64,
}

impl Portion {
    /// So many millionths; more than the whole is the whole.
    pub fn of(millionths: u32) -> Self {
        Self { part: millionths.min(WHOLE), sum: AtomicU64::new(0) }
    }

    /// Whether this request is one of them.
    pub fn takes(&self) -> bool {
        match self.part {
            0 => false,
            WHOLE => true,
            part => {
                let before = self.sum.fetch_add(part.into(), Ordering::Relaxed) % u64::from(WHOLE);
                before + u64::from(part) >= WHOLE.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Portion;

    #[test]
    fn a_part_is_exact_in_every_stretch() {
        for (millionths, of, want) in [
            (0, 100, 0),
            (1_000_000, 100, 100),
            (2_000_000, 7, 7),
            (100_000, 100, 10),
            (5_000, 1_000, 5),
            (333_333, 1_000, 333),
        ] {
            let portion = Portion::of(millionths);
            for _ in 0..3 {
                let taken = (0..of).filter(|_| portion.takes()).count();
                assert!(taken.abs_diff(want) <= usize::from(millionths % 1000 != 0), "{millionths} of {of}: {taken}");
            }
        }
    }
}
