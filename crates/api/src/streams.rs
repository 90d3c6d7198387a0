//! Op-logs of services over HTTP: API -> `Streams::append` -> commit -> offset -> reply; readers wait or follow.
//! What goes wrong is told with what would be right: the expected sequence number, the epoch in force, the oldest offset.
//! Deliberately absent: entries in batches, and a way to say that less than a majority is enough.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use data::{Append, Consistency, MAX_READ_ENTRIES, Name, StreamEntry, StreamInfo, StreamRead};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Context;
use crate::kv::base64;
use crate::problem::Problem;
use crate::query::{Known, Nothing, Parameters};

mod follow;
mod refused;

use refused::Refused;

/// Names the epoch in which a request acts; answers name the epoch in force.
const EPOCH: &str = "seawall-epoch";
/// The longest wait for an entry.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Entries of a read that names no limit.
const USUAL_LIMIT: usize = 100;

/// Query parameters of an append.
#[derive(Debug, Default, Deserialize)]
pub struct Appending {
    /// Who appends.
    producer: Option<String>,
    /// Its how-manieth entry this is, from 1 on.
    seq: Option<u64>,
}

impl Known for Appending {
    const NAMES: &'static [&'static str] = &["producer", "seq"];
}

/// Query parameters of a read.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Reading {
    /// From this offset on; the oldest that is kept when absent.
    from: Option<u64>,
    /// At most so many entries.
    limit: Option<usize>,
    /// If there is none yet, how long to wait for one.
    wait: Option<String>,
    /// Answer from what this node has applied, even without a quorum.
    #[serde(default)]
    stale: bool,
}

impl Known for Reading {
    const NAMES: &'static [&'static str] = &["from", "limit", "wait", "stale"];
}

/// Query parameters of a look.
#[derive(Debug, Default, Deserialize)]
pub struct Looking {
    /// Answer from what this node has applied, even without a quorum.
    #[serde(default)]
    stale: bool,
}

impl Known for Looking {
    const NAMES: &'static [&'static str] = &["stale"];
}

/// Query parameters of a cursor's move.
#[derive(Debug, Deserialize)]
pub struct Moving {
    /// The offset that will be read next.
    offset: u64,
}

impl Known for Moving {
    const NAMES: &'static [&'static str] = &["offset"];
}

/// Query parameters of a seal.
#[derive(Debug, Deserialize)]
pub struct Sealing {
    /// From this epoch on.
    epoch: u64,
}

impl Known for Sealing {
    const NAMES: &'static [&'static str] = &["epoch"];
}

type Answer = Result<Response, Refused>;

fn answer(result: Answer) -> Response {
    result.unwrap_or_else(IntoResponse::into_response)
}

/// POST: one more entry.
pub async fn append(
    State(context): State<Context>,
    Path(stream): Path<String>,
    Parameters(options): Parameters<Appending>,
    headers: HeaderMap,
    entry: Bytes,
) -> Response {
    answer(append_entry(&context, &stream, &options, &headers, entry).await)
}

async fn append_entry(
    context: &Context,
    stream: &str,
    options: &Appending,
    headers: &HeaderMap,
    entry: Bytes,
) -> Answer {
    let producer = match (&options.producer, options.seq) {
        (Some(producer), Some(seq)) => Some((name(producer)?, seq)),
        (None, None) => None,
        _ => {
            let cure = "give both, so that a repetition is noticed, or neither";
            return Err(Problem::bad_request("`producer` and `seq` belong together", cure).into());
        }
    };
    let append = Append { stream: name(stream)?, producer, epoch: epoch(headers)?, entry };
    let appended = context.streams.append(append).await?;
    let body = json!({
        "offset": appended.offset, "durability": appended.durability.to_string(), "repeated": appended.repeated,
    });
    Ok(Json(body).into_response())
}

/// GET: entries, one JSON object a line, or as server-sent events.
pub async fn read(
    State(context): State<Context>,
    Path(stream): Path<String>,
    Parameters(options): Parameters<Reading>,
    headers: HeaderMap,
) -> Response {
    answer(read_stream(context, &stream, &options, &headers).await)
}

async fn read_stream(context: Context, stream: &str, options: &Reading, headers: &HeaderMap) -> Answer {
    let stream = name(stream)?;
    let consistency = consistency(options.stale);
    let wait = options.wait.as_deref().map(patience).transpose()?.unwrap_or_default();
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let follows = accepts.split(',').any(|kind| kind.trim().starts_with("text/event-stream"));
    let resumed = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let from = match resumed.filter(|_| follows).map(|last| last.saturating_add(1)).or(options.from) {
        Some(from) => from,
        None => context.streams.describe(stream.clone(), consistency).await?.first,
    };
    let limit = options.limit.unwrap_or(USUAL_LIMIT).clamp(1, MAX_READ_ENTRIES);
    let until = Instant::now() + wait;
    let mut found = context.streams.read(stream.clone(), from, limit, consistency).await?;
    if follows {
        return Ok(follow::events(context, stream, from, found));
    }
    if found.entries.is_empty() && !wait.is_zero() {
        let left = until.saturating_duration_since(Instant::now());
        if context.streams.wait(stream.clone(), from, left).await? {
            found = context.streams.read(stream, from, limit, Consistency::Stale).await?;
        }
    }
    lines(from, found).await
}

async fn lines(from: u64, found: StreamRead) -> Answer {
    let (next, end) = (from + found.entries.len() as u64, found.next);
    // Some megabytes take longer to write down than the control plane may be held up.
    let writing = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        for entry in &found.entries {
            text.push_str(&describe_entry(entry).to_string());
            text.push('\n');
        }
        text
    });
    let text = writing.await.map_err(|error| Problem::internal(error.to_string()))?;
    let mut response = ([("content-type", "application/x-ndjson")], text).into_response();
    response.headers_mut().insert("seawall-next", HeaderValue::from(next));
    response.headers_mut().insert("seawall-end", HeaderValue::from(end));
    Ok(response)
}

/// An entry as JSON; bytes that are no text as base64 under another name, so that nobody mistakes one for the other.
fn describe_entry(entry: &StreamEntry) -> Value {
    let millis = i64::try_from(entry.at_ms).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    let mut object = json!({ "offset": entry.offset, "at": at.to_string() });
    match std::str::from_utf8(&entry.data) {
        Ok(text) => object["data"] = text.into(),
        Err(_) => object["data_base64"] = base64(&entry.data).into(),
    }
    object
}

/// GET of all streams.
pub async fn list(State(context): State<Context>, Parameters(options): Parameters<Looking>) -> Response {
    match context.streams.list(consistency(options.stale)).await {
        Ok(streams) => {
            let streams: Vec<Value> = streams.iter().map(summary).collect();
            Json(json!({ "streams": streams })).into_response()
        }
        Err(error) => Refused::from(error).into_response(),
    }
}

/// GET of one stream's description.
pub async fn describe(
    State(context): State<Context>,
    Path(stream): Path<String>,
    Parameters(options): Parameters<Looking>,
) -> Response {
    answer(describe_stream(&context, &stream, &options).await)
}

async fn describe_stream(context: &Context, stream: &str, options: &Looking) -> Answer {
    let info = context.streams.describe(name(stream)?, consistency(options.stale)).await?;
    let mut body = summary(&info);
    let numbers = |map: &BTreeMap<Name, u64>| -> Value {
        map.iter().map(|(name, number)| (name.to_string(), Value::from(*number))).collect()
    };
    body["producers"] = numbers(&info.producers);
    body["cursors"] = numbers(&info.cursors);
    Ok(Json(body).into_response())
}

fn summary(info: &StreamInfo) -> Value {
    json!({
        "name": info.name.as_str(), "first": info.first, "next": info.next, "bytes": info.bytes,
        "sealedEpoch": info.sealed,
    })
}

/// DELETE: the stream goes, with its cursors, producers and seal.
pub async fn remove(
    State(context): State<Context>,
    Path(stream): Path<String>,
    _: Parameters<Nothing>,
    headers: HeaderMap,
) -> Response {
    let removed = async {
        context.streams.delete(name(&stream)?, epoch(&headers)?).await?;
        Answer::Ok(Json(json!({ "name": stream, "deleted": true })).into_response())
    };
    answer(removed.await)
}

/// PUT of a cursor: how far somebody has come.
pub async fn commit(
    State(context): State<Context>,
    Path((stream, cursor)): Path<(String, String)>,
    Parameters(options): Parameters<Moving>,
) -> Response {
    let moved = async {
        context.streams.commit(name(&stream)?, name(&cursor)?, options.offset).await?;
        Answer::Ok(Json(json!({ "cursor": cursor, "offset": options.offset })).into_response())
    };
    answer(moved.await)
}

/// GET of a cursor.
pub async fn cursor(
    State(context): State<Context>,
    Path((stream, cursor)): Path<(String, String)>,
    _: Parameters<Nothing>,
) -> Response {
    let found = async {
        let offset = context.streams.cursor(name(&stream)?, name(&cursor)?).await?;
        Answer::Ok(Json(json!({ "cursor": cursor, "offset": offset })).into_response())
    };
    answer(found.await)
}

/// POST of a seal: older epochs are shut out.
pub async fn seal(
    State(context): State<Context>,
    Path(stream): Path<String>,
    Parameters(options): Parameters<Sealing>,
) -> Response {
    let sealed = async {
        let end = context.streams.seal(name(&stream)?, options.epoch).await?;
        Answer::Ok(Json(json!({ "name": stream, "epoch": options.epoch, "end": end })).into_response())
    };
    answer(sealed.await)
}

fn consistency(stale: bool) -> Consistency {
    if stale { Consistency::Stale } else { Consistency::Linearizable }
}

fn name(text: &str) -> Result<Name, Refused> {
    Name::new(text).map_err(|error| {
        let shown: String = text.chars().take(200).collect();
        Problem::bad_request(format!("`{shown}`: {error}"), "nothing was changed").into()
    })
}

fn epoch(headers: &HeaderMap) -> Result<Option<u64>, Refused> {
    let Some(value) = headers.get(EPOCH) else { return Ok(None) };
    let epoch = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let wrong = || Problem::bad_request("the header Seawall-Epoch is no number", "nothing was changed").into();
    epoch.map(Some).ok_or_else(wrong)
}

fn patience(text: &str) -> Result<Duration, Refused> {
    model::config::decode::parse_duration(text)
        .filter(|wait| *wait <= MAX_WAIT)
        .ok_or_else(|| Problem::bad_request(format!("`wait={text}`"), "a duration up to 60s, e.g. 10s or 500ms").into())
}
