//! The lease that this node's primaries live on: renewed through the store, and told to the keeper as a stop deadline.
//! Deadline = when the renewal was sent + TTL - stop budget and margin, on the clock that counts suspend.
//! Without a quorum there are no renewals, and primaries end; with `cluster.failsafe: keepPrimary` they go on for as long as
//! every other voter agrees (docs/adr/0027-failsafe.md).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use data::{LeaseId, Store, StoreError};
use model::Config;
use model::config::{Failsafe, NodeRole};
use tokio::sync::mpsc;
use tokio::time::{error::Elapsed, timeout};

use crate::input::Input;

/// How long a primary may live without a renewal.
pub const TTL: Duration = Duration::from_millis(1800);
/// For the stop itself and for clocks that are read a little late.
const MARGIN: Duration = Duration::from_millis(300);
/// Between renewals.
const EVERY: Duration = Duration::from_millis(500);

/// After one that failed.
const AGAIN: Duration = Duration::from_millis(50);

/// A renewal that takes longer is doubted: the other voters are asked while it goes on.
const DOUBT: Duration = Duration::from_millis(250);

/// What becomes of primaries while the lease cannot be renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Without {
    /// They go on: nobody else has a vote, so nobody else can be primary.
    Alone,
    /// They end when the lease does.
    Stop,
    /// They go on while every other voter agrees, else they end.
    Ask,
}

impl Without {
    /// What this node is configured for. An agent has no vote, and asks nobody.
    pub fn of(config: &Config) -> Self {
        match &config.cluster {
            None => Self::Alone,
            Some(cluster) if cluster.failsafe == Failsafe::KeepPrimary && config.node.role == NodeRole::Server => {
                Self::Ask
            }
            Some(_) => Self::Stop,
        }
    }
}

type Renewed = Result<Result<(), StoreError>, Elapsed>;

/// Renews until the node ends.
pub async fn renew(store: Arc<dyn Store>, without: Without, inputs: mpsc::Sender<Input>) {
    let mut lease = None;
    // How long the lease is good by the last word on it.
    let mut good = Duration::ZERO;
    // Who did not let it go on, the last time that could be asked.
    let mut refusal: Option<String> = None;
    loop {
        let (known, sent) = (lease, platform::clock::since_boot());
        let mut kept = Err(None);
        let renewed: Option<Renewed> = {
            // A disk that stalls must not cost the primary its life either.
            let mut renewal = pin!(timeout(EVERY, once(&*store, &mut lease)));
            let doubt = tokio::time::sleep(DOUBT);
            let early = tokio::select! {
                biased;
                renewed = &mut renewal => Some(renewed),
                () = doubt, if without == Without::Ask => None,
            };
            if without == Without::Ask && !matches!(early, Some(Ok(Ok(())))) {
                kept = confirmed(&*store, known, good).await;
            }
            match early {
                Some(renewed) => Some(renewed),
                // What the others let go on is not waited for any longer.
                None if kept.is_ok() => None,
                None => Some(renewal.await),
            }
        };
        let problem = match renewed {
            Some(Ok(Ok(()))) => None,
            Some(Ok(Err(StoreError::Closed))) => return,
            Some(Ok(Err(error))) => Some(error.to_string()),
            Some(Err(_)) if without == Without::Alone => {
                Some(format!("the store did not answer within {} ms: the disk is slow", EVERY.as_millis()))
            }
            Some(Err(_)) => Some(format!("no answer of a quorum within {} ms", EVERY.as_millis())),
            None => Some(format!("no answer of a quorum within {} ms", DOUBT.as_millis())),
        };
        let input = match (problem, kept) {
            (None, _) => {
                good = sent + TTL - MARGIN;
                Input::LeaseGood { lease, until: good }
            }
            (Some(error), _) if without == Without::Alone => {
                // The only voter cannot be replaced by another while its store does not serve, so nobody else can be
                // primary: stopping this one would protect nothing.
                let _ = inputs.send(Input::LeaseFailed(error)).await;
                Input::LeaseGood { lease, until: platform::clock::since_boot() + TTL - MARGIN }
            }
            (Some(error), Ok(until)) => {
                good = until;
                Input::LeaseKept { lease: known, until, error }
            }
            (Some(error), Err(why)) => {
                refusal = why.or(refusal);
                Input::LeaseFailed(refusal.as_ref().map_or(error.clone(), |why| format!("{error}; {why}")))
            }
        };
        if !matches!(input, Input::LeaseFailed(_)) {
            refusal = None;
        }
        // A leader that has just been chosen must hear of it soon: the time that is left is short.
        let pause = if matches!(input, Input::LeaseGood { .. }) { EVERY } else { AGAIN };
        if inputs.send(input).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn once(store: &dyn Store, lease: &mut Option<LeaseId>) -> Result<(), StoreError> {
    if let Some(known) = *lease {
        match store.lease_keep_alive(known).await {
            Err(StoreError::LeaseNotFound(_)) => *lease = None,
            other => return other.map(drop),
        }
    }
    *lease = Some(store.lease_grant(TTL).await?.lease);
    Ok(())
}

/// Until when the lease is good by the word of every other voter; or who does not give it.
async fn confirmed(store: &dyn Store, lease: Option<LeaseId>, good: Duration) -> Result<Duration, Option<String>> {
    let Some(lease) = lease else { return Err(None) };
    let sent = platform::clock::since_boot();
    if sent >= good {
        // It may have ended, and somebody else may be primary.
        return Err(None);
    }
    match timeout(EVERY, store.lease_confirm(lease)).await {
        // Once it has run out, an end of it may have been proposed before a voter was asked.
        Ok(Ok(())) if platform::clock::since_boot() < good => Ok(sent + TTL - MARGIN),
        Ok(Ok(())) => Err(Some("the voters agreed too late".into())),
        Ok(Err(error)) => Err(Some(error.to_string())),
        Err(_) => Err(Some(format!("not every voter answered within {} ms", EVERY.as_millis()))),
    }
}

#[cfg(test)]
mod tests;
