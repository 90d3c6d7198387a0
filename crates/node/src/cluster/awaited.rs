//! Who has changed something in the cluster and waits until every node has carried it out, or until it is taken back.
//! Deliberately absent: a deadline. Whoever asked has one, and goes.

use api::{Applied, Refusal, RefusalKind};
use data::Revision;
use model::ServiceName;
use tokio::sync::oneshot;

use super::world::World;
use crate::controller::Controller;

/// What is waited for.
#[derive(Debug)]
pub enum Awaited {
    /// A configuration, committed at this revision.
    Config(Revision, Applied, oneshot::Sender<Result<Applied, Refusal>>),
    /// A restart of a service, committed at this revision.
    Restart(Revision, ServiceName, oneshot::Sender<Result<String, Refusal>>),
}

impl Controller {
    /// Something was committed that somebody waits for.
    pub fn awaits(&mut self, awaited: Awaited) {
        if let Some(world) = &mut self.world {
            world.awaited.push(awaited);
        }
    }

    /// Answers those for whom it has come true, or never will.
    pub fn answer_awaited(&self, world: &mut World) {
        for awaited in std::mem::take(&mut world.awaited) {
            match awaited {
                Awaited::Config(at, applied, reply) if world.config_at.0 > at.0 => {
                    let message = format!(
                        "it is not in force any more: it was taken back because a service did not come up ({}), or another was applied since; `seawall events` on the nodes tells which",
                        names(&applied)
                    );
                    self.shell.answer(reply, Err(Refusal { kind: RefusalKind::Failed, message }));
                }
                Awaited::Config(at, applied, reply) if world.config_at == at => {
                    if applied.rolled.iter().all(|name| self.is_rolled_out(name)) {
                        self.shell.answer(reply, Ok(applied));
                    } else if !reply.is_closed() {
                        world.awaited.push(Awaited::Config(at, applied, reply));
                    }
                }
                Awaited::Restart(at, name, reply) => {
                    let begun = self.services.get(&name).is_none_or(|service| service.restarted_since(at));
                    if begun && self.is_rolled_out(&name) {
                        self.shell.answer(reply, Ok(format!("{name}: all instances replaced, all ready")));
                    } else if !reply.is_closed() {
                        world.awaited.push(Awaited::Restart(at, name, reply));
                    }
                }
                // Committed, and not read here yet.
                config @ Awaited::Config(..) => world.awaited.push(config),
            }
        }
    }

    /// One that is removed has nothing more to roll.
    fn is_rolled_out(&self, name: &ServiceName) -> bool {
        self.services.get(name).is_none_or(crate::service::Service::is_rolled_out)
    }
}

fn names(applied: &Applied) -> String {
    let changed = applied.added.iter().chain(&applied.rolled).chain(&applied.changed);
    changed.map(ServiceName::as_str).collect::<Vec<_>>().join(", ")
}
