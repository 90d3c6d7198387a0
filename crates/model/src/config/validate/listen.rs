//! Rules of what this machine listens on, and the bounds of the gateway.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::config::Config;
use crate::diagnostic::{Diagnostics, Place};

/// The most worker threads of the gateway.
pub const MAX_WORKERS: u32 = 256;

/// Checks `api` and `gateway`.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    let api = config.api.at.field("listen");
    if let Some(address) = address(&config.api.listen, api, diagnostics)
        && !address.ip().is_loopback()
    {
        let message = format!("the API would listen on {address}, which is not loopback");
        diagnostics.error(
            api,
            message,
            "the API controls this machine: keep 127.0.0.1 (or [::1]) and reach it through an SSH tunnel",
        );
    }
    if config.gateway.listen.is_empty() {
        diagnostics.error(
            config.gateway.at.field("listen"),
            "the gateway has no address to listen on",
            "write listen: [\"127.0.0.1:8080\"]",
        );
    }
    let gateway = &config.gateway;
    if gateway.max_connections == 0 {
        diagnostics.error(gateway.at.field("maxConnections"), "`maxConnections: 0` refuses everybody", "at least 1");
    }
    if gateway.workers > MAX_WORKERS {
        let message = format!("{} worker threads", gateway.workers);
        diagnostics.error(
            gateway.at.field("workers"),
            message,
            format!("at most {MAX_WORKERS}; 0 is one for each core"),
        );
    }
    let waits = [
        ("headerTimeout", gateway.header_timeout),
        ("idleTimeout", gateway.idle_timeout),
        ("connectTimeout", gateway.connect_timeout),
    ];
    for (field, wait) in waits {
        if wait.is_zero() {
            diagnostics.error(
                gateway.at.field(field),
                format!("`{field}: 0` ends every connection at once"),
                "write e.g. 10s",
            );
        }
    }
    let mut seen = BTreeSet::from([config.api.listen.clone()]);
    for listen in &config.gateway.listen {
        let place = config.gateway.at.field("listen");
        let parsed = address(listen, place, diagnostics);
        if parsed.is_some_and(|address| address.port() != 0) && !seen.insert(listen.clone()) {
            diagnostics.error(
                place,
                format!("{listen} is listened on twice"),
                "give each listener (API, gateway) its own port",
            );
        }
    }
}

fn address(text: &str, place: Place, diagnostics: &mut Diagnostics) -> Option<SocketAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        diagnostics.error(
            place,
            format!("`{text}` is not an address to listen on"),
            "write IP:port, e.g. 127.0.0.1:8080 or [::1]:8080; port 0 picks a free one",
        );
    }
    parsed
}
