//! When an attempt has waited enough: the request's time is over, its client owes something for too long or has gone, or
//! the instance is no more. Part of the forward step. Deliberately absent: what the client is told.

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::Exchange;
use crate::ended::LISTEN_AFTER;
use crate::front::Front;
use crate::pool::Link;
use crate::pump::Blocked;

/// What a wait for bytes ends with when none come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    Deadline,
    /// The attempt's own time is over.
    TryOver,
    /// The client owes something for too long.
    Stalled,
    Gone,
    /// The instance is no more, and its connection does not tell.
    Lost,
}

/// How often it is looked at whether somebody is there whose end cannot be read.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

impl<S: Front> Exchange<'_, S> {
    /// Until no more is waited for; `link` if that is for the instance. The client's debt grows as long as `progress` stays the same.
    pub(super) fn poll_late(
        &mut self,
        cx: &mut Context<'_>,
        link: Option<&Link>,
        owes: bool,
        progress: u64,
    ) -> Poll<Late> {
        if link.is_some() && self.ending.as_mut().is_some_and(|ending| ending.poll(cx).is_ready()) {
            return Poll::Ready(Late::Lost);
        }
        let stall = self.stall_at(owes, progress);
        // Bytes of the client that nobody takes hide its end.
        let hidden = !S::MULTIPLEXED && (self.client.upload.blocked == Blocked::OnSink || self.client.input.is_full());
        if !hidden {
            self.look = None;
        }
        loop {
            if hidden && self.look.is_none() {
                self.look = Some(Instant::now() + LOOK);
            }
            let listen = link.filter(|_| self.ending.is_none()).map(|link| (self.tried + LISTEN_AFTER, link));
            let first = [stall, self.look, self.try_until, listen.map(|(at, _)| at)].into_iter().flatten().min();
            ready!(self.client.timer.poll_at(cx, self.deadline.or_earlier(first)));
            let now = Instant::now();
            if self.deadline.expired(now) {
                return Poll::Ready(Late::Deadline);
            }
            if self.try_until.is_some_and(|at| now >= at) {
                return Poll::Ready(Late::TryOver);
            }
            if stall.is_some_and(|at| now >= at) {
                return Poll::Ready(Late::Stalled);
            }
            if self.client.stream.is_broken() {
                return Poll::Ready(Late::Gone);
            }
            if let Some((_, link)) = listen.filter(|(at, _)| now >= *at)
                && self.ending.insert(link.ending()).poll(cx).is_ready()
            {
                return Poll::Ready(Late::Lost);
            }
            if self.look.is_some_and(|at| now >= at) {
                self.look = None;
            }
        }
    }

    /// When the client's debt becomes too old: it grows as long as `progress` stays the same.
    fn stall_at(&mut self, owes: bool, progress: u64) -> Option<Instant> {
        if !owes {
            self.stall = None;
            return None;
        }
        match self.stall {
            Some((at, seen)) if seen == progress => Some(at),
            _ => {
                let at = Instant::now() + self.worker.options.stall_timeout;
                self.stall = Some((at, progress));
                Some(at)
            }
        }
    }
}
