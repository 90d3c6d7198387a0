//! Verbs as messages to the node, each with the way back of its answer.

use model::{Config, Epoch, InstanceId, NodeName, ServiceName, VersionName};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::view::{BreakerView, ClusterView, ShiftView};

/// The way back.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What the node is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Make a standby the primary.
    Promote {
        /// Of which service.
        service: ServiceName,
        /// Which standby; the best one when absent.
        instance: Option<InstanceId>,
        /// Answer when traffic goes to it, not when the switch begins.
        wait: bool,
        /// The answer.
        reply: Reply<Switched>,
    },
    /// Restart a service's instances one at a time.
    Restart {
        /// Which.
        service: ServiceName,
        /// The answer, when all are ready again.
        reply: Reply<String>,
    },
    /// Hold a service's circuit breaker open or closed, or let it judge by itself again.
    Breaker {
        /// Which service's.
        service: ServiceName,
        /// What it is held at; `None` lets it judge.
        hold: Option<BreakerHold>,
        /// The breaker afterwards.
        reply: Reply<BreakerView>,
    },
    /// Move a service's requests to another version or service in steps, or say how that goes on.
    Shift {
        /// Whose requests.
        service: ServiceName,
        /// What is wanted.
        ask: ShiftAsk,
        /// The shift afterwards.
        reply: Reply<ShiftView>,
    },
    /// Change the cluster's members.
    Members {
        /// How.
        change: MemberChange,
        /// The cluster afterwards.
        reply: Reply<ClusterView>,
    },
    /// Make a token that gets a new node its certificate.
    Token {
        /// The node's name.
        node: String,
        /// How long it is good.
        valid: std::time::Duration,
        /// The token.
        reply: Reply<JoinToken>,
    },
    /// Put another configuration in force.
    Apply {
        /// The checked configuration.
        config: Box<Config>,
        /// What it was made from, if that must still be in force.
        over: Option<Box<Config>>,
        /// The answer, when every change has been carried out or taken back.
        reply: Reply<Applied>,
    },
}

/// What an operator holds a circuit breaker at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerHold {
    /// No request goes through.
    Open,
    /// Every request goes through.
    Closed,
}

/// What an operator wants of a shift.
#[derive(Clone, PartialEq, Debug)]
pub enum ShiftAsk {
    /// Begin one.
    Begin {
        /// The version or service that gets the requests.
        to: String,
        /// The version that has them; found out when absent.
        from: Option<VersionName>,
        /// In the words of `traffic.shift`; what is absent is as the service's configuration says.
        plan: serde_json::Value,
    },
    /// Stay at the step.
    Pause,
    /// Go on with the step.
    Resume,
    /// All requests go where they went before.
    Abort,
    /// Forget one that has ended: routes alone say where requests go.
    Clear,
}

/// What an operator wants of the cluster's members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// This node goes, whether it is there or not.
    Remove(NodeName),
    /// This voter leads from now on.
    Lead(NodeName),
}

/// What lets one new node in, once. Not for logs: whoever has it gets the node's certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// The node's name.
    pub node: String,
    /// The text for `seawall cluster join`.
    pub token: String,
    /// When it ends, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Why a verb was not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Of which sort.
    pub kind: RefusalKind,
    /// Why, and what to do.
    pub message: String,
}

/// Sorts of refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalKind {
    /// There is no such service or instance.
    NotFound,
    /// It would break a promise; nothing was changed.
    Refused,
    /// What was asked for has mistakes; nothing was changed.
    Bad,
    /// It was begun and failed; what ran before runs again.
    Failed,
}

/// A switch of primary.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Switched {
    /// The service.
    pub service: ServiceName,
    /// Its primary, or who will be.
    pub primary: InstanceId,
    /// Its epoch, once it is known.
    pub epoch: Option<Epoch>,
    /// True when traffic goes to it.
    pub done: bool,
}

/// What an applied configuration changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Services that are new.
    pub added: Vec<ServiceName>,
    /// Services that are gone.
    pub removed: Vec<ServiceName>,
    /// Services whose instances were replaced.
    pub rolled: Vec<ServiceName>,
    /// Services changed in place, without a restart.
    pub changed: Vec<ServiceName>,
    /// True when routes changed.
    pub routes: bool,
}
