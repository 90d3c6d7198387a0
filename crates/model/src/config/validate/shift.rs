//! Rules of a shift: its steps grow to the whole, and what it looks at can be looked at.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::config::{Decode as _, Gates, Ratio, Shift, yaml};
use crate::diagnostic::{Diagnostics, Place, Sources};

/// The most steps.
const MOST_STEPS: usize = 20;

/// The most series of a step: each is read from each instance again and again.
const MOST_SERIES: usize = 16;

/// Judged no more often than that.
const SHORTEST: Duration = Duration::from_millis(500);

/// No step lasts longer.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads a shift in the configuration's words.
///
/// # Errors
/// Every mistake in it, as text.
pub fn read(written: &Value) -> Result<Shift, String> {
    let (mut sources, mut diagnostics) = (Sources::default(), Diagnostics::default());
    let text = written.to_string();
    let file = sources.add(Path::new("the shift"), text.clone());
    let shift = yaml::parse(&text, file, &mut diagnostics).and_then(|node| Shift::decode(&node, &mut diagnostics));
    if let Some(shift) = &shift {
        check(shift, &mut |place, message, cure| diagnostics.error(place, message, cure));
    }
    shift.filter(|_| diagnostics.is_ok()).ok_or_else(|| diagnostics.render(&sources))
}

/// Checks a shift; `error` takes where, what and what to do.
pub fn check(shift: &Shift, error: &mut dyn FnMut(Place, &str, &str)) {
    let at = &shift.at;
    let percents: Vec<u32> = shift.steps.iter().map(|step| step.0.percent).collect();
    let grow = percents.windows(2).all(|pair| pair[0] < pair[1]);
    let whole = percents.last().is_none_or(|last| *last == 100) && percents.first() != Some(&0);
    if !grow || !whole || percents.len() > MOST_STEPS {
        let cure = "percentages that grow and end with 100, at most 20 of them: [10, 50, 100]";
        error(at.field("steps"), &format!("steps of {percents:?}"), cure);
    }
    if shift.every.is_some_and(|every| every < SHORTEST || every > LONGEST) {
        error(at.field("every"), "judged too often or too rarely", "500ms to 7 days, e.g. every: 10s");
    }
    let holds = shift.steps.iter().map(|step| (step.0.at.field("hold"), step.0.hold));
    for (place, hold) in holds.chain([(at.field("hold"), shift.hold)]) {
        if hold.is_some_and(|hold| hold > LONGEST) {
            error(place, "a step of more than 7 days", "e.g. hold: 10m");
        }
    }
    for (key, number) in [("minRequests", shift.min_requests), ("patience", shift.patience)] {
        if number == Some(0) {
            error(at.field(key), &format!("`{key}: 0`"), "1 or more");
        }
    }
    let own = shift.steps.iter().filter_map(|step| step.0.gates.as_ref());
    for gates in own.chain(&shift.gates) {
        check_gates(gates, error);
    }
}

fn check_gates(gates: &Gates, error: &mut dyn FnMut(Place, &str, &str)) {
    if gates.success_rate == Some(Ratio(0)) {
        error(gates.at.field("successRate"), "`successRate: 0` is always reached", "e.g. successRate: 99%");
    }
    if gates.series.len() > MOST_SERIES {
        error(gates.at.field("series"), "more than 16 series", "look at fewer");
    }
    for series in &gates.series {
        let is_name = |name: &String| {
            let mut bytes = name.bytes();
            bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || matches!(first, b'_' | b':'))
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
        };
        if series.names.0.is_empty() || !series.names.0.iter().all(is_name) {
            error(series.at.field("name"), "no name of a series", "its name without labels, e.g. go_goroutines");
        }
        if !series.path.starts_with('/') || !series.path.bytes().all(|byte| byte.is_ascii_graphic()) {
            error(series.at.field("path"), "no path", "e.g. path: /metrics");
        }
        if series.max.is_some() == series.max_per_second.is_some() {
            error(series.at.whole, "a series takes one of `max` and `maxPerSecond`", "e.g. maxPerSecond: 5");
        }
    }
}
