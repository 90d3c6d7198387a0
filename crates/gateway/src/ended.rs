//! The end of an instance's process that no connection tells of: its machine is gone, or cut off, and nothing comes from
//! there any more. The control plane says so, and requests under way to it end as if the connection had been lost.
//! Beside the forward step of the request walk. Deliberately absent: how it is known that a process is no more, and what
//! becomes of the requests (`guard::retry` judges them like those of a connection that ended).

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use model::InstanceId;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::service::{Instance, Service};

/// A request that is not answered after so long listens for the end of its instance; most are, and pay nothing for it.
pub(crate) const LISTEN_AFTER: Duration = Duration::from_millis(50);

/// The processes of one instance, one after the other, as far as they ended without a word.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// The swap of the service's endpoints as of which the last such process is no more; zero: none was lost.
    at: AtomicU64,
    told: Arc<Notify>,
}

impl Ends {
    /// Whether what was chosen by the endpoints of this swap is with a process that is no more.
    pub(crate) fn is_before(&self, swap: u64) -> bool {
        swap < self.at.load(Ordering::Acquire)
    }
}

/// Waits for the end of one process.
pub(crate) struct Ending {
    instance: Arc<Instance>,
    swap: u64,
    told: Pin<Box<OwnedNotified>>,
}

impl Ending {
    /// Of the process that was chosen by the endpoints of this swap.
    pub(crate) fn of(instance: &Arc<Instance>, swap: u64) -> Self {
        Self { instance: instance.clone(), swap, told: Box::pin(instance.ends.told.clone().notified_owned()) }
    }

    /// Ready once it is no more.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.told.as_mut().poll(cx).is_ready() && !self.instance.ends.is_before(self.swap) {
            // That was one before it.
            self.told.set(self.instance.ends.told.clone().notified_owned());
        }
        if self.instance.ends.is_before(self.swap) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Service {
    /// The processes that these instances were are no more, and nothing comes from them: requests under way to them end at
    /// once, those that may be sent again look for another instance, the others are answered 502. Connections to them are
    /// not used again. To be called after [`Service::set_endpoints`] has put endpoints in force that do not name those
    /// processes any more: what is chosen by these is not touched. Instances that are not known are passed over.
    pub fn end_requests(&self, ids: &[InstanceId]) {
        let known = self.lock();
        let ended: Vec<Arc<Instance>> = ids.iter().filter_map(|id| known.by_id.get(id).cloned()).collect();
        for instance in &ended {
            instance.ends.at.store(known.swaps, Ordering::Release);
        }
        drop(known);
        for instance in ended {
            instance.ends.told.notify_waiters();
        }
    }
}
