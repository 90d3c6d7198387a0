//! A question of any bytes: there is an answer that others can read, about the same question and no longer than may be, or
//! none; never a panic.

use std::sync::OnceLock;

use ::dns::{Transport, Zone, respond};
use discovery::Catalog;
use discovery::catalog::Held;
use discovery::key::About;
use hickory_proto::op::{Message, MessageType};
use serde_json::{Value, json};

/// What a question without EDNS gets over UDP at most, and any.
const PLAIN: usize = 512;
const LARGEST: usize = 4096;

fn catalog() -> &'static Catalog {
    static CATALOG: OnceLock<Catalog> = OnceLock::new();
    CATALOG.get_or_init(|| {
        let mut catalog = Catalog::default();
        let mut put = |about: About, record: Value| {
            let text = record.to_string();
            let held = Held { value: text.as_bytes(), create: 1, modify: 1 };
            catalog.apply(&about.key().unwrap(), Some(held), 1, &mut Vec::new());
        };
        let node = |address: &str| json!({ "address": address, "meta": { "rack": "a" } });
        put(About::Node("n1".into()), node("10.0.0.1"));
        put(About::Node("n2".into()), node("fd00::2"));
        put(About::Node("named".into()), node("host.example"));
        let many = (0..60).map(|n| (format!("web-{n}"), "web", format!("10.0.1.{n}"), vec!["v1"]));
        let odd = [("x", "x.y", "", vec!["a.b"]), ("host", "by-name", "other.example", vec![]), ("six", "six", "fd00::6", vec![])];
        let odd = odd.into_iter().map(|(id, name, address, tags)| (id.to_owned(), name, address.to_owned(), tags));
        // Names that no name of DNS can have.
        let strange = [("long", "l".repeat(200)), ("space", "a b\\\"".into()), ("empty", "..".into())];
        for (id, name, address, tags) in many.chain(odd) {
            put(About::Service("n1".into(), id), json!({ "service": name, "address": address, "port": 80, "tags": tags }));
        }
        for (id, name) in strange {
            put(About::Service("n2".into(), id.into()), json!({ "service": name, "address": name, "port": 1 }));
        }
        put(About::Query("q1".into()), json!({ "name": "newest", "service": "web", "tags": ["v1"], "dnsTtl": "5s" }));
        put(
            About::Query("q2".into()),
            json!({ "name": "geo-", "prefixTemplate": true, "templateRegexp": "^geo-(.*)-(.*)$", "service": "${match(1)}" }),
        );
        catalog
    })
}

/// The first byte says how it came; the rest is the question.
pub fn dns(bytes: &[u8]) {
    let Some((how, question)) = bytes.split_first() else { return };
    let transport = if how & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let zone = Zone { domain: "consul".into(), datacenter: "local".into(), node: "n1".into(), forwards: false };
    let Some(answer) = respond(&zone, catalog(), 7, question, transport, u64::from(*how)) else { return };
    let read = Message::from_vec(&answer).unwrap_or_else(|error| panic!("the answer cannot be read: {error}"));
    assert_eq!(read.metadata.message_type, MessageType::Response);
    assert_eq!(answer[..2], question[..2], "it is about another question");
    let asked = Message::from_vec(question);
    let most = match (&asked, transport) {
        (_, Transport::Tcp) => usize::from(u16::MAX),
        (Ok(asked), Transport::Udp) if asked.edns.is_some() => LARGEST,
        _ => PLAIN,
    };
    // A question is given back with its answer, however long it is.
    assert!(answer.len() <= most.max(question.len() + 128), "{} bytes, {most} at most", answer.len());
    if let Ok(asked) = asked {
        assert_eq!(read.queries.len(), asked.queries.len());
    }
}
