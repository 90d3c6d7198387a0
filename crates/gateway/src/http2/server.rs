//! A client's HTTP/2 connection: every stream becomes a task that walks the pipeline with one request.
//! First step of the request walk, beside `connection.rs`. What a client may cost is bounded here: streams at a time,
//! streams it takes back, time without any. Deliberately absent: what becomes of a request (`pipeline.rs`).

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{CONNECTION_WINDOW, MOST_STREAMS, SEND_BUFFER, STREAM_WINDOW, Stream, write_request};
use crate::answer::{self, Answer, With};
use crate::connection::{Client, LINGER, LINGER_BYTES, Origin, Registered};
use crate::pipeline::{self, After};
use crate::timer::Timer;
use crate::worker::Worker;

/// Streams a client may take back before it is asked whether it takes most of them back (CVE-2023-44487).
const TAKEN_BACK: u64 = 100;

/// Idle slots a connection keeps.
const SPARE_SLOTS: usize = 8;

/// A task with a client of its own, which serves one request after the other, so that a request costs neither a task nor
/// new memory.
#[derive(Default)]
struct Slot {
    /// The next request's head, as HTTP/1.1.
    head: RefCell<Vec<u8>>,
    /// Its body, and the way back.
    next: Cell<Option<(RecvStream, SendResponse<Bytes>)>>,
    /// Its task, once that has waited.
    task: RefCell<Option<Waker>>,
    /// It stands among the idle ones.
    is_idle: Cell<bool>,
}

impl Slot {
    /// Takes a request on.
    fn give(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let (parts, body) = request.into_parts();
        let mut head = self.head.borrow_mut();
        head.clear();
        write_request(&mut head, &parts, body.is_end_stream());
        self.next.set(Some((body, respond)));
        self.wake();
    }

    fn wake(&self) {
        self.task.borrow().iter().for_each(Waker::wake_by_ref);
    }
}

/// Keeps who is to be woken, mostly the same as before.
fn remember(known: &mut Option<Waker>, cx: &Context<'_>) {
    match known {
        Some(known) => known.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// What a connection knows of its streams, each served by a slot.
struct Streams {
    worker: Rc<Worker>,
    origin: Origin,
    /// Slots that wait for a request.
    idle: RefCell<Vec<Rc<Slot>>>,
    open: Cell<u64>,
    /// Since when no stream is open.
    quiet_since: Cell<Instant>,
    accepted: Cell<u64>,
    taken_back: Cell<u64>,
    /// No more requests come.
    closed: Cell<bool>,
    /// The connection's own task, told when no stream is open any more.
    connection: RefCell<Option<Waker>>,
}

impl Streams {
    /// Gives a request to a slot.
    fn accept(self: &Rc<Self>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.accepted.set(self.accepted.get() + 1);
        self.open.set(self.open.get() + 1);
        let idle = self.idle.borrow_mut().pop();
        match idle {
            Some(slot) => {
                slot.is_idle.set(false);
                slot.give(request, respond);
            }
            None => {
                let slot = Rc::<Slot>::default();
                slot.give(request, respond);
                tokio::task::spawn_local(serve_one_after_the_other(self.clone(), slot));
            }
        }
    }

    /// The next request of a slot; `None` when it is not needed any more.
    fn poll_next(&self, cx: &mut Context<'_>, slot: &Rc<Slot>) -> Poll<Option<(RecvStream, SendResponse<Bytes>)>> {
        if let Some(next) = slot.next.take() {
            return Poll::Ready(Some(next));
        }
        let mut idle = self.idle.borrow_mut();
        if self.closed.get() || !slot.is_idle.get() && idle.len() >= SPARE_SLOTS {
            return Poll::Ready(None);
        }
        remember(&mut slot.task.borrow_mut(), cx);
        // Woken by something else than a request, it still stands in the list.
        if !slot.is_idle.replace(true) {
            idle.push(slot.clone());
        }
        Poll::Pending
    }

    fn too_many_taken_back(&self) -> bool {
        self.taken_back.get() > TAKEN_BACK && self.taken_back.get() * 2 > self.accepted.get()
    }
}

/// Ends the slots when the connection has ended; those with a request end after it.
struct Closing(Rc<Streams>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.idle.take().iter().for_each(|slot| slot.wake());
    }
}

/// Counts a stream out, also when its task panics.
struct Open<'a>(&'a Streams);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0 {
            self.0.quiet_since.set(Instant::now());
            self.0.connection.borrow().iter().for_each(Waker::wake_by_ref);
        }
    }
}

/// Serves a connection until either side has enough.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(worker: &Rc<Worker>, mut stream: S, origin: Origin) {
    converse(worker, &mut stream, origin).await;
    linger(&mut stream).await;
}

/// Says that nothing more comes, and listens a little: closing with bytes unread would make the kernel reset the
/// connection, and the client might lose what it was told last.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let heard = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_BYTES as u64), &mut tokio::io::sink()).await
    };
    // Whether it listened to its end, or for long enough, it is over.
    let _ = tokio::time::timeout(LINGER, heard).await;
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(worker: &Rc<Worker>, stream: &mut S, origin: Origin) {
    let _registered = Registered::enter(worker).await;
    let limits = &worker.options.limits;
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER);
    let mut timer = Timer::default();
    let mut handshake = pin!(builder.handshake::<&mut S, Bytes>(stream));
    let until = Instant::now() + worker.options.header_timeout;
    let shaken = poll_fn(|cx| match handshake.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(done.ok()),
        Poll::Pending => timer.poll_at(cx, Some(until)).map(|()| None),
    });
    let Some(mut connection) = shaken.await else { return };
    let streams = Rc::new(Streams {
        worker: worker.clone(),
        origin,
        idle: RefCell::default(),
        open: Cell::new(0),
        quiet_since: Cell::new(Instant::now()),
        accepted: Cell::new(0),
        taken_back: Cell::new(0),
        closed: Cell::new(false),
        connection: RefCell::new(None),
    });
    let _closing = Closing(streams.clone());
    let (mut closing, mut sent_away) = (false, false);
    poll_fn(|cx| {
        loop {
            if worker.draining.get() && !std::mem::replace(&mut closing, true) {
                connection.graceful_shutdown();
            }
            if streams.too_many_taken_back() && !std::mem::replace(&mut sent_away, true) {
                worker.metrics.refused("http2-enhance-your-calm");
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => streams.accept(request, respond),
                // Whatever went wrong, the peer has been told; streams end by themselves.
                Poll::Ready(Some(Err(error))) => {
                    if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) && !sent_away {
                        worker.metrics.refused("http2-enhance-your-calm");
                    }
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        remember(&mut streams.connection.borrow_mut(), cx);
        if streams.open.get() > 0 {
            return Poll::Pending;
        }
        let limit = if closing { worker.options.header_timeout } else { worker.options.idle_timeout };
        while timer.poll_at(cx, Some(streams.quiet_since.get() + limit)).is_ready() {
            if std::mem::replace(&mut closing, true) {
                // It does not answer a goodbye either.
                return Poll::Ready(());
            }
            connection.graceful_shutdown();
            streams.quiet_since.set(Instant::now());
            if connection.poll_closed(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
}

/// Serves the streams that a slot is given.
async fn serve_one_after_the_other(streams: Rc<Streams>, slot: Rc<Slot>) {
    let worker = &streams.worker;
    let mut kept: Option<Client<Stream>> = None;
    while let Some((body, respond)) = poll_fn(|cx| streams.poll_next(cx, &slot)).await {
        let _open = Open(&streams);
        let stream = Stream::new(body, respond);
        let client = match &mut kept {
            Some(client) => {
                client.begin_again(stream);
                client
            }
            none => none.insert(Client::new(stream, streams.origin.clone())),
        };
        let parsed = client.head.parse(&slot.head.borrow(), &worker.options.limits);
        let after = match parsed {
            Ok(()) => pipeline::run(worker, client).await,
            Err(bad) => {
                worker.metrics.bad_request(bad.why);
                answer::send(worker, client, &Answer::bad(bad), With::Words, false).await;
                After::Close
            }
        };
        if client.stream.reset {
            streams.taken_back.set(streams.taken_back.get() + 1);
        } else if after == After::Abort {
            client.stream.cut();
        } else if client.stream.owes_body() {
            // An answer that did not wait for the body (413 and the like): the reset that says so makes some clients (curl
            // before 8.0) forget the answer before it.
            client.linger(worker).await;
        }
        // The stream itself is over now, not only when the slot gets its next one.
        client.stream.close();
        client.give_back(worker);
    }
}
