//! Which service a request is for: an ordered list, the first route that matches wins (Istio's rule).
//! The route step of the request walk. Compiled once, swapped whole, never changed in place. Deliberately absent:
//! path normalisation; what an instance gets is what was matched.

mod cors;
mod index;
mod matching;
mod split;

use std::sync::Arc;
use std::time::Duration;

use guard::RetryPolicy;
use model::{ServiceName, VersionName};

use crate::guards::Fallback;
use crate::http1::RequestHead;
use crate::metrics::{Metrics, RouteMetrics};
use crate::policy::{Fault, Mirror, Policy, Redirect};
use crate::service::Service;
use cors::CompiledCors;
pub use cors::Cors;
use index::Index;
pub(crate) use matching::{CompiledMatch, compile_match};
use matching::{CompiledPath, host_matches};
pub use matching::{HostMatch, Match, PathMatch, Scheme, ValueMatch};
use split::CompiledSplit;
pub use split::{Part, Split, Sticky};
use traffic::{Portion, Tally};

/// One route as its author wrote it. Empty lists match everything; within a list any entry suffices.
#[derive(Clone, Debug)]
pub struct Route {
    /// What logs call it.
    pub name: String,
    /// Its requests are counted under this name; absent: only under their service's.
    pub series: Option<String>,
    /// Hosts it is for.
    pub hosts: Vec<HostMatch>,
    /// Conditions, of which one must hold.
    pub matches: Vec<Match>,
    /// What becomes of the request.
    pub action: Action,
    /// The whole request's time, holding and retries included; beyond: 504. `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// Which failed attempts are made again; the gateway's own rule when absent.
    pub retry: Option<RetryPolicy>,
    /// What is changed on the way.
    pub policy: Policy,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// An instance answers.
    Forward(Target),
    /// An instance of one of several destinations answers.
    Split(Split),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The gateway answers itself, always the same.
    Respond(Arc<Fallback>),
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// Only its instances of this version.
    pub version: Option<VersionName>,
}

/// A route that cannot be compiled; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("route {route}: {expression:?} is no regular expression: {source}")]
pub struct RouteError {
    /// The route's name.
    pub route: String,
    /// What its author wrote.
    pub expression: String,
    /// What is wrong with it.
    pub source: regex_lite::Error,
}

/// Fewer routes than this are walked: that takes less time than to look anything up.
const INDEXED: usize = 16;

/// Routes ready for use.
#[derive(Debug, Default)]
pub struct Routes {
    list: Vec<Arc<CompiledRoute>>,
    /// Of a long list.
    index: Option<Index>,
}

/// One route with its service at hand.
#[derive(Debug)]
pub(crate) struct CompiledRoute {
    pub(crate) action: CompiledAction,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) policy: Policy,
    pub(crate) mirrors: Vec<CompiledMirror>,
    pub(crate) fault: Option<Box<CompiledFault>>,
    pub(crate) cors: Option<Box<CompiledCors>>,
    pub(crate) series: Option<RouteSeries>,
    hosts: Vec<HostMatch>,
    matches: Vec<CompiledMatch>,
}

/// A route that is counted by itself.
#[derive(Debug)]
pub(crate) struct RouteSeries {
    pub(crate) name: String,
    pub(crate) metrics: RouteMetrics,
}

#[derive(Debug)]
pub(crate) enum CompiledAction {
    Forward(Destination),
    Split(CompiledSplit),
    Redirect(Redirect),
    Respond(Arc<Fallback>),
}

/// A service at hand.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) service: Arc<Service>,
    pub(crate) version: Option<VersionName>,
    /// Somebody asks what becomes of its requests.
    pub(crate) tally: Option<Arc<Tally>>,
}

/// Somebody who gets copies, and of how many requests.
#[derive(Debug)]
pub(crate) struct CompiledMirror {
    pub(crate) portion: Portion,
    /// The same route with another destination, and without copies of copies.
    pub(crate) route: Arc<CompiledRoute>,
}

/// Faults, and how many requests they are for.
#[derive(Debug)]
pub(crate) struct CompiledFault {
    pub(crate) delay: Option<(Duration, Portion)>,
    pub(crate) abort: Option<(u16, Portion)>,
}

impl CompiledFault {
    fn of(fault: &Fault) -> Self {
        Self {
            delay: fault.delay.map(|(wait, part)| (wait, Portion::of(part))),
            abort: fault.abort.map(|(status, part)| (status, Portion::of(part))),
        }
    }
}

/// A copy's time where its route has none: nobody waits for it, and it takes a place.
const LONGEST_COPY: Duration = Duration::from_secs(15);

fn mirrors(
    policy: &mut Policy,
    matches: &[CompiledMatch],
    timeout: Option<Duration>,
    mut service: impl FnMut(&ServiceName) -> Arc<Service>,
) -> Vec<CompiledMirror> {
    let told = std::mem::take(&mut policy.mirrors);
    let compiled = |mirror: Mirror| {
        let copied = Policy { mirrors: Vec::new(), fault: None, cors: None, compress: Vec::new(), ..policy.clone() };
        let to = Destination { service: service(&mirror.target.service), version: mirror.target.version, tally: None };
        let route = CompiledRoute {
            action: CompiledAction::Forward(to),
            timeout: Some(timeout.unwrap_or(LONGEST_COPY)),
            retry: None,
            policy: copied,
            mirrors: Vec::new(),
            fault: None,
            cors: None,
            series: None,
            hosts: Vec::new(),
            matches: matches.to_vec(),
        };
        CompiledMirror { portion: Portion::of(mirror.part), route: Arc::new(route) }
    };
    told.into_iter().map(compiled).collect()
}

impl Routes {
    /// Compiles routes in their order; `service` gives each target's handle.
    pub(crate) fn compile(
        routes: Vec<Route>,
        mut service: impl FnMut(&ServiceName) -> Arc<Service>,
        metrics: &Metrics,
    ) -> Result<Self, RouteError> {
        let mut compiled = Vec::with_capacity(routes.len());
        for mut route in routes {
            let wanted = std::mem::take(&mut route.matches);
            let matches =
                wanted.into_iter().map(|wanted| compile_match(&route.name, wanted)).collect::<Result<_, _>>()?;
            let cors = route.policy.cors.take().map(|cors| CompiledCors::of(&route.name, cors).map(Box::new));
            compiled.push((matches, cors.transpose()?, route));
        }
        // Neighbours often lead to the same service: it is asked for once.
        let mut last: Option<Arc<Service>> = None;
        let mut service = |name: &ServiceName| {
            last = last.take().filter(|last| last.name() == name).or_else(|| Some(service(name)));
            last.clone().expect("just put there")
        };
        // Services come into being only once every route is known to be good.
        let finish = |(matches, cors, mut route): (Vec<CompiledMatch>, Option<Box<CompiledCors>>, Route)| {
            Arc::new(CompiledRoute {
                action: match route.action {
                    Action::Forward(target) => CompiledAction::Forward(Destination {
                        service: service(&target.service),
                        version: target.version,
                        tally: None,
                    }),
                    Action::Split(split) => CompiledAction::Split(CompiledSplit::of(split, &mut service)),
                    Action::Redirect(redirect) => CompiledAction::Redirect(redirect),
                    Action::Respond(answer) => CompiledAction::Respond(answer),
                },
                mirrors: mirrors(&mut route.policy, &matches, route.timeout, &mut service),
                fault: route.policy.fault.take().map(|fault| Box::new(CompiledFault::of(&fault))),
                cors,
                timeout: route.timeout,
                retry: route.retry,
                policy: route.policy,
                series: route.series.map(|name| RouteSeries { metrics: metrics.route(&name), name }),
                hosts: route.hosts,
                matches,
            })
        };
        let list: Vec<_> = compiled.into_iter().map(finish).collect();
        let index = (list.len() >= INDEXED).then(|| Index::of(&list));
        Ok(Self { list, index })
    }

    /// Names under which routes are counted.
    pub(crate) fn series(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|route| route.series.as_ref()).map(|series| series.name.as_str())
    }

    /// The first route that matches.
    pub(crate) fn find(&self, head: &RequestHead, scheme: Scheme) -> Option<&Arc<CompiledRoute>> {
        match &self.index {
            None => self.list.iter().find(|route| route.accepts(head, scheme)),
            Some(index) => {
                let found = index.first(head.host(), head.path(), |number| self.list[number].accepts(head, scheme));
                found.map(|number| &self.list[number])
            }
        }
    }
}

impl CompiledRoute {
    /// Which of its destinations takes a request.
    pub(crate) fn choose(&self, head: &RequestHead) -> u8 {
        let CompiledAction::Split(split) = &self.action else { return 0 };
        u8::try_from(split.choose(head)).unwrap_or(0)
    }

    /// One of the destinations it leads to.
    pub(crate) fn destination(&self, chosen: u8) -> Option<&Destination> {
        match &self.action {
            CompiledAction::Forward(to) => Some(to),
            CompiledAction::Split(split) => split.parts.get(usize::from(chosen)),
            CompiledAction::Redirect(_) | CompiledAction::Respond(_) => None,
        }
    }

    /// The prefix by which it matches this request, if by one.
    pub(crate) fn matched_prefix(&self, head: &RequestHead, scheme: Scheme) -> Option<&str> {
        self.matches.iter().find(|wanted| wanted.accepts(head, scheme))?.prefix()
    }

    fn accepts(&self, head: &RequestHead, scheme: Scheme) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|host| host_matches(host, head.host())))
            && (self.matches.is_empty() || self.matches.iter().any(|wanted| wanted.accepts(head, scheme)))
    }
}
