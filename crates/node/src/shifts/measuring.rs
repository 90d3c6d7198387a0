//! What a node sees of its own part in a shift: what its gateway has counted goes to the others through the store, and its
//! instances are asked for CPU and for series of their own Prometheus endpoint.
//! Deliberately absent: what follows from it (`moving.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use model::config::SeriesGate;
use model::{Incarnation, InstanceId, ServiceName};

use super::record::{Goal, MEASURE, Measure, Phase, Stretch, Sum};
use crate::cluster::publisher::Said;
use crate::controller::Controller;
use crate::input::Input;

/// What is counted is told to others this often.
const TELL: Duration = Duration::from_secs(1);
/// And this often when something has failed since.
const TELL_FAILURE: Duration = Duration::from_millis(200);
/// Instances are asked this often.
const ASK: Duration = Duration::from_secs(1);
/// An instance has so long to answer.
const PATIENCE: Duration = Duration::from_millis(900);
/// More of a page of metrics is not read.
const MOST_BYTES: usize = 4 << 20;

/// One instance at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Which process.
    pub incarnation: Incarnation,
    /// When.
    pub at: Instant,
    /// How long it has used a processor in all.
    pub cpu: Option<Duration>,
    /// The series of the step's gates, in their order.
    pub series: Vec<Option<f64>>,
}

/// Readings of a step's gates, each instance's last two.
#[derive(Debug, Default)]
pub struct Readings {
    last: BTreeMap<InstanceId, (Option<Reading>, Reading)>,
    gates: Vec<SeriesGate>,
    /// They are being taken, or were then.
    asked: Option<Instant>,
    asking: bool,
}

impl Readings {
    fn take(&mut self, readings: BTreeMap<InstanceId, Reading>) {
        self.asking = false;
        let mut before = std::mem::take(&mut self.last);
        for (id, reading) in readings {
            let earlier = before.remove(&id).map(|(_, last)| last);
            let same = earlier.filter(|earlier| earlier.incarnation == reading.incarnation);
            self.last.insert(id, (same, reading));
        }
    }

    /// The part of a processor that they use.
    pub fn cpu(&self) -> Sum {
        let mut sum = Sum::default();
        for (earlier, last) in self.last.values() {
            let Some(earlier) = earlier else { continue };
            if let Some((before, now)) = earlier.cpu.zip(last.cpu) {
                let over = last.at.saturating_duration_since(earlier.at).as_secs_f64().max(0.001);
                sum.add(now.saturating_sub(before).as_secs_f64() / over);
            }
        }
        sum
    }

    /// The series, as their gates look at them.
    pub fn series(&self) -> Vec<Sum> {
        let one = |(index, gate): (usize, &SeriesGate)| {
            let mut sum = Sum::default();
            for (earlier, last) in self.last.values() {
                let Some(now) = last.series.get(index).copied().flatten() else { continue };
                if gate.max_per_second.is_none() {
                    sum.add(now);
                } else if let Some(earlier) = earlier
                    && let Some(before) = earlier.series.get(index).copied().flatten()
                {
                    let over = last.at.saturating_duration_since(earlier.at).as_secs_f64().max(0.001);
                    sum.add((now - before).max(0.0) / over);
                }
            }
            sum
        };
        self.gates.iter().enumerate().map(one).collect()
    }
}

/// An instance to ask.
struct Asked {
    id: InstanceId,
    incarnation: Incarnation,
    pid: Option<u32>,
    address: SocketAddr,
}

impl Controller {
    /// Where a shift leads: the service, and which of its versions.
    fn goal_of(&self, name: &ServiceName) -> Option<(ServiceName, Option<model::VersionName>)> {
        let shifting = self.shifts.0.get(name).filter(|shifting| shifting.record.phase == Phase::Running)?;
        Some(match &shifting.record.to {
            Goal::Version(version) => (name.clone(), Some(version.clone())),
            Goal::Service(other) => (other.clone(), None),
        })
    }

    /// How often each instance of a shift's destination has been restarted.
    pub(super) fn restarts_of(&self, name: &ServiceName) -> BTreeMap<InstanceId, u32> {
        let Some((service, version)) = self.goal_of(name) else { return BTreeMap::new() };
        let Some(service) = self.services.get(&service) else { return BTreeMap::new() };
        service.restart_counts(version.as_ref())
    }

    /// Asks the instances here that a shift leads to, if it looks at them, and keeps what is to be told to others.
    pub(super) fn measure(&mut self, name: &ServiceName, now: Instant) {
        let goal = self.goal_of(name);
        let Some(shifting) = self.shifts.0.get_mut(name) else { return };
        let Some((service, version)) = goal else { return };
        let gates = shifting.record.plan().ok().and_then(|plan| {
            let step = plan.steps.into_iter().nth(shifting.record.step)?;
            Some(step.gates)
        });
        let Some(gates) = gates else { return };
        let due = shifting.readings.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK);
        if (gates.cpu.is_some() || !gates.series.is_empty()) && due && !shifting.readings.asking {
            shifting.readings.asked = Some(now);
            shifting.readings.asking = true;
            shifting.readings.gates.clone_from(&gates.series);
            let stretch = shifting.stretch();
            let here = self.services.get(&service).map(|service| service.serving_here(version.as_ref()));
            let asked: Vec<Asked> = here
                .into_iter()
                .flatten()
                .map(|(id, incarnation, pid, address)| Asked { id, incarnation, pid, address })
                .collect();
            let (name, series) = (name.clone(), gates.series);
            self.shell.spawn(async move {
                let mut readings = BTreeMap::new();
                for result in futures(asked, series).await {
                    readings.insert(result.0, result.1);
                }
                Input::ShiftRead { service: name, stretch, readings }
            });
        }
        if self.shell.own.is_some() {
            self.tell_measure(name, now);
        }
    }

    /// What the others are to know.
    fn tell_measure(&mut self, name: &ServiceName, now: Instant) {
        let Some(shifting) = self.shifts.0.get_mut(name) else { return };
        let totals = shifting.tally.read();
        let due = shifting.told.as_ref().is_none_or(|(told, at)| {
            let since = now.saturating_duration_since(*at);
            told.of != shifting.record.stretch()
                || since >= TELL
                || (since >= TELL_FAILURE && (totals.failed, totals.chains_failed) != (told.failed, told.chains_failed))
        });
        if due {
            let (cpu, series) = (shifting.readings.cpu(), shifting.readings.series());
            shifting.told = Some((Measure::of(shifting.stretch(), &totals, cpu, series), now));
        }
    }

    /// Instances were asked.
    pub fn shift_measured(
        &mut self,
        service: &ServiceName,
        stretch: &Stretch,
        readings: BTreeMap<InstanceId, Reading>,
    ) {
        if let Some(shifting) = self.shifts.0.get_mut(service).filter(|shifting| shifting.stretch() == *stretch) {
            shifting.readings.take(readings);
        }
    }

    /// What this node tells of its part in shifts.
    pub fn said_of_shifts(&self) -> Said {
        let running = self.shifts.0.iter().filter(|(_, shifting)| shifting.record.phase == Phase::Running);
        let said = running.filter_map(|(name, shifting)| {
            let (measure, _) = shifting.told.as_ref()?;
            let value = serde_json::to_vec(measure).expect("a record always becomes JSON");
            Some((format!("{MEASURE}{name}/{}", self.config.node.name), value))
        });
        said.collect()
    }
}

/// Asks all of them at once.
async fn futures(asked: Vec<Asked>, series: Vec<SeriesGate>) -> Vec<(InstanceId, Reading)> {
    let mut tasks = tokio::task::JoinSet::new();
    for one in asked {
        let series = series.clone();
        tasks.spawn(async move {
            let values = ask(one.address, &series).await;
            let cpu = one.pid.and_then(platform::process::cpu_time);
            (one.id, Reading { incarnation: one.incarnation, at: Instant::now(), cpu, series: values })
        });
    }
    tasks.join_all().await
}

/// The series of an instance's pages, each page asked for once.
async fn ask(address: SocketAddr, series: &[SeriesGate]) -> Vec<Option<f64>> {
    let mut pages: BTreeMap<&str, Option<String>> = BTreeMap::new();
    for gate in series {
        if !pages.contains_key(gate.path.as_str()) {
            let page = health::prober::page(address, &gate.path, MOST_BYTES);
            let page = tokio::time::timeout(PATIENCE, page).await;
            pages.insert(&gate.path, page.ok().and_then(Result::ok));
        }
    }
    let value = |gate: &SeriesGate| {
        let page = pages.get(gate.path.as_str())?.as_ref()?;
        gate.names.0.iter().find_map(|name| sample(page, name))
    };
    series.iter().map(value).collect()
}

/// All samples of a name in a page of Prometheus' text format, added up.
fn sample(page: &str, name: &str) -> Option<f64> {
    let mut sum = None;
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let value = match rest.as_bytes().first() {
            Some(b'{') => rest.rfind('}').map(|end| &rest[end + 1..]),
            Some(b' ' | b'\t') => Some(rest),
            _ => None,
        };
        let number = value.and_then(|value| value.split_whitespace().next()?.parse::<f64>().ok());
        if let Some(number) = number.filter(|number| number.is_finite()) {
            *sum.get_or_insert(0.0) += number;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::sample;

    #[test]
    fn samples_of_a_name_are_added_up() {
        let page = "# HELP go_gc_duration_seconds x\n# TYPE go_gc_duration_seconds summary\n\
                    go_gc_duration_seconds{quantile=\"0\"} 1.5e-05\ngo_gc_duration_seconds_count 42\n\
                    jvm_gc_pause_seconds_count{action=\"minor\",cause=\"a } b\"} 3\n\
                    jvm_gc_pause_seconds_count{action=\"major\"} 4 1700000000000\nbad NaN\n";
        for (name, want) in [
            ("go_gc_duration_seconds_count", Some(42.0)),
            ("jvm_gc_pause_seconds_count", Some(7.0)),
            ("go_gc", None),
            ("bad", None),
            ("none", None),
        ] {
            assert_eq!(sample(page, name), want, "{name}");
        }
    }
}
