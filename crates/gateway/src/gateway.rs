//! The gateway as one thing: started on sockets somebody else bound, drained, stopped.
//! Around the request walk. Deliberately absent: configuration, binding, signals of the operating system.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use crate::entry::Clients;
use crate::listen::{Entrance, Listener};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::signal::Signal;
use crate::table::Table;
use crate::worker::{Door, Handed, Listening, Phase, Shared, Worker};

/// Connections on their way to one worker.
const HANDED: usize = 1_024;

/// A running data plane. Dropping it stops it at once; [`Gateway::drain`] first lets requests end.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Starts a thread per worker and accepts at once. A listener with one socket per worker is accepted on by each
    /// worker for itself; any other number of sockets is accepted on by some, for the least loaded.
    ///
    /// # Errors
    /// The operating system's, when a thread, a runtime or a socket cannot be used; then nothing runs.
    pub fn start(
        options: Options,
        listeners: Vec<Listener>,
        table: Arc<Table>,
        metrics: Metrics,
        signals: mpsc::Sender<Signal>,
    ) -> io::Result<Self> {
        let workers = options.workers.max(1);
        let mut entrances = distribute(listeners, workers)?;
        let (doors, handed): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(HANDED);
                (Door { sender, load: Arc::default() }, receiver)
            })
            .unzip();
        let shared = Arc::new(Shared {
            options,
            table,
            metrics,
            signals,
            open: AtomicUsize::new(0),
            empty: Notify::new(),
            doors,
            clients: Clients::default(),
        });
        let (phase, _) = watch::channel(Phase::Run);
        let mut gateway = Self { shared, phase, threads: Vec::with_capacity(workers) };
        for (index, handed) in handed.into_iter().enumerate() {
            let entrances = std::mem::take(&mut entrances[index]);
            gateway.spawn(index, entrances, handed)?;
        }
        Ok(gateway)
    }

    fn spawn(&mut self, index: usize, entrances: Vec<Entrance>, handed: mpsc::Receiver<Handed>) -> io::Result<()> {
        let (shared, phase) = (self.shared.clone(), self.phase.subscribe());
        let (metrics, load) = (shared.metrics.clone(), shared.doors[index].load.clone());
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("gateway-{index}")).spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = match builder.enable_io().enable_time().build_local(tokio::runtime::LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            metrics.worker(index, runtime.metrics(), load);
            let _ = ready.send(Ok(()));
            runtime.block_on(Rc::new(Worker::new(shared, index)).run(entrances, handed, phase));
        })?;
        self.threads.push(thread);
        started.recv().unwrap_or_else(|_| Err(io::Error::other("a gateway worker ended while it started")))
    }

    /// Client connections open now.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// Stops accepting, closes idle connections, tells clients to close, and waits at most `limit` for the rest.
    /// Returns how many connections were left; they go on until the gateway is dropped.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Run;
            if begins {
                *phase = Phase::Drain;
            }
            begins
        });
        let until = tokio::time::Instant::now() + limit;
        loop {
            let emptied = self.shared.empty.notified();
            let left = self.connections();
            if left == 0 || tokio::time::timeout_at(until, emptied).await.is_err() {
                return self.connections();
            }
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Which worker accepts on which sockets.
fn distribute(listeners: Vec<Listener>, workers: usize) -> io::Result<Vec<Vec<Entrance>>> {
    let mut entrances: Vec<Vec<Entrance>> = (0..workers).map(|_| Vec::new()).collect();
    for listener in listeners {
        let own = listener.sockets.len() == workers;
        let entry = Arc::new(Listening { manner: listener.manner, open: AtomicUsize::new(0) });
        for (index, socket) in listener.sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            entrances[index % workers].push(Entrance { socket, listener: entry.clone(), own });
        }
    }
    Ok(entrances)
}
