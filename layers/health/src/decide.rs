//! The next step of a promotion, from committed state and what is known of the instances; nothing else.
//! Three commits: `fence` (nobody is primary), `fenced` (the old one has provably stopped), `primary` (the new one).
//! From the second on a service's stream is sealed, and whoever becomes primary has read it up to there.
//! The epoch of a term is the store revision of its `fence`, so it can only grow.

use std::cmp::Reverse;

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
    /// In phase `primary`, for a service with a stream: where it was sealed for this term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

/// A stream that was sealed with a term's epoch: older terms write nothing more to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sealed {
    /// Its name.
    pub stream: String,
    /// The offset after the last entry of the older terms.
    pub end: u64,
}

/// What the decision knows of the stream that a service's primary must have read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stream {
    /// The service has none.
    #[default]
    None,
    /// It is not known to be sealed for the term that is about to begin.
    Open,
    /// It is sealed.
    Sealed {
        /// The offset after the last entry of the older terms.
        end: u64,
        /// The time that a wanted instance has for reading up to there is over.
        overdue: bool,
    },
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
    /// How far it has read the service's stream: the offset of the entry that it reads next, 0 if it has said nothing.
    pub cursor: u64,
}

impl View {
    fn may_be_promoted(&self) -> bool {
        self.alive && self.ready && !self.avoided
    }
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
    /// Seal the service's stream with the term's epoch.
    Seal,
    /// Wait until somebody has read the stream up to its end; this one is the nearest to it.
    AwaitEntries(Holder),
    /// Commit `primary` for this one.
    Promote(Holder),
    /// Nobody can be promoted now.
    NoCandidate,
}

/// Decides the next step.
pub fn decide(record: Option<&Record>, instances: &[View], switch: Option<&Switch>, stream: Stream) -> Step {
    let Some(record) = record else {
        // The first term of all waits for somebody to give it to.
        return if instances.iter().any(View::may_be_promoted) { Step::Fence } else { Step::NoCandidate };
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
        Phase::Fenced => match stream {
            Stream::None => choose(record, instances, 0, false),
            Stream::Open => Step::Seal,
            Stream::Sealed { end, overdue } => choose(record, instances, end, overdue),
        },
    }
}

/// Who is promoted: only somebody who has read everything before `end`, so that nothing acknowledged is missing.
fn choose(record: &Record, instances: &[View], end: u64, overdue: bool) -> Step {
    let fit = || instances.iter().filter(|view| view.may_be_promoted());
    let Some(best) = candidate(fit(), record.wanted.as_ref(), record.previous.as_ref(), end) else {
        return Step::NoCandidate;
    };
    if best.cursor >= end {
        return Step::Promote(best.holder.clone());
    }
    // The one that an operator wants is waited for, but not for ever while another has everything.
    let complete = candidate(fit().filter(|view| view.cursor >= end), None, record.previous.as_ref(), end);
    match complete.filter(|_| overdue) {
        Some(other) => Step::Promote(other.holder.clone()),
        None => Step::AwaitEntries(best.holder.clone()),
    }
}

/// The best one to promote: the wanted one first, then who has read furthest, the old primary last; among equals the
/// lowest id, so that every observer chooses the same.
fn candidate<'v>(
    fit: impl Iterator<Item = &'v View>,
    wanted: Option<&InstanceId>,
    previous: Option<&Holder>,
    end: u64,
) -> Option<&'v View> {
    fit.min_by_key(|view| {
        let not_wanted = wanted.is_some_and(|wanted| *wanted != view.holder.instance);
        let was_primary = previous.is_some_and(|previous| previous.instance == view.holder.instance);
        (not_wanted, Reverse(view.cursor.min(end)), was_primary, view.holder.instance.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::{Epoch, Holder, Incarnation, Phase, Record, Step, Stream, Switch, View};

    /// Of a service without a stream.
    fn decide(record: Option<&Record>, instances: &[View], switch: Option<&Switch>) -> Step {
        super::decide(record, instances, switch, Stream::None)
    }

    fn holder(text: &str) -> Holder {
        let (instance, incarnation) = text.split_once('.').unwrap();
        Holder { instance: instance.into(), incarnation: Incarnation(incarnation.parse().unwrap()), node: None }
    }

    /// `a.1:alive,ready b.2:alive,@7` and so on; `present` is implied by `alive`, `@7` is its cursor.
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
                cursor: flags.split(',').find_map(|flag| flag.strip_prefix('@')?.parse().ok()).unwrap_or(0),
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
            sealed: None,
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

    #[test]
    fn a_stream_is_sealed_after_the_old_primary_has_gone_and_before_another_is_chosen() {
        let both = views("a.1:present b.2:alive,ready,@9");
        let open = |record: &Record| super::decide(Some(record), &both, None, Stream::Open);
        assert_eq!(open(&record(Phase::Primary, Some("a.1"), None, None)), Step::Fence);
        assert_eq!(open(&record(Phase::Fence, None, Some("a.1"), None)), Step::AwaitEnd(holder("a.1")));
        let fenced = record(Phase::Fenced, None, Some("a.1"), None);
        assert_eq!(open(&fenced), Step::Seal);
        assert_eq!(super::decide(Some(&fenced), &[], None, Stream::Open), Step::Seal, "also while nobody is ready");
        assert_eq!(
            super::decide(Some(&fenced), &both, None, Stream::Sealed { end: 9, overdue: false }),
            Step::Promote(holder("b.2"))
        );
    }

    #[test]
    fn nobody_is_promoted_who_has_not_read_the_stream_to_its_end() {
        let at = |wanted, text: &str, overdue| {
            let fenced = record(Phase::Fenced, None, Some("a.1"), wanted);
            super::decide(Some(&fenced), &views(text), None, Stream::Sealed { end: 9, overdue })
        };
        let (promote, wait) = (|name| Step::Promote(holder(name)), |name| Step::AwaitEntries(holder(name)));
        // Whoever is nearest, and has it all first.
        assert_eq!(at(None, "b.2:alive,ready,@3 c.3:alive,ready,@8", false), wait("c.3"));
        assert_eq!(at(None, "b.2:alive,ready,@3 c.3:alive,ready,@9", false), promote("c.3"));
        assert_eq!(
            at(None, "b.2:alive,ready,@3 c.3:alive,@9", false),
            wait("b.2"),
            "one that is not ready is no choice"
        );
        assert_eq!(at(None, "b.2:alive,ready,@12 c.3:alive,ready,@9", false), promote("b.2"), "beyond counts as there");
        // Time alone promotes nobody.
        assert_eq!(at(None, "b.2:alive,ready,@3", true), wait("b.2"));
        // The old primary, back and complete, rather than a standby that is stuck.
        assert_eq!(at(None, "a.4:alive,ready,@9 b.2:alive,ready,@3", false), promote("a.4"));
        assert_eq!(at(None, "a.4:alive,ready,@9 b.2:alive,ready,@9", false), promote("b.2"));
        // The wanted one has its time; then another that is complete is taken.
        assert_eq!(at(Some("b"), "a.1:alive,ready,@9 b.2:alive,ready,@3 c.3:alive,ready,@9", false), wait("b.2"));
        assert_eq!(at(Some("b"), "a.1:alive,ready,@9 b.2:alive,ready,@3 c.3:alive,ready,@9", true), promote("c.3"));
        assert_eq!(at(Some("b"), "a.1:alive,ready,@9 b.2:alive,ready,@3", true), promote("a.1"));
        assert_eq!(at(Some("b"), "b.2:alive,ready,@3 c.3:alive,ready,@4", true), wait("b.2"));
        assert_eq!(at(None, "b.2:alive,@9", true), Step::NoCandidate);
    }

    #[test]
    fn records_of_before_there_were_streams_are_read() {
        let old = r#"{"version":1,"phase":"primary","epoch":7,"holder":{"instance":"a","incarnation":1},"previous":null,"wanted":null,"cause":"c"}"#;
        let read: Record = serde_json::from_str(old).unwrap();
        assert_eq!(read, record(Phase::Primary, Some("a.1"), None, None));
        assert_eq!(serde_json::to_string(&read).unwrap(), old, "and written the same for a service without one");
    }
}
