//! Copies of a route's requests for others, whose answers nobody sees. A copy is a request of its own with a client that takes
//! every byte and keeps none, so it walks the same way to an instance; it is tried once, waits for nobody, and is the first
//! to be left out when there are too many. Beside the forward step of the request walk. As Envoy's shadowing, `-shadow` is put
//! behind the host. Deliberately absent: guards, whose word is about requests that somebody waits for.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use guard::Deadline;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{End, Walk, attempts};
use crate::connection::{Client, Origin};
use crate::front::{Front, Sink, Source};
use crate::http1::{Framing, Kind, RequestHead};
use crate::routes::{CompiledMirror, CompiledRoute};
use crate::text::push_decimal;
use crate::worker::Worker;

/// Copies that a worker has under way at most.
const MOST_COPIES: usize = 128;
/// The largest body that is copied, in bytes.
const LARGEST_BODY: usize = 65_536;

/// Copies that are made once the request's body has come.
pub(super) struct Copies {
    route: Arc<CompiledRoute>,
    /// By their place among the route's mirrors.
    chosen: Vec<usize>,
}

/// Sends the copies that a request without a body has; `Some`: it has one.
pub(super) fn begin<S: Front>(
    worker: &Rc<Worker>,
    client: &mut Client<S>,
    route: &Arc<CompiledRoute>,
) -> Option<Box<Copies>> {
    if route.mirrors.is_empty() || client.head.wants_upgrade() {
        return None;
    }
    let takes = |(place, mirror): (usize, &CompiledMirror)| mirror.portion.takes().then_some(place);
    let chosen: Vec<usize> = route.mirrors.iter().enumerate().filter_map(takes).collect();
    if chosen.is_empty() {
        return None;
    }
    let copies = Copies { route: route.clone(), chosen };
    if client.head.framing() == Framing::None {
        copies.send(worker, client, &[]);
        return None;
    }
    client.upload.copy(LARGEST_BODY);
    Some(Box::new(copies))
}

impl Copies {
    /// The request has ended: its body is sent along, if all of it came and was not too large.
    pub(super) fn finish<S: Front>(&self, worker: &Rc<Worker>, client: &mut Client<S>) {
        match client.upload.take_copy() {
            Ok(body) => self.send(worker, client, &body),
            Err(too_large) => {
                let reason = if too_large { "body-too-large" } else { "body-cut" };
                self.mirrors().for_each(|mirror| count(worker, mirror, reason));
            }
        }
    }

    fn mirrors(&self) -> impl Iterator<Item = &CompiledMirror> {
        self.chosen.iter().map(|place| &self.route.mirrors[*place])
    }

    fn send<S: Front>(&self, worker: &Rc<Worker>, client: &Client<S>, body: &[u8]) {
        for mirror in self.mirrors() {
            let Some(place) = Place::take(worker) else {
                count(worker, mirror, "too-many");
                continue;
            };
            let (head, origin) = (copied(&client.head, body), client.origin.clone());
            tokio::task::spawn_local(walk(place, head, body.to_vec(), origin, mirror.route.clone()));
        }
    }
}

fn count(worker: &Worker, mirror: &CompiledMirror, reason: &'static str) {
    if let Some(to) = mirror.route.destination(0) {
        worker.metrics.mirrored(to.service.name(), reason);
    }
}

/// A place among those under way; given back when it is dropped.
struct Place(Rc<Worker>);

impl Place {
    fn take(worker: &Rc<Worker>) -> Option<Self> {
        let under_way = worker.copies.get();
        (under_way < MOST_COPIES).then(|| {
            worker.copies.set(under_way + 1);
            Self(worker.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.copies.set(self.0.copies.get() - 1);
    }
}

/// The way of one copy.
async fn walk(place: Place, head: Vec<u8>, body: Vec<u8>, origin: Origin, route: Arc<CompiledRoute>) {
    let worker = &place.0;
    let mut client = Client::new(Nobody { body, read: 0 }, origin);
    let Some(to) = route.destination(0) else { return };
    if client.head.parse(&head, &worker.options.limits).is_err() {
        return worker.metrics.mirrored(to.service.name(), "failed");
    }
    let now = Instant::now();
    let mut walk = Walk::begin(now);
    walk.deadline = Deadline::begin(now, route.timeout);
    let end = attempts(worker, &mut client, &route, to, None, &mut walk).await;
    let reason = if matches!(end, End::Done(_)) { "answered" } else { "failed" };
    worker.metrics.mirrored(to.service.name(), reason);
    client.give_back(worker);
}

/// The head as the client sent it, with a host that says what it is, and with the length of what follows.
fn copied(head: &RequestHead, body: &[u8]) -> Vec<u8> {
    let bytes = head.bytes();
    let mut out = Vec::with_capacity(bytes.len() + 64);
    out.extend_from_slice(head.method());
    out.push(b' ');
    out.extend_from_slice(head.path_and_query());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    let authority = head.authority();
    let bracket = memchr::memchr(b']', authority).unwrap_or(0);
    let end = memchr::memchr(b':', &authority[bracket..]).map_or(authority.len(), |colon| bracket + colon);
    let (host, port) = authority.split_at(end);
    // An address in brackets cannot have anything behind it.
    let mark: &[u8] = if host.is_empty() || host.ends_with(b"]") { b"" } else { b"-shadow" };
    [host, mark, port, b"\r\n"].iter().for_each(|part| out.extend_from_slice(part));
    for field in &head.fields.headers {
        if matches!(field.kind, Kind::Host | Kind::ContentLength | Kind::TransferEncoding | Kind::Expect) {
            continue;
        }
        [field.name.get(bytes), b": ", field.value.get(bytes), b"\r\n"]
            .iter()
            .for_each(|part| out.extend_from_slice(part));
    }
    if head.framing() != Framing::None {
        out.extend_from_slice(b"Content-Length: ");
        push_decimal(&mut out, body.len() as u64);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// A client that sends a body and takes every answer without a look.
struct Nobody {
    body: Vec<u8>,
    read: usize,
}

impl Source for Nobody {
    fn is_bare(&self) -> bool {
        true
    }
}

impl Sink for Nobody {}

impl Front for Nobody {
    const MULTIPLEXED: bool = true;
    const DISCARDED: bool = true;

    fn poll_reset(&mut self, _: &mut Context<'_>) -> Option<Poll<()>> {
        Some(Poll::Pending)
    }
}

impl AsyncRead for Nobody {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = room.remaining().min(self.body.len() - self.read);
        room.put_slice(&self.body[self.read..self.read + count]);
        self.read += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Nobody {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::copied;
    use crate::http1::{Limits, RequestHead};

    #[test]
    fn a_copy_names_itself_and_keeps_the_rest() {
        for (text, body, want) in [
            (
                "POST /a?b HTTP/1.1\r\nHost: shop.local:8080\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "abc",
                "POST /a?b HTTP/1.1\r\nHost: shop.local-shadow:8080\r\nX-A: 1\r\nContent-Length: 3\r\n\r\n",
            ),
            ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"),
        ] {
            let mut head = RequestHead::default();
            head.parse(text.as_bytes(), &Limits::default()).unwrap();
            assert_eq!(String::from_utf8(copied(&head, body.as_bytes())).unwrap(), want);
        }
    }
}
