//! Istio's objects, seen through the gateway: what is observed is what Istio's reference (VirtualService, DestinationRule) says
//! of each field, and what Envoy does with what Pilot makes of it.

mod fields;

use std::time::{Duration, Instant};

use crate::support::http::{self, Answer};
use crate::support::recorder::Recorder;
use crate::support::{Seawall, configuration, wait};

/// A configuration, with Istio's files beside it.
fn up(body: &str, files: &[(&str, &str)]) -> Seawall {
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let body = configuration(&format!("include: {{ istio: [{}] }}\n{body}", names.join(", ")));
    std::fs::write(folder.path().join("seawall.yaml"), body).unwrap();
    Seawall::up_in(folder)
}

fn ask(seawall: &Seawall, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    http::request(seawall.gateway, method, path, headers, b"").unwrap()
}

/// The source document's block as it stands.
const PRODUCT: &str = "apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: product-route
spec:
  hosts:
    - product.example.com
  http:
    - route:
        - destination:
            host: product-service
            subset: v1
          weight: 80
        - destination:
            host: product-service
            subset: v2
          weight: 20
";

#[test]
fn the_source_documents_virtual_service_shares_by_weight() {
    let services = "services:\n  product-service: { command: [DEMO], versions: { v1: {}, v2: {} } }\n";
    let seawall = up(services, &[("product.yaml", PRODUCT)]);
    seawall.wait_ready("product-service");
    let versions: Vec<String> = (0..100)
        .map(|_| {
            let answer = ask(&seawall, "GET", "/", &[("Host", "product.example.com")]);
            answer.json()["instance"].as_str().unwrap().to_owned()
        })
        .collect();
    let count = |version: &str| versions.iter().filter(|instance| instance.contains(version)).count();
    assert_eq!((count("-v1-"), count("-v2-")), (80, 20));
    assert_eq!(ask(&seawall, "GET", "/", &[("Host", "other.example.com")]).status, 404, "another host");
}

const ROUTES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: shop, namespace: prod }
spec:
  hosts: [shop.test, "*.shop.test"]
  gateways: [mesh, shop-gateway]
  http:
    - name: exact
      match: [{ uri: { exact: /exact } }, { uri: { exact: /Loud }, ignoreUriCase: true }]
      route: [{ destination: { host: a.prod.svc.cluster.local, port: { number: 8080 } } }]
    - match: [{ uri: { prefix: /pre } }]
      rewrite: { uri: /new, authority: inner.test }
      headers:
        request: { set: { X-Set: "1" }, add: { X-Add: "2" }, remove: [X-Gone] }
        response: { remove: [server], set: { X-Back: "3" } }
      route: [{ destination: { host: a } }]
    - match: [{ uri: { regex: "/r[0-9]+" } }]
      rewrite: { uri: /whole }
      route: [{ destination: { host: a } }]
    - match:
        - uri: { prefix: /fields }
          headers: { x-a: { exact: v }, x-b: {}, x-c: { prefix: p }, x-d: { regex: "d+" } }
          withoutHeaders: { x-not: {} }
          queryParams: { q: { exact: "1" }, r: { regex: "[a-z]+" } }
      route: [{ destination: { host: a } }]
    - match: [{ uri: { exact: /method }, method: { regex: PUT|PATCH } }, { uri: { exact: /method }, method: { exact: GET } }]
      route: [{ destination: { host: a } }]
    - match: [{ uri: { exact: /authority }, authority: { exact: in.shop.test } }, { uri: { exact: /authority }, authority: { prefix: "on." } }]
      route: [{ destination: { host: a } }]
    - match: [{ uri: { exact: /scheme }, scheme: { exact: https } }]
      route: [{ destination: { host: a } }]
    - match: [{ uri: { prefix: /redirect } }]
      redirect: { uri: /there, authority: "else.test:8443", scheme: https }
    - match: [{ uri: { prefix: /direct } }]
      directResponse: { status: 418, body: { string: short } }
    - match: [{ uri: { prefix: /slow } }]
      timeout: 0.2s
      route: [{ destination: { host: slow } }]
    - match: [{ uri: { prefix: /again } }]
      retries: { attempts: 3, perTryTimeout: 2s, retryOn: "5xx,connect-failure", backoff: 1ms }
      route: [{ destination: { host: bad } }]
    - match: [{ uri: { prefix: /never } }]
      retries: { attempts: 0 }
      route: [{ destination: { host: bad } }]
    - match: [{ uri: { prefix: /mirror } }]
      mirror: { host: copy }
      mirrorPercentage: { value: 50 }
      route: [{ destination: { host: a } }]
    - match: [{ uri: { prefix: /copies } }]
      mirrors: [{ destination: { host: copy } }]
      route: [{ destination: { host: a } }]
    - match: [{ uri: { prefix: /abort } }]
      fault: { abort: { httpStatus: 503, percentage: { value: 20 } } }
      route: [{ destination: { host: a } }]
    - match: [{ uri: { prefix: /delay } }]
      timeout: 0.1s
      fault: { delay: { fixedDelay: 0.3s, percentage: { value: 100 } } }
      route: [{ destination: { host: a } }]
    - match: [{ uri: { prefix: /nofault } }]
      fault: { abort: { httpStatus: 500 } }
      route: [{ destination: { host: a } }]
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: { name: rest }
spec:
  hosts: ["*"]
  http: [{ route: [{ destination: { host: rest } }] }]
"#;

#[test]
fn every_field_of_a_virtual_service_does_what_istio_says() {
    let [a, slow, bad, copy, rest] = ["a", "slow", "bad", "copy", "rest"].map(Recorder::start);
    let seawall = up(
        &format!(
            "services:\n  a: {{ endpoints: [\"{}\"] }}\n  slow: {{ endpoints: [\"{}\"] }}\n  bad: {{ endpoints: [\"{}\"] }}\n  copy: {{ endpoints: [\"{}\"] }}\n  rest: {{ endpoints: [\"{}\"] }}\n",
            a.address, slow.address, bad.address, copy.address, rest.address
        ),
        &[("shop.yaml", ROUTES)],
    );
    for service in ["a", "slow", "bad", "copy", "rest"] {
        seawall.wait_ready(service);
    }
    slow.slow(Duration::from_secs(5));
    bad.answer(500);
    let fields = [("x-a", "v"), ("x-b", "any"), ("x-c", "pq"), ("x-d", "ddd")];
    let with = |more: &[(&'static str, &'static str)]| [&[("Host", "shop.test")], &fields[..], more].concat();
    let shop: &[(&str, &str)] = &[("Host", "shop.test")];
    for (method, path, headers, want) in [
        ("GET", "/exact", shop.to_vec(), 200),
        ("GET", "/exact", vec![("Host", "x.shop.test")], 200),
        ("GET", "/exact/more", shop.to_vec(), 404),
        ("GET", "/loud", shop.to_vec(), 200),
        ("GET", "/fields?q=1&r=abc", with(&[]), 200),
        ("GET", "/fields?q=1&r=1", with(&[]), 404),
        ("GET", "/fields?q=2&r=abc", with(&[]), 404),
        ("GET", "/fields?q=1&r=abc", with(&[("x-not", "")]), 404),
        ("GET", "/fields?q=1&r=abc", shop.to_vec(), 404),
        ("GET", "/method", shop.to_vec(), 200),
        ("PATCH", "/method", shop.to_vec(), 200),
        ("DELETE", "/method", shop.to_vec(), 404),
        ("GET", "/authority", vec![("Host", "in.shop.test")], 200),
        ("GET", "/authority", vec![("Host", "on.shop.test")], 200),
        ("GET", "/authority", shop.to_vec(), 404),
        ("GET", "/scheme", shop.to_vec(), 404),
    ] {
        let answer = ask(&seawall, method, path, &headers);
        assert_eq!(answer.status, want, "{method} {path} {headers:?}");
        assert!(want != 200 || answer.header("x-answered-by") == Some("a"), "{path}: {answer:?}");
    }
    let any = ask(&seawall, "GET", "/exact", &[("Host", "elsewhere.test")]);
    assert_eq!(any.header("x-answered-by"), Some("rest"), "a host that is not named goes where `*` goes");

    // `prefix` is of characters, and what is put in its place as well.
    a.take();
    let answer = ask(&seawall, "GET", "/prefix/x?y", &[("Host", "shop.test"), ("X-Gone", "1"), ("X-Add", "0")]);
    let seen = a.take().remove(0);
    assert_eq!((seen.target.as_str(), seen.headers["host"].as_str()), ("/newfix/x?y", "inner.test"));
    assert_eq!((seen.headers["x-set"].as_str(), seen.headers.contains_key("x-gone")), ("1", false));
    assert_eq!((answer.header("server"), answer.header("x-back")), (None, Some("3")));
    ask(&seawall, "GET", "/r12?y", shop);
    assert_eq!(a.take()[0].target, "/whole?y", "an expression stands for all of the path");

    let redirected = ask(&seawall, "GET", "/redirect/x?y", shop);
    assert_eq!((redirected.status, redirected.header("location")), (301, Some("https://else.test:8443/there?y")));
    let direct = ask(&seawall, "GET", "/direct", shop);
    assert_eq!((direct.status, direct.text().as_str()), (418, "short"));
    let begun = Instant::now();
    assert_eq!(ask(&seawall, "GET", "/slow", shop).status, 504);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());

    // One attempt and three more, also of a POST, as Envoy does.
    bad.take();
    assert_eq!(ask(&seawall, "POST", "/again", shop).status, 500);
    assert_eq!(bad.take().len(), 4);
    assert_eq!(ask(&seawall, "GET", "/never", shop).status, 500);
    assert_eq!(bad.take().len(), 1);

    (0..10).for_each(|_| assert_eq!(ask(&seawall, "GET", "/mirror", shop).status, 200));
    wait("every second one is copied", || (copy.count() == 5).then(|| copy.take()));
    ask(&seawall, "GET", "/copies", shop);
    let copied = wait("it is copied", || copy.take().pop());
    assert_eq!(copied.headers["host"], "shop.test-shadow");

    let aborted = (0..100).filter(|_| ask(&seawall, "GET", "/abort", shop).status == 503).count();
    assert_eq!(aborted, 20);
    let begun = Instant::now();
    assert_eq!(ask(&seawall, "GET", "/delay", shop).status, 200, "a timeout is not in force beside a fault");
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert_eq!(ask(&seawall, "GET", "/nofault", shop).status, 200, "without a percentage nobody gets it");
}

const CORS: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: pages }
spec:
  hosts: ["*"]
  http:
    - corsPolicy:
        allowOrigins: [{ exact: "https://shop.test" }, { prefix: "https://dev." }, { regex: "https://[a-z]+[.]shop[.]test" }]
        allowMethods: [GET, PUT]
        allowHeaders: [x-id]
        exposeHeaders: [x-total]
        maxAge: 24h
        allowCredentials: true
      route: [{ destination: { host: pages } }]
"#;

/// `corsPolicy`, as Envoy's filter for it does.
#[test]
fn pages_of_origins_that_are_allowed_may_read_and_others_pass_as_they_are() {
    let pages = Recorder::start("pages");
    let seawall =
        up(&format!("services:\n  pages: {{ endpoints: [\"{}\"] }}\n", pages.address), &[("cors.yaml", CORS)]);
    seawall.wait_ready("pages");
    let field = |answer: &Answer, name: &str| answer.header(&format!("access-control-{name}")).map(str::to_owned);
    let preflight =
        |origin| ask(&seawall, "OPTIONS", "/", &[("Origin", origin), ("Access-Control-Request-Method", "PUT")]);
    for origin in ["https://shop.test", "https://dev.anything", "https://www.shop.test"] {
        pages.take();
        let answer = preflight(origin);
        assert_eq!((answer.status, answer.header("seawall-reason")), (200, Some("cors-preflight")));
        assert_eq!(pages.count(), 0, "the service is not asked");
        let said = ["allow-origin", "allow-methods", "allow-headers", "max-age", "allow-credentials"];
        let said = said.map(|name| field(&answer, name).unwrap());
        assert_eq!(said, [origin, "GET,PUT", "x-id", "86400", "true"]);
        let answer = ask(&seawall, "GET", "/", &[("Origin", origin)]);
        assert_eq!(answer.header("x-answered-by"), Some("pages"));
        let said = ["allow-origin", "expose-headers", "allow-credentials"].map(|name| field(&answer, name).unwrap());
        assert_eq!(said, [origin, "x-total", "true"]);
    }
    for origin in ["https://other.test", "https://shop.test.evil", "http://shop.test"] {
        let answer = preflight(origin);
        assert_eq!(
            (answer.header("x-answered-by"), field(&answer, "allow-origin")),
            (Some("pages"), None),
            "forwarded"
        );
        assert_eq!(field(&ask(&seawall, "GET", "/", &[("Origin", origin)]), "allow-origin"), None);
    }
    let plain = ask(&seawall, "OPTIONS", "/", &[("Origin", "https://shop.test")]);
    assert_eq!(plain.header("x-answered-by"), Some("pages"), "not every OPTIONS is a preflight");
}

const RULE: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: orders }
spec:
  host: orders.prod.svc.cluster.local
  subsets:
    - { name: stable, labels: { version: v1 } }
    - { name: canary, labels: { track: canary } }
  trafficPolicy:
    connectionPool: { tcp: { maxConnections: 2 }, http: { http1MaxPendingRequests: 0 } }
    outlierDetection: { consecutive5xxErrors: 2, baseEjectionTime: 60s, maxEjectionPercent: 100 }
"#;

const SUBSETS: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: orders }
spec:
  hosts: ["*"]
  http:
    - match: [{ uri: { prefix: /canary } }]
      route: [{ destination: { host: orders, subset: canary } }]
    - match: [{ uri: { prefix: /all } }]
      route: [{ destination: { host: orders } }]
    - route: [{ destination: { host: orders, subset: stable } }]
"#;

#[test]
fn a_destination_rule_says_what_subsets_are_and_guards_the_service() {
    let orders =
        "services:\n  orders:\n    command: [DEMO]\n    versions: { v1: {}, v2: { labels: { track: canary } } }\n";
    let seawall = up(orders, &[("routes.yaml", SUBSETS), ("rules.yaml", RULE)]);
    seawall.wait_ready("orders");
    let instance = |path: &str| seawall.get(path).json()["instance"].as_str().unwrap_or_default().to_owned();
    assert_eq!((instance("/canary"), instance("/")), ("orders-v2-0".to_owned(), "orders-v1-0".to_owned()));
    // `maxConnections` is how many there are at once with HTTP/1.
    seawall.fault("orders-v1-0", "slow?ms=60000");
    let active = || seawall.service("orders")["traffic"]["concurrency"]["active"].clone();
    wait("those before have given their places back", || (active() == 0).then_some(()));
    std::thread::scope(|scope| {
        let first = [(); 2].map(|()| scope.spawn(|| http::request(seawall.gateway, "GET", "/", &[], b"")));
        wait("two are under way", || (active() == 2).then_some(()));
        let third = seawall.get("/canary");
        assert_eq!((third.status, third.header("seawall-reason")), (503, Some("too-many-requests-pending")));
        seawall.fault("orders-v1-0", "crash");
        first.into_iter().for_each(|first| drop(first.join()));
    });
    seawall.wait_ready("orders");
    // Two failures in a row, and it is left alone.
    seawall.fault("orders-v2-0", "fail");
    wait("it is ejected", || {
        seawall.get("/all");
        seawall.events_of("instance-ejected").pop().filter(|event| event["instance"] == "orders-v2-0")
    });
    assert!((0..6).all(|_| instance("/all") == "orders-v1-0"));
}
