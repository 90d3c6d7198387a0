//! Routes of VirtualServices in the order in which Istio would choose, with those that are in force already: a host that is
//! named wins over one that is meant by `*`, and what none of a host's routes takes is not found.

use std::collections::BTreeMap;

use super::super::super::decode::Places;
use super::super::super::node::default_of;
use super::super::super::{Match, OneOrMany, Respond, Route};
use super::super::origin::is_of;
use super::super::{Origin, OriginKind};
use crate::diagnostic::Place;

/// Routes of one object for hosts that are as exactly named.
pub(super) struct Group {
    /// The object's name.
    pub object: String,
    /// None are all.
    pub hosts: Vec<String>,
    pub routes: Vec<Route>,
    pub place: Place,
    /// It is in force, and was not in this file so far.
    pub is_old: bool,
}

impl Group {
    /// Puts it where the same part of its object was, or behind all others.
    pub fn put(self, groups: &mut Vec<Self>, replaces: bool) {
        let is_same = |known: &&mut Self| known.is_old && known.object == self.object && known.hosts == self.hosts;
        match groups.iter_mut().find(|known| replaces && is_same(known)) {
            Some(old) => *old = self,
            None => groups.push(self),
        }
    }

    /// The more exactly hosts are named, the more.
    fn rank(&self) -> usize {
        match self.hosts.first() {
            None => 0,
            Some(host) if host.starts_with('*') => host.len(),
            Some(_) => usize::MAX,
        }
    }

    fn from(&self) -> Origin {
        Origin { hosts: self.hosts.clone(), ..Origin::new(OriginKind::VirtualService, self.object.as_str()) }
    }
}

/// Takes those that are in force out of the routes, with where the first of them stood.
pub(super) fn in_force(routes: &mut Vec<Route>) -> (Vec<Group>, usize) {
    let is_theirs = |route: &Route| is_of(route.from.as_ref(), OriginKind::VirtualService);
    let at = routes.iter().position(is_theirs).unwrap_or(routes.len());
    let mut groups: Vec<Group> = Vec::new();
    let (theirs, others): (Vec<Route>, Vec<Route>) = std::mem::take(routes).into_iter().partition(is_theirs);
    *routes = others;
    for route in theirs {
        let Some(from) = route.from.clone() else { continue };
        let same = groups.last().is_some_and(|last| last.object == from.name && last.hosts == from.hosts);
        if !same {
            let (object, hosts, place) = (from.name, from.hosts, route.at.whole);
            groups.push(Group { object, hosts, routes: Vec::new(), place, is_old: true });
        }
        // Where one is needed is known when all are there.
        if !from.closes
            && let Some(last) = groups.last_mut()
        {
            last.routes.push(route);
        }
    }
    (groups, at)
}

/// Puts them in force, in their order, where the first of them stood before.
pub(super) fn put(routes: &mut Vec<Route>, mut groups: Vec<Group>, at: usize) {
    groups.sort_by_key(|group| std::cmp::Reverse(group.rank()));
    let closed: Vec<Option<Route>> = (0..groups.len()).map(|index| ending(&groups, index)).collect();
    let all = groups.into_iter().zip(closed).flat_map(|(group, closing)| group.routes.into_iter().chain(closing));
    let at = at.min(routes.len());
    routes.splice(at..at, all);
}

/// A host's routes are all there are for it: what none of them takes is not found, and goes to nobody less exactly named.
fn ending(groups: &[Group], index: usize) -> Option<Route> {
    let group = &groups[index];
    let rest = &groups[index + 1..];
    let goes_on = rest.iter().any(|later| later.hosts.iter().any(|host| group.hosts.contains(host)));
    let takes_all = group.routes.last().is_some_and(|last| {
        let Match { path, path_prefix, path_start, path_regex, scheme, methods, .. } = &last.matches;
        let paths = [path, path_prefix, path_start, path_regex].iter().all(|path| path.is_none());
        let fields = [&last.matches.headers, &last.matches.without_headers, &last.matches.query];
        paths && scheme.is_none() && methods.0.is_empty() && fields.iter().all(|fields| fields.is_empty())
    });
    let is_last = rest.iter().all(|later| later.rank() == group.rank());
    if goes_on || takes_all || is_last || group.hosts.is_empty() {
        return None;
    }
    let at = Places::from_parts(group.place, std::iter::empty());
    let respond = Respond { status: 404, body: String::new(), headers: BTreeMap::new(), at: at.clone() };
    let matches = Match { hosts: OneOrMany(group.hosts.clone()), ..Match::default() };
    let from = Some(Origin { closes: true, ..group.from() });
    Some(Route { matches, respond: Some(respond), from, at, ..default_of() })
}
