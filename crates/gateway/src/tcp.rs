//! A connection that is not HTTP: an instance is chosen and connected to as for a request, then bytes pass.
//! The whole walk of a TCP listener: balance -> (hold) -> connect -> tunnel -> record. A connection that cannot be made
//! is tried on another instance; one that broke is not, since nobody knows what was said on it.
//! Deliberately absent: answers; a client that gets no instance is disconnected.

use std::rc::Rc;
use std::time::Instant;

use guard::{Attempts, Deadline, Failure, Verdict};
use model::ServiceName;

use crate::balance::{self, Choice, Taken, Tried};
use crate::carrier::{Carrier, Wire};
use crate::connection::{Client, Origin, Registered};
use crate::dial::dial;
use crate::forward::Failed;
use crate::front::Http1;
use crate::hold::{self, Wait};
use crate::metrics::{HoldEnd, Retried};
use crate::pool::Link;
use crate::service::Service;
use crate::signal::SignalKind;
use crate::tunnel;
use crate::worker::Worker;

/// Serves one connection for a service.
pub(crate) async fn serve(worker: &Rc<Worker>, carrier: Carrier, origin: Origin, name: &ServiceName) {
    let _registered = Registered::enter(worker).await;
    let service = worker.table.service(name);
    let mut client = Client::new(Http1(carrier), origin);
    let Some((taken, carrier)) = reach(worker, &mut client, &service).await else {
        return service.metrics.tunnelled(false, tunnel::Moved::default());
    };
    let mut link = Link::new(Wire::Http1(carrier), taken.endpoint().address, taken.instance().clone(), taken.swap());
    let moved = tunnel::run(worker, &mut client, &mut link, &service, &taken).await;
    service.metrics.tunnelled(true, moved);
    client.give_back(worker);
}

/// Balance and connect, again and again, until there is a connection or no way left.
async fn reach(worker: &Worker, client: &mut Client<Http1<Carrier>>, service: &Service) -> Option<(Taken, Carrier)> {
    let options = &worker.options;
    let deadline = Deadline::begin(Instant::now(), None);
    let (mut attempts, mut tried, mut held_since) = (Attempts::new(options.max_attempts), Tried::default(), None);
    let mut distrusted = false;
    loop {
        let seen = service.room.releases();
        let now = Instant::now();
        let choice = balance::choose(service, None, &tried, options, now, || worker.random());
        if distrusted && !choice.is_another(&tried) {
            return None;
        }
        let probe = match choice {
            Choice::Take(taken) => {
                match dial(worker, client, deadline, service, &taken, now).await {
                    Ok(carrier) => {
                        if taken.instance().trust() {
                            service.room.release(now);
                        }
                        return Some((taken, carrier));
                    }
                    Err(Failed::Distrusted(_)) => {
                        if attempts.after(Failure::Distrusted, true, true, false) == Verdict::GiveUp {
                            return None;
                        }
                        distrusted = true;
                        tried.add(taken.instance());
                        service.metrics.retried(Retried::Tls);
                        continue;
                    }
                    Err(Failed::Before(_)) => {}
                    Err(_) => return None,
                }
                worker.signal(service, taken.instance(), SignalKind::ConnectFailed, 0);
                taken.instance().suspect(Instant::now(), options.avoid, options.probe_interval);
                tried.add(taken.instance());
                let may_wait = service.resolved().told.hold.is_some();
                if attempts.after(Failure::NothingWritten, true, true, may_wait) == Verdict::GiveUp {
                    return None;
                }
                service.metrics.retried(Retried::Connect);
                continue;
            }
            Choice::Full | Choice::Shut(_) => return None,
            Choice::Wait => None,
            Choice::WaitUntil(instance) => Some(instance),
        };
        let policy = service.resolved().told.hold?;
        let begun = *held_since.get_or_insert(now);
        let waited = hold::wait(worker, client, Wait { service, policy, seen, begun, deadline, probe }).await;
        service.metrics.hold_ended(waited.err().unwrap_or(HoldEnd::Released), now.elapsed());
        match waited {
            Ok(()) | Err(HoldEnd::Released) => tried.clear(),
            Err(_) => return None,
        }
    }
}
