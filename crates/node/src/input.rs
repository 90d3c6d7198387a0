//! Everything that can happen to the controller, in one list.

use std::net::SocketAddr;
use std::time::Duration;

use data::{KeyValue, LeaseId, RangeResult, StoreError, WatchItem};
use health::decide::Holder;
use health::detect::ProbeKind;
use model::{Epoch, Incarnation, InstanceId, Revision, ServiceName};
use runtime::protocol::Report;

use crate::cluster::publisher::Saying;
use crate::shell::Outcome;

/// One thing that happened.
#[derive(Debug)]
pub enum Input {
    /// The keeper reports.
    Keeper(Report),
    /// A probe came back.
    Probed {
        /// Of which service.
        service: ServiceName,
        /// Of which instance.
        instance: InstanceId,
        /// Of which start.
        incarnation: Incarnation,
        /// Which probe.
        kind: ProbeKind,
        /// An error says why it failed.
        result: Result<(), String>,
    },
    /// The gateway noticed something.
    Noticed(gateway::Signal),
    /// A proposal got its reply.
    Proposed {
        /// Of which service.
        service: ServiceName,
        /// Which record was the newest when it was made, if there was one.
        over: Option<Revision>,
        /// The reply.
        outcome: Outcome,
    },
    /// The cluster's members, as they are now.
    Members(data_raft::Members),
    /// A record was read.
    RecordRead {
        /// Of which service.
        service: ServiceName,
        /// The record.
        result: Result<Option<KeyValue>, StoreError>,
    },
    /// The stream of a service was sealed for a promotion, or looked at, or could not be.
    StreamSeen {
        /// Of which service.
        service: ServiceName,
        /// For which term.
        epoch: Epoch,
        /// Which one.
        stream: String,
        /// What was found.
        result: Result<crate::service::Seen, data::StreamError>,
    },
    /// The store's control state changed.
    Watched(WatchItem),
    /// The watch on the store ended and has to be begun again.
    WatchEnded,
    /// `onPromote` came back.
    Promoted {
        /// Of which service.
        service: ServiceName,
        /// Of whom.
        holder: Holder,
        /// In which term.
        epoch: Epoch,
        /// An error says why it failed.
        result: Result<(), String>,
    },
    /// `onDemote` came back.
    Demoted {
        /// Of which service.
        service: ServiceName,
        /// Of whom.
        holder: Holder,
        /// An error says why it failed.
        result: Result<(), String>,
    },
    /// `preStop` came back.
    PreStopped {
        /// Of which service.
        service: ServiceName,
        /// Of which instance.
        instance: InstanceId,
        /// Of which start.
        incarnation: Incarnation,
        /// An error says why it failed.
        result: Result<(), String>,
    },
    /// The name of an endpoint that runs elsewhere was looked up.
    Resolved {
        /// Of which service.
        service: ServiceName,
        /// Which instance.
        instance: InstanceId,
        /// Its endpoint as written.
        endpoint: String,
        /// Its address, or why there is none.
        result: Result<SocketAddr, String>,
    },
    /// The lease that primaries live on is good.
    LeaseGood {
        /// Which; none where the only voter's store does not serve.
        lease: Option<LeaseId>,
        /// Until then, on the clock since boot.
        until: Duration,
    },
    /// In a cluster: all control state, as this node has applied it.
    Listed(RangeResult),
    /// In a cluster: what this node says of itself was written, or was not.
    Said {
        /// What.
        saying: Saying,
        /// The answer.
        outcome: Outcome,
    },
    /// In a cluster: a switch of primary was put to the store.
    SwitchAgreed {
        /// Of which service.
        service: ServiceName,
        /// To whom.
        target: InstanceId,
        /// Who asked, and whether they wait for its end.
        reply: Option<(tokio::sync::oneshot::Sender<Result<api::Switched, api::Refusal>>, bool)>,
        /// The answer.
        outcome: Outcome,
    },
    /// In a cluster: a configuration that was given here was put to the store.
    ConfigCommitted {
        /// The answer.
        outcome: Outcome,
        /// What it changes.
        applied: api::Applied,
        /// Who asked.
        reply: tokio::sync::oneshot::Sender<Result<api::Applied, api::Refusal>>,
    },
    /// In a cluster: something was committed whose being carried out somebody waits for.
    Await(crate::cluster::awaited::Awaited),
    /// In a cluster: a placement was proposed.
    Placed {
        /// Of which service.
        service: ServiceName,
        /// The answer.
        outcome: Outcome,
    },
    /// What an operator wants of a breaker was put to the store.
    BreakerHeld {
        /// Whose.
        service: ServiceName,
        /// What it is held at, if at all.
        hold: Option<api::BreakerHold>,
        /// Who asked.
        reply: tokio::sync::oneshot::Sender<Result<api::view::BreakerView, api::Refusal>>,
        /// The answer.
        outcome: Outcome,
    },
    /// A change of a shift was put to the store.
    ShiftSaid {
        /// Whose.
        service: ServiceName,
        /// What it is then.
        record: Box<crate::shifts::record::ShiftRecord>,
        /// Who asked, if somebody did.
        reply: crate::shifts::Reply,
        /// The answer.
        outcome: Outcome,
    },
    /// Instances that a shift leads to were asked how they are.
    ShiftRead {
        /// Whose shift.
        service: ServiceName,
        /// For which step.
        stretch: crate::shifts::record::Stretch,
        /// What they said.
        readings: std::collections::BTreeMap<InstanceId, crate::shifts::measuring::Reading>,
    },
    /// The lease could not be renewed.
    LeaseFailed(String),
    /// The same, and every other voter lets it go on.
    LeaseKept {
        /// Which.
        lease: Option<LeaseId>,
        /// Until then, on the clock since boot.
        until: Duration,
        /// Why it could not be renewed.
        error: String,
    },
    /// The configuration file was to be read again and has mistakes; the first of them.
    ReloadRefused(String),
    /// A verb from the API.
    Command(api::Command),
    /// Certificate files were looked at.
    Certificates {
        /// What is in force.
        shown: Vec<api::view::CertificateView>,
        /// What is new.
        notices: Vec<crate::entrances::Notice>,
    },
    /// A file that is written of the registry could not be, or is again.
    Feed(model::EventKind, String),
    /// In a cluster: this node's own certificate was looked at.
    OwnCertificate(crate::cluster::renewal::Told),
    /// The gateway has drained.
    GatewayDrained {
        /// Requests that were cut off.
        left: usize,
    },
}
