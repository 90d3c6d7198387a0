//! A network in memory behind the seam `data_raft::Transport`: what is sent arrives late, connections overtake each
//! other, cables are cut in one direction or both, and a machine that loses power falls silent without a word.
//! Within a connection nothing is lost or reordered, as with TCP: a lost packet is one that comes late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use data::BoxFuture;
use data_raft::{Accepted, Connection, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::chance::Chance;
use crate::trace::Trace;

/// Bytes on their way in one direction of a connection.
const IN_FLIGHT: usize = 256 * 1024;
/// Connections not accepted yet.
const BACKLOG: usize = 64;

/// The network of a world. Clones share it.
#[derive(Clone, Debug)]
pub struct SimNet(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    chance: Chance,
    trace: Trace,
    /// Usual time from one node to another, at most; and how many of a hundred pieces take long.
    usual: Duration,
    slow_percent: u64,
    listening: BTreeMap<String, mpsc::Sender<Wire>>,
    /// From whom to whom nothing arrives.
    cut: BTreeSet<(String, String)>,
    waiting: Vec<Waker>,
    pipes: BTreeMap<u64, Pipe>,
    next_pipe: u64,
}

/// One direction of a connection.
#[derive(Debug)]
struct Pipe {
    from: String,
    to: String,
    pieces: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    last: Instant,
    /// The sender has closed it, in order, at this time.
    closed: Option<Instant>,
    /// The receiver is gone, and says so.
    refused: bool,
    /// The sender is gone, and says nothing.
    silent: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One node's place in the network.
#[derive(Debug)]
pub struct SimTransport {
    net: SimNet,
    address: String,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Wire>>,
}

impl SimNet {
    /// A network without a node, with a temper of its own.
    pub fn new(chance: Chance, trace: Trace) -> Self {
        let usual = Duration::from_micros(*chance.one_of(&[300, 1000, 3000, 10_000]));
        let slow_percent = *chance.one_of(&[0, 1, 3]);
        Self(Arc::new(Mutex::new(State {
            chance,
            trace,
            usual,
            slow_percent,
            listening: BTreeMap::new(),
            cut: BTreeSet::new(),
            waiting: Vec::new(),
            pipes: BTreeMap::new(),
            next_pipe: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a node that has started.
    pub fn attach(&self, address: &str) -> SimTransport {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        self.state().listening.insert(address.to_owned(), sender);
        SimTransport { net: self.clone(), address: address.to_owned(), incoming: incoming.into() }
    }

    /// The node's process ends: its operating system closes what it had open.
    pub fn detach(&self, address: &str) {
        self.state().listening.remove(address);
    }

    /// The machine loses power: whoever spoke with it hears nothing any more, not even that.
    pub fn fall_silent(&self, address: &str) {
        let mut state = self.state();
        state.listening.remove(address);
        for pipe in state.pipes.values_mut().filter(|pipe| pipe.from == address || pipe.to == address) {
            pipe.silent = true;
            pipe.pieces.clear();
        }
    }

    /// The machine is there again: whoever still writes on an old connection is told that it is none.
    pub fn refuse_old(&self, address: &str) {
        let mut state = self.state();
        for pipe in state.pipes.values_mut().filter(|pipe| pipe.silent && (pipe.from == address || pipe.to == address))
        {
            pipe.refused = true;
            wake(&mut pipe.reader);
            wake(&mut pipe.writer);
        }
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: &str, to: &str) {
        self.state().cut.insert((from.to_owned(), to.to_owned()));
    }

    /// Breaks a connection between two nodes, if there is one.
    pub fn break_one(&self, one: &str, other: &str) {
        let mut state = self.state();
        let between: Vec<u64> = state
            .pipes
            .iter()
            .filter(|(_, pipe)| pipe.from == one && pipe.to == other && !pipe.refused)
            .map(|(id, _)| *id)
            .collect();
        if between.is_empty() {
            return;
        }
        let broken = *state.chance.one_of(&between);
        // The two directions of a connection are neighbours.
        for id in [broken, broken ^ 1] {
            if let Some(pipe) = state.pipes.get_mut(&id) {
                pipe.refused = true;
                wake(&mut pipe.reader);
                wake(&mut pipe.writer);
            }
        }
    }

    /// Mends every cable.
    pub fn heal(&self) {
        let waiting = {
            let mut state = self.state();
            state.cut.clear();
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        let state = self.state();
        !state.cut.is_empty() && state.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Until the cable is mended.
    async fn mended(&self, from: &str, to: &str) {
        std::future::poll_fn(|cx| {
            if !self.is_cut(from, to) {
                return Poll::Ready(());
            }
            self.state().waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl State {
    fn delay(&self) -> Duration {
        if self.chance.below(1000) < self.slow_percent * 10 {
            return self.chance.millis(30, 250);
        }
        self.chance.time(Duration::from_micros(50), self.usual.max(Duration::from_micros(100)))
    }

    fn pipe(&mut self, from: &str, to: &str) -> u64 {
        let id = self.next_pipe;
        self.next_pipe += 1;
        let pipe = Pipe {
            from: from.to_owned(),
            to: to.to_owned(),
            pieces: VecDeque::new(),
            bytes: 0,
            last: Instant::now(),
            closed: None,
            refused: false,
            silent: false,
            reader: None,
            writer: None,
        };
        self.pipes.insert(id, pipe);
        id
    }
}

impl Transport for SimTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let delay = self.net.state().delay();
            tokio::time::sleep(delay).await;
            // As with a cable that is cut: no answer, no refusal.
            self.net.mended(&self.address, address).await;
            self.net.mended(address, &self.address).await;
            let mut state = self.net.state();
            let listener = state.listening.get(address).cloned().ok_or(io::ErrorKind::ConnectionRefused)?;
            let (there, back) = (state.pipe(&self.address, address), state.pipe(address, &self.address));
            state.trace.mark("connect", [there, number(&self.address), number(address), 0]);
            drop(state);
            let wire = |reads, writes| Wire { net: self.net.clone(), reads, writes, sleep: None };
            let (mine, theirs) = (wire(back, there), wire(there, back));
            listener.try_send(theirs).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Connection { stream: Box::new(mine), proved: None, from: None })
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            let wire = self.incoming.lock().await.recv().await.ok_or(io::ErrorKind::NotConnected)?;
            let connection = Connection { stream: Box::new(wire), proved: None, from: None };
            let accepted: Accepted = Box::pin(std::future::ready(Ok(Some(connection))));
            Ok(accepted)
        })
    }
}

/// A node's number, of its address.
fn number(address: &str) -> u64 {
    address.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or_default()
}

/// One end of a connection.
#[derive(Debug)]
struct Wire {
    net: SimNet,
    reads: u64,
    writes: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let net = self.net.clone();
            let mut guard = net.state();
            let state = &mut *guard;
            let Some(pipe) = state.pipes.get_mut(&self.reads) else { return Poll::Ready(Ok(())) };
            if pipe.refused {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if !state.cut.is_empty() && state.cut.contains(&(pipe.from.clone(), pipe.to.clone())) {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            let now = Instant::now();
            let due = match (pipe.pieces.front(), pipe.closed) {
                (Some((due, _)), _) => *due,
                (None, Some(closed)) => closed,
                (None, None) => {
                    pipe.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            if due <= now {
                let Some((_, piece)) = pipe.pieces.front_mut() else { return Poll::Ready(Ok(())) };
                let length = piece.len().min(buffer.remaining());
                buffer.put_slice(&piece[..length]);
                piece.advance(length);
                if piece.is_empty() {
                    pipe.pieces.pop_front();
                }
                pipe.bytes -= length;
                wake(&mut pipe.writer);
                state.trace.mark("arrives", [self.reads, length as u64, number(&pipe.from), number(&pipe.to)]);
                return Poll::Ready(Ok(()));
            }
            pipe.reader = Some(cx.waker().clone());
            drop(guard);
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            sleep.as_mut().reset(due);
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.net.state();
        let delay = state.delay();
        let Some(pipe) = state.pipes.get_mut(&self.writes) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if pipe.refused {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.silent {
            // Into the void, as far as anybody here knows.
            return Poll::Ready(Ok(bytes.len()));
        }
        if pipe.bytes >= IN_FLIGHT {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipe.last = pipe.last.max(Instant::now() + delay);
        pipe.pieces.push_back((pipe.last, Bytes::copy_from_slice(bytes)));
        pipe.bytes += bytes.len();
        wake(&mut pipe.reader);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut state = self.net.state();
        let delay = state.delay();
        if let Some(pipe) = state.pipes.get_mut(&self.writes)
            && !pipe.silent
        {
            pipe.closed = Some(pipe.last.max(Instant::now() + delay));
            wake(&mut pipe.reader);
        }
        // Nobody reads here any more.
        if let Some(pipe) = state.pipes.get_mut(&self.reads)
            && !pipe.silent
        {
            pipe.refused = true;
            wake(&mut pipe.writer);
        }
        // Once both ends are gone nobody asks for it again.
        for id in [self.reads, self.writes] {
            if state.pipes.get(&id).is_some_and(|pipe| pipe.refused && pipe.closed.is_some()) {
                state.pipes.remove(&id);
            }
        }
    }
}
