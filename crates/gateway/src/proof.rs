//! What goes on for what comes in, as plain functions of bytes: doors for proofs that compare it with other readers.
//! They call what the request walk calls (scan, parse, write, pump), with memory in place of sockets. Used by the fuzz
//! targets and the tests of `tests/targets`. Deliberately absent: any logic of its own.

use std::io::Cursor;
use std::task::{Context, Poll, Waker};

use http::request::Parts;

use crate::buffer::{Buffer, Spares};
use crate::connection::Origin;
use crate::front::Http1;
use crate::heads::{self, Additions, Delivery, Identity, trailer_passes};
use crate::http1::{Bad, Framing, Limits, RequestHead, ResponseHead, Scanner, Version};
use crate::http2;
use crate::policy::{HeaderEdits, Policy};
use crate::pump::{Pump, PumpError, decoder_for};

/// A message that was read from the front of some bytes.
#[derive(Debug)]
pub struct Passed<H> {
    /// Its head.
    pub head: H,
    /// What the other side gets: head, and body in the framing it gets it in.
    pub sent: Vec<u8>,
    /// Where in `sent` the body begins.
    pub body_at: usize,
    /// How many bytes it took; the next message begins behind them.
    pub used: usize,
}

/// What becomes of some bytes.
#[derive(Debug)]
pub enum Outcome<H> {
    /// A whole message.
    Whole(Box<Passed<H>>),
    /// More is needed; the head if that much is known.
    Partial(Option<Box<H>>),
    /// Refused.
    Refused(Bad),
}

/// Reads a request off the front of `bytes` and writes what an instance gets.
pub fn request(bytes: &[u8]) -> Outcome<RequestHead> {
    let limits = Limits::default();
    let (skipped, length) = match scanned(bytes, &limits) {
        Ok(Some(found)) => found,
        Ok(None) => return Outcome::Partial(None),
        Err(bad) => return Outcome::Refused(bad),
    };
    let mut head = RequestHead::default();
    if let Err(bad) = head.parse(&bytes[skipped..length], &limits) {
        return Outcome::Refused(bad);
    }
    let mut sent = Vec::new();
    write_request(&mut sent, &head);
    let chunked = head.framing() == Framing::Chunked;
    pass(head, &bytes[length..], length, sent, |head| head.framing(), chunked)
}

/// Reads a response off the front of `bytes`, all that came before the instance closed, and writes what a client of
/// `version` gets.
pub fn response(bytes: &[u8], to_head: bool, version: Version) -> Outcome<ResponseHead> {
    let limits = Limits::default();
    let length = match scanned(bytes, &limits) {
        Ok(Some((0, length))) => length,
        Ok(Some(_)) => return Outcome::Refused(Bad::request("empty-line")),
        Ok(None) => return Outcome::Partial(None),
        Err(bad) => return Outcome::Refused(bad),
    };
    let mut head = ResponseHead::default();
    if let Err(bad) = head.parse(&bytes[..length], to_head, &limits) {
        return Outcome::Refused(bad);
    }
    let delivery = Delivery::of(head.framing, version);
    let keep = delivery != Delivery::UntilClose;
    let mut sent = Vec::new();
    let edits = HeaderEdits::default();
    heads::write_response(&mut sent, &head, &bytes[..length], delivery, version, keep, &edits);
    pass(head, &bytes[length..], length, sent, |head| head.framing, delivery == Delivery::Chunked)
}

/// Writes a request of HTTP/2 as the HTTP/1.1 head it means. `ended`: it has no body.
pub fn http1_head(parts: &Parts, ended: bool) -> Vec<u8> {
    let mut out = Vec::new();
    http2::write_request(&mut out, parts, ended);
    out
}

fn scanned(bytes: &[u8], limits: &Limits) -> Result<Option<(usize, usize)>, Bad> {
    let mut scanner = Scanner::default();
    Ok(scanner.advance(bytes, limits)?.map(|length| (scanner.skipped(), length)))
}

/// As an unknown client's request without a route's changes.
fn write_request(out: &mut Vec<u8>, head: &RequestHead) {
    let origin = Origin::new(([192, 0, 2, 7], 5000).into());
    let mut count = 0;
    let identity = Identity::of(head, || {
        count += 1;
        count
    });
    let add = Additions {
        left: None,
        policy: &Policy::default(),
        prefix: None,
        origin: &origin,
        upstream_scheme: "http",
        upgrade: head.wants_upgrade(),
        identity: &identity,
        epoch: None,
        instance: ([192, 0, 2, 1], 80).into(),
        trailers: true,
    };
    heads::write_request(out, head, &add);
}

/// Moves the body at the front of `rest` behind the head that is staged.
fn pass<H>(
    head: H,
    rest: &[u8],
    head_bytes: usize,
    staged: Vec<u8>,
    framing: impl Fn(&H) -> Framing,
    chunked: bool,
) -> Outcome<H> {
    let body_at = staged.len();
    let mut source = Http1(Cursor::new(rest.to_vec()));
    let mut sink = Http1(Cursor::new(Vec::new()));
    let (mut buffer, spares) = (Buffer::default(), Spares::default());
    let mut pump = Pump::new(staged);
    pump.begin(decoder_for(&source, framing(&head), &Limits::default()), chunked);
    pump.forward_trailers(trailer_passes);
    let mut cx = Context::from_waker(Waker::noop());
    match pump.poll(&mut cx, &mut source, &mut buffer, &mut sink, &spares) {
        Poll::Ready(Ok(())) => {
            let unread = rest.len() - source.0.position() as usize + buffer.filled().len();
            let used = head_bytes + rest.len() - unread;
            Outcome::Whole(Box::new(Passed { head, sent: sink.0.into_inner(), body_at, used }))
        }
        Poll::Ready(Err(PumpError::Bad(bad))) => Outcome::Refused(bad),
        // Memory is never pending and takes everything.
        Poll::Ready(Err(PumpError::SourceClosed | PumpError::Sink)) | Poll::Pending => {
            Outcome::Partial(Some(Box::new(head)))
        }
    }
}
