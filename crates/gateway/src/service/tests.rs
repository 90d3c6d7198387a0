//! A service's handle: epochs, swaps, suspicion.

use super::{Endpoint, Endpoints, Readiness, Selection, Service, StaleEpoch};
use crate::metrics::Metrics;
use model::{Epoch, InstanceId};
use std::sync::atomic::Ordering;

fn endpoints(ids: &[&str], selection: Selection) -> Endpoints {
    let endpoint = |id: &&str| Endpoint {
        id: InstanceId::from(*id),
        address: ([127, 0, 0, 1], 1).into(),
        version: None,
        readiness: Readiness::Ready,
        weight: 1,
        local: true,
    };
    Endpoints { selection, endpoints: ids.iter().map(endpoint).collect(), ..Endpoints::default() }
}

#[test]
fn an_older_epoch_changes_nothing() {
    let service = Service::new("s".into(), Metrics::default());
    let primary = |id: &str, epoch| Selection::Primary(Some((id.into(), Epoch(epoch))));
    service.set_endpoints(endpoints(&["a", "b"], primary("a", 7))).unwrap();
    service.set_endpoints(endpoints(&["a", "b"], Selection::Primary(None))).unwrap();
    let refused = service.set_endpoints(endpoints(&["a", "b"], primary("b", 6)));
    assert_eq!(refused, Err(StaleEpoch { offered: Epoch(6), current: Epoch(7) }));
    assert_eq!(service.resolved().told.selection, Selection::Primary(None));
    service.set_endpoints(endpoints(&["a", "b"], primary("b", 8))).unwrap();
}

#[test]
fn an_instance_keeps_its_count_across_swaps_and_until_it_is_idle() {
    let service = Service::new("s".into(), Metrics::default());
    service.set_endpoints(endpoints(&["a", "b"], Selection::Any)).unwrap();
    let before = service.resolved();
    before.instances[0].metrics.taken();
    service.set_endpoints(endpoints(&["b"], Selection::Any)).unwrap();
    assert_eq!(service.in_flight(&"a".into()), 1, "removed, yet its request still counts");
    service.set_endpoints(endpoints(&["a", "b"], Selection::Any)).unwrap();
    assert_eq!(service.resolved().instances[0].key, before.instances[0].key);
    before.instances[0].metrics.in_flight.dec();
    service.set_endpoints(endpoints(&["b"], Selection::Any)).unwrap();
    service.set_endpoints(endpoints(&["a", "b"], Selection::Any)).unwrap();
    assert_ne!(service.resolved().instances[0].key, before.instances[0].key, "forgotten once idle");
}

#[test]
fn lists_in_any_order_keep_their_instances() {
    let service = Service::new("s".into(), Metrics::default());
    let mut keys = std::collections::BTreeMap::new();
    let lists: [&[&str]; 8] = [
        &["a", "b", "c", "d"],
        &["a", "x", "c", "d"],
        &["x", "c", "d"],
        &["d", "c", "x"],
        &["d", "d", "n", "c", "x", "m"],
        &["n", "m"],
        &[],
        &["m", "a"],
    ];
    for list in lists {
        service.set_endpoints(endpoints(list, Selection::Any)).unwrap();
        keys.retain(|id, _| list.contains(id));
        for (id, instance) in list.iter().zip(&service.resolved().instances) {
            assert_eq!((instance.id.as_str(), instance.removed.load(Ordering::Relaxed)), (*id, false));
            assert_eq!(*keys.entry(*id).or_insert(instance.key), instance.key, "{id} in {list:?}");
        }
        let known = service.lock();
        assert_eq!(known.by_id.len(), keys.len(), "{list:?}: who left idle is forgotten");
        assert!(known.leaving.is_empty());
    }
    let distinct: std::collections::BTreeSet<_> = keys.values().collect();
    assert_eq!(distinct.len(), 2);
}

#[test]
fn an_instance_that_comes_back_busy_is_no_longer_leaving() {
    let service = Service::new("s".into(), Metrics::default());
    service.set_endpoints(endpoints(&["a"], Selection::Any)).unwrap();
    let busy = service.resolved().instances[0].clone();
    busy.metrics.taken();
    service.set_endpoints(endpoints(&[], Selection::Any)).unwrap();
    assert!(busy.removed.load(Ordering::Relaxed));
    service.set_endpoints(endpoints(&["b", "a"], Selection::Any)).unwrap();
    assert!(!busy.removed.load(Ordering::Relaxed));
    busy.metrics.in_flight.dec();
    service.set_endpoints(endpoints(&["b", "a"], Selection::Any)).unwrap();
    assert_eq!(service.resolved().instances[1].key, busy.key);
}
