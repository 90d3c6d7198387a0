//! A connection that becomes a tunnel, because client and instance agree on another protocol. Part of the forward step.
//! Deliberately absent: the bytes that pass then (`tunnel.rs`).

use std::future::poll_fn;
use std::time::Instant;

use super::{Done, Exchange, Failed};
use crate::balance::Taken;
use crate::front::Front;
use crate::heads::{Delivery, write_response};
use crate::http1::Decoder;
use crate::pool::Link;
use crate::service::Service;
use crate::tunnel;

impl<S: Front> Exchange<'_, S> {
    /// The instance has accepted the upgrade: the client is told, then bytes pass until either side has enough.
    pub(super) async fn switch(
        &mut self,
        mut link: Box<Link>,
        length: usize,
        service: &Service,
        taken: &Taken,
        begun: Instant,
    ) -> Result<Done, Failed> {
        let client = &mut *self.client;
        client.download.staged.clear();
        let (bytes, version) = (&link.input.filled()[..length], client.head.version());
        let edits = &self.route.policy.response;
        write_response(&mut client.download.staged, &client.response, bytes, Delivery::Upgrade, version, true, edits);
        client.download.begin(Decoder::Length(0), false);
        link.input.consume(length);
        poll_fn(|cx| self.poll_relay(cx, &mut link)).await?;
        let switched_after = Some(begun.elapsed());
        let moved = Box::pin(tunnel::run(self.worker, self.client, &mut link, service, taken)).await;
        self.client.upload.passed = moved.from_client;
        self.client.download.passed = moved.to_client;
        Ok(Done { status: 101, keep: false, switched_after })
    }
}
