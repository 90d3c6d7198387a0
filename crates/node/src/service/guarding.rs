//! What guards a service in the gateway: the configuration in the gateway's words, what the guards did as events, how they
//! stand for `seawall status`. Around the request walk. Deliberately absent: any decision; those are the guards' own.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::view::{AdaptiveView, BreakerView, ConcurrencyView, EjectionView, TrafficView};
use gateway::breaker::{BreakerPolicy, Comparator, Forced, Reached, State, Turn, Why, Window};
use gateway::{
    AdaptivePolicy, BreakerScope, Concurrency, EjectedView, Fallback, KeepPolicy, Meter, Note, OutlierPolicy, Places,
    RetryBudget, Traffic,
};
use model::config::{self, BreakerRule};
use model::{EventKind, InstanceId, ServiceName};

use super::{Service, limits};
use crate::shell::{Shell, Subject};

/// How a breaker that lets everything through is shown.
pub const CLOSED: &str = "closed";

/// What is kept of a service's guards.
#[derive(Debug, Default)]
pub struct Guarding {
    /// What the gateway was told last.
    told: Option<config::Traffic>,
    /// The cause of what the breaker does until it has closed.
    breaker_cause: Option<String>,
    /// The same of the breakers of instances.
    instance_causes: BTreeMap<InstanceId, String>,
    /// The cause of each ejection that has not ended.
    ejected: BTreeMap<InstanceId, String>,
}

impl Service {
    /// Tells the gateway how requests are guarded, if that has changed, and says what the guards did.
    pub fn step_guards(&mut self, shell: &Shell) {
        if self.guarding.told.is_none() && self.definition.traffic.is_none() {
            return;
        }
        if self.guarding.told != self.definition.traffic {
            let service = shell.table.service(&self.name);
            let meter = |name: &ServiceName| shell.table.service(name).meter();
            service.set_traffic(self.definition.traffic.as_ref().map(|written| traffic(written, &meter)));
            self.guarding.told.clone_from(&self.definition.traffic);
            self.hold_breaker(shell);
        }
        self.tell_notes(shell);
    }

    /// An operator's word about the breaker, as it was committed, reaches the gateway.
    pub fn hold_breaker(&mut self, shell: &Shell) {
        let held = shell.held_breakers.get(&self.name).copied();
        // A breaker that is not there yet is told when it comes.
        let _ = shell.table.service(&self.name).force_breaker(held);
        self.tell_notes(shell);
    }

    /// What the guards did since this was asked last, as events.
    pub fn tell_notes(&mut self, shell: &Shell) {
        for note in shell.table.service(&self.name).take_notes() {
            match note {
                Note::Breaker(turn) => self.breaker_turned(shell, turn),
                Note::InstanceBreaker(instance, turn) => self.instance_breaker_turned(shell, &instance, turn),
                Note::Ejected(view) => {
                    let cause = shell.new_cause();
                    let message =
                        format!("{} gets no requests for {:?}: {}", view.instance, view.length, failures(&view));
                    shell.emit(
                        EventKind::InstanceEjected,
                        Subject::instance(&self.name, &view.instance),
                        &cause,
                        message,
                    );
                    self.guarding.ejected.insert(view.instance, cause);
                }
                Note::Returned(instance) => {
                    let cause = self.guarding.ejected.remove(&instance).unwrap_or_else(|| shell.new_cause());
                    let message = format!("{instance} gets requests again");
                    shell.emit(EventKind::InstanceReturned, Subject::instance(&self.name, &instance), &cause, message);
                }
                Note::Forced(forced) => {
                    let message = match forced {
                        Some(Forced::Open) => format!(
                            "by hand: {} gets no requests until `seawall breaker {} auto`",
                            self.name, self.name
                        ),
                        Some(Forced::Closed) => format!(
                            "by hand: {} gets all requests, whatever becomes of them, until `seawall breaker {} auto`",
                            self.name, self.name
                        ),
                        None => format!("the breaker of {} judges by itself again, from anew", self.name),
                    };
                    self.guarding.breaker_cause = None;
                    shell.emit(EventKind::BreakerForced, Subject::service(&self.name), &shell.new_cause(), message);
                }
            }
        }
    }

    fn breaker_turned(&mut self, shell: &Shell, turn: Turn) {
        let name = &self.name;
        let rule = self.breaker_rule();
        // One chain with what has made the service fail, if that is known.
        let outage = || self.outage.clone().unwrap_or_else(|| shell.new_cause());
        let cause = self.guarding.breaker_cause.take().unwrap_or_else(outage);
        let (kind, message) = match turn.to {
            State::Open => {
                let why = turn.why.map(|why| because(why, rule.as_ref())).unwrap_or_default();
                let again = if turn.from == State::HalfOpen { "again " } else { "" };
                let length = rule.map_or_else(String::new, |rule| format!(" for {:?}", rule.open_for));
                let instead = match self.definition.traffic.as_ref().map(|traffic| traffic.fallback.is_some()) {
                    Some(true) => "clients get the fallback",
                    _ => "clients get 503 breaker-open",
                };
                (
                    EventKind::BreakerOpened,
                    format!("{name} gets no requests {again}{length}: {why}; {instead}").replace("  ", " "),
                )
            }
            State::HalfOpen => {
                let probes = rule.map_or(1, |rule| rule.probes);
                (
                    EventKind::BreakerHalfOpen,
                    format!("{probes} of the requests for {name} go through, to see whether it is better"),
                )
            }
            State::Closed => (
                EventKind::BreakerClosed,
                format!("the breaker of {name} lets every request through again: the probes have passed"),
            ),
        };
        shell.emit(kind, Subject::service(name), &cause, message);
        self.guarding.breaker_cause = (turn.to != State::Closed).then_some(cause);
    }

    fn instance_breaker_turned(&mut self, shell: &Shell, instance: &InstanceId, turn: Turn) {
        let rule = self.breaker_rule();
        let cause = self.guarding.instance_causes.remove(instance).unwrap_or_else(|| shell.new_cause());
        let (kind, message) = match turn.to {
            State::Open => {
                let why = turn.why.map(|why| because(why, rule.as_ref())).unwrap_or_default();
                let again = if turn.from == State::HalfOpen { "again " } else { "" };
                let length = rule.map_or_else(String::new, |rule| format!("for {:?}", rule.open_for));
                (EventKind::BreakerOpened, format!("{instance} gets no requests {again}{length}: {why}"))
            }
            State::HalfOpen => {
                let probes = rule.map_or(1, |rule| rule.probes);
                let message = format!("{probes} of the requests go to {instance}, to see whether it is better");
                (EventKind::BreakerHalfOpen, message)
            }
            State::Closed if turn.from == State::HalfOpen => {
                (EventKind::BreakerClosed, format!("{instance} gets all its requests again: the probes have passed"))
            }
            State::Closed => (EventKind::BreakerClosed, format!("{instance} gets requests again: it is ready anew")),
        };
        shell.emit(kind, Subject::instance(&self.name, instance), &cause, message);
        if turn.to != State::Closed {
            self.guarding.instance_causes.insert(instance.clone(), cause);
        }
    }

    fn breaker_rule(&self) -> Option<BreakerRule> {
        self.definition.traffic.as_ref()?.circuit_breaker.as_ref().map(|breaker| breaker.rule())
    }

    /// The chain of events that the breaker is in until it has closed.
    pub fn breaker_cause(&self) -> String {
        self.guarding.breaker_cause.clone().unwrap_or_default()
    }

    /// How the guards stand.
    pub(super) fn traffic_view(&self, shell: &Shell) -> Option<TrafficView> {
        self.definition.traffic.as_ref()?;
        let view = shell.table.service(&self.name).guards()?;
        Some(TrafficView {
            breaker: view.breaker.map(|breaker| self.breaker_view(&breaker)),
            instance_breakers: view
                .instance_breakers
                .iter()
                .map(|one| (one.instance.clone(), self.breaker_view(&one.breaker)))
                .collect(),
            concurrency: view.concurrency.map(|view| ConcurrencyView {
                active: count(view.active),
                max: count(view.places.max),
                pending: count(view.pending),
                max_pending: count(view.places.pending),
                refusing: limits::refusing(view.refusing_since, || {
                    format!("more than {} under way and {} waiting", view.places.max, view.places.pending)
                }),
                adaptive: view.adaptive.map(|adaptive| AdaptiveView {
                    min: count(adaptive.policy.min),
                    max: count(adaptive.policy.max),
                    min_rtt_ms: adaptive
                        .min_rtt
                        .map(|shortest| u64::try_from(shortest.as_millis()).unwrap_or(u64::MAX)),
                }),
            }),
            rate_limit: view.rate_limits.first().map(limits::rate_view),
            more_rate_limits: view.rate_limits.iter().skip(1).map(limits::rate_view).collect(),
            at_once: view.at_once.iter().map(limits::bound_view).collect(),
            ejected: view.ejected.iter().map(ejection_view).collect(),
        })
    }

    /// The breaker as it is shown.
    pub fn breaker_view(&self, view: &gateway::BreakerView) -> BreakerView {
        let rule = self.breaker_rule();
        BreakerView {
            state: state_word(view.state).to_owned(),
            forced: view.forced.map(|forced| if forced == Forced::Open { "open" } else { "closed" }.to_owned()),
            since: at(view.since),
            why: match view.forced {
                Some(_) => Some("by hand".to_owned()),
                None => view.why.map(|why| because(why, rule.as_ref())),
            },
        }
    }

    /// The worst that the guards do, in one line.
    pub(super) fn traffic_note(traffic: Option<&TrafficView>, name: &ServiceName) -> Option<String> {
        let traffic = traffic?;
        breaker_note(traffic, name).or_else(|| limits::note(traffic))
    }
}

/// What a breaker does, in one line.
fn breaker_note(traffic: &TrafficView, name: &ServiceName) -> Option<String> {
    let breaker = traffic.breaker.as_ref()?;
    if breaker.forced.is_none() && !traffic.instance_breakers.is_empty() {
        return instances_note(&traffic.instance_breakers);
    }
    let since = breaker.since.get(..19).unwrap_or_default();
    match (breaker.forced.as_deref(), breaker.state.as_str()) {
        (Some(forced), _) => Some(format!(
            "the breaker is held {forced} by hand since {since}Z: `seawall breaker {name} auto` ends that"
        )),
        (None, "closed") => None,
        (None, state) => {
            let why = breaker.why.as_deref().unwrap_or_default();
            Some(format!("the breaker is {state} since {since}Z: {why}"))
        }
    }
}

/// Instances that are shut out, in one line.
fn instances_note(breakers: &BTreeMap<InstanceId, BreakerView>) -> Option<String> {
    let (instance, first) = breakers.iter().find(|(_, breaker)| breaker.state != "closed")?;
    let others = breakers.values().filter(|breaker| breaker.state != "closed").count() - 1;
    let (since, why) = (first.since.get(..19).unwrap_or_default(), first.why.as_deref().unwrap_or_default());
    let more = if others > 0 { format!(", and {others} more") } else { String::new() };
    Some(format!("the breaker of {instance} is {} since {since}Z: {why}{more}", first.state))
}

fn ejection_view(view: &EjectedView) -> EjectionView {
    EjectionView {
        instance: view.instance.clone(),
        since: at(view.since),
        until: at(view.since + view.length),
        times: view.times,
        why: failures(view),
    }
}

fn failures(view: &EjectedView) -> String {
    format!("{} failures in a row, the last one: {}", view.errors, view.why)
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Closed => CLOSED,
        State::Open => "open",
        State::HalfOpen => "half-open",
    }
}

/// What was counted, beside the threshold it reached.
fn because(why: Why, rule: Option<&BreakerRule>) -> String {
    let sign = rule.map_or("", |rule| rule.comparator.as_str());
    let percent = |ratio: Option<config::Ratio>| {
        ratio.map_or_else(String::new, |ratio| format!(" ({sign} {}%)", f64::from(ratio.0) / 1e4))
    };
    let Why { what, errors, slow, requests } = why;
    match what {
        Reached::ErrorRatio => {
            format!("{errors} of {requests} requests failed{}", percent(rule.and_then(|rule| rule.error_ratio)))
        }
        Reached::SlowRatio => {
            let slower = rule.and_then(|rule| rule.slow);
            let than = slower.map_or_else(String::new, |(_, than)| format!(" than {than:?}"));
            format!("{slow} of {requests} requests were slower{than}{}", percent(slower.map(|(ratio, _)| ratio)))
        }
        Reached::ErrorCount => {
            let most =
                rule.and_then(|rule| rule.error_count).map_or_else(String::new, |most| format!(" ({sign} {most})"));
            format!("{errors} requests failed{most}")
        }
    }
}

pub(super) fn at(moment: std::time::SystemTime) -> String {
    let since_epoch = moment.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    observe::at_unix_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The configuration in the gateway's words.
fn traffic(written: &config::Traffic, meter: &dyn Fn(&ServiceName) -> Meter) -> Traffic {
    Traffic {
        breaker: written.circuit_breaker.as_ref().map(|breaker| policy(&breaker.rule())),
        breaker_scope: match written.circuit_breaker.as_ref().map(|breaker| breaker.per) {
            Some(config::BreakerScope::Instance) => BreakerScope::Instance,
            Some(config::BreakerScope::Service) | None => BreakerScope::Service,
        },
        concurrency: written.concurrency.as_ref().map(|concurrency| Concurrency {
            places: Places { max: concurrency.max as usize, pending: concurrency.pending as usize },
            max_wait: concurrency.max_wait,
        }),
        adaptive: written.concurrency.as_ref().and_then(|concurrency| concurrency.adaptive.as_ref()).map(adaptive),
        rate_limits: written.rate_limit.0.iter().map(|limit| limits::rate(limit, meter)).collect(),
        at_once: written.at_once.0.iter().map(|bound| limits::bound(bound, meter)).collect(),
        outlier: written.outlier.as_ref().map(|outlier| OutlierPolicy {
            consecutive_errors: outlier.consecutive_errors,
            eject_for: outlier.eject_for,
            max_ejected: outlier.max_ejected.0,
            panic_threshold: outlier.panic_threshold.0,
            within: outlier.within,
            server_errors: outlier.server_errors,
            growing: outlier.growing,
        }),
        retry_budget: RetryBudget {
            part: written.retry_budget.part.0,
            min: written.retry_budget.min_concurrency as usize,
        },
        fallback_service: written.fallback.as_ref().and_then(|fallback| fallback.service.clone()),
        keep: written.fallback.as_ref().and_then(|fallback| {
            Some(KeepPolicy {
                max_age: fallback.cached?,
                max_bytes: usize::try_from(fallback.max_cached_bytes).unwrap_or(usize::MAX),
                max_entries: fallback.max_cached_answers as usize,
            })
        }),
        fallback: written.fallback.as_ref().filter(|fallback| fallback.is_fixed()).map(|fallback| {
            Arc::new(Fallback {
                status: fallback.fixed_status(),
                headers: fallback.headers.clone().into_iter().collect(),
                body: fallback.body.clone().into_bytes(),
            })
        }),
    }
}

fn adaptive(written: &config::Adaptive) -> AdaptivePolicy {
    AdaptivePolicy {
        min: written.min as usize,
        max: written.max as usize,
        interval: written.interval,
        min_rtt_interval: written.min_rtt_interval,
        min_rtt_requests: written.min_rtt_requests,
        buffer: written.buffer.0,
    }
}

fn policy(rule: &BreakerRule) -> BreakerPolicy {
    BreakerPolicy {
        error_ratio: rule.error_ratio.map(|ratio| ratio.0),
        slow: rule.slow.map(|(ratio, threshold)| (ratio.0, threshold)),
        error_count: rule.error_count,
        comparator: match rule.comparator {
            config::Comparator::Above => Comparator::Above,
            config::Comparator::AtLeast => Comparator::AtLeast,
        },
        window: rule.window_requests.map_or(Window::Time(rule.window), Window::Requests),
        min_requests: rule.min_requests,
        open_for: rule.open_for,
        probes: rule.probes,
    }
}
