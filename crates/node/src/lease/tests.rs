//! What is told of the lease, for every way in which its renewal and the other voters may answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use data::{
    BoxFuture, Consistency, KeyRange, LeaseGrant, LeaseId, LeaseInfo, NotServing, RangeRequest, RangeResult, Revision,
    Status, Store, StoreError, StoreMetrics, Txn, TxnOutcome, WatchStream,
};
use tokio::sync::mpsc;

use super::{MARGIN, TTL, Without, renew};
use crate::input::Input;

const LEASE: LeaseId = LeaseId(7);

/// Renewals are answered while it `serves`, and never otherwise; others `agree` after a while.
#[derive(Default)]
struct Voter {
    serves: AtomicBool,
    agree: Mutex<Option<Duration>>,
    asked: AtomicUsize,
}

impl Store for Voter {
    fn txn(&self, _: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        panic!("a lease needs none");
    }

    fn range(&self, _: RangeRequest, _: Consistency) -> BoxFuture<'_, Result<RangeResult, StoreError>> {
        panic!("a lease needs none");
    }

    fn watch(&self, _: KeyRange, _: Option<Revision>) -> Result<WatchStream, StoreError> {
        panic!("a lease needs none");
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(async move { Ok(LeaseGrant { lease: LEASE, ttl }) })
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(async move {
            if !self.serves.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            Ok(LeaseGrant { lease, ttl: TTL })
        })
    }

    fn lease_confirm(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        assert_eq!(lease, LEASE);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let agree = *self.agree.lock().unwrap();
        Box::pin(async move {
            match agree {
                Some(after) => {
                    tokio::time::sleep(after).await;
                    Ok(())
                }
                None => Err(StoreError::NotServing(NotServing::Unconfirmed { why: "n3: no".into() })),
            }
        })
    }

    fn lease_revoke(&self, _: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        panic!("a lease is not revoked");
    }

    fn lease_info(&self, _: LeaseId) -> BoxFuture<'_, Result<LeaseInfo, StoreError>> {
        panic!("a lease needs none");
    }

    fn status(&self) -> Status {
        panic!("a lease needs none");
    }

    fn metrics(&self) -> StoreMetrics {
        panic!("a lease needs none");
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        panic!("a lease needs none");
    }
}

/// A lease that was renewed once, by a store that does not serve any more; until when it is good.
async fn lost(without: Without, agree: Option<Duration>) -> (Arc<Voter>, mpsc::Receiver<Input>, Duration) {
    let voter = Arc::new(Voter { agree: Mutex::new(agree), ..Voter::default() });
    let (inputs, mut told) = mpsc::channel(64);
    tokio::spawn(renew(Arc::<Voter>::clone(&voter), without, inputs));
    let Some(Input::LeaseGood { lease: Some(LEASE), until }) = told.recv().await else { panic!("it was granted") };
    (voter, told, until)
}

#[tokio::test]
async fn a_lease_goes_on_from_when_the_others_were_asked_and_is_renewed_once_that_can_be() {
    let (voter, mut told, mut until) = lost(Without::Ask, Some(Duration::ZERO)).await;
    for _ in 0..4 {
        let asked_after = platform::clock::since_boot();
        let Some(Input::LeaseKept { lease, until: kept, error }) = told.recv().await else { panic!("they agree") };
        assert_eq!(lease, Some(LEASE));
        assert!(error.starts_with("no answer of a quorum"), "{error}");
        let now = platform::clock::since_boot();
        assert!(kept > until && kept > asked_after && kept <= now + TTL - MARGIN, "{kept:?} {until:?} {now:?}");
        until = kept;
    }
    voter.serves.store(true, Ordering::Relaxed);
    let Some(Input::LeaseGood { lease, until: renewed }) = told.recv().await else { panic!("it is renewed") };
    assert!(lease == Some(LEASE) && renewed > until, "{renewed:?} {until:?}");
}

#[tokio::test]
async fn who_does_not_agree_is_told() {
    let (_voter, mut told, _) = lost(Without::Ask, None).await;
    let Some(Input::LeaseFailed(error)) = told.recv().await else { panic!("it was not renewed") };
    assert!(error.starts_with("no answer of a quorum") && error.ends_with("n3: no"), "{error}");
}

#[tokio::test]
async fn a_word_that_comes_when_the_lease_has_run_out_counts_for_nothing() {
    let (voter, mut told, until) = lost(Without::Ask, None).await;
    while platform::clock::since_boot() < until {
        let Some(Input::LeaseFailed(_)) = told.recv().await else { panic!("nobody agrees") };
    }
    *voter.agree.lock().unwrap() = Some(Duration::ZERO);
    let asked = voter.asked.load(Ordering::Relaxed);
    for _ in 0..2 {
        let Some(Input::LeaseFailed(error)) = told.recv().await else { panic!("its end may be in the log") };
        assert!(error.ends_with("n3: no"), "who it was is still told: {error}");
    }
    assert_eq!(voter.asked.load(Ordering::Relaxed), asked, "there is nothing to be asked any more");
}

#[tokio::test]
async fn a_word_that_is_given_in_time_and_comes_late_counts_for_nothing() {
    let (voter, mut told, until) = lost(Without::Ask, None).await;
    // The last that are asked answer when the lease has run out.
    while platform::clock::since_boot() + Duration::from_millis(450) < until {
        let Some(Input::LeaseFailed(_)) = told.recv().await else { panic!("nobody agrees") };
    }
    *voter.agree.lock().unwrap() = Some(Duration::from_millis(460));
    while platform::clock::since_boot() < until + Duration::from_millis(500) {
        let Some(Input::LeaseFailed(_)) = told.recv().await else { panic!("they agreed too late") };
    }
}

#[tokio::test]
async fn nobody_is_asked_who_is_not_to_be() {
    for without in [Without::Stop, Without::Alone] {
        let (voter, mut told, _) = lost(without, Some(Duration::ZERO)).await;
        let Some(Input::LeaseFailed(_)) = told.recv().await else { panic!("{without:?}") };
        let goes_on = matches!(told.recv().await, Some(Input::LeaseGood { .. }));
        assert_eq!(goes_on, without == Without::Alone);
        assert_eq!(voter.asked.load(Ordering::Relaxed), 0);
    }
}
