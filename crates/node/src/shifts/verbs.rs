//! What operators ask of a shift: begin, pause, resume, abort, clear. Each is one commit under the condition that the shift
//! is still what it was. Deliberately absent: how it moves by itself (`moving.rs`).

use api::{Refusal, RefusalKind, ShiftAsk};
use model::config::validate::read_shift;
use model::config::{Decode as _, Route, Shift, Target};
use model::{EventKind, ServiceName, VersionName};
use serde_json::Value;
use tokio::sync::oneshot;

use super::backing::ended;
use super::moving::changed;
use super::record::{Goal, Phase, ShiftRecord};
use crate::controller::Controller;

impl Controller {
    /// Carries out what an operator asks of a service's shift.
    pub fn ask_shift(
        &mut self,
        service: ServiceName,
        ask: ShiftAsk,
        reply: oneshot::Sender<Result<api::view::ShiftView, Refusal>>,
    ) {
        let next = match ask {
            ShiftAsk::Begin { to, from, plan } => self.begun(&service, &to, from, plan),
            ShiftAsk::Pause => self.turned(&service, Phase::Paused),
            ShiftAsk::Resume => self.turned(&service, Phase::Running),
            ShiftAsk::Abort => self.turned(&service, Phase::Aborted),
            ShiftAsk::Clear => self.turned(&service, Phase::Cleared),
        };
        match next {
            Ok(record) => self.commit_shift(service, record, Some(reply)),
            // Ignored: who asked has gone.
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    /// A new shift, checked.
    fn begun(
        &self,
        name: &ServiceName,
        to: &str,
        from: Option<VersionName>,
        asked: Value,
    ) -> Result<ShiftRecord, Refusal> {
        let known = self.shifts.0.get(name).map(|shifting| &shifting.record);
        if let Some(known) = known.filter(|known| known.phase.is_open()) {
            return Err(refused(format!(
                "a shift of {name} to {} is {} at {} % since {}: `seawall shift {name} abort` ends it",
                known.to,
                known.phase.as_str(),
                known.percent,
                known.since
            )));
        }
        let known = known.filter(|known| known.phase != Phase::Cleared);
        let only_from = from.is_some();
        let (from, to) = self.ends(name, to, from, known)?;
        self.is_there(name, &to)?;
        let plan = self.plan(name, asked)?;
        let first = plan.plan().steps.first().cloned().ok_or_else(|| refused("a shift without a step".into()))?;
        let mut captured = known.map(|known| known.captured.clone()).unwrap_or_default();
        captured.extend(from.clone().filter(|from| !captured.contains(from)));
        let cause = self.shell.new_cause();
        let was = from.as_ref().map_or_else(|| name.to_string(), |from| format!("{name} {from}"));
        let own = match self.own_share(name, &to) {
            Some((share, line)) if known.is_none() && share > first.percent => {
                format!("; by the weights of the route on line {line} {share} % of its requests do already")
            }
            _ => String::new(),
        };
        let message = format!(
            "{} % of the requests for {was} go to {to}, the first of {} steps{own}",
            first.percent,
            plan.plan().steps.len()
        );
        let event = self.shell.event(EventKind::ShiftStarted, crate::shell::Subject::service(name), &cause, message);
        Ok(ShiftRecord {
            cause,
            from,
            to,
            captured,
            only_from,
            plan: plan.encode(),
            step: 0,
            percent: first.percent,
            phase: Phase::Running,
            run: 0,
            since: event.at.clone(),
            why: "asked for".into(),
            event,
            auto: None,
        })
    }

    /// Refuses a destination that nobody answers for: its requests would fail until the first judgement.
    fn is_there(&self, name: &ServiceName, to: &Goal) -> Result<(), Refusal> {
        let (service, version) = match to {
            Goal::Version(version) => (name, Some(version)),
            Goal::Service(other) => (other, None),
        };
        if self.shell.table.service(service).ready(version) > 0 {
            return Ok(());
        }
        let what = version.map_or_else(|| service.to_string(), |version| format!("{service} {version}"));
        Err(refused(format!(
            "{what} has no ready instance, so requests would fail there: `seawall status {service}` says why; begin when one is ready"
        )))
    }

    /// From where to where.
    fn ends(
        &self,
        name: &ServiceName,
        to: &str,
        from: Option<VersionName>,
        known: Option<&ShiftRecord>,
    ) -> Result<(Option<VersionName>, Goal), Refusal> {
        let Some(service) = self.config.services.get(name) else {
            return Err(not_found(format!("no service `{name}`")));
        };
        let version = VersionName::from(to);
        if !service.versions.contains_key(&version) {
            let other = ServiceName::from(to);
            if other == *name {
                return Err(refused(format!("{name} is where its requests go already")));
            }
            if !self.config.services.contains_key(&other) {
                let versions = service.versions.keys().map(|version| version.as_str());
                let names: Vec<&str> = versions.chain(self.config.services.keys().map(ServiceName::as_str)).collect();
                let cure = model::diagnostic::nearest(to, names.iter().copied()).map_or_else(
                    || format!("there are: {}", names.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(not_found(format!("`{to}` is no version of {name} and no service; {cure}")));
            }
            if known.is_some_and(|known| matches!(known.to, Goal::Version(_))) {
                return Err(refused(format!(
                    "requests for {name} are where a shift between its versions has left them: lead its routes there, then `seawall shift {name} clear`"
                )));
            }
            return Ok((None, Goal::Service(other)));
        }
        if known.is_some_and(|known| matches!(known.to, Goal::Service(_))) {
            return Err(refused(format!(
                "requests for {name} are where a shift between services has left them: lead its routes there, then `seawall shift {name} clear`"
            )));
        }
        // Where the last shift has left the requests.
        let left = known.and_then(|known| match (known.phase, &known.to) {
            (Phase::Done, Goal::Version(version)) => Some(version.clone()),
            _ => known.from.clone(),
        });
        let from = match from.or(left) {
            Some(from) => from,
            None => self.version_of(name, &version)?,
        };
        if !service.versions.contains_key(&from) {
            return Err(not_found(format!("{name} has no version `{from}`")));
        }
        if from == version {
            return Err(refused(format!("the requests for {name} go to {version} already")));
        }
        Ok((Some(from), Goal::Version(version)))
    }

    /// The version that has a service's requests: the only one that routes name, the one with most of the requests that a
    /// route shares by weight, or the only other one there is.
    fn version_of(&self, name: &ServiceName, to: &VersionName) -> Result<VersionName, Refusal> {
        let routes = || self.config.routes.iter().filter_map(|route| route.to.as_ref());
        let others = |target: &&Target| target.service == *name && target.version.as_ref() != Some(to);
        let singles = routes().filter_map(|targets| targets.single()).filter(others);
        let mut named: Vec<&VersionName> = singles.filter_map(|target| target.version.as_ref()).collect();
        named.sort();
        named.dedup();
        let shared =
            routes().filter(|targets| targets.single().is_none()).flat_map(|targets| &targets.0).filter(others);
        let weight = |target: &&Target| target.weight.unwrap_or(1);
        let heaviest = shared.filter(|target| target.version.is_some()).max_by_key(weight);
        let all = self.config.services.get(name).map(|service| service.versions.keys().collect::<Vec<_>>());
        let known: Vec<&VersionName> = all.into_iter().flatten().filter(|version| *version != to).collect();
        let only = match (named.as_slice(), known.as_slice()) {
            ([only], _) => Some(*only),
            ([], [only]) => Some(*only),
            ([], _) => heaviest.and_then(|target| target.version.as_ref()),
            _ => None,
        };
        let unclear = || {
            let leads = |targets: &model::config::Targets| targets.0.iter().any(|target| target.service == *name);
            if routes().any(leads) {
                return refused(format!("several versions of {name} have its requests: say which with --from"));
            }
            refused(format!("no route leads to {name}, so there are no requests to move: write one, or say --from"))
        };
        only.cloned().ok_or_else(unclear)
    }

    /// The largest share, in hundredths, that a route's own weights give the new destination beside the old ones, and the
    /// route's line.
    fn own_share(&self, name: &ServiceName, to: &Goal) -> Option<(u32, u32)> {
        let is_goal = |target: &Target| match to {
            Goal::Version(version) => target.service == *name && target.version.as_ref() == Some(version),
            Goal::Service(other) => target.service == *other && target.version.is_none(),
        };
        let share = |route: &Route| {
            let targets = &route.to.as_ref().filter(|targets| targets.single().is_none())?.0;
            let sum = |of: &dyn Fn(&Target) -> bool| {
                targets.iter().filter(|target| of(target)).map(|target| target.weight.unwrap_or(1)).sum::<u32>()
            };
            let (own, others) = (sum(&is_goal), sum(&|target| target.service == *name && !is_goal(target)));
            (own > 0 && others > 0).then(|| (own * 100 / (own + others), route.at.whole.line))
        };
        self.config.routes.iter().filter_map(share).max_by_key(|(share, _)| *share)
    }

    /// What was asked for, over what the service's `traffic.shift` says.
    fn plan(&self, name: &ServiceName, asked: Value) -> Result<Shift, Refusal> {
        let own = self.config.services.get(name).and_then(|service| service.traffic.as_ref()?.shift.as_ref());
        let mut words = own.map_or_else(|| Value::Object(serde_json::Map::default()), Shift::encode);
        let Value::Object(asked) = asked else { return Err(bad("`plan` is a mapping".into())) };
        // Another preset has steps and gates of its own.
        if asked.contains_key("preset")
            && let Value::Object(words) = &mut words
        {
            words.retain(|key, _| !matches!(key.as_str(), "steps" | "gates"));
        }
        for (key, value) in asked {
            words[key] = value;
        }
        read_shift(&words).map_err(bad)
    }

    /// The same shift in another phase.
    fn turned(&self, name: &ServiceName, phase: Phase) -> Result<ShiftRecord, Refusal> {
        let known = self.shifts.0.get(name).map(|shifting| &shifting.record).filter(|it| it.phase != Phase::Cleared);
        let Some(known) = known else { return Err(not_found(format!("there is no shift of {name}"))) };
        let to = &known.to;
        let (may, kind, what) = match phase {
            Phase::Paused => (known.phase == Phase::Running, EventKind::ShiftPaused, "stays where it is"),
            Phase::Running => (known.phase == Phase::Paused, EventKind::ShiftResumed, "goes on"),
            Phase::Aborted => {
                (known.phase.is_open() || known.phase == Phase::Done, EventKind::ShiftAborted, "is taken back")
            }
            _ => (!known.phase.is_open(), EventKind::ShiftCleared, "says nothing about requests any more: routes do"),
        };
        if !may {
            return Err(refused(format!(
                "the shift of {name} to {to} is {} since {}",
                known.phase.as_str(),
                known.since
            )));
        }
        if phase == Phase::Cleared && known.auto.is_some() {
            let message = format!("by hand: requests for {name} go where they went before its breaker opened");
            return Ok(changed(&self.shell, name, ended(known, "by hand".into()), kind, message));
        }
        let percent = if phase == Phase::Aborted || phase == Phase::Cleared { 0 } else { known.percent };
        let message = format!("by hand: the shift of {name} to {to}, at {} %, {what}", known.percent);
        let next = ShiftRecord {
            phase,
            percent,
            run: known.run + u32::from(phase == Phase::Running),
            why: "by hand".into(),
            ..known.clone()
        };
        Ok(changed(&self.shell, name, next, kind, message))
    }
}

fn refused(message: String) -> Refusal {
    Refusal { kind: RefusalKind::Refused, message }
}

fn not_found(message: String) -> Refusal {
    Refusal { kind: RefusalKind::NotFound, message }
}

fn bad(message: String) -> Refusal {
    Refusal { kind: RefusalKind::Bad, message }
}
