//! What the control plane tells the data plane: routes, and a service's endpoints by stable handle.
//! Read at the route step of the request walk, written by whoever watches the store. Readers never wait: routes and
//! endpoints are swapped whole, while counters, holds and pools stay. Deliberately absent: any decision about them.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use model::ServiceName;
use traffic::system::SystemPolicy;

use crate::chains::Chains;
use crate::metrics::Metrics;
use crate::overload::{OverloadView, Protection};
use crate::retired::Retired;
use crate::routes::{Route, RouteError, Routes};
use crate::service::Service;

/// Routes and services of one gateway.
#[derive(Debug)]
pub struct Table {
    routes: ArcSwap<Routes>,
    /// Nobody knows yet what the routes are.
    unknown: AtomicBool,
    retired: Mutex<Retired<Routes>>,
    services: Mutex<BTreeMap<ServiceName, Arc<Service>>>,
    metrics: Metrics,
    pub(crate) protection: Arc<Protection>,
    pub(crate) chains: Chains,
}

impl Table {
    /// An empty table: every request gets 404 until routes come.
    pub fn new(metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            routes: ArcSwap::default(),
            unknown: AtomicBool::new(false),
            retired: Mutex::default(),
            services: Mutex::default(),
            protection: metrics.protection(),
            metrics,
            chains: Chains::default(),
        })
    }

    /// The handle of a service, made at first sight; the same one ever after.
    pub fn service(&self, name: &ServiceName) -> Arc<Service> {
        let mut services = self.lock();
        services
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Service::new(name.clone(), self.metrics.clone())))
            .clone()
    }

    /// Puts a new list of routes in force, for requests whose head is read from now on.
    ///
    /// # Errors
    /// A regular expression that is none; then nothing has changed.
    pub fn set_routes(&self, routes: Vec<Route>) -> Result<(), RouteError> {
        let compiled = Arc::new(Routes::compile(routes, |name| self.service(name), &self.metrics)?);
        let before = self.routes.swap(compiled.clone());
        let kept: HashSet<&str> = compiled.series().collect();
        before.series().filter(|name| !kept.contains(name)).for_each(|name| self.metrics.remove_route(name));
        self.retired.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(before);
        Ok(())
    }

    /// Whether routes may exist that this node has not heard of. Until then a request without a route gets 503, not the 404
    /// that clients and caches take for the truth.
    pub fn set_unknown(&self, unknown: bool) {
        self.unknown.store(unknown, Ordering::Relaxed);
    }

    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown.load(Ordering::Relaxed)
    }

    /// What the gateway as a whole bears, for requests that come from now on.
    pub fn set_overload(&self, policy: Option<SystemPolicy>) {
        self.protection.set(policy);
    }

    /// What was measured of the machine: its load, and how busy its processors are, from 0 to 1.
    pub fn measured(&self, load: f64, cpu: f64) {
        self.protection.measured(load, cpu);
    }

    /// How much the gateway has to do, if somebody wants to know.
    pub fn overload(&self) -> Option<OverloadView> {
        self.protection.view()
    }

    /// Forgets services not wanted, and their metrics; requests they have still end well.
    pub fn retain(&self, mut wanted: impl FnMut(&ServiceName) -> bool) {
        self.lock().retain(|name, service| {
            let keep = wanted(name);
            if !keep {
                service.forget_metrics();
            }
            keep
        });
    }

    pub(crate) fn routes(&self) -> arc_swap::Guard<Arc<Routes>> {
        self.routes.load()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Arc<Service>>> {
        self.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
