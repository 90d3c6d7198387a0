//! What is changed in an answer's fields on the way to the client, beyond what its route always changes: part of the
//! forward step. Nothing is copied where nothing is to be added.

use std::time::{Duration, Instant};

use crate::connection::Client;
use crate::guards::{FallbackReason, Left};
use crate::policy::HeaderEdits;
use crate::routes::CompiledRoute;
use crate::text;
use crate::worker::Worker;

/// When a request's head was complete, and when the attempt began.
pub(super) type Times = (Instant, Instant);

/// The changes, unless they are the route's own. `coded` are those of an answer that is compressed; `left` is written by
/// itself where heads are text; `instead` says why another service is asked.
pub(super) fn of<S>(
    worker: &Worker,
    client: &Client<S>,
    route: &CompiledRoute,
    coded: Option<HeaderEdits>,
    (begun, tried): Times,
    (left, instead): (Option<Left>, Option<FallbackReason>),
) -> Option<HeaderEdits> {
    let timing = worker.options.server_timing;
    let allowed = route.cors.as_ref().filter(|cors| cors.allows(&client.head, client.scheme()));
    if !timing && allowed.is_none() && left.is_none() && instead.is_none() {
        return coded;
    }
    let mut edits = coded.unwrap_or_else(|| route.policy.response.clone());
    if timing {
        let waited: Duration = tried.saturating_duration_since(begun);
        edits.add.push(("Server-Timing".into(), text::server_timing(waited, tried.elapsed())));
    }
    if let Some(cors) = allowed {
        edits.set.extend(cors.fields(&client.head));
    }
    if let Some(left) = left {
        edits.add.extend(left.fields().map(|(name, number)| (name.to_owned(), number.to_string())));
    }
    edits.add.extend(instead.map(|reason| ("Seawall-Reason".to_owned(), reason.word().to_owned())));
    Some(edits)
}
