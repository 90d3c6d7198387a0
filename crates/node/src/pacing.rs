//! How often the controller looks at everything. With few services it looks at each piece of news; with thousands a look takes
//! a while, and happens so seldom that it takes a bounded part of the time. Beside the controller's loop.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Changes of the status within this time are published together, at the least.
pub const SHOW_GRAIN: Duration = Duration::from_millis(10);
/// The part of the time that looks take at most: one of so many.
const SHARE: u32 = 5;
/// A look that is quicker is made for every piece of news.
const QUICK: Duration = Duration::from_micros(500);
/// The longest that news wait for others.
const MAX_GATHER: Duration = Duration::from_millis(20);

/// For how long news are gathered after a look that took so long.
pub fn gathering(took: Duration) -> Duration {
    if took < QUICK { Duration::ZERO } else { (took * (SHARE - 1)).min(MAX_GATHER) }
}

/// The least time between two statuses, of which the last took so long to make.
pub fn grain(took: Duration) -> Duration {
    SHOW_GRAIN.max(took * SHARE).min(Duration::from_secs(1))
}

/// What is there already, or comes until `until`.
pub async fn next<T>(inputs: &mut mpsc::Receiver<T>, gather: Duration, until: Instant) -> Option<T> {
    match inputs.try_recv() {
        Ok(next) => Some(next),
        Err(_) if gather.is_zero() => None,
        Err(_) => timeout_at(until, inputs.recv()).await.ok().flatten(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{gathering, grain};

    #[test]
    fn looks_take_a_fifth_of_the_time_and_few_services_wait_for_nothing() {
        let ms = Duration::from_millis;
        assert_eq!(gathering(Duration::from_micros(400)), ms(0));
        assert_eq!((gathering(ms(2)), gathering(ms(50))), (ms(8), ms(20)));
        assert_eq!((grain(ms(1)), grain(ms(10)), grain(ms(900))), (ms(10), ms(50), ms(1000)));
    }
}
