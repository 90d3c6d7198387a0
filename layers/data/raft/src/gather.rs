//! Callers that want the same kind of thing, answered together: while some are on their way the rest gathers, and goes
//! as one. So a thousand writers cost the log some entries, not a thousand, and as many readers one round of a quorum.
//! Between the store's handle and `leading.rs` in the write walk. Nobody waits for company unless as many groups as may
//! be are on their way, or the line is crowded. Deliberately absent: what is asked.

use std::time::Duration;

use data::StoreError;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::surroundings;

/// Callers in the line; further ones wait in front of it.
const LINE: usize = 4096;

/// The longest wait is that for so many crowds.
const CROWDS: usize = 3;

/// How large a group may be, and how many may be on their way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub groups: usize,
    pub callers: usize,
    /// Of what they ask; the first of a group may be larger.
    pub bytes: usize,
    /// After a group of so many callers the next one gathers for this long, and after one of [`CROWDS`] times as many for
    /// so many times as long: what it costs is shared by more. Where there are fewer nobody waits.
    pub crowd: Option<(usize, Duration)>,
}

/// One caller.
pub(crate) struct Waiting<Q, A> {
    asked: Q,
    bytes: usize,
    /// When its time is up.
    until: Instant,
    /// Where it waits.
    home: Handle,
    answer: oneshot::Sender<Result<A, StoreError>>,
}

/// Where callers stand.
pub(crate) struct Line<Q, A>(mpsc::Sender<Waiting<Q, A>>);

impl<Q, A> Line<Q, A> {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Waiting<Q, A>>) {
        let (sender, receiver) = mpsc::channel(LINE);
        (Self(sender), receiver)
    }

    /// Asks together with others; `None` if the store stopped meanwhile: then nobody knows what became of it.
    ///
    /// # Errors
    /// What the answer says; [`StoreError::Closed`] if nothing was begun.
    pub(crate) async fn ask(&self, asked: Q, bytes: usize, patience: Duration) -> Result<Option<A>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { asked, bytes, until: Instant::now() + patience, home: Handle::current(), answer };
        self.0.send(waiting).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_or(Ok(None), |answer| answer.map(Some))
    }
}

/// Answers callers in groups, in the order they came, until their line is gone. `all` gets what a group asks and the time
/// that its first caller has left, and gives an answer for each. A group goes its way where its first caller waits: to
/// wake a task of another thread is a call of the system, for each caller; of the same thread it is next to nothing.
pub(crate) async fn serve<Q, A, F>(
    mut line: mpsc::Receiver<Waiting<Q, A>>,
    bounds: Bounds,
    all: impl Fn(Vec<Q>, Duration) -> F,
) where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = Result<Vec<A>, StoreError>> + Send + 'static,
{
    let mut groups = JoinSet::new();
    loop {
        let first = tokio::select! {
            biased;
            Some(_) = groups.join_next(), if !groups.is_empty() => continue,
            first = line.recv(), if groups.len() < bounds.groups => first,
        };
        let Some(first) = first else { return };
        let left = first.until.saturating_duration_since(Instant::now());
        let (home, mut bytes) = (first.home, first.bytes);
        let (mut asked, mut answers) = (vec![first.asked], vec![first.answer]);
        while asked.len() < bounds.callers
            && bytes < bounds.bytes
            && let Ok(next) = line.try_recv()
        {
            bytes += next.bytes;
            asked.push(next.asked);
            answers.push(next.answer);
        }
        let pause = bounds.crowd.map(|(crowd, pause)| pause * (asked.len() / crowd).min(CROWDS) as u32);
        let answering = all(asked, left);
        let handing = async move { hand_out(answering.await, answers) };
        if surroundings::is_simulated() {
            groups.spawn_local(handing)
        } else {
            groups.spawn_on(handing, &home)
        };
        if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Callers may be gone: nobody else wants their answers.
fn hand_out<A>(result: Result<Vec<A>, StoreError>, callers: Vec<oneshot::Sender<Result<A, StoreError>>>) {
    match result {
        // Fewer answers than callers: the rest is told that nobody knows, by its end of the line.
        Ok(answers) => callers.into_iter().zip(answers).for_each(|(caller, answer)| drop(caller.send(Ok(answer)))),
        Err(error) => callers.into_iter().for_each(|caller| drop(caller.send(Err(error.clone())))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use data::StoreError;
    use tokio::sync::{Semaphore, mpsc};

    use super::{Bounds, Line, serve};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A line whose groups are answered one for each permit that is given, and the sizes of the groups.
    fn start(bounds: Bounds) -> (Arc<Line<u64, u64>>, Arc<Semaphore>, mpsc::UnboundedReceiver<usize>) {
        let (line, callers) = Line::new();
        let (permits, (sizes, seen)) = (Arc::new(Semaphore::new(0)), mpsc::unbounded_channel());
        let gate = Arc::clone(&permits);
        tokio::spawn(serve(callers, bounds, move |asked: Vec<u64>, _| {
            sizes.send(asked.len()).unwrap();
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                if asked.contains(&13) {
                    return Err(StoreError::Closed);
                }
                Ok(asked.into_iter().map(|number| number * 2).collect())
            }
        }));
        (Arc::new(line), permits, seen)
    }

    fn ask(line: &Arc<Line<u64, u64>>, number: u64) -> tokio::task::JoinHandle<Result<Option<u64>, StoreError>> {
        let line = Arc::clone(line);
        tokio::spawn(async move { line.ask(number, 10, PATIENCE).await })
    }

    #[tokio::test]
    async fn whoever_comes_while_others_are_on_their_way_goes_with_the_next_group() {
        let (line, permits, mut sizes) = start(Bounds { groups: 1, callers: 3, bytes: 1000, crowd: None });
        let first = ask(&line, 1);
        assert_eq!(sizes.recv().await, Some(1), "nobody waits for company");
        let rest: Vec<_> = (2..7).map(|number| ask(&line, number)).collect();
        while line.0.capacity() > super::LINE - 5 {
            tokio::task::yield_now().await;
        }
        permits.add_permits(10);
        assert_eq!(first.await.unwrap(), Ok(Some(2)));
        for (place, caller) in rest.into_iter().enumerate() {
            assert_eq!(caller.await.unwrap(), Ok(Some(2 * (place as u64 + 2))), "each gets its own answer");
        }
        assert_eq!((sizes.recv().await, sizes.recv().await), (Some(3), Some(2)));
    }

    #[tokio::test]
    async fn a_group_is_no_larger_than_it_may_be_and_fails_alone() {
        let (line, permits, mut sizes) = start(Bounds { groups: 2, callers: 10, bytes: 5, crowd: None });
        let (lost, other) = (ask(&line, 13), ask(&line, 1));
        assert_eq!((sizes.recv().await, sizes.recv().await), (Some(1), Some(1)), "10 bytes are more than 5");
        permits.add_permits(2);
        assert_eq!(lost.await.unwrap(), Err(StoreError::Closed));
        assert_eq!(other.await.unwrap(), Ok(Some(2)));
    }

    #[tokio::test]
    async fn behind_a_crowd_the_next_group_gathers_though_it_might_go_at_once() {
        let crowd = Some((2, Duration::from_secs(2)));
        let (line, permits, mut sizes) = start(Bounds { groups: 1, callers: 10, bytes: 1000, crowd });
        permits.add_permits(10);
        // On one thread both are in line before anybody is served.
        let (first, second) = (ask(&line, 1), ask(&line, 2));
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ok(Some(2)), Ok(Some(4))));
        assert_eq!(sizes.recv().await, Some(2));
        let third = ask(&line, 3);
        // Their group before is answered, so without the pause the third would be on its way after a few turns.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let fourth = ask(&line, 4);
        assert_eq!((third.await.unwrap(), fourth.await.unwrap()), (Ok(Some(6)), Ok(Some(8))));
        assert_eq!(sizes.recv().await, Some(2), "both in one group");
    }

    #[tokio::test]
    async fn a_group_goes_its_way_where_its_first_caller_waits() {
        let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (line, callers) = Line::new();
        let bounds = Bounds { groups: 1, callers: 10, bytes: 1000, crowd: None };
        other.spawn(serve(callers, bounds, |asked: Vec<()>, _| async move {
            Ok(vec![std::thread::current().id(); asked.len()])
        }));
        assert_eq!(line.ask((), 1, PATIENCE).await, Ok(Some(std::thread::current().id())));
        other.shutdown_background();
    }

    #[tokio::test]
    async fn an_answer_that_never_comes_is_not_known() {
        let (line, callers) = Line::<u64, u64>::new();
        let line = Arc::new(line);
        let caller = ask(&line, 1);
        while line.0.capacity() == super::LINE {
            tokio::task::yield_now().await;
        }
        drop(callers);
        assert_eq!(caller.await.unwrap(), Ok(None));
        assert_eq!(line.ask(1, 1, PATIENCE).await, Err(StoreError::Closed));
    }
}
