//! Fields of Istio's objects that the whole routes and rules of the other tests have not: older spellings, and what is said
//! of one destination, one attempt or one ejection.

use std::time::{Duration, Instant};

use super::{ask, up};
use crate::support::recorder::Recorder;
use crate::support::{Seawall, wait};

/// A service of these endpoints.
fn service(name: &str, endpoints: &[&Recorder]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|one| format!("\"{}\"", one.address)).collect();
    format!("  {name}: {{ endpoints: [{}] }}\n", endpoints.join(", "))
}

const ROUTES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: shop }
spec:
  hosts: [shop.test]
  http:
    - name: named
      match: [{ name: exactly, uri: { exact: /named }, scheme: { exact: http } }]
      route: [{ destination: { host: a } }]
    - match: [{ uri: { exact: /changed } }]
      route:
        - destination: { host: a }
          headers:
            request: { set: { X-One: "1" }, add: { X-Both: b }, remove: [X-Gone] }
            response: { add: { X-Two: "2" }, set: { X-Four: "4" }, remove: [X-Answered-By] }
    - match: [{ uri: { exact: /moved } }]
      redirect: { uri: /there, port: 8444, redirectCode: 308 }
    - match: [{ uri: { exact: /tried } }]
      retries: { attempts: 1, perTryTimeout: 0.3s, retryOn: 5xx, retryIgnorePreviousHosts: true }
      route: [{ destination: { host: pair } }]
    - match: [{ uri: { exact: /spread } }]
      retries: { attempts: 5, retryOn: 5xx, backoff: 300ms }
      route: [{ destination: { host: bad } }]
    - match: [{ uri: { exact: /half } }]
      mirror: { host: copy, subset: all, port: { number: 8080 } }
      mirrorPercent: 50
      route: [{ destination: { host: a } }]
    - match: [{ uri: { exact: /part } }]
      mirrors: [{ destination: { host: copy, subset: all, port: { number: 8080 } }, percentage: { value: 50 } }]
      route: [{ destination: { host: a } }]
    - match: [{ uri: { exact: /late } }]
      fault: { delay: { fixedDelay: 0.3s, percent: 50 } }
      route: [{ destination: { host: a } }]
    - match: [{ uri: { exact: /page } }]
      corsPolicy: { allowOrigin: ["https://shop.test"], unmatchedPreflights: FORWARD }
      route: [{ destination: { host: a } }]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: copy }
spec: { host: copy, subsets: [{ name: all }] }
"#;

#[test]
fn fields_of_one_destination_one_attempt_and_of_before() {
    let [a, bad, slow, copy] = ["a", "bad", "slow", "copy"].map(Recorder::start);
    let services = ["services:\n".to_owned(), service("a", &[&a]), service("bad", &[&bad]), service("copy", &[&copy])];
    let seawall = up(&(services.concat() + &service("pair", &[&slow, &a])), &[("shop.yaml", ROUTES)]);
    ["a", "bad", "copy", "pair"].iter().for_each(|name| drop(seawall.wait_ready(name)));
    let shop: &[(&str, &str)] = &[("Host", "shop.test")];
    let get = |path: &str| ask(&seawall, "GET", path, shop);

    assert_eq!(get("/named").status, 200);
    let counted = "seawall_gateway_route_requests_total{route=\"named\",code=\"2xx\"} 1";
    wait("it is counted", || seawall.api("GET", "/metrics", b"").text().contains(counted).then_some(()));
    a.take();
    let changed = ask(&seawall, "GET", "/changed", &[shop[0], ("X-Both", "a"), ("X-Gone", "1")]);
    assert_eq!(["x-two", "x-four", "x-answered-by"].map(|name| changed.header(name)), [Some("2"), Some("4"), None]);
    let seen = a.take().remove(0).headers;
    assert_eq!((seen["x-one"].as_str(), seen.contains_key("x-gone"), seen["x-both"].as_str()), ("1", false, "b"));
    let moved = get("/moved");
    assert_eq!((moved.status, moved.header("location")), (308, Some("http://shop.test:8444/there")));

    slow.slow(Duration::from_secs(40));
    let begun = Instant::now();
    wait("the slow one is tried", || {
        assert_eq!(get("/tried").status, 200, "an attempt that takes too long is made elsewhere");
        (slow.count() > 0).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    bad.answer(503);
    let begun = Instant::now();
    assert_eq!((get("/spread").status, bad.take().len()), (503, 6));
    // Of five pauses of up to 300, 600, 1200, 2400 and 3000 ms not all are next to nothing.
    assert!(begun.elapsed() > Duration::from_millis(200), "{:?}", begun.elapsed());

    for path in ["/half", "/part"] {
        (0..10).for_each(|_| assert_eq!(get(path).status, 200));
        wait("every second one is copied", || (copy.count() == 5).then(|| copy.take()));
    }
    let late = || {
        let begun = Instant::now();
        get("/late").status == 200 && begun.elapsed() >= Duration::from_millis(300)
    };
    assert!((0..10).filter(|_| late()).count() >= 5, "every second one waits");
    let from = |origin| ask(&seawall, "GET", "/page", &[("Host", "shop.test"), ("Origin", origin)]);
    assert_eq!(from("https://shop.test").header("access-control-allow-origin"), Some("https://shop.test"));
    assert_eq!(from("https://else.test").header("access-control-allow-origin"), None);
}

const RULES: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: back }
spec: { host: back, trafficPolicy: { outlierDetection: { consecutiveErrors: 1, baseEjectionTime: 1s, maxEjectionPercent: 100, interval: 10s } } }
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: { name: most }
spec: { host: most, trafficPolicy: { outlierDetection: { consecutive5xxErrors: 1, baseEjectionTime: 600s } } }
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: { name: few }
spec: { host: few, trafficPolicy: { outlierDetection: { consecutive5xxErrors: 1, baseEjectionTime: 600s, minHealthPercent: 60 } } }
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: { name: never }
spec: { host: never, trafficPolicy: { outlierDetection: { consecutive5xxErrors: 0 } } }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: pool }
spec: { host: pool, trafficPolicy: { connectionPool: { http: { http2MaxRequests: 1 } } } }
"#;

/// `outlierDetection` and `connectionPool.http`: each service has one field that the others have not.
#[test]
fn who_is_left_alone_for_how_long_and_how_many_at_once() {
    let [good, bad, worse] = ["good", "bad", "worse"].map(Recorder::start);
    let mut body = "services:\n".to_owned();
    body += &[("back", vec![&good, &bad]), ("most", vec![&good, &bad, &worse]), ("few", vec![&good, &bad])]
        .map(|(name, endpoints)| service(name, &endpoints))
        .concat();
    body += &(service("never", &[&good, &bad]) + &service("pool", &[&good]) + "routes:\n");
    for name in ["back", "most", "few", "never", "pool"] {
        body += &format!("  - {{ match: {{ pathPrefix: /{name} }}, to: {{ service: {name} }} }}\n");
    }
    let seawall = up(&body, &[("rules.yaml", RULES)]);
    ["back", "most", "few", "never", "pool"].iter().for_each(|name| drop(seawall.wait_ready(name)));
    bad.answer(500);
    worse.answer(500);
    let failed = |path: &str| (0..24).filter(|_| seawall.get(path).status == 500).count();

    ejected(&seawall, "back");
    wait("it is asked again", || seawall.events_of("instance-returned").into_iter().find(|it| it["service"] == "back"));

    ejected(&seawall, "most");
    assert!(failed("/most") > 0, "a tenth of three is one at a time, so the other one is asked");
    let gone = seawall.events_of("instance-ejected").iter().filter(|event| event["service"] == "most").count();
    assert_eq!(gone, 1);

    ejected(&seawall, "few");
    assert!(failed("/few") > 0, "half of them are fewer than 60 %: nobody is spared");

    assert!(failed("/never") > 0);
    assert!(seawall.events_of("instance-ejected").iter().all(|event| event["service"] != "never"));

    good.keep_next();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| seawall.get("/pool").status);
        wait("one is under way", || good.keeps().then_some(()));
        let second = seawall.get("/pool");
        assert_eq!((second.status, second.header("seawall-reason")), (503, Some("too-many-requests-pending")));
        good.let_go();
        assert_eq!(first.join().unwrap(), 200);
    });
}

fn ejected(seawall: &Seawall, name: &str) {
    wait("one is ejected", || {
        seawall.get(&format!("/{name}"));
        seawall.events_of("instance-ejected").into_iter().find(|event| event["service"] == name)
    });
}
