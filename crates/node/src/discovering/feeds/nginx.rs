//! nginx' `upstream` blocks: a `server` for each instance that is not critical. What is registered comes from whoever may
//! register, and nginx refuses a whole file for one word of it: so only addresses and plain names get here.
//! Deliberately absent: everything else that a block may have; whoever needs it writes his own block.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use discovery::catalog::SERVERS;
use discovery::record::CheckStatus;
use discovery::select::{self, Wanted};
use discovery::{Catalog, Registry};

use super::super::routed::{Names, address};

/// Instances in a block at most.
const MAX_INSTANCES: usize = 1000;
/// Blocks at most.
const MAX_SERVICES: usize = 1000;

/// Names are looked up for so long; then what they came to before counts.
const LOOKING_UP: Duration = Duration::from_secs(5);

/// The file: of these services, or of all that are registered.
pub async fn upstreams(registry: &Registry, services: Option<&[String]>, names: &mut Names) -> String {
    let began = Instant::now();
    let found = {
        let catalog = registry.read();
        let mut seen = BTreeSet::new();
        let all = || catalog.names().map(|(name, _)| name).filter(|name| *name != SERVERS).map(str::to_owned).collect();
        let wanted: Vec<String> = services.map_or_else(all, <[String]>::to_vec);
        // nginx tells no upper from lower case, and refuses two that are the same to it.
        let fits =
            |name: &String| model::config::validate::is_upstream_name(name) && seen.insert(name.to_ascii_lowercase());
        let wanted = wanted.into_iter().filter(fits).take(MAX_SERVICES);
        wanted.map(|name| (servers(&catalog, &name), name)).collect::<Vec<_>>()
    };
    let mut text = "# Written by Seawall from its registry; what is changed here is lost.\n".to_owned();
    for (servers, name) in found {
        let mut reached: BTreeMap<SocketAddr, u16> = BTreeMap::new();
        for (host, port, weight) in servers {
            let ip = match host.parse() {
                Ok(ip) => Some(ip),
                // Others must not wait for names that do not answer.
                Err(_) if began.elapsed() > LOOKING_UP => names.get(&host).and_then(|(ip, _)| *ip),
                Err(_) => address(names, &host).await,
            };
            if let Some(ip) = ip {
                reached.insert(SocketAddr::new(ip, port), weight);
            }
        }
        text.push_str(&block(&name, &reached));
    }
    text
}

/// Host, port and weight of those that are not critical.
fn servers(catalog: &Catalog, name: &str) -> Vec<(String, u16, u16)> {
    let found = select::instances(catalog, name, &Wanted::default()).into_iter();
    let server = |instance: select::Instance<'_>| {
        let record = &instance.service.record;
        let weight = match instance.status() {
            CheckStatus::Passing => record.weights.passing,
            CheckStatus::Warning => record.weights.warning,
            CheckStatus::Critical => 0,
        };
        (record.port > 0 && weight > 0).then(|| (instance.address().to_owned(), record.port, weight))
    };
    found.filter_map(server).take(MAX_INSTANCES).collect()
}

fn block(name: &str, servers: &BTreeMap<SocketAddr, u16>) -> String {
    let mut text = format!("upstream {name} {{\n");
    for (address, weight) in servers {
        // Ignored: writing to memory does not fail.
        let _ = writeln!(text, "    server {address} weight={weight};");
    }
    if servers.is_empty() {
        // nginx refuses a block without any, and answers 502 for one that is down.
        text.push_str("    server 127.0.0.1:9 down;\n");
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::block;

    #[test]
    fn a_block_has_each_server_with_its_weight_and_is_never_empty() {
        let servers = [("10.0.0.5:80".parse().unwrap(), 3), ("[::1]:81".parse().unwrap(), 1)].into();
        let want = "upstream orders {\n    server 10.0.0.5:80 weight=3;\n    server [::1]:81 weight=1;\n}\n";
        assert_eq!(block("orders", &servers), want);
        assert_eq!(block("none", &[].into()), "upstream none {\n    server 127.0.0.1:9 down;\n}\n");
    }
}
