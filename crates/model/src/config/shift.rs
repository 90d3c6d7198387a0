//! How a service's requests are moved to another version or service in steps, and what each step must show.
//! `seawall shift` takes the same words. Presets are somebody else's table with its numbers filled in. Deliberately absent:
//! rules over several keys (`validate/shift.rs`), the judgement (the `traffic` layer).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::decode::{Decode, OneOrMany, Places, Ratio, record, words};
use super::node::default_of;
use super::yaml::{Kind, Node};
use crate::diagnostic::Diagnostics;

record! {
    /// The steps of a shift and what is looked at before the next one. What is written here goes before the preset.
    Shift as "`shift`" {
        /// Another's table. `source`: 10 % on error rate and response time, 50 % on CPU and frequency of garbage collection, 100 % on the success of whole chains.
        preset: Option<ShiftPreset> = None,
        /// The steps, in percent of the requests, growing; the last one is 100. Each is a number, or has gates of its own. Default 10, 50, 100.
        steps: Vec<WrittenStep> = Vec::new(),
        /// How long a step lasts at least. Default 60s.
        hold: Option<Duration> = None,
        /// How often a step is judged, by the requests since the last time. A step that can no longer pass ends at once. Default 10s.
        every: Option<Duration> = None,
        /// With fewer requests than this to the new destination nothing can be said. Default 20.
        min_requests: Option<u32> = None,
        /// After so many judgements in a row that could say nothing the shift pauses. Default 3.
        patience: Option<u32> = None,
        /// What every step must show. Default: at most 1 % failed, no instance restarted.
        gates: Option<Gates> = None,
    }
}

impl Default for Shift {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// How requests go to a backup once the breaker has opened, and how they come back.
    Failover as "`failover`" {
        /// Steps and gates, in both directions. Default: steps 10, 50, 100, a hold of 5s, judged every 1s by any request, at most half of them failed. Where nothing can be said it goes on.
        shift: Shift = Shift::default(),
        /// How long the service must have been healthy before requests come back: `minAvailable` of its instances ready (one at least). Never before the breaker's `openFor` is over.
        fail_back_after: Duration = Duration::from_secs(30),
    }
}

impl Default for Failover {
    fn default() -> Self {
        default_of()
    }
}

impl Failover {
    /// The steps with their defaults filled in.
    pub fn shift(&self) -> Shift {
        let half = Gates { error_rate: Some(Ratio::percent(50)), ..Gates::default() };
        Shift {
            hold: self.shift.hold.or(Some(Duration::from_secs(5))),
            every: self.shift.every.or(Some(Duration::from_secs(1))),
            min_requests: self.shift.min_requests.or(Some(1)),
            gates: self.shift.gates.clone().or(Some(half)),
            ..self.shift.clone()
        }
    }
}

words! {
    /// A table of steps and what each of them is judged by.
    ShiftPreset {
        /// 10 % on error rate and response time, 50 % on CPU and frequency of garbage collection, 100 % on the success of whole chains.
        Source = "source",
    }
}

record! {
    /// One step.
    ShiftStep as "a step" {
        /// So many hundredths of the requests, 1 to 100.
        percent: u32,
        /// Instead of the shift's.
        hold: Option<Duration> = None,
        /// Instead of the shift's.
        gates: Option<Gates> = None,
    }
}

/// A step as it is written: a number, or a mapping.
#[derive(Clone, PartialEq, Debug)]
pub struct WrittenStep(pub ShiftStep);

record! {
    /// What the new destination must show. What is absent is not looked at.
    Gates as "`gates`" {
        /// At most this part of its requests may fail: 5xx, broken off, or no answer in time.
        error_rate: Option<Ratio> = None,
        /// At least this part of the chains that begin at it must succeed in all of their hops that pass the same gateway; hops are told by `traceparent`.
        success_rate: Option<Ratio> = None,
        /// Half of the answers must be this quick.
        p50: Option<Duration> = None,
        /// 99 of 100 answers must be this quick.
        p99: Option<Duration> = None,
        /// How often its instances may restart in the step.
        restarts: Option<u32> = None,
        /// The part of one processor that each of its instances may use on average.
        cpu: Option<Ratio> = None,
        /// Series of its instances' own Prometheus endpoint.
        series: Vec<SeriesGate> = Vec::new(),
    }
}

impl Default for Gates {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// A bound of a series that each instance tells by itself.
    SeriesGate as "a series" {
        /// Its name without labels, or several of which the first one counts that an instance has: all samples of the name are added up.
        ["name"] names: OneOrMany,
        /// Where it is read.
        path: String = "/metrics".to_owned(),
        /// It grows at most so much in a second, on average over the instances.
        max_per_second: Option<f64> = None,
        /// It is at most this, on average over the instances.
        max: Option<f64> = None,
    }
}

/// A shift with its preset and defaults filled in.
#[derive(Clone, PartialEq, Debug)]
pub struct ShiftPlan {
    /// In order.
    pub steps: Vec<PlannedStep>,
    /// How often a step is judged.
    pub every: Duration,
    /// With fewer requests nothing is said.
    pub min_requests: u32,
    /// Judgements in a row that say nothing, before it pauses.
    pub patience: u32,
}

/// One step of a plan.
#[derive(Clone, PartialEq, Debug)]
pub struct PlannedStep {
    /// So many hundredths of the requests.
    pub percent: u32,
    /// How long it lasts at least.
    pub hold: Duration,
    /// What it must show.
    pub gates: Gates,
}

impl Shift {
    /// The plan that is meant.
    pub fn plan(&self) -> ShiftPlan {
        let table = self.preset.map(ShiftPreset::table).unwrap_or_default();
        let hold = self.hold.unwrap_or(Duration::from_secs(60));
        let usual = Gates { error_rate: Some(Ratio::percent(1)), restarts: Some(0), ..Gates::default() };
        let gates_at = |percent: u32| {
            let preset = table.iter().find(|(most, _)| percent <= *most).map(|(_, gates)| gates.clone());
            self.gates.clone().or(preset).unwrap_or_else(|| usual.clone())
        };
        let step = |written: &ShiftStep| PlannedStep {
            percent: written.percent,
            hold: written.hold.unwrap_or(hold),
            gates: written.gates.clone().unwrap_or_else(|| gates_at(written.percent)),
        };
        let steps = if self.steps.is_empty() {
            let usual = [10, 50, 100].into_iter();
            usual.map(|percent| PlannedStep { percent, hold, gates: gates_at(percent) }).collect()
        } else {
            self.steps.iter().map(|written| step(&written.0)).collect()
        };
        ShiftPlan {
            steps,
            every: self.every.unwrap_or(Duration::from_secs(10)),
            min_requests: self.min_requests.unwrap_or(20),
            patience: self.patience.unwrap_or(3),
        }
    }
}

impl ShiftPreset {
    /// Gates up to a percentage. Their numbers are those of the usual alerts: 1 % of 5xx, a P99 of 500 ms.
    fn table(self) -> Vec<(u32, Gates)> {
        let Self::Source = self;
        let collections = [
            "go_gc_duration_seconds_count",
            "jvm_gc_pause_seconds_count",
            "dotnet_gc_collections_total",
            "process_runtime_dotnet_gc_collections_count_total",
        ];
        let collections = SeriesGate {
            names: OneOrMany(collections.map(str::to_owned).to_vec()),
            path: "/metrics".to_owned(),
            max_per_second: Some(5.0),
            max: None,
            at: Places::default(),
        };
        let answers = Gates {
            error_rate: Some(Ratio::percent(1)),
            p99: Some(Duration::from_millis(500)),
            restarts: Some(0),
            ..Gates::default()
        };
        let load = Gates { cpu: Some(Ratio::percent(80)), series: vec![collections], ..answers.clone() };
        let chains = Gates { success_rate: Some(Ratio::percent(99)), restarts: Some(0), ..Gates::default() };
        vec![(10, answers), (50, load), (100, chains)]
    }
}

impl Decode for WrittenStep {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        let Kind::Scalar { .. } = &node.kind else { return ShiftStep::decode(node, diagnostics).map(Self) };
        let percent = u32::decode(node, diagnostics)?;
        Some(Self(ShiftStep { percent, hold: None, gates: None, at: Places::of(node) }))
    }

    fn encode(&self) -> Value {
        match &self.0 {
            ShiftStep { percent, hold: None, gates: None, .. } => percent.encode(),
            step => step.encode(),
        }
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        json!({ "oneOf": [u32::schema(definitions), ShiftStep::schema(definitions)] })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Gates, Shift, ShiftPreset};
    use crate::config::Ratio;

    #[test]
    fn the_table_of_the_source_looks_at_other_things_at_each_step() {
        let plan = Shift { preset: Some(ShiftPreset::Source), ..Shift::default() }.plan();
        let percents: Vec<u32> = plan.steps.iter().map(|step| step.percent).collect();
        assert_eq!(percents, [10, 50, 100]);
        let [begin, middle, whole] = plan.steps.as_slice() else { panic!("three steps") };
        assert_eq!(
            (begin.gates.error_rate, begin.gates.p99),
            (Some(Ratio::percent(1)), Some(Duration::from_millis(500)))
        );
        assert_eq!(middle.gates.cpu, Some(Ratio::percent(80)));
        assert!(middle.gates.series[0].names.0.contains(&"go_gc_duration_seconds_count".to_owned()));
        assert_eq!(whole.gates.success_rate, Some(Ratio::percent(99)));
    }

    #[test]
    fn what_is_written_goes_before_the_preset() {
        let own = Gates { p50: Some(Duration::from_millis(5)), ..Gates::default() };
        let shift = Shift { preset: Some(ShiftPreset::Source), gates: Some(own.clone()), ..Shift::default() };
        assert!(shift.plan().steps.iter().all(|step| step.gates == own));
        let usual = Shift::default().plan();
        assert_eq!(usual.steps[0].gates.error_rate, Some(Ratio::percent(1)));
        assert_eq!(usual.steps[0].gates.restarts, Some(0));
    }
}
