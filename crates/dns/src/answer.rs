//! The answer to a question, as a function of the catalog. What fails is left out, the rest is in random order; a UDP answer
//! says when it is not whole, and TCP has it whole. Who does not exist is NXDOMAIN, who has nothing of the type asked for is
//! an empty answer; both with the zone's SOA.

use std::net::IpAddr;

use discovery::acl::Identity;
use discovery::record::CheckStatus;
use discovery::select::{self, Instance, Wanted};
use discovery::{Catalog, prepared};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::Zone;
use crate::asked::{Asked, read};

/// Answers without EDNS over UDP at most; Consul's default.
const UDP_ANSWERS: usize = 3;
/// Without EDNS, an answer over UDP has so many bytes at most.
const PLAIN_UDP: usize = 512;
/// And with it, whatever the client would take: larger ones are lost on the way.
const MAX_UDP: usize = 4096;
/// Instances of an answer at most, also over TCP.
const MAX_ANSWERS: usize = 1000;
/// How long an answer may be kept, in seconds; Consul's default: not at all.
const TTL: u32 = 0;

/// How a question came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// Answers the bytes of a question; `None` for what is no question at all.
pub fn respond(
    zone: &Zone,
    catalog: &Catalog,
    serial: u64,
    bytes: &[u8],
    transport: Transport,
    chance: u64,
) -> Option<Vec<u8>> {
    respond_to(zone, catalog, serial, bytes, transport, (chance, None))
}

/// The same for somebody who may not see everything; what they may not see is not there.
pub fn respond_to(
    zone: &Zone,
    catalog: &Catalog,
    serial: u64,
    bytes: &[u8],
    transport: Transport,
    (chance, who): (u64, Option<&Identity>),
) -> Option<Vec<u8>> {
    let query = match Message::from_vec(bytes) {
        Ok(query) => query,
        Err(_) => return malformed(bytes),
    };
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = zone.forwards;
    response.add_queries(query.queries.iter().cloned());
    let limit = match (&query.edns, transport) {
        (_, Transport::Tcp) => usize::from(u16::MAX),
        (None, Transport::Udp) => PLAIN_UDP,
        (Some(edns), Transport::Udp) => usize::from(edns.max_payload()).clamp(PLAIN_UDP, MAX_UDP),
    };
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP as u16);
        response.set_edns(edns);
        if asked.version() > 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return response.to_vec().ok();
        }
    }
    if query.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return response.to_vec().ok();
    }
    let [question] = query.queries.as_slice() else {
        response.metadata.response_code = ResponseCode::FormErr;
        return response.to_vec().ok();
    };
    let labels: Vec<String> =
        question.name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
    let asked = read(zone, &labels);
    let (Some(asked), true) = (asked, matches!(question.query_class, DNSClass::IN | DNSClass::ANY)) else {
        response.metadata.response_code = ResponseCode::Refused;
        return response.to_vec().ok();
    };
    response.metadata.authoritative = true;
    let mut answering =
        Answering { zone, catalog, who, name: question.name.clone(), kind: question.query_type, chance, serial };
    answering.fill(&mut response, asked);
    if transport == Transport::Udp && query.edns.is_none() && response.answers.len() > UDP_ANSWERS {
        response.answers.truncate(UDP_ANSWERS);
        response.metadata.truncation = true;
    }
    fitting(response, limit)
}

/// Whether an answer of ours says that the question is for others, who may be asked.
pub(crate) fn is_for_others(zone: &Zone, question: &[u8], answer: &[u8]) -> bool {
    let flags = |bytes: &[u8], place: usize| bytes.get(place).copied().unwrap_or(0);
    let is_desired = flags(question, 2) & 1 != 0;
    zone.forwards && is_desired && flags(answer, 3) & 0x0f == ResponseCode::Refused.low()
}

/// As far as its header can be read, it gets an answer.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = bytes.get(..12)?;
    let is_query = head[2] & 0x80 == 0;
    let id = u16::from_be_bytes([head[0], head[1]]);
    is_query.then(|| Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()).flatten()
}

/// What fits into so many bytes; what does not is said to be missing.
fn fitting(mut response: Message, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = response.to_vec().ok()?;
    if bytes.len() > limit && !response.additionals.is_empty() {
        // Helpful, and nothing that would be missing.
        response.additionals.clear();
        bytes = response.to_vec().ok()?;
    }
    while bytes.len() > limit && !response.answers.is_empty() {
        let keep = response.answers.len() * limit / bytes.len();
        response.answers.truncate(keep.min(response.answers.len() - 1));
        response.metadata.truncation = true;
        bytes = response.to_vec().ok()?;
    }
    Some(bytes)
}

struct Answering<'a> {
    zone: &'a Zone,
    catalog: &'a Catalog,
    who: Option<&'a Identity>,
    name: Name,
    kind: RecordType,
    chance: u64,
    serial: u64,
}

impl Answering<'_> {
    fn fill(&mut self, response: &mut Message, asked: Asked) {
        let there = match asked {
            Asked::Apex => self.apex(response),
            Asked::NameServer => {
                let address = self.node_address(&self.zone.node);
                address.is_some_and(|address| self.address(response, self.name.clone(), &address))
            }
            Asked::Address(ip) => self.address(response, self.name.clone(), &ip.to_string()),
            Asked::Node(name) => self.node(response, &name),
            Asked::Service { name, tag } => {
                let tags = tag.into_iter().collect();
                let known = self.catalog.find_name(&name).map(str::to_owned);
                let wanted = Wanted { tags, ..Wanted::default() };
                let found = known.map(|name| select::instances(self.catalog, &name, &wanted)).unwrap_or_default();
                self.instances(response, found, TTL)
            }
            Asked::Query(name) => match prepared::find(self.catalog, &name) {
                None => false,
                Some((_, query)) => {
                    let near = match query.record.near.as_str() {
                        "" => None,
                        "_agent" => Some(self.zone.node.as_str()),
                        near => Some(near),
                    };
                    let ttl = discovery::duration::parse(&query.record.dns_ttl)
                        .map_or(TTL, |ttl| ttl.as_secs().min(86_400) as u32);
                    let found = prepared::instances(self.catalog, &query.record, near);
                    self.instances(response, found, ttl)
                }
            },
            Asked::Reverse(ip) => {
                let known = self.reverse(response, ip);
                if !known && self.zone.forwards {
                    response.metadata.response_code = ResponseCode::Refused;
                    response.metadata.authoritative = false;
                    return;
                }
                known
            }
            Asked::Nothing => false,
        };
        if !there {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        if response.answers.is_empty() {
            let soa = self.soa();
            response.add_authorities(soa);
        }
    }

    fn sees_node(&self, node: &str) -> bool {
        self.who.is_none_or(|who| who.sees_node(node))
    }

    fn sees_service(&self, service: &str) -> bool {
        self.who.is_none_or(|who| who.sees_service(service))
    }

    fn wants(&self, kind: RecordType) -> bool {
        self.kind == kind || self.kind == RecordType::ANY
    }

    fn below(&self, name: &str) -> Option<Name> {
        Name::from_ascii(format!("{name}.{}.", self.zone.domain)).ok()
    }

    fn apex_name(&self) -> Option<Name> {
        Name::from_ascii(format!("{}.", self.zone.domain)).ok()
    }

    fn soa(&self) -> Option<Record> {
        // It grows with every change; 32 bits go round, which serials may.
        let serial = (self.serial & u64::from(u32::MAX)) as u32;
        let soa = SOA::new(self.below("ns")?, self.below("hostmaster")?, serial, 3600, 600, 86_400, 0);
        Some(Record::from_rdata(self.apex_name()?, TTL, RData::SOA(soa)))
    }

    fn apex(&self, response: &mut Message) -> bool {
        if self.wants(RecordType::SOA) {
            response.add_answers(self.soa());
        }
        if self.wants(RecordType::NS)
            && let Some(ns) = self.below("ns")
        {
            response.add_answer(Record::from_rdata(self.name.clone(), TTL, RData::NS(NS(ns.clone()))));
            if let Some(address) = self.node_address(&self.zone.node) {
                response.add_additionals(ip_record(ns, &address, TTL));
            }
        }
        true
    }

    fn node_address(&self, name: &str) -> Option<String> {
        self.catalog.node(name).map(|(node, _)| node.record.address.clone())
    }

    /// One address, of the type asked for.
    fn address(&self, response: &mut Message, name: Name, address: &str) -> bool {
        if let Some(record) = ip_record(name, address, TTL)
            && self.wants(record.record_type())
        {
            response.add_answer(record);
        }
        true
    }

    fn node(&self, response: &mut Message, name: &str) -> bool {
        let known = self.catalog.find_node(name).filter(|known| self.sees_node(known));
        let Some(known) = known else { return false };
        let Some((node, _)) = self.catalog.node(known) else { return false };
        match ip_record(self.name.clone(), &node.record.address, TTL) {
            Some(record) if self.wants(record.record_type()) => drop(response.add_answer(record)),
            Some(_) => {}
            None => {
                response.add_answers(cname(self.name.clone(), &node.record.address, TTL)).metadata.authoritative = true
            }
        }
        if self.wants(RecordType::TXT) {
            let said = node.record.meta.iter().map(|(key, value)| format!("{key}={value}"));
            for text in said.filter(|text| text.len() <= 255) {
                response.add_answer(Record::from_rdata(self.name.clone(), TTL, RData::TXT(TXT::new(vec![text]))));
            }
        }
        true
    }

    /// The names of who has this address: machines, else services, as Consul tells them.
    fn reverse(&self, response: &mut Message, ip: IpAddr) -> bool {
        let is = |address: &str| address.parse() == Ok(ip);
        let site = &self.zone.datacenter;
        let seen = || self.catalog.nodes().filter(|(name, ..)| self.sees_node(name));
        let nodes = seen().filter(|(_, node, _)| is(&node.record.address));
        let mut names: Vec<Name> = nodes.filter_map(|(name, ..)| self.below(&format!("{name}.node.{site}"))).collect();
        if names.is_empty() {
            let services = seen().flat_map(|(_, _, entry)| entry.services.values());
            let of_it = services.filter(|service| is(&service.record.address));
            let of_it = of_it.filter(|service| self.sees_service(&service.record.service));
            names = of_it.filter_map(|service| self.below(&format!("{}.service", service.record.service))).collect();
        }
        names.sort_unstable();
        names.dedup();
        names.truncate(MAX_ANSWERS);
        let there = !names.is_empty();
        if self.wants(RecordType::PTR) {
            response.add_answers(
                names.into_iter().map(|name| Record::from_rdata(self.name.clone(), TTL, RData::PTR(PTR(name)))),
            );
        }
        there
    }

    /// Those that do not fail. Without any, the name is as good as none: clients then go on to the next.
    fn instances(&mut self, response: &mut Message, mut found: Vec<Instance<'_>>, ttl: u32) -> bool {
        found.retain(|instance| {
            let seen = self.sees_node(instance.node_name) && self.sees_service(&instance.service.record.service);
            seen && instance.status() != CheckStatus::Critical
        });
        self.shuffle(&mut found);
        let there = !found.is_empty();
        found.truncate(MAX_ANSWERS);
        if self.wants(RecordType::A) || self.wants(RecordType::AAAA) {
            let mut seen = std::collections::BTreeSet::new();
            for instance in found.iter().filter(|instance| seen.insert(instance.address().to_owned())) {
                match ip_record(self.name.clone(), instance.address(), ttl) {
                    Some(record) if self.wants(record.record_type()) => drop(response.add_answer(record)),
                    Some(_) => {}
                    // Only one other name may stand for a name.
                    None if response.answers.is_empty() => {
                        response.add_answers(cname(self.name.clone(), instance.address(), ttl));
                    }
                    None => {}
                }
            }
        }
        if self.kind == RecordType::SRV {
            for instance in &found {
                self.srv(response, instance, ttl);
            }
        }
        there
    }

    fn srv(&self, response: &mut Message, instance: &Instance<'_>, ttl: u32) {
        let service = &instance.service.record;
        let weight =
            if instance.status() == CheckStatus::Warning { service.weights.warning } else { service.weights.passing };
        let site = &self.zone.datacenter;
        let target = match (service.address.is_empty(), service.address.parse::<IpAddr>()) {
            (true, _) => self.below(&format!("{}.node.{site}", instance.node_name)),
            (false, Ok(ip)) => self.below(&format!("{}.addr.{site}", hex(ip))),
            (false, Err(_)) => absolute(&service.address),
        };
        let Some(target) = target else { return };
        let srv = SRV::new(1, weight, service.port, target.clone());
        response.add_answer(Record::from_rdata(self.name.clone(), ttl, RData::SRV(srv)));
        response.add_additionals(ip_record(target, instance.address(), ttl));
    }

    /// In another order for every question (Fisher-Yates, by SplitMix64).
    fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.chance;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            list.swap(last, ((mixed ^ (mixed >> 31)) % (last as u64 + 1)) as usize);
        }
    }
}

fn ip_record(name: Name, address: &str, ttl: u32) -> Option<Record> {
    let data = match address.parse().ok()? {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Some(Record::from_rdata(name, ttl, data))
}

fn absolute(host: &str) -> Option<Name> {
    Name::from_ascii(format!("{}.", host.trim_end_matches('.'))).ok()
}

fn cname(name: Name, host: &str, ttl: u32) -> Option<Record> {
    Some(Record::from_rdata(name, ttl, RData::CNAME(CNAME(absolute(host)?))))
}

fn hex(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{:08x}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:032x}", ip.to_bits()),
    }
}
