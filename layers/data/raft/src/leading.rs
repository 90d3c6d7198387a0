//! What the leader must do, asked of it wherever it is: here, or by a call to the node that leads.
//! Asked again while nothing came of it and a leader may yet be found, until the request's time is up. One that does not
//! lead any more is not waited for: its machine may be gone, and nothing tells of it.

use std::time::Duration;

use bytes::Bytes;
use data::{NotServing, StoreError};
use tokio::time::Instant;

use crate::peers::frame::Kind;
use crate::peers::{CallError, Lane};
use crate::replica::{Leader, Replica};
use crate::surroundings::planted;
use crate::wire::DecodeError;

/// Between two looks for a leader that takes the request.
const LOOK: Duration = Duration::from_millis(20);

/// A request that cannot be made again is answered for so long by who led when it was sent: one that hands over in good
/// order answers what it has.
const GRACE: Duration = Duration::from_millis(100);

/// Whether a request whose outcome is unknown may be made again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Again {
    /// It might be done twice.
    Never,
    /// It changes nothing.
    Reads,
    /// Done twice is the same as done once.
    Writes,
}

/// One request of a leader.
pub(crate) struct Ask {
    pub lane: Lane,
    pub kind: Kind,
    pub asked: Bytes,
    pub patience: Duration,
    pub again: Again,
}

/// Has it done, `here` or there, while `serving`.
pub(crate) async fn at_leader<T, F>(
    replica: &Replica,
    serving: impl Fn() -> Result<(), StoreError>,
    ask: Ask,
    here: impl Fn(Replica) -> F,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let options = &replica.shared.options;
    let Some(peers) = &options.peers else {
        serving()?;
        return here(replica.clone()).await;
    };
    let Ask { lane, kind, asked, patience, again } = ask;
    let until = Instant::now() + patience;
    // Once a write may have been done, no later refusal can say that it was not.
    let mut perhaps_done = false;
    loop {
        serving().map_err(|error| if perhaps_done { StoreError::Unknown } else { error })?;
        let leader = replica.leader();
        let left = until.saturating_duration_since(Instant::now());
        let result = match leader {
            // What could only end as "unknown" is not begun.
            Leader::Here
                if kind == Kind::Propose
                    && let Some(reason) = replica.no_quorum() =>
            {
                Err(StoreError::NotServing(reason))
            }
            Leader::Here => {
                let done = tokio::time::timeout(left, here(replica.clone())).await;
                done.unwrap_or(Err(StoreError::Unknown))
            }
            Leader::There(leader) => {
                let answer = peers.call(leader, lane, kind, options.group, asked.clone(), left);
                let answer = tokio::select! {
                    biased;
                    answer = answer => answer,
                    () = deposed(replica, leader, again) => Err(CallError::Lost("it does not lead any more".into())),
                };
                match answer {
                    Ok(bytes) => decode(&bytes).map_err(|_| StoreError::Unknown),
                    Err(CallError::Failed(error)) => Err(error),
                    Err(CallError::Lost(_)) if planted("lost-answer-taken-for-refusal") => {
                        Err(StoreError::NotServing(NotServing::NotLeader { leader }))
                    }
                    Err(CallError::NotSent(_)) => Err(StoreError::NotServing(NotServing::NotLeader { leader })),
                    Err(CallError::Lost(_)) => Err(StoreError::Unknown),
                }
            }
            Leader::Nobody => Err(StoreError::NotServing(NotServing::NoLeader)),
        };
        perhaps_done |= again == Again::Writes && matches!(result, Err(StoreError::Unknown));
        let repeat = match &result {
            Err(StoreError::NotServing(reason)) => reason.may_pass(),
            Err(StoreError::Unknown) => again != Again::Never,
            _ => false,
        };
        if !repeat || Instant::now() >= until {
            if perhaps_done && matches!(result, Err(StoreError::NotServing(_) | StoreError::Closed)) {
                return Err(StoreError::Unknown);
            }
            let vague = match &result {
                Err(StoreError::Unknown) => again == Again::Reads,
                Err(StoreError::NotServing(NotServing::NoLeader | NotServing::NotLeader { .. })) => true,
                _ => false,
            };
            let why = || replica.not_serving().unwrap_or(NotServing::NoLeader);
            return if vague { Err(StoreError::NotServing(why())) } else { result };
        }
        replica.leader_changes(leader, LOOK.min(until.saturating_duration_since(Instant::now()))).await;
    }
}

/// Until this node knows that `leader` does not lead any more, and it has had its time to answer all the same.
async fn deposed(replica: &Replica, leader: u64, again: Again) {
    while replica.leader() == Leader::There(leader) {
        replica.leader_changes(Leader::There(leader), LOOK).await;
    }
    if again == Again::Never {
        tokio::time::sleep(GRACE).await;
    }
}
