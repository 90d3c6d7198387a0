//! One configuration for each proxy, all of the same meaning: one worker, one route to one backend over kept connections,
//! bounds on time, X-Forwarded-For and a request id added, no access log. What a proxy counts by default it goes on
//! counting. Seawall's names nothing that is on by default. What `--guards` adds is in `guards.rs`.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::guards::{self, Haproxy};
use super::{Guarding, Place};
use crate::run;

/// The configuration of `seawall up`, which chooses its ports itself.
pub fn seawall(place: &Place, guarding: Guarding) -> Result<PathBuf> {
    let address = "127.0.0.1:0";
    let listen = if place.scenario.tls {
        let (cert, key) = (place.file("cert.pem"), place.file("key.pem"));
        json!({ "address": address, "tls": { "certificates": [{ "certFile": cert, "keyFile": key }] } })
    } else {
        json!(address)
    };
    let (name, data) = match guarding {
        Guarding::Plain | Guarding::Guarded => ("seawall.yaml", "seawall-data"),
        Guarding::Bare => ("seawall-bare.yaml", "seawall-bare-data"),
    };
    let mut config = json!({
        "node": { "name": "bench", "dataDir": place.file(data) },
        "api": { "listen": "127.0.0.1:0" },
        "gateway": { "listen": [listen] },
        "services": { "backend": { "endpoints": [place.backend.to_string()] } },
        "routes": [{ "match": { "pathPrefix": "/" }, "to": { "service": "backend" }, "timeout": "5s" }],
    });
    match guarding {
        Guarding::Plain => {}
        Guarding::Guarded => guards::seawall(&mut config, place.backend),
        Guarding::Bare => guards::bare(&mut config),
    }
    write(place, name, &config.to_string())
}

/// The configuration of `haproxy -f`.
pub fn haproxy(place: &Place, address: SocketAddr) -> Result<PathBuf> {
    let Place { scenario, backend, .. } = place;
    let bind = match (scenario.tls, scenario.h2) {
        (false, false) => String::new(),
        (false, true) => " proto h2".to_owned(),
        (true, h2) => {
            let alpn = if h2 { "h2,http/1.1" } else { "http/1.1" };
            format!(" ssl crt {} alpn {alpn}", place.file("both.pem").display())
        }
    };
    let most = place.scenario.idle.unwrap_or_default() + 2_000;
    let Haproxy { entrance, backend: limits, server, rules } = match scenario.guards {
        true => guards::haproxy(&place.file("haproxy.map"), *backend)?,
        false => Haproxy::default(),
    };
    // It counts two files for each connection and would not start where half of them are allowed: idle ones need one.
    let text = format!(
        "global
  nbthread 1
  no strict-limits
  maxconn {most}
defaults
  mode http
  maxconn {most}
  timeout connect 1s
  timeout client 75s
  timeout server 5s
  timeout http-request 10s
  timeout http-keep-alive 75s
  option forwardfor
  retries 3
  option redispatch
frontend entrance
  bind {address}{bind}
  unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt:%pid
  unique-id-header X-Request-Id
{entrance}  default_backend backend
backend backend
  http-reuse always
{limits}  server one {backend}{server}
{rules}"
    );
    write(place, "haproxy.cfg", &text)
}

/// The configuration of `nginx -c`.
pub fn nginx(place: &Place, address: SocketAddr) -> Result<PathBuf> {
    let Place { scenario, backend, .. } = place;
    let mut listen = address.to_string();
    let mut certificate = String::new();
    if scenario.tls {
        listen += " ssl";
        let (cert, key) = (place.file("cert.pem"), place.file("key.pem"));
        certificate = format!("ssl_certificate {}; ssl_certificate_key {};", cert.display(), key.display());
    }
    if scenario.h2 {
        listen += " http2";
    }
    let folder = place.file("nginx");
    fs::create_dir_all(&folder)?;
    let folder = folder.display();
    let most = place.scenario.idle.unwrap_or_default() + 2_000;
    // Bodies of 64 KiB stay in memory, as they do in the others.
    let text = format!(
        "daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections {most}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_timeout 75s;
  keepalive_requests 1000000000;
  client_header_timeout 10s;
  client_body_buffer_size 128k;
  upstream backend {{
    server {backend};
    keepalive 128;
    keepalive_requests 1000000000;
    keepalive_timeout 75s;
  }}
  server {{
    listen {listen};
    {certificate}
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Request-Id $request_id;
      proxy_connect_timeout 1s;
      proxy_read_timeout 5s;
      proxy_send_timeout 5s;
      proxy_buffers 16 8k;
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"
    );
    write(place, "nginx.conf", &text)
}

/// The configuration of `envoy -c`; it adds a request id, X-Forwarded-For and statistics by itself.
pub fn envoy(place: &Place, address: SocketAddr) -> Result<PathBuf> {
    let socket = |address: SocketAddr| -> Value {
        json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
    };
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "entrance",
        "use_remote_address": true,
        "common_http_protocol_options": { "idle_timeout": "75s" },
        "request_headers_timeout": "10s",
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{
            "match": { "prefix": "/" },
            "route": {
                "cluster": "backend",
                "timeout": "5s",
                "retry_policy": { "retry_on": "connect-failure,refused-stream", "num_retries": 2 },
            },
        }] }] },
    });
    if place.scenario.guards {
        let router = manager["http_filters"][0].take();
        manager["http_filters"] = json!([guards::envoy_filter(), router]);
        manager["route_config"]["virtual_hosts"] = json!([guards::envoy_host()]);
    }
    let mut chain = json!({
        "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }],
    });
    if place.scenario.tls {
        let file = |name: &str| json!({ "filename": place.file(name) });
        let certificate = json!({ "certificate_chain": file("cert.pem"), "private_key": file("key.pem") });
        let context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": { "alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [certificate] },
        });
        chain["transport_socket"] = json!({ "name": "envoy.transport_sockets.tls", "typed_config": context });
    }
    let endpoint = json!({ "endpoint": { "address": socket(place.backend) } });
    let cluster = json!({
        "name": "backend",
        "connect_timeout": "1s",
        "type": "STATIC",
        "load_assignment": { "cluster_name": "backend", "endpoints": [{ "lb_endpoints": [endpoint] }] },
    });
    let clusters = if place.scenario.guards { guards::envoy_clusters(&cluster) } else { vec![cluster] };
    let config = json!({ "static_resources": {
        "listeners": [{ "name": "entrance", "address": socket(address), "filter_chains": [chain] }],
        "clusters": clusters,
    } });
    write(place, "envoy.json", &config.to_string())
}

/// A certificate that nobody has signed, with a key of the kind everybody uses now.
pub fn certificate(place: &Place) -> Result<()> {
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .arg("-keyout")
        .arg(place.file("key.pem"))
        .arg("-out")
        .arg(place.file("cert.pem"))
        .stderr(std::process::Stdio::null()))?;
    let both = fs::read_to_string(place.file("cert.pem"))? + &fs::read_to_string(place.file("key.pem"))?;
    Ok(fs::write(place.file("both.pem"), both)?)
}

fn write(place: &Place, name: &str, text: &str) -> Result<PathBuf> {
    let file = place.file(name);
    fs::write(&file, text)?;
    Ok(file)
}
