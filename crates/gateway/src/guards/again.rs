//! The retry budget at work: a failed request is sent again while few enough are, waits its turn if its service holds
//! requests, and is given up otherwise. Between two attempts in the request walk. A request that then waits for a switch
//! gives its place up: the room it waits in lets it go at a pace of its own.
//! Deliberately absent: how many (`guard::budget`), and whether a request may be sent again at all (`guard::retry`).

use std::time::Instant;

use guard::bulkhead::{Entry, Waiter};
use guard::{Deadline, Places};

use super::line::{self, PendingEnd, Place};
use crate::connection::Client;
use crate::front::Front;
use crate::metrics::OverBudget;
use crate::service::Service;
use crate::worker::Worker;

/// A request's place among those that are sent again.
#[derive(Debug, Default)]
pub(crate) struct Again {
    place: Option<Place>,
    waits: Option<Waiter>,
}

impl Again {
    /// Asks for a place. False: there is none, and nothing to wait for.
    pub(crate) fn ask(&mut self, service: &Service) -> bool {
        self.place = None;
        let resolved = service.resolved();
        let active = resolved.instances.iter().map(|instance| instance.in_flight()).sum();
        let budget = service.guards.load_full().map_or_else(Default::default, |guards| guards.told.retry_budget);
        let pending = resolved.told.hold.map_or(0, |hold| hold.max_requests);
        match service.retries.enter_within(Places { max: budget.most(active), pending }) {
            Entry::In => self.place = Some(Place::new(service.retries.clone())),
            Entry::Waits(waiter) => self.waits = Some(waiter),
            // Nobody is shed among repeats, where all are alike.
            Entry::Full | Entry::Shed | Entry::Displaces(..) => {
                service.metrics.over_budget(OverBudget::GivenUp);
                return false;
            }
        }
        true
    }

    /// Whether the place that was asked for is not there.
    pub(crate) fn waits(&self) -> bool {
        self.waits.is_some()
    }

    /// Waits for the place that was asked for, if it is not there.
    pub(crate) async fn wait<S: Front>(
        &mut self,
        worker: &Worker,
        client: &mut Client<S>,
        service: &Service,
        deadline: Deadline,
    ) -> Result<(), PendingEnd> {
        let Some(waiter) = self.waits.take() else { return Ok(()) };
        service.metrics.over_budget(OverBudget::Waited);
        let longest = service.resolved().told.hold.map(|hold| hold.max_wait).unwrap_or_default();
        let until = Instant::now().checked_add(longest);
        self.place = Some(line::wait(worker, client, service.retries.clone(), waiter, until, deadline).await?);
        Ok(())
    }
}
