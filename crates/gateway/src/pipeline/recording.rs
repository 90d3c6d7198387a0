//! The record step of the request walk: metrics always, a tally for whoever judges a shift, a record if somebody listens.
//! Deliberately absent: what is recorded of an attempt (`pipeline.rs`, `Guard`).

use std::time::{Duration, SystemTime};

use traffic::Tally;

use super::{End, Walk};
use crate::answer::Answer;
use crate::chains::Chains;
use crate::connection::Client;
use crate::forward::Done;
use crate::guards::FallbackReason;
use crate::record::AccessRecord;
use crate::worker::Worker;

/// A failure of the gateway's own is known to its chain before the answer is out, as an instance's is: whoever gets it may be
/// done, and judged, before it is recorded here.
pub(super) fn foretell<S>(worker: &Worker, client: &Client<S>, walk: &Walk, end: &End) {
    if matches!(end, End::Answer(answer) if answer.status >= 500) {
        worker.table.chains.failed(walk.identity.traceparent(&client.head));
    }
}

/// Metrics always, an access record if somebody listens.
pub(super) fn record<S>(worker: &Worker, client: &Client<S>, walk: &Walk, end: &End, delivered: bool) {
    let took = match end {
        End::Done(Done { switched_after: Some(took), .. }) => *took,
        _ => walk.begun.elapsed(),
    };
    let (status, reason, bytes) = match end {
        End::Done(done) => (done.status, walk.instead.map(FallbackReason::word), client.download.passed),
        End::Redirect { status, .. } if delivered => (*status, None, 0),
        End::Challenge(_) if delivered => (200, Some(Answer::CHALLENGE.reason), 0),
        End::Answer(answer) if delivered => (answer.status, Some(answer.reason), 0),
        End::Fallback(answer, fallback) if delivered => (fallback.status, Some(answer.reason), 0),
        End::Kept(answer, kept) if delivered => (200, Some(answer.reason), kept.body.len() as u64),
        End::Answer(_) | End::Fallback(..) | End::Kept(..) | End::Challenge(_) | End::Redirect { .. } | End::Gone => {
            (0, Some("client-gone"), 0)
        }
        End::Cut(answer) => (answer.status, Some(answer.reason), client.download.passed),
    };
    if status >= 500 {
        worker.table.chains.failed(walk.identity.traceparent(&client.head));
    }
    if let Some(series) = walk.route.as_ref().and_then(|route| route.series.as_ref()) {
        series.metrics.answered(status, took);
    }
    match walk.destination() {
        Some(to) => {
            to.service.metrics.answered(status, took);
            to.service.metrics.sent.inc_by(bytes);
            if let Some(tally) = to.tally.as_ref().filter(|_| !walk.hurried || !end.is_late()) {
                let elsewhere = walk.instead.is_some();
                count(
                    tally,
                    &worker.table.chains,
                    walk.identity.traceparent(&client.head),
                    (end, elsewhere),
                    status,
                    took,
                );
            }
        }
        None => worker.metrics.unrouted(status, took),
    }
    if let Some(log) = &worker.options.access_log {
        let Ok(slot) = log.try_reserve() else { return worker.metrics.record_dropped() };
        slot.send(access_record(client, walk, status, reason, bytes, took));
    }
}

/// For whoever judges a shift: what an answer from elsewhere hides from clients counts all the same, and a client that left
/// says nothing.
fn count(
    tally: &Tally,
    chains: &Chains,
    traceparent: &[u8],
    (end, elsewhere): (&End, bool),
    status: u16,
    took: Duration,
) {
    let failed = match end {
        End::Gone | End::Challenge(_) | End::Redirect { .. } => return,
        // Done on purpose: it says nothing of the destination.
        End::Answer(answer) if answer.reason == Answer::fault(0).reason => return,
        End::Fallback(answer, _) if answer.reason == Answer::PREFLIGHT.reason => return,
        End::Done(_) | End::Answer(_) if status == 0 => return,
        End::Done(_) | End::Answer(_) => elsewhere || status >= 500,
        End::Fallback(..) | End::Kept(..) | End::Cut(_) => true,
    };
    tally.add(failed, failed || chains.has_failed(traceparent), took);
}

fn access_record<S>(
    client: &Client<S>,
    walk: &Walk,
    status: u16,
    reason: Option<&'static str>,
    bytes: u64,
    took: Duration,
) -> AccessRecord {
    let head = &client.head;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let traceparent = walk.identity.traceparent(head);
    AccessRecord {
        at: SystemTime::now().checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH),
        client: client.origin.peer,
        method: text(head.method()),
        path: text(head.path_and_query()),
        host: text(head.authority()),
        status,
        reason,
        service: walk.destination().map(|to| to.service.name().clone()),
        instance: walk.instance.as_ref().map(|instance| instance.id.clone()),
        duration: took,
        bytes,
        trace_id: text(traceparent.get(3..35).unwrap_or_default()),
        request_id: text(walk.identity.request_id(head)),
    }
}
