//! The whole store, with its streams, as one file, while it goes on serving. Blocks are encoded as the client takes them; a client that takes
//! none for a while is cut off, because what it has not taken is held in memory.
//! Deliberately absent: the format (`data/raft`), and writing it to a disk (`seawall snapshot save`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use data::{BoxFuture, StoreError};
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc};

use crate::Context;
use crate::problem::Problem;
use crate::query::{Nothing, Parameters};

/// A store's content and its streams', block by block. Reads the disk.
pub type Blocks = Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send>;

/// Asks for everything that was acknowledged before.
pub type Save = Arc<dyn Fn() -> BoxFuture<'static, Result<Blocks, StoreError>> + Send + Sync>;

/// Snapshots that are sent at once; a further one is refused.
static PLACES: Semaphore = Semaphore::const_new(2);
/// Blocks that wait for the client.
pub const WAITING: usize = 4;
/// Longest wait for the client to take a block.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Sends the store.
pub async fn save(State(context): State<Context>, _: Parameters<Nothing>) -> Result<Response, Problem> {
    let Ok(place) = PLACES.try_acquire() else {
        let error = "two snapshots are being saved already";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, error, "try again when one is complete"));
    };
    let blocks = (context.save)().await?;
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        send(blocks, sender, PATIENCE).await;
        drop(place);
    });
    let headers = [("content-type", "application/octet-stream"), ("cache-control", "no-store")];
    Ok((headers, Body::from_stream(received(receiver))).into_response())
}

/// `None` is the end; without it, something is missing.
pub async fn send(mut blocks: Blocks, to: mpsc::Sender<Option<Bytes>>, patience: Duration) {
    loop {
        // The disk may be slow: nobody else waits for it.
        let next = tokio::task::spawn_blocking(move || (blocks.next(), blocks)).await;
        let Ok((block, rest)) = next else { return };
        blocks = rest;
        let block = match block {
            None => break,
            Some(Ok(block)) => block,
            Some(Err(error)) => return tracing::error!(%error, "a snapshot broke off: what it needs cannot be read"),
        };
        let sent = tokio::time::timeout(patience, to.send(Some(block.into()))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
    // The client may have gone.
    let _ = tokio::time::timeout(patience, to.send(None)).await;
}

/// The body: it breaks off, instead of ending, if it is not complete.
pub fn received(receiver: mpsc::Receiver<Option<Bytes>>) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Some(block)) => Some((Ok(block), Some(receiver))),
            Some(None) => None,
            None => Some((Err(io::Error::from(io::ErrorKind::TimedOut)), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use tokio::sync::mpsc;

    use super::{Blocks, received, send};

    fn three() -> Blocks {
        Box::new((0..3).map(|number| Ok(vec![number])))
    }

    #[tokio::test]
    async fn a_client_gets_all_of_it_and_then_the_end() {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(send(three(), sender, Duration::from_secs(20)));
        let got: Vec<_> = received(receiver).map(|block| block.unwrap()[0]).collect().await;
        assert_eq!(got, [0, 1, 2]);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_cut_off_and_can_tell() {
        let (sender, receiver) = mpsc::channel(1);
        send(three(), sender, Duration::from_millis(20)).await;
        let got: Vec<_> = received(receiver).map(|block| block.is_ok()).collect().await;
        assert_eq!(got, [true, false], "one block waited for it, and there is no end without the others");
    }
}
