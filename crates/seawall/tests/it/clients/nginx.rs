//! nginx with its resolver pointed at Seawall's DNS, as the guide has it: requests go to what is registered, and away from what
//! dies. The two programs have one port on two addresses of loopback: the port is nginx' own.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use super::{Ended, Program, register, skipped};
use crate::support::pebble::free_addresses;
use crate::support::{Seawall, http, wait};

/// nginx with its workers, which a killed master would leave behind.
struct Balancer {
    conf: std::path::PathBuf,
    master: Ended,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Ignored: it may have ended.
        let _ =
            super::run(Command::new("nginx").arg("-c").arg(&self.conf).args(["-s", "stop"]), crate::support::PATIENCE);
        let begun = std::time::Instant::now();
        while begun.elapsed() < crate::support::PATIENCE && self.master.0.try_wait().is_ok_and(|ended| ended.is_none())
        {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Runs nginx until it is dropped, with this in its `http` block; its files are below `folder`.
fn nginx(folder: &std::path::Path, name: &str, http: &str) -> Balancer {
    let own = folder.join(name);
    std::fs::create_dir_all(&own).unwrap();
    let text = format!(
        "daemon off; error_log {own}/error.log; pid {own}/pid;\n\
         events {{ }}\n\
         http {{ access_log off; client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
         fastcgi_temp_path {own}/f; uwsgi_temp_path {own}/u; scgi_temp_path {own}/s;\n{http} }}\n",
        own = own.display(),
    );
    let file = own.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Balancer { conf: file, master: Ended(command.spawn().unwrap()) }
}

/// Upstreams from a file that Seawall writes, and reloads that it runs.
#[test]
fn nginx_follows_the_file_that_is_written_for_it() {
    if let Err(error) = Command::new("nginx").arg("-v").output() {
        return skipped("nginx", &format!("{error} (Debian: nginx-light)"));
    }
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let path = folder.path().to_owned();
    let conf = path.join("balancer/nginx.conf");
    let (upstreams, targets) = (path.join("upstreams.conf"), path.join("targets.json"));
    let feeds = format!(
        "discovery: {{ feeds: {{ prometheus: targets.json, nginx: {{ file: upstreams.conf, services: [orders, nobody], \
         reload: [nginx, -c, {}, -s, reload] }} }} }}\n",
        serde_json::json!(conf)
    );
    std::fs::write(path.join("seawall.yaml"), crate::support::configuration(&feeds)).unwrap();
    let seawall = Seawall::up_in(folder);
    // nginx is not there yet: that is said, and tried again.
    let failed = wait("the reload fails", || seawall.events_of("feed-failed").pop());
    assert!(
        failed["message"].as_str().unwrap().contains("upstreams.conf is written, and its reload failed"),
        "{failed}"
    );
    let empty = std::fs::read_to_string(&upstreams).unwrap();
    assert!(empty.contains("upstream nobody {\n    server 127.0.0.1:9 down;\n}"), "{empty}");
    let [listen] = free_addresses();
    let http = format!(
        "include {};\nserver {{ listen {listen}; location / {{ proxy_pass http://orders; }} location /nobody {{ proxy_pass http://nobody; }} }}",
        upstreams.display()
    );
    let _nginx = nginx(&path, "balancer", &http);
    wait("the reload works", || seawall.events_of("feed-restored").pop());
    let (one, two) = (Program::start("one"), Program::start("two"));
    register(&seawall, "orders", "one", &one);
    register(&seawall, "orders", "two", &two);
    // Whoever may register must not write into nginx' configuration.
    let evil = serde_json::json!({ "Name": "orders", "ID": "evil", "Address": "127.0.0.1:1; } evil {", "Port": 9 });
    assert_eq!(seawall.api("PUT", "/v1/agent/service/register", evil.to_string().as_bytes()).status, 200);
    let answer = |path: &str| http::request(listen, "GET", path, &[], b"").ok();
    let mut seen = std::collections::BTreeSet::new();
    wait("both behind nginx", || {
        seen.extend(answer("/").map(|answer| answer.text()).filter(|text| text.starts_with("# ")));
        (seen.len() == 2).then_some(())
    });
    assert_eq!(answer("/nobody").unwrap().status, 502);
    let two_at = two.address.to_string();
    drop(two);
    // A dead one goes out of the file, not only out of nginx' own turn.
    wait("the file without it", || (!std::fs::read_to_string(&upstreams).unwrap().contains(&two_at)).then_some(()));
    let written = std::fs::read_to_string(&upstreams).unwrap();
    assert!(written.contains(&format!("server {} weight=1;", one.address)) && !written.contains("evil"), "{written}");
    wait("one behind nginx", || {
        (0..20).all(|_| answer("/").is_some_and(|answer| answer.text() == "# one\n")).then_some(())
    });
    // The other file is what Prometheus is told over HTTP.
    wait("the targets as over HTTP", || {
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(&targets).unwrap()).unwrap();
        let http = seawall.api("GET", "/api/v1/sd/prometheus", b"").text();
        (file == serde_json::from_str::<serde_json::Value>(&http).unwrap() && http.contains(&two_at)).then_some(())
    });
}

#[test]
fn nginx_finds_by_dns_what_is_registered_and_follows_a_death() {
    if let Err(error) = Command::new("nginx").arg("-v").output() {
        return skipped("nginx", &format!("{error} (Debian: nginx-light)"));
    }
    let seawall = Seawall::up("dns: { listen: \"127.0.0.1:0\" }\n");
    let [listen, at] = free_addresses();
    let port = at.port();
    let listener = |ip: &str| TcpListener::bind((ip, port)).unwrap();
    let (one, two) = (Program::start_at("one", listener("127.0.0.2")), Program::start_at("two", listener("127.0.0.3")));
    register(&seawall, "orders", "one", &one);
    register(&seawall, "orders", "two", &two);
    let folder = seawall.folder();
    let text = format!(
        "daemon off; master_process off; error_log {folder}/error.log; pid {folder}/pid;\n\
         events {{ }}\n\
         http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
         fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n\
         server {{ listen {listen}; resolver {} valid=1s;\n\
         location / {{ set $orders \"http://orders.service.consul:{port}\"; proxy_pass $orders; }} }} }}\n",
        seawall.ready()["dns"].as_str().unwrap(),
        folder = folder.display(),
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _nginx = Ended(nginx.spawn().unwrap());
    let answer = || Some(http::request(listen, "GET", "/", &[], b"").ok()?.text());
    let mut seen = std::collections::BTreeSet::new();
    wait("both behind nginx", || {
        seen.extend(answer().filter(|text| text.starts_with("# ")));
        (seen.len() == 2).then_some(())
    });
    drop(two);
    wait("one behind nginx", || (0..20).all(|_| answer().as_deref() == Some("# one\n")).then_some(()));
}
