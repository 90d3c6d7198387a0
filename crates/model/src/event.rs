//! The event: one typed record of one state change, with a cause id that ties the links of a chain together.
//! Written by whoever makes the change; read by `seawall events`, notices and, later, alerts.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, InstanceId, NodeName, ServiceName};

/// The kinds of event; the text in JSON and on screens is the kebab-case name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The node is serving.
    NodeStarted,
    /// The node is stopping on purpose.
    NodeStopping,
    /// The node process had died and is back.
    NodeRecovered,
    /// In a cluster: another node's lease has ended.
    NodeLost,
    /// In a cluster: another node is there again.
    NodeBack,
    /// In a cluster: an instance is run by another node from now on.
    InstanceMoved,
    /// A configuration was applied.
    ConfigApplied,
    /// A configuration was refused; nothing changed.
    ConfigRejected,
    /// An instance's process was started.
    InstanceStarted,
    /// A running instance was found and kept after a restart of the node process.
    InstanceAdopted,
    /// An instance's process could not be started.
    InstanceStartFailed,
    /// An instance turned ready.
    InstanceReady,
    /// An instance stopped being ready.
    InstanceUnready,
    /// An instance's process ended by itself or by somebody else's hand.
    InstanceDied,
    /// An instance was found hung or dead by its liveness or startup probe.
    InstanceUnhealthy,
    /// An instance is being stopped on purpose.
    InstanceStopping,
    /// An instance was stopped on purpose.
    InstanceStopped,
    /// An instance did not stop within its grace period and was killed.
    InstanceKilled,
    /// An instance's process tree could not be killed.
    InstanceUnkillable,
    /// An instance keeps exiting: it is started again only after a long pause.
    CrashLoop,
    /// A process left children behind; they were ended.
    OrphansKilled,
    /// A primary died or was found dead.
    PrimaryLost,
    /// First commit of a promotion: nobody is primary.
    Fenced,
    /// Second commit: the old primary has provably stopped.
    FenceConfirmed,
    /// Third commit: a new primary is chosen.
    Promoted,
    /// The new primary's hook succeeded and traffic goes to it.
    Routed,
    /// The new primary's hook failed.
    PromoteHookFailed,
    /// Nobody, or not the one that is wanted, has read the service's stream to its end: the promotion waits for that.
    PromoteBehind,
    /// The old primary's hook, called in a planned switch, failed; the switch went on.
    DemoteHookFailed,
    /// A primary stopped being primary in a planned switch.
    Demoted,
    /// A planned switch was given up before anything changed; the primary stays.
    SwitchCancelled,
    /// No standby can be promoted now.
    NoCandidate,
    /// A service has no ready instance.
    NoReadyInstance,
    /// A service has a ready instance again.
    ServiceReady,
    /// A planned restart or roll began.
    RollStarted,
    /// It finished.
    RollFinished,
    /// It was given up; what ran before runs again.
    RollAborted,
    /// Traffic left the local instances for others.
    Spilled,
    /// An instance gets no requests for a while: it failed request after request.
    InstanceEjected,
    /// It gets requests again.
    InstanceReturned,
    /// A service gets no requests for a while: too many have failed or were slow.
    BreakerOpened,
    /// The while is over: a few requests are let through as probes.
    BreakerHalfOpen,
    /// The probes have passed: all requests go through again.
    BreakerClosed,
    /// An operator opened or closed a breaker by hand, or took that back.
    BreakerForced,
    /// A service's requests begin to go elsewhere, in steps.
    ShiftStarted,
    /// A shift took its next step: the one before has shown what it must.
    ShiftStepped,
    /// A shift stays at its step: nothing can be said of it, or an operator stopped it.
    ShiftPaused,
    /// An operator had it go on.
    ShiftResumed,
    /// All requests go to the new destination.
    ShiftFinished,
    /// A gate failed: all requests go where they went before.
    ShiftRolledBack,
    /// An operator, or another configuration, ended a shift.
    ShiftAborted,
    /// An operator took the word of an ended shift away: routes alone say where requests go.
    ShiftCleared,
    /// A service's breaker has opened: its requests begin to go to a backup, in steps.
    BackupEngaged,
    /// More of them go there.
    BackupStepped,
    /// All of them go there.
    BackupFull,
    /// The backup fails as well, or is gone: requests go where they went before, another one is tried later.
    BackupFailed,
    /// The service has been healthy for long enough: its requests begin to come back, in steps.
    FailBackStarted,
    /// More of them come back.
    FailBackStepped,
    /// All of them are back.
    FailBackFinished,
    /// The service has failed again: they stay with the backup.
    FailBackFailed,
    /// The store stopped or resumed serving.
    StoreState,
    /// In a cluster: there is no quorum, and primaries go on because every other voter agrees.
    FailsafeBegan,
    /// There is a quorum again; or a voter does not agree any more, and primaries end.
    FailsafeEnded,
    /// Changed certificate files were taken over.
    CertificateReloaded,
    /// Changed certificate files cannot be used; what was in force stays.
    CertificateRefused,
    /// An ordered certificate is in force.
    CertificateIssued,
    /// A certificate could not be ordered or renewed; it is tried again.
    CertificateNotIssued,
    /// A certificate ends soon, or has ended.
    CertificateExpiring,
    /// In a cluster: the node's own certificate among members was renewed.
    NodeCertificateRenewed,
    /// In a cluster: the node's own certificate ends soon, or has ended, and nobody renews it.
    NodeCertificateExpires,
    /// A notice could not be delivered in time and was given up.
    NotifyFailed,
    /// A file that other programs read of the registry could not be written, or its reload failed; it is tried again.
    FeedFailed,
    /// It is written and reloaded again.
    FeedRestored,
}

impl EventKind {
    /// The kebab-case name.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// One state change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, RFC 3339 in UTC with microseconds.
    pub at: String,
    /// What happened.
    pub kind: EventKind,
    /// On which node.
    pub node: NodeName,
    /// To which service.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// To which instance.
    #[serde(default)]
    pub instance: Option<InstanceId>,
    /// In whose term.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// The chain it belongs to: the same for everything that one fault or one command led to.
    pub cause: String,
    /// What an operator should know, in one line.
    pub message: String,
}
