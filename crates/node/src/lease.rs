//! The lease that this node's primaries live on: renewed through the store, and told to the keeper as a stop deadline.
//! Deadline = when the renewal was sent + TTL - stop budget and margin, on the clock that counts suspend.

use std::sync::Arc;
use std::time::Duration;

use data::{LeaseId, Store, StoreError};
use tokio::sync::mpsc;

use crate::input::Input;

/// How long a primary may live without a renewal.
pub const TTL: Duration = Duration::from_millis(1800);
/// For the stop itself and for clocks that are read a little late.
const MARGIN: Duration = Duration::from_millis(300);
/// Between renewals.
const EVERY: Duration = Duration::from_millis(500);

/// After one that failed.
const AGAIN: Duration = Duration::from_millis(50);

/// Renews until the node ends. `alone`: nobody else has a vote.
pub async fn renew(store: Arc<dyn Store>, alone: bool, inputs: mpsc::Sender<Input>) {
    let mut lease = None;
    loop {
        let sent = platform::clock::since_boot();
        // A disk that stalls must not cost the primary its life either.
        let renewed = tokio::time::timeout(EVERY, once(&*store, &mut lease)).await;
        let problem = match renewed {
            Ok(Ok(())) => None,
            Ok(Err(StoreError::Closed)) => return,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) if alone => {
                Some(format!("the store did not answer within {} ms: the disk is slow", EVERY.as_millis()))
            }
            Err(_) => Some(format!("no answer of a quorum within {} ms", EVERY.as_millis())),
        };
        let input = match problem {
            None => Input::LeaseGood { lease, until: sent + TTL - MARGIN },
            Some(error) if !alone => Input::LeaseFailed(error),
            Some(error) => {
                // The only voter cannot be replaced by another while its store does not serve, so nobody else can be
                // primary: stopping this one would protect nothing. A cluster must ask the other members here.
                let _ = inputs.send(Input::LeaseFailed(error)).await;
                Input::LeaseGood { lease, until: platform::clock::since_boot() + TTL - MARGIN }
            }
        };
        // A leader that has just been chosen must hear of it soon: the time that is left is short.
        let pause = if matches!(input, Input::LeaseFailed(_)) { AGAIN } else { EVERY };
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
