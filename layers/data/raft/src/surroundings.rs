//! Where the store's tasks run, what time it is and what chance says: the machine's threads, clocks and randomness, or,
//! on a thread that has called [`simulate`], those of a simulated world. There every task of a node runs in the
//! `LocalSet` it was opened in, time is tokio's, and nothing happens that the world's seed does not decide.
//! Beside `disk` and `transport`, the other two seams. Deliberately absent: a simulation (`sim/`).

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;

/// What a simulated world decides for the stores in it.
pub trait Surroundings {
    /// A number drawn by chance.
    fn random(&self) -> u64;

    /// Time since the Unix epoch, as the wall clock of the node that asks says.
    fn wall_clock(&self) -> Duration;

    /// How long the disk takes for what has just been given to it.
    fn disk_time(&self) -> Duration;

    /// The bug that is planted in this world (feature `planted`).
    fn planted(&self) -> Option<&'static str> {
        None
    }
}

impl fmt::Debug for dyn Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surroundings")
    }
}

thread_local! {
    static SIMULATED: RefCell<Option<Rc<dyn Surroundings>>> = const { RefCell::new(None) };
}

/// The thread is a simulated world until this is dropped.
#[derive(Debug)]
pub struct Simulated(());

/// Makes this thread a simulated world: stores are opened with [`RaftStore::open_simulated`](crate::RaftStore) in a
/// `LocalSet` of a runtime whose time is paused, a set for each node, and end with that set.
pub fn simulate(surroundings: Rc<dyn Surroundings>) -> Simulated {
    SIMULATED.with(|simulated| *simulated.borrow_mut() = Some(surroundings));
    Simulated(())
}

impl Drop for Simulated {
    fn drop(&mut self) {
        // The thread may be ending, and this with it.
        let _ = SIMULATED.try_with(|simulated| simulated.borrow_mut().take());
    }
}

fn simulated() -> Option<Rc<dyn Surroundings>> {
    SIMULATED.try_with(|simulated| simulated.borrow().clone()).ok().flatten()
}

/// Whether this thread is a simulated world.
pub(crate) fn is_simulated() -> bool {
    SIMULATED.try_with(|simulated| simulated.borrow().is_some()).unwrap_or(false)
}

/// Starts a task where this one runs.
pub(crate) fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if is_simulated() { tokio::task::spawn_local(work) } else { tokio::spawn(work) }
}

/// Does what waits for the disk, where that holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if is_simulated() {
        disk_time().await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Waits as long as the disk of a simulated world takes.
pub(crate) async fn disk_time() {
    let taken = simulated().map(|world| world.disk_time());
    if let Some(taken) = taken {
        tokio::time::sleep(taken).await;
    }
}

/// Milliseconds since the Unix epoch; 0 before it.
pub(crate) fn wall_clock_ms() -> u64 {
    let since =
        simulated().map_or_else(|| SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(), |world| world.wall_clock());
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A number for a store or a node, different from every other.
pub(crate) fn drawn_id() -> uuid::Uuid {
    match simulated() {
        Some(world) => uuid::Uuid::from_u64_pair(world.random(), world.random()),
        None => uuid::Uuid::new_v4(),
    }
}

/// This process's number; in a simulated world there is one.
pub(crate) fn process() -> u32 {
    if is_simulated() { 1 } else { std::process::id() }
}

/// Chance within a simulated world; `None` on a machine.
pub(crate) fn random() -> Option<u64> {
    simulated().map(|world| world.random())
}

/// Whether the bug of this name is planted in the world of this thread.
#[cfg(feature = "planted")]
pub(crate) fn planted(name: &str) -> bool {
    simulated().is_some_and(|world| world.planted() == Some(name))
}

/// There are no bugs on purpose.
#[cfg(not(feature = "planted"))]
#[inline]
pub(crate) const fn planted(_name: &str) -> bool {
    false
}
