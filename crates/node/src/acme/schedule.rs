//! When a certificate is renewed and when a failure is tried again. Plain functions of what is known; seconds since the
//! Unix epoch. `chance` is any number, drawn anew each time: many machines must not come at the same moment.

use std::time::Duration;

/// After the first failure; each further one multiplies it. Five tries fit into the first hour, as many as Let's Encrypt
/// lets fail for one name.
const FIRST_PAUSE_SECONDS: i64 = 60;
const FACTOR: i64 = 3;
/// No pause is longer, unless the authority asks for it ...
const LONGEST_PAUSE_SECONDS: i64 = 6 * 3600;
/// ... nor shorter than this where a certificate is about to end.
const SHORTEST_PAUSE_SECONDS: i64 = 30;
/// An authority that asks for a longer pause than this is asked again all the same.
const LONGEST_ASKED_SECONDS: i64 = 7 * 86_400;
/// What an authority advises is heeded this long after a certificate begins, and not before: advice that is always in the
/// past must not make an order of each look.
const ADVICE_HEEDED_AFTER_SECONDS: i64 = 3600;

/// When a certificate is renewed that nobody advises about: `before` its end, by default with a third of its lifetime left.
/// Whatever `before` says, a quarter of the lifetime is used.
pub fn renew_at(begins: i64, expires: i64, before: Option<Duration>) -> i64 {
    let lifetime = (expires - begins).max(0);
    let before = before.map_or(lifetime / 3, |before| i64::try_from(before.as_secs()).unwrap_or(i64::MAX));
    expires.saturating_sub(before).max(begins + lifetime / 4)
}

/// The same where the authority advises a window (RFC 9773): a moment in it, but not later than `usual`.
pub fn advised(begins: i64, expires: i64, usual: i64, window: (i64, i64), chance: u64) -> i64 {
    let (start, end) = window;
    let width = u64::try_from(end - start).unwrap_or(0) + 1;
    let drawn = start.saturating_add((chance % width).cast_signed());
    let heeded = begins + ((expires - begins).max(0) / 4).min(ADVICE_HEEDED_AFTER_SECONDS);
    drawn.max(heeded).min(usual)
}

/// When the next try follows after `failures` in a row, one at least. `expires` is the end of the certificate that is in
/// force, if there is one; `asked` is what the authority says (`Retry-After`).
pub fn try_again_at(now: i64, failures: u32, expires: Option<i64>, asked: Option<i64>, chance: u64) -> i64 {
    let grown = FACTOR.saturating_pow(failures.saturating_sub(1)).saturating_mul(FIRST_PAUSE_SECONDS);
    let pause = grown.min(LONGEST_PAUSE_SECONDS);
    // Spread over a quarter to either side.
    let spread = (pause / 2).max(1).cast_unsigned();
    let pause = pause - pause / 4 + (chance % spread).cast_signed();
    let left = expires.map(|expires| expires - now).filter(|left| *left > 0);
    let pause = left.map_or(pause, |left| pause.min((left / 4).max(SHORTEST_PAUSE_SECONDS)));
    let asked = asked.unwrap_or(0).min(now + LONGEST_ASKED_SECONDS);
    (now + pause).max(asked)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{advised, renew_at, try_again_at};

    const DAY: i64 = 86_400;

    #[test]
    fn renewal_is_with_a_third_left_or_as_written_and_never_at_once() {
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        for (lifetime, before, at) in
            [(90 * DAY, None, 60 * DAY), (90 * DAY, days(7), 83 * DAY), (6 * DAY, None, 4 * DAY), (60, None, 40)]
        {
            assert_eq!(renew_at(1000, 1000 + lifetime, before), 1000 + at, "{lifetime} {before:?}");
        }
        // Longer than the lifetime: a quarter is used.
        assert_eq!(renew_at(0, 8 * DAY, days(30)), 2 * DAY);
        assert_eq!(renew_at(0, 8 * DAY, Some(Duration::MAX)), 2 * DAY);
        assert_eq!(renew_at(5, 5, None), 5);
    }

    #[test]
    fn advice_brings_forward_and_never_delays() {
        let (usual, ends) = (60 * DAY, 90 * DAY);
        for chance in [0, 1, 999, u64::MAX] {
            let at = advised(0, ends, usual, (10 * DAY, 11 * DAY), chance);
            assert!((10 * DAY..=11 * DAY).contains(&at), "{at}");
        }
        assert_eq!(advised(0, ends, usual, (70 * DAY, 71 * DAY), 7), usual);
        // Revoked: the window is over.
        assert_eq!(advised(0, ends, usual, (-5, -4), 7), 3600);
        assert_eq!(advised(0, 60, 40, (-5, -4), 7), 15);
        assert_eq!(advised(0, ends, usual, (9 * DAY, 8 * DAY), 3), 9 * DAY, "an empty window");
    }

    #[test]
    fn pauses_grow_within_bounds_and_obey() {
        for (failures, least, most) in
            [(1, 45, 75), (2, 135, 225), (5, 3645, 6075), (9, 16_200, 27_000), (99, 16_200, 27_000)]
        {
            for chance in [0, 12_345, u64::MAX] {
                let pause = try_again_at(100, failures, None, None, chance) - 100;
                assert!((least..=most).contains(&pause), "{failures} {chance}: {pause}");
            }
        }
        // What is in force ends soon: more tries.
        assert!(try_again_at(0, 99, Some(4 * 3600), None, 0) <= 3600);
        assert_eq!(try_again_at(0, 99, Some(20), None, 0), 30);
        assert!(try_again_at(500, 99, Some(20), None, 0) > 10_000, "it has ended: there is no hurry any more");
        assert_eq!(try_again_at(0, 1, None, Some(7200), 0), 7200);
        assert_eq!(try_again_at(0, 1, None, Some(i64::MAX), 0), 7 * DAY);
        assert_eq!(try_again_at(0, 1, Some(400), Some(7200), 0), 7200, "an authority that asks for it is obeyed");
    }
}
