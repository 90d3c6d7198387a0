//! A client's HTTP/2 connection: every stream becomes a task that walks the pipeline with one request.
//! First step of the request walk, beside `connection.rs`. What a client may cost is bounded here: streams at a time,
//! streams it takes back, time without any. Deliberately absent: what becomes of a request (`pipeline.rs`).

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{CONNECTION_WINDOW, MOST_STREAMS, SEND_BUFFER, STREAM_WINDOW, Stream, write_request};
use crate::answer::{self, Answer};
use crate::connection::{Client, Origin, Registered};
use crate::pipeline::{self, After};
use crate::timer::Timer;
use crate::worker::Worker;

/// Streams a client may take back before it is asked whether it takes most of them back (CVE-2023-44487).
const TAKEN_BACK: u64 = 100;

/// What a connection knows of its streams.
#[derive(Default)]
struct Count {
    open: Cell<u64>,
    accepted: Cell<u64>,
    taken_back: Cell<u64>,
    waker: Cell<Option<std::task::Waker>>,
}

/// Serves a connection until either side has enough.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(worker: &Rc<Worker>, stream: S, origin: Origin) {
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
    let mut handshake = pin!(builder.handshake::<S, Bytes>(stream));
    let until = Instant::now() + worker.options.header_timeout;
    let shaken = poll_fn(|cx| match handshake.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(done.ok()),
        Poll::Pending => timer.poll_at(cx, Some(until)).map(|()| None),
    });
    let Some(mut connection) = shaken.await else { return };
    let count = Rc::new(Count::default());
    let (mut closing, mut sent_away, mut quiet_since) = (false, false, Instant::now());
    poll_fn(|cx| {
        loop {
            if worker.draining.get() && !std::mem::replace(&mut closing, true) {
                connection.graceful_shutdown();
            }
            let too_many = count.taken_back.get() > TAKEN_BACK && count.taken_back.get() * 2 > count.accepted.get();
            if too_many && !std::mem::replace(&mut sent_away, true) {
                worker.metrics.refused("http2-enhance-your-calm");
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    count.accepted.set(count.accepted.get() + 1);
                    count.open.set(count.open.get() + 1);
                    let task = one(worker.clone(), request, respond, origin.clone(), count.clone());
                    tokio::task::spawn_local(task);
                }
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
        count.waker.set(Some(cx.waker().clone()));
        if count.open.get() > 0 {
            quiet_since = Instant::now();
            return Poll::Pending;
        }
        let limit = if closing { worker.options.header_timeout } else { worker.options.idle_timeout };
        while timer.poll_at(cx, Some(quiet_since + limit)).is_ready() {
            if std::mem::replace(&mut closing, true) {
                // It does not answer a goodbye either.
                return Poll::Ready(());
            }
            connection.graceful_shutdown();
            quiet_since = Instant::now();
            if connection.poll_closed(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
}

/// One request on its stream.
async fn one(
    worker: Rc<Worker>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    origin: Origin,
    count: Rc<Count>,
) {
    /// Counts the stream out, also when its task panics.
    struct Open(Rc<Count>);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.open.set(self.0.open.get() - 1);
            if let Some(waker) = self.0.waker.take() {
                waker.wake();
            }
        }
    }
    let open = Open(count);
    let (parts, body) = request.into_parts();
    let ended = body.is_end_stream();
    let mut client = Client::new(Stream::new(body, respond), origin);
    let mut head = Vec::with_capacity(512);
    write_request(&mut head, &parts, ended);
    let after = match client.head.parse(&head, &worker.options.limits) {
        Ok(()) => pipeline::run(&worker, &mut client).await,
        Err(bad) => {
            worker.metrics.bad_request(bad.why);
            answer::send(&worker, &mut client, &Answer::bad(bad), None, false).await;
            After::Close
        }
    };
    if client.stream.reset {
        open.0.taken_back.set(open.0.taken_back.get() + 1);
    } else if after == After::Abort {
        client.stream.cut();
    }
    client.give_back(&worker);
}
