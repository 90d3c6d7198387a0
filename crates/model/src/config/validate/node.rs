//! Rules of this machine: where state is kept, how much room logs and instances have, who may call and who is told.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::Config;
use crate::diagnostic::Diagnostics;

/// Checks `node`, `streams`, `api.allowedHosts` and `notify`.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    let node = &config.node;
    if node.log_max_mib == 0 {
        diagnostics.error(
            node.at.field("logMaxMib"),
            "`logMaxMib: 0` leaves no room for a line",
            "at least 1; `logKeep: 0` keeps no rotated files",
        );
    }
    let streams = &config.streams;
    if streams.max_bytes < 1024 * 1024 {
        diagnostics.error(
            streams.at.field("maxBytes"),
            format!("`maxBytes: {}` is less than two of the largest entries", streams.max_bytes),
            "at least 1048576",
        );
    }
    if streams.max_age.is_some_and(|age| age < Duration::from_secs(1)) {
        diagnostics.error(
            streams.at.field("maxAge"),
            "`maxAge` under a second keeps nothing",
            "at least 1s; leave it out for no bound",
        );
    }
    instance_ports(config, diagnostics);
    for host in &config.api.allowed_hosts {
        if !is_host(host) {
            diagnostics.error(
                config.api.at.field("allowedHosts"),
                format!("`{host}` is not a host name"),
                "write a name or an address without scheme, port and path, e.g. ops.example",
            );
        }
    }
    for notify in &config.notify {
        let rest = notify.webhook.strip_prefix("http://").or_else(|| notify.webhook.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/')) {
            diagnostics.error(
                notify.at.field("webhook"),
                format!("`{}` is not a URL that can be posted to", notify.webhook),
                "write http://host/path or https://host/path",
            );
        }
        if notify.on.is_empty() {
            diagnostics.error(
                notify.at.field("on"),
                "a receiver of no notices",
                "name some, leave `on` out for all, or remove the receiver",
            );
        }
    }
}

/// Every instance that is run here has a port of its own. A restarted one keeps it, so a roll needs no more.
fn instance_ports(config: &Config, diagnostics: &mut Diagnostics) {
    let range = config.node.instance_ports;
    let services = || config.services.values();
    let needed: u64 = services()
        .filter(|service| service.endpoints.is_empty() && service.ports.is_empty())
        .map(|service| u64::from(service.total_replicas()))
        .sum();
    let fixed = services().flat_map(|service| &service.ports).filter(|port| (range.first..=range.last).contains(port));
    let free = (u64::from(range.last - range.first) + 1).saturating_sub(fixed.count() as u64);
    if needed > free {
        diagnostics.error(
            config.node.at.field("instancePorts"),
            format!("{free} ports in {}-{} for {needed} instances", range.first, range.last),
            "widen `instancePorts`, or give services `ports` of their own outside of it",
        );
    }
}

/// A name or an address as it stands in a `Host` field, without its port.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label))
}
