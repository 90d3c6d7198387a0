//! What an operator is told of Istio's objects that have no counterpart: by name, line and column of their file.
//! That the others do what Istio says is tested through the gateway.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use model::config::{Decode as _, RetryOn};
use model::config::{Loaded, decode_effective, load};

const SHOP: &str = "include: { istio: istio.yaml }
services:
  orders: { command: [a], versions: { v1: {}, v2: {}, v3: { labels: { version: v2 } } } }
  stock: { command: [a] }
";

fn loaded(text: &str) -> Loaded {
    load(Path::new("shop.yaml"), &mut |path| Ok(if path.ends_with("shop.yaml") { SHOP } else { text }.to_owned()))
}

fn refused(text: &str) -> String {
    let loaded = loaded(text);
    assert!(loaded.config.is_none(), "this was meant to be refused: {text}");
    loaded.diagnostics.render(&loaded.sources)
}

const HEAD: &str =
    "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: a }\nspec:\n  hosts: [a.test]\n";

#[test]
fn what_has_no_counterpart_is_refused_by_name_line_and_column() {
    let to = "route: [{ destination: { host: stock } }]";
    for (line, column, said) in [
        (format!("  tcp: []\n  http: [{{ {to} }}]"), "6:3", "`tcp` has no counterpart"),
        (format!("  http: [{{ {to}, corsPolicy: {{}} }}]"), "6:", "no origin is allowed anything"),
        (format!("  http: [{{ corsPolice: {{}}, {to} }}]"), "6:12", "did you mean `corsPolicy`?"),
        (
            format!("  http: [{{ match: [{{ sourceLabels: {{}} }}], {to} }}]"),
            "6:22",
            "`sourceLabels` has no counterpart",
        ),
        (format!("  http: [{{ match: [{{ method: {{ prefix: P }} }}], {to} }}]"), "6:22", "by its beginning"),
        (format!("  http: [{{ match: [{{ uri: /a }}], {to} }}]"), "6:27", "expected one of { exact"),
        (format!("  http: [{{ match: [{{ uri: {{ regex: \"(\" }} }}], {to} }}]"), "6:22", "is no regular expression"),
        (
            format!("  http: [{{ retries: {{ attempts: 1, retryOn: cancelled }}, {to} }}]"),
            "6:36",
            "`cancelled` in `retryOn`",
        ),
        ("  http: [{ route: [{ destination: { host: nobody } }] }]".into(), "6:37", "host `nobody` is no service"),
        ("  http: [{ route: [{ destination: { host: stock, subset: v9 } }] }]".into(), "6:50", "no version `v9`"),
        ("  http: [{ name: a }]".into(), "6:10", "a route that leads nowhere"),
        (
            format!("  http: [{{ fault: {{ abort: {{ httpStatus: 99, percentage: {{ value: 1 }} }} }}, {to} }}]"),
            "6:30",
            "no status of a failure",
        ),
        (
            format!("  http: [{{ fault: {{ abort: {{ grpcStatus: \"14\" }} }}, {to} }}]"),
            "6:30",
            "`grpcStatus` has no counterpart",
        ),
        (
            format!("  http: [{{ headers: {{ request: {{ set: {{ traceparent: a }} }} }}, {to} }}]"),
            "6:34",
            "is the gateway's own",
        ),
    ] {
        let report = refused(&format!("{HEAD}{line}\n"));
        assert!(report.contains(said) && report.contains(&format!("istio.yaml:{column}")), "{line}: {report}");
    }
    let report = refused("apiVersion: networking.istio.io/v1\nkind: Gateway\nspec: {}\n");
    assert!(report.contains("an object of kind `Gateway`") && report.contains("istio.yaml:2:1"), "{report}");
    let report = refused(&HEAD.replace("io/v1", "io/v2").replace("[a.test]", "[a.test]\n  http: []"));
    assert!(report.contains("`networking.istio.io/v2` is not known"), "{report}");
    let rule = |spec: &str| {
        refused(&format!(
            "kind: DestinationRule\napiVersion: networking.istio.io/v1\nspec:\n  host: orders\n  {spec}\n"
        ))
    };
    for (spec, column, said) in [
        ("trafficPolicy: { loadBalancer: { simple: RANDOM } }", "5:20", "`loadBalancer` has no counterpart"),
        ("subsets: [{ name: a, trafficPolicy: {} }]", "5:24", "`trafficPolicy` has no counterpart"),
        ("trafficPolicy: { connectionPool: { http: { maxRetries: 3 } } }", "5:46", "`maxRetries` has no counterpart"),
    ] {
        let report = rule(spec);
        assert!(report.contains(said) && report.contains(&format!("istio.yaml:{column}")), "{spec}: {report}");
    }
    let both = "kind: DestinationRule\napiVersion: networking.istio.io/v1\nspec:\n  host: orders\n  subsets: [{ name: b, labels: { version: v2 } }]\n---\n";
    let report =
        refused(&format!("{both}{HEAD}  http: [{{ route: [{{ destination: {{ host: orders, subset: b }} }}] }}]\n"));
    assert!(report.contains("is several versions: v2, v3") && report.contains("istio.yaml:12:"), "{report}");
}

#[test]
fn what_is_read_survives_being_written_as_the_configuration_in_force() {
    let text = format!(
        "{HEAD}  http: [{{ name: x, match: [{{ headers: {{ a: {{}} }} }}, {{}}], retries: {{ attempts: 2, retryOn: \"5xx\" }}, route: [{{ destination: {{ host: orders.prod.svc.cluster.local, subset: v1 }} }}] }}]\n"
    );
    let loaded = loaded(&text);
    let config = loaded.config.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render(&loaded.sources)));
    assert_eq!(decode_effective(&config.encode().to_string()).unwrap(), config);
    let names: Vec<Option<&str>> = config.routes.iter().map(|route| route.name.as_deref()).collect();
    assert_eq!(names, [Some("x"), Some("x-2")]);
    let retry = config.routes[0].retry.as_ref().unwrap();
    assert_eq!(retry.on, [RetryOn::ServerError, RetryOn::NonIdempotent], "Envoy asks for no method");
}
