//! The guards' part of the metrics page, read from the guards themselves when somebody asks.
//! Services without guards have no series here. Deliberately absent: counting (`guards.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guard::breaker::State;
use model::ServiceName;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::line::PENDING_ENDS;
use super::{FALLBACK_KINDS, FALLBACK_REASONS, Guards, PRIORITIES};

/// The guards of every service that has some.
#[derive(Debug, Default)]
pub(crate) struct GuardSeries(Mutex<BTreeMap<ServiceName, Arc<Guards>>>);

impl GuardSeries {
    pub(crate) fn set(&self, service: &ServiceName, guards: Option<Arc<Guards>>) {
        match guards {
            Some(guards) => drop(self.lock().insert(service.clone(), guards)),
            None => drop(self.lock().remove(service)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Arc<Guards>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const STATES: [(&str, State); 3] = [("closed", State::Closed), ("open", State::Open), ("half-open", State::HalfOpen)];

/// The page's part about guards.
#[derive(Debug)]
pub(crate) struct GuardPage(pub(crate) Arc<GuardSeries>);

impl Collector for GuardPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let all: Vec<(ServiceName, Arc<Guards>)> =
            self.0.lock().iter().map(|(name, guards)| (name.clone(), guards.clone())).collect();
        if all.is_empty() {
            return Ok(());
        }
        let mut page = Page { encoder: &mut encoder, all: &all };
        page.breakers()?;
        page.fuses()?;
        page.places()?;
        page.limits()?;
        page.ejections()?;
        page.fallbacks()
    }
}

struct Page<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
    all: &'a [(ServiceName, Arc<Guards>)],
}

impl Page<'_, '_> {
    fn breakers(&mut self) -> std::fmt::Result {
        let mut family = self.encoder.encode_descriptor(
            "breaker_state",
            "1 for the state a service's breaker is in",
            None,
            MetricType::Gauge,
        )?;
        for (name, guards) in self.all {
            let Some(gate) = &guards.gate else { continue };
            let current = gate.view().state;
            for (word, state) in STATES {
                let labels = [("service", name.as_str()), ("state", word)];
                ConstGauge::new(i64::from(state == current)).encode(family.encode_family(&labels)?)?;
            }
        }
        self.counters("breaker_turns", "Times a service's breaker entered a state", "state", |guards| {
            let has = guards.gate.is_some();
            STATES
                .into_iter()
                .map(|(word, state)| (word, &guards.numbers.breaker_turns[state as usize]))
                .filter(move |_| has)
        })?;
        let help = "Requests a breaker turned away";
        self.counters("breaker_refused", help, "reason", |guards| {
            guards.gate.iter().map(|_| ("open", &guards.numbers.breaker_refused))
        })
    }

    fn fuses(&mut self) -> std::fmt::Result {
        let help = "Instances of a service whose own breaker is open or half-open";
        let mut family = self.encoder.encode_descriptor("instance_breakers", help, None, MetricType::Gauge)?;
        for (name, guards) in self.all {
            let Some(fuses) = &guards.fuses else { continue };
            for (word, state) in STATES.into_iter().filter(|(_, state)| *state != State::Closed) {
                let count = i64::try_from(fuses.count(state)).unwrap_or(i64::MAX);
                let labels = [("service", name.as_str()), ("state", word)];
                ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn places(&mut self) -> std::fmt::Result {
        let mut family = self.encoder.encode_descriptor(
            "concurrency_requests",
            "Requests within a service's concurrency limit, by state, and the limits",
            None,
            MetricType::Gauge,
        )?;
        for (name, guards) in self.all {
            let Some(view) = guards.line.as_ref().map(|line| line.view()) else { continue };
            let states = [
                ("active", view.active),
                ("pending", view.pending),
                ("max", view.places.max),
                ("max-pending", view.places.pending),
            ];
            for (word, count) in states {
                let labels = [("service", name.as_str()), ("state", word)];
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Requests that were refused for others that matter more, by their own priority";
        self.counters("shed", help, "priority", |guards| {
            let has = guards.line.is_some();
            PRIORITIES.into_iter().zip(&guards.numbers.shed).filter(move |_| has)
        })?;
        let help = "Requests that did not get a place at once, by how that ended";
        self.counters("concurrency_waits", help, "reason", |guards| {
            let has = guards.line.is_some();
            PENDING_ENDS.into_iter().zip(&guards.numbers.pending).filter(move |_| has)
        })
    }

    fn limits(&mut self) -> std::fmt::Result {
        let help = "Requests by what the service's rate limit said";
        self.counters("rate_limited", help, "outcome", |guards| {
            let has = !guards.limits.is_empty();
            ["admitted", "queued", "refused"].into_iter().zip(&guards.numbers.limited).filter(move |_| has)
        })?;
        // Several limits of a service are one series.
        let by_key = |guards: &Guards| {
            let views = guards.limits.iter().map(|limit| limit.view());
            let keyed = views.filter_map(|view| Some((view.keys?, view.displaced)));
            keyed.reduce(|((at_work, room), gone), ((more, place), left)| ((at_work + more, room + place), gone + left))
        };
        let by_key: Vec<_> = self.all.iter().filter_map(|(name, guards)| Some((name, by_key(guards)?))).collect();
        let help = "Keys of a rate limit: at work, and how many may be before one is forgotten";
        let mut family = self.encoder.encode_descriptor("rate_limit_keys", help, None, MetricType::Gauge)?;
        for (name, ((at_work, room), _)) in &by_key {
            for (word, count) in [("at-work", at_work), ("room", room)] {
                let labels = [("service", name.as_str()), ("state", word)];
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Keys of a rate limit that were forgotten while at work, for want of room";
        let mut family =
            self.encoder.encode_descriptor("rate_limit_keys_displaced", help, None, MetricType::Counter)?;
        for (name, (_, displaced)) in &by_key {
            let labels = [("service", name.as_str())];
            ConstCounter::new(*displaced).encode(family.encode_family(&labels)?)?;
        }
        let help = "Requests turned away because too many of their kind were under way";
        self.counters("at_once_refused", help, "reason", |guards| {
            let has = !guards.bounds.is_empty();
            has.then_some(("too-many-at-once", &guards.numbers.at_once_refused)).into_iter()
        })?;
        Ok(())
    }

    fn ejections(&mut self) -> std::fmt::Result {
        let help = "Instances of a service that get no requests for a while";
        let mut family = self.encoder.encode_descriptor("ejected_instances", help, None, MetricType::Gauge)?;
        for (name, guards) in self.all {
            let Some(ejections) = &guards.ejections else { continue };
            let count = i64::try_from(ejections.view().len()).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(family.encode_family(&[("service", name.as_str())])?)?;
        }
        let mut family =
            self.encoder.encode_descriptor("ejections", "Ejections of instances", None, MetricType::Counter)?;
        for (name, guards) in self.all {
            let Some(ejections) = &guards.ejections else { continue };
            let count = ConstCounter::new(ejections.count.load(Ordering::Relaxed));
            count.encode(family.encode_family(&[("service", name.as_str())])?)?;
        }
        Ok(())
    }

    fn fallbacks(&mut self) -> std::fmt::Result {
        let has = |guards: &Guards| {
            let told = &guards.told;
            told.fallback.is_some() || told.fallback_service.is_some() || told.keep.is_some()
        };
        let help = "Fallbacks answered, by reason";
        self.counters("fallbacks", help, "reason", |guards| {
            let has = has(guards);
            FALLBACK_REASONS.into_iter().zip(&guards.numbers.fallbacks).filter(move |_| has)
        })?;
        let help = "Fallbacks answered, by what was answered";
        self.counters("fallback_answers", help, "kind", |guards| {
            let has = has(guards);
            FALLBACK_KINDS.into_iter().zip(&guards.numbers.fallback_kinds).filter(move |_| has)
        })?;
        let sizes: Vec<_> = self
            .all
            .iter()
            .filter_map(|(name, guards)| Some((name, guards.kept.as_ref()?)))
            .map(|(name, kept)| (name, kept.size(), kept.displaced.load(Ordering::Relaxed)))
            .collect();
        let levels = [("kept_answers", "Answers kept for a fallback"), ("kept_answers_bytes", "Their bytes")];
        for (place, (name, help)) in levels.into_iter().enumerate() {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (service, (count, bytes), _) in &sizes {
                let level = i64::try_from([*count, *bytes][place]).unwrap_or(i64::MAX);
                ConstGauge::new(level).encode(family.encode_family(&[("service", service.as_str())])?)?;
            }
        }
        let help = "Answers kept for a fallback that went for want of room";
        let mut family = self.encoder.encode_descriptor("kept_answers_displaced", help, None, MetricType::Counter)?;
        for (service, _, displaced) in &sizes {
            ConstCounter::new(*displaced).encode(family.encode_family(&[("service", service.as_str())])?)?;
        }
        Ok(())
    }

    fn counters<'g, I: Iterator<Item = (&'static str, &'g AtomicU64)>>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        counts: impl Fn(&'g Guards) -> I,
    ) -> std::fmt::Result
    where
        Self: 'g,
    {
        let all: &'g [(ServiceName, Arc<Guards>)] = self.all;
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (service, guards) in all {
            for (word, count) in counts(guards) {
                let labels = [("service", service.as_str()), (label, word)];
                let count = ConstCounter::new(count.load(Ordering::Relaxed));
                count.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
