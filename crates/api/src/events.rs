//! The event journal over HTTP: a page of it, or followed as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use model::ServiceName;
use model::diagnostic::nearest;
use observe::journal::Entry;
use serde::Deserialize;

use crate::Context;
use crate::problem::Problem;
use crate::query::{Known, Parameters};

/// The most events of one answer.
const MAX_PAGE: usize = 1000;

/// What is asked for.
#[derive(Debug, Deserialize)]
pub struct Selection {
    /// Only events after this number.
    after: Option<u64>,
    /// At most so many; the newest when `after` is absent.
    limit: Option<usize>,
    /// Only of this service.
    service: Option<String>,
    /// Go on as events happen.
    #[serde(default)]
    follow: bool,
}

impl Known for Selection {
    const NAMES: &'static [&'static str] = &["after", "limit", "service", "follow"];
}

impl Selection {
    fn wants(&self, entry: &Entry) -> bool {
        self.service
            .as_ref()
            .is_none_or(|service| entry.event.service.as_ref().is_some_and(|name| name.as_str() == service))
    }
}

/// Why there can be no events of this service: it does not exist, and of one that did there would be some.
fn unknown(context: &Context, service: &str) -> Option<Problem> {
    let of_service = |name: Option<&ServiceName>| name.is_some_and(|name| name.as_str() == service);
    let status = context.status.borrow().clone();
    let exists = status.services.iter().any(|known| of_service(Some(&known.name)));
    let existed = || context.journal.newest(usize::MAX).iter().any(|entry| of_service(entry.event.service.as_ref()));
    if exists || existed() {
        return None;
    }
    let cure = match nearest(service, status.services.iter().map(|known| known.name.as_str())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`seawall status` lists the services".to_owned(),
    };
    Some(Problem::new(StatusCode::NOT_FOUND, format!("no service `{service}`"), cure))
}

/// Lists or follows events.
pub async fn list(State(context): State<Context>, Parameters(selection): Parameters<Selection>) -> Response {
    let limit = selection.limit.unwrap_or(200).min(MAX_PAGE);
    let mut page: Vec<Arc<Entry>> = match selection.after {
        Some(after) => context.journal.after(after, usize::MAX),
        None => context.journal.newest(usize::MAX),
    };
    page.retain(|entry| selection.wants(entry));
    if let Some(problem) = selection.service.as_ref().and_then(|service| unknown(&context, service)) {
        return problem.into_response();
    }
    if selection.after.is_some() {
        page.truncate(limit);
    } else {
        page.drain(..page.len().saturating_sub(limit));
    }
    if !selection.follow {
        return Json(page).into_response();
    }
    let newest = context.journal.newest(1).last().map_or(0, |entry| entry.seq);
    let done = page.last().map_or(newest, |entry| entry.seq.max(if selection.after.is_some() { 0 } else { newest }));
    let state =
        (context.journal.follow(), context.journal.clone(), std::collections::VecDeque::from(page), done, selection);
    let events = stream::unfold(state, |(mut follow, journal, mut waiting, mut done, selection)| async move {
        loop {
            if let Some(entry) = waiting.pop_front() {
                let text = serde_json::to_string(&*entry).expect("an event always becomes JSON");
                let sent = Sent::default().id(entry.seq.to_string()).event(entry.event.kind.name()).data(text);
                return Some((Ok::<_, Infallible>(sent), (follow, journal, waiting, done, selection)));
            }
            for entry in journal.after(done, MAX_PAGE) {
                done = entry.seq;
                if selection.wants(&entry) {
                    waiting.push_back(entry);
                }
            }
            if waiting.is_empty() && follow.changed().await.is_err() {
                return None;
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}
