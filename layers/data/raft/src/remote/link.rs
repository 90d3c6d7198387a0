//! One connection to one server: calls and their answers, watches and what they yield, and the server's state, asked for
//! all the time: a server that does not answer is left after a moment and given up after another, whatever TCP says.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::wire::{AnswerV1, CallV1, ItemV1, ReasonV1, RefusalV1, StateV1};
use super::{Answer, Core, Stage};
use crate::peers::agents::WINDOW;
use crate::peers::frame::{Frame, Kind};
use crate::peers::hello::Greeted;
use crate::peers::message::payload;
use crate::wal::lock;
use crate::wire;

/// Frames that wait to be sent; more calls are refused.
const QUEUE: usize = 1024;
/// Between an answer of the server about its state and the next question.
const ASK_STATE: Duration = Duration::from_millis(250);
/// A server that has not answered for so long is not asked for anything if there is another one,
const SILENT: Duration = Duration::from_millis(300);
/// and its connection is given up after this.
const DEAD: Duration = Duration::from_secs(1);
/// Bytes gathered into one write.
const WRITE_BYTES: usize = 256 * 1024;
/// Most bytes of one answer, in parts: more than a store holds.
const MOST_BYTES: usize = 1024 * 1024 * 1024;

/// An answer: the parts that came before its end, and the end.
#[derive(Debug)]
pub(super) struct Answered {
    pub parts: Vec<Bytes>,
    pub end: Bytes,
}

impl Answered {
    pub(super) fn end(&self) -> Option<AnswerV1> {
        wire::decode(&self.end).ok()
    }
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Missed {
    /// It was not sent.
    NotSent,
    /// It was sent, and nobody knows what became of it.
    Lost,
    /// The server says no.
    Refused(RefusalV1),
}

/// Something to send.
enum Sent {
    Call(Frame, oneshot::Sender<Result<Answered, Missed>>),
    Watch(Frame, mpsc::Sender<ItemV1>),
    Word(Frame),
}

/// What waits for answers.
enum Waiting {
    Call { reply: oneshot::Sender<Result<Answered, Missed>>, parts: Vec<Bytes>, bytes: usize },
    Watch(mpsc::Sender<ItemV1>),
}

/// A connection that works.
pub(crate) struct Link {
    /// The server's number and name.
    pub id: u64,
    pub name: Arc<str>,
    queue: mpsc::Sender<Sent>,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    state: StateV1,
    /// Since when a question about the state has had no answer.
    asked: Option<Instant>,
}

/// A watch at this server.
pub(super) struct Upstream {
    pub link: Arc<Link>,
    pub items: mpsc::Receiver<ItemV1>,
    call: u64,
    /// Parts taken that the server was not told of.
    taken: u32,
}

impl Upstream {
    /// A part was taken: the server may send another.
    pub(super) fn took(&mut self) {
        self.taken += 1;
        if self.taken >= WINDOW / 2 {
            self.say(Kind::More, payload(&self.taken));
            self.taken = 0;
        }
    }

    /// No more than what has happened so far.
    pub(super) fn enough(&self) {
        self.say(Kind::Enough, Bytes::new());
    }

    fn say(&self, kind: Kind, payload: Bytes) {
        let frame = Frame { kind, group: 0, call: self.call, payload };
        // The connection may be gone, and the watch with it.
        let _ = self.link.queue.try_send(Sent::Word(frame));
    }
}

impl Link {
    /// Why the server does not serve this group, if so.
    pub(super) fn problem(&self, group: u16) -> Option<ReasonV1> {
        let health = lock(&self.health);
        if group == 0 { health.state.problem.clone() } else { health.state.streams_problem.clone() }
    }

    pub(super) fn state(&self) -> StateV1 {
        lock(&self.health).state.clone()
    }

    /// It has not answered for a moment.
    pub(super) fn is_silent(&self) -> bool {
        lock(&self.health).asked.is_some_and(|asked| asked.elapsed() > SILENT)
    }

    pub(super) fn ask(&self, call: u64, group: u16, payload: Bytes) -> Answer {
        let (reply, answer) = oneshot::channel();
        let frame = Frame { kind: Kind::Ask, group, call, payload };
        // One that is not taken is dropped, and so told.
        let _ = self.queue.try_send(Sent::Call(frame, reply));
        Answer(answer)
    }

    /// Begins a watch at once; none if the connection takes nothing more.
    pub(super) fn watch(self: &Arc<Self>, call: u64, asked: &CallV1) -> Option<Upstream> {
        let (sender, items) = mpsc::channel(WINDOW as usize);
        let frame = Frame { kind: Kind::Ask, group: 0, call, payload: payload(asked) };
        self.queue.try_send(Sent::Watch(frame, sender)).ok()?;
        Some(Upstream { link: Arc::clone(self), items, call, taken: 0 })
    }
}

/// Runs a connection to its end.
pub(super) async fn run(core: Arc<Core>, greeted: Greeted) {
    let Greeted { hello, mut frames, mut out, .. } = greeted;
    let (queue, mut sent) = mpsc::channel::<Sent>(QUEUE);
    let link = Arc::new(Link { id: hello.id, name: hello.name.into(), queue, health: Mutex::default() });
    let waiting: Mutex<BTreeMap<u64, Waiting>> = Mutex::default();
    let sending = async {
        let mut bytes = BytesMut::new();
        while let Some(next) = sent.recv().await {
            encode(next, &waiting, &mut bytes);
            while bytes.len() < WRITE_BYTES
                && let Ok(next) = sent.try_recv()
            {
                encode(next, &waiting, &mut bytes);
            }
            out.write_all_buf(&mut bytes).await?;
            out.flush().await?;
        }
        io::Result::Ok(())
    };
    let receiving = async {
        while let Some(frame) = frames.next().await? {
            receive(&waiting, frame)?;
        }
        io::Result::Err(io::ErrorKind::UnexpectedEof.into())
    };
    let asking = ask_state(&core, &link);
    let closing = async {
        core.ends(Stage::Closed).await;
        io::Result::Ok(())
    };
    let ended = tokio::select! {
        // In this order: what has come counts before the time that it took, also after a pause of this process.
        biased;
        ended = receiving => ended,
        ended = sending => ended,
        ended = asking => ended,
        ended = closing => ended,
    };
    core.remove(&link);
    if let Err(error) = ended {
        tracing::debug!(server = %link.name, %error, "a connection to a server ended");
    }
    for waiting in std::mem::take(&mut *lock(&waiting)).into_values() {
        if let Waiting::Call { reply, .. } = waiting {
            // Who called may have stopped waiting.
            let _ = reply.send(Err(Missed::Lost));
        }
    }
}

fn encode(sent: Sent, waiting: &Mutex<BTreeMap<u64, Waiting>>, bytes: &mut BytesMut) {
    let mut waiting = lock(waiting);
    let (frame, waits) = match sent {
        Sent::Call(frame, reply) if !reply.is_closed() => {
            (frame, Some(Waiting::Call { reply, parts: Vec::new(), bytes: 0 }))
        }
        Sent::Call(..) => return,
        Sent::Watch(frame, items) => (frame, Some(Waiting::Watch(items))),
        Sent::Word(frame) => (frame, None),
    };
    frame.encode(bytes);
    if let Some(waits) = waits {
        waiting.retain(|_, waits| match waits {
            Waiting::Call { reply, .. } => !reply.is_closed(),
            Waiting::Watch(items) => !items.is_closed(),
        });
        waiting.insert(frame.call, waits);
    }
}

fn receive(waiting: &Mutex<BTreeMap<u64, Waiting>>, frame: Frame) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut waiting = lock(waiting);
    if frame.kind == Kind::Part {
        match waiting.get_mut(&frame.call) {
            Some(Waiting::Call { parts, bytes, .. }) => {
                *bytes += frame.payload.len();
                if *bytes > MOST_BYTES {
                    return Err(invalid("an answer is longer than any"));
                }
                parts.push(frame.payload);
            }
            Some(Waiting::Watch(items)) => {
                let item = wire::decode(&frame.payload).map_err(|error| invalid(&error.to_string()))?;
                if let Err(mpsc::error::TrySendError::Full(_)) = items.try_send(item) {
                    return Err(invalid("a watch yields more than was taken"));
                }
            }
            // Nobody waits for it any more.
            None => {}
        }
        return Ok(());
    }
    // A watch that ends is told by its items' end.
    let Some(Waiting::Call { reply, parts, .. }) = waiting.remove(&frame.call) else { return Ok(()) };
    let answer = match frame.kind {
        Kind::Reply => Ok(Answered { parts, end: frame.payload }),
        Kind::Failed => Err(wire::decode(&frame.payload).map_or(Missed::Lost, Missed::Refused)),
        _ => return Err(invalid("it answers with what is no answer")),
    };
    // Who called may have stopped waiting.
    let _ = reply.send(answer);
    Ok(())
}

/// Asks how the server is, again and again; with the first answer it can be asked for more.
async fn ask_state(core: &Arc<Core>, link: &Arc<Link>) -> io::Result<()> {
    let mut is_new = true;
    loop {
        lock(&link.health).asked = Some(Instant::now());
        let answer = link.ask(core.number(), core.group, payload(&CallV1::State)).within(DEAD).await;
        let state = match answer.map(|answered| answered.end()) {
            Ok(Some(AnswerV1::State(state))) => state,
            // So many calls wait that this one had no room.
            Err(Missed::NotSent) if !is_new => {
                tokio::time::sleep(ASK_STATE / 10).await;
                continue;
            }
            _ => return Err(io::ErrorKind::TimedOut.into()),
        };
        core.saw(state.revision);
        *lock(&link.health) = Health { state, asked: None };
        if std::mem::take(&mut is_new) {
            core.add(Arc::clone(link));
        }
        tokio::time::sleep(ASK_STATE).await;
    }
}
