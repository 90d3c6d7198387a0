//! Shifts: a service's requests moved to another version or service in steps. The store has each shift's record; the leader
//! moves it (`shifts/moving.rs`), every node follows it to its gateway's routes (`shifts/sharing.rs`) and tells what its gateway has counted
//! (`shifts/measuring.rs`), operators ask for changes (`shifts/verbs.rs`).
//! Around the request walk: a step is another list of routes, so a request pays nothing for it. Deliberately absent: the
//! judgement (`traffic::shift`).

mod backing;
pub mod measuring;
mod moving;
pub mod record;
mod sharing;
mod verbs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use api::view::ShiftView;
use gateway::Tally;
use model::config::Config;
use model::{InstanceId, NodeName, Revision, ServiceName};
use traffic::shift::Judge;

use crate::controller::Controller;
use crate::shell::Shell;
use measuring::Readings;
pub use moving::Reply;
use record::{Goal, Measure, Phase, ShiftRecord, Stretch};

/// The shifts that this node knows of.
#[derive(Debug, Default)]
pub struct Shifts(BTreeMap<ServiceName, Shifting>);

/// One shift, and this node's part in it.
#[derive(Debug)]
struct Shifting {
    record: ShiftRecord,
    at: Revision,
    /// What this gateway's requests to the new destination have become in this stretch.
    tally: Arc<Tally>,
    /// On the leader: the judgement of this stretch.
    judge: Option<Judge>,
    /// On the leader: how often instances had been restarted when the stretch began.
    restarts: Option<BTreeMap<InstanceId, u32>>,
    /// On the leader, with a backup: since when the service is healthy, or its backup has failed.
    healthy: Option<Instant>,
    /// What other nodes have counted in this stretch.
    heard: BTreeMap<NodeName, Measure>,
    /// What is seen of this node's own instances.
    readings: Readings,
    /// What was told to others last, and when.
    told: Option<(Measure, Instant)>,
    /// A change is on its way to the store, or is tried again then.
    busy: Option<Option<Instant>>,
}

impl Shifting {
    fn new(record: ShiftRecord, at: Revision) -> Self {
        Self {
            record,
            at,
            tally: Arc::default(),
            judge: None,
            restarts: None,
            healthy: None,
            heard: BTreeMap::new(),
            readings: Readings::default(),
            told: None,
            busy: None,
        }
    }

    fn stretch(&self) -> Stretch {
        self.record.stretch()
    }
}

impl Shifts {
    /// What this node knew when its process ended: traffic goes on as it was until more is known.
    pub fn load(data_dir: &Path) -> Self {
        let Ok(text) = std::fs::read_to_string(path(data_dir)) else { return Self::default() };
        match serde_json::from_str::<BTreeMap<ServiceName, (Revision, ShiftRecord)>>(&text) {
            Ok(known) => {
                Self(known.into_iter().map(|(name, (at, record))| (name, Shifting::new(record, at))).collect())
            }
            Err(error) => {
                tracing::error!(%error, "shifts known before cannot be read; they are read from the store");
                Self::default()
            }
        }
    }

    fn save(&self, data_dir: &Path) {
        let known: BTreeMap<&ServiceName, (Revision, &ShiftRecord)> =
            self.0.iter().map(|(name, shifting)| (name, (shifting.at, &shifting.record))).collect();
        let text = serde_json::to_string(&known).expect("records always become JSON");
        let path = path(data_dir);
        // A new name first: a crash while writing must not cost what was known.
        let fresh = path.with_extension("json.new");
        let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "shifts cannot be kept for the next node process");
        }
    }

    /// As it is shown.
    pub fn view(&self, service: &ServiceName) -> Option<ShiftView> {
        let shifting = self.0.get(service).filter(|shifting| shifting.record.phase != Phase::Cleared)?;
        let record = &shifting.record;
        Some(ShiftView {
            automatic: record.auto.is_some(),
            from: record.from.as_ref().map_or_else(|| service.to_string(), |version| version.to_string()),
            to: record.to.to_string(),
            percent: match &record.auto {
                Some(auto) if auto.back => 100 - record.percent.min(100),
                _ => record.percent,
            },
            step: record.step + 1,
            steps: record.plan().map_or(0, |plan| plan.steps.len()),
            state: record.phase.as_str().to_owned(),
            since: record.since.clone(),
            why: record.why.clone(),
            cause: record.cause.clone(),
            judged: shifting.judge.as_ref().map(|judge| judge.word.clone()).filter(|word| !word.is_empty()),
        })
    }
}

/// A shift in one line.
pub fn note(view: &ShiftView) -> String {
    let since = view.since.get(..19).unwrap_or_default();
    let what = if view.automatic { "backup in use, requests go" } else { "shift" };
    format!("{what} to {}: {} % there, {} since {since}Z: {}", view.to, view.percent, view.state, view.why)
}

/// Why a shift cannot be as it is under this configuration.
fn void(config: &Config, name: &ServiceName, record: &ShiftRecord) -> Option<String> {
    let Some(service) = config.services.get(name) else { return Some(format!("there is no service {name} any more")) };
    let missing = |version: &model::VersionName| !service.versions.contains_key(version);
    match (&record.to, &record.from) {
        (Goal::Service(other), _) if !config.services.contains_key(other) => {
            Some(format!("there is no service {other} any more"))
        }
        (Goal::Version(version), _) if missing(version) => Some(format!("{name} has no version {version} any more")),
        (Goal::Version(_), Some(from)) if missing(from) => Some(format!("{name} has no version {from} any more")),
        _ => None,
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("shifts.json")
}

impl Controller {
    /// What was read at the key of a service's shift.
    pub fn shift_read(&mut self, service: &ServiceName, value: Option<(&[u8], Revision)>) {
        let Some((value, at)) = value else {
            if self.shifts.0.remove(service).is_some() {
                self.shift_changed();
            }
            return;
        };
        match serde_json::from_slice::<ShiftRecord>(value) {
            Ok(record) => self.shift_is(service, record, at),
            Err(error) => tracing::error!(%service, %error, "a shift cannot be read; is it of a newer version?"),
        }
    }

    /// A shift is so since this revision.
    fn shift_is(&mut self, service: &ServiceName, record: ShiftRecord, at: Revision) {
        let known = self.shifts.0.get_mut(service);
        if known.as_ref().is_some_and(|known| known.at >= at) {
            return;
        }
        // What happened before this node was there is not its news.
        if known.is_some() || record.event.at >= self.facts.since {
            self.shell.record(record.event.clone(), None);
        }
        match known {
            Some(known) if known.stretch() == record.stretch() && known.record.phase == record.phase => {
                (known.record, known.at) = (record, at);
            }
            _ => drop(self.shifts.0.insert(service.clone(), Shifting::new(record, at))),
        }
        self.shift_changed();
    }

    /// The gateway's routes, and what the next node process begins with.
    fn shift_changed(&mut self) {
        self.shifts.save(Path::new(&self.config.node.data_dir));
        self.tell_routes();
        self.shell.changed.set(true);
    }

    /// Puts the routes in force as configuration and shifts have them.
    pub fn tell_routes(&self) {
        if let Err(error) = self.shell.table.set_routes(crate::routes::routes(&self.config, &self.shifts)) {
            tracing::error!(%error, "routes cannot be put in force");
        }
    }

    /// Another node tells what it has counted, or nothing any more.
    pub fn measure_read(&mut self, service: &ServiceName, node: NodeName, value: Option<&[u8]>) {
        if node == self.config.node.name {
            return;
        }
        let Some(shifting) = self.shifts.0.get_mut(service) else { return };
        // What a node has counted before it was lost has been all the same.
        let Some(value) = value else { return };
        match serde_json::from_slice::<Measure>(value) {
            Ok(measure) if measure.of == shifting.stretch() => drop(shifting.heard.insert(node, measure)),
            Ok(_) => {}
            Err(error) => tracing::warn!(%service, %node, %error, "what a node has counted cannot be read"),
        }
    }
}

/// Whether this node moves shifts: alone, or as its cluster's leader.
fn decides(shell: &Shell) -> bool {
    shell.own.is_none() || shell.leads
}
