//! Several destinations of one route: which of them takes a request. After the route step of the request walk, before
//! guards and balance. Deliberately absent: how turns and keys are worked out (`traffic::weights`), and another destination
//! for a request whose own has no instance.

use std::sync::Arc;

use model::ServiceName;
use traffic::weights::{by_key, key_of};
use traffic::{Tally, Turns};

use super::{Destination, Target};
use crate::http1::RequestHead;
use crate::service::Service;

/// Destinations that share a route's requests.
#[derive(Clone, Debug)]
pub struct Split {
    /// At least one, at most 256.
    pub parts: Vec<Part>,
    /// By what a request is told from others; by turns alone when absent.
    pub sticky: Option<Sticky>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where it leads.
    pub target: Target,
    /// Its share beside the others'.
    pub weight: u32,
    /// Where its requests are counted, if somebody asks.
    pub tally: Option<Arc<Tally>>,
}

/// A value that a client brings again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// Of this header field.
    Header(String),
    /// Of this cookie.
    Cookie(String),
}

#[derive(Debug)]
pub(crate) struct CompiledSplit {
    pub(crate) parts: Vec<Destination>,
    /// Of each part, its own key and its weight.
    shares: Vec<(u64, u32)>,
    turns: Turns,
    sticky: Option<Sticky>,
}

impl CompiledSplit {
    pub(crate) fn of(split: Split, mut service: impl FnMut(&ServiceName) -> Arc<Service>) -> Self {
        let weights: Vec<u32> = split.parts.iter().map(|part| part.weight).collect();
        let own = |part: &Part| {
            let version = part.target.version.as_ref().map_or("", |version| version.as_str());
            (key_of(format!("{}/{version}", part.target.service).as_bytes()), part.weight)
        };
        Self {
            shares: split.parts.iter().map(own).collect(),
            turns: Turns::of(&weights),
            sticky: split.sticky,
            parts: split
                .parts
                .into_iter()
                .map(|part| Destination {
                    service: service(&part.target.service),
                    version: part.target.version,
                    tally: part.tally,
                })
                .collect(),
        }
    }

    pub(crate) fn choose(&self, head: &RequestHead) -> usize {
        match self.sticky.as_ref().and_then(|sticky| sticky.value(head)) {
            Some(value) => by_key(self.shares.iter().copied(), key_of(value)),
            None => self.turns.next(),
        }
    }
}

impl Sticky {
    /// What a request brings; nothing where that is empty.
    fn value<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let name = match self {
            Self::Header(name) => name.as_str(),
            Self::Cookie(_) => "cookie",
        };
        let bytes = head.bytes();
        let fields = head.fields.headers.iter();
        let mut values = fields
            .filter(|field| field.name.get(bytes).eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.get(bytes));
        let value = match self {
            Self::Header(_) => values.next(),
            Self::Cookie(name) => values.find_map(|value| cookie(value, name.as_bytes())),
        };
        value.filter(|value| !value.is_empty())
    }
}

/// The value of one cookie in a `Cookie` field (RFC 6265, 4.2.1).
fn cookie<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    field.split(|&byte| byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let at = memchr::memchr(b'=', pair)?;
        (&pair[..at] == name).then(|| pair[at + 1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::{Sticky, cookie};
    use crate::http1::{Limits, RequestHead};

    #[test]
    fn cookies_are_told_by_their_whole_name() {
        for (field, want) in [
            ("a=1", Some("1")),
            ("b=2; a=1; c=3", Some("1")),
            ("aa=2;a=x=y", Some("x=y")),
            ("ba=2", None),
            ("a", None),
            ("A=1", None),
        ] {
            assert_eq!(cookie(field.as_bytes(), b"a"), want.map(str::as_bytes), "{field}");
        }
    }

    #[test]
    fn a_request_without_the_value_has_none() {
        let mut head = RequestHead::default();
        let text = "GET / HTTP/1.1\r\nHost: h\r\nX-USER: bob\r\nX-Empty:\r\nCookie: s=1\r\nCookie: t=2\r\n\r\n";
        head.parse(text.as_bytes(), &Limits::default()).unwrap();
        for (sticky, want) in [
            (Sticky::Header("x-user".into()), Some("bob")),
            (Sticky::Header("x-empty".into()), None),
            (Sticky::Header("x-none".into()), None),
            (Sticky::Cookie("t".into()), Some("2")),
            (Sticky::Cookie("u".into()), None),
        ] {
            assert_eq!(sticky.value(&head), want.map(str::as_bytes), "{sticky:?}");
        }
    }
}
