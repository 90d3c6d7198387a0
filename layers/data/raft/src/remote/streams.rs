//! The `Streams` of a node that has none: every request is one call to a server.
//! Deliberately absent: entries on this node's disk.

use std::sync::Arc;
use std::time::Duration;

use data::{
    Append, Appended, BoxFuture, Consistency, Durability, MAX_ENTRY_BYTES, Name, NotServing, Reach, StreamEntry,
    StreamError, StreamInfo, StreamRead, StreamRequest, Streams, StreamsMetrics, Waits,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::wire::{AnswerV1, CallV1};
use super::{Core, Failed};
use crate::leading::Again;
use crate::peers::message::payload;
use crate::streams::wire::StreamRequestV1;

/// Most bytes of appends on their way at once; further callers wait their turn.
const IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;
/// A permit of the bound above.
const PERMIT_BYTES: usize = 1024;
/// Longest wait for an entry within one call.
const WAIT: Duration = Duration::from_secs(2);

/// The streams of a cluster, asked of its servers.
pub struct RemoteStreams {
    core: Arc<Core>,
    in_flight: Semaphore,
}

impl RemoteStreams {
    pub(super) fn over(core: Arc<Core>) -> Arc<Self> {
        Arc::new(Self { core, in_flight: Semaphore::new(IN_FLIGHT_BYTES / PERMIT_BYTES) })
    }

    async fn ask(&self, call: &CallV1, again: Again) -> Result<AnswerV1, StreamError> {
        if self.in_flight.is_closed() {
            return Err(StreamError::Closed);
        }
        let served = self.core.ask(payload(call), again, super::PATIENCE + super::GRACE).await;
        let served = served.map_err(|failed| match failed {
            Failed::Refused { server, refusal } => refusal.of_streams(&server),
            Failed::Unknown => StreamError::Unknown,
            Failed::NotServing(reason) => StreamError::NotServing(reason),
            Failed::Closed => StreamError::Closed,
        })?;
        served.end().ok_or(StreamError::Unknown)
    }

    async fn change(&self, request: &StreamRequest, again: Again) -> Result<AnswerV1, StreamError> {
        self.ask(&CallV1::Stream(StreamRequestV1::from(request)), again).await
    }

    async fn infos(&self, call: &CallV1) -> Result<Vec<StreamInfo>, StreamError> {
        let AnswerV1::Streams(infos) = self.ask(call, Again::Reads).await? else { return Err(StreamError::Unknown) };
        let infos: Result<_, _> = infos.into_iter().map(StreamInfo::try_from).collect();
        infos.map_err(|_| StreamError::Unknown)
    }

    async fn read_entries(&self, stream: &Name, from: u64, limit: u64, stale: bool) -> Result<StreamRead, StreamError> {
        let call = CallV1::StreamRead { stream: stream.to_string(), from, limit, stale };
        match self.ask(&call, Again::Reads).await? {
            AnswerV1::Entries { entries, next } => {
                Ok(StreamRead { entries: entries.into_iter().map(StreamEntry::from).collect(), next })
            }
            _ => Err(StreamError::Unknown),
        }
    }

    async fn wait_for(&self, stream: Name, offset: u64, patience: Duration) -> Result<bool, StreamError> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let patience_ms = u64::try_from(left.min(WAIT).as_millis()).unwrap_or(u64::MAX);
            let call = CallV1::StreamWait { stream: stream.to_string(), offset, patience_ms };
            match self.ask(&call, Again::Reads).await? {
                AnswerV1::IsThere(false) if Instant::now() < until => {}
                AnswerV1::IsThere(is_there) => return Ok(is_there),
                _ => return Err(StreamError::Unknown),
            }
        }
    }
}

impl Streams for RemoteStreams {
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, StreamError>> {
        Box::pin(async move {
            let bytes = append.entry.len();
            if bytes > MAX_ENTRY_BYTES {
                return Err(StreamError::TooLarge { what: "an entry", bytes, limit: MAX_ENTRY_BYTES });
            }
            // Only appends take room to speak of: a seal, which a promotion waits for, is not behind them.
            let permits = u32::try_from(1 + bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
            let _turn = self.in_flight.acquire_many(permits).await.map_err(|_| StreamError::Closed)?;
            let again = if append.producer.is_some() { Again::Writes } else { Again::Never };
            match self.change(&StreamRequest::Append(append), again).await? {
                AnswerV1::Appended { offset, repeated, is_async } => {
                    let durability = if is_async { Durability::Async } else { Durability::Sync };
                    Ok(Appended { offset, repeated, durability })
                }
                _ => Err(StreamError::Unknown),
            }
        })
    }

    fn read(
        &self,
        stream: Name,
        from: u64,
        limit: usize,
        consistency: Consistency,
    ) -> BoxFuture<'_, Result<StreamRead, StreamError>> {
        Box::pin(async move {
            let limit = limit as u64;
            let read = self.read_entries(&stream, from, limit, consistency == Consistency::Stale).await;
            match read {
                // Another server than the one asked before, perhaps, and behind it.
                Err(StreamError::PastEnd { .. } | StreamError::NotFound(_)) if consistency == Consistency::Stale => {
                    self.read_entries(&stream, from, limit, false).await
                }
                read => read,
            }
        })
    }

    fn wait(&self, stream: Name, offset: u64, patience: Duration) -> BoxFuture<'_, Result<bool, StreamError>> {
        Box::pin(self.wait_for(stream, offset, patience))
    }

    fn commit(&self, stream: Name, cursor: Name, offset: u64) -> BoxFuture<'_, Result<(), StreamError>> {
        Box::pin(async move {
            let request = StreamRequest::Commit { stream, cursor, offset };
            self.change(&request, Again::Writes).await.map(drop)
        })
    }

    fn cursor(&self, stream: Name, cursor: Name) -> BoxFuture<'_, Result<u64, StreamError>> {
        Box::pin(async move {
            let call = CallV1::StreamCursor { stream: stream.to_string(), cursor: cursor.to_string() };
            match self.ask(&call, Again::Reads).await? {
                AnswerV1::Offset(offset) => Ok(offset),
                _ => Err(StreamError::Unknown),
            }
        })
    }

    fn seal(&self, stream: Name, epoch: u64) -> BoxFuture<'_, Result<u64, StreamError>> {
        Box::pin(async move {
            match self.change(&StreamRequest::Seal { stream, epoch }, Again::Writes).await? {
                AnswerV1::Offset(end) => Ok(end),
                _ => Err(StreamError::Unknown),
            }
        })
    }

    fn delete(&self, stream: Name, epoch: Option<u64>) -> BoxFuture<'_, Result<(), StreamError>> {
        Box::pin(async move { self.change(&StreamRequest::Delete { stream, epoch }, Again::Never).await.map(drop) })
    }

    fn list(&self, consistency: Consistency) -> BoxFuture<'_, Result<Vec<StreamInfo>, StreamError>> {
        Box::pin(async move { self.infos(&CallV1::StreamList { stale: consistency == Consistency::Stale }).await })
    }

    fn describe(&self, stream: Name, consistency: Consistency) -> BoxFuture<'_, Result<StreamInfo, StreamError>> {
        Box::pin(async move {
            let stale = consistency == Consistency::Stale;
            let call = CallV1::StreamDescribe { stream: stream.to_string(), stale };
            self.infos(&call).await?.into_iter().next().ok_or(StreamError::NotFound(stream))
        })
    }

    /// What an agent's node is in a hurry for is told to the servers by their store.
    fn give_way(&self, _: Reach, _: Waits) {}

    fn not_serving(&self) -> Option<NotServing> {
        self.core.not_serving()
    }

    fn metrics(&self) -> StreamsMetrics {
        StreamsMetrics::default()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StreamError>> {
        Box::pin(async move {
            self.in_flight.close();
            self.core.shut();
            Ok(())
        })
    }
}

impl Drop for RemoteStreams {
    fn drop(&mut self) {
        self.core.shut();
    }
}
