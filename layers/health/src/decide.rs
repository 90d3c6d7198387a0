//! The next step of a promotion, from committed state and what is known of the instances; nothing else.
//! Three commits: `fence` (nobody is primary), `fenced` (the old one has provably stopped), `primary` (the new one).
//! The epoch of a term is the store revision of its `fence`, so it can only grow.

use model::{Epoch, Incarnation, InstanceId, NodeName, Revision, ServiceName};
use serde::{Deserialize, Serialize};

/// One process of one instance: a restarted process is not the primary its predecessor was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The instance.
    pub instance: InstanceId,
    /// Its start.
    pub incarnation: Incarnation,
    /// The node it runs on, in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

/// Where a promotion stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nobody is primary; the old one may still run.
    Fence,
    /// Nobody is primary, and the old one has provably stopped being it.
    Fenced,
    /// There is a primary.
    Primary,
}

/// The committed state of a service's primary, as stored. Fields are only ever added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The format's version.
    pub version: u32,
    /// Where the promotion stands.
    pub phase: Phase,
    /// The term; 0 in a `fence`, whose own revision it is. Read it with [`Record::epoch`].
    pub epoch: Epoch,
    /// The primary, in phase `primary`.
    pub holder: Option<Holder>,
    /// The primary before.
    pub previous: Option<Holder>,
    /// The standby that a planned switch wants.
    pub wanted: Option<InstanceId>,
    /// The chain of events this belongs to.
    pub cause: String,
}

impl Record {
    /// The record's term, given the revision at which it was stored.
    pub fn epoch(&self, stored_at: Revision) -> Epoch {
        if self.phase == Phase::Fence { Epoch(stored_at.0) } else { self.epoch }
    }
}

/// Under which key of the store a service's record is.
pub fn record_key(service: &ServiceName) -> String {
    format!("control/primary/{service}")
}

/// What is known of one instance's process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Which process.
    pub holder: Holder,
    /// Its process runs, and nobody is stopping it.
    pub alive: bool,
    /// Something of its process tree is still there, alive or not.
    pub present: bool,
    /// It is ready for traffic.
    pub ready: bool,
    /// It failed its promotion a moment ago and should not be asked again yet.
    pub avoided: bool,
}

/// A planned switch that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Switch {
    /// To whom.
    pub target: InstanceId,
    /// The primary's traffic has drained and it has been told (or stopped).
    pub demoted: bool,
}

/// The next step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// All is as it should be.
    Stay,
    /// Commit `fence`; and kill the holder's tree without hooks or grace, if it still runs.
    Fence,
    /// Commit `fence` for a planned switch: the holder has stopped being primary in good order and lives on.
    FencePlanned,
    /// Wait until the previous holder's tree is gone.
    AwaitEnd(Holder),
    /// Commit `fenced`.
    Fenced,
    /// Commit `primary` for this one.
    Promote(Holder),
    /// Nobody can be promoted now.
    NoCandidate,
}

/// Decides the next step.
pub fn decide(record: Option<&Record>, instances: &[View], switch: Option<&Switch>) -> Step {
    let Some(record) = record else {
        // The first term of all waits for somebody to give it to.
        return if candidate(instances, None, None).is_some() { Step::Fence } else { Step::NoCandidate };
    };
    match record.phase {
        Phase::Primary => {
            let alive = record
                .holder
                .as_ref()
                .is_some_and(|holder| instances.iter().any(|view| view.holder == *holder && view.alive));
            match switch {
                _ if !alive => Step::Fence,
                Some(switch) if switch.demoted => Step::FencePlanned,
                _ => Step::Stay,
            }
        }
        Phase::Fence => {
            let planned = record.wanted.is_some();
            let left = record
                .previous
                .as_ref()
                .filter(|previous| !planned && instances.iter().any(|view| view.holder == **previous && view.present));
            left.map_or(Step::Fenced, |previous| Step::AwaitEnd(previous.clone()))
        }
        Phase::Fenced => match candidate(instances, record.wanted.as_ref(), record.previous.as_ref()) {
            Some(chosen) => Step::Promote(chosen.holder.clone()),
            None => Step::NoCandidate,
        },
    }
}

/// The best one to promote: ready, the wanted one first, the old primary last; among equals the lowest id, so that
/// every observer chooses the same.
fn candidate<'v>(instances: &'v [View], wanted: Option<&InstanceId>, previous: Option<&Holder>) -> Option<&'v View> {
    let fit = instances.iter().filter(|view| view.alive && view.ready && !view.avoided);
    fit.min_by_key(|view| {
        let not_wanted = wanted.is_some_and(|wanted| *wanted != view.holder.instance);
        let was_primary = previous.is_some_and(|previous| previous.instance == view.holder.instance);
        (not_wanted, was_primary, view.holder.instance.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::{Epoch, Holder, Incarnation, Phase, Record, Step, Switch, View, decide};

    fn holder(text: &str) -> Holder {
        let (instance, incarnation) = text.split_once('.').unwrap();
        Holder { instance: instance.into(), incarnation: Incarnation(incarnation.parse().unwrap()), node: None }
    }

    /// `a.1:alive,ready b.2:alive` and so on; `present` is implied by `alive`.
    fn views(text: &str) -> Vec<View> {
        let view = |word: &str| {
            let (name, flags) = word.split_once(':').unwrap();
            let has = |flag: &str| flags.split(',').any(|known| known == flag);
            View {
                holder: holder(name),
                alive: has("alive"),
                present: has("alive") || has("present"),
                ready: has("ready"),
                avoided: has("avoided"),
            }
        };
        text.split_whitespace().map(view).collect()
    }

    fn record(phase: Phase, current: Option<&str>, previous: Option<&str>, wanted: Option<&str>) -> Record {
        Record {
            version: 1,
            phase,
            epoch: Epoch(7),
            holder: current.map(holder),
            previous: previous.map(holder),
            wanted: wanted.map(Into::into),
            cause: "c".into(),
        }
    }

    #[test]
    fn a_living_primary_stays_and_a_dead_one_is_fenced() {
        let primary = record(Phase::Primary, Some("a.1"), None, None);
        assert_eq!(
            decide(Some(&primary), &views("a.1:alive b.2:alive,ready"), None),
            Step::Stay,
            "unready is not dead"
        );
        assert_eq!(decide(Some(&primary), &views("a.1:present b.2:alive,ready"), None), Step::Fence);
        assert_eq!(
            decide(Some(&primary), &views("a.3:alive,ready b.2:alive,ready"), None),
            Step::Fence,
            "a new process is not the old primary"
        );
        assert_eq!(decide(Some(&primary), &[], None), Step::Fence);
    }

    #[test]
    fn nobody_is_promoted_before_the_old_tree_is_gone() {
        let fence = record(Phase::Fence, None, Some("a.1"), None);
        assert_eq!(decide(Some(&fence), &views("a.1:present b.2:alive,ready"), None), Step::AwaitEnd(holder("a.1")));
        assert_eq!(decide(Some(&fence), &views("a.3:alive b.2:alive,ready"), None), Step::Fenced);
        let planned = record(Phase::Fence, None, Some("a.1"), Some("b"));
        assert_eq!(
            decide(Some(&planned), &views("a.1:alive b.2:alive,ready"), None),
            Step::Fenced,
            "it stepped down in good order"
        );
    }

    #[test]
    fn the_candidate_is_ready_wanted_first_old_primary_last() {
        let fenced = |wanted| record(Phase::Fenced, None, Some("a.1"), wanted);
        let promote = |name| Step::Promote(holder(name));
        assert_eq!(
            decide(Some(&fenced(None)), &views("a.1:alive,ready b.2:alive,ready c.3:alive,ready"), None),
            promote("b.2")
        );
        assert_eq!(
            decide(Some(&fenced(Some("c"))), &views("a.1:alive,ready b.2:alive,ready c.3:alive,ready"), None),
            promote("c.3")
        );
        assert_eq!(
            decide(Some(&fenced(Some("c"))), &views("a.1:alive,ready b.2:alive,ready c.3:alive"), None),
            promote("b.2")
        );
        assert_eq!(
            decide(Some(&fenced(None)), &views("a.5:alive,ready b.2:alive c.3:alive,ready,avoided"), None),
            promote("a.5")
        );
        assert_eq!(decide(Some(&fenced(None)), &views("b.2:alive c.3:present,ready"), None), Step::NoCandidate);
        assert_eq!(decide(None, &views("b.2:alive"), None), Step::NoCandidate);
        assert_eq!(decide(None, &views("b.2:alive,ready"), None), Step::Fence);
    }

    #[test]
    fn a_planned_switch_waits_for_the_demotion() {
        let primary = record(Phase::Primary, Some("a.1"), None, None);
        let switch = |demoted| Switch { target: "b".into(), demoted };
        let both = views("a.1:alive,ready b.2:alive,ready");
        assert_eq!(decide(Some(&primary), &both, Some(&switch(false))), Step::Stay);
        assert_eq!(decide(Some(&primary), &both, Some(&switch(true))), Step::FencePlanned);
        assert_eq!(
            decide(Some(&primary), &views("b.2:alive,ready"), Some(&switch(true))),
            Step::Fence,
            "it died meanwhile"
        );
    }
}
