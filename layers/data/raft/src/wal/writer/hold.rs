//! Large entries wait at the log, too, while others have the way: what was under way when that was asked for would keep disk and
//! processors busy for most of a promotion. Deliberately absent: orders that are not appends; each makes everything before it
//! durable, and is carried out at once.

use std::sync::mpsc::{Receiver, RecvTimeoutError};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{Done, Order, Writer};
use crate::way::LARGE;

/// Whether somebody would wait for it who should not.
pub(super) fn is_urgent(order: &Order) -> bool {
    match order {
        Order::Append { records, .. } => records.iter().any(|record| record.payload.len() < LARGE),
        _ => true,
    }
}

impl Writer {
    /// Until when what waits for its flush may wait for others, if it may.
    fn held_until(&self) -> Option<Instant> {
        self.shared.way.held_until().filter(|_| !self.urgent && !self.waiting.is_empty())
    }

    /// Takes more orders, until one is urgent or nobody has the way any more; who closes the log, if one does.
    pub(super) fn hold(&mut self, inbox: &Receiver<Order>) -> Option<Done> {
        while let Some(until) = self.held_until() {
            self.attempt(Self::write);
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(order) => {
                    let closed = self.gather(order, || inbox.try_recv().ok());
                    if closed.is_some() {
                        return closed;
                    }
                }
                // It may have been asked for again.
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        None
    }

    /// The same in a simulated world.
    pub(super) async fn hold_simulated(&mut self, inbox: &mut UnboundedReceiver<Order>) -> Option<Done> {
        while let Some(until) = self.held_until() {
            self.attempt(Self::write);
            match tokio::time::timeout_at(until, inbox.recv()).await {
                Ok(Some(order)) => {
                    let closed = self.gather(order, || inbox.try_recv().ok());
                    if closed.is_some() {
                        return closed;
                    }
                }
                Ok(None) => break,
                Err(_) => {}
            }
        }
        None
    }
}
