//! Metrics as they are read.

use super::Metrics;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[test]
fn text_has_house_names_and_cumulative_buckets() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let service = metrics.service("order");
    service.answered(200, Duration::from_millis(400));
    service.answered(503, Duration::from_secs(60));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        "seawall_gateway_requests_total{service=\"order\",code=\"2xx\"} 1",
        "seawall_gateway_requests_total{service=\"order\",code=\"5xx\"} 1",
        "seawall_gateway_request_duration_seconds_bucket{le=\"0.25\",service=\"order\"} 0",
        "seawall_gateway_request_duration_seconds_bucket{le=\"0.5\",service=\"order\"} 1",
        "seawall_gateway_request_duration_seconds_bucket{le=\"+Inf\",service=\"order\"} 2",
        "seawall_gateway_request_duration_seconds_count{service=\"order\"} 2",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
}

#[test]
fn a_removed_service_leaves_no_labels() {
    let mut registry = Registry::default();
    let table = crate::Table::new(Metrics::register(&mut registry));
    table.service(&"order".into());
    table.service(&"stock".into());
    table.retain(|name| name.as_str() == "stock");
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert!(!text.contains("order") && text.contains("stock"), "{text}");
}

#[test]
fn an_instance_has_labels_from_its_first_request_until_it_is_removed() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let page = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    let instance = metrics.instance(7, &"order".into(), &"order-1".into());
    metrics.instance(8, &"order".into(), &"order-2".into());
    assert!(!page().contains("order-1"), "nobody asked for it yet");
    instance.taken();
    instance.answered(200, Duration::from_millis(2));
    for line in [
        "seawall_gateway_instance_requests_total{service=\"order\",instance=\"order-1\",code=\"2xx\"} 1",
        "_instance_request_duration_seconds_bucket{le=\"0.0025\",service=\"order\",instance=\"order-1\"} 1",
        "seawall_gateway_in_flight_requests{service=\"order\",instance=\"order-1\"} 1",
        "seawall_gateway_pool_connections{service=\"order\",instance=\"order-1\",state=\"busy\"} 0",
    ] {
        assert!(page().contains(line), "{line} not in\n{}", page());
    }
    assert!(!page().contains("order-2"), "{}", page());
    metrics.remove_instance(7);
    instance.answered(200, Duration::ZERO);
    assert!(!page().contains("order-1"), "{}", page());
}
