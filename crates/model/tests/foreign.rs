//! Sentinel's and Hystrix' files: what each field becomes, and what an operator is told of those that have no counterpart.
//! That the result behaves as the tool's own is tested through the gateway.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use model::config::{Behaviour, Comparator, Config, Loaded, Ratio, load};

const SHOP: &str = "services:
  order-service: { command: [orders] }
  stock: { command: [stock] }
routes:
  - { match: { pathPrefix: /slow }, to: { service: stock }, timeout: 9s }
  - { match: { pathPrefix: /stock }, to: { service: stock } }
  - { to: { service: order-service } }
";

fn loaded(include: &str, text: &str) -> Loaded {
    let main = format!("include: {include}\n{SHOP}");
    load(Path::new("shop.yaml"), &mut |path| Ok(if path.ends_with("shop.yaml") { &main } else { text }.to_owned()))
}

fn taken(include: &str, text: &str) -> Config {
    let loaded = loaded(include, text);
    let said = loaded.diagnostics.render(&loaded.sources);
    loaded.config.unwrap_or_else(|| panic!("{said}"))
}

/// What is said of a text that is refused, without the lines that show it.
fn refused(include: &str, text: &str) -> String {
    let loaded = loaded(include, text);
    assert!(loaded.config.is_none(), "this was meant to be refused: {text}");
    loaded.diagnostics.render(&loaded.sources)
}

fn traffic<'c>(config: &'c Config, service: &str) -> &'c model::config::Traffic {
    config.services[&service.into()].traffic.as_ref().unwrap()
}

const FLOW: &str = "{ sentinel: { flow: flow.json, resources: { orderService: order-service } } }";
const DEGRADE: &str = "{ sentinel: { degrade: degrade.json } }";
const HYSTRIX: &str = "[{ hystrix: { properties: h.properties, commands: { OrderCommand: order-service } } }]";

#[test]
fn a_flow_rule_becomes_a_limit_by_its_grade_and_behaviour() {
    let limit = |more: &str| {
        let config = taken(FLOW, &format!(r#"[{{"resource": "orderService", "count": 100.0{more}}}]"#));
        traffic(&config, "order-service").rate_limit.0[0].clone()
    };
    // As a tool writes it, with everything that does not belong to the behaviour.
    let plain = limit(
        r#", "id": 3, "limitApp": "default", "grade": 1, "strategy": 0, "refResource": null, "controlBehavior": 0, "warmUpPeriodSec": 7, "maxQueueingTimeMs": 9, "clusterMode": false, "clusterConfig": {"thresholdType": 0}, "regex": false"#,
    );
    assert_eq!((plain.qps, plain.behaviour), (100, Behaviour::Window));
    assert_eq!(limit("").behaviour, Behaviour::Window, "grade 1 and behaviour 0 are Sentinel's defaults");
    let warm_up = limit(r#", "controlBehavior": 1"#);
    assert_eq!((warm_up.behaviour, warm_up.warm_up_period), (Behaviour::WarmUp, Duration::from_secs(10)));
    assert_eq!(warm_up.cold_factor, 3);
    assert_eq!(limit(r#", "controlBehavior": 1, "warmUpPeriodSec": 20"#).warm_up_period, Duration::from_secs(20));
    let queue = limit(r#", "controlBehavior": 2, "maxQueueingTimeMs": 1500"#);
    assert_eq!((queue.behaviour, queue.max_queueing_time), (Behaviour::Queue, Duration::from_millis(1500)));
    let both = limit(r#", "controlBehavior": 3, "warmUpPeriodSec": 20, "maxQueueingTimeMs": 1500"#);
    assert_eq!((both.behaviour, both.warm_up_period), (Behaviour::WarmUpQueue, Duration::from_secs(20)));
    assert_eq!(both.max_queueing_time, Duration::from_millis(1500));
    let config = taken(FLOW, r#"[{"resource": "stock", "grade": 0, "count": 20}, {"resource": "stock", "count": 5}]"#);
    let both = traffic(&config, "stock");
    let concurrency = both.concurrency.as_ref().unwrap();
    assert_eq!((concurrency.max, concurrency.pending, both.rate_limit.0[0].qps), (20, 0, 5));
}

#[test]
fn degrade_rules_of_a_resource_become_one_breaker() {
    let config = taken(
        DEGRADE,
        r#"[{"resource": "stock", "grade": 0, "count": 200, "slowRatioThreshold": 0.4, "timeWindow": 12, "minRequestAmount": 8, "statIntervalMs": 2000},
            {"resource": "stock", "grade": 2, "count": 30, "timeWindow": 12, "minRequestAmount": 8, "statIntervalMs": 2000},
            {"resource": "order-service", "grade": 1, "count": 0.5, "timeWindow": 10}]"#,
    );
    let rule = traffic(&config, "stock").circuit_breaker.as_ref().unwrap().rule();
    assert_eq!(rule.slow, Some((Ratio::percent(40), Duration::from_millis(200))));
    assert_eq!((rule.error_count, rule.error_ratio), (Some(30), None));
    assert_eq!((rule.window, rule.open_for), (Duration::from_secs(2), Duration::from_secs(12)));
    assert_eq!((rule.min_requests, rule.probes, rule.comparator), (8, 1, Comparator::Above));
    let rule = traffic(&config, "order-service").circuit_breaker.as_ref().unwrap().rule();
    assert_eq!((rule.error_ratio, rule.slow, rule.min_requests), (Some(Ratio::percent(50)), None, 5));
    assert_eq!((rule.window, rule.open_for), (Duration::from_secs(1), Duration::from_secs(10)));
}

#[test]
fn hystrix_commands_become_breakers_semaphores_and_timeouts() {
    let config = taken(
        HYSTRIX,
        "# of all\n\
         hystrix.command.default.circuitBreaker.errorThresholdPercentage = 60\n\
         ! the source of the 30 s\n\
         hystrix.command.default.circuitBreaker.sleepWindowInMilliseconds: 30000\n\
         \n\
         hystrix.command.stock.circuitBreaker.requestVolumeThreshold=7\n\
         hystrix.command.stock.circuitBreaker.errorThresholdPercentage=25\n\
         hystrix.command.stock.metrics.rollingStats.timeInMilliseconds=20000\n\
         hystrix.command.stock.metrics.rollingStats.numBuckets=10\n\
         hystrix.command.stock.execution.isolation.strategy=SEMAPHORE\n\
         hystrix.command.stock.execution.isolation.thread.timeoutInMilliseconds=700\n\
         hystrix.command.OrderCommand.execution.timeout.enabled=false\n",
    );
    let stock = traffic(&config, "stock").circuit_breaker.as_ref().unwrap().rule();
    assert_eq!((stock.error_ratio, stock.min_requests), (Some(Ratio::percent(25)), 7));
    assert_eq!((stock.window, stock.open_for), (Duration::from_secs(20), Duration::from_secs(30)));
    assert_eq!(stock.comparator, Comparator::AtLeast);
    assert_eq!(traffic(&config, "stock").concurrency.as_ref().unwrap().max, 10, "Hystrix' default");
    let orders = traffic(&config, "order-service");
    let rule = orders.circuit_breaker.as_ref().unwrap().rule();
    assert_eq!(
        (rule.error_ratio, rule.min_requests, rule.window),
        (Some(Ratio::percent(60)), 20, Duration::from_secs(10))
    );
    assert_eq!(orders.concurrency, None, "threads are not counted");
    let timeouts: Vec<_> = config.routes.iter().map(|route| route.timeout.map(|timeout| timeout.as_millis())).collect();
    assert_eq!(timeouts, [Some(9000), Some(700), None], "a route's own goes first; one is switched off");
}

#[test]
fn a_command_without_a_breaker_has_none() {
    let text = "hystrix.command.stock.circuitBreaker.enabled=false\n";
    assert_eq!(taken("{ hystrix: { properties: h.properties } }", text).services[&"stock".into()].traffic, None);
}

#[test]
fn what_has_no_counterpart_is_refused_by_name_line_and_column() {
    let flow = |rule: &str| refused(FLOW, &format!("[\n  {{\"resource\": \"stock\", \"count\": 5, {rule}}}\n]"));
    for (rule, column, said) in [
        ("\"strategy\": 1", 37, "a `strategy` without `refResource`"),
        ("\"strategy\": 3", 37, "there is no such `strategy`"),
        ("\"strategy\": 1, \"refResource\": \"nobody\"", 52, "there is no `nobody`"),
        ("\"strategy\": 2, \"refResource\": \"nowhere\"", 52, "there is no route named `nowhere`"),
        ("\"limitApp\": \"app-a\"", 37, "`limitApp: app-a`"),
        ("\"controlBehavior\": 4", 37, "there is no such `controlBehavior`"),
        ("\"clusterMode\": true", 37, "`clusterMode: true`"),
        ("\"grade\": 7", 37, "there is no such `grade`"),
        ("\"controlBehaviour\": 1", 37, "did you mean `controlBehavior`?"),
    ] {
        let report = flow(rule);
        assert!(report.contains(said) && report.contains(&format!("flow.json:2:{column}")), "{rule}: {report}");
    }
    let report = refused(FLOW, "[{\"resource\": \"stock\", \"count\": -1}]");
    assert!(report.contains("a number of 0 or more") && report.contains("flow.json:1:33"), "{report}");
    // What only Seawall's own rules know is told where it stands in the tool's file.
    let report = refused(FLOW, "[{\"resource\": \"stock\", \"count\": 0}]");
    assert!(report.contains("a rate of 0") && report.contains("flow.json:1:24"), "{report}");
    let report = refused(FLOW, "[{\"resource\": \"stok\", \"count\": 1}]");
    assert!(report.contains("there is no `stok`") && report.contains("{ stok: stock }"), "{report}");
    let twice = "[{\"resource\": \"stock\", \"grade\": 0, \"count\": 1},\n{\"resource\": \"stock\", \"grade\": 0, \"count\": 2}]";
    let report = refused(FLOW, twice);
    assert!(report.contains("flow.json:2:1") && report.contains("has one already (flow.json, line 1)"), "{report}");
    // Everything that refuses a rule is told, not only the first.
    let report = flow("\"clusterMode\": true, \"strategy\": 7, \"controlBehavior\": 9");
    for said in ["`clusterMode: true`", "no such `strategy`", "no such `controlBehavior`"] {
        assert!(report.contains(said), "{report}");
    }
    let report = refused(FLOW, "[{\"resource\": \"stock\" \"count\": 1}]");
    assert!(report.contains("not JSON") && report.contains("flow.json:1:"), "{report}");
    let report = refused(FLOW, "[{\"resource\": \"st(\", \"regex\": true, \"count\": 1}]");
    assert!(report.contains("`st(` is no regular expression") && report.contains("flow.json:1:3"), "{report}");
    let bomb = format!("[{{\"resource\": \"{}\", \"regex\": true, \"count\": 1}}]", "(a{1000}){1000}".repeat(9));
    assert!(refused(FLOW, &bomb).contains("is no regular expression"), "what is compiled is bounded");
    let report = refused(FLOW, "[{\"resource\": \"nothing.*\", \"regex\": true, \"count\": 1}]");
    assert!(report.contains("no service and no name under `resources`"), "{report}");
    let parameters = "{ sentinel: { paramFlow: p.json, parameters: { stock: [{ query: sku }] } } }";
    let param = |rule: &str| refused(parameters, &format!("[{{\"resource\": \"stock\", {rule}}}]"));
    for (rule, said) in [
        ("\"paramIdx\": 1, \"count\": 5", "there is no parameter 1 of `stock`, which has 1"),
        ("\"paramIdx\": -2, \"count\": 5", "there is no parameter -2 of `stock`"),
        ("\"count\": 5", "a ParamFlowRule needs `paramIdx`"),
        ("\"paramIdx\": 0, \"count\": -5", "a number of 0 or more"),
        ("\"paramIdx\": 0, \"count\": 5, \"controlBehavior\": 1", "no such `controlBehavior`"),
        ("\"paramIdx\": 0, \"count\": 5, \"durationInSec\": 0", "`durationInSec: 0`"),
        ("\"paramIdx\": 0, \"count\": 5, \"clusterMode\": true", "`clusterMode: true`"),
        ("\"paramIdx\": 0, \"count\": 5, \"paramIndex\": 1", "did you mean `paramIdx`?"),
        (
            "\"paramIdx\": 0, \"count\": 5, \"paramFlowItemList\": [{\"object\": \"a\", \"classType\": \"Sku\", \"count\": 1}]",
            "`classType: Sku` is no type",
        ),
    ] {
        let report = param(rule);
        assert!(report.contains(said) && report.contains("p.json:1:"), "{rule}: {report}");
    }
    let report =
        refused("{ sentinel: { paramFlow: p.json } }", "[{\"resource\": \"stock\", \"paramIdx\": 0, \"count\": 1}]");
    assert!(report.contains("nothing says what the parameters of `stock` are"), "{report}");
    let report = refused("{ sentinel: { system: s.json } }", "[{\"highestCpuUsage\": 2, \"avgRt\": 0, \"load\": 1}]");
    for said in ["`highestCpuUsage` of more than 1", "`avgRt: 0`", "unknown key `load`"] {
        assert!(report.contains(said), "{report}");
    }
    let include =
        "[{ hystrix: { properties: h.properties, commands: { OrderCommand: order-service,\n  Other: nobody } } }]";
    let report = refused(include, "");
    assert!(report.contains("there is no `nobody`") && report.contains("shop.yaml:2:"), "{report}");
    let report = refused(DEGRADE, "[{\"resource\": \"stock\", \"grade\": 1, \"count\": 50, \"timeWindow\": 1}]");
    assert!(report.contains("`count` is a part") && report.contains("degrade.json:1:36"), "{report}");
    let report = refused(
        DEGRADE,
        "[{\"resource\": \"stock\", \"grade\": 1, \"count\": 0.5, \"timeWindow\": 1},\n{\"resource\": \"stock\", \"grade\": 2, \"count\": 5, \"timeWindow\": 2}]",
    );
    assert!(report.contains("degrade.json:2:2") && report.contains("timeWindow"), "{report}");
    for (line, said) in [
        ("hystrix.threadpool.default.coreSize=10", "`hystrix.threadpool.default.coreSize` has no counterpart"),
        ("hystrix.command.stock.circuitBreaker.forceOpen=true", "`seawall breaker stock open`"),
        (
            "hystrix.command.stock.circuitBreaker.sleepWindowInMillis=5",
            "did you mean `circuitBreaker.sleepWindowInMilliseconds`?",
        ),
        ("hystrix.command.stock.circuitBreaker.errorThresholdPercentage=150", "is no whole number from 0 to 100"),
        ("hystrix.command.nobody.circuitBreaker.enabled=true", "there is no `nobody`"),
    ] {
        let report = refused(HYSTRIX, &format!("\n  {line}\n"));
        assert!(report.contains(said) && report.contains("h.properties:2:3"), "{line}: {report}");
    }
}

#[test]
fn ten_thousand_callers_cost_no_more_than_one() {
    let rule =
        |number: usize| format!(r#"{{"resource": "stock", "limitApp": "app-{number}", "count": {}}}"#, number + 1);
    let rules: Vec<String> = (0..10_000).map(rule).collect();
    let config =
        taken("{ sentinel: { flow: flow.json, origin: { header: X-Client } } }", &format!("[{}]", rules.join(",")));
    let limits = &traffic(&config, "stock").rate_limit.0;
    assert_eq!((limits.len(), limits[0].exceptions.len()), (1, 10_000), "one limit is asked");
}

#[test]
fn ten_thousand_rules_are_read_at_once_and_one_more_is_refused() {
    let rules = |count: usize| {
        let rule = "{\"resource\": \"elsewhere\", \"count\": 1}";
        format!("[{}]", vec![rule; count].join(","))
    };
    // Each of them is told that there is no such service.
    assert!(refused(FLOW, &rules(10_000)).contains("there is no `elsewhere`"));
    assert!(refused(FLOW, &rules(10_001)).contains("10001 rules; the limit is 10000"));
}
