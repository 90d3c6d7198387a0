//! What is answered when a service cannot: what it answered some time ago, another service, or a fixed answer, in this
//! order. The fallback step of the request walk, as far as it is a choice. Another service is asked as if the route led to
//! it: its guards hold, and its own fallback.
//! Deliberately absent: which answers are kept (`guards/kept.rs`), and the bytes (`answer.rs`).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::{End, Walk, attempts, tell};
use crate::answer::Answer;
use crate::connection::Client;
use crate::front::Front;
use crate::guards::{self, Fallback, FallbackKind, FallbackReason, Guards, Held};
use crate::http1::Framing;
use crate::routes::{CompiledRoute, Destination};
use crate::service::Service;
use crate::worker::Worker;

/// The most services asked one after the other. Configuration knows no circles; a gateway that changes its services one by
/// one may see one for a moment.
const MOST_HOPS: usize = 8;

impl Service {
    /// `Err` if nobody was there, or in time, and the service may have something else for its client. Boxed, so that a
    /// connection at rest has no room for it.
    pub(super) fn answers(&self, end: End) -> Result<End, Box<Answer>> {
        match end {
            End::Answer(answer) if FallbackReason::of(answer.reason).is_some() && self.guards.load().is_some() => {
                Err(Box::new(answer))
            }
            end => Ok(end),
        }
    }
}

/// What a client gets instead of the gateway's own `answer`, which is for when there is nothing.
pub(super) async fn answer<S: Front>(
    worker: &Rc<Worker>,
    client: &mut Client<S>,
    (route, to): (&Arc<CompiledRoute>, &Destination),
    walk: &mut Walk,
    refused: Box<Answer>,
) -> End {
    let mut answer = *refused;
    let mut next = Some(Destination { service: to.service.clone(), version: to.version.clone(), tally: None });
    let mut fixed: Option<(Arc<Guards>, Answer, Arc<Fallback>)> = None;
    for _ in 0..MOST_HOPS {
        let Some(guards) = next.as_ref().and_then(|to| to.service.guards.load_full()) else { break };
        let now = Instant::now();
        if let (Some(kept), Some(to)) = (&guards.kept, &next)
            && let Some(found) = kept.find(client, to, now)
        {
            guards.fell_back(answer.reason, FallbackKind::Cached);
            return End::Kept(answer, found);
        }
        if let Some(fallback) = &guards.told.fallback {
            fixed = Some((guards.clone(), answer, fallback.clone()));
        }
        // What a client has sent is not sent again by it.
        let repeatable = !walk.attempted || client.head.framing() == Framing::None || client.upload.replayable();
        let Some(name) = guards.told.fallback_service.as_ref().filter(|_| repeatable && !walk.deadline.expired(now))
        else {
            break;
        };
        guards.fell_back(answer.reason, FallbackKind::Service);
        walk.instead = walk.instead.or(FallbackReason::of(answer.reason));
        let other = Destination { service: worker.table.service(name), version: None, tally: None };
        match serve(worker, client, route, &other, walk).await {
            End::Answer(failed) => answer = failed,
            end => return end,
        }
        next = FallbackReason::of(answer.reason).is_some().then_some(other);
    }
    // Of several the last one asked, and then why it could not.
    match fixed {
        Some((guards, why, fallback)) => {
            guards.fell_back(why.reason, FallbackKind::Fixed);
            End::Fallback(why, fallback)
        }
        None => End::Answer(answer),
    }
}

/// Past the other service's guards to an answer of its instances.
async fn serve<S: Front>(
    worker: &Rc<Worker>,
    client: &mut Client<S>,
    route: &CompiledRoute,
    to: &Destination,
    walk: &mut Walk,
) -> End {
    let terms = (Instant::now(), walk.deadline);
    let admitted = match guards::admit(worker, client, &to.service, route, terms).await {
        Ok(admitted) => admitted,
        Err(refusal) => return End::refused(*refusal),
    };
    walk.took = None;
    let end = attempts(worker, client, route, to, admitted.as_ref().and_then(Held::get), walk).await;
    tell(worker, &to.service, admitted, &end, walk);
    end
}
