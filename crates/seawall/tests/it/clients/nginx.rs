//! nginx with its resolver pointed at Seawall's DNS, as the guide has it: requests go to what is registered, and away from what
//! dies. The two programs have one port on two addresses of loopback: the port is nginx' own.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use super::{Ended, Program, register, skipped};
use crate::support::pebble::free_addresses;
use crate::support::{Seawall, http, wait};

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
