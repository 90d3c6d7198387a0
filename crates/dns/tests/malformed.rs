//! Whatever comes in a datagram gets a well-formed answer or none.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use discovery::Catalog;
use dns::{Transport, Zone, respond};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::{any, prop, proptest};

fn zone() -> Zone {
    Zone { domain: "consul".into(), datacenter: "local".into(), node: "n1".into(), forwards: false }
}

fn answer(bytes: &[u8], transport: Transport) -> Option<Message> {
    let catalog = Catalog::default();
    let answer = respond(&zone(), &catalog, 1, bytes, transport, 7)?;
    Some(Message::from_vec(&answer).unwrap())
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Some(answer) = answer(&bytes, transport) {
                assert_eq!(answer.metadata.id, u16::from_be_bytes([bytes[0], bytes[1]]));
            }
        }
    }

    #[test]
    fn a_question_with_any_byte_changed(at in 0_usize..40, byte in any::<u8>()) {
        let mut bytes = question("a.web.service.consul.");
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = answer(&bytes, Transport::Udp);
    }
}

#[test]
fn what_is_no_question_gets_no_answer() {
    let mut response = question("web.service.consul.");
    response[2] |= 0x80;
    assert!(answer(&response, Transport::Udp).is_none(), "two servers must not answer each other for ever");
    assert!(answer(&[0; 11], Transport::Udp).is_none());
    let half = &question("web.service.consul.")[..20];
    assert_eq!(answer(half, Transport::Udp).unwrap().metadata.response_code, ResponseCode::FormErr);
    assert_eq!(
        answer(&question("example.com."), Transport::Udp).unwrap().metadata.response_code,
        ResponseCode::Refused
    );
}
