//! What a route has repeated, as far as one attempt can tell, and whom a failure is blamed on. Part of the forward step. Deliberately absent: how often, and
//! within which budget (`guard::retry`, `guard::budget`).

use guard::Failure;

use super::{Exchange, Failed};

impl<S> Exchange<'_, S> {
    /// The route has such an answer repeated, and the request can be.
    pub(super) fn repeats(&self, status: u16) -> bool {
        let wanted = self.route.retry.as_ref().is_some_and(|retry| retry.repeats(status));
        wanted && self.has_more && self.has_time() && self.interim == 0 && self.client.upload.replayable()
    }

    /// Something may still be repeated.
    pub(crate) fn has_time(&self) -> bool {
        let within = self.route.retry.as_ref().and_then(|retry| retry.within);
        within.is_none_or(|within| self.begun.elapsed() < within)
    }

    /// That the attempt took too long is not repeated.
    pub(crate) fn spares_late(&self) -> bool {
        self.route.retry.as_ref().is_none_or(|retry| !retry.timeout)
    }
}

impl Failed {
    /// What the instance did wrong, if it was the instance.
    pub(crate) fn blames(&self) -> Option<&'static str> {
        match self {
            Self::Before(Failure::StalePooled) | Self::Gone | Self::Body(_) | Self::BodyStalled => None,
            Self::Before(Failure::NothingWritten) => Some("connect-failed"),
            Self::Distrusted(_) | Self::Before(Failure::Distrusted) => Some("tls"),
            Self::Before(Failure::Reset | Failure::Garbage) | Self::Closed | Self::Cut => Some("reset"),
            Self::Garbage(_) => Some("bad-response"),
            Self::Deadline { .. } | Self::Before(Failure::TimedOut) => Some("timeout"),
            Self::Repeat(status) => (*status >= 500).then_some("5xx"),
            // It says so by `Repeat`.
            Self::Before(Failure::Status) => None,
        }
    }
}
