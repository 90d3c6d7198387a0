//! A network in memory for tests: addresses are names, and any cable can be cut and mended.
//! A cut connection behaves like an unplugged one: nothing arrives and nothing is told.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use data::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use super::{Accepted, Connection, Transport};
use crate::wal::lock;

/// Bytes on their way in one direction of a connection.
const BUFFER_BYTES: usize = 256 * 1024;
/// Connections not accepted yet.
const BACKLOG: usize = 64;

/// All nodes of a test and the cables between them.
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork(Arc<Mutex<Cables>>);

#[derive(Debug, Default)]
struct Cables {
    nodes: BTreeMap<String, mpsc::Sender<(DuplexStream, Cable)>>,
    /// From whom to whom nothing arrives.
    cut: BTreeSet<(String, String)>,
    waiting: Vec<Waker>,
}

/// One end of a connection.
#[derive(Clone, Debug)]
struct Cable {
    network: MemoryNetwork,
    here: String,
    there: String,
}

/// One node's place in a [`MemoryNetwork`].
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    address: String,
    incoming: tokio::sync::Mutex<mpsc::Receiver<(DuplexStream, Cable)>>,
}

impl MemoryNetwork {
    /// A place for a node; one that was there under this address is gone.
    pub fn attach(&self, address: &str) -> MemoryTransport {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        lock(&self.0).nodes.insert(address.to_owned(), sender);
        MemoryTransport { network: self.clone(), address: address.to_owned(), incoming: incoming.into() }
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: &str, to: &str) {
        lock(&self.0).cut.insert((from.to_owned(), to.to_owned()));
    }

    /// Cuts a node off from everybody, in both directions.
    pub fn isolate(&self, address: &str) {
        let others: Vec<String> = lock(&self.0).nodes.keys().filter(|other| *other != address).cloned().collect();
        for other in others {
            self.cut(address, &other);
            self.cut(&other, address);
        }
    }

    /// Mends every cable.
    pub fn heal(&self) {
        let waiting = {
            let mut cables = lock(&self.0);
            cables.cut.clear();
            std::mem::take(&mut cables.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn is_cut(&self, from: &str, to: &str, context: Option<&Context<'_>>) -> bool {
        let mut cables = lock(&self.0);
        let cut = cables.cut.contains(&(from.to_owned(), to.to_owned()));
        if let Some(context) = context.filter(|_| cut) {
            cables.waiting.push(context.waker().clone());
        }
        cut
    }
}

impl Transport for MemoryTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let (network, here) = (&self.network, &self.address);
            if network.is_cut(here, address, None) || network.is_cut(address, here, None) {
                // As with a cable that is cut: no answer, no refusal.
                std::future::pending::<()>().await;
            }
            let listener = lock(&network.0).nodes.get(address).cloned().ok_or(io::ErrorKind::ConnectionRefused)?;
            let (mine, theirs) = tokio::io::duplex(BUFFER_BYTES);
            let cable = |here: &str, there: &str| Cable {
                network: network.clone(),
                here: here.to_owned(),
                there: there.to_owned(),
            };
            let offered = (theirs, cable(address, here));
            listener.try_send(offered).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            let stream = Wire { inner: mine, cable: cable(here, address) };
            Ok(Connection { stream: Box::new(stream), proved: None, from: None })
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            let next = self.incoming.lock().await.recv().await;
            let (inner, cable) = next.ok_or(io::ErrorKind::NotConnected)?;
            let connection = Connection { stream: Box::new(Wire { inner, cable }), proved: None, from: None };
            let accepted: Accepted = Box::pin(std::future::ready(Ok(Some(connection))));
            Ok(accepted)
        })
    }
}

/// A stream that stalls while its cable is cut.
struct Wire {
    inner: DuplexStream,
    cable: Cable,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cable.network.is_cut(&self.cable.there, &self.cable.here, Some(cx)) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.cable.network.is_cut(&self.cable.here, &self.cable.there, Some(cx)) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
