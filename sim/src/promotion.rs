//! One service in primary-standby over all machines: a process on each, kept by a keeper that outlives the node process,
//! and a controller in each node. What is decided is the product's (`health::decide`), over the product's store; who
//! carries it out here repeats what `crates/node` and `crates/keeper` do: three commits under compares, a record of each
//! process under its node's lease, a stop deadline from when the last renewal was sent.
//! Deliberately absent: planned switches, hooks that fail, and everything of the gateway.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::judge::{Judge, Observation};
use crate::node::name;
use crate::plants::Plant;

mod controller;
mod record;

pub use controller::control;

/// The service.
pub const SERVICE: &str = "app";

/// What the machine's keeper holds: one process, which lives on when the node process dies, until its deadline.
pub struct Keeper {
    place: usize,
    judge: Judge,
    chance: Chance,
    plant: Option<Plant>,
    /// The start of the running process; `None` between two.
    pub incarnation: Cell<Option<u64>>,
    /// It answers no probe any more, and is still there.
    pub hangs: Cell<bool>,
    /// The term in which it is primary.
    primary: Cell<Option<u64>>,
    deadline: Cell<Option<Instant>>,
    /// Poked when the process or its deadline has changed.
    pub changed: Rc<Notify>,
    next: Rc<Cell<u64>>,
    powered: Cell<bool>,
    /// How often a primary went on without a quorum.
    pub kept: Cell<u64>,
}

impl Keeper {
    /// A machine's keeper, with no process yet; `next` counts the starts of all machines.
    pub fn new(place: usize, judge: Judge, chance: Chance, plant: Option<Plant>, next: Rc<Cell<u64>>) -> Rc<Self> {
        Rc::new(Self {
            place,
            judge,
            chance,
            plant,
            incarnation: Cell::new(None),
            hangs: Cell::new(false),
            primary: Cell::new(None),
            deadline: Cell::new(None),
            changed: Rc::default(),
            next,
            powered: Cell::new(true),
            kept: Cell::new(0),
        })
    }

    /// Starts processes, lets them die, and ends a primary at its deadline, for as long as the world lasts.
    pub async fn keep(self: Rc<Self>) {
        loop {
            if self.incarnation.get().is_none() {
                tokio::time::sleep(self.chance.millis(50, 400)).await;
                if !self.powered.get() {
                    continue;
                }
                self.next.set(self.next.get() + 1);
                self.incarnation.set(Some(self.next.get()));
                self.changed.notify_waiters();
            }
            // A process dies by itself now and then, or hangs before.
            let mut dies = Instant::now() + self.chance.millis(500, 20_000);
            while let Some(_running) = self.incarnation.get() {
                let changed = self.changed.notified();
                let now = Instant::now();
                if dies <= now && !self.hangs.get() && self.chance.percent(50) {
                    self.hangs.set(true);
                    dies = now + Duration::from_secs(3);
                    self.changed.notify_waiters();
                    continue;
                }
                let overdue = self.deadline.get().is_some_and(|deadline| deadline <= now);
                if (overdue && self.plant != Some(Plant::DeadlineIgnored)) || dies <= now {
                    // The tree is killed and its end confirmed.
                    tokio::time::sleep(self.chance.millis(0, 60)).await;
                    self.end();
                    break;
                }
                let next = self.deadline.get().filter(|deadline| *deadline > now).map_or(dies, |at| at.min(dies));
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = tokio::time::sleep_until(next) => {}
                }
            }
        }
    }

    /// The machine loses power, and the process with it; or has it again.
    pub fn power(&self, on: bool) {
        self.powered.set(on);
        if !on {
            self.end();
        }
    }

    fn process(&self, incarnation: u64) -> String {
        format!("{} on {}", incarnation, name(self.place))
    }

    /// The process has ended: killed, dead, or without power.
    pub fn end(&self) {
        let Some(incarnation) = self.incarnation.take() else { return };
        self.deadline.set(None);
        self.hangs.set(false);
        if self.primary.take().is_some() {
            self.judge.see(&Observation::PrimaryEnded { process: self.process(incarnation) });
        }
        self.changed.notify_waiters();
    }

    /// An order of the node: the process is to have ended by then, unless another order comes; `None`: it may live.
    pub fn order_deadline(&self, incarnation: u64, deadline: Option<Instant>) {
        if self.incarnation.get() == Some(incarnation) && self.deadline.get() != deadline {
            self.deadline.set(deadline);
            self.changed.notify_waiters();
        }
    }

    /// The process is told that it is primary.
    pub fn promote(&self, incarnation: u64, epoch: u64) {
        if self.incarnation.get() == Some(incarnation) && self.primary.get() != Some(epoch) {
            self.primary.set(Some(epoch));
            self.judge.see(&Observation::PrimaryBegan { process: self.process(incarnation), epoch });
        }
    }

    /// The term in which its process is primary.
    pub fn is_primary(&self) -> Option<u64> {
        self.primary.get()
    }

    /// How long a process has to be stopped before another may be.
    pub const MARGIN: Duration = Duration::from_millis(300);
}
