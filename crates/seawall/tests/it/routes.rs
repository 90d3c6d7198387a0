//! What a route asks of a request, copies, and what is done on purpose, seen through the gateway by clients and instances.

use std::time::{Duration, Instant};

use crate::support::http::{self, Answer};
use crate::support::recorder::Recorder;
use crate::support::{Seawall, wait};

fn ask(seawall: &Seawall, path: &str, headers: &[(&str, &str)]) -> Answer {
    http::request(seawall.gateway, "GET", path, headers, b"").unwrap()
}

#[test]
fn conditions_on_hosts_paths_fields_and_parameters() {
    let [a, b] = ["a", "b"].map(Recorder::start);
    let seawall = Seawall::up(&format!(
        r#"
services:
  a: {{ endpoints: ["{}"] }}
  b: {{ endpoints: ["{}"] }}
routes:
  - {{ match: {{ host: [one.test, "*.two.test"] }}, to: {{ service: a }} }}
  - {{ match: {{ pathStart: /start }}, to: {{ service: a }}, rewrite: {{ prefix: /begin }} }}
  - {{ match: {{ pathStart: /Loud, ignorePathCase: true }}, to: {{ service: a }} }}
  - {{ match: {{ path: /fields, headers: {{ X-A: {{ prefix: "v" }}, X-B: {{ present: true }} }} }}, to: {{ service: a }} }}
  - {{ match: {{ path: /without, withoutHeaders: {{ X-A: {{ regex: "v[0-9]+" }} }} }}, to: {{ service: a }} }}
  - {{ match: {{ path: /query, query: {{ v: {{ regex: "[0-9]+" }}, w: "" }} }}, to: {{ service: a }} }}
  - {{ match: {{ path: /fixed }}, respond: {{ status: 418, body: short, headers: {{ X-C: "1" }} }} }}
  - {{ to: {{ service: b }} }}
"#,
        a.address, b.address
    ));
    seawall.wait_ready("a");
    seawall.wait_ready("b");
    for (path, headers, want) in [
        ("/", &[("Host", "one.test")][..], "a"),
        ("/", &[("Host", "x.TWO.test:80")], "a"),
        ("/", &[("Host", "two.test")], "b"),
        ("/start7", &[], "a"),
        ("/star", &[], "b"),
        ("/lOUDER", &[], "a"),
        ("/fields", &[("X-A", "v1"), ("x-b", "")], "a"),
        ("/fields", &[("X-A", "v1")], "b"),
        ("/fields", &[("X-A", "w"), ("X-B", "1")], "b"),
        ("/without", &[], "a"),
        ("/without", &[("X-A", "v1")], "b"),
        ("/without", &[("X-A", "v1x")], "a"),
        ("/query?v=12&w", &[], "a"),
        ("/query?v=12x&w", &[], "b"),
        ("/query?v=12", &[], "b"),
    ] {
        assert_eq!(ask(&seawall, path, headers).text(), want, "{path} {headers:?}");
    }
    a.take();
    ask(&seawall, "/start7/x?q", &[]);
    assert_eq!(a.take()[0].target, "/begin7/x?q");
    let fixed = ask(&seawall, "/fixed", &[]);
    assert_eq!((fixed.status, fixed.text().as_str(), fixed.header("x-c")), (418, "short", Some("1")));
    assert_eq!(fixed.header("seawall-reason"), Some("fixed"));
}

/// Istio's `mirrors`: the answer is ignored, and the host says that it is a copy.
#[test]
fn copies_go_elsewhere_and_slow_nobody() {
    let [real, copy] = ["real", "copy"].map(Recorder::start);
    let seawall = Seawall::up(&format!(
        r#"
services:
  real: {{ endpoints: ["{}"] }}
  copy: {{ endpoints: ["{}"], hold: {{ maxWait: 1s }} }}
  none: {{ command: [DEMO], replicas: 1, readinessProbe: {{ httpGet: {{ path: /never }} }} }}
routes:
  - {{ match: {{ path: /part }}, to: {{ service: real }}, mirror: {{ service: copy, percent: 10 }} }}
  - {{ match: {{ path: /nobody }}, to: {{ service: real }}, mirror: [ {{ service: none }}, {{ service: copy }} ] }}
  - {{ match: {{ pathPrefix: /all }}, to: {{ service: real }}, mirror: {{ service: copy }}, rewrite: {{ prefix: /new }} }}
  - {{ to: {{ service: real }} }}
"#,
        real.address, copy.address
    ));
    seawall.wait_ready("real");
    seawall.wait_ready("copy");
    let came = |count: usize| wait(&format!("{count} copies"), || (copy.count() == count).then(|| copy.take()));
    let body = vec![b'x'; 5_000];
    let answer = http::request(seawall.gateway, "POST", "/all/x?q=1", &[("Host", "shop.test")], &body).unwrap();
    assert_eq!(answer.text(), "real");
    let copied = came(1).remove(0);
    assert_eq!((copied.method.as_str(), copied.target.as_str(), copied.body.len()), ("POST", "/new/x?q=1", 5_000));
    assert_eq!(copied.headers["host"], "shop.test-shadow");
    let real_one = real.take().remove(0);
    assert_eq!((real_one.headers["host"].as_str(), real_one.body.len()), ("shop.test", 5_000));

    // A part of them, exactly.
    (0..100).for_each(|_| assert_eq!(ask(&seawall, "/part", &[]).text(), "real"));
    came(10);

    // One that fails, is slow or is not there: nobody notices, not even when there are too many.
    copy.answer(500);
    copy.slow(Duration::from_secs(30));
    let begun = Instant::now();
    (0..300).for_each(|_| assert_eq!(ask(&seawall, "/all", &[]).text(), "real"));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(ask(&seawall, "/nobody", &[]).text(), "real");
    let large = vec![b'x'; 100_000];
    let answer = http::request(seawall.gateway, "POST", "/all", &[], &large).unwrap();
    assert_eq!((answer.text().as_str(), real.take().last().unwrap().body.len()), ("real", 100_000));
    let page = seawall.api("GET", "/metrics", b"").text();
    for line in [
        "seawall_gateway_mirrored_total{service=\"copy\",reason=\"too-many\"}",
        "seawall_gateway_mirrored_total{service=\"copy\",reason=\"body-too-large\"} 1",
        "seawall_gateway_mirrored_total{service=\"copy\",reason=\"answered\"} 11",
    ] {
        assert!(page.contains(line), "{line} not in\n{page}");
    }
}

/// Istio's `fault`: the delay first, then the abort, each for its part of the requests.
#[test]
fn faults_delay_and_abort_their_part() {
    let seawall = Seawall::up(
        r#"
services:
  shop:
    command: [DEMO]
    traffic: { circuitBreaker: { errorCount: 1, minRequests: 1 } }
routes:
  - { match: { path: /abort }, to: { service: shop }, fault: { abort: { status: 503, percent: 20 } } }
  - { match: { path: /delay }, to: { service: shop }, fault: { delay: { for: 300ms, percent: 50 } } }
  - { match: { path: /both }, to: { service: shop }, fault: { delay: { for: 200ms }, abort: { status: 500 } } }
  - { match: { path: /late }, to: { service: shop }, timeout: 100ms, fault: { delay: { for: 60s } } }
  - { to: { service: shop } }
"#,
    );
    seawall.wait_ready("shop");
    let answers: Vec<Answer> = (0..100).map(|_| seawall.get("/abort")).collect();
    let aborted: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert_eq!(aborted.len(), 20);
    assert!(aborted.iter().all(|answer| answer.header("seawall-reason") == Some("fault")));
    let timed = |path: &str| {
        let begun = Instant::now();
        (seawall.get(path).status, begun.elapsed())
    };
    let delayed = (0..4).map(|_| timed("/delay")).filter(|(_, took)| *took >= Duration::from_millis(300)).count();
    assert_eq!(delayed, 2);
    let (status, took) = timed("/both");
    assert!(status == 500 && took >= Duration::from_millis(200), "{status} {took:?}");
    assert_eq!(timed("/late").0, 504, "inside the request's time");
    assert_eq!(seawall.get("/").status, 200, "the breaker has seen nothing of it");
    assert!(seawall.events_of("breaker-opened").is_empty());
}
