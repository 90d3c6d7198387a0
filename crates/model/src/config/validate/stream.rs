//! Rules of the stream that a service keeps: who may have one, and that nobody shares it.
//! Deliberately absent: `streams` of the node, which says how much every stream keeps.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::config::service::Mode;
use crate::diagnostic::Diagnostics;
use crate::id::ServiceName;

/// Longest name of a stream; the rule is that of `data::Name`.
const MAX_NAME_BYTES: usize = 128;

/// Checks `stream` of every service.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    let mut owners: BTreeMap<&str, &ServiceName> = BTreeMap::new();
    for (name, service) in &config.services {
        let Some(stream) = &service.stream else { continue };
        if service.mode == Mode::ActiveActive {
            let message = format!("service `{name}`: `stream` in an active-active service is never sealed");
            let cure = "add `mode: primary-standby`; an active-active service may use streams without it";
            diagnostics.error(service.at.field("stream"), message, cure);
        }
        let place = stream.at.field("name");
        if !is_name(&stream.name) {
            let shown: String = stream.name.chars().take(40).collect();
            let message = format!("service `{name}`: `{shown}` is no name of a stream");
            let cure = "1 to 128 letters, digits, `.`, `_`, `-` and `:`; the first is a letter or a digit, e.g. the service's name";
            diagnostics.error(place, message, cure);
        }
        if let Some(owner) = owners.insert(&stream.name, name) {
            let message = format!("services `{owner}` and `{name}` would both seal the stream `{}`", stream.name);
            diagnostics.error(place, message, "give each service a stream of its own: a seal shuts the other one out");
        }
    }
}

fn is_name(text: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    text.len() <= MAX_NAME_BYTES
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(rest)
}
