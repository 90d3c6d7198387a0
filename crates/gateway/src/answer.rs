//! Answers the gateway makes itself: small, with a length, and with the reason in `Seawall-Reason`; the body may be a
//! page of the user's. The fallback step of the request walk, and what a malformed head gets.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use crate::connection::Client;
use crate::front::Front;
use crate::guards::{Fallback, KeptAnswer, Left};
use crate::heads::{push_connection, push_left, push_length};
use crate::http1::{Bad, Kind, Span, Version};
use crate::options::ErrorPage;
use crate::policy::HeaderEdits;
use crate::text::push_decimal;
use crate::worker::Worker;

/// An answer and why it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The word in `Seawall-Reason`.
    pub(crate) reason: &'static str,
    /// What exactly, for `bad-request`; empty otherwise.
    pub(crate) detail: &'static str,
    /// After how many seconds trying again makes sense; zero: nobody knows.
    retry_after: u32,
    /// The rate that was exceeded, in requests.
    limit: Option<u32>,
}

impl Answer {
    pub(crate) const NO_ROUTE: Self = Self::new(404, "no-route");
    pub(crate) const ROUTES_UNKNOWN: Self = Self { retry_after: 1, ..Self::new(503, "routes-unknown") };
    pub(crate) const NO_INSTANCE: Self = Self { retry_after: 1, ..Self::new(503, "no-ready-instance") };
    pub(crate) const INSTANCES_FULL: Self = Self { retry_after: 1, ..Self::new(503, "instances-full") };
    pub(crate) const HELD_TOO_LONG: Self = Self { retry_after: 1, ..Self::new(503, "held-too-long") };
    pub(crate) const HOLD_FULL: Self = Self { retry_after: 1, ..Self::new(503, "hold-full") };
    pub(crate) const PENDING_FULL: Self = Self { retry_after: 1, ..Self::new(503, "too-many-requests-pending") };
    pub(crate) const TOO_MANY_AT_ONCE: Self = Self { retry_after: 1, ..Self::new(503, "too-many-at-once") };
    pub(crate) const PENDING_TOO_LONG: Self = Self { retry_after: 1, ..Self::new(503, "pending-too-long") };
    /// A place is for those that matter more.
    pub(crate) const SHED: Self = Self { retry_after: 1, ..Self::new(503, "shed") };
    pub(crate) const TIMEOUT: Self = Self::new(504, "timeout");
    /// An answer that was to be repeated, when too many others were being repeated.
    pub(crate) const OVER_BUDGET: Self = Self { retry_after: 1, ..Self::new(503, "retry-budget") };
    pub(crate) const CONNECT_FAILED: Self = Self::new(502, "connect-failed");
    pub(crate) const INSTANCE_CLOSED: Self = Self::new(502, "instance-closed");
    pub(crate) const HEAD_TIMEOUT: Self = Self { detail: "head-timeout", ..Self::new(408, "bad-request") };
    pub(crate) const BODY_TIMEOUT: Self = Self { detail: "body-timeout", ..Self::new(408, "bad-request") };

    const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason, detail: "", retry_after: 0, limit: None }
    }

    /// For a service that gets no requests for so long.
    pub(crate) fn breaker_open(left: Duration) -> Self {
        Self { retry_after: whole_seconds(left), ..Self::new(503, "breaker-open") }
    }

    /// For a client that comes too often; after so long one request would be let through.
    pub(crate) fn rate_limited(limit: u32, after: Duration) -> Self {
        Self { retry_after: whole_seconds(after), limit: Some(limit), ..Self::new(429, "rate-limited") }
    }

    /// For a gateway that has too much to do.
    pub(crate) const fn overloaded(what: &'static str) -> Self {
        Self { retry_after: 1, detail: what, ..Self::new(503, "overloaded") }
    }

    /// For an instance that is not whom it should be.
    pub(crate) const fn distrusted(why: &'static str) -> Self {
        Self { detail: why, ..Self::new(502, "instance-tls") }
    }

    /// For a client that is sent elsewhere.
    pub(crate) const fn redirect(status: u16) -> Self {
        Self::new(status, "redirect")
    }

    /// For a request that gets a fault on purpose.
    pub(crate) const fn fault(status: u16) -> Self {
        Self::new(status, "fault")
    }

    /// For a route that has a fixed answer.
    pub(crate) const FIXED: Self = Self::new(200, "fixed");

    /// For a browser that asks what a page may do.
    pub(crate) const PREFLIGHT: Self = Self::new(200, "cors-preflight");

    /// For an authority that looks whether a name leads here.
    pub(crate) const CHALLENGE: Self = Self::new(200, "acme-challenge");

    /// For a client that sent something no HTTP/1.1 server should guess about.
    pub(crate) const fn bad(bad: Bad) -> Self {
        Self { detail: bad.why, ..Self::new(bad.status, "bad-request") }
    }

    /// For an instance that answered something no client should get.
    pub(crate) const fn bad_response(why: &'static str) -> Self {
        Self { detail: why, ..Self::new(502, "bad-response") }
    }

    fn write(&self, out: &mut Vec<u8>, date: &str, form: &Form<'_>, keep: bool) {
        let status = match (form.fallback, form.kept) {
            (Some(fallback), _) => fallback.status,
            (None, Some(_)) => 200,
            (None, None) => self.status,
        };
        out.extend_from_slice(b"HTTP/1.1 ");
        push_decimal(out, u64::from(status));
        out.push(b' ');
        out.extend_from_slice(phrase(status).as_bytes());
        if form.kept.is_none() {
            out.extend_from_slice(b"\r\nDate: ");
            out.extend_from_slice(date.as_bytes());
        }
        out.extend_from_slice(b"\r\nSeawall-Reason: ");
        self.push_reason(out);
        if let Some(fallback) = form.fallback {
            return fallback.write(out, form, keep);
        }
        if let Some(kept) = form.kept {
            return kept.write(out, form, keep);
        }
        let kind: &[u8] = match (form.page, form.json) {
            (Some(page), _) => page.content_type.as_bytes(),
            (None, true) => b"application/json",
            (None, false) => b"text/plain; charset=utf-8",
        };
        out.extend_from_slice(b"\r\nContent-Type: ");
        out.extend_from_slice(kind);
        out.extend_from_slice(b"\r\n");
        if let Some(location) = form.location {
            out.extend_from_slice(b"Location: ");
            out.extend_from_slice(location);
            out.extend_from_slice(b"\r\n");
        }
        if self.retry_after > 0 {
            out.extend_from_slice(b"Retry-After: ");
            push_decimal(out, self.retry_after.into());
            out.extend_from_slice(b"\r\n");
        }
        if let Some(limit) = self.limit {
            push_left(out, Left { limit, remaining: 0, reset: self.retry_after });
        }
        let mut body = Vec::with_capacity(96);
        match form.page {
            Some(page) => body.extend_from_slice(&page.body),
            None => self.write_body(&mut body, form.json),
        }
        push_length(out, body.len() as u64);
        push_connection(out, form.version, keep);
        out.extend_from_slice(b"\r\n");
        if !form.to_head {
            out.extend_from_slice(&body);
        }
    }

    fn push_reason(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.reason.as_bytes());
        if !self.detail.is_empty() {
            out.push(b':');
            out.extend_from_slice(self.detail.as_bytes());
        }
    }

    fn write_body(&self, out: &mut Vec<u8>, json: bool) {
        if json {
            out.extend_from_slice(b"{\"status\":");
            push_decimal(out, u64::from(self.status));
            out.extend_from_slice(b",\"reason\":\"");
            self.push_reason(out);
            out.extend_from_slice(b"\"}\n");
        } else {
            push_decimal(out, u64::from(self.status));
            out.push(b' ');
            out.extend_from_slice(phrase(self.status).as_bytes());
            out.extend_from_slice(b": ");
            self.push_reason(out);
            out.push(b'\n');
        }
    }
}

/// What a client can take.
struct Form<'a> {
    version: Version,
    json: bool,
    to_head: bool,
    location: Option<&'a [u8]>,
    /// The user's own.
    page: Option<&'a ErrorPage>,
    /// Instead of everything but the reason.
    fallback: Option<&'a Fallback>,
    /// The same.
    kept: Option<&'a KeptAnswer>,
}

impl KeptAnswer {
    /// The rest of a head behind `Seawall-Reason`, and the body. Its `Date` is the one it came with.
    fn write(&self, out: &mut Vec<u8>, form: &Form<'_>, keep: bool) {
        out.extend_from_slice(b"\r\nAge: ");
        push_decimal(out, self.age(Instant::now()));
        // RFC 7234, 5.5.1.
        out.extend_from_slice(b"\r\nWarning: 110 - \"Response is Stale\"\r\n");
        out.extend_from_slice(&self.fields);
        push_length(out, self.body.len() as u64);
        push_connection(out, form.version, keep);
        out.extend_from_slice(b"\r\n");
        if !form.to_head {
            out.extend_from_slice(&self.body);
        }
    }
}

impl Fallback {
    /// The rest of a head behind `Seawall-Reason`, and the body.
    fn write(&self, out: &mut Vec<u8>, form: &Form<'_>, keep: bool) {
        out.extend_from_slice(b"\r\n");
        for (name, value) in &self.headers {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        // RFC 9110, 8.6: 204 has no length.
        if self.status != 204 {
            push_length(out, self.body.len() as u64);
        }
        push_connection(out, form.version, keep);
        out.extend_from_slice(b"\r\n");
        if !form.to_head && self.status != 204 {
            out.extend_from_slice(&self.body);
        }
    }
}

/// What an answer carries besides its reason.
#[derive(Clone, Copy)]
pub(crate) enum With<'a> {
    /// Its own words, or the user's page.
    Words,
    /// The same, and where else to go.
    Location(&'a [u8]),
    /// This body, for everybody.
    Body(&'a ErrorPage),
    /// The service's own instead, with the reason.
    Fallback(&'a Fallback),
    /// What the service answered some time ago, with the reason.
    Kept(&'a KeptAnswer),
}

/// Sends an answer; `keep` says whether the connection stays open. False if the client did not take it.
pub(crate) async fn send<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    answer: &Answer,
    with: With<'_>,
    keep: bool,
) -> bool {
    let head = &client.head;
    let accepts = head.fields.first(Kind::Accept).map(|accept| accept.get(head.bytes())).unwrap_or_default();
    let json = prefers_json(accepts);
    let pages = &worker.options.error_pages;
    let mut form = Form {
        version: head.version(),
        json,
        to_head: head.method() == b"HEAD",
        location: None,
        page: None,
        fallback: None,
        kept: None,
    };
    match with {
        With::Body(body) => form.page = Some(body),
        With::Words => form.page = pages.iter().find(|page| !json && page.is_for(answer.status)),
        With::Location(location) => form.location = Some(location),
        With::Fallback(fallback) => form.fallback = Some(fallback),
        With::Kept(kept) => form.kept = Some(kept),
    }
    let out = &mut client.download.staged;
    out.clear();
    answer.write(out, worker.date.borrow_mut().at(SystemTime::now()), &form, keep);
    if S::MULTIPLEXED && !begin_frames(worker, client) {
        return false;
    }
    let until = Instant::now() + worker.options.stall_timeout;
    let mut sent = 0;
    poll_fn(|cx| {
        while sent < client.download.staged.len() {
            match Pin::new(&mut client.stream).poll_write(cx, &client.download.staged[sent..]) {
                Poll::Ready(Ok(count @ 1..)) => sent += count,
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return client.timer.poll_at(cx, Some(until)).map(|()| false),
            }
        }
        client.stream.poll_finish(cx, &[]).map(|finished| finished.is_ok())
    })
    .await
}

/// Whether an `Accept` names JSON, and not below HTML (RFC 9110, 12.5.1).
fn prefers_json(accept: &[u8]) -> bool {
    let weight = |media_type: &[u8]| {
        let weights = accept.split(|&byte| byte == b',').filter_map(|item| {
            let mut parts = item.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type));
            let q = parts.find_map(|part| part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")));
            let q = q.map_or(Some(1.0), |q| std::str::from_utf8(q).ok()?.parse::<f32>().ok());
            q.filter(|_| named)
        });
        weights.fold(0.0, f32::max)
    };
    let json = weight(b"application/json");
    json > 0.0 && json >= weight(b"text/html")
}

/// Sends the head of a staged answer in frames and leaves its body staged.
fn begin_frames<S: Front>(worker: &Worker, client: &mut Client<S>) -> bool {
    let staged = std::mem::take(&mut client.download.staged);
    let Some(end) = staged.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let (head, body) = staged.split_at(end + 4);
    let understood = client.response.parse(head, body.is_empty(), &worker.options.limits);
    client.download.staged = body.to_vec();
    // Fields of the gateway's own pass as what it adds.
    let own = client.response.fields.headers.iter().filter(|header| header.kind == Kind::Seawall);
    let text = |span: Span| String::from_utf8_lossy(span.get(head)).into_owned();
    let add = own.map(|header| (text(header.name), text(header.value))).collect();
    let edits = HeaderEdits { add, ..HeaderEdits::default() };
    understood.is_ok() && client.stream.begin(&client.response, head, body.is_empty(), &edits).is_ok()
}

/// Seconds for `Retry-After`: whole ones, at least one.
fn whole_seconds(left: Duration) -> u32 {
    let up = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    u32::try_from(up).unwrap_or(u32::MAX).max(1)
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Form, prefers_json};
    use crate::http1::{Bad, Version};

    #[test]
    fn json_is_for_those_who_prefer_it() {
        for (accept, want) in [
            ("application/json", true),
            ("text/plain, Application/JSON;q=0.5", true),
            ("application/json;q=0", false),
            ("application/json;q=0.0, */*", false),
            ("text/html, application/json;q=0.9", false),
            ("text/html;q=0.5, application/json;q=0.9", true),
            ("application/json;q=x", false),
            ("application/json-patch", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(prefers_json(accept.as_bytes()), want, "{accept}");
        }
    }

    #[test]
    fn forms() {
        let write = |answer: Answer, form| {
            let mut out = Vec::new();
            answer.write(&mut out, "D", &form, false);
            String::from_utf8(out).unwrap()
        };
        let form = |json, to_head| Form {
            version: Version::Http11,
            json,
            to_head,
            location: None,
            page: None,
            fallback: None,
            kept: None,
        };
        assert_eq!(
            write(Answer::bad(Bad::request("bare-lf")), form(false, false)),
            "HTTP/1.1 400 Bad Request\r\nDate: D\r\nSeawall-Reason: bad-request:bare-lf\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 37\r\nConnection: close\r\n\r\n\
             400 Bad Request: bad-request:bare-lf\n"
        );
        let json = write(Answer::NO_INSTANCE, form(true, false));
        assert!(json.ends_with("\r\n\r\n{\"status\":503,\"reason\":\"no-ready-instance\"}\n"), "{json}");
        assert!(json.contains("Retry-After: 1\r\n"), "{json}");
        let to_head = write(Answer::NO_ROUTE, form(false, true));
        assert!(to_head.contains("Content-Length: 24\r\n") && to_head.ends_with("\r\n\r\n"), "{to_head}");
    }
}
