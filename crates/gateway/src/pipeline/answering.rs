//! The fallback step of the request walk: what the client gets where no instance answered, and what becomes of its
//! connection. Deliberately absent: the bytes (`answer.rs`).

use super::{After, End};
use crate::answer::{self, Answer, With};
use crate::connection::Client;
use crate::front::Front;
use crate::http1::Framing;
use crate::worker::Worker;

/// The gateway's own answer where no instance gave one; what becomes of the connection, and whether it was taken.
pub(super) async fn fallback<S: Front>(worker: &Worker, client: &mut Client<S>, end: &End) -> (After, bool) {
    match end {
        End::Done(done) => (if done.keep { After::Keep } else { After::Close }, true),
        End::Gone | End::Cut(_) => (After::Abort, false),
        End::Challenge(page) => {
            let keep = client.head.keep_alive() && client.head.framing() == Framing::None && !worker.draining.get();
            let sent = answer::send(worker, client, &Answer::CHALLENGE, With::Body(page), keep).await;
            (closing(sent, keep), sent)
        }
        End::Redirect { status, location } => {
            let answer = Answer::redirect(*status);
            let keep = client.head.keep_alive() && client.head.framing() == Framing::None && !worker.draining.get();
            let sent = answer::send(worker, client, &answer, With::Location(location), keep).await;
            (closing(sent, keep), sent)
        }
        End::Fallback(answer, fallback) => {
            let keep = client.head.keep_alive() && client.head.framing() == Framing::None && !worker.draining.get();
            let sent = answer::send(worker, client, answer, With::Fallback(fallback), keep).await;
            (closing(sent, keep), sent)
        }
        End::Kept(answer, kept) => {
            let keep = client.head.keep_alive() && client.head.framing() == Framing::None && !worker.draining.get();
            let sent = answer::send(worker, client, answer, With::Kept(kept), keep).await;
            (closing(sent, keep), sent)
        }
        End::Answer(answer) => {
            if matches!(answer.reason, "bad-request") {
                worker.metrics.bad_request(answer.detail);
            }
            // A body not read would be taken for the next request.
            let keep = client.head.keep_alive() && client.head.framing() == Framing::None && !worker.draining.get();
            let sent = answer::send(worker, client, answer, With::Words, keep).await;
            (closing(sent, keep), sent)
        }
    }
}

fn closing(sent: bool, keep: bool) -> After {
    match (sent, keep) {
        (false, _) => After::Abort,
        (true, true) => After::Keep,
        (true, false) => After::Close,
    }
}
