//! One instance as the node sees it: its plan, its process, and the stage it is in.
//! Starting, draining and stopping are stages here; the keeper carries them out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use health::detect::Probes;
use health::prober::Target;
use model::{Epoch, Incarnation, InstanceId};
use runtime::backoff::Streak;
use runtime::plan;

/// What becomes of an instance after it has been stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// It starts again at once.
    Start,
    /// It has failed: it starts again as its restart policy and back-off say.
    Failed,
    /// It is forgotten.
    Remove,
    /// It stays stopped: the node is stopping.
    Stay,
}

/// Where an instance is in its life.
#[derive(Clone, PartialEq, Debug)]
pub enum Stage {
    /// To be started with the next step.
    Waiting,
    /// To be started then, after an exit.
    BackOff(Instant),
    /// Its process runs.
    Running,
    /// It gets no new requests and finishes those it has, until then at most.
    Draining(Instant, After),
    /// Its `preStop` runs; the grace period ends then.
    PreStop(Instant, After),
    /// The keeper has been told to stop it.
    Stopping(After),
    /// The keeper has been told to kill it.
    Killing(After),
    /// It ended and its restart policy leaves it so.
    Stopped,
    /// Something of its process tree cannot be ended.
    Stuck,
    /// To be forgotten with the next step.
    Gone,
}

/// A running process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Which start.
    pub incarnation: Incarnation,
    /// Its id, once the keeper has said it.
    pub pid: Option<u32>,
    /// When it was started.
    pub started: Instant,
    /// Its probes.
    pub probes: Probes,
    /// The epoch whose `onPromote` it has answered.
    pub promoted: Option<Epoch>,
    /// Of the definition it runs.
    pub fingerprint: u64,
    /// In a cluster: the newest restart that had been agreed on when it was started.
    pub generation: u64,
    /// It has been ready since its start.
    pub was_ready: bool,
}

/// One instance.
#[derive(Clone, Debug)]
pub struct Instance {
    /// What it should be.
    pub plan: plan::Instance,
    /// Where it listens; for one that runs elsewhere, its resolved address.
    pub address: Option<SocketAddr>,
    /// For one that runs elsewhere: `host:port` as written.
    pub elsewhere: Option<String>,
    /// Its process.
    pub process: Option<Process>,
    /// Where it is in its life.
    pub stage: Stage,
    /// Since when.
    pub since: String,
    /// Starts after the first.
    pub restarts: u32,
    /// Exits in a row.
    pub streak: Streak,
    /// The last thing worth knowing.
    pub note: Option<String>,
    /// The chain of events it is in.
    pub cause: String,
}

impl Instance {
    /// An instance that has not been started.
    pub fn new(plan: plan::Instance) -> Self {
        Self {
            plan,
            address: None,
            elsewhere: None,
            process: None,
            stage: Stage::Waiting,
            since: observe::now(),
            restarts: 0,
            streak: Streak::default(),
            note: None,
            cause: String::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &InstanceId {
        &self.plan.id
    }

    /// Enters a stage.
    pub fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = observe::now();
    }

    /// It may get traffic.
    pub fn is_ready(&self) -> bool {
        self.runs()
            && self.stage == Stage::Running
            && self.address.is_some()
            && self.process.as_ref().is_some_and(|process| process.probes.is_ready())
    }

    /// Its process is known to have started. Before that nothing may be concluded from there being no probes.
    fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.pid.is_some()) || self.elsewhere.is_some()
    }

    /// Its process runs and is meant to go on running, or is being stopped in good order but still does its work.
    pub fn is_alive(&self) -> bool {
        self.process.is_some() && matches!(self.stage, Stage::Running | Stage::Draining(..) | Stage::PreStop(..))
    }

    /// It is being stopped on purpose.
    pub fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Draining(..) | Stage::PreStop(..) | Stage::Stopping(_) | Stage::Killing(_))
    }

    /// The word for its state on screens.
    pub fn state_word(&self) -> &'static str {
        match &self.stage {
            Stage::Waiting => "starting",
            Stage::BackOff(_) => "back-off",
            Stage::Running => match &self.process {
                Some(process) if process.probes.is_ready() && self.runs() => "ready",
                Some(process) if process.was_ready => "unready",
                _ => "starting",
            },
            Stage::Draining(..) => "draining",
            Stage::PreStop(..) | Stage::Stopping(_) | Stage::Killing(_) => "stopping",
            Stage::Stopped => "stopped",
            Stage::Stuck => "stuck",
            Stage::Gone => "stopped",
        }
    }

    /// How it is probed, once its address is known; `api` is the URL of this node's API.
    pub fn target(&self, api: &str) -> Option<Target> {
        let address = self.address?;
        Some(Target {
            address,
            env: self.plan.environment(address, api),
            working_dir: self.plan.working_dir().to_owned(),
            variables: self.plan.variables(address),
        })
    }

    /// When it should be looked at again, apart from reports.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting | Stage::Gone => Some(now),
            Stage::BackOff(until) => Some(*until),
            Stage::Running => self.process.as_ref().and_then(|process| process.probes.next_due()),
            Stage::Draining(until, _) => Some((*until).min(now + DRAIN_LOOK)),
            _ => None,
        }
    }
}

/// How often a draining instance is asked whether it has finished.
pub const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// From the moment the gateway was told until a request that chose the instance just before must show in its count.
pub const DRAIN_SETTLE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use health::detect::Probes;
    use model::Incarnation;

    use super::{Instance, Process, Stage};

    #[test]
    fn without_probes_it_is_ready_once_its_process_has_started_and_not_before() {
        let yaml = "services:\n  a: { command: [x] }\n";
        let config = model::config::load(Path::new("a.yaml"), &mut |_| Ok(yaml.to_owned())).config.unwrap();
        let (name, service) = config.services.first_key_value().unwrap();
        let mut instance = Instance::new(runtime::plan::instances(name, service).remove(0));
        let now = Instant::now();
        let probes = Probes::new(service, false, now, now, false);
        assert!(probes.is_ready(), "there is nothing to ask");
        instance.address = Some(([127, 0, 0, 1], 20_000).into());
        instance.process = Some(Process {
            incarnation: Incarnation(1),
            pid: None,
            started: now,
            probes,
            promoted: None,
            fingerprint: 0,
            generation: 0,
            was_ready: false,
        });
        instance.enter(Stage::Running);
        assert_eq!((instance.is_ready(), instance.state_word()), (false, "starting"));
        instance.process.as_mut().unwrap().pid = Some(7);
        assert_eq!((instance.is_ready(), instance.state_word()), (true, "ready"));
    }
}
