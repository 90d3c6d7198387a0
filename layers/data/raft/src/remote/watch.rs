//! Watches of an agent: each is one at a server, and goes on at another from where it was when that one is lost, silent
//! or does not serve, without a gap and without a repetition. The consumer takes items as fast as it likes: the server is
//! told how many, and says `Lagged` when its own queue is full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use data::{Event, KeyRange, Revision, WatchItem, WatchStream};
use tokio::sync::mpsc;

use super::link::Upstream;
use super::wire::{CallV1, EventV1, ItemV1};
use super::{Core, LOOK, Stage};
use crate::wal::lock;
use crate::wire::Bin;

/// Items that wait for the consumer.
const QUEUE: usize = 64;
/// How often a watch looks whether its server is still a good one.
const CHECK: Duration = Duration::from_millis(250);
/// Longest wait for what has happened before the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// All watches that run.
#[derive(Default)]
pub(crate) struct Watches {
    running: Vec<mpsc::WeakSender<WatchItem>>,
    /// How many were too slow.
    lagged: Arc<AtomicU64>,
}

impl Watches {
    /// How many there are, and how many lagged so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.running() as u64, self.lagged.load(Ordering::Relaxed))
    }

    /// Those whose consumer is there, and whose task is, too.
    pub(super) fn running(&self) -> usize {
        self.running.iter().filter(|watch| watch.upgrade().is_some_and(|watch| !watch.is_closed())).count()
    }
}

struct Watch {
    core: Arc<Core>,
    range: KeyRange,
    /// Where it goes on; none: from now on.
    next: Option<u64>,
    /// The consumer said where to begin.
    explicit: bool,
    /// Whether the consumer was told anything, and the newest progress that it was.
    told: bool,
    progress: Option<u64>,
    /// Of a revision that is not whole yet.
    partial: Vec<Event>,
    /// An item is on its way to the consumer.
    telling: bool,
    consumer: mpsc::Sender<WatchItem>,
    lagged: Arc<AtomicU64>,
}

/// How a watch at one server ended.
enum Ended {
    /// It goes on at once, perhaps elsewhere.
    Again,
    /// It goes on after a moment.
    Later,
    /// It is over.
    Over,
}

/// Follows `range`. The first watch at a server is begun before this returns: what is written next is seen by it.
pub(super) fn begin(core: &Arc<Core>, range: KeyRange, from: Option<Revision>) -> WatchStream {
    let (consumer, items) = mpsc::channel(QUEUE);
    let lagged = {
        let mut watches = lock(&core.watches);
        watches.running.retain(|watch| watch.upgrade().is_some_and(|watch| !watch.is_closed()));
        watches.running.push(consumer.downgrade());
        Arc::clone(&watches.lagged)
    };
    // "After now": after all that this node has been told of.
    let next = from.map(|from| from.0).or_else(|| core.newest().map(|newest| newest + 1));
    let watch = Watch {
        core: Arc::clone(core),
        range,
        next,
        explicit: from.is_some(),
        told: false,
        progress: None,
        partial: Vec::new(),
        telling: false,
        consumer,
        lagged,
    };
    let first = watch.upstream();
    core.peers.spawn(watch.run(first));
    WatchStream::from_receiver(items)
}

impl Watch {
    fn upstream(&self) -> Option<Upstream> {
        let asked = CallV1::Watch {
            start: Bin(self.range.start().clone()),
            end: self.range.end().cloned().map(Bin),
            from: self.next,
        };
        self.core.best(&BTreeSet::new())?.watch(self.core.number(), &asked)
    }

    async fn run(mut self, mut first: Option<Upstream>) {
        let core = Arc::clone(&self.core);
        let mut changed = core.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let ended = match first.take().or_else(|| self.upstream()) {
                Some(mut upstream) => tokio::select! {
                    biased;
                    ended = self.follow(&mut upstream) => ended,
                    () = core.ends(Stage::Closing) => {
                        // A consumer that takes nothing is not waited for; nothing may come after what it misses.
                        if !self.telling {
                            upstream.enough();
                            let _ = tokio::time::timeout(LAST_WORDS, self.last_words(&mut upstream)).await;
                        }
                        Ended::Over
                    }
                },
                None => Ended::Later,
            };
            match ended {
                Ended::Over => return,
                Ended::Again => {}
                Ended::Later => tokio::select! {
                    () = core.ends(Stage::Closing) => return,
                    () = self.consumer.closed() => return,
                    _ = changed.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                },
            }
        }
    }

    /// What has happened before the end.
    async fn last_words(&mut self, upstream: &mut Upstream) {
        while let Some(item) = upstream.items.recv().await {
            if self.take(item).await.is_some() {
                return;
            }
        }
    }

    /// Passes on what one server tells, until it is lost or there is a better one.
    async fn follow(&mut self, upstream: &mut Upstream) -> Ended {
        self.partial.clear();
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.consumer.closed() => {
                    upstream.enough();
                    return Ended::Over;
                }
                item = upstream.items.recv() => {
                    let Some(item) = item else { return Ended::Later };
                    if let Some(ended) = self.take(item).await {
                        return ended;
                    }
                    upstream.took();
                }
                _ = check.tick() => {
                    let is_poor = upstream.link.is_silent() || upstream.link.problem(0).is_some();
                    let better = self.core.best(&BTreeSet::new()).filter(|best| {
                        !Arc::ptr_eq(best, &upstream.link) && !best.is_silent() && best.problem(0).is_none()
                    });
                    if is_poor && better.is_some() {
                        upstream.enough();
                        return Ended::Again;
                    }
                }
            }
        }
    }

    /// Takes one item; how the watch ended, if it did.
    async fn take(&mut self, item: ItemV1) -> Option<Ended> {
        match item {
            ItemV1::Events { revision, events, whole } => {
                let events: Result<Vec<Event>, _> = events.into_iter().map(|event: EventV1| event.try_into()).collect();
                let Ok(events) = events else { return Some(Ended::Later) };
                self.partial.extend(events);
                if !whole {
                    return None;
                }
                let events: Arc<[Event]> = std::mem::take(&mut self.partial).into();
                // Told by another server before.
                if self.next.is_some_and(|next| revision < next) {
                    return None;
                }
                self.tell(revision, WatchItem::Events { revision: Revision(revision), events }).await
            }
            ItemV1::Progress(at) => {
                // A server that is behind has nothing to tell of what this one has not asked for.
                let at = at.max(self.next.map_or(0, |next| next.saturating_sub(1)));
                if self.progress.replace(at) == Some(at) {
                    return None;
                }
                self.tell(at, WatchItem::Progress(Revision(at))).await
            }
            ItemV1::Compacted(_) if !self.explicit && !self.told && self.next.is_some() => {
                // What this node knew last is so old that it is not kept: now is when the server says.
                self.next = None;
                Some(Ended::Again)
            }
            ItemV1::Compacted(oldest) => {
                let _ = self.consumer.send(WatchItem::Compacted(Revision(oldest))).await;
                Some(Ended::Over)
            }
            ItemV1::Lagged => {
                self.lagged.fetch_add(1, Ordering::Relaxed);
                let _ = self.consumer.send(WatchItem::Lagged).await;
                Some(Ended::Over)
            }
        }
    }

    /// Gives the consumer an item; over when it is gone.
    async fn tell(&mut self, upto: u64, item: WatchItem) -> Option<Ended> {
        self.telling = true;
        let sent = self.consumer.send(item).await;
        self.telling = false;
        if sent.is_err() {
            return Some(Ended::Over);
        }
        self.core.saw(upto);
        self.next = Some(upto + 1);
        self.told = true;
        None
    }
}
