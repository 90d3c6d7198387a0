//! Rules of what this machine listens on, and the bounds of the gateway.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::config::{Config, Dns, Listen, Listener, Service};
use crate::diagnostic::{Diagnostics, Place};

/// The most worker threads of the gateway.
pub const MAX_WORKERS: u32 = 256;

/// DNS servers that questions are passed on to.
const MAX_FORWARD: usize = 8;

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
    if let Some(dns) = &config.dns {
        address(&dns.listen, dns.at.field("listen"), diagnostics);
        let label = |label: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(fits)
        };
        if dns.domain.len() > 200 || !dns.domain.trim_matches('.').split('.').all(label) {
            let message = format!("`{}` is no domain", dns.domain);
            diagnostics.error(dns.at.field("domain"), message, "e.g. `consul` or `shop.internal`");
        }
        for text in &dns.forward {
            let message = match Dns::server(text) {
                None => format!("`{text}` is not the address of a DNS server"),
                Some(server) if server.to_string() == dns.listen => {
                    format!("`{text}` is where this node listens itself")
                }
                Some(_) => continue,
            };
            diagnostics.error(dns.at.field("forward"), message, "write an IP, e.g. 10.0.0.2, or IP:port");
        }
        if dns.forward.len() > MAX_FORWARD {
            let message = format!("{} servers, {MAX_FORWARD} at most", dns.forward.len());
            diagnostics.error(dns.at.field("forward"), message, "each that does not answer costs 2 s");
        }
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
        ("stallTimeout", gateway.stall_timeout),
        ("tunnelIdleTimeout", gateway.tunnel_idle_timeout),
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
    for status in gateway.error_pages.keys() {
        if error_statuses(status).is_none() {
            diagnostics.error(
                gateway.at.field("errorPages"),
                format!("`{status}` is no status of an error"),
                "write a status from 400 to 599, or 4xx or 5xx",
            );
        }
    }
    let known = config.api.listen.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    let mut seen: BTreeSet<SocketAddr> = known.into_iter().collect();
    for Listen(listener) in &config.gateway.listen {
        let place = listener.at.field("address");
        listener_rules(config, listener, diagnostics);
        let Some(address) = address(&listener.address, place, diagnostics) else { continue };
        if address.port() != 0 && !seen.insert(address) {
            diagnostics.error(
                place,
                format!("{address} is listened on twice"),
                "give each listener (API, gateway) its own port",
            );
        }
    }
}

/// The statuses that a key of `errorPages` means.
pub fn error_statuses(key: &str) -> Option<std::ops::RangeInclusive<u16>> {
    match key {
        "4xx" => Some(400..=499),
        "5xx" => Some(500..=599),
        one => one.parse().ok().filter(|status| (400..=599).contains(status)).map(|status| status..=status),
    }
}

/// Rules of one listener beyond its address.
fn listener_rules(config: &Config, listener: &Listener, diagnostics: &mut Diagnostics) {
    if let Some(tls) = &listener.tls
        && tls.certificates.is_empty()
    {
        diagnostics.error(
            tls.at.field("certificates"),
            "`tls` without a certificate",
            "write certificates: [{ certFile: cert.pem, keyFile: key.pem }]",
        );
    }
    for certificate in listener.tls.iter().flat_map(|tls| &tls.certificates) {
        super::acme::certificate(config, certificate, diagnostics);
    }
    let (spoken, written) = (&listener.protocols, listener.at.field("protocols"));
    // An empty list, or one whose words were refused, speaks both.
    if spoken.len() == 1 && listener.tcp.is_some() {
        let why = "`tcp` passes bytes on as they come, `protocols` would have no effect";
        diagnostics.error(written, why, "delete one of them");
    }
    if let Some(tcp) = &listener.tcp
        && !config.services.contains_key(&tcp.service)
    {
        let names = config.services.keys().map(crate::id::ServiceName::as_str);
        let cure = match crate::diagnostic::nearest(tcp.service.as_str(), names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "define it under `services`".to_owned(),
        };
        diagnostics.error(tcp.at.field("service"), format!("no service `{}`", tcp.service), cure);
    }
}

/// Checks how instances of a service are spoken to.
pub fn upstream(service: &Service, diagnostics: &mut Diagnostics) {
    let Some(tls) = &service.tls else { return };
    match (&tls.ca_file, tls.insecure_skip_verify) {
        (None, false) => diagnostics.error(
            tls.at.whole,
            "`tls` does not say whom to trust",
            "write caFile: ca.pem (or, for a test, insecureSkipVerify: true)",
        ),
        (Some(_), true) => diagnostics.error(
            tls.at.field("insecureSkipVerify"),
            "`insecureSkipVerify: true` beside `caFile`: nothing would be verified",
            "remove one of the two",
        ),
        _ => {}
    }
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        diagnostics.error(tls.at.whole, "`certFile` and `keyFile` belong together", "write both or neither");
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
