//! The first words on a connection: each side says who it is, and is refused with a reason if it is not wanted.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft::async_runtime::watch::WatchReceiver;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::book::NoteV1;
use super::frame::{Frame, Kind};
use super::message::{HelloV1, payload};
use super::{Inner, agents};
use crate::replica::Leader;
use crate::transport::{Connection, Stream};
use crate::wal::lock;
use crate::wire;

/// Longest time for connecting and greeting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Versions of the conversation spoken here. The third one knows requests for certificates, the fourth one witnesses, the
/// fifth one agents, the sixth one giving way, the seventh one leases that go on without a quorum.
const VERSIONS: (u16, u16) = (2, 7);
/// What a witness speaks: who does not know that it has no data must not count on it.
const KNOWS_WITNESSES: u16 = 4;
/// What an agent speaks: who does not know it would take it for a node that wants to become a member.
const KNOWS_AGENTS: u16 = 5;
/// What may be asked to give way.
pub(crate) const KNOWS_GIVING_WAY: u16 = 6;
/// What may be asked whether a lease goes on.
pub(crate) const KNOWS_CONFIRMING: u16 = 7;
/// Read at once.
const READ_BYTES: usize = 64 * 1024;

/// A connection whose other side is known.
pub(crate) struct Greeted {
    pub hello: HelloV1,
    /// It is an agent: it has no part in the groups, and asks for what servers do.
    pub agent: bool,
    pub frames: Frames,
    pub out: WriteHalf<Box<dyn Stream>>,
}

/// More of who a node is, behind a [`HelloV1`]: who does not know it does not read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HelloMoreV1 {
    /// It votes and keeps the log, and has no data.
    pub witness: bool,
}

/// Behind all of these, of one that was never let in alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HelloAfterV1 {
    /// It holds a part of the log, which names it nowhere: it was not removed.
    pub unlisted: bool,
}

/// Behind both, of an agent alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HelloLastV1 {
    /// It neither votes nor stores: it is never counted, listed or let in.
    pub agent: bool,
}

/// Frames as they come.
pub(crate) struct Frames {
    half: ReadHalf<Box<dyn Stream>>,
    bytes: BytesMut,
}

impl Frames {
    /// The next frame; `None` at the end.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            if let Some(frame) = Frame::take(&mut self.bytes).map_err(invalid)? {
                return Ok(Some(frame));
            }
            self.bytes.reserve(READ_BYTES);
            if self.half.read_buf(&mut self.bytes).await? == 0 {
                return if self.bytes.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

/// Greets a node that was called; it must be the one expected, if one is.
pub(crate) async fn greet(inner: &Inner, connection: Connection, expects: Option<u64>) -> io::Result<Greeted> {
    let (mut frames, mut out, proved, from) = split(connection);
    send(&mut out, Kind::Hello, own(inner, expects)).await?;
    let (hello, more, last, _) = receive(&mut frames).await?;
    check(inner, &hello, proved.as_deref()).map_err(|why| io::Error::new(io::ErrorKind::PermissionDenied, why))?;
    if expects.is_some_and(|expected| expected != hello.id) {
        let why = format!("another node ({}) answers there", hello.name);
        return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    }
    note(inner, &hello, more, from);
    Ok(Greeted { hello, agent: last.agent, frames, out })
}

/// Answers a node that called.
pub(crate) async fn answer(inner: &Inner, connection: Connection) -> io::Result<Greeted> {
    let (mut frames, mut out, proved, from) = split(connection);
    let (hello, more, last, after) = receive(&mut frames).await?;
    let refused = match check(inner, &hello, proved.as_deref()) {
        Ok(()) if last.agent => agents::refusal(inner, &hello.name),
        Ok(()) => None,
        Err(why) => Some(why),
    };
    if let Some(why) = refused {
        send(&mut out, Kind::Refused, payload(&why)).await?;
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if hello.member && !after.unlisted && is_stranger(inner, hello.id) {
        let why = format!("{} was removed from the cluster: wipe its data directory to join again", hello.name);
        send(&mut out, Kind::Refused, payload(&why)).await?;
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if hello.expects.is_some_and(|expected| expected != inner.identity().id) {
        let why = format!("node {} is here, with a store of its own", inner.options.name);
        send(&mut out, Kind::Refused, payload(&why)).await?;
        return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    }
    send(&mut out, Kind::Hello, own(inner, None)).await?;
    // Nobody but the nodes that it asks has to do with an agent: it stands in no book, so that none is told of it.
    if !last.agent {
        note(inner, &hello, more, from);
    }
    Ok(Greeted { hello, agent: last.agent, frames, out })
}

/// A node that takes itself for a member, while this one knows the members and it is none of them. Who hears of no leader
/// may have missed that it was let in; and whoever leads is a member, known or not.
fn is_stranger(inner: &Inner, id: u64) -> bool {
    let Some(group) = inner.group(0) else { return false };
    match group.replica.leader() {
        Leader::Nobody => return false,
        Leader::There(leader) if leader == id => return false,
        Leader::Here | Leader::There(_) => {}
    }
    let metrics = group.replica.raft.metrics();
    let metrics = metrics.borrow_watched();
    let members = metrics.membership_config.membership();
    members.get_node(&inner.identity().id).is_some() && members.get_node(&id).is_none()
}

type Parts = (Frames, WriteHalf<Box<dyn Stream>>, Option<std::sync::Arc<str>>, Option<IpAddr>);

fn split(connection: Connection) -> Parts {
    let (half, out) = tokio::io::split(connection.stream);
    (Frames { half, bytes: BytesMut::new() }, out, connection.proved, connection.from)
}

fn versions(inner: &Inner) -> (u16, u16) {
    match (inner.options.agent, inner.options.witness) {
        (true, _) => (KNOWS_AGENTS, VERSIONS.1),
        (false, true) => (KNOWS_WITNESSES, VERSIONS.1),
        (false, false) => VERSIONS,
    }
}

/// What this node says of itself: no more than older versions do, unless it is a witness or an agent.
fn own(inner: &Inner, expects: Option<u64>) -> Bytes {
    let identity = inner.identity();
    let hello = HelloV1 {
        versions: versions(inner),
        cluster: inner.options.cluster.clone(),
        name: inner.options.name.clone(),
        id: identity.id,
        store_id: identity.store_id,
        advertise: inner.options.advertise.clone(),
        member: inner.member.load(Ordering::Acquire),
        expects,
        began_ms: inner.began_ms,
        others: lock(&inner.book).notes(),
    };
    if inner.unlisted.load(Ordering::Acquire) {
        let more = HelloMoreV1 { witness: inner.options.witness };
        return payload(&(hello, more, HelloLastV1::default(), HelloAfterV1 { unlisted: true }));
    }
    if inner.options.agent {
        return payload(&(hello, HelloMoreV1::default(), HelloLastV1 { agent: true }));
    }
    if inner.options.witness { payload(&(hello, HelloMoreV1 { witness: true })) } else { payload(&hello) }
}

async fn send(out: &mut WriteHalf<Box<dyn Stream>>, kind: Kind, payload: Bytes) -> io::Result<()> {
    let mut bytes = BytesMut::new();
    Frame { kind, group: 0, call: 0, payload }.encode(&mut bytes);
    out.write_all(&bytes).await?;
    out.flush().await
}

async fn receive(frames: &mut Frames) -> io::Result<(HelloV1, HelloMoreV1, HelloLastV1, HelloAfterV1)> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let frame = frames.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match frame.kind {
        Kind::Hello => {
            let bytes = &frame.payload;
            // Whoever has no more to say ends earlier.
            let three = || wire::decode(bytes).map(|(hello, more, last)| (hello, more, last, Default::default()));
            let both =
                || wire::decode(bytes).map(|(hello, more)| (hello, more, Default::default(), Default::default()));
            let alone =
                || wire::decode(bytes).map(|hello| (hello, Default::default(), Default::default(), Default::default()));
            let all = wire::decode(bytes).or_else(|_| three()).or_else(|_| both()).or_else(|_| alone());
            all.map_err(|error| invalid(error.to_string()))
        }
        Kind::Refused => {
            let why: String = wire::decode(&frame.payload).map_err(|error| invalid(error.to_string()))?;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
        other => Err(invalid(format!("it begins with {other:?} instead of a hello"))),
    }
}

fn check(inner: &Inner, hello: &HelloV1, proved: Option<&str>) -> Result<(), String> {
    let options = &inner.options;
    let versions = versions(inner);
    if hello.versions.0 > versions.1 || hello.versions.1 < versions.0 {
        return Err(format!(
            "{} speaks versions {} to {} of the peers' protocol, {} speaks {} to {}: upgrade the older one",
            hello.name, hello.versions.0, hello.versions.1, options.name, versions.0, versions.1
        ));
    }
    if hello.cluster != options.cluster {
        return Err(format!(
            "{} belongs to cluster {}, {} to {}",
            hello.name, hello.cluster, options.name, options.cluster
        ));
    }
    if let Some(proved) = proved.filter(|proved| *proved != hello.name) {
        return Err(format!("a node that calls itself {} shows the certificate of {proved}", hello.name));
    }
    let identity = inner.identity();
    if hello.name == options.name && hello.id != identity.id {
        return Err(format!("two nodes are called {}: names must differ", hello.name));
    }
    if hello.id == identity.id && hello.store_id != identity.store_id {
        return Err(format!(
            "{} and {} have the same number: wipe the data directory of the newer one",
            hello.name, options.name
        ));
    }
    Ok(())
}

fn note(inner: &Inner, hello: &HelloV1, more: HelloMoreV1, from: Option<IpAddr>) {
    if hello.id == inner.identity().id {
        return;
    }
    let address = match (hello.advertise.parse::<std::net::SocketAddr>(), from) {
        // It listens everywhere and does not know under which address it is seen.
        (Ok(address), Some(from)) if address.ip().is_unspecified() => {
            std::net::SocketAddr::new(from, address.port()).to_string()
        }
        _ => hello.advertise.clone(),
    };
    let own = inner.identity().id;
    let mut book = lock(&inner.book);
    hello.others.iter().filter(|note| note.id != own).for_each(|note| book.told(note));
    let note = NoteV1 { id: hello.id, name: hello.name.clone(), address, began_ms: hello.began_ms };
    book.heard(&note, hello.member);
    book.is_a_witness(hello.id, more.witness);
}
