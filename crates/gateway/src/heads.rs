//! What goes from one side to the other of a head: hop-by-hop fields stay behind, the gateway's own are added.
//! Used by the forward step, once towards the instance and once towards the client.
//! Deliberately absent: reading heads (`http1/`).
//!
//! Towards an instance: `Host` as the client named it; what `Connection` names is dropped; `X-Forwarded-For`,
//! `-Proto` and `-Host` are the gateway's own, since a client could have made them up, unless the client is a trusted
//! proxy: then its chain is appended to and its word stands. `Forwarded` is dropped. So is `Seawall-*`, since those
//! fields fence; `X-Request-Timeout-Ms` and `grpc-timeout` say what is left of the request's time; `X-Request-Id` and a valid `traceparent` are kept or made.

use std::net::SocketAddr;
use std::time::Duration;

use model::Epoch;

use crate::connection::Origin;
use crate::guards::Left;
use crate::http1::{Fields, Framing, GRPC_GRACE, Header, Kind, RequestHead, ResponseHead, Version};
use crate::policy::{HeaderEdits, Policy, push_target};
use crate::text::{hex16, push_decimal};

/// Names that tie log lines, traces and instances' records of one request together. Made once per request.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    request_id: Option<[u8; 32]>,
    /// `00-<trace>-<span>-01`.
    traceparent: Option<[u8; 55]>,
}

impl Identity {
    /// Makes what the client did not bring. `random` yields well-mixed bits.
    pub(crate) fn of(head: &RequestHead, mut random: impl FnMut() -> u64) -> Self {
        let mut identity = Self::default();
        if kept_request_id(head).is_none() {
            let mut id = [0; 32];
            id[..16].copy_from_slice(&hex16(random()));
            id[16..].copy_from_slice(&hex16(random()));
            identity.request_id = Some(id);
        }
        if kept_traceparent(head).is_none() {
            let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-01";
            parent[3..19].copy_from_slice(&hex16(random() | 1));
            parent[19..35].copy_from_slice(&hex16(random()));
            parent[36..52].copy_from_slice(&hex16(random() | 1));
            identity.traceparent = Some(parent);
        }
        identity
    }

    pub(crate) fn request_id<'a>(&'a self, head: &'a RequestHead) -> &'a [u8] {
        self.request_id.as_ref().map_or_else(|| kept_request_id(head).unwrap_or_default(), |made| &made[..])
    }

    pub(crate) fn traceparent<'a>(&'a self, head: &'a RequestHead) -> &'a [u8] {
        self.traceparent.as_ref().map_or_else(|| kept_traceparent(head).unwrap_or_default(), |made| &made[..])
    }
}

/// A client's request id, if it is one word of decent length.
fn kept_request_id(head: &RequestHead) -> Option<&[u8]> {
    let id = head.fields.first(Kind::RequestId)?.get(head.bytes());
    (!id.is_empty() && id.len() <= 128 && id.iter().all(u8::is_ascii_graphic)).then_some(id)
}

/// A client's trace context, if there is exactly one and it is valid (W3C Trace Context, version 00 or later).
fn kept_traceparent(head: &RequestHead) -> Option<&[u8]> {
    let mut all = head.fields.headers.iter().filter(|header| header.kind == Kind::Traceparent);
    let parent = all.next()?.value.get(head.bytes());
    let hex =
        |range: std::ops::Range<usize>| parent[range].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let valid = all.next().is_none()
        && (parent.len() == 55 || parent.len() > 55 && &parent[..2] != b"00" && parent[55] == b'-')
        && (parent[2], parent[35], parent[52]) == (b'-', b'-', b'-')
        && hex(0..2)
        && hex(3..35)
        && hex(36..52)
        && hex(53..55)
        && &parent[..2] != b"ff"
        && parent[3..35].iter().any(|&byte| byte != b'0')
        && parent[36..52].iter().any(|&byte| byte != b'0');
    valid.then_some(parent)
}

/// What the gateway adds to a request.
pub(crate) struct Additions<'a> {
    pub(crate) policy: &'a Policy,
    /// By which the route matched.
    pub(crate) prefix: Option<&'a str>,
    pub(crate) origin: &'a Origin,
    /// What the instance is spoken to with.
    pub(crate) upstream_scheme: &'static str,
    /// The client wants to speak something else from here on.
    pub(crate) upgrade: bool,
    pub(crate) identity: &'a Identity,
    /// Of the primary that gets it.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) instance: SocketAddr,
    pub(crate) trailers: bool,
    /// How much of the request's time is left.
    pub(crate) left: Option<Duration>,
}

/// Writes a request's head for an instance.
pub(crate) fn write_request(out: &mut Vec<u8>, head: &RequestHead, add: &Additions<'_>) {
    let bytes = head.bytes();
    out.extend_from_slice(head.method());
    out.push(b' ');
    push_target(out, head, add.policy.path.as_ref(), add.prefix);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    match add.policy.host.as_ref().map_or(head.authority(), |host| host.as_bytes()) {
        b"" => out.extend_from_slice(add.instance.to_string().as_bytes()),
        authority => out.extend_from_slice(authority),
    }
    out.extend_from_slice(b"\r\n");
    for header in &head.fields.headers {
        let passes = match header.kind {
            Kind::Other | Kind::Accept => {
                !head.fields.is_named(bytes, header.name) && !add.policy.request.drops(header.name.get(bytes))
            }
            Kind::ForwardedOther => add.origin.trusted,
            Kind::Expect => head.expects_continue(),
            Kind::Tracestate => add.identity.traceparent.is_none(),
            _ => false,
        };
        if passes {
            push_field(out, header.name.get(bytes), header.value.get(bytes));
        }
    }
    for (name, value) in add.policy.request.written() {
        push_field(out, name, value);
    }
    match head.framing() {
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        _ => {
            if let Some(length) = head.fields.content_length {
                push_length(out, length);
            }
        }
    }
    if add.upgrade {
        let wanted = head.fields.first(Kind::Upgrade).map(|value| value.get(bytes)).unwrap_or_default();
        out.extend_from_slice(b"Connection: Upgrade\r\n");
        push_field(out, b"Upgrade", wanted);
    } else if add.trailers && head.fields.te_trailers {
        out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
    }
    if let Some(left) = add.left {
        push_timeout(out, head, left);
    }
    push_forwarded(out, head, add);
    push_field(out, b"X-Request-Id", add.identity.request_id(head));
    push_field(out, b"traceparent", add.identity.traceparent(head));
    if let Some(epoch) = add.epoch {
        out.extend_from_slice(b"Seawall-Epoch: ");
        push_decimal(out, epoch.0);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// What is left of the request's time, rounded down, so that the instance gives up before the gateway does.
fn push_timeout(out: &mut Vec<u8>, head: &RequestHead, left: Duration) {
    let bytes = head.bytes();
    let is_grpc = |header: &Header| {
        header.kind == Kind::GrpcTimeout
            || (header.name.get(bytes).eq_ignore_ascii_case(b"content-type")
                && header.value.get(bytes).starts_with(b"application/grpc"))
    };
    let is_grpc = head.fields.headers.iter().any(is_grpc);
    let left = if is_grpc { left.saturating_sub(GRPC_GRACE) } else { left };
    let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    out.extend_from_slice(b"X-Request-Timeout-Ms: ");
    push_decimal(out, left_ms);
    out.extend_from_slice(b"\r\n");
    if is_grpc {
        out.extend_from_slice(b"grpc-timeout: ");
        // At most 8 digits.
        match left_ms {
            0..=99_999_999 => push_decimal(out, left_ms),
            _ => push_decimal(out, (left_ms / 1000).min(99_999_999)),
        }
        out.extend_from_slice(if left_ms <= 99_999_999 { b"m\r\n" } else { b"S\r\n" });
    }
}

fn push_forwarded(out: &mut Vec<u8>, head: &RequestHead, add: &Additions<'_>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    let said = |kind| {
        let copies = head.fields.headers.iter().filter(move |header| add.origin.trusted && header.kind == kind);
        copies.map(|header| header.value.get(head.bytes())).filter(|value| !value.is_empty())
    };
    for copy in said(Kind::ForwardedFor) {
        out.extend_from_slice(copy);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(add.origin.peer_text.as_bytes());
    let scheme = said(Kind::ForwardedProto).next().unwrap_or(add.origin.scheme.as_bytes());
    out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
    out.extend_from_slice(scheme);
    out.extend_from_slice(b"\r\n");
    let host = said(Kind::ForwardedHost).next().unwrap_or(head.authority());
    if !host.is_empty() {
        push_field(out, b"X-Forwarded-Host", host);
    }
}

/// How a response's body goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// No body, or as many bytes as the instance said.
    Plain,
    /// In chunks.
    Chunked,
    /// Until the connection ends, for a client that knows no chunks.
    UntilClose,
    /// None: the connection becomes a tunnel.
    Upgrade,
}

impl Delivery {
    pub(crate) fn of(framing: Framing, client: Version) -> Self {
        match (framing, client) {
            (Framing::None | Framing::Length(_), _) => Self::Plain,
            (_, Version::Http11) => Self::Chunked,
            (_, Version::Http10) => Self::UntilClose,
        }
    }
}

/// Whether a field of an answer is the client's to see. `Seawall-*` is the gateway's own word: a client must know who
/// gave the reason it reads.
pub(crate) fn field_passes(fields: &Fields, bytes: &[u8], header: &Header) -> bool {
    header.kind != Kind::Seawall && is_end_to_end(fields, bytes, header)
}

/// Whether a field is not of its connection alone.
pub(crate) fn is_end_to_end(fields: &Fields, bytes: &[u8], header: &Header) -> bool {
    let hop = matches!(header.kind, Kind::Hop | Kind::Te | Kind::Upgrade | Kind::Connection | Kind::TransferEncoding);
    !hop && !fields.is_named(bytes, header.name)
}

/// Writes a response's head for a client. `keep` says whether the connection stays open afterwards.
pub(crate) fn write_response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    bytes: &[u8],
    delivery: Delivery,
    client: Version,
    keep: bool,
    edits: &HeaderEdits,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_decimal(out, u64::from(head.status));
    out.push(b' ');
    out.extend_from_slice(head.reason.get(bytes));
    out.extend_from_slice(b"\r\n");
    let interim = head.status < 200;
    // A length belongs to a body, or tells of one (HEAD, 304); beside chunks, 1xx and 204 it would lie.
    let length_passes = delivery == Delivery::Plain && !interim && head.status != 204;
    for header in &head.fields.headers {
        let passes = match header.kind {
            Kind::ContentLength => length_passes,
            Kind::Upgrade => delivery == Delivery::Upgrade,
            _ => field_passes(&head.fields, bytes, header) && !edits.drops(header.name.get(bytes)),
        };
        if passes {
            push_field(out, header.name.get(bytes), header.value.get(bytes));
        }
    }
    for (name, value) in edits.written() {
        push_field(out, name, value);
    }
    if delivery == Delivery::Upgrade {
        out.extend_from_slice(b"Connection: Upgrade\r\n");
    } else if !interim {
        if delivery == Delivery::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        push_connection(out, client, keep);
    }
    out.extend_from_slice(b"\r\n");
}

/// `Connection`, where the version's own rule does not say it already.
pub(crate) fn push_connection(out: &mut Vec<u8>, client: Version, keep: bool) {
    match (client, keep) {
        (_, false) => out.extend_from_slice(b"Connection: close\r\n"),
        (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (Version::Http11, true) => {}
    }
}

/// What is left of a rate: draft-ietf-httpapi-ratelimit-headers, 06 (the newest with three fields).
pub(crate) fn push_left(out: &mut Vec<u8>, left: Left) {
    for (name, number) in left.fields() {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        push_decimal(out, number);
        out.extend_from_slice(b"\r\n");
    }
}

/// Adds that to a head that was written whole, unless the instance has said what is left of a rate of its own.
pub(crate) fn add_left(out: &mut Vec<u8>, left: Left) {
    out.truncate(out.len().saturating_sub(2));
    push_left(out, left);
    out.extend_from_slice(b"\r\n");
}

/// Whether an instance's answer says what is left of a rate.
pub(crate) fn tells_left(fields: &Fields, bytes: &[u8]) -> bool {
    let begins = |header: &Header| {
        let name = header.name.get(bytes);
        name.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"ratelimit-"))
    };
    fields.headers.iter().any(begins)
}

pub(crate) fn push_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    push_decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Trailers that may go on: nothing that frames, routes, authenticates or belongs to the gateway (RFC 9110, 6.5.1).
pub(crate) fn trailer_passes(name: &[u8]) -> bool {
    const FORBIDDEN: [&str; 14] = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "host",
        "max-forwards",
        "pragma",
        "range",
        "set-cookie",
        "age",
        "location",
        "retry-after",
    ];
    Kind::of(name) == Kind::Other && !FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::{Additions, Identity, Origin, Policy, trailer_passes, write_request};
    use crate::http1::{Limits, RequestHead};
    use model::Epoch;

    fn forwarded(head: &str) -> String {
        forwarded_by(false, head)
    }

    fn forwarded_by(trusted: bool, head: &str) -> String {
        let mut request = RequestHead::default();
        request.parse(head.as_bytes(), &Limits::default()).unwrap();
        let mut count = 0;
        let identity = Identity::of(&request, || {
            count += 1;
            count
        });
        let mut origin = Origin::new(([10, 0, 0, 9], 1).into());
        origin.trusted = trusted;
        let add = Additions {
            policy: &Policy::default(),
            prefix: None,
            origin: &origin,
            upstream_scheme: "http",
            upgrade: request.wants_upgrade(),
            identity: &identity,
            epoch: Some(Epoch(42)),
            instance: ([127, 0, 0, 1], 81).into(),
            trailers: false,
            left: None,
        };
        let mut out = Vec::new();
        write_request(&mut out, &request, &add);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_a_client_may_not_say_is_dropped_or_replaced() {
        let text = forwarded(
            "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /x\r\nForwarded: for=x\r\nSeawall-Epoch: 99\r\nSEAWALL_epoch: 9\r\n\
             Connection: x-drop, close\r\nX-Drop: 1\r\nX-Keep: 2\r\nTE: gzip\r\nUpgrade: h2c\r\n\r\n",
        );
        assert_eq!(
            text,
            "GET / HTTP/1.1\r\nHost: h\r\nX-Keep: 2\r\nX-Forwarded-For: 10.0.0.9\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Host: h\r\nX-Request-Id: 00000000000000010000000000000002\r\n\
             traceparent: 00-00000000000000030000000000000004-0000000000000005-01\r\nSeawall-Epoch: 42\r\n\r\n"
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed() {
        let text = forwarded_by(
            true,
            "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop\r\nForwarded: for=x\r\n\r\n",
        );
        assert!(
            text.contains(
                "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop\r\n"
            ),
            "{text}"
        );
        assert!(!text.contains("for=x"), "{text}");
    }

    #[test]
    fn an_upgrade_is_offered_on_but_never_to_http2() {
        let ask = |what: &str| {
            forwarded(&format!(
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {what}\r\n\r\n"
            ))
        };
        assert!(ask("websocket").contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
        for refused in ["h2c", "H2C", "websocket, h2c"] {
            assert!(!ask(refused).to_ascii_lowercase().contains("upgrade"), "{refused}");
        }
    }

    #[test]
    fn identity_is_kept_if_valid() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let text = forwarded(&format!(
            "GET / HTTP/1.1\r\nHost: h\r\ntraceparent: {parent}\r\ntracestate: a=b\r\nX-Request-Id: me-1\r\n\r\n"
        ));
        for line in [&format!("traceparent: {parent}"), "tracestate: a=b", "X-Request-Id: me-1"] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        for bad in [
            "00-00000000000000000000000000000000-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-x",
            "short",
        ] {
            let text =
                forwarded(&format!("GET / HTTP/1.1\r\nHost: h\r\ntraceparent: {bad}\r\ntracestate: a=b\r\n\r\n"));
            assert!(!text.contains(bad) && !text.contains("tracestate"), "{bad} passed in {text}");
        }
    }

    #[test]
    fn trailers() {
        for (name, passes) in
            [("x-checksum", true), ("Content-Length", false), ("Seawall-Epoch", false), ("Host", false)]
        {
            assert_eq!(trailer_passes(name.as_bytes()), passes, "{name}");
        }
    }
}
