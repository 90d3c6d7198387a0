//! Who shares a service's requests while nothing speaks against anybody: worked out once per swap of endpoints, so that
//! the balance step draws from it instead of walking all endpoints. Deliberately absent: suspicion, versions asked for
//! and what a request has tried (`balance.rs` looks at whom it drew, and walks if need be).

use model::VersionName;

use crate::service::{Endpoint, Endpoints, Readiness, Selection};

/// The best group's members on a line, each as long as its weight.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    line: Vec<Share>,
    /// Everybody's weight, if all have the same: then a place is a division away.
    even: Option<u64>,
    /// They are remote, because no local one is eligible.
    pub(crate) spilled: bool,
}

#[derive(Debug)]
struct Share {
    /// Where on the line it ends.
    end: u64,
    index: u32,
}

impl Shares {
    pub(crate) fn of(told: &Endpoints) -> Self {
        let is_eligible = |endpoint: &Endpoint| eligible(told, endpoint, None);
        let has_local = told.endpoints.iter().any(|endpoint| endpoint.local && is_eligible(endpoint));
        let (mut line, mut end, mut even) = (Vec::new(), 0, None);
        for (index, endpoint) in told.endpoints.iter().enumerate() {
            if endpoint.local == has_local && is_eligible(endpoint) {
                if line.is_empty() {
                    even = Some(endpoint.weight.into());
                    // Most services have one group, and a swap is no place to grow a vector in steps.
                    line.reserve_exact(told.endpoints.len() - index);
                }
                even = even.filter(|&weight| weight == u64::from(endpoint.weight));
                end += u64::from(endpoint.weight);
                line.push(Share { end, index: u32::try_from(index).expect("fewer endpoints than addresses") });
            }
        }
        line.shrink_to_fit();
        let spilled = !has_local && told.endpoints.iter().any(|endpoint| endpoint.local);
        Self { line, even, spilled }
    }

    /// The line's length; zero: nobody is eligible.
    pub(crate) fn total(&self) -> u64 {
        self.line.last().map_or(0, |share| share.end)
    }

    /// The place on the line within whose share `point` falls; `point` is less than [`Self::total`].
    pub(crate) fn at(&self, point: u64) -> usize {
        match self.even {
            Some(weight) => (point / weight) as usize,
            None => self.line.partition_point(|share| share.end <= point),
        }
    }

    /// The same on a line without the share at `place`.
    pub(crate) fn at_without(&self, place: usize, point: u64) -> usize {
        let end = self.line[place].end;
        let weight = self.weight(place);
        self.at(if point < end - weight { point } else { point + weight })
    }

    pub(crate) fn weight(&self, place: usize) -> u64 {
        let begin = place.checked_sub(1).map_or(0, |before| self.line[before].end);
        self.line[place].end - begin
    }

    /// Which endpoint it is.
    pub(crate) fn index(&self, place: usize) -> usize {
        self.line[place].index as usize
    }
}

/// Whether an endpoint may take a request at all.
pub(crate) fn eligible(told: &Endpoints, endpoint: &Endpoint, version: Option<&VersionName>) -> bool {
    endpoint.readiness == Readiness::Ready
        && endpoint.weight > 0
        && (version.is_none() || version == endpoint.version.as_ref())
        && match &told.selection {
            Selection::Any => true,
            Selection::Primary(primary) => primary.as_ref().is_some_and(|(id, _)| *id == endpoint.id),
        }
}
