//! Faults injected into a route's requests: they wait, they are answered by the gateway, or first one and then the other.
//! Between route and guards in the request walk, so that neither limit nor breaker sees a request that is answered here.
//! Deliberately absent: which requests (`traffic::Portion`), and faults between gateway and instance.

use std::time::Instant;

use guard::Deadline;

use super::End;
use crate::answer::Answer;
use crate::connection::Client;
use crate::front::Front;
use crate::guards::{Refusal, pause};
use crate::routes::CompiledFault;
use crate::worker::Worker;

/// Does to a request what is to be done to it; how it ended, if that ended it; boxed, because it is rare.
pub(super) async fn inject<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    fault: &CompiledFault,
    deadline: Deadline,
) -> Option<Box<End>> {
    if let Some((wait, portion)) = &fault.delay
        && portion.takes()
    {
        match pause(worker, client, Instant::now() + *wait, deadline).await {
            Ok(()) => {}
            Err(Refusal::Gone) => return Some(Box::new(End::Gone)),
            Err(Refusal::Answer(answer)) => return Some(Box::new(End::Answer(answer))),
        }
    }
    let (status, _) = fault.abort.as_ref().filter(|(_, portion)| portion.takes())?;
    Some(Box::new(End::Answer(Answer::fault(*status))))
}
