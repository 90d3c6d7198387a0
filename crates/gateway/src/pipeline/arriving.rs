//! The route step of the request walk: which route a request is for, and what ends it before any service is asked.
//! Deliberately absent: matching (`routes.rs`), and what becomes of the request (`pipeline.rs`).

use std::sync::Arc;

use super::End;
use crate::answer::Answer;
use crate::connection::Client;
use crate::guards::Fallback;
use crate::http1::{Bad, Framing};
use crate::options::ErrorPage;
use crate::routes::CompiledRoute;
use crate::worker::Worker;

/// The route of a request, or how it ends without one; boxed, because every connection would have room for it.
pub(super) fn arrive<S>(worker: &Worker, client: &Client<S>) -> Result<Arc<CompiledRoute>, Box<End>> {
    match challenge(worker, client) {
        Some(page) => Err(Box::new(End::Challenge(page))),
        None => route(worker, client).map_err(|answer| Box::new(End::Answer(answer))),
    }
}

/// What an authority came for, in the clear only.
fn challenge<S>(worker: &Worker, client: &Client<S>) -> Option<Arc<ErrorPage>> {
    let page = worker.options.challenges.file(client.head.path_and_query())?;
    (client.origin.scheme == "http" && matches!(client.head.method(), b"GET" | b"HEAD")).then_some(page)
}

/// What a browser is told that asks what a page of another origin may do.
pub(super) fn preflight<S>(client: &Client<S>, route: &CompiledRoute) -> Option<Arc<Fallback>> {
    route.cors.as_ref()?.preflight(&client.head, client.scheme()).map(Arc::new)
}

/// Which service the request is for.
fn route<S>(worker: &Worker, client: &Client<S>) -> Result<Arc<CompiledRoute>, Answer> {
    let Some(route) = worker.table.routes().find(&client.head, client.scheme()).cloned() else {
        return Err(if worker.table.is_unknown() { Answer::ROUTES_UNKNOWN } else { Answer::NO_ROUTE });
    };
    let most = route.policy.max_body_bytes.or(worker.options.max_body_bytes);
    if let (Some(most), Framing::Length(length)) = (most, client.head.framing())
        && length > most
    {
        return Err(Answer::bad(Bad::with(413, "body-too-large")));
    }
    Ok(route)
}
