//! One timer per connection, moved as seldom as possible: most deadlines are never reached.
//! Used at every wait of the request walk. A deadline that moves later costs nothing; the sleep wakes early once and
//! is moved then. Deliberately absent: the meaning of any deadline.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

/// A sleep, made when first needed.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Ready once `at` has passed; `None` never is. Registers the task otherwise.
    pub(crate) fn poll_at(&mut self, cx: &mut Context<'_>, at: Option<Instant>) -> Poll<()> {
        let Some(at) = at else { return Poll::Pending };
        let wanted = tokio::time::Instant::from_std(at);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(wanted)));
        if sleep.deadline() > wanted {
            sleep.as_mut().reset(wanted);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(wanted);
        }
        Poll::Pending
    }
}
