//! What a name asks for: Consul's forms. Pure; all in lower case.

use crate::Zone;

/// What a name below the domain means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The domain itself.
    Apex,
    /// Its name server.
    NameServer,
    /// `[TAG.]NAME.service`, or `_NAME._TAG.service` as RFC 2782 has it.
    Service {
        /// The service.
        name: String,
        /// Only instances with this tag.
        tag: Option<String>,
    },
    /// `NAME.node`.
    Node(String),
    /// `HEX.addr`: an address as a name.
    Address(std::net::IpAddr),
    /// `NAME.query`: a prepared query.
    Query(String),
    /// Who has an address, by its name below `in-addr.arpa` or `ip6.arpa`.
    Reverse(std::net::IpAddr),
    /// Nothing that there could be.
    Nothing,
}

/// Reads the labels of a name; `None` if it is not below the domain, and no address.
pub fn read(zone: &Zone, labels: &[String]) -> Option<Asked> {
    if let Some(ip) = reverse(labels) {
        return Some(Asked::Reverse(ip));
    }
    let domain: Vec<&str> = zone.domain.split('.').collect();
    let own = labels.len().checked_sub(domain.len())?;
    if !labels[own..].iter().map(String::as_str).eq(domain.iter().copied()) {
        return None;
    }
    let labels = &labels[..own];
    let Some(last) = labels.last() else { return Some(Asked::Apex) };
    // A site may stand behind the kind.
    let is_kind = |label: &String| matches!(label.as_str(), "service" | "node" | "addr" | "query");
    let labels = match labels {
        [before @ .., site] if !is_kind(site) && before.last().is_some_and(is_kind) => {
            if !site.eq_ignore_ascii_case(&zone.datacenter) {
                return Some(Asked::Nothing);
            }
            before
        }
        all => all,
    };
    if labels.len() == 1 {
        return Some(if last == "ns" { Asked::NameServer } else { Asked::Nothing });
    }
    let Some((kind, names)) = labels.split_last() else { return Some(Asked::Nothing) };
    let joined = || names.join(".");
    Some(match (kind.as_str(), names) {
        ("service", [name]) => Asked::Service { name: name.clone(), tag: None },
        ("service", [name, tag]) if name.starts_with('_') && tag.starts_with('_') => {
            let tag = tag[1..].to_owned();
            // Protocols, which are no tags.
            let tag = Some(tag).filter(|tag| tag != "tcp" && tag != "udp");
            Asked::Service { name: name[1..].to_owned(), tag }
        }
        ("service", [tags @ .., name]) => Asked::Service { name: name.clone(), tag: Some(tags.join(".")) },
        ("node", _) => Asked::Node(joined()),
        ("query", _) => Asked::Query(joined()),
        ("addr", [hex]) => address(hex).map_or(Asked::Nothing, Asked::Address),
        _ => Asked::Nothing,
    })
}

/// `1.0.0.127.in-addr.arpa`, or 32 digits before `ip6.arpa`.
fn reverse(labels: &[String]) -> Option<std::net::IpAddr> {
    let [parts @ .., family, arpa] = labels else { return None };
    match (family.as_str(), arpa.as_str(), parts.len()) {
        ("in-addr", "arpa", 4) => {
            let octets: Vec<u8> = parts.iter().rev().map(|part| part.parse().ok()).collect::<Option<_>>()?;
            Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into())
        }
        ("ip6", "arpa", 32) if parts.iter().all(|part| part.len() == 1) => {
            let digits: String = parts.iter().rev().map(String::as_str).collect();
            u128::from_str_radix(&digits, 16).ok().map(|bits| std::net::Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

/// `7f000001`, or 32 digits.
fn address(hex: &str) -> Option<std::net::IpAddr> {
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        8 => u32::from_str_radix(hex, 16).ok().map(|bits| std::net::Ipv4Addr::from_bits(bits).into()),
        32 => u128::from_str_radix(hex, 16).ok().map(|bits| std::net::Ipv6Addr::from_bits(bits).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, read};
    use crate::Zone;

    fn check(name: &str, expected: Option<Asked>) {
        let zone = Zone { domain: "consul".into(), datacenter: "local".into(), node: "n1".into(), forwards: false };
        let labels: Vec<String> = name.split('.').map(str::to_owned).collect();
        assert_eq!(read(&zone, &labels), expected, "{name}");
    }

    fn service(name: &str, tag: Option<&str>) -> Option<Asked> {
        Some(Asked::Service { name: name.into(), tag: tag.map(str::to_owned) })
    }

    #[test]
    fn every_form_of_a_name() {
        check("web.service.consul", service("web", None));
        check("web.service.local.consul", service("web", None));
        check("v1.web.service.consul", service("web", Some("v1")));
        check("a.b.web.service.consul", service("web", Some("a.b")));
        check("_web._v1.service.consul", service("web", Some("v1")));
        check("_web._tcp.service.consul", service("web", None));
        check("web.service.mars.consul", Some(Asked::Nothing));
        check("n1.node.consul", Some(Asked::Node("n1".into())));
        check("a.b.node.local.consul", Some(Asked::Node("a.b".into())));
        check("7f000001.addr.local.consul", Some(Asked::Address([127, 0, 0, 1].into())));
        check("7f00000g.addr.consul", Some(Asked::Nothing));
        check("newest.query.consul", Some(Asked::Query("newest".into())));
        check("service.consul", Some(Asked::Nothing));
        check("ns.consul", Some(Asked::NameServer));
        check("consul", Some(Asked::Apex));
        check("web.consul", Some(Asked::Nothing));
        check("a.web.consul", Some(Asked::Nothing));
        check("1.0.0.127.in-addr.arpa", Some(Asked::Reverse([127, 0, 0, 1].into())));
        check(&format!("1.{}ip6.arpa", "0.".repeat(31)), Some(Asked::Reverse(std::net::Ipv6Addr::LOCALHOST.into())));
        check("256.0.0.127.in-addr.arpa", None);
        check("0.0.127.in-addr.arpa", None);
        check("example.com", None);
        check("xconsul", None);
    }
}
