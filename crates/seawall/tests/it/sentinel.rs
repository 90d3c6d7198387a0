//! Sentinel's rules for hot parameters, callers, relations, entrances and the whole system, seen through the gateway. What each
//! field means is read from `ParamFlowChecker`, `FlowRuleChecker` and `SystemRuleManager` of Sentinel 1.8.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::http::{self, Answer};
use crate::support::recorder::Recorder;
use crate::support::{Seawall, configuration, wait};

/// Two services of which requests are recorded, with a file of rules beside them.
struct Shop {
    orders: Recorder,
    stock: Recorder,
    seawall: Seawall,
}

impl Shop {
    fn up(include: &str, rules: &str) -> Self {
        let [orders, stock] = ["orders", "stock"].map(Recorder::start);
        let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
        std::fs::write(folder.path().join("rules.json"), rules).unwrap();
        let body = format!(
            "include: {{ sentinel: {include} }}
services:
  orders: {{ endpoints: [\"{}\"] }}
  stock: {{ endpoints: [\"{}\"] }}
routes:
  - {{ match: {{ pathPrefix: /stock }}, to: {{ service: stock }} }}
  - {{ name: web, match: {{ pathPrefix: /web }}, to: {{ service: orders }} }}
  - {{ name: app, to: {{ service: orders }} }}
",
            orders.address, stock.address
        );
        std::fs::write(folder.path().join("seawall.yaml"), configuration(&body)).unwrap();
        let seawall = Seawall::up_in(folder);
        seawall.wait_ready("orders");
        seawall.wait_ready("stock");
        Self { orders, stock, seawall }
    }

    fn ask(&self, path: &str, field: (&str, &str)) -> Answer {
        http::request(self.seawall.gateway, "GET", path, &[field], b"").unwrap()
    }

    /// How many of so many requests pass; the others are refused for coming too often.
    fn passed(&self, of: usize, path: &str, field: (&str, &str)) -> usize {
        let statuses: Vec<u16> = (0..of).map(|_| self.ask(path, field).status).collect();
        assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
        statuses.iter().filter(|status| **status == 200).count()
    }

    /// While a request is under way, which its service keeps until then.
    fn while_under_way(&self, path: &str, field: (&str, &str), then: impl FnOnce()) {
        let kept = if path.starts_with("/stock") { &self.stock } else { &self.orders };
        kept.keep_next();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| self.ask(path, field).status);
            wait("it is there", || kept.keeps().then_some(()));
            then();
            kept.let_go();
            assert_eq!(first.join().unwrap(), 200);
        });
    }
}

fn is_over(answer: &Answer, status: u16, reason: &str) -> bool {
    answer.status == status && answer.header("seawall-reason") == Some(reason)
}

const ANYBODY: (&str, &str) = ("X-Nothing", "0");

/// The refilling is ten minutes away, so that no machine is too slow.
const PARAMETERS: &str = r#"[
  {"resource": "orders", "paramIdx": 0, "count": 3, "burstCount": 1, "durationInSec": 600, "grade": 1, "controlBehavior": 0,
   "paramFlowItemList": [
     {"object": "vip", "classType": "java.lang.String", "count": 8},
     {"object": "7", "classType": "int", "count": 0}]},
  {"id": 9, "limitApp": "default", "clusterMode": false, "clusterConfig": {"thresholdType": 0},
   "resource": "stock", "paramIdx": -1, "count": 1, "grade": 0,
   "paramFlowItemList": [{"object": "big", "classType": "java.lang.String", "count": 2}]}
]"#;

#[test]
fn each_value_of_a_hot_parameter_has_its_tokens_and_exceptions_have_their_own() {
    let include = "{ paramFlow: rules.json, parameters: { orders: [{ header: X-User }, { query: page }], stock: [{ query: page }, { query: sku }] } }";
    let shop = Shop::up(include, PARAMETERS);
    // `count` and `burstCount` at once, and nothing until `durationInSec` has passed.
    assert_eq!(shop.passed(9, "/", ("X-User", "a")), 4);
    let told = shop.ask("/", ("X-User", "b"));
    let left = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"].map(|name| told.header(name).unwrap());
    assert_eq!((left[0], left[1]), ("3", "3"), "answers that pass tell what is left");
    assert!((1..=601).contains(&left[2].parse::<u32>().unwrap()), "{left:?}");
    assert_eq!(shop.passed(12, "/", ("X-User", "vip")), 9, "an item has its count, and the burst as well");
    assert_eq!(shop.passed(3, "/", ("X-User", "7")), 0, "an item with count 0");
    assert_eq!(shop.passed(9, "/", ANYBODY), 9, "who has no such parameter is not asked");
    let many = (0..200).all(|user| shop.ask("/", ("X-User", &format!("user-{user}"))).status == 200);
    assert!(many, "no new value is refused for the others' sake");
    let limit = wait("status tells", || {
        let limit = shop.seawall.service("orders")["traffic"]["rateLimit"].clone();
        (limit["keys"].as_u64()? >= 200).then_some(limit)
    });
    assert_eq!(limit["perSeconds"], 600);

    // Grade 0: so many of a value at once; -1 is the last parameter.
    shop.while_under_way("/stock?sku=5", ANYBODY, || {
        assert!(is_over(&shop.ask("/stock?sku=5", ANYBODY), 503, "too-many-at-once"));
        assert_eq!(shop.ask("/stock?sku=6", ANYBODY).status, 200);
        assert_eq!(shop.ask("/stock", ANYBODY).status, 200);
    });
    shop.while_under_way("/stock?sku=big", ANYBODY, || assert_eq!(shop.ask("/stock?sku=big", ANYBODY).status, 200));
}

#[test]
fn each_value_of_a_hot_parameter_may_have_a_queue() {
    let rule = r#"[{"resource": "orders", "paramIdx": 0, "count": 20, "durationInSec": 2, "controlBehavior": 2, "maxQueueingTimeMs": 30000,
        "paramFlowItemList": [{"object": "slow", "classType": "java.lang.String", "count": 4}]}]"#;
    let shop = Shop::up("{ paramFlow: rules.json, parameters: { orders: [{ header: X-User }] } }", rule);
    let took = |user| {
        let begun = Instant::now();
        assert_eq!(shop.passed(4, "/", ("X-User", user)), 4, "they wait for their turn");
        begun.elapsed()
    };
    assert!(took("a") >= Duration::from_millis(290), "20 in 2 s: a tenth of a second each");
    assert!(took("slow") >= Duration::from_millis(1_490), "4 in 2 s: half a second each");
}

#[test]
fn rules_for_callers_are_for_those_they_name_and_for_all_others() {
    let rules = r#"[
      {"id": 3, "clusterConfig": null, "resource": "orders", "limitApp": "a", "grade": 0, "count": 1},
      {"resource": "orders", "limitApp": "other", "grade": 0, "count": 2},
      {"resource": "stock", "limitApp": "a", "count": 1},
      {"resource": "stock", "limitApp": "b", "count": 100000}
    ]"#;
    let shop = Shop::up("{ flow: rules.json, origin: { header: X-Client } }", rules);
    shop.while_under_way("/", ("X-Client", "a"), || {
        assert!(is_over(&shop.ask("/", ("X-Client", "a")), 503, "too-many-at-once"));
        assert_eq!(shop.ask("/", ("X-Client", "c")).status, 200);
    });
    // Each of the others has so many for itself (`context.getOriginNode`).
    shop.while_under_way("/", ("X-Client", "c"), || {
        assert_eq!(shop.ask("/", ("X-Client", "c")).status, 200, "two");
        assert_eq!(shop.ask("/", ANYBODY).status, 200, "nobody in particular is no other");
    });
    wait("a comes too often", || is_over(&shop.ask("/stock", ("X-Client", "a")), 429, "rate-limited").then_some(()));
    assert_eq!(shop.passed(5, "/stock", ("X-Client", "b")), 5);
    assert_eq!(shop.passed(5, "/stock", ("X-Client", "c")), 5, "no rule is for it");
}

#[test]
fn rules_by_relation_look_at_the_other_resource_and_rules_by_entrance_at_one_route() {
    let rules = r#"[
      {"resource": "orders", "strategy": 1, "refResource": "stock", "grade": 0, "count": 1},
      {"resource": "orders", "strategy": 2, "refResource": "entrance", "grade": 0, "count": 1}
    ]"#;
    let shop = Shop::up("{ flow: rules.json, entrances: { entrance: web } }", rules);
    shop.while_under_way("/stock", ANYBODY, || {
        assert!(is_over(&shop.ask("/", ANYBODY), 503, "too-many-at-once"), "stock has one under way");
        assert_eq!(shop.ask("/stock", ANYBODY).status, 200, "it is not limited itself");
    });
    assert_eq!(shop.ask("/", ANYBODY).status, 200, "it has ended");
    shop.while_under_way("/web", ANYBODY, || {
        assert!(is_over(&shop.ask("/web", ANYBODY), 503, "too-many-at-once"));
        assert_eq!(shop.ask("/", ANYBODY).status, 200, "by another entrance");
    });
}

#[test]
fn requests_a_second_are_counted_by_relation_by_entrance_and_for_all_that_a_pattern_names() {
    let rules = r#"[
      {"resource": "orders", "strategy": 1, "refResource": "stock", "count": 2},
      {"resource": "orders", "strategy": 2, "refResource": "web", "count": 2},
      {"resource": "st.*k", "regex": true, "count": 3}
    ]"#;
    let shop = Shop::up("{ flow: rules.json }", rules);
    assert_eq!(shop.passed(9, "/app", ANYBODY), 9, "nothing passes stock");
    wait("two a second pass stock, and orders are refused for it", || {
        shop.ask("/stock", ANYBODY);
        shop.ask("/stock", ANYBODY);
        is_over(&shop.ask("/app", ANYBODY), 429, "rate-limited").then_some(())
    });
    wait("the pattern names stock", || is_over(&shop.ask("/stock", ANYBODY), 429, "rate-limited").then_some(()));
    wait("nobody asks stock any more", || (shop.ask("/app", ANYBODY).status == 200).then_some(()));
    wait("two came by this entrance", || is_over(&shop.ask("/web", ANYBODY), 429, "rate-limited").then_some(()));
    assert_eq!(shop.passed(5, "/app", ANYBODY), 5, "by another one");
}

#[test]
fn a_system_rule_is_over_everything_that_enters() {
    let shop = Shop::up(
        "{ system: rules.json }",
        r#"[{"maxThread": 0}, {"id": 1, "resource": null, "limitApp": "default", "regex": false, "maxThread": 5, "qps": -1, "highestSystemLoad": -1}]"#,
    );
    // The stricter rule; and the first one is let in, as Sentinel does not count it before it asks.
    shop.while_under_way("/", ANYBODY, || {
        assert!(is_over(&shop.ask("/stock", ANYBODY), 503, "overloaded:concurrent"));
    });
    // Its client may have had the answer before the gateway counted it as over.
    wait("nothing is under way", || (shop.ask("/stock", ANYBODY).status == 200).then_some(()));
    wait("status tells", || (shop.seawall.status()["node"]["overload"]["refused"].as_u64()? >= 1).then_some(()));
    let page = shop.seawall.api("GET", "/metrics", b"").text();
    assert!(page.contains("overload_refused_total{reason=\"concurrent\"}"), "{page}");
}

#[test]
fn a_system_rule_bounds_the_rate_and_the_average_time() {
    let shop = Shop::up("{ system: rules.json }", r#"[{"qps": 2}]"#);
    let over = wait("more than two a second", || {
        [shop.ask("/", ANYBODY), shop.ask("/stock", ANYBODY)].into_iter().find(|answer| answer.status == 503)
    });
    assert!(is_over(&over, 503, "overloaded:qps"), "{over:?}");
    wait("a second later", || (shop.ask("/", ANYBODY).status == 200).then_some(()));

    let shop = Shop::up("{ system: rules.json }", r#"[{"avgRt": 100}]"#);
    assert_eq!(shop.ask("/stock", ANYBODY).status, 200);
    shop.orders.slow(Duration::from_millis(400));
    wait("they take too long on average", || {
        let slow = shop.ask("/", ANYBODY);
        (slow.status == 503 || is_over(&shop.ask("/stock", ANYBODY), 503, "overloaded:average-time")).then_some(())
    });
    wait("nothing has ended in this second", || (shop.ask("/stock", ANYBODY).status == 200).then_some(()));
}

#[test]
fn a_system_rule_refuses_while_the_processors_are_too_busy() {
    let shop = Shop::up("{ system: rules.json }", r#"[{"highestCpuUsage": 0.0}]"#);
    // This test itself keeps them a little busy.
    wait("more than nothing", || is_over(&shop.ask("/", ANYBODY), 503, "overloaded:cpu").then_some(()));
}

/// `SystemRuleManager.checkBbr`: a high load alone refuses nobody; more at once than is worked off does.
#[test]
fn a_system_rule_bounds_what_is_at_once_while_the_load_is_high() {
    let shop = Shop::up("{ system: rules.json }", r#"[{"highestSystemLoad": 0.0}]"#);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The load is more than nothing while this is so, on a machine that has nothing else to do.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let load = || shop.seawall.status()["node"]["overload"]["load"].as_f64().filter(|load| *load > 0.0);
        wait("there is some load", load);
        assert_eq!(shop.passed(20, "/stock", ANYBODY), 20, "one after the other");
        // With nothing that ended, its shortest time is 5 s and its rate 2: ten are borne.
        shop.orders.slow(Duration::from_secs(2));
        wait("more than ten at once", || {
            let asked: Vec<_> = (0..24).map(|_| scope.spawn(|| shop.ask("/", ANYBODY))).collect();
            let answers: Vec<Answer> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
            answers.iter().any(|answer| is_over(answer, 503, "overloaded:load")).then_some(())
        });
        assert_eq!(shop.ask("/stock", ANYBODY).status, 200, "alone again");
        over.store(true, Ordering::Relaxed);
    });
}

/// `WarmUpController`: after a rest a third of the rate, and all of it after `warmUpPeriodSec` of load.
#[test]
fn a_rate_that_warms_up_is_a_third_until_it_has_had_its_load() {
    let rules = r#"[
      {"resource": "orders", "grade": 1, "count": 30, "controlBehavior": 1, "warmUpPeriodSec": 2},
      {"resource": "stock", "grade": 1, "count": 30, "controlBehavior": 1, "warmUpPeriodSec": 3600}
    ]"#;
    let shop = Shop::up("{ flow: rules.json }", rules);
    let second = || {
        let (begun, mut passed) = (Instant::now(), (0, 0));
        while begun.elapsed() < Duration::from_secs(1) {
            passed = (passed.0 + shop.passed(1, "/", ANYBODY), passed.1 + shop.passed(1, "/stock", ANYBODY));
        }
        let most = 10.0 * (begun.elapsed().as_secs_f64() + 1.0) + 2.0;
        assert!(passed.1 as f64 <= most, "stock stays cold: {} of at most {most}", passed.1);
        (passed, most)
    };
    let ((orders, _), most) = second();
    assert!(orders as f64 <= most, "orders are cold at first: {orders} of at most {most}");
    wait("orders have all of their rate", || {
        let ((orders, stock), _) = second();
        (stock > 0 && orders >= 2 * stock).then_some(())
    });
}

/// `ThrottlingController`, and the same for values of a parameter: who would wait longer than is said is refused.
#[test]
fn a_queue_is_as_long_as_its_time() {
    let shop = Shop::up(
        "{ flow: rules.json }",
        r#"[{"resource": "stock", "count": 10, "controlBehavior": 2, "maxQueueingTimeMs": 250}]"#,
    );
    let begun = Instant::now();
    assert_eq!(shop.passed(4, "/stock", ANYBODY), 4, "they wait for their turn");
    assert!(begun.elapsed() >= Duration::from_millis(290), "a tenth of a second each: {:?}", begun.elapsed());
    wait("too many for a quarter of a second", || {
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..16).map(|_| scope.spawn(|| shop.ask("/stock", ANYBODY).status)).collect();
            let refused = asked.into_iter().map(|one| one.join().unwrap()).filter(|it| *it == 429);
            (refused.count() > 0).then_some(())
        })
    });

    let rule = r#"[{"resource": "stock", "paramIdx": 0, "count": 2, "durationInSec": 600, "controlBehavior": 2}]"#;
    let shop = Shop::up("{ paramFlow: rules.json, parameters: { stock: [{ query: sku }] } }", rule);
    assert_eq!(shop.passed(3, "/stock?sku=1", ANYBODY), 1, "`maxQueueingTimeMs` is 0 unless it is written");
    assert_eq!(shop.passed(1, "/stock?sku=2", ANYBODY), 1);
}
