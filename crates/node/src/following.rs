//! Control state of a machine by itself: what was decided before is read once, then followed.
//! Deliberately absent: the same in a cluster (`cluster/world.rs`), where there is much more of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use data::{Consistency, Event as Change, KeyRange, RangeRequest, Revision, Store, WatchItem};
use model::ServiceName;
use tokio::sync::mpsc;

use crate::breakers::BREAKER;
use crate::controller::Controller;
use crate::input::Input;
use crate::service::events_prefix;
use crate::shifts::record::SHIFT;

/// Reads decisions that were committed before, then follows the control state.
pub async fn catch_up(controller: &mut Controller, inputs: &mpsc::Sender<Input>) {
    let store = Arc::clone(&controller.shell.store);
    let mut from = None;
    // What this node has applied, and then what it applies: nothing is missed, and nobody else is waited for.
    match store.range(RangeRequest::prefix(events_prefix()), Consistency::Stale).await {
        Ok(mut found) => {
            from = Some(Revision(found.revision.0 + 1));
            found.kvs.sort_by_key(|kv| kv.mod_revision);
            for kv in found.kvs {
                controller.decision(&kv.value, kv.mod_revision);
            }
        }
        Err(error) => tracing::error!(%error, "decisions made before cannot be read"),
    }
    match store.range(RangeRequest::prefix(BREAKER), Consistency::Stale).await {
        Ok(found) => {
            for kv in found.kvs {
                if let Some(name) = kv.key.as_str().and_then(|key| key.strip_prefix(BREAKER)) {
                    controller.breaker_read(&name.into(), Some(&kv.value));
                }
            }
        }
        Err(error) => tracing::error!(%error, "breakers held by hand cannot be read"),
    }
    match store.range(RangeRequest::prefix(SHIFT), Consistency::Stale).await {
        Ok(found) => {
            for kv in found.kvs {
                if let Some(name) = kv.key.as_str().and_then(|key| key.strip_prefix(SHIFT)) {
                    controller.shift_read(&name.into(), Some((&kv.value, kv.mod_revision)));
                }
            }
        }
        Err(error) => tracing::error!(%error, "shifts cannot be read"),
    }
    for service in controller.services.values() {
        service.begin(&controller.shell);
    }
    tokio::spawn(follow(store, inputs.clone(), from));
}

impl Controller {
    /// Control state changed.
    pub fn watched(&mut self, item: WatchItem, now: Instant) {
        let WatchItem::Events { revision, events } = item else { return };
        for change in events.iter() {
            let breaker = change.key().as_str().and_then(|key| key.strip_prefix(BREAKER));
            if let Some(name) = breaker {
                let value = if let Change::Put(kv) = change { Some(&*kv.value) } else { None };
                self.breaker_read(&ServiceName::from(name), value);
                continue;
            }
            let Change::Put(kv) = change else { continue };
            let Some(key) = kv.key.as_str() else { continue };
            if let Some(name) = key.strip_prefix(SHIFT) {
                self.shift_read(&ServiceName::from(name), Some((&kv.value, kv.mod_revision)));
            } else if key.starts_with(events_prefix()) {
                self.decision(&kv.value, revision);
            } else if let Some(name) = key.strip_prefix("control/primary/") {
                self.with(&ServiceName::from(name), |service, shell, _| {
                    service.committed(shell, &kv.value, revision, now)
                });
            }
        }
    }

    /// A decision event was committed.
    pub fn decision(&mut self, value: &[u8], revision: model::Revision) {
        if revision <= self.shell.journal.newest_revision() {
            return;
        }
        match serde_json::from_slice::<model::Event>(value) {
            Ok(mut event) => {
                // The term of a fence is the revision at which it was committed.
                event.epoch = event.epoch.or(Some(model::Epoch(revision.0)));
                self.shell.record(event, Some(revision));
            }
            Err(error) => tracing::warn!(%error, revision = revision.0, "a stored event cannot be read"),
        }
    }
}

/// Follows the control state; begins again whenever the watch ends.
async fn follow(store: Arc<dyn Store>, inputs: mpsc::Sender<Input>, mut from: Option<Revision>) {
    loop {
        let Ok(mut watch) = store.watch(KeyRange::prefix("control/"), from) else { return };
        while let Some(item) = watch.next().await {
            match &item {
                WatchItem::Events { revision, .. } | WatchItem::Progress(revision) => {
                    from = Some(Revision(revision.0 + 1))
                }
                WatchItem::Compacted(_) => from = None,
                WatchItem::Lagged => {}
            }
            if inputs.send(Input::Watched(item)).await.is_err() {
                return;
            }
        }
        if inputs.send(Input::WatchEnded).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
