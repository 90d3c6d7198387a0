//! Rules of the files that are written for other programs.

use crate::config::{ALL, Config};
use crate::diagnostic::Diagnostics;

/// The most services named in a feed.
const MAX_SERVICES: usize = 1000;

/// Checks `discovery.feeds`.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    let feeds = &config.discovery.feeds;
    let files = feeds.prometheus.iter().chain(feeds.nginx.as_ref().map(|nginx| &nginx.file));
    for file in files.filter(|file| std::path::Path::new(&file.path).file_name().is_none()) {
        diagnostics.error(file.at, "this names no file", "write e.g. feeds/upstreams.conf");
    }
    let Some(nginx) = &feeds.nginx else { return };
    if let Some(other) = feeds.prometheus.as_ref().filter(|other| other.path == nginx.file.path) {
        diagnostics.error(other.at, "the file is written by two feeds", "give each its own");
    }
    let place = nginx.at.field("services");
    let services = &nginx.services.0;
    if services.is_empty() || services.len() > MAX_SERVICES {
        let message = format!("{} services", services.len());
        diagnostics.error(place, message, format!("write `{ALL}`, or one to {MAX_SERVICES} names"));
    }
    for (index, name) in services.iter().enumerate() {
        if !is_upstream_name(name) {
            let message = format!("`{name}` is no name that nginx can have");
            diagnostics.error(place, message, "letters, digits, `-`, `_` and `.`, at most 128");
        }
        if services[..index].iter().any(|before| before.eq_ignore_ascii_case(name)) {
            let message = format!("`{name}` is named twice, nginx tells no upper from lower case");
            diagnostics.error(place, message, "name it once");
        }
    }
    if nginx.at.has("reload") && nginx.reload.first().is_none_or(String::is_empty) {
        let place = nginx.at.field("reload");
        diagnostics.error(place, "`reload` names no program", "write e.g. [nginx, -s, reload], or leave it out");
    }
}

/// Whether an `upstream` block may be called so: nothing in it means anything to nginx.
pub fn is_upstream_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&name.len()) && name.bytes().all(plain)
}
