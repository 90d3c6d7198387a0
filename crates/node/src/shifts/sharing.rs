//! Where a route's requests go while shifts are in force: its own destinations and weights in, others out. A route that shares
//! its requests among versions of the service keeps its weights until the new destination's step is more than its own share;
//! the others are made smaller in proportion, so that a shift taken back leaves what the route says.
//! Around the request walk: worked out once for each list of routes. Deliberately absent: who takes which request
//! (`traffic::weights`).

use std::sync::Arc;

use gateway::{Part, Tally, Target};
use model::config::Config;
use model::{ServiceName, VersionName};

use super::record::{Goal, Phase, ShiftRecord};
use super::{Shifts, void};

/// The sum of a route's weights at the most: finer shares are rounded.
const MOST: u128 = 1_000_000_000;

/// A destination with as much room for its weight as the working needs.
#[derive(Clone, Debug, PartialEq)]
struct Share {
    service: ServiceName,
    version: Option<VersionName>,
    weight: u128,
    tally: Option<usize>,
}

impl Share {
    fn is(&self, service: &ServiceName, version: Option<&VersionName>) -> bool {
        self.service == *service && self.version.as_ref() == version
    }
}

impl Shifts {
    /// A route's destinations as shifts have them. Where no shift is in force for it: as they are written.
    pub fn shared(&self, config: &Config, written: &[(Target, u32)]) -> Vec<Part> {
        let whole = |(target, weight): &(Target, u32)| Share {
            service: target.service.clone(),
            version: target.version.clone(),
            weight: (*weight).into(),
            tally: None,
        };
        let mut shares: Vec<Share> = written.iter().map(whole).collect();
        let mut tallies: Vec<&Arc<Tally>> = Vec::new();
        let mut seen: Vec<&ServiceName> = Vec::new();
        for (target, _) in written {
            if seen.contains(&&target.service) {
                continue;
            }
            seen.push(&target.service);
            let Some(shifting) = self.0.get(&target.service) else { continue };
            let number = tallies.len();
            tallies.push(&shifting.tally);
            shares = by(config, &target.service, &shifting.record, number, shares);
        }
        let part = |share: Share| Part {
            target: Target { service: share.service, version: share.version },
            weight: u32::try_from(share.weight).unwrap_or(u32::MAX),
            tally: share.tally.map(|number| Arc::clone(tallies[number])),
        };
        shares.into_iter().map(part).collect()
    }

    /// Whether a shift has a say about requests for one of these destinations.
    pub fn concern(&self, written: &[(Target, u32)]) -> bool {
        let in_force = |service| self.0.get(service).is_some_and(|it| it.record.phase != Phase::Cleared);
        written.iter().any(|(target, _)| in_force(&target.service))
    }
}

/// What a record makes of a route's shares.
fn by(config: &Config, name: &ServiceName, record: &ShiftRecord, tally: usize, mut shares: Vec<Share>) -> Vec<Share> {
    if record.phase == Phase::Cleared || void(config, name, record).is_some() {
        return shares;
    }
    let percent = u128::from(record.percent.min(100));
    match (&record.to, &record.auto) {
        (Goal::Service(backup), Some(auto)) => {
            // What an operator's shift has left goes on among those that stay; nobody judges it now.
            if let Some(under) = &auto.under {
                shares = by(config, name, under, tally, shares);
            }
            let there = if auto.back { 100 - percent } else { percent };
            let mut moved = 0;
            for share in &mut shares {
                let stays = if share.service == *name { 100 - there } else { 100 };
                moved += share.weight * (100 - stays);
                share.weight *= stays;
                share.tally = if share.service == *name { auto.back.then_some(tally) } else { share.tally };
            }
            let own = Share { weight: moved, tally: (!auto.back).then_some(tally), ..service(backup) };
            tidied(shares.into_iter().chain([own]))
        }
        (Goal::Service(other), None) => {
            let goal = service(other);
            step(shares, |share| share.service == *name, goal, percent, tally)
        }
        (Goal::Version(version), _) => {
            let goal = Share { service: name.clone(), version: Some(version.clone()), weight: 0, tally: None };
            let is_moved = |share: &Share| {
                let captured = |version| record.captured.contains(version);
                share.service == *name && share.version.as_ref().is_none_or(captured)
            };
            if !shares.iter().any(is_moved) {
                return shares;
            }
            // What shifts before this one have moved is where they have left it.
            for share in shares.iter_mut().filter(|share| is_moved(share)) {
                share.version.clone_from(&record.from);
            }
            let all = !record.only_from;
            let takes_part = |share: &Share| share.service == *name && (all || share.version == record.from);
            step(tidied(shares.into_iter()), takes_part, goal, percent, tally)
        }
    }
}

fn service(name: &ServiceName) -> Share {
    Share { service: name.clone(), version: None, weight: 0, tally: None }
}

/// The goal gets this part of what it shares with those that take part, or its own share if that is more.
fn step(
    shares: Vec<Share>,
    takes_part: impl Fn(&Share) -> bool,
    goal: Share,
    percent: u128,
    tally: usize,
) -> Vec<Share> {
    let is_goal = |share: &Share| share.is(&goal.service, goal.version.as_ref());
    let sum = |of: &dyn Fn(&Share) -> bool| shares.iter().filter(|share| of(share)).map(|share| share.weight).sum();
    let own: u128 = sum(&is_goal);
    let others: u128 = sum(&|share| takes_part(share) && !is_goal(share));
    if others == 0 {
        return shares;
    }
    let whole = own + others;
    let gets = (own * 100).max(whole * percent);
    let left = whole * 100 - gets;
    let scaled = |share: Share| {
        let factor = if takes_part(&share) { left } else { 100 * others };
        Share { weight: share.weight * factor, ..share }
    };
    let rest = shares.into_iter().filter(|share| !is_goal(share)).map(scaled);
    tidied(rest.chain([Share { weight: gets * others, tally: Some(tally), ..goal.clone() }]))
}

/// Each destination once, those without requests left out, in the smallest numbers of the same shares.
fn tidied(shares: impl Iterator<Item = Share>) -> Vec<Share> {
    let mut tidy: Vec<Share> = Vec::new();
    for share in shares.filter(|share| share.weight > 0) {
        match tidy.iter_mut().find(|known| known.is(&share.service, share.version.as_ref())) {
            Some(known) => (known.weight, known.tally) = (known.weight + share.weight, share.tally.or(known.tally)),
            None => tidy.push(share),
        }
    }
    let divisor = tidy.iter().fold(0, |divisor, share| greatest_common(divisor, share.weight)).max(1);
    tidy.iter_mut().for_each(|share| share.weight /= divisor);
    let total: u128 = tidy.iter().map(|share| share.weight).sum();
    if total > MOST {
        tidy.iter_mut().for_each(|share| share.weight = (share.weight * MOST / total).max(1));
    }
    tidy
}

fn greatest_common(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { greatest_common(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::{Share, step, tidied};

    fn share(version: &str, weight: u128) -> Share {
        Share { service: "orders".into(), version: Some(version.into()), weight, tally: None }
    }

    fn stepped(written: &[(&str, u128)], percent: u128, only: Option<&str>) -> Vec<(String, u128)> {
        let shares = tidied(written.iter().map(|(version, weight)| share(version, *weight)));
        let takes_part = |share: &Share| only.is_none() || share.version.as_ref().map(|it| it.as_str()) == only;
        let after = step(shares, takes_part, share("v2", 0), percent, 0);
        after.into_iter().map(|share| (share.version.unwrap().to_string(), share.weight)).collect()
    }

    #[test]
    fn a_step_is_a_share_or_more_and_the_others_keep_their_proportion() {
        let table = |written: &[(&str, u128)], percent, only, want: &[(&str, u128)]| {
            let mut got = stepped(written, percent, only);
            got.sort();
            let want: Vec<(String, u128)> = want.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
            assert_eq!(got, want, "{written:?} at {percent} %");
        };
        let own = [("v1", 80), ("v2", 20)];
        table(&own, 0, None, &[("v1", 4), ("v2", 1)]);
        table(&own, 10, None, &[("v1", 4), ("v2", 1)]);
        table(&own, 50, None, &[("v1", 1), ("v2", 1)]);
        table(&own, 100, None, &[("v2", 1)]);
        table(&[("v1", 1)], 0, None, &[("v1", 1)]);
        table(&[("v1", 1)], 10, None, &[("v1", 9), ("v2", 1)]);
        table(&[("v2", 7)], 10, None, &[("v2", 1)]);
        let three = [("v1", 60), ("v2", 20), ("v3", 20)];
        table(&three, 60, None, &[("v1", 3), ("v2", 6), ("v3", 1)]);
        // Of v1 and v2 together half, and v3 keeps what it has.
        table(&three, 50, Some("v1"), &[("v1", 2), ("v2", 2), ("v3", 1)]);
        table(&[("v1", 9_999), ("v2", 1)], 1, None, &[("v1", 99), ("v2", 1)]);
    }

    #[test]
    fn weights_stay_within_their_bound() {
        let odd: Vec<Share> = (0..32).map(|number| share(&format!("w{number}"), 9_973 - number)).collect();
        let once = step(tidied(odd.into_iter()), |_| true, share("v2", 0), 33, 0);
        let twice = step(once, |_| true, share("v3", 0), 67, 0);
        let total: u128 = twice.iter().map(|share| share.weight).sum();
        assert!(total <= u128::from(u32::MAX), "{total}");
        let v3 = twice.iter().find(|one| one.version == Some("v3".into())).unwrap();
        assert!((v3.weight * 10_000 / total).abs_diff(6_700) <= 1, "{} of {total}", v3.weight);
    }
}
