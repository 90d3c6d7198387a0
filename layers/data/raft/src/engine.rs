//! What the engine runs on: tokio, with tasks and chance from [`surroundings`](crate::surroundings), so that a simulated
//! world is the same every time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::{self, WatchReceiver, WatchSender};
use openraft::impls::TokioRuntime;
use openraft::{AsyncRuntime, OptionalSend, OptionalSync};
use tokio::sync::Notify;
use tokio::sync::watch as tokio_watch;

use crate::surroundings;

/// Tokio, but for who is asked to start tasks and to draw numbers.
#[derive(Debug)]
pub(crate) struct Engine(TokioRuntime);

type Random = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;

impl AsyncRuntime for Engine {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Chance;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        surroundings::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Chance {
        if surroundings::is_simulated() { Chance::World } else { Chance::Machine(TokioRuntime::thread_rng()) }
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// Who draws numbers for the engine.
pub(crate) enum Chance {
    Machine(Random),
    World,
}

impl rand_core::TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|number| (number >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        match self {
            Self::Machine(random) => random.try_next_u64(),
            Self::World => Ok(surroundings::random().unwrap_or_default()),
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        if let Self::Machine(random) = self {
            return random.try_fill_bytes(bytes);
        }
        for piece in bytes.chunks_mut(8) {
            let number = self.try_next_u64()?.to_le_bytes();
            piece.copy_from_slice(&number[..piece.len()]);
        }
        Ok(())
    }
}

/// Tokio's channel of the newest value; who waits is woken in the order of waiting. Tokio's own receivers wait in one of
/// eight queues, drawn by chance that no seed decides.
pub(crate) struct Watch;

pub(crate) struct Sender<T> {
    value: tokio_watch::Sender<T>,
    // Goes after the value: who looks then sees that it has gone.
    changed: LastWord,
}

pub(crate) struct Receiver<T> {
    value: tokio_watch::Receiver<T>,
    changed: Arc<Notify>,
}

/// Poked after every change, and when a sender goes.
struct LastWord(Arc<Notify>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

impl watch::Watch for Watch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = tokio_watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = tokio_watch::channel(init);
        let changed = Arc::<Notify>::default();
        let last_word = LastWord(Arc::clone(&changed));
        (Sender { value: sender, changed: last_word }, Receiver { value: receiver, changed })
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), changed: LastWord(Arc::clone(&self.changed.0)) }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), changed: Arc::clone(&self.changed) }
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<Watch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), watch::SendError<T>> {
        self.value.send(value).map_err(|error| watch::SendError(error.0))?;
        self.changed.0.notify_waiters();
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = self.value.send_if_modified(modify);
        if modified {
            self.changed.0.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> tokio_watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver { value: self.value.subscribe(), changed: Arc::clone(&self.changed.0) }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<Watch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), watch::RecvError> {
        loop {
            // From here on no change is missed.
            let notified = self.changed.notified();
            // A value that was not seen counts, whether its sender is there or not.
            if self.value.borrow().has_changed() {
                self.value.mark_unchanged();
                return Ok(());
            }
            if self.value.has_changed().is_err() {
                return Err(watch::RecvError(()));
            }
            notified.await;
        }
    }

    fn borrow_watched(&self) -> tokio_watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> tokio_watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openraft::async_runtime::watch::{Watch as _, WatchReceiver as _, WatchSender as _};

    use super::Watch;

    #[tokio::test]
    async fn every_receiver_sees_the_newest_value_and_then_the_end() {
        let (sender, first) = Watch::channel(0);
        let others = (0..20).map(|_| first.clone()).chain([sender.subscribe()]);
        let waiting: Vec<_> = others
            .map(|mut receiver| {
                tokio::spawn(async move {
                    receiver.wait_until(|value| *value == 2).await.unwrap();
                    receiver.changed().await.unwrap();
                    assert_eq!(*receiver.borrow_watched(), 3);
                    receiver.changed().await.unwrap_err();
                })
            })
            .collect();
        for value in [1, 2] {
            sender.send(value).unwrap();
            tokio::task::yield_now().await;
        }
        let another = sender.clone();
        drop(sender);
        tokio::task::yield_now().await;
        assert!(another.send_if_modified(|value| std::mem::replace(value, 3) != 3));
        assert!(!another.send_if_modified(|_| false));
        drop(another);
        for task in waiting {
            tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
        }
    }
}
