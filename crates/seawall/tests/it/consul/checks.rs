//! Checks of what registers itself, and what follows from them: the catalog, the gateway, definition files.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{done, ids, put};
use crate::listeners;
use crate::support::{Seawall, wait};

/// A program that nobody here runs: it answers with a status that the test chooses.
struct Program {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
    listener: TcpListener,
}

impl Program {
    fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (status, asked) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (accepting, told, counted) = (listener.try_clone().unwrap(), Arc::clone(&status), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(mut stream) = stream else { return };
                let status = told.load(Ordering::Relaxed);
                if status == 0 {
                    return;
                }
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                if head[..read].starts_with(b"GET /health") {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                let answer =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}", name.len());
                // Ignored: a check that only connects has gone.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { address, status, asked, listener }
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Ends as a process would: its port refuses.
    fn die(self) {
        self.answers(0);
        drop(std::net::TcpStream::connect(self.address));
        drop(self.listener);
    }
}

fn standing(seawall: &Seawall, check: &str) -> String {
    let checks = seawall.api("GET", "/v1/agent/checks", b"").json();
    checks[check]["Status"].as_str().unwrap_or("none").to_owned()
}

fn stands(seawall: &Seawall, check: &str, status: &str) {
    wait(&format!("{check} {status}"), || (standing(seawall, check) == status).then_some(()));
}

/// What an instance says that says too much is cut, not lost.
#[test]
fn the_output_of_a_check_is_cut_at_its_limit() {
    let seawall = Seawall::up("");
    let program = Program::start("words ".repeat(20_000).leak());
    let url = format!("http://{}/health", program.address);
    for (id, most) in [("whole", json!({})), ("short", json!({ "OutputMaxSize": 200 }))] {
        let mut body = json!({ "Name": id, "Interval": "1s", "HTTP": url });
        body.as_object_mut().unwrap().extend(most.as_object().unwrap().clone());
        done(&put(&seawall, "/v1/agent/check/register", &body));
        stands(&seawall, id, "passing");
    }
    let checks = seawall.api("GET", "/v1/agent/checks", b"").json();
    let output = |id: &str| checks[id]["Output"].as_str().unwrap().to_owned();
    assert_eq!((output("whole").len(), output("short").len()), (4096, 200), "{checks}");
    assert!(output("short").contains("Output: words words"), "{}", output("short"));
}

#[test]
fn each_kind_of_check_is_made_and_judged() {
    let seawall = Seawall::up("discovery: { remoteScriptChecks: true }\n");
    let program = Program::start("a");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = program.address;
    let register = |id: &str, how: Value| {
        let mut body = json!({ "Name": id, "Interval": "1s", "Timeout": "2s" });
        body.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
        done(&put(&seawall, "/v1/agent/check/register", &body));
    };
    register("http", json!({ "HTTP": format!("http://{address}/health"), "Header": { "x-a": ["b"] } }));
    register("tcp", json!({ "TCP": address.to_string() }));
    register("udp", json!({ "UDP": udp.local_addr().unwrap().to_string() }));
    register("args", json!({ "Args": ["/bin/sh", "-c", "exit 0"] }));
    register("warns", json!({ "Args": ["/bin/sh", "-c", "echo disk at 81 %; echo 'see df' >&2; exit 1"] }));
    register("fails", json!({ "Args": ["/bin/sh", "-c", "exit 2"] }));
    // More than a pipe holds: it must not wait for a reader.
    register("talks", json!({ "Args": ["/bin/sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; echo the end"] }));
    register("nobody", json!({ "TCP": "127.0.0.1:1" }));
    register("word", json!({ "TTL": "1s" }));
    register("alias", json!({ "AliasNode": "test" }));
    for (id, status) in [
        ("http", "passing"),
        ("tcp", "passing"),
        ("udp", "passing"),
        ("args", "passing"),
        ("warns", "warning"),
        ("talks", "passing"),
        ("alias", "critical"),
    ] {
        stands(&seawall, id, status);
    }
    let checks = seawall.api("GET", "/v1/agent/checks", b"").json();
    assert!(checks["http"]["Output"].as_str().unwrap().contains("200"), "{checks}");
    let output = |id: &str| checks[id]["Output"].as_str().unwrap_or_default().to_owned();
    assert!(output("warns").contains("disk at 81 %\n") && output("warns").contains("see df\n"), "{checks}");
    assert!(output("talks").ends_with("xxxthe end\n") && output("talks").len() <= 4096, "{checks}");
    assert_eq!((standing(&seawall, "fails").as_str(), standing(&seawall, "nobody").as_str()), ("critical", "critical"));
    // 429 warns, anything else but 2xx fails.
    program.answers(429);
    stands(&seawall, "http", "warning");
    program.answers(503);
    stands(&seawall, "http", "critical");
    // A word that does not come any more.
    done(&seawall.api("PUT", "/v1/agent/check/pass/word", b""));
    stands(&seawall, "word", "passing");
    stands(&seawall, "word", "critical");
    // A check that is taken out is made no more.
    done(&seawall.api("PUT", "/v1/agent/check/deregister/http", b""));
    wait("no more requests", || {
        let before = program.asked.load(Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(1500));
        (program.asked.load(Ordering::Relaxed) == before).then_some(())
    });
}

/// Each kind that knows TLS, against the gateway's own listeners.
#[test]
fn a_check_over_tls_trusts_whom_the_machine_trusts_and_no_other_name() {
    let folder =
        listeners::with_listeners("routes:\n  - { respond: { status: 200, body: yes } }\n", listeners::UNDER_TLS);
    listeners::new_certificate(folder.path());
    let authorities = folder.path().join("ca.pem");
    let seawall = Seawall::up_in_with(folder, ("SSL_CERT_FILE", &authorities));
    let (plain, secure) = (listeners::listener(&seawall, 0), listeners::listener(&seawall, 1));
    let register = |id: &str, how: Value| {
        let mut body = json!({ "Name": id, "Interval": "1s", "Timeout": "5s" });
        body.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
        done(&put(&seawall, "/v1/agent/check/register", &body));
    };
    let url = format!("https://{secure}/");
    register("https", json!({ "HTTP": url }));
    register("https-named", json!({ "HTTP": url, "TLSServerName": "shop.local" }));
    register("https-other", json!({ "HTTP": url, "TLSServerName": "other.local" }));
    register("https-skipped", json!({ "HTTP": url, "TLSServerName": "other.local", "TLSSkipVerify": true }));
    register("tcp", json!({ "TCP": secure.to_string(), "TCPUseTLS": true }));
    register("tcp-plain", json!({ "TCP": plain.to_string(), "TCPUseTLS": true }));
    register("h2", json!({ "H2Ping": secure.to_string() }));
    register("h2-other", json!({ "H2Ping": secure.to_string(), "TLSServerName": "other.local" }));
    register("h2-plain", json!({ "H2Ping": plain.to_string(), "H2PingUseTLS": false }));
    register("h2-tls-expected", json!({ "H2Ping": plain.to_string() }));
    let passing = ["https", "https-named", "https-skipped", "tcp", "h2", "h2-plain"];
    for id in passing {
        stands(&seawall, id, "passing");
    }
    let output = |id: &str| {
        let checks = seawall.api("GET", "/v1/agent/checks", b"").json();
        checks[id]["Output"].as_str().unwrap_or_default().to_owned()
    };
    for id in ["https-other", "h2-other"] {
        wait("a certificate of another name", || output(id).contains("not valid for name").then_some(()));
    }
    for id in ["tcp-plain", "h2-tls-expected"] {
        wait("no TLS there", || output(id).contains("TLS with 127.0.0.1").then_some(()));
    }
    for id in ["https-other", "h2-other", "tcp-plain", "h2-tls-expected"] {
        assert_eq!(standing(&seawall, id), "critical", "{id}");
    }
    assert!(output("h2").contains("HTTP2 ping was successful"), "{}", output("h2"));
}

#[test]
fn a_route_follows_what_is_registered() {
    let seawall = Seawall::up("routes: [{ to: { service: web, source: registry } }]\n");
    assert_eq!(seawall.get("/").status, 503);
    let programs = [Program::start("one"), Program::start("two")];
    for (id, program) in ["one", "two"].iter().zip(&programs) {
        let body = json!({ "Name": "web", "ID": id, "Address": "localhost", "Port": program.address.port(),
            "Check": { "HTTP": format!("http://{}/health", program.address), "Interval": "1s" } });
        done(&put(&seawall, "/v1/agent/service/register", &body));
    }
    let answered = |seawall: &Seawall| {
        let mut who: Vec<String> = (0..20)
            .map(|_| seawall.get("/"))
            .filter(|answer| answer.status == 200)
            .map(|answer| answer.text())
            .collect();
        who.sort_unstable();
        who.dedup();
        who
    };
    wait("both behind the gateway", || (answered(&seawall) == ["one", "two"]).then_some(()));
    let [one, two] = programs;
    // It dies: it leaves the catalog and the gateway.
    two.die();
    let passing = || ids(&seawall.api("GET", "/v1/health/service/web?passing", b""));
    wait("one in the catalog", || (passing() == ["one"]).then_some(()));
    wait("one behind the gateway", || {
        let answers: Vec<_> = (0..20).map(|_| seawall.get("/")).collect();
        answers.iter().all(|answer| answer.text() == "one").then_some(())
    });
    // A node that starts waits for the registry before it says that nobody is there.
    for kill in 1..=5 {
        crate::support::processes::signal(seawall.node(), "KILL");
        wait("the next node process", || {
            let answer = crate::support::http::request(seawall.gateway, "GET", "/", &[], b"");
            assert!(answer.as_ref().map_or(true, |answer| answer.status == 200), "kill {kill}: {answer:?}");
            (seawall.status()["node"]["nodeStarts"] == 1 + kill).then_some(())
        });
    }
    done(&seawall.api("PUT", "/v1/agent/service/deregister/one", b""));
    wait("nobody", || (seawall.get("/").status == 503).then_some(()));
    drop(one);
}

/// The registration block of the document that the product is built from, as it stands there.
const ORDER_SERVICE: &str = r#"{
  "service": {
    "name": "order-service",
    "tags": ["v1"],
    "address": "192.168.1.10",
    "port": 8080,
    "check": {
      "http": "http://192.168.1.10:8080/health",
      "interval": "10s"
    }
  }
}"#;

#[test]
fn the_source_documents_registration_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("order-service.json");
    std::fs::write(&file, ORDER_SERVICE).unwrap();
    let body = format!(
        "dns: {{ listen: \"127.0.0.1:0\" }}\nroutes: [{{ to: {{ service: order-service, source: registry }} }}]\ninclude: [{{ consul: {file:?} }}]\n"
    );
    let seawall = Seawall::up(&body);
    let shown = wait("order-service in the catalog", || {
        let found = seawall.api("GET", "/v1/catalog/service/order-service?tag=v1", b"").json();
        (!found[0].is_null()).then(|| found[0].clone())
    });
    assert_eq!((shown["ServiceAddress"].as_str(), shown["ServicePort"].as_u64()), (Some("192.168.1.10"), Some(8080)));
    let check = seawall.api("GET", "/v1/agent/checks", b"").json()["service:order-service"].clone();
    assert_eq!((check["Interval"].as_str(), check["Type"].as_str()), (Some("10s"), Some("http")), "{check}");
    // With an address of this machine it is checked, found and routed to.
    let program = Program::start("order-service");
    let adapted =
        ORDER_SERVICE.replace("192.168.1.10:8080", &program.address.to_string()).replace("192.168.1.10", "127.0.0.1");
    std::fs::write(&file, adapted.replace("8080", &program.address.port().to_string())).unwrap();
    seawall.apply(0, &body);
    let at = seawall.ready()["dns"].as_str().unwrap().parse().unwrap();
    let in_catalog = || ids(&seawall.api("GET", "/v1/health/service/order-service?passing", b"")) == ["order-service"];
    let in_dns = || crate::dns::addresses(at, "order-service.service.consul.") == ["127.0.0.1"];
    let in_gateway = || seawall.get("/").text() == "order-service";
    wait("order-service in all three", || (in_catalog() && in_dns() && in_gateway()).then_some(()));
    // Every ten seconds.
    let asked = || program.asked.load(Ordering::Relaxed);
    let first = asked();
    wait("the next check", || (asked() > first).then_some(()));
    let began = Instant::now();
    wait("the one after it", || (asked() > first + 1).then_some(()));
    let gap = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&gap), "checked after {gap:?}");
    // It dies: one check has to fail, which is due within ten seconds, and all three know.
    program.die();
    let died = Instant::now();
    let mut left = [None; 3];
    wait("it has left all three", || {
        for (left, is_in) in left.iter_mut().zip([in_catalog(), in_dns(), in_gateway()]) {
            if !is_in {
                left.get_or_insert_with(|| died.elapsed());
            }
        }
        left.iter().all(Option::is_some).then_some(())
    });
    println!("left catalog, DNS and gateway after {left:?}");
    let budget = Duration::from_secs(10 + 2);
    assert!(left.iter().flatten().all(|after| *after < budget), "{left:?}");
    assert!(!in_catalog() && !in_dns() && seawall.get("/").status == 503, "and stays away");
    // A file that is not included any more takes its service with it.
    seawall.apply(0, "dns: { listen: \"127.0.0.1:0\" }\nroutes: []\n");
    wait("an empty catalog", || {
        (seawall.api("GET", "/v1/catalog/services", b"").json() == json!({ "consul": [] })).then_some(())
    });
}

#[test]
fn a_definition_with_a_mistake_is_refused_with_file_line_and_key() {
    let seawall = Seawall::up("");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.json");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(&file, "{ \"service\": {\n  \"name\": \"web\",\n  \"prot\": 80 } }").unwrap();
    let (_, told) = seawall.cli_exits(2, &["services", "register", &path]);
    assert!(told.contains("web.json, line 3: `service.prot`"), "{told}");
    let (_, told) = seawall.apply(2, &format!("include: [{{ consul: {path:?} }}]\n"));
    assert!(told.contains("web.json, line 3: `service.prot`"), "{told}");
    std::fs::write(
        &file,
        "{ \"services\": [{ \"name\": \"web\", \"port\": 80 }, { \"id\": \"b\", \"name\": \"web\" }] }",
    )
    .unwrap();
    seawall.cli_exits(0, &["services", "register", &path]);
    assert_eq!(ids(&seawall.api("GET", "/v1/health/service/web", b"")), ["b", "web"]);
    seawall.cli_exits(0, &["services", "deregister", "b"]);
    assert_eq!(ids(&seawall.api("GET", "/v1/health/service/web", b"")), ["web"]);
    let (_, told) = seawall.cli_exits(2, &["services", "deregister", "b"]);
    assert!(told.contains("Unknown service ID"), "{told}");
}

/// Of a program that says nothing: critical from the beginning, to be taken out after Consul's shortest time.
fn silent(id: &str) -> Value {
    json!({ "Name": id, "Check": { "TTL": "1h", "Status": "critical", "DeregisterCriticalServiceAfter": "1m" } })
}

#[test]
fn an_instance_that_is_critical_for_so_long_is_taken_out() {
    let seawall = Seawall::up("");
    let began = Instant::now();
    done(&put(&seawall, "/v1/agent/service/register", &silent("ghost")));
    let mut stays = json!({ "Name": "stays", "Check": { "TTL": "1h", "Status": "critical" } });
    done(&put(&seawall, "/v1/agent/service/register", &stays));
    stays["Name"] = "word".into();
    stays["Check"]["DeregisterCriticalServiceAfter"] = "1m".into();
    done(&put(&seawall, "/v1/agent/service/register", &stays));
    let there = || seawall.api("GET", "/v1/agent/services", b"").json().as_object().unwrap().len();
    // Somebody speaks up for one of them in between: its time begins anew.
    while began.elapsed() < Duration::from_secs(40) {
        assert_eq!(there(), 3, "after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(500));
    }
    done(&seawall.api("PUT", "/v1/agent/check/pass/service:word", b""));
    done(&seawall.api("PUT", "/v1/agent/check/fail/service:word", b""));
    wait("one is taken out", || (there() == 2).then_some(()));
    let after = began.elapsed();
    assert!((Duration::from_secs(60)..Duration::from_secs(75)).contains(&after), "{after:?}");
    let left = seawall.api("GET", "/v1/agent/services", b"").json();
    assert!(left["ghost"].is_null() && !left["stays"].is_null() && !left["word"].is_null(), "{left}");
    assert!(seawall.stderr().contains("an instance is taken out"), "the log says so");
}

/// A check that sends on to another place is judged by what that says.
#[test]
fn a_check_follows_redirects_unless_it_is_told_not_to() {
    let seawall = Seawall::up("");
    let program = Program::start("a");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let to = program.address;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let location = if head[..read].starts_with(b"GET /round") {
                "/round".to_owned()
            } else {
                format!("http://{to}/health")
            };
            // Ignored: the check may have gone.
            let _ = stream.write_all(
                format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .as_bytes(),
            );
        }
    });
    for (id, path, off) in [("follows", "/", false), ("stays", "/", true), ("round", "/round", false)] {
        let body =
            json!({ "Name": id, "HTTP": format!("http://{at}{path}"), "Interval": "1s", "DisableRedirects": off });
        done(&put(&seawall, "/v1/agent/check/register", &body));
    }
    stands(&seawall, "follows", "passing");
    let output = |id: &str| {
        let checks = seawall.api("GET", "/v1/agent/checks", b"").json();
        checks[id]["Output"].as_str().unwrap_or_default().to_owned()
    };
    wait("a redirect that is the answer", || output("stays").contains("302").then_some(()));
    wait("one that never ends", || output("round").contains("stopped after 10 redirects").then_some(()));
    assert_eq!((standing(&seawall, "stays").as_str(), standing(&seawall, "round").as_str()), ("critical", "critical"));
    program.answers(503);
    stands(&seawall, "follows", "critical");
}
