//! Rules in Sentinel's and Hystrix' own files, seen through the gateway: what is observed is what the tool does with the
//! same file. The meaning of each field is read from the classes that `model/src/config/foreign/` names.

use std::time::{Duration, Instant};

use crate::support::http::Answer;
use crate::support::recorder::Recorder;
use crate::support::{Seawall, configuration, wait};

const SHOP: &str = r#"
services:
  order-service: { command: [DEMO] }
  stock: { command: [DEMO] }
routes:
  - { match: { pathPrefix: /stock }, to: { service: stock } }
  - { to: { service: order-service } }
"#;

/// The shop, with another tool's file beside its own.
fn up(include: &str, file: &str, text: &str) -> Seawall {
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    std::fs::write(folder.path().join(file), text).unwrap();
    let body = configuration(&format!("include: {include}\n{SHOP}"));
    std::fs::write(folder.path().join("seawall.yaml"), body).unwrap();
    let seawall = Seawall::up_in(folder);
    seawall.wait_ready("order-service");
    seawall.wait_ready("stock");
    seawall
}

fn reason(answer: &Answer) -> Option<&str> {
    answer.header("seawall-reason")
}

/// Asks until the breaker is open. A request may come before the one ahead of it is counted, so what opened it is told by
/// the event.
fn opens(seawall: &Seawall, service: &str, path: &str, why: &str) {
    let refused = wait("it opens", || Some(seawall.get(path)).filter(|answer| reason(answer) == Some("breaker-open")));
    assert_eq!(refused.status, 503);
    let opened = seawall.event("breaker-opened", service);
    assert!(opened["message"].as_str().unwrap().contains(why), "{opened}");
}

/// The source document's rule, as a Sentinel data source has it: 100 a second of `orderService`.
const ORDERS: &str = r#"[{"resource": "orderService", "count": 100.0, "grade": 1}]"#;

#[test]
fn sentinels_default_controller_lets_all_of_a_second_come_at_once() {
    let seawall =
        up("[{ sentinel: { flow: flow.json, resources: { orderService: order-service } } }]", "flow.json", ORDERS);
    // From a half of a second's begin on, or from later in it: in one half and the next there are 100.
    let begun = Instant::now();
    let answers: Vec<u16> = (0..150).map(|_| seawall.get("/").status).collect();
    let halves = begun.elapsed().as_millis() / 500;
    let admitted = answers.iter().filter(|status| **status == 200).count();
    assert!(answers[..100].iter().all(|status| *status == 200), "100 come at once: {answers:?}");
    assert!(admitted as u128 <= 100 * (1 + halves), "{admitted} in {:?}", begun.elapsed());
    if halves == 0 {
        assert_eq!(answers[100..], [429; 50], "within half a second there are no others");
    }
    let refused = wait("it is refused again", || Some(seawall.get("/")).filter(|answer| answer.status == 429));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    wait("the second has gone by", || Some(seawall.get("/")).filter(|answer| answer.status == 200));
    assert_eq!(seawall.get("/stock").status, 200, "another resource");
}

/// `WarmUpRateLimiterController`: cold, turns come at a third of the rate, and who comes too early waits for his.
#[test]
fn sentinels_control_behaviour_3_queues_and_is_slow_while_cold() {
    let rule = r#"[{"resource": "stock", "grade": 1, "count": 30, "controlBehavior": 3, "warmUpPeriodSec": 60, "maxQueueingTimeMs": 400}]"#;
    let seawall = up("{ sentinel: { flow: flow.json } }", "flow.json", rule);
    let begun = Instant::now();
    let answers: Vec<u16> = (0..11).map(|_| seawall.get("/stock").status).collect();
    let took = begun.elapsed();
    assert_eq!(answers, [200; 11], "they wait");
    // Ten turns of a tenth of a second, not of a thirtieth.
    assert!(took >= Duration::from_millis(900), "{took:?}");
    // More at once than have a turn within 400 ms are refused.
    let refused = std::thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|_| scope.spawn(|| seawall.get("/stock").status)).collect();
        all.into_iter().map(|one| one.join().unwrap()).filter(|status| *status == 429).count()
    });
    assert!((1..16).contains(&refused), "{refused} of 16");
}

#[test]
fn sentinels_grade_0_counts_what_is_under_way() {
    let rule = r#"[{"resource": "stock", "grade": 0, "count": 1}]"#;
    let seawall = up("{ sentinel: { flow: flow.json } }", "flow.json", rule);
    seawall.fault("stock-0", "slow?ms=60000");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| seawall.get("/stock"));
        wait("one is under way", || (seawall.service("stock")["traffic"]["concurrency"]["active"] == 1).then_some(()));
        let second = seawall.get("/stock");
        assert_eq!((second.status, reason(&second)), (503, Some("too-many-requests-pending")));
        assert_eq!(seawall.get("/").status, 200);
        // The first one is let go.
        seawall.fault("stock-0", "crash");
        let _ = first.join();
    });
}

#[test]
fn sentinels_error_count_opens_beyond_it_and_closes_after_a_probe() {
    let rule = r#"[{"resource": "stock", "grade": 2, "count": 6, "timeWindow": 1, "minRequestAmount": 3, "statIntervalMs": 60000}]"#;
    let seawall = up("{ sentinel: { degrade: degrade.json } }", "degrade.json", rule);
    seawall.fault("stock-0", "fail");
    opens(&seawall, "stock", "/stock", ": 7 requests failed (> 6)");
    let opened = Instant::now();
    seawall.fault("stock-0", "none");
    wait("a probe has passed", || Some(seawall.get("/stock")).filter(|answer| answer.status == 200));
    assert!(opened.elapsed() > Duration::from_millis(800), "it stays open for its timeWindow: {:?}", opened.elapsed());
    seawall.event("breaker-closed", "stock");
}

#[test]
fn sentinels_slow_calls_open_at_their_part() {
    let rule = r#"[{"resource": "stock", "grade": 0, "count": 50, "slowRatioThreshold": 1.0, "timeWindow": 60, "minRequestAmount": 4, "statIntervalMs": 60000}]"#;
    let seawall = up("{ sentinel: { degrade: degrade.json } }", "degrade.json", rule);
    seawall.fault("stock-0", "slow?ms=120");
    // A part of 1 is reached by being equal.
    opens(&seawall, "stock", "/stock", "4 of 4 requests were slow");
}

#[test]
fn hystrix_opens_at_its_percentage_and_times_out() {
    let properties = "hystrix.command.default.circuitBreaker.requestVolumeThreshold=4\n\
                      hystrix.command.default.metrics.rollingStats.timeInMilliseconds=60000\n\
                      hystrix.command.default.circuitBreaker.sleepWindowInMilliseconds=1000\n\
                      hystrix.command.stock.execution.isolation.thread.timeoutInMilliseconds=150\n\
                      hystrix.command.OrderCommand.execution.timeout.enabled=false\n";
    let include = "[{ hystrix: { properties: commands.properties, commands: { OrderCommand: order-service } } }]";
    let seawall = up(include, "commands.properties", properties);
    let both = [seawall.get("/"), seawall.get("/")].iter().all(|answer| answer.status == 200);
    assert!(both);
    seawall.fault("order-service-0", "fail");
    // Hystrix opens at its percentage, not beyond it.
    opens(&seawall, "order-service", "/", "2 of 4 requests failed (>= 50%)");
    let opened = Instant::now();
    seawall.fault("order-service-0", "none");
    wait("a probe has passed", || Some(seawall.get("/")).filter(|answer| answer.status == 200));
    assert!(opened.elapsed() > Duration::from_millis(800), "it sleeps for its window: {:?}", opened.elapsed());

    seawall.fault("stock-0", "slow?ms=60000");
    let begun = Instant::now();
    assert_eq!(seawall.get("/stock").status, 504);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn sentinels_exception_ratio_must_be_exceeded() {
    let rule = r#"[{"resource": "stock", "grade": 1, "count": 0.5, "timeWindow": 60, "minRequestAmount": 4, "statIntervalMs": 60000}]"#;
    let seawall = up("{ sentinel: { degrade: degrade.json } }", "degrade.json", rule);
    assert!((0..2).all(|_| seawall.get("/stock").status == 200));
    seawall.fault("stock-0", "fail");
    // Two of four are half of them, which is not more than half.
    opens(&seawall, "stock", "/stock", "3 of 5 requests failed (> 50%)");
}

/// `HystrixCommandProperties`: each command has its own, and none of `default` once it names it.
#[test]
fn hystrix_commands_have_percentages_semaphores_and_breakers_of_their_own() {
    let properties = "hystrix.command.default.metrics.rollingStats.timeInMilliseconds=60000\n\
                      hystrix.command.order-service.circuitBreaker.requestVolumeThreshold=4\n\
                      hystrix.command.order-service.circuitBreaker.errorThresholdPercentage=75\n\
                      hystrix.command.order-service.execution.timeout.enabled=false\n\
                      hystrix.command.stock.circuitBreaker.enabled=false\n\
                      hystrix.command.stock.execution.timeout.enabled=false\n\
                      hystrix.command.stock.execution.isolation.strategy=SEMAPHORE\n\
                      hystrix.command.stock.execution.isolation.semaphore.maxConcurrentRequests=1\n";
    let seawall = up("[{ hystrix: { properties: commands.properties } }]", "commands.properties", properties);
    assert!((0..2).all(|_| seawall.get("/").status == 200));
    seawall.fault("order-service-0", "fail");
    opens(&seawall, "order-service", "/", "6 of 8 requests failed (>= 75%)");

    seawall.fault("stock-0", "fail");
    // The place of the request before may be taken still; the breaker's word would be another.
    assert!((0..40).all(|_| reason(&seawall.get("/stock")) != Some("breaker-open")), "nothing opens");
    assert_eq!(seawall.service("stock")["traffic"]["breaker"], serde_json::Value::Null);
    seawall.fault("stock-0", "slow?ms=60000");
    let active = || seawall.service("stock")["traffic"]["concurrency"]["active"].clone();
    wait("the one before has given its place back", || (active() == 0).then_some(()));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| seawall.get("/stock"));
        wait("one is under way", || (active() == 1).then_some(()));
        let second = seawall.get("/stock");
        assert_eq!((second.status, reason(&second)), (503, Some("too-many-requests-pending")));
        seawall.fault("stock-0", "crash");
        let _ = first.join();
    });
}

/// `CircuitBreakerConfig` of resilience4j: a `COUNT_BASED` sliding window, `failureRateThreshold` at which it opens,
/// `minimumNumberOfCalls`, `waitDurationInOpenState`, `permittedNumberOfCallsInHalfOpenState`, `slowCallRateThreshold` with
/// `slowCallDurationThreshold`.
#[test]
fn resilience4j_judges_by_the_last_calls_and_by_all_that_it_permits() {
    let seawall = Seawall::up(
        "services:
  orders:
    command: [DEMO]
    traffic: { circuitBreaker: { preset: resilience4j, windowRequests: 4, minRequests: 4, openFor: 1s, probes: 2 } }
  stock:
    command: [DEMO]
    traffic: { circuitBreaker: { preset: resilience4j, windowRequests: 4, minRequests: 4, slowRatio: 50%, slowThreshold: 100ms } }
routes:
  - { match: { pathPrefix: /stock }, to: { service: stock } }
  - { to: { service: orders } }
",
    );
    seawall.wait_ready("orders");
    seawall.wait_ready("stock");
    // What is older than the last four says nothing any more.
    assert!((0..20).all(|_| seawall.get("/").status == 200));
    seawall.fault("orders-0", "fail");
    opens(&seawall, "orders", "/", "2 of 4 requests failed (>= 50%)");
    seawall.fault("orders-0", "none");
    wait("the first probe", || Some(seawall.get("/")).filter(|answer| answer.status == 200));
    let state = || seawall.service("orders")["traffic"]["breaker"]["state"].clone();
    wait("it waits for both", || (state() == "half-open").then_some(()));
    assert_eq!(seawall.get("/").status, 200);
    wait("both have passed", || (state() == "closed").then_some(()));

    seawall.fault("stock-0", "slow?ms=150");
    opens(&seawall, "stock", "/stock", "4 of 4 requests were slower than 100ms (>= 50%)");
}

/// `statIntervalMs`, `metrics.rollingStats.timeInMilliseconds` and a `TIME_BASED` sliding window: what failed before it says
/// nothing any more. And `regex`: a rule for each service that it names.
#[test]
fn what_is_older_than_the_window_is_not_counted() {
    let services = ["long", "hystrix", "resilience", "sentinel"];
    let recorders = services.map(Recorder::start);
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let command = |name: &str, window: u32| {
        format!(
            "hystrix.command.{name}.circuitBreaker.requestVolumeThreshold=3\n\
             hystrix.command.{name}.metrics.rollingStats.timeInMilliseconds={window}\n\
             hystrix.command.{name}.metrics.rollingStats.numBuckets=10\n"
        )
    };
    std::fs::write(folder.path().join("h.properties"), command("long", 60_000) + &command("hystrix", 1_000)).unwrap();
    let rule = r#"[{"id": 4, "resource": "sent.*", "limitApp": "default", "regex": true, "grade": 2, "count": 2, "timeWindow": 60, "minRequestAmount": 1, "statIntervalMs": 1000}]"#;
    std::fs::write(folder.path().join("degrade.json"), rule).unwrap();
    let mut body =
        "include: { hystrix: { properties: h.properties }, sentinel: { degrade: degrade.json } }\n".to_owned();
    body += "services:\n";
    for (name, recorder) in services.iter().zip(&recorders) {
        body += &format!("  {name}:\n    endpoints: [\"{}\"]\n", recorder.address);
        if *name == "resilience" {
            body += "    traffic: { circuitBreaker: { preset: resilience4j, window: 1s, minRequests: 3 } }\n";
        }
    }
    body += "routes:\n";
    for name in services {
        body += &format!("  - {{ match: {{ pathPrefix: /{name} }}, to: {{ service: {name} }} }}\n");
    }
    std::fs::write(folder.path().join("seawall.yaml"), configuration(&body)).unwrap();
    let seawall = Seawall::up_in(folder);
    for (name, recorder) in services.iter().zip(&recorders) {
        seawall.wait_ready(name);
        recorder.answer(500);
    }
    for round in 0..2 {
        let begun = Instant::now();
        for name in services.iter().chain(&services[1..]).chain(&services[..1]) {
            let answer = seawall.get(&format!("/{name}"));
            assert!(round == 1 || answer.status == 500, "{name}: {answer:?}");
            assert!(*name == "long" || answer.header("x-answered-by") == Some(*name), "{name}: {answer:?}");
        }
        // What this round has counted is out of a window of a second by the next one.
        while round == 0 && begun.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    opens(&seawall, "long", "/long", "failed (>= 50%)");
    assert_eq!(seawall.events_of("breaker-opened").len(), 1);
}
