//! A stream as server-sent events: what is there, then what comes, until the client goes or something is wrong.
//! The event id is the offset, so a browser that lost its connection goes on by itself.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use data::{Consistency, Name, StreamEntry, StreamError, StreamRead};
use futures_util::stream;
use serde_json::json;

use super::describe_entry;
use crate::Context;

/// Between two signs of life.
const ALIVE: Duration = Duration::from_secs(15);
/// Entries fetched at once.
const PIECE: usize = 100;

struct Following {
    context: Context,
    stream: Name,
    next: u64,
    /// Written down one by one, as they are taken.
    waiting: VecDeque<StreamEntry>,
    ended: bool,
}

/// Sends what was found, then the rest.
pub(super) fn events(context: Context, stream: Name, from: u64, found: StreamRead) -> Response {
    let mut following = Following { context, stream, next: from, waiting: VecDeque::new(), ended: false };
    following.take(found);
    let events = stream::unfold(following, |mut following| async move {
        let sent = following.event().await?;
        Some((Ok::<_, Infallible>(sent), following))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}

impl Following {
    async fn event(&mut self) -> Option<Sent> {
        loop {
            if let Some(entry) = self.waiting.pop_front() {
                let data = describe_entry(&entry).to_string();
                return Some(Sent::default().id(entry.offset.to_string()).event("entry").data(data));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.more().await {
                self.ended = true;
                return Some(ending(&error));
            }
        }
    }

    async fn more(&mut self) -> Result<(), StreamError> {
        let (streams, stream) = (&self.context.streams, &self.stream);
        if streams.wait(stream.clone(), self.next, ALIVE).await? {
            let found = streams.read(stream.clone(), self.next, PIECE, Consistency::Stale).await?;
            self.take(found);
        }
        Ok(())
    }

    fn take(&mut self, found: StreamRead) {
        self.next = found.entries.last().map_or(self.next, |last| last.offset + 1);
        self.waiting.extend(found.entries);
    }
}

fn ending(error: &StreamError) -> Sent {
    let mut data = json!({ "error": error.to_string() });
    let name = match error {
        StreamError::Trimmed { first } => {
            data["first"] = (*first).into();
            "trimmed"
        }
        StreamError::NotFound(_) => "deleted",
        _ => "failed",
    };
    Sent::default().event(name).data(data.to_string())
}
