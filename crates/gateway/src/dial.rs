//! A new connection to an instance: TCP, then what the service wants in front of HTTP: a PROXY header, TLS, HTTP/2.
//! Part of the forward step. The client may leave and the request's time may end meanwhile.
//! Deliberately absent: which instance, idle connections (`pool.rs`), whether to try again (`pipeline.rs`).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use guard::{Deadline, Failure};
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::balance::Taken;
use crate::carrier::Carrier;
use crate::connection::Client;
use crate::forward::Failed;
use crate::front::Front;
use crate::handshake::Distrust;
use crate::proxy_protocol;
use crate::service::Service;
use crate::worker::Worker;

/// A connection over loopback is made or refused at once. One that is still pending has lost its first packet, to a full
/// backlog or to the closing listener of a process that was just killed. The system sends it again only after a whole
/// second, and whoever listens on the port by then may be somebody else: the gateway does not wait for that.
const LOOPBACK_PATIENCE: Duration = Duration::from_millis(25);

/// Connects, as far as the first byte of HTTP.
pub(crate) async fn dial<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    deadline: Deadline,
    service: &Service,
    taken: &Taken,
    now: Instant,
) -> Result<Carrier, Failed> {
    let until = now + worker.options.connect_timeout;
    let mut stream = connect(worker, client, deadline, service, taken, (now, until)).await?;
    let _ = stream.set_nodelay(true);
    let upstream = taken.upstream();
    if upstream.proxy_protocol.is_none() && upstream.tls.is_none() {
        return Ok(Carrier::Plain(stream));
    }
    let (peer, address) = (client.origin.peer, taken.endpoint().address);
    // In a box: every connection of a client would have room for it.
    let greet = Box::pin(async {
        if let Some(version) = upstream.proxy_protocol {
            stream.write_all(&proxy_protocol::header(version, peer, address)).await?;
        }
        let Some(tls) = &upstream.tls else { return Ok(Carrier::Plain(stream)) };
        let name = tls.server_name.clone().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
        let config = if upstream.http2 { &tls.http2 } else { &tls.http1 };
        let stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await?;
        Ok(Carrier::Tls(Box::new(stream.into())))
    });
    let greeted = during(worker, client, deadline, (taken, until), greet).await?;
    if greeted.is_ok() && upstream.tls.is_some() {
        taken.instance().believe();
    }
    greeted.map_err(|error: io::Error| match Distrust::of(&error) {
        None => Failed::Before(Failure::NothingWritten),
        Some(distrust) => {
            taken.instance().metrics.distrusted(distrust);
            // Once for each cause, until it is trusted again: every request meets the same.
            if taken.instance().is_new(distrust) {
                let (service, instance, cause) = (service.name(), &taken.endpoint().id, distrust.word());
                tracing::error!(%service, %instance, %address, cause, %error, "no TLS with the instance, requests get 502: see `tls` of the service, and the instance's certificate");
            }
            Failed::Distrusted(distrust)
        }
    })
}

/// Does a step of setting a connection up, unless the client leaves, the instance is lost or time ends first.
pub(crate) async fn during<S: Front, T>(
    worker: &Worker,
    client: &mut Client<S>,
    deadline: Deadline,
    (taken, until): (&Taken, Instant),
    step: impl Future<Output = T>,
) -> Result<T, Failed> {
    let mut step = pin!(step);
    let mut ending = taken.ending();
    poll_fn(|cx| {
        if client.poll_gone(cx, worker).is_ready() {
            return Poll::Ready(Err(Failed::Gone));
        }
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if ending.poll(cx).is_ready() {
            return Poll::Ready(Err(Failed::Before(Failure::NothingWritten)));
        }
        if client.timer.poll_at(cx, deadline.or_earlier(Some(until))).is_pending() {
            return Poll::Pending;
        }
        let late = deadline.expired(Instant::now());
        Poll::Ready(Err(if late { Failed::Deadline { begun: false } } else { Failed::Before(Failure::NothingWritten) }))
    })
    .await
}

async fn connect<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    deadline: Deadline,
    service: &Service,
    taken: &Taken,
    (begun, until): (Instant, Instant),
) -> Result<TcpStream, Failed> {
    let address = taken.endpoint().address;
    let patience = if address.ip().is_loopback() { LOOPBACK_PATIENCE } else { worker.options.connect_timeout };
    let mut again_at = begun + patience;
    let connect = || TcpStream::connect(address);
    let mut connecting = pin!(connect());
    let mut ending = taken.ending();
    poll_fn(|cx| {
        if client.poll_gone(cx, worker).is_ready() {
            return Poll::Ready(Err(Failed::Gone));
        }
        if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
            return Poll::Ready(connected.map_err(|_| Failed::Before(Failure::NothingWritten)));
        }
        if ending.poll(cx).is_ready() {
            return Poll::Ready(Err(Failed::Before(Failure::NothingWritten)));
        }
        let wake = Some(until.min(again_at));
        if client.timer.poll_at(cx, deadline.or_earlier(wake)).is_pending() {
            return Poll::Pending;
        }
        let now = Instant::now();
        if deadline.expired(now) {
            return Poll::Ready(Err(Failed::Deadline { begun: false }));
        }
        if now >= until || !taken.is_current(service) {
            return Poll::Ready(Err(Failed::Before(Failure::NothingWritten)));
        }
        again_at = now + patience;
        connecting.set(connect());
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}
