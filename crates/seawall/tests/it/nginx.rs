//! nginx' `upstream` and `location` blocks, seen through the gateway: what is observed is what the reference of nginx' modules
//! (`ngx_http_upstream_module`, `_proxy_module`, `_core_module`, `_limit_req_module`, `_limit_conn_module`) says.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::support::http::{self, Answer};
use crate::support::recorder::Recorder;
use crate::support::{Seawall, configuration, wait};

fn up(text: &str) -> Seawall {
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    std::fs::write(folder.path().join("nginx.conf"), text).unwrap();
    let body = configuration("include: { nginx: [nginx.conf] }\n");
    std::fs::write(folder.path().join("seawall.yaml"), body).unwrap();
    Seawall::up_in(folder)
}

fn who(answer: &Answer) -> String {
    answer.header("x-answered-by").unwrap_or("nobody").to_owned()
}

/// How many of so many requests each answered.
fn shares<const N: usize>(seawall: &Seawall, path: &str, of: usize, names: [&str; N]) -> [usize; N] {
    let seen: Vec<String> = (0..of).map(|_| who(&seawall.get(path))).collect();
    names.map(|name| seen.iter().filter(|who| *who == name).count())
}

/// The source document's fragment, with servers that are there.
#[test]
fn the_source_documents_upstream_weighs_and_has_a_backup() {
    let [east, north, spare] = ["east", "north", "spare"].map(Recorder::start);
    let seawall = up(&format!(
        "upstream backend_region {{
    server {} weight=5;   # one region
    server {} weight=3;   # another one
    server {} backup;     # when none of them is there
}}

location / {{
    proxy_pass http://backend_region;
    proxy_next_upstream error timeout;
}}
",
        east.address, north.address, spare.address
    ));
    seawall.wait_ready("backend-region");
    let names = ["east", "north", "spare"];
    assert_eq!(shares(&seawall, "/a?b", 80, names), [50, 30, 0]);
    let seen = east.take().pop().unwrap();
    assert_eq!((seen.target.as_str(), seen.headers["host"].as_str()), ("/a?b", "backend_region"), "nginx' $proxy_host");
    // `proxy_next_upstream` without http_500: such an answer is passed on, and says nothing against a server.
    east.answer(500);
    let answers: Vec<u16> = (0..16).map(|_| seawall.get("/").status).collect();
    assert_eq!(answers.iter().filter(|status| **status == 500).count(), 10);
}

const FAILING: &str = "
upstream failing { server GOOD; server BAD max_fails=1 fail_timeout=10s; }
upstream counted { server GOOD max_fails=3 fail_timeout=2s; server BAD max_fails=3 fail_timeout=2s; }
upstream spared { server BAD max_fails=2 fail_timeout=60s; server GOOD backup max_fails=2 fail_timeout=60s; server GONE down; }
upstream slow { server SLOW; server GOOD; }
location /next { proxy_pass http://failing; proxy_next_upstream error timeout http_500; }
location /tries { proxy_pass http://failing; proxy_next_upstream http_500; proxy_next_upstream_tries 1; }
location /post { proxy_pass http://failing; proxy_next_upstream error timeout http_500 non_idempotent; }
location /counted { proxy_pass http://counted; proxy_next_upstream http_500; proxy_next_upstream_tries 1; }
location /spared { proxy_pass http://spared; proxy_next_upstream http_500; proxy_next_upstream_tries 1; }
location /slow { proxy_pass http://slow; proxy_read_timeout 300ms; }
";

#[test]
fn failures_go_to_the_next_server_and_servers_that_fail_are_left_alone() {
    let [good, bad, slow, gone] = ["good", "bad", "slow", "gone"].map(Recorder::start);
    let mut text = FAILING.to_owned();
    for (name, recorder) in [("GOOD", &good), ("BAD", &bad), ("SLOW", &slow), ("GONE", &gone)] {
        text = text.replace(name, &recorder.address.to_string());
    }
    let seawall = up(&text);
    for service in ["failing", "counted", "slow"] {
        seawall.wait_ready(service);
    }
    bad.answer(500);
    // Each client gets an answer of the good one, and after one failure the bad one is left alone.
    assert!((0..20).all(|_| seawall.get("/next").status == 200));
    assert_eq!(bad.take().len(), 1, "max_fails=1");
    assert_eq!(seawall.event("instance-ejected", "failing")["instance"], "failing-1");

    // A server with `max_fails=3` is asked until then, whatever the other one answers.
    let failed = (0..20).filter(|_| seawall.get("/counted").status == 500).count();
    // One more may be on its way while the third is counted.
    assert!((3..=4).contains(&failed) && bad.take().len() == failed, "{failed} of 20");
    let ejected = Instant::now();
    wait("it is asked again", || (seawall.get("/counted").status == 500).then_some(()));
    assert!(ejected.elapsed() > Duration::from_secs(1), "not before fail_timeout: {:?}", ejected.elapsed());
    bad.take();

    // The backup takes over when all others are left alone; who is down is never asked.
    let answers: Vec<String> = (0..10).map(|_| who(&seawall.get("/spared"))).collect();
    let failed = answers.iter().take_while(|name| *name == "bad").count();
    assert!((2..=3).contains(&failed) && answers[failed..].iter().all(|name| name == "good"), "{answers:?}");
    assert_eq!((bad.take().len(), gone.take().len()), (failed, 0));

    // No answer in time: the next one.
    slow.slow(Duration::from_secs(20));
    let begun = Instant::now();
    assert!((0..4).all(|_| who(&seawall.get("/slow")) == "good"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(slow.take().len(), 1);
}

const LOCATIONS: &str = "
upstream a { server A; } upstream b { server B; }
limit_req_zone $binary_remote_addr zone=each:10m rate=2r/s;
limit_req_zone $http_x_client zone=client:10m rate=1r/s;
limit_conn_zone $server_name zone=all:10m;
upstream limited { server A; } upstream queued { server A; } upstream few { server B; }
location = /exact { proxy_pass http://a/other; }
location /images/ { proxy_pass http://a; }
location ^~ /strong { proxy_pass http://a; }
location ~ \\.(gif|jpg)$ { proxy_pass http://b; }
location ~* ^/loud { proxy_pass http://b; }
location /part/ { proxy_pass http://a/; proxy_set_header Host $host; proxy_set_header X-Set 1; }
location /part/long { proxy_pass http://b; }
location / { proxy_pass http://b; }
location /limited { proxy_pass http://limited; limit_req zone=client burst=2 nodelay; limit_req_status 429; }
location /queued { proxy_pass http://queued; limit_req zone=each burst=4; limit_req_status 429; }
location /few { proxy_pass http://few; limit_conn all 2; limit_conn_status 503; }
";

#[test]
fn locations_are_chosen_as_nginx_does_and_limits_are_kept() {
    let [a, b] = ["a", "b"].map(Recorder::start);
    let seawall = up(&LOCATIONS
        .replace("server A", &format!("server {}", a.address))
        .replace("server B", &format!("server {}", b.address)));
    for service in ["a", "b", "limited", "queued", "few"] {
        seawall.wait_ready(service);
    }
    for (path, want, target) in [
        ("/exact?q", "a", "/other?q"),
        ("/exact/", "b", "/exact/"),
        ("/images/x", "a", "/images/x"),
        ("/images/x.gif", "b", "/images/x.gif"),
        ("/strong/x.gif", "a", "/strong/x.gif"),
        ("/LOUDER", "b", "/LOUDER"),
        ("/part/x?q", "a", "/x?q"),
        ("/part/longer", "b", "/part/longer"),
        ("/none", "b", "/none"),
    ] {
        a.take();
        b.take();
        let answer = http::request(seawall.gateway, "GET", path, &[("Host", "shop.test")], b"").unwrap();
        let seen = [a.take(), b.take()].concat().remove(0);
        assert_eq!((who(&answer).as_str(), seen.target.as_str()), (want, target), "{path}");
        if path.starts_with("/part/x") {
            assert_eq!((seen.headers["host"].as_str(), seen.headers["x-set"].as_str()), ("shop.test", "1"));
        }
    }
    // One, and `burst` more at once; each client for itself.
    let ask = |client: &str| {
        let answer = http::request(seawall.gateway, "GET", "/limited", &[("X-Client", client)], b"").unwrap();
        answer.status
    };
    let one: Vec<u16> = (0..5).map(|_| ask("one")).collect();
    assert_eq!(one, [200, 200, 200, 429, 429]);
    assert_eq!(ask("two"), 200);
    // Without `nodelay` they wait for their turn.
    let begun = Instant::now();
    assert!((0..3).all(|_| seawall.get("/queued").status == 200));
    assert!(begun.elapsed() >= Duration::from_millis(900), "two a second: {:?}", begun.elapsed());
    // Two at once.
    b.slow(Duration::from_secs(3));
    std::thread::scope(|scope| {
        let first = [(); 2].map(|()| scope.spawn(|| seawall.get("/few").status));
        wait("two are under way", || (seawall.service("few")["traffic"]["concurrency"]["active"] == 2).then_some(()));
        assert_eq!(seawall.get("/few").status, 503);
        assert!(first.into_iter().all(|first| first.join().unwrap() == 200));
    });
}

const BOUNDED: &str = "
limit_conn_zone $http_x_client zone=each:10m;
upstream bounded { server ONE max_conns=1; server TWO max_conns=1; }
upstream apart { server ONE; }
upstream timed { server BAD max_fails=0; server TWO max_fails=0; }
location /bounded { proxy_pass http://bounded; }
location /apart { proxy_pass http://apart; limit_conn each 1; }
location /timed { proxy_pass http://timed; proxy_next_upstream http_500; proxy_next_upstream_timeout 100ms; }
location /untimed { proxy_pass http://timed; proxy_next_upstream http_500; proxy_next_upstream_timeout 0; }
";

/// `max_conns` of a server, `limit_conn` by a key, `proxy_next_upstream_timeout`.
#[test]
fn servers_and_clients_have_so_many_at_once_and_what_is_late_is_not_passed_on() {
    let [one, two, bad] = ["one", "two", "bad"].map(Recorder::start);
    let mut text = BOUNDED.to_owned();
    for (name, recorder) in [("ONE", &one), ("TWO", &two), ("BAD", &bad)] {
        text = text.replace(name, &recorder.address.to_string());
    }
    let seawall = up(&text);
    for service in ["bounded", "apart", "timed"] {
        seawall.wait_ready(service);
    }
    one.keep_next();
    two.keep_next();
    std::thread::scope(|scope| {
        let first = [(); 2].map(|()| scope.spawn(|| seawall.get("/bounded").status));
        wait("each has one", || (one.keeps() && two.keeps()).then_some(()));
        let third = seawall.get("/bounded");
        assert_eq!((third.status, third.header("seawall-reason")), (503, Some("instances-full")));
        one.let_go();
        wait("one has ended", || (seawall.get("/bounded").status == 200).then_some(()));
        // Its place may be taken for a moment still by the request before.
        let next = || wait("it has a place", || Some(seawall.get("/bounded")).filter(|answer| answer.status == 200));
        assert!((0..6).all(|_| who(&next()) == "one"), "the other one is full");
        two.let_go();
        assert!(first.into_iter().all(|first| first.join().unwrap() == 200));
    });

    let ask = |client: &str| http::request(seawall.gateway, "GET", "/apart", &[("X-Client", client)], b"").unwrap();
    one.keep_next();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ask("a").status);
        wait("a has one", || one.keeps().then_some(()));
        let second = ask("a");
        assert_eq!((second.status, second.header("seawall-reason")), (503, Some("too-many-at-once")));
        assert_eq!((ask("b").status, seawall.get("/apart").status), (200, 200), "others, and who has no key");
        one.let_go();
        assert_eq!(first.join().unwrap(), 200);
    });

    // An answer that comes later than the time for passing on is the client's.
    bad.answer(500);
    bad.slow(Duration::from_millis(300));
    let late = (0..4).filter(|_| seawall.get("/timed").status == 500).count();
    assert_eq!(late, 2, "in turn");
    bad.take();
    assert!((0..4).all(|_| seawall.get("/untimed").status == 200));
    assert!(bad.count() > 0, "it was asked, and passed on");
}

/// Every word of `proxy_next_upstream`: what it names is passed on to the next server, and nothing else is.
#[test]
fn each_word_of_proxy_next_upstream_is_about_what_it_says() {
    let [good, bad] = ["good", "bad"].map(Recorder::start);
    // Answers that are no HTTP, and connections that end without one.
    let [odd, broken] = ["no answer at all\r\n\r\n", ""].map(|text| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // Whoever asks reads it, or has gone.
                let _ = stream.read(&mut [0; 1024]).and_then(|_| stream.write_all(text.as_bytes()));
            }
        });
        address
    });
    let statuses = [500, 502, 503, 504, 403, 404, 429];
    let mut text = format!(
        "upstream pair {{ server {bad} max_fails=0; server {good} max_fails=0; zone pair 64k;
             keepalive 8; keepalive_requests 100; keepalive_time 1h; keepalive_timeout 60s; }}
         upstream oddly {{ server {odd} max_fails=0; server {good} max_fails=0; }}
         upstream half {{ server {broken} max_fails=0; server {good} max_fails=0; }}
         location /off {{ proxy_pass http://pair; proxy_next_upstream off; proxy_http_version 1.1; proxy_buffering off; }}
         location /odd {{ proxy_pass http://oddly; proxy_next_upstream invalid_header; proxy_request_buffering off; }}
         location /odd-too {{ proxy_pass http://oddly; proxy_next_upstream http_500; }}
         location /broken-too {{ proxy_pass http://half; proxy_next_upstream http_500; }}
         location /broken {{ proxy_pass http://half; proxy_next_upstream error; }}\n",
        bad = bad.address,
        good = good.address,
    );
    for status in statuses {
        text += &format!("location /on-{status} {{ proxy_pass http://pair; proxy_next_upstream http_{status}; }}\n");
    }
    let seawall = up(&text);
    for service in ["pair", "oddly", "half"] {
        seawall.wait_ready(service);
    }
    for status in statuses {
        bad.answer(status);
        bad.take();
        let ask = |path: &str| [(); 2].map(|()| seawall.get(path).status).iter().filter(|it| **it == status).count();
        assert_eq!((ask(&format!("/on-{status}")), bad.take().is_empty()), (0, false), "{status} is passed on");
        assert_eq!((ask("/off"), bad.take().len()), (1, 1), "{status} is the client's");
        let other = if status == 500 { "/on-502" } else { "/on-500" };
        assert_eq!((ask(other), bad.take().len()), (1, 1), "{status} is another word's");
    }
    assert_eq!([(); 4].map(|()| seawall.get("/odd").status), [200; 4]);
    assert_eq!([(); 4].map(|()| seawall.get("/broken").status), [200; 4]);
    for path in ["/odd-too", "/broken-too"] {
        let bad = [(); 4].map(|()| seawall.get(path).status).iter().filter(|status| **status == 502).count();
        assert_eq!(bad, 2, "{path}: in turn");
    }
}

const KEYED: &str = "
upstream least { least_conn; server ONE; server TWO; }
limit_req_zone $arg_user zone=user:10m rate=2r/m;
upstream minutes { server ONE; }
location /least { proxy_pass http://least; }
location /minutes { proxy_pass http://minutes; limit_req zone=user; proxy_connect_timeout 5s; proxy_send_timeout 5s; }
";

/// `least_conn`, a rate of a minute, and a key that is a parameter.
#[test]
fn the_server_with_least_to_do_is_asked_and_a_rate_may_be_of_a_minute() {
    let [one, two] = ["one", "two"].map(Recorder::start);
    let seawall = up(&KEYED.replace("ONE", &one.address.to_string()).replace("TWO", &two.address.to_string()));
    seawall.wait_ready("least");
    seawall.wait_ready("minutes");
    one.keep_next();
    std::thread::scope(|scope| {
        let kept = wait("one has something to do", || {
            let asked = scope.spawn(|| seawall.get("/least").status);
            wait("it is kept, or answered", || (one.keeps() || asked.is_finished()).then_some(()));
            one.keeps().then_some(asked)
        });
        for _ in 0..8 {
            // A client may have its answer before the gateway counts the request as over, and two with as much to do take turns.
            wait("the kept one is alone", || {
                let page = seawall.api("GET", "/metrics", b"").text();
                let of_it = |line: &&str| line.starts_with("seawall_gateway_in_flight_requests{service=\"least\"");
                (page.lines().filter(of_it).filter(|line| !line.ends_with(" 0")).count() == 1).then_some(())
            });
            assert_eq!(who(&seawall.get("/least")), "two");
        }
        one.let_go();
        assert_eq!(kept.join().unwrap(), 200);
    });
    let ask = |user: &str| seawall.get(&format!("/minutes?user={user}")).status;
    assert_eq!([ask("a"), ask("a"), ask("b")], [200, 429, 200]);
    let begun = Instant::now();
    wait("more than a second later", || (begun.elapsed() > Duration::from_millis(1_200)).then_some(()));
    assert_eq!(ask("a"), 429, "the next one is half a minute away");
}
