//! The key-value store over HTTP. The write walk begins here: API -> `Store::txn` -> commit -> revision -> reply.
//! Keys of users live under a prefix of their own, so that no request can touch control state.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use data::{
    Compare, Consistency, Event, Key, KeyRange, KeyValue, MAX_KEY_BYTES, MAX_VALUE_BYTES, Op, OpResult, RangeRequest,
    Revision, Txn, TxnOutcome, WatchItem,
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Context;
use crate::fence::Fence;
use crate::problem::Problem;
use crate::query::{Known, Parameters};

/// In front of every key of a user.
const PREFIX: &str = data::USER_KEYS;
/// The longest key of a user, in bytes: the prefix stands in front of it in the store.
const MAX_KEY: usize = MAX_KEY_BYTES - PREFIX.len();
/// The most keys of one answer.
const MAX_KEYS: usize = 10_000;

/// Query parameters of a read.
#[derive(Debug, Default, Deserialize)]
pub struct Reading {
    /// All keys that begin with this one.
    #[serde(default)]
    prefix: bool,
    /// At most so many keys.
    limit: Option<usize>,
    /// Answer from what this node has applied, even when the store does not serve.
    #[serde(default)]
    stale: bool,
    /// The same in a word: `linearizable` (the default) or `stale`.
    #[serde(default)]
    consistency: Freshness,
    /// Follow changes as server-sent events.
    #[serde(default)]
    watch: bool,
    /// Follow changes from this revision on.
    from: Option<u64>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Freshness {
    /// It sees every write acknowledged before it began.
    #[default]
    Linearizable,
    /// What this node has applied.
    Stale,
}

impl Known for Reading {
    const NAMES: &'static [&'static str] = &["prefix", "limit", "stale", "consistency", "watch", "from"];
}

/// Query parameters of a write.
#[derive(Debug, Default, Deserialize)]
pub struct Writing {
    /// Only if the key was last modified at this revision; 0: only if it does not exist.
    cas: Option<u64>,
}

impl Known for Writing {
    const NAMES: &'static [&'static str] = &["cas"];
}

/// Query parameters of a removal.
#[derive(Debug, Default, Deserialize)]
pub struct Removing {
    /// Only if the key was last modified at this revision.
    cas: Option<u64>,
    /// All keys that begin with this one.
    #[serde(default)]
    prefix: bool,
}

impl Known for Removing {
    const NAMES: &'static [&'static str] = &["cas", "prefix"];
}

/// GET: a value, a range, or a watch.
pub async fn read(
    State(context): State<Context>,
    Path(key): Path<String>,
    Parameters(options): Parameters<Reading>,
) -> Response {
    answer(read_key(&context, &key, &options).await)
}

/// GET of one key, without parameters.
pub async fn get(context: &Context, key: &str) -> Response {
    answer(read_key(context, key, &Reading::default()).await)
}

/// PUT of one key, without parameters.
pub async fn put_plain(context: &Context, key: &str, fence: Option<Fence>, value: Bytes) -> Response {
    put(context, key, &Writing::default(), fence, value).await.unwrap_or_else(|answer| answer)
}

/// GET without a key: all of them.
pub async fn read_all(State(context): State<Context>, Parameters(options): Parameters<Reading>) -> Response {
    let options = Reading { prefix: true, ..options };
    answer(read_key(&context, "", &options).await)
}

fn answer(result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(IntoResponse::into_response)
}

async fn read_key(context: &Context, key: &str, options: &Reading) -> Result<Response, Problem> {
    let range = range_of(key, options.prefix)?;
    if options.watch {
        return watch(context, range, options.from);
    }
    let stale = options.stale || options.consistency == Freshness::Stale;
    let consistency = if stale { Consistency::Stale } else { Consistency::Linearizable };
    let limit = if options.prefix { options.limit.unwrap_or(1000).min(MAX_KEYS) } else { 1 };
    let found = context.store.range(RangeRequest::new(range).limit(limit), consistency).await?;
    if options.prefix {
        let kvs: Vec<Value> = found.kvs.iter().map(describe).collect();
        return Ok(Json(json!({ "revision": found.revision.0, "more": found.more, "kvs": kvs })).into_response());
    }
    let Some(kv) = found.kvs.into_iter().next() else {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!("no key `{key}`"),
            "GET /api/v1/kv?prefix=true lists all",
        ));
    };
    let mut response = ([("content-type", "application/octet-stream")], kv.value).into_response();
    let headers = response.headers_mut();
    headers.insert("seawall-revision", HeaderValue::from(kv.mod_revision.0));
    headers.insert("seawall-create-revision", HeaderValue::from(kv.create_revision.0));
    headers.insert("seawall-version", HeaderValue::from(kv.version));
    Ok(response)
}

/// PUT: writes a value.
pub async fn write(
    State(context): State<Context>,
    Path(key): Path<String>,
    Parameters(options): Parameters<Writing>,
    headers: HeaderMap,
    value: Bytes,
) -> Response {
    match Fence::of(&headers) {
        Ok(fence) => put(&context, &key, &options, fence, value).await.unwrap_or_else(|answer| answer),
        Err(problem) => problem.into_response(),
    }
}

async fn put(
    context: &Context,
    key: &str,
    options: &Writing,
    fence: Option<Fence>,
    value: Bytes,
) -> Result<Response, Response> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a value of {} bytes; the limit is {MAX_VALUE_BYTES}", value.len()),
            "nothing was written; split it",
        )
        .into_response());
    }
    let name = key_of(key).map_err(IntoResponse::into_response)?;
    let txn = compared(Txn::put(name.clone(), value), &name, options.cas);
    let body =
        |revision, durability, _: &[OpResult]| json!({ "key": key, "revision": revision, "durability": durability });
    committed(key, write_in(context, fence, txn).await?, body).map_err(IntoResponse::into_response)
}

/// DELETE: removes a key, or with `prefix` all that begin with it.
pub async fn remove(
    State(context): State<Context>,
    Path(key): Path<String>,
    Parameters(options): Parameters<Removing>,
    headers: HeaderMap,
) -> Response {
    match Fence::of(&headers) {
        Ok(fence) => delete(&context, &key, &options, fence).await.unwrap_or_else(|answer| answer),
        Err(problem) => problem.into_response(),
    }
}

async fn delete(context: &Context, key: &str, options: &Removing, fence: Option<Fence>) -> Result<Response, Response> {
    if options.prefix && options.cas.is_some() {
        return Err(Problem::bad_request("`cas` with `prefix`", "compare one key at a time").into_response());
    }
    let range = range_of(key, options.prefix).map_err(IntoResponse::into_response)?;
    let name = key_of(key).map_err(IntoResponse::into_response)?;
    let outcome = write_in(context, fence, compared(Txn::delete(range), &name, options.cas)).await?;
    let body = |revision, durability, results: &[OpResult]| {
        let deleted =
            results.iter().map(|result| if let OpResult::Deleted { count } = result { *count } else { 0 }).sum::<u64>();
        json!({ "key": key, "revision": revision, "durability": durability, "deleted": deleted })
    };
    committed(key, outcome, body).map_err(IntoResponse::into_response)
}

/// In the name of a term, if the request says so.
async fn write_in(context: &Context, fence: Option<Fence>, txn: Txn) -> Result<TxnOutcome, Response> {
    match fence {
        Some(fence) => fence.txn(&*context.store, txn).await,
        None => context.store.txn(txn).await.map_err(|error| Problem::from(error).into_response()),
    }
}

fn compared(txn: Txn, key: &Key, cas: Option<u64>) -> Txn {
    match cas {
        None => txn,
        Some(0) => txn.when(Compare::absent(key.clone())).otherwise(Op::Range(RangeRequest::key(key))),
        Some(revision) => txn
            .when(Compare::mod_revision(key.clone(), Revision(revision)))
            .otherwise(Op::Range(RangeRequest::key(key))),
    }
}

fn committed(
    key: &str,
    outcome: TxnOutcome,
    body: impl FnOnce(u64, String, &[OpResult]) -> Value,
) -> Result<Response, Problem> {
    match outcome {
        TxnOutcome::Committed { revision, results, durability } => {
            Ok(Json(body(revision.0, durability.to_string(), &results)).into_response())
        }
        TxnOutcome::Rejected { results, .. } => {
            let current = results.iter().find_map(|result| {
                if let OpResult::Range(found) = result { found.kvs.first().map(|kv| kv.mod_revision.0) } else { None }
            });
            let error = match current {
                Some(current) => format!("`{key}` was changed meanwhile, at revision {current}"),
                None => format!("`{key}` does not exist"),
            };
            Ok((StatusCode::CONFLICT, Json(json!({ "error": error, "revision": current.unwrap_or(0), "cure": "read it again and decide anew; nothing was written" }))).into_response())
        }
        TxnOutcome::Unknown => Err(Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!("it is not known whether `{key}` was written"),
            "read it back, or repeat the write with `cas`",
        )),
    }
}

fn key_of(key: &str) -> Result<Key, Problem> {
    if key.len() > MAX_KEY {
        let error = format!("a key of {} bytes; the limit is {MAX_KEY}", key.len());
        return Err(Problem::bad_request(error, "nothing was read or written; shorten the key"));
    }
    Key::new(format!("{PREFIX}{key}").into_bytes())
        .map_err(|error| Problem::bad_request(error.to_string(), "shorten the key"))
}

fn range_of(key: &str, prefix: bool) -> Result<KeyRange, Problem> {
    let name = key_of(key)?;
    Ok(if prefix { KeyRange::prefix(name.to_bytes()) } else { KeyRange::key(&name) })
}

/// A key and value as JSON; bytes that are no text as base64 under another name, so that nobody mistakes one for the other.
fn describe(kv: &KeyValue) -> Value {
    let mut object = json!({
        "key": shown(&kv.key), "revision": kv.mod_revision.0, "createRevision": kv.create_revision.0, "version": kv.version,
    });
    match std::str::from_utf8(&kv.value) {
        Ok(text) => object["value"] = text.into(),
        Err(_) => object["valueBase64"] = base64(&kv.value).into(),
    }
    object
}

fn shown(key: &Key) -> String {
    let text = String::from_utf8_lossy(key.as_bytes()).into_owned();
    text.strip_prefix(PREFIX).map_or(text.clone(), str::to_owned)
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let letter = if index <= chunk.len() { ALPHABET[(word >> (18 - 6 * index) & 63) as usize] } else { b'=' };
            text.push(char::from(letter));
        }
    }
    text
}

fn watch(context: &Context, range: KeyRange, from: Option<u64>) -> Result<Response, Problem> {
    let stream = context.store.watch(range, from.map(Revision))?;
    let events = stream::unfold((stream, Vec::new()), |(mut watched, mut waiting): (_, Vec<Sent>)| async move {
        loop {
            if let Some(sent) = waiting.pop() {
                return Some((Ok::<_, Infallible>(sent), (watched, waiting)));
            }
            waiting = sent_of(watched.next().await?);
            waiting.reverse();
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}

fn sent_of(item: WatchItem) -> Vec<Sent> {
    match item {
        WatchItem::Events { revision, events } => events.iter().map(|event| sent_event(revision, event)).collect(),
        WatchItem::Progress(revision) => {
            vec![Sent::default().event("progress").data(json!({ "revision": revision.0 }).to_string())]
        }
        WatchItem::Compacted(revision) => {
            let data = json!({ "revision": revision.0, "cure": "changes up to this revision are no longer kept: read the range and watch from its revision + 1" });
            vec![Sent::default().event("compacted").data(data.to_string())]
        }
        WatchItem::Lagged => vec![
            Sent::default()
                .event("lagged")
                .data(json!({ "cure": "this watch was too slow: read the range and watch again" }).to_string()),
        ],
    }
}

fn sent_event(revision: Revision, event: &Event) -> Sent {
    let (name, data) = match event {
        Event::Put(kv) => ("put", describe(kv)),
        Event::Delete { key, .. } => ("delete", json!({ "key": shown(key), "revision": revision.0 })),
    };
    Sent::default().id(revision.0.to_string()).event(name).data(data.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_pads_as_rfc_4648_says() {
        let cases: [(&[u8], &str); 5] =
            [(b"", ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"\xff\xfe\xfd\xfc", "//79/A==")];
        for (bytes, text) in cases {
            assert_eq!(super::base64(bytes), text);
        }
    }
}
