//! Rules in the files of other tools, put in force for services as if they had been written there: Sentinel's JSON lists,
//! Hystrix' properties, Istio's objects. Every mistake points into the tool's own file, and what has no counterpart here is refused by
//! its name. Read after all of Seawall's own files, before the rules over several keys (`validate`).
//! Deliberately absent: what the rules do (`traffic.rs`), and reading files (`load.rs`).

mod hystrix;
mod istio;
mod nginx;
mod origin;
mod over;
mod sentinel;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::decode::{Decode, FilePath, Places, record, text, wrong};
use super::node::default_of;
use super::yaml::{Kind, Node};
use super::{
    AtOnce, Behaviour, CircuitBreaker, Concurrency, Config, LimitKey, Match, Outlier, RateLimit, Traffic, WithoutKey,
};
use crate::diagnostic::{Diagnostics, Place, Sources, nearest};
use crate::id::ServiceName;
pub use origin::{Origin, OriginKind};
pub use over::{Foreign, foreign};

/// Which service each name is, and where that is said.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Names {
    /// By name.
    pub services: BTreeMap<String, ServiceName>,
    /// Where each stands.
    pub at: Places,
}

impl Decode for Names {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        BTreeMap::decode(node, diagnostics).map(|services| Self { services, at: Places::of(node) })
    }

    fn encode(&self) -> Value {
        self.services.encode()
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        BTreeMap::<String, ServiceName>::schema(definitions)
    }
}

/// One thing to include.
#[derive(Clone, PartialEq, Debug)]
pub enum Include {
    /// A file of Seawall's own.
    File(FilePath),
    /// Rules in another tool's files.
    Rules(Box<Rules>),
}

record! {
    /// Rules as other tools write them.
    Rules as "rules in `include`" {
        /// Sentinel's.
        sentinel: Option<Sentinel> = None,
        /// Hystrix'.
        hystrix: Option<Hystrix> = None,
        /// Istio's VirtualServices and DestinationRules.
        istio: Option<Istio> = None,
        /// Files of nginx' `upstream` and `location` blocks; each upstream is a service, its routes come after Seawall's own.
        nginx: Vec<FilePath> = Vec::new(),
        /// A file of Consul's service definitions, registered with this node: as `discovery.definitions`.
        consul: Option<FilePath> = None,
    }
}

record! {
    /// Files of Sentinel's rules, each a JSON list as its data sources have it.
    Sentinel as "`sentinel`" {
        /// `FlowRule`s: they become `rateLimit`, or `concurrency` and `atOnce` for grade 0.
        flow: Option<FilePath> = None,
        /// `DegradeRule`s: they become `circuitBreaker`.
        degrade: Option<FilePath> = None,
        /// `ParamFlowRule`s: they become `rateLimit` and `atOnce` with a `key` and `exceptions`.
        param_flow: Option<FilePath> = None,
        /// `SystemRule`s: they become `gateway.overload`.
        system: Option<FilePath> = None,
        /// Which service each resource is. One that is not named here has the service's own name.
        resources: BTreeMap<String, ServiceName> = BTreeMap::new(),
        /// Where a caller says who it is, which `limitApp` is about: a header field or a parameter of the query.
        origin: Option<LimitKey> = None,
        /// What the parameters of each resource are, which `paramIdx` counts from 0: `{ orders: [{ header: X-User }, { query: sku }] }`.
        parameters: BTreeMap<String, Vec<LimitKey>> = BTreeMap::new(),
        /// Which route each entrance is, which `refResource` of `strategy: 2` names. One that is not named here has the route's own name.
        entrances: BTreeMap<String, String> = BTreeMap::new(),
    }
}

record! {
    /// A file of Hystrix' properties.
    Hystrix as "`hystrix`" {
        /// A Java properties file with `hystrix.command.KEY.…`; `default` as KEY is in force for every command it names, and for all in `commands`.
        properties: FilePath,
        /// Which service each command is. One that is not named here has the service's own name.
        commands: Names = Names::default(),
    }
}

record! {
    /// Files of Istio's objects, whose routes come after Seawall's own.
    IstioFiles as "`istio`" {
        /// The files; in each several objects may stand.
        files: Vec<FilePath>,
        /// Which service each host of a destination is. One that is not named here has the service's own name, alone or in front of `.NAMESPACE.svc.cluster.local`.
        hosts: BTreeMap<String, ServiceName> = BTreeMap::new(),
    }
}

/// Istio's files: a list, or a mapping that also says what hosts are.
#[derive(Clone, PartialEq, Debug)]
pub struct Istio(pub IstioFiles);

impl Decode for Istio {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        let files = match &node.kind {
            Kind::Map(_) => return IstioFiles::decode(node, diagnostics).map(Self),
            Kind::Scalar { .. } => vec![FilePath::decode(node, diagnostics)?],
            _ => Vec::decode(node, diagnostics)?,
        };
        Some(Self(IstioFiles { files, hosts: BTreeMap::new(), at: Places::of(node) }))
    }

    fn encode(&self) -> Value {
        self.0.encode()
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        let file = FilePath::schema(definitions);
        json!({ "oneOf": [file.clone(), { "type": "array", "items": file }, IstioFiles::schema(definitions)] })
    }
}

impl Decode for Include {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Scalar { .. } => FilePath::decode(node, diagnostics).map(Self::File),
            Kind::Map(_) => Rules::decode(node, diagnostics).map(|rules| Self::Rules(Box::new(rules))),
            _ => {
                wrong(
                    node,
                    "a file, or `sentinel: {…}`, `hystrix: {…}`, `istio: [FILE]`, `nginx: [FILE]` or `consul: FILE`",
                    diagnostics,
                );
                None
            }
        }
    }

    fn encode(&self) -> Value {
        match self {
            Self::File(file) => file.encode(),
            Self::Rules(rules) => rules.encode(),
        }
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        json!({ "oneOf": [FilePath::schema(definitions), Rules::schema(definitions)] })
    }
}

/// All that is included: a list, or one mapping.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Includes(pub Vec<Include>);

impl Decode for Includes {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match node.kind {
            Kind::Map(_) => Include::decode(node, diagnostics).map(|one| Self(vec![one])),
            _ => Vec::decode(node, diagnostics).map(Self),
        }
    }

    fn encode(&self) -> Value {
        self.0.encode()
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        let one = Include::schema(definitions);
        json!({ "oneOf": [{ "type": "array", "items": one }, Rules::schema(definitions)] })
    }
}

/// A number that may have a fraction.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Number(f64);

impl Number {
    /// It as a count, if it is one.
    fn whole(self) -> Option<u32> {
        let number = self.0;
        (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number)).then_some(number as u32)
    }
}

impl Decode for Number {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a number of 0 or more";
        let number = text(node, EXPECTED, diagnostics)?.parse().ok().filter(|number| (0.0..1e15).contains(number));
        if number.is_none() {
            wrong(node, EXPECTED, diagnostics);
        }
        number.map(Self)
    }

    fn encode(&self) -> Value {
        self.0.into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "number", "minimum": 0 })
    }
}

/// A value that means nothing here, whatever it is.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Ignored;

impl Decode for Ignored {
    fn decode(_: &Node, _: &mut Diagnostics) -> Option<Self> {
        Some(Self)
    }

    fn encode(&self) -> Value {
        Value::Null
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({})
    }
}

/// What a rule became.
enum Guard {
    Limit(RateLimit),
    AtOnce(AtOnce),
    Concurrency(Concurrency),
    Breaker(CircuitBreaker),
    Outlier(Outlier),
}

/// Where rules go, and where their mistakes are told.
pub(super) struct Target<'a> {
    pub config: &'a mut Config,
    pub diagnostics: &'a mut Diagnostics,
    /// All files that have been read, for naming places.
    pub sources: &'a Sources,
    /// Of a file that is put over what is in force: of what it has been so far. What an earlier file said of that is gone.
    pub replaced: Option<HashSet<(OriginKind, ServiceName)>>,
}

impl Target<'_> {
    /// Puts the rules of one text in force, which is `file` in the sources.
    pub(super) fn put(&mut self, tool: Tool<'_>, text: &str, file: u16) {
        match tool {
            Tool::Flow(told) => sentinel::flow(self, told, text, file),
            Tool::Degrade(told) => sentinel::degrade(self, told, text, file),
            Tool::ParamFlow(told) => sentinel::param_flow(self, told, text, file),
            Tool::System => sentinel::system(self, text, file),
            Tool::Hystrix(names) => hystrix::properties(self, names, text, file),
        }
    }

    /// Puts Istio's objects in force: all files together, as rules in one say what names in another mean.
    pub(super) fn put_istio(&mut self, hosts: &BTreeMap<String, ServiceName>, texts: &[(u16, String)]) {
        istio::put(self, hosts, texts);
    }

    /// Puts nginx' blocks in force, those of all files together.
    pub(super) fn put_nginx(&mut self, texts: &[(u16, String)]) {
        nginx::put(self, texts);
    }

    /// The service that a tool means by a name of its own.
    fn service(
        &mut self,
        what: &str,
        name: &str,
        names: &BTreeMap<String, ServiceName>,
        place: Place,
    ) -> Option<ServiceName> {
        let service = names.get(name).cloned().unwrap_or_else(|| ServiceName::from(name));
        if self.config.services.contains_key(&service) {
            return Some(service);
        }
        let known = self.config.services.keys().map(ServiceName::as_str);
        let cure = match nearest(service.as_str(), known) {
            Some(near) => format!("say which service it is beside the file in `include`, e.g. {{ {name}: {near} }}"),
            None => "say which service it is beside the file in `include`".to_owned(),
        };
        self.diagnostics.error(place, format!("{what} `{name}` is no service: there is no `{service}`"), cure);
        None
    }

    /// A place as words for it stand in a message. What is in force has no lines.
    fn named(&self, place: Place) -> String {
        let path = self.sources.path(place.file).display();
        if place.line == 0 { path.to_string() } else { format!("{path}, line {}", place.line) }
    }

    /// Puts a guard in front of a service that has none of its kind. Of limits there may be several.
    fn guard(&mut self, service: &ServiceName, mut guard: Guard, kind: OriginKind, place: Place) {
        self.begin(kind, service);
        let Some(service) = self.config.services.get_mut(service) else { return };
        let traffic = service.traffic.get_or_insert_with(default_of::<Traffic>);
        let taken = match &guard {
            Guard::Limit(_) | Guard::AtOnce(_) => None,
            Guard::Concurrency(_) => traffic.concurrency.as_ref().map(|has| ("concurrency", has.at.whole)),
            Guard::Outlier(_) => traffic.outlier.as_ref().map(|has| ("outlier", has.at.whole)),
            Guard::Breaker(_) => traffic.circuit_breaker.as_ref().map(|has| ("circuitBreaker", has.at.whole)),
        };
        if let Some((key, at)) = taken {
            let message = format!("this is a `{key}`, and the service has one already ({})", self.named(at));
            self.diagnostics.error(place, message, "one of each kind for a service: remove one of the two");
            return;
        }
        *guard.from() = Some(Origin::new(kind, ""));
        match guard {
            // In the order in which Sentinel asks its own, whichever file was read first.
            Guard::Limit(limit) => insert(&mut traffic.rate_limit.0, limit, kind, |limit| limit.from.as_ref()),
            Guard::AtOnce(bound) => insert(&mut traffic.at_once.0, bound, kind, |bound| bound.from.as_ref()),
            Guard::Concurrency(concurrency) => traffic.concurrency = Some(concurrency),
            Guard::Breaker(breaker) => traffic.circuit_breaker = Some(breaker),
            Guard::Outlier(outlier) => traffic.outlier = Some(outlier),
        }
    }

    /// The time of a whole request, for routes to a service that have none of their own. A route of another tool's file has
    /// what its own file says.
    fn time_out(&mut self, service: &ServiceName, after: Duration) {
        for route in &mut self.config.routes {
            let leads = route.to.as_ref().is_some_and(|to| to.lead_to(service));
            if leads && route.timeout.is_none() && route.from.is_none() {
                route.timeout = Some(after);
                route.timeout_from = Some(Origin::new(OriginKind::Hystrix, service.as_str()));
            }
        }
    }
}

impl Guard {
    fn from(&mut self) -> &mut Option<Origin> {
        match self {
            Self::Limit(limit) => &mut limit.from,
            Self::AtOnce(bound) => &mut bound.from,
            Self::Concurrency(concurrency) => &mut concurrency.from,
            Self::Breaker(breaker) => &mut breaker.from,
            Self::Outlier(outlier) => &mut outlier.from,
        }
    }
}

/// Puts a limit behind those of its kind and of kinds before it.
fn insert<T>(limits: &mut Vec<T>, limit: T, kind: OriginKind, from: impl Fn(&T) -> Option<&Origin>) {
    let before = |known: &T| from(known).is_none_or(|from| from.kind as u8 <= kind as u8);
    let at = limits.iter().rposition(before).map_or(0, |last| last + 1);
    limits.insert(at, limit);
}

/// A limit on all requests of a service.
fn plain(qps: u32, behaviour: Behaviour, at: Places) -> RateLimit {
    RateLimit {
        qps,
        per: Duration::from_secs(1),
        burst: None,
        key: None,
        exceptions: BTreeMap::new(),
        only_exceptions: false,
        without_key: WithoutKey::Share,
        max_keys: 10_000,
        matches: Match::default(),
        route: None,
        of: None,
        behaviour,
        tell: true,
        warm_up_period: Duration::from_secs(10),
        cold_factor: 3,
        max_queueing_time: Duration::from_millis(500),
        from: None,
        at,
    }
}

/// Whose file it is, and how it names services.
#[derive(Clone, Copy)]
pub(super) enum Tool<'a> {
    Flow(&'a Sentinel),
    Degrade(&'a Sentinel),
    ParamFlow(&'a Sentinel),
    System,
    Hystrix(&'a Names),
}

impl Rules {
    /// The files, and whose they are.
    pub(super) fn files(&self) -> Vec<(&FilePath, Tool<'_>)> {
        let sentinel = self.sentinel.iter().flat_map(|sentinel| {
            // In the order in which Sentinel asks them.
            let system = sentinel.system.iter().map(|file| (file, Tool::System));
            let parameters = sentinel.param_flow.iter().map(|file| (file, Tool::ParamFlow(sentinel)));
            let flow = sentinel.flow.iter().map(|file| (file, Tool::Flow(sentinel)));
            let degrade = sentinel.degrade.iter().map(|file| (file, Tool::Degrade(sentinel)));
            system.chain(parameters).chain(flow).chain(degrade)
        });
        let hystrix = self.hystrix.iter().map(|hystrix| (&hystrix.properties, Tool::Hystrix(&hystrix.commands)));
        sentinel.chain(hystrix).collect()
    }
}
