//! Answers in Consul's form: JSON with its headers, errors as plain text. Blocking queries wait here, each for its own topic.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data::StoreError;
use discovery::fields::FieldError;
use discovery::{Reading, RegistryError, Topic};
use serde_json::Value;

use super::ask::{Ask, narrow};
use super::caller::Caller;
use crate::{Context, MAX_WAITING};

/// An index that another node has given out must be reached here within this time, or it is of another store.
const REACH: Duration = Duration::from_secs(1);

/// Why a request has no answer: a status, and words that people read.
#[derive(Debug)]
pub struct Trouble {
    status: StatusCode,
    text: String,
}

impl Trouble {
    /// What the client is told.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// With this status.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// The request is wrong.
    pub fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// What it is about is not there.
    pub fn missing(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// It cannot be done, in Consul's way of saying so.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.text).into_response()
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotServing(_) | StoreError::Closed => Self::failed(format!("No cluster leader: {error}")),
            StoreError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            StoreError::Invalid { .. } => Self::bad(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<RegistryError> for Trouble {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => error.into(),
            other => Self::failed(other.to_string()),
        }
    }
}

impl From<FieldError> for Trouble {
    fn from(error: FieldError) -> Self {
        Self::bad(format!("Invalid request: {error}"))
    }
}

/// The result of a handler.
pub type Answer = Result<Response, Trouble>;

/// JSON.
pub fn json(ask: &Ask, value: &Value) -> Response {
    let text = if ask.is_pretty() { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let text = text.expect("a value always becomes text");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Done: 200 and nothing more, as agents say it.
pub fn done() -> Response {
    Response::new(Body::empty())
}

/// Yes or no.
pub fn truth(yes: bool) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], if yes { "true" } else { "false" }).into_response()
}

/// Puts Consul's headers about an answer on it.
pub fn with_headers(context: &Context, ask: &Ask, index: u64, mut response: Response) -> Response {
    let leaderless = context.discovery.leaderless();
    let headers = response.headers_mut();
    let last = leaderless.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    headers.insert("x-consul-index", HeaderValue::from(index.max(1)));
    headers.insert("x-consul-lastcontact", HeaderValue::from(last));
    let known = if leaderless.is_none() { "true" } else { "false" };
    headers.insert("x-consul-knownleader", HeaderValue::from_static(known));
    headers.insert("x-consul-effective-consistency", HeaderValue::from_static(ask.consistency()));
    let denies = context.discovery.guard().is_some_and(|guard| !guard.allows_by_default());
    let default = if denies { "deny" } else { "allow" };
    headers.insert("x-consul-default-acl-policy", HeaderValue::from_static(default));
    if ask.caller().is_some_and(Caller::has_filtered) {
        headers.insert("x-consul-results-filtered-by-acls", HeaderValue::from_static("true"));
    }
    headers.insert("x-consul-query-backend", HeaderValue::from_static("blocking-query"));
    response
}

/// Returns once this node may answer: it shows what was acknowledged before, unless a stale answer will do.
pub async fn fresh(context: &Context, ask: &Ask) -> Result<(), Trouble> {
    ask.check(context.discovery.datacenter())?;
    if !ask.is_stale() {
        context.discovery.catch_up().await?;
    }
    if context.discovery.read().is_known() {
        Ok(())
    } else {
        Err(Trouble::failed("No cluster leader: this node has not read the registry yet"))
    }
}

/// Answers a question about `topic`, when there is something newer than what the client has.
pub async fn blocking(
    context: &Context,
    ask: &Ask,
    topic: Topic,
    answer: impl Fn(&Reading<'_>) -> Result<Value, Trouble>,
) -> Answer {
    let (value, index) = waited(context, ask, topic, answer).await?;
    Ok(with_headers(context, ask, index, json(ask, &value)))
}

/// The same, before it becomes a response.
pub async fn waited<T>(
    context: &Context,
    ask: &Ask,
    topic: Topic,
    answer: impl Fn(&Reading<'_>) -> Result<T, Trouble>,
) -> Result<(T, u64), Trouble>
where
    T: Narrow + PartialEq,
{
    let registry = &context.discovery;
    let (known, wait, filter) = (ask.index()?, ask.wait()?, ask.filter()?);
    fresh(context, ask).await?;
    if let Some(index) = known {
        let behind = registry.read().revision() < index;
        let reached =
            !behind || tokio::time::timeout(REACH, registry.shows(index)).await.is_ok_and(|shown| shown.is_ok());
        if reached {
            if registry.waiters() >= MAX_WAITING {
                let text = format!("{MAX_WAITING} blocking queries wait already: ask again later, or without an index");
                return Err(Trouble::new(StatusCode::TOO_MANY_REQUESTS, text));
            }
            let _counted = Waits::begin(&context.consul.blocking);
            match ask.limited() {
                None => drop(registry.wait(&topic, index, wait).await),
                Some(caller) => wait_for_seen(context, caller, (&topic, index, wait), &answer).await?,
            }
        }
    }
    if let Some(caller) = ask.caller() {
        if known.is_some() {
            // Its token may have been changed or taken away meanwhile.
            caller.renew(context)?;
        }
        caller.begin();
    }
    let reading = registry.read();
    let mut value = answer(&reading)?;
    // What another node has told the client already is not taken back.
    let told = known.filter(|index| *index <= reading.revision()).unwrap_or(0);
    let index = reading.index(&topic).max(told);
    drop(reading);
    value.narrow(filter.as_ref())?;
    Ok((value, index))
}

/// Waits until what this caller may see has changed: what is kept from it does not wake it.
async fn wait_for_seen<T: PartialEq>(
    context: &Context,
    caller: &Caller,
    (topic, index, most): (&Topic, u64, Duration),
    answer: &impl Fn(&Reading<'_>) -> Result<T, Trouble>,
) -> Result<(), Trouble> {
    let registry = &context.discovery;
    let deadline = tokio::time::Instant::now() + most;
    let before = {
        let reading = registry.read();
        if reading.index(topic) > index {
            return Ok(());
        }
        answer(&reading)?
    };
    let mut seen = index;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let changed = registry.wait(topic, seen, left).await;
        caller.renew(context)?;
        if !changed {
            return Ok(());
        }
        let reading = registry.read();
        if answer(&reading)? != before {
            return Ok(());
        }
        seen = reading.index(topic);
    }
}

/// A client that waits, until it is answered or has gone.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a filter narrows.
pub trait Narrow {
    /// Leaves what fits.
    ///
    /// # Errors
    /// The filter names something that is not there.
    fn narrow(&mut self, filter: Option<&discovery::bexpr::Filter>) -> Result<(), Trouble>;
}

impl Narrow for Value {
    fn narrow(&mut self, filter: Option<&discovery::bexpr::Filter>) -> Result<(), Trouble> {
        narrow(filter, self)
    }
}
