//! A rate limit with its clock, and what a request's key is. Deliberately absent: the decision (`traffic::limit`).

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use traffic::{Decision, LimitPolicy, Limiter};

use super::Numbers;
use crate::connection::Client;
use crate::http1::Kind;

/// A rate, and for whom it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The rate.
    pub policy: LimitPolicy,
    /// What has the rate for itself; everybody together when absent. Must be there if and only if `policy.keys` is.
    pub key: Option<LimitKey>,
}

/// What of a request has a rate for itself. Requests without it share one.
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

/// A rate limit at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitView {
    /// Requests a second.
    pub qps: u32,
    /// Keys at work, and how many may be before any of them is forgotten. Never more than twice that many are at work.
    pub keys: Option<(usize, usize)>,
    /// Keys that lost what was known of them to others.
    pub displaced: u64,
    /// Requests refused since the limit began.
    pub refused: u64,
}

/// One service's limit, shared by all workers.
#[derive(Debug)]
pub(super) struct Limit {
    told: RateLimit,
    limiter: Limiter,
    begun: Instant,
    /// Of a seed that no client knows.
    hasher: RandomState,
}

impl Limit {
    pub(super) fn new(told: RateLimit) -> Self {
        Self { limiter: Limiter::new(&told.policy), told, begun: Instant::now(), hasher: RandomState::new() }
    }

    pub(super) fn is(&self, told: &RateLimit) -> bool {
        self.told == *told
    }

    pub(super) fn qps(&self) -> u32 {
        self.told.policy.qps
    }

    pub(super) fn ask<S>(&self, client: &Client<S>, now: Instant) -> Decision {
        let hash = self.told.key.as_ref().map_or(0, |key| self.hasher.hash_one(key.of(client)));
        self.limiter.ask(hash, self.since(now))
    }

    /// A second after the begin at the least: a bucket that was never used is at rest.
    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begun) + Duration::from_secs(1)
    }

    pub(super) fn view(&self, numbers: &Numbers) -> LimitView {
        let now = u64::try_from(self.since(Instant::now()).as_nanos()).unwrap_or(u64::MAX);
        let keys = self.limiter.keys();
        LimitView {
            qps: self.qps(),
            keys: keys.map(|keys| (keys.at_work(now), keys.room())),
            displaced: keys.map_or(0, traffic::Keys::displaced),
            refused: numbers.limited[2].load(Ordering::Relaxed),
        }
    }
}

impl LimitKey {
    fn of<'c, S>(&self, client: &'c Client<S>) -> &'c [u8] {
        let head = &client.head;
        let fields = || head.fields.headers.iter().map(|field| (field, field.value.get(head.bytes())));
        match self {
            Self::Header(name) => {
                let named =
                    |field: &crate::http1::Header| field.name.get(head.bytes()).eq_ignore_ascii_case(name.as_bytes());
                fields().find(|(field, _)| named(field)).map_or(b"", |(_, value)| value)
            }
            Self::Query(name) => query(head.path_and_query(), name.as_bytes()),
            Self::Address => {
                let said = fields().filter(|(field, _)| client.origin.trusted && field.kind == Kind::ForwardedFor);
                let last = said.last().and_then(|(_, list)| list.rsplit(|&byte| byte == b',').next());
                let last = last.map(<[u8]>::trim_ascii).filter(|address| !address.is_empty());
                last.unwrap_or(client.origin.peer_text.as_bytes())
            }
            Self::PathSegment(number) => head.path().split(|&byte| byte == b'/').nth(*number).unwrap_or_default(),
        }
    }
}

fn query<'t>(target: &'t [u8], name: &[u8]) -> &'t [u8] {
    let Some(begin) = memchr::memchr(b'?', target) else { return b"" };
    let value = |pair: &'t [u8]| match memchr::memchr(b'=', pair) {
        Some(equals) if &pair[..equals] == name => Some(&pair[equals + 1..]),
        None if pair == name => Some(&b""[..]),
        _ => None,
    };
    target[begin + 1..].split(|&byte| byte == b'&').find_map(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::query;

    #[test]
    fn queries() {
        for (target, want) in
            [("/a?x=1&user=7&user=8", "7"), ("/a?user", ""), ("/a?xuser=1", ""), ("/a", ""), ("/?user=a=b", "a=b")]
        {
            assert_eq!(query(target.as_bytes(), b"user"), want.as_bytes(), "{target}");
        }
    }
}
