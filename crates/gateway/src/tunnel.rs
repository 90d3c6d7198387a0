//! Bytes in both directions as they come: behind an accepted upgrade (RFC 9110, 7.8) and for services that are not HTTP.
//! The end of the request walk for those. A side's end is passed on and the other direction goes on; a primary that
//! is one no longer is cut off, and so is an instance that is lost. Deliberately absent: what the bytes mean.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::balance::Taken;
use crate::buffer::{Buffer, Spares};
use crate::carrier::Wire;
use crate::connection::Client;
use crate::forward::LOOK;
use crate::front::Front;
use crate::pool::Link;
use crate::service::Service;
use crate::worker::Worker;

/// How much went where.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) from_client: u64,
    pub(crate) to_client: u64,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    ended: bool,
    shut: bool,
    moved: u64,
}

/// Until both directions have ended, one broke, or nothing has moved for too long.
pub(crate) async fn run<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    link: &mut Link,
    service: &Service,
    taken: &Taken,
) -> Moved {
    let mut up = Way { ended: client.half_closed, ..Way::default() };
    let mut down = Way::default();
    let mut changed = pin!(service.swapped.notified());
    let mut ending = taken.ending();
    let (mut seen, mut since, mut look) = (0, Instant::now(), None);
    poll_fn(|cx| {
        while changed.as_mut().poll(cx).is_ready() {
            changed.set(service.swapped.notified());
        }
        if taken.is_deposed(service) || ending.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Client { stream, input, .. } = &mut *client;
        let Link { wire, input: answers, .. } = &mut *link;
        let sent = up.poll(cx, stream, input, wire, &worker.spares);
        let received = down.poll(cx, wire, answers, stream, &worker.spares);
        match (sent, received) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) | (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                return Poll::Ready(());
            }
            _ => {}
        }
        if seen != up.moved + down.moved {
            (seen, since) = (up.moved + down.moved, Instant::now());
        }
        let idle_at = since + worker.options.tunnel_idle_timeout;
        // Bytes that one side does not take hide the other side's end.
        let hidden = !client.input.is_empty() || !link.input.is_empty();
        loop {
            let look_at = if hidden { *look.get_or_insert_with(|| Instant::now() + LOOK) } else { idle_at };
            ready!(client.timer.poll_at(cx, Some(idle_at.min(look_at))));
            if Instant::now() >= idle_at || client.stream.is_broken() || link.wire.is_broken() {
                return Poll::Ready(());
            }
            look = None;
        }
    })
    .await;
    Moved { from_client: up.moved, to_client: down.moved }
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        buffer: &mut Buffer,
        sink: &mut (impl AsyncWrite + Unpin),
        spares: &Spares,
    ) -> Poll<io::Result<()>> {
        loop {
            while !buffer.is_empty() {
                let count = ready!(Pin::new(&mut *sink).poll_write(cx, buffer.filled()))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                buffer.consume(count);
                self.moved += count as u64;
            }
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx))?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            match buffer.poll_fill(cx, source, spares) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // A buffer that waits for bytes holds none: most tunnels are quiet most of the time.
                    buffer.release(spares);
                    return match Pin::new(&mut *sink).poll_flush(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }
}

/// Whether a wire can become a tunnel: HTTP/2 has no upgrade.
pub(crate) fn can_carry(wire: &Wire) -> bool {
    matches!(wire, Wire::Http1(_))
}
