//! What of a request has a rate, or places, for itself, and who has another measure than everybody.
//! Deliberately absent: what is made of it (`limit.rs`, `at_once.rs`).

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use crate::connection::Client;
use crate::http1::{Header, Kind};

/// What of a request has a rate for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// The first header field of this name.
    Header(String),
    /// The first query parameter of this name, as it is written.
    Query(String),
    /// The client's address; behind a trusted proxy, the one that proxy saw.
    Address,
    /// This segment of the path, from 1.
    PathSegment(usize),
}

/// What a key may have that is an exception (Sentinel's `paramFlowItemList`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance<T> {
    /// So much; nothing at all is allowed, too.
    Measure(T),
    /// Whatever it wants.
    Unlimited,
}

/// By which key a rule is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyed<T> {
    /// What has the measure for itself; everybody together when absent.
    pub key: Option<LimitKey>,
    /// Keys with another measure.
    pub exceptions: BTreeMap<String, Allowance<T>>,
    /// Keys that are no exception pass.
    pub only_exceptions: bool,
    /// Requests without the key pass; else they share one measure.
    pub without_passes: bool,
}

/// A rule's keys ready for use.
#[derive(Debug)]
pub(super) struct Compiled<T> {
    key: Option<LimitKey>,
    exceptions: HashMap<Box<[u8]>, Allowance<T>, RandomState>,
    only_exceptions: bool,
    without_passes: bool,
    /// Of a seed that no client knows.
    hasher: RandomState,
}

/// Whose measure a request is judged by.
pub(super) enum Judged<'c, T> {
    /// Nobody's: it passes.
    Free,
    /// That of the key with this hash; an exception's where there is one.
    By(u64, Option<&'c T>),
}

impl<T> Compiled<T> {
    pub(super) fn of<U: Copy>(keyed: &Keyed<U>, measure: impl Fn(U) -> T) -> Self {
        let compiled = |(key, allowance): (&String, &Allowance<U>)| {
            let allowance = match allowance {
                Allowance::Measure(written) => Allowance::Measure(measure(*written)),
                Allowance::Unlimited => Allowance::Unlimited,
            };
            (key.as_bytes().into(), allowance)
        };
        Self {
            key: keyed.key.clone(),
            exceptions: keyed.exceptions.iter().map(compiled).collect(),
            only_exceptions: keyed.only_exceptions,
            without_passes: keyed.without_passes,
            hasher: RandomState::new(),
        }
    }

    pub(super) fn judge<S>(&self, client: &Client<S>) -> Judged<'_, T> {
        let Some(key) = &self.key else { return Judged::By(0, None) };
        let value = key.of(client);
        if value.is_none() && self.without_passes {
            return Judged::Free;
        }
        let value = value.unwrap_or_default();
        let exception = if self.exceptions.is_empty() { None } else { self.exceptions.get(value) };
        match exception {
            Some(Allowance::Unlimited) => Judged::Free,
            Some(Allowance::Measure(measure)) => Judged::By(self.hasher.hash_one(value), Some(measure)),
            None if self.only_exceptions => Judged::Free,
            None => Judged::By(self.hasher.hash_one(value), None),
        }
    }
}

impl LimitKey {
    /// The key of a request, if it has one. An empty one is none.
    fn of<'c, S>(&self, client: &'c Client<S>) -> Option<&'c [u8]> {
        let head = &client.head;
        let fields = || head.fields.headers.iter().map(|field| (field, field.value.get(head.bytes())));
        let found = match self {
            Self::Header(name) => {
                let named = |field: &Header| field.name.get(head.bytes()).eq_ignore_ascii_case(name.as_bytes());
                fields().find(|(field, _)| named(field)).map(|(_, value)| value)
            }
            Self::Query(name) => query(head.path_and_query(), name.as_bytes()),
            Self::Address => {
                let said = fields().filter(|(field, _)| client.origin.trusted && field.kind == Kind::ForwardedFor);
                let last = said.last().and_then(|(_, list)| list.rsplit(|&byte| byte == b',').next());
                let last = last.map(<[u8]>::trim_ascii).filter(|address| !address.is_empty());
                Some(last.unwrap_or(client.origin.peer_text.as_bytes()))
            }
            Self::PathSegment(number) => head.path().split(|&byte| byte == b'/').nth(*number),
        };
        found.filter(|value| !value.is_empty())
    }
}

fn query<'t>(target: &'t [u8], name: &[u8]) -> Option<&'t [u8]> {
    let begin = memchr::memchr(b'?', target)?;
    let value = |pair: &'t [u8]| match memchr::memchr(b'=', pair) {
        Some(equals) if &pair[..equals] == name => Some(&pair[equals + 1..]),
        None if pair == name => Some(&b""[..]),
        _ => None,
    };
    target[begin + 1..].split(|&byte| byte == b'&').find_map(value)
}

#[cfg(test)]
mod tests {
    use super::query;

    #[test]
    fn queries() {
        for (target, want) in [
            ("/a?x=1&user=7&user=8", Some("7")),
            ("/a?user", Some("")),
            ("/a?xuser=1", None),
            ("/a", None),
            ("/?user=a=b", Some("a=b")),
        ] {
            assert_eq!(query(target.as_bytes(), b"user"), want.map(str::as_bytes), "{target}");
        }
    }
}
