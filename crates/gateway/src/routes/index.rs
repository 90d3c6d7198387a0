//! The first route that matches, without a look at all of them.
//! Routes stand in buckets by what a request can be looked up by: its host, then its whole path or each of its
//! beginnings. A bucket only narrows: whether a route matches is always asked of the route itself, and the lowest
//! number wins, so the answer is that of a walk from the first to the last, even where two buckets' hashes are the same.
//! Deliberately absent: that walk, which is quicker for a few routes; the keys, which nobody needs once they are hashed.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use memchr::memchr_iter;

use super::{CompiledPath, CompiledRoute, HostMatch};

/// Longer hosts than DNS allows are not looked up; all routes are walked for them.
const LONGEST_HOST: usize = 255;
/// Prefixes of more slashes stand with those for any path.
const DEEPEST: usize = 63;
/// No link of a chain.
const NONE: u32 = u32::MAX;

/// Routes by host, then by path.
#[derive(Debug, Default)]
pub(super) struct Index {
    routes: u32,
    /// So that nobody outside can make all hosts or paths fall together.
    keys: RandomState,
    hosts: Hashed<Paths>,
    buckets: Hashed<Chain>,
    links: Vec<Link>,
    /// Those that name no host stand here.
    everywhere: u64,
    has_exact: bool,
    has_suffix: bool,
}

/// What is known of a host's routes before their paths are looked up.
#[derive(Debug, Default)]
struct Paths {
    /// For any path, and for those a regular expression says.
    any: Chain,
    has_exact: bool,
    /// Of each prefix's number of slashes the bit.
    depths: u64,
}

/// Numbers of routes, ascending: its first and last place in `links`.
#[derive(Clone, Copy, Debug)]
struct Chain {
    first: u32,
    last: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

#[derive(Debug)]
struct Link {
    number: u32,
    next: u32,
}

/// By a hash made elsewhere.
type Hashed<T> = HashMap<u64, T, BuildHasherDefault<AsIs>>;

#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Which of a host's or a path's buckets; part of what is hashed.
#[derive(Clone, Copy)]
enum Kind {
    Any = 0,
    Exact = 1,
    /// A host's suffix, a path's prefix.
    Part = 2,
}

impl Index {
    pub(super) fn of(routes: &[impl AsRef<CompiledRoute>]) -> Self {
        let mut index = Self::default();
        index.everywhere = index.hash(0, Kind::Any, b"");
        index.buckets.reserve(routes.len());
        index.links.reserve(routes.len());
        for route in routes {
            index.add(route.as_ref());
        }
        index
    }

    fn add(&mut self, route: &CompiledRoute) {
        if route.hosts.is_empty() {
            self.add_for(self.everywhere, route);
        }
        for host in &route.hosts {
            let (kind, name) = match host {
                HostMatch::Exact(name) => (Kind::Exact, name),
                HostMatch::Suffix(name) => (Kind::Part, name),
            };
            self.has_exact |= matches!(kind, Kind::Exact);
            self.has_suffix |= matches!(kind, Kind::Part);
            self.add_for(self.hash(0, kind, name.to_ascii_lowercase().as_bytes()), route);
        }
        self.routes = self.routes.checked_add(1).expect("routes fit in memory");
    }

    fn add_for(&mut self, host: u64, route: &CompiledRoute) {
        let number = self.routes;
        let mut any = route.matches.is_empty();
        for wanted in &route.matches {
            let (kind, path) = match &wanted.path {
                Some(CompiledPath::Exact(exact)) => (Kind::Exact, exact),
                Some(CompiledPath::Prefix(prefix)) if !prefix.is_empty() && slashes(prefix) <= DEEPEST => {
                    (Kind::Part, prefix)
                }
                _ => {
                    any = true;
                    continue;
                }
            };
            let key = self.hash(host, kind, path.as_bytes());
            let paths = self.hosts.entry(host).or_default();
            match kind {
                Kind::Exact => paths.has_exact = true,
                _ => paths.depths |= 1 << slashes(path),
            }
            self.buckets.entry(key).or_default().push(&mut self.links, number);
        }
        if any {
            self.hosts.entry(host).or_default().any.push(&mut self.links, number);
        }
    }

    /// The lowest number that `accepts`, which is asked of those alone that host and path allow.
    pub(super) fn first(&self, host: &[u8], path: &[u8], accepts: impl Fn(usize) -> bool) -> Option<usize> {
        if host.len() > LONGEST_HOST {
            return (0..self.routes as usize).find(|&number| accepts(number));
        }
        let mut best = self.routes;
        if self.has_exact || self.has_suffix {
            best = self.first_of_host(host, path, &accepts);
        }
        best = self.search(self.everywhere, path, best, &accepts);
        (best != self.routes).then_some(best as usize)
    }

    /// The same of those that name hosts, of which one is at most [`LONGEST_HOST`] long.
    fn first_of_host(&self, host: &[u8], path: &[u8], accepts: &impl Fn(usize) -> bool) -> u32 {
        let (mut lower, mut best) = ([0; LONGEST_HOST], self.routes);
        let Some(lower) = lower.get_mut(..host.len()) else { return best };
        lower.copy_from_slice(host);
        lower.make_ascii_lowercase();
        if self.has_exact {
            best = self.search(self.hash(0, Kind::Exact, lower), path, best, accepts);
        }
        if self.has_suffix {
            for dot in memchr_iter(b'.', lower).filter(|&dot| dot > 0) {
                best = self.search(self.hash(0, Kind::Part, &lower[dot + 1..]), path, best, accepts);
            }
        }
        best
    }

    /// The lowest number of a host's that accepts, if it is below `best`.
    fn search(&self, host: u64, path: &[u8], mut best: u32, accepts: &impl Fn(usize) -> bool) -> u32 {
        let Some(paths) = self.hosts.get(&host) else { return best };
        if paths.has_exact
            && let Some(chain) = self.buckets.get(&self.hash(host, Kind::Exact, path))
        {
            best = self.lowest(*chain, best, accepts);
        }
        if paths.depths != 0 {
            // A prefix ends where a segment does: before each slash, and at the end of the path.
            let ends = memchr_iter(b'/', path).chain([path.len()]);
            for (depth, end) in ends.enumerate().take(DEEPEST + 1) {
                if paths.depths >> depth == 0 {
                    break;
                }
                if paths.depths >> depth & 1 == 1
                    && let Some(chain) = self.buckets.get(&self.hash(host, Kind::Part, &path[..end]))
                {
                    best = self.lowest(*chain, best, accepts);
                }
            }
        }
        self.lowest(paths.any, best, accepts)
    }

    fn lowest(&self, chain: Chain, best: u32, accepts: &impl Fn(usize) -> bool) -> u32 {
        let mut place = chain.first;
        while let Some(link) = self.links.get(place as usize).filter(|link| link.number < best) {
            if accepts(link.number as usize) {
                return link.number;
            }
            place = link.next;
        }
        best
    }

    fn hash(&self, host: u64, kind: Kind, text: &[u8]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write_u64(host);
        hasher.write_u8(kind as u8);
        hasher.write(text);
        hasher.finish()
    }
}

impl Chain {
    /// A route may belong to a chain for several reasons; it stands there once.
    fn push(&mut self, links: &mut Vec<Link>, number: u32) {
        let place = u32::try_from(links.len()).ok().filter(|&place| place != NONE).expect("routes fit in memory");
        match links.get_mut(self.last as usize) {
            Some(last) if last.number == number => return,
            Some(last) => last.next = place,
            None => self.first = place,
        }
        self.last = place;
        links.push(Link { number, next: NONE });
    }
}

fn slashes(prefix: &str) -> usize {
    memchr_iter(b'/', prefix.as_bytes()).count()
}

#[cfg(test)]
mod tests {
    use super::super::{Action, HostMatch, Match, PathMatch, Route, Routes, Scheme, Target, ValueMatch};
    use super::{Index, LONGEST_HOST};
    use crate::Metrics;
    use crate::http1::{Limits, RequestHead};
    use crate::policy::Policy;
    use crate::service::Service;
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
    use proptest::sample::select;
    use std::sync::Arc;

    fn host() -> impl Strategy<Value = HostMatch> {
        select(vec!["a", "b.a", "B.a", "*.a", "*.A", "*.b.a", "*.c", "c.b.a", "*."]).prop_map(HostMatch::parse)
    }

    fn path() -> impl Strategy<Value = PathMatch> {
        let text = || {
            let parts = select(vec!["/", "/x", "/x/", "/x/y", "/x/y/z", "/xy", "//", "//x", "/x//y", "", "x", "*"]);
            parts.prop_map(str::to_owned)
        };
        prop_oneof![
            text().prop_map(PathMatch::Exact),
            text().prop_map(PathMatch::Prefix),
            text().prop_map(PathMatch::Prefix),
            text().prop_map(PathMatch::Start),
            select(vec!["/x.*", "/[xy]/y", ".*z"]).prop_map(|text| PathMatch::Regex(text.to_owned())),
        ]
    }

    fn wanted() -> impl Strategy<Value = Match> {
        let path = proptest::option::weighted(0.9, path());
        let method = proptest::option::weighted(0.2, Just("PUT".to_owned()));
        let header = proptest::option::weighted(0.2, Just(("X-A".to_owned(), ValueMatch::Present)));
        (path, method, header).prop_map(|(path, method, header)| Match {
            path,
            method,
            headers: header.into_iter().collect(),
            ..Match::default()
        })
    }

    fn route(hosts: Vec<HostMatch>, matches: Vec<Match>) -> Route {
        let target = Target { service: "s".into(), version: None };
        let (action, policy) = (Action::Forward(target), Policy::default());
        Route { name: "r".into(), series: None, hosts, matches, action, timeout: None, retry: None, policy }
    }

    fn compiled(routes: Vec<Route>) -> Routes {
        let service = Arc::new(Service::new("s".into(), Metrics::default()));
        Routes::compile(routes, |_| service.clone(), &Metrics::default()).unwrap()
    }

    fn request(method: &str, host: &str, path: &str, field: &str) -> Option<RequestHead> {
        let mut head = RequestHead::default();
        let text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{field}\r\n");
        head.parse(text.as_bytes(), &Limits::default()).is_ok().then_some(head)
    }

    /// What the index says and what a walk over all routes says.
    fn both(routes: &Routes, head: &RequestHead) -> (Option<usize>, Option<usize>) {
        let index = Index::of(&routes.list);
        let accepts = |number: usize| routes.list[number].accepts(head, Scheme::Http);
        (index.first(head.host(), head.path(), accepts), (0..routes.list.len()).find(|&number| accepts(number)))
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_walk_finds(
            list in vec((vec(host(), 0..3), vec(wanted(), 0..3)), 0..40),
            hosts in vec(select(vec!["a", "B.A", "c.b.a", "d.c.b.a", "x.c", "z", "a.", ".a"]), 8),
            segments in vec(select(vec!["/", "/x", "/y", "/z", "/xy", "x", "*"]), 8),
            lengths in vec(1_usize..5, 8),
            puts in vec(any::<bool>(), 8),
            fields in vec(any::<bool>(), 8),
        ) {
            let routes = compiled(list.into_iter().map(|(hosts, matches)| route(hosts, matches)).collect());
            for turn in 0..8 {
                let path: String = segments.iter().cycle().skip(turn).take(lengths[turn]).copied().collect();
                let method = if puts[turn] { "PUT" } else { "GET" };
                let field = if fields[turn] { "x-a: 1\r\n" } else { "" };
                let Some(head) = request(method, hosts[turn], &path, field) else { continue };
                let (index, walk) = both(&routes, &head);
                proptest::prop_assert_eq!(index, walk, "{} {} {} {}", method, hosts[turn], path, field);
            }
        }
    }

    #[test]
    fn odd_requests_find_what_a_walk_finds() {
        let prefix = |text: &str| Match { path: Some(PathMatch::Prefix(text.to_owned())), ..Match::default() };
        let (long, deep) = ("a".repeat(LONGEST_HOST + 1), "/d".repeat(70));
        let routes = compiled(vec![
            route(vec![HostMatch::parse(&long)], Vec::new()),
            route(Vec::new(), vec![prefix(&deep)]),
            route(vec![HostMatch::parse("h")], vec![prefix(&deep[..126])]),
            route(Vec::new(), vec![prefix("/d")]),
        ]);
        let below = format!("{deep}/e");
        for (host, path, want) in [
            (long.as_str(), "/", Some(0)),
            ("h", below.as_str(), Some(1)),
            ("h", &deep[..130], Some(2)),
            ("x", &deep[..130], Some(3)),
            ("h", "/dd", None),
        ] {
            let head = request("GET", host, path, "").unwrap();
            assert_eq!(both(&routes, &head), (want, want), "{host} {path}");
        }
    }

    #[test]
    fn long_lists_are_searched_by_index() {
        let named = |number: usize| route(vec![HostMatch::parse(&format!("h{number}.a"))], Vec::new());
        let routes = compiled((0..1_000).map(named).collect());
        assert!(routes.index.is_some());
        let head = request("GET", "H700.a", "/", "").unwrap();
        assert!(Arc::ptr_eq(routes.find(&head, Scheme::Http).unwrap(), &routes.list[700]));
        let asked = std::cell::Cell::new(0);
        let index = Index::of(&routes.list);
        index.first(head.host(), head.path(), |_| {
            asked.set(asked.get() + 1);
            false
        });
        assert_eq!(asked.get(), 1, "no other route was looked at");
    }
}
