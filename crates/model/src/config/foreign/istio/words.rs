//! Istio's and Envoy's words for methods, schemes, failures and faults in our own.

use super::super::super::{Condition, CorsPolicy, Fault, FaultAbort, FaultDelay, RequestScheme, Retry, RetryOn};
use super::refuse;
use super::shapes::{Cors, HttpFault, HttpRetries};
use crate::diagnostic::{Diagnostics, Place};

/// Whether a name is meant by a host of a VirtualService.
pub(super) fn is_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(end) => host.len() > end.len() && host.ends_with(end),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// The scheme that is meant; both: none is asked for.
pub(super) fn scheme(wanted: &Condition, place: Place, diagnostics: &mut Diagnostics) -> Option<Option<RequestScheme>> {
    let is = |scheme: &str| match wanted {
        Condition::Exact(exact) => exact == scheme,
        Condition::Prefix(prefix) => scheme.starts_with(prefix.as_str()),
        Condition::Regex(expression) => {
            alternatives(expression).is_some_and(|words| words.contains(&scheme.to_owned()))
        }
        Condition::Present => true,
    };
    match (is("http"), is("https")) {
        (true, true) => Some(None),
        (true, false) => Some(Some(RequestScheme::Http)),
        (false, true) => Some(Some(RequestScheme::Https)),
        (false, false) => {
            diagnostics.error(place, "a scheme that no client comes by", "exact: http, or exact: https");
            None
        }
    }
}

/// The methods that are meant.
pub(super) fn methods(wanted: &Condition, place: Place, diagnostics: &mut Diagnostics) -> Option<Vec<String>> {
    let words = match wanted {
        Condition::Exact(method) => Some(vec![method.clone()]),
        Condition::Regex(expression) => alternatives(expression),
        Condition::Prefix(_) => None,
        Condition::Present => Some(Vec::new()),
    };
    if words.is_none() {
        let message = "`method` by its beginning, or by an expression, has no counterpart here";
        diagnostics.error(place, message, "exact: GET, or regex: GET|POST");
    }
    words
}

/// The words of an expression that is nothing but a choice.
fn alternatives(expression: &str) -> Option<Vec<String>> {
    let bare = expression.trim_start_matches('^').trim_end_matches('$');
    let bare = bare.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(bare);
    let words: Vec<String> = bare.split('|').map(str::to_owned).collect();
    let plain = |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
    words.iter().all(plain).then_some(words)
}

/// What is repeated.
pub(super) fn retry(written: &HttpRetries, diagnostics: &mut Diagnostics) -> Retry {
    refuse(&written.at, &["retryRemoteLocalities"], diagnostics);
    if !written.retry_ignore_previous_hosts {
        let message = "`retryIgnorePreviousHosts: false`: another instance is taken if there is one";
        diagnostics.error(written.at.field("retryIgnorePreviousHosts"), message, "leave it out");
    }
    // Istio's default is connect-failure, refused-stream, unavailable, cancelled; the last two are of gRPC's answers.
    let said = written.retry_on.as_deref().unwrap_or("connect-failure,refused-stream");
    let mut on = Vec::new();
    for word in said.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "5xx" => on.push(RetryOn::ServerError),
            "gateway-error" => on.push(RetryOn::GatewayError),
            "reset" | "reset-before-request" => on.push(RetryOn::Reset),
            "connect-failure" => on.push(RetryOn::ConnectFailure),
            "retriable-4xx" => on.push(RetryOn::Retriable4xx),
            "refused-stream" => on.push(RetryOn::RefusedStream),
            "500" => on.push(RetryOn::Http500),
            "502" => on.push(RetryOn::Http502),
            "503" => on.push(RetryOn::Http503),
            "504" => on.push(RetryOn::Http504),
            "403" => on.push(RetryOn::Http403),
            "404" => on.push(RetryOn::Http404),
            "429" => on.push(RetryOn::Http429),
            // It only says that the numbers beside it count.
            "retriable-status-codes" => {}
            _ => {
                let message = format!("`{word}` in `retryOn` has no counterpart here");
                let cure = "5xx, gateway-error, reset, connect-failure, refused-stream, retriable-4xx, or a status";
                diagnostics.error(written.at.field("retryOn"), message, cure);
            }
        }
    }
    // Envoy asks for no method where an answer is repeated.
    let safe = [RetryOn::ConnectFailure, RetryOn::RefusedStream];
    if on.iter().any(|word| !safe.contains(word)) {
        on.push(RetryOn::NonIdempotent);
    }
    if on.is_empty() {
        on.push(RetryOn::ConnectFailure);
    }
    Retry {
        attempts: written.attempts,
        on,
        per_try_timeout: written.per_try_timeout.filter(|time| !time.is_zero()),
        backoff: written.backoff,
        within: None,
        at: written.at.renamed(&[("attempts", "attempts"), ("retryOn", "on"), ("perTryTimeout", "perTryTimeout")]),
    }
}

/// What is done on purpose, if it is done to any request.
pub(super) fn fault(written: &HttpFault, diagnostics: &mut Diagnostics) -> Option<Fault> {
    let mut none = |at: Place| {
        let message = "no percentage: no request gets this fault, as in Istio";
        diagnostics.warning(at, message, "add percentage: { value: 10 }");
    };
    let delay = written.delay.as_ref().and_then(|delay| {
        let Some(percent) = delay.percentage.as_ref().map(|part| part.value).or(delay.percent) else {
            none(delay.at.whole);
            return None;
        };
        let at = delay.at.renamed(&[("fixedDelay", "for"), ("percentage", "percent"), ("percent", "percent")]);
        Some(FaultDelay { wait: delay.fixed_delay, percent, at })
    });
    let abort = written.abort.as_ref().and_then(|abort| {
        let status = abort.http_status?;
        let Some(percent) = abort.percentage.as_ref().map(|part| part.value) else {
            none(abort.at.whole);
            return None;
        };
        let at = abort.at.renamed(&[("httpStatus", "status"), ("percentage", "percent")]);
        Some(FaultAbort { status, percent, at })
    });
    if let Some(delay) = &written.delay {
        refuse(&delay.at, &["exponentialDelay"], diagnostics);
    }
    if let Some(abort) = &written.abort {
        refuse(&abort.at, &["grpcStatus", "http2Error"], diagnostics);
        if abort.http_status.is_none() && !abort.at.has("grpcStatus") && !abort.at.has("http2Error") {
            diagnostics.error(abort.at.whole, "an abort without `httpStatus`", "add httpStatus: 503");
        }
    }
    let at = written.at.renamed(&[("delay", "delay"), ("abort", "abort")]);
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort, at })
}

/// Envoy's filter forwards preflights of origins that are not allowed; nothing else is done here.
pub(super) fn cors(written: &Cors, diagnostics: &mut Diagnostics) -> CorsPolicy {
    if let Some(word) =
        written.unmatched_preflights.as_deref().filter(|word| !matches!(*word, "FORWARD" | "UNSPECIFIED"))
    {
        let message = format!("`unmatchedPreflights: {word}` has no counterpart here");
        diagnostics.error(written.at.field("unmatchedPreflights"), message, "FORWARD, or leave it out");
    }
    let before = written.allow_origin.iter().cloned().map(Condition::Exact);
    CorsPolicy {
        origins: written.allow_origins.iter().map(|origin| origin.0.clone()).chain(before).collect(),
        methods: written.allow_methods.clone(),
        headers: written.allow_headers.clone(),
        expose_headers: written.expose_headers.clone(),
        max_age: written.max_age,
        credentials: written.allow_credentials,
        at: written.at.renamed(&[
            ("allowOrigins", "origins"),
            ("allowOrigin", "origins"),
            ("allowMethods", "methods"),
            ("allowHeaders", "headers"),
            ("exposeHeaders", "exposeHeaders"),
            ("maxAge", "maxAge"),
        ]),
    }
}
