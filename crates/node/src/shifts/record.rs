//! What is kept of a shift in the store, and what each node tells of its part in one. Fields are only ever added.

use std::fmt;

use data::Key;
use gateway::Totals;
use model::{Event, ServiceName, VersionName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::records::key;

/// Before a service's name: its shift.
pub const SHIFT: &str = "control/shift/";
/// Before `service/node`: what a node has counted in a step of its shift.
pub const MEASURE: &str = "control/measure/";

/// A shift of a service's requests.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShiftRecord {
    /// The chain that all its events are in; no other shift has it.
    pub cause: String,
    /// The service's version that had the requests; absent for all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<VersionName>,
    /// Where they go.
    pub to: Goal,
    /// Versions whose requests are moved, in whichever route they are named: `from`, and those of shifts before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captured: Vec<VersionName>,
    /// Where a route shares its requests among versions, only those of `from` move; otherwise all of them.
    #[serde(default)]
    pub only_from: bool,
    /// Steps and gates in the configuration's words.
    pub plan: Value,
    /// Which step, from 0.
    pub step: usize,
    /// So many hundredths of the requests go there.
    pub percent: u32,
    /// How it stands.
    pub phase: Phase,
    /// Raised when it goes on after a pause: what was counted before is not counted again.
    #[serde(default)]
    pub run: u32,
    /// Since when it stands so, RFC 3339.
    pub since: String,
    /// Why.
    pub why: String,
    /// The event of this change.
    pub event: Event,
    /// Present where nobody asked: requests go to a backup, or come back from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<Auto>,
}

/// Requests that go to a backup because a breaker has opened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Auto {
    /// They come back: `percent` is the part that is back.
    pub back: bool,
    /// An operator's shift that is in force again when they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<Box<ShiftRecord>>,
}

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    /// To another version of the service.
    Version(VersionName),
    /// To another service.
    Service(ServiceName),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => version.fmt(f),
            Self::Service(service) => service.fmt(f),
        }
    }
}

/// How a shift stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its step is being judged.
    Running,
    /// It stays at its step until somebody says how it goes on.
    Paused,
    /// All requests go to the new destination.
    Done,
    /// A gate failed: all requests go where they went before.
    RolledBack,
    /// An operator, or another configuration, ended it: all requests go where they went before.
    Aborted,
    /// It is over and says nothing about requests any more.
    Cleared,
}

impl Phase {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::RolledBack => "rolled-back",
            Self::Aborted => "aborted",
            Self::Cleared => "cleared",
        }
    }

    /// It can still go either way.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

impl ShiftRecord {
    /// What is being counted: another one begins at zero.
    pub fn stretch(&self) -> Stretch {
        let back = self.auto.as_ref().is_some_and(|auto| auto.back);
        Stretch { cause: self.cause.clone(), step: self.step, run: self.run, back }
    }

    /// The plan that is meant.
    ///
    /// # Errors
    /// It was written by a newer version.
    pub fn plan(&self) -> Result<model::config::ShiftPlan, String> {
        model::config::validate::read_shift(&self.plan).map(|shift| shift.plan())
    }
}

/// One step of one shift, from when it began or was taken up again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stretch {
    cause: String,
    step: usize,
    run: u32,
    #[serde(default)]
    back: bool,
}

/// What a node tells of its part in a step: what its gateway has counted, and what it sees of its instances.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measure {
    /// Of which step.
    pub of: Stretch,
    /// Requests that ended.
    pub requests: u64,
    /// Of which failed.
    pub failed: u64,
    /// Of which had a failure anywhere in their chain.
    pub chains_failed: u64,
    /// Classes of time that are not empty.
    pub times: Vec<(usize, u64)>,
    /// CPU of its instances.
    #[serde(default)]
    pub cpu: Sum,
    /// The series of the step's gates.
    #[serde(default)]
    pub series: Vec<Sum>,
}

/// A figure of several instances.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Sum {
    /// Added up.
    pub sum: f64,
    /// Over so many instances.
    pub count: u32,
}

impl Sum {
    /// One more.
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// Those of another node.
    pub fn join(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    /// For one instance; `None` without any.
    pub fn average(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }
}

impl Measure {
    /// What was counted, in a form for the store.
    pub fn of(of: Stretch, totals: &Totals, cpu: Sum, series: Vec<Sum>) -> Self {
        let times = totals.times.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
        let Totals { requests, failed, chains_failed, .. } = *totals;
        Self { of, requests, failed, chains_failed, times, cpu, series }
    }

    /// What was counted.
    pub fn totals(&self) -> Totals {
        let mut times = vec![0; traffic::CLASSES];
        for (class, count) in &self.times {
            if let Some(time) = times.get_mut(*class) {
                *time = *count;
            }
        }
        Totals { requests: self.requests, failed: self.failed, chains_failed: self.chains_failed, times }
    }
}

/// The key of a service's shift.
pub fn shift_key(service: &ServiceName) -> Key {
    key(&format!("{SHIFT}{service}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gateway::Tally;

    use super::{Measure, Stretch, Sum};

    #[test]
    fn what_is_counted_survives_the_store() {
        let tally = Tally::default();
        (0..50).for_each(|millis| tally.add(millis == 1, millis < 3, Duration::from_millis(millis)));
        let of = Stretch { cause: "a".into(), step: 1, run: 0, back: false };
        let measure = Measure::of(of, &tally.read(), Sum { sum: 1.5, count: 3 }, vec![Sum::default()]);
        let text = serde_json::to_string(&measure).unwrap();
        let read: Measure = serde_json::from_str(&text).unwrap();
        assert_eq!((read.totals(), &read), (tally.read(), &measure));
        assert!(text.len() < 2000, "{text}");
        assert_eq!((read.cpu.average(), read.series[0].average()), (Some(0.5), None));
    }
}
