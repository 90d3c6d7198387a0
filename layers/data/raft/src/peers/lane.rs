//! One lane to one node: a connection that is made when there is something to say, kept, and made anew after it broke.
//! While a node cannot be reached, calls to it fail at once between tries: whoever calls decides what to do meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::frame::{Frame, Kind};
use super::hello::Greeted;
use super::message::ErrorV1;
use super::{CallError, Inner, hello};
use crate::wal::lock;
use crate::wire;

/// First pause after a connection could not be made; doubled each time,
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// up to this one.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A connection on which calls wait and nothing comes for so long is given up.
const STALL: Duration = Duration::from_secs(3);
/// Bytes gathered into one write.
const WRITE_BYTES: usize = 256 * 1024;

/// A frame on its way and where its answer goes.
pub(crate) struct Call {
    pub frame: Frame,
    pub reply: oneshot::Sender<Result<Bytes, CallError>>,
}

impl Call {
    fn fail(self, why: &Arc<str>) {
        // Who called may have stopped waiting.
        let _ = self.reply.send(Err(CallError::NotSent(why.clone())));
    }
}

/// Until every handle is gone.
pub(crate) async fn run(inner: Weak<Inner>, to: u64, mut calls: mpsc::Receiver<Call>) {
    let mut pause = FIRST_PAUSE;
    while let Some(first) = calls.recv().await {
        if first.reply.is_closed() {
            continue;
        }
        let Some(peers) = inner.upgrade() else { return };
        let dialed = peers.dial(to).await;
        drop(peers);
        match dialed {
            Ok(greeted) => {
                pause = FIRST_PAUSE;
                exchange(greeted, first, &mut calls).await;
            }
            Err(error) => {
                let why: Arc<str> = error.to_string().into();
                first.fail(&why);
                let until = Instant::now() + pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                while let Ok(call) = tokio::time::timeout_at(until, calls.recv()).await {
                    match call {
                        Some(call) => call.fail(&why),
                        None => return,
                    }
                }
            }
        }
    }
}

/// Calls whose answer has not come.
#[derive(Default)]
struct Pending {
    calls: BTreeMap<u64, oneshot::Sender<Result<Bytes, CallError>>>,
    /// When something was last sent with nothing waiting before, or came.
    moved: Option<Instant>,
}

/// Sends calls and takes answers until the connection ends.
async fn exchange(greeted: Greeted, first: Call, calls: &mut mpsc::Receiver<Call>) {
    let Greeted { hello: other, mut frames, mut out, .. } = greeted;
    let newest = other.versions.1;
    let pending = Mutex::new(Pending::default());
    let sending = async {
        let mut bytes = BytesMut::new();
        let mut next = Some(first);
        while let Some(call) = next {
            encode(call, newest, &pending, &mut bytes);
            while bytes.len() < WRITE_BYTES
                && let Ok(call) = calls.try_recv()
            {
                encode(call, newest, &pending, &mut bytes);
            }
            out.write_all_buf(&mut bytes).await?;
            out.flush().await?;
            next = calls.recv().await;
        }
        io::Result::Ok(())
    };
    let receiving = async {
        while let Some(frame) = frames.next().await? {
            let answer = match frame.kind {
                Kind::Reply => Ok(frame.payload),
                _ => Err(failure(&frame.payload)),
            };
            let mut pending = lock(&pending);
            pending.moved = Some(Instant::now());
            if let Some(reply) = pending.calls.remove(&frame.call) {
                // Who called may have stopped waiting.
                let _ = reply.send(answer);
            }
        }
        io::Result::Err(io::ErrorKind::UnexpectedEof.into())
    };
    let stalled = async {
        loop {
            tokio::time::sleep(STALL / 4).await;
            let pending = lock(&pending);
            if !pending.calls.is_empty() && pending.moved.is_some_and(|moved| moved.elapsed() > STALL) {
                return io::Result::Err(io::ErrorKind::TimedOut.into());
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        biased;
        ended = sending => ended,
        ended = receiving => ended,
        ended = stalled => ended,
    };
    let why: Arc<str> = ended.err().map_or_else(|| "this node is stopping".into(), |error| error.to_string().into());
    for reply in std::mem::take(&mut lock(&pending).calls).into_values() {
        let _ = reply.send(Err(CallError::Lost(why.clone())));
    }
}

fn encode(call: Call, newest: u16, pending: &Mutex<Pending>, bytes: &mut BytesMut) {
    if call.reply.is_closed() {
        return;
    }
    // A frame that the other does not know would end the connection.
    let needs = match call.frame.kind {
        Kind::GiveWay => hello::KNOWS_GIVING_WAY,
        Kind::Confirm => hello::KNOWS_CONFIRMING,
        _ => 0,
    };
    if newest < needs {
        return call.fail(&"it is of an older version".into());
    }
    call.frame.encode(bytes);
    let mut pending = lock(pending);
    if pending.calls.is_empty() {
        pending.moved = Some(Instant::now());
    }
    pending.calls.retain(|_, reply| !reply.is_closed());
    pending.calls.insert(call.frame.call, call.reply);
}

fn failure(payload: &[u8]) -> CallError {
    match wire::decode::<ErrorV1>(payload) {
        Ok(error) => CallError::Failed(error.into()),
        Err(error) => CallError::Lost(error.to_string().into()),
    }
}
