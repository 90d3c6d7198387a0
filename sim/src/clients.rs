//! Clients: writes, compares and reads through any node, and leases that are kept alive or let go. Every value is
//! written once, so that what happened to each can be told.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use data::{Compare, Consistency, Key, Op, RangeRequest, Revision, Store, StoreError, Txn, TxnOutcome};

use crate::judge::{Observation, Written};
use crate::world::World;

/// Keys that clients write.
const KEYS: u64 = 6;
/// Longest a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A client that writes and reads until the world tells it to stop.
pub async fn client(world: Rc<World>, number: u64) {
    let chance = world.chance.fork();
    let mut known: Vec<u64> = vec![0; usize::try_from(KEYS).unwrap_or_default()];
    let mut count = 0;
    while !world.clients_stop.get() {
        tokio::time::sleep(chance.millis(5, 90)).await;
        let place = usize::try_from(chance.below(world.machines.len() as u64)).unwrap_or_default();
        let which = usize::try_from(chance.below(KEYS)).unwrap_or_default();
        let name = format!("k{which}");
        let action = chance.below(100);
        if action < 45 {
            if let Some((_, at)) = read(&world, place, &name).await {
                known[which] = at;
            }
            continue;
        }
        count += 1;
        let padding = if chance.percent(10) { usize::try_from(chance.below(3000)).unwrap_or_default() } else { 0 };
        let value = Bytes::from(format!("c{number}-{count}{}", "x".repeat(padding)));
        let at = key(&name);
        let mut txn = Txn::put(at.clone(), value.clone());
        if action >= 80 {
            txn = txn.when(Compare::mod_revision(at, Revision(known[which])));
        }
        if let Written::At(revision) = write(&world, place, &name, value, txn).await {
            known[which] = revision;
        }
    }
}

/// A key of a short name.
pub fn key(name: &str) -> Key {
    Key::new(name.to_owned().into_bytes()).expect("names are short")
}

/// What an answer to a transaction means to who asked.
pub fn written(outcome: Option<Result<TxnOutcome, StoreError>>) -> Written {
    match outcome {
        Some(Ok(TxnOutcome::Committed { revision, .. })) => Written::At(revision.0),
        Some(Ok(TxnOutcome::Rejected { revision, .. })) => Written::Rejected(revision.0),
        Some(Ok(TxnOutcome::Unknown) | Err(StoreError::Unknown)) | None => Written::Unknown,
        Some(Err(_)) => Written::Refused,
    }
}

/// Asks a node's store for something, as a task of the node.
pub async fn ask<T, F>(
    world: &World,
    place: usize,
    work: impl FnOnce(std::sync::Arc<data_raft::RaftStore>) -> F,
) -> Option<T>
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let machine = &world.machines[place];
    let store = machine.store()?;
    let answer = machine.run(work(store));
    tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
}

/// Writes through a node and tells the judge.
pub async fn write(world: &World, place: usize, name: &str, value: Bytes, txn: Txn) -> Written {
    if world.machines[place].store().is_none() {
        return Written::Refused;
    }
    let span = world.judge.span();
    let outcome = written(ask(world, place, |store| async move { store.txn(txn).await }).await);
    world.trace.say(format!("n{} {name} = {} -> {outcome:?}", place + 1, short(&value)));
    world.judge.see(&Observation::Wrote { span, key: name.to_owned(), value, outcome: outcome.clone() });
    outcome
}

fn short(value: &[u8]) -> String {
    String::from_utf8_lossy(&value[..value.len().min(12)]).into_owned()
}

/// Reads through a node and tells the judge; the value and when it was written.
pub async fn read(world: &World, place: usize, name: &str) -> Option<(Bytes, u64)> {
    let span = world.judge.span();
    let request = RangeRequest::key(&key(name));
    let answer = ask(world, place, |store| async move { store.range(request, Consistency::Linearizable).await }).await;
    let Some(Ok(result)) = answer else { return None };
    let found = result.kvs.into_iter().next().map(|kv| (kv.value, kv.mod_revision.0));
    world.trace.mark("read", [place as u64, result.revision.0, found.as_ref().map_or(0, |(_, at)| *at), 0]);
    let seen = Observation::Read { span, key: name.to_owned(), revision: result.revision.0, found: found.clone() };
    world.judge.see(&seen);
    found
}

/// Somebody who lives on leases: takes one, hangs a key on it, keeps it for a while, lets it go or gives it back.
pub async fn leaseholder(world: Rc<World>, number: u64) {
    let chance = world.chance.fork();
    let mut count = 0;
    while !world.clients_stop.get() {
        tokio::time::sleep(chance.millis(50, 400)).await;
        let place = || usize::try_from(chance.below(world.machines.len() as u64)).unwrap_or_default();
        let ttl = chance.millis(500, 2000);
        let asked = tokio::time::Instant::now();
        let granted = ask(&world, place(), |store| async move { store.lease_grant(ttl).await }).await;
        let Some(Ok(granted)) = granted else { continue };
        let lease = granted.lease;
        world.trace.say(format!("lease {lease} granted for {ttl:?}"));
        world.judge.see(&Observation::Leased { lease, asked, ttl });
        count += 1;
        let name = format!("l{number}");
        let put = Txn::default().then(Op::put_leased(key(&name), format!("h{number}-{count}"), lease));
        let bound = written(ask(&world, place(), |store| async move { store.txn(put).await }).await);
        let keeps = chance.below(10);
        for _ in 0..keeps {
            tokio::time::sleep(ttl / 3).await;
            if world.clients_stop.get() {
                break;
            }
            let asked = tokio::time::Instant::now();
            let kept = ask(&world, place(), |store| async move { store.lease_keep_alive(lease).await }).await;
            match kept {
                Some(Ok(_)) => {
                    world.trace.say(format!("lease {lease} kept"));
                    world.judge.see(&Observation::Leased { lease, asked, ttl });
                }
                Some(Err(StoreError::LeaseNotFound(_))) => break,
                _ => {}
            }
        }
        let revoked = chance.percent(20);
        world.judge.see(&Observation::LetGo { lease, revoked });
        if revoked {
            let _ = ask(&world, place(), |store| async move { store.lease_revoke(lease).await }).await;
        } else if bound == Written::Unknown || chance.percent(50) {
            tokio::time::sleep(ttl * 2).await;
        }
    }
}
