//! Durations as Go writes them (`1m30s`, `500ms`), which is how Consul's users write them; and plain numbers, which are
//! nanoseconds in Consul's JSON.

use std::time::Duration;

/// Units, longest names first where one begins with another.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
/// Nobody waits longer than this: a year.
const MOST: f64 = 365.0 * 24.0 * 3600e9;

/// Reads a duration; `None` for what is none, is negative or is longer than a year.
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, factor) = UNITS.iter().find(|(unit, _)| {
            rest.strip_prefix(unit).is_some_and(|after| !after.starts_with(|c: char| c.is_alphabetic()))
        })?;
        rest = &rest[unit.len()..];
        total += number * factor;
    }
    (!text.is_empty() && total <= MOST).then(|| Duration::from_nanos(total as u64))
}

/// Writes it as Go does: `1m30s`, `1.5s`, `500ms`, `0s`.
pub fn show(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    if nanos < 1_000_000_000 {
        let (unit, size) = match nanos {
            1_000_000.. => ("ms", 1e6),
            1_000.. => ("µs", 1e3),
            _ => ("ns", 1.0),
        };
        return format!("{}{unit}", nanos as f64 / size);
    }
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = (seconds % 60) as f64 + f64::from(duration.subsec_nanos()) / 1e9;
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, show};
    use std::time::Duration;

    #[test]
    fn reads_and_writes_what_go_does() {
        for (text, ms, shown) in [
            ("10s", 10_000, "10s"),
            ("1m30s", 90_000, "1m30s"),
            ("1.5s", 1500, "1.5s"),
            ("500ms", 500, "500ms"),
            ("2h", 7_200_000, "2h0m0s"),
            ("0", 0, "0s"),
            ("+5s", 5000, "5s"),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
            assert_eq!(show(Duration::from_millis(ms)), shown);
        }
        for wrong in ["", "10", "-5s", "s", "1x", "1..5s", "99999999h", "1m30", "ß"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
