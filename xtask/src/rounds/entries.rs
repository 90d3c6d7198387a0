//! What must hold of a log, given what its writers and readers saw and what stands in it at the end: the stream `log`, that
//! clients append to, and the stream of the service `ledger`, whose primary appends what it is asked to add.
//! An offset is a place in one order, so linearizability comes down to real time: who had returned before another was
//! called stands before it. Linear in time but for sorting. Deliberately absent: the key-value store (`linear`, `order`).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// An entry that was acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Which one: its text, or the key it was asked for with.
    pub what: String,
    /// Microseconds since the round began, of the first attempt.
    pub called: u64,
    /// Microseconds since the round began.
    pub returned: u64,
    /// Where it stands; not told if it was there before.
    pub offset: Option<u64>,
    /// The primary's, if one wrote it.
    pub epoch: Option<u64>,
}

/// A look at the log: at entries, or at the state a primary made of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// Microseconds since the round began.
    pub called: u64,
    /// How many entries there were.
    pub end: u64,
    /// The primary's that answered, if one did.
    pub epoch: Option<u64>,
    /// Entries by offset.
    pub entries: Vec<(u64, String)>,
}

/// What clients saw of one log.
#[derive(Clone, Default, Debug)]
pub struct Log {
    pub acknowledged: Vec<Entry>,
    pub looks: Vec<Look>,
}

impl Log {
    /// This and what another client saw.
    pub fn join(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.looks.extend(other.looks);
    }

    /// JSON lines, beside the logs of a round that finds something.
    pub fn lines(&self) -> String {
        let entries = self.acknowledged.iter().map(|one| {
            json!({ "entry": one.what, "called": one.called, "returned": one.returned, "offset": one.offset, "epoch": one.epoch })
        });
        let looks = self.looks.iter().map(
            |one| json!({ "called": one.called, "end": one.end, "epoch": one.epoch, "entries": one.entries.len() }),
        );
        entries.chain(looks).map(|line| format!("{line}\n")).collect()
    }

    /// Says what is wrong, given what each entry is in the end.
    pub fn check(&self, finally: &[String]) -> Result<(), String> {
        let mut places: BTreeMap<&str, u64> = BTreeMap::new();
        for (offset, what) in (0..).zip(finally) {
            if let Some(first) = places.insert(what, offset) {
                return Err(format!("{what} stands there twice, at {first} and {offset}"));
            }
        }
        let mut placed = Vec::with_capacity(self.acknowledged.len());
        for entry in &self.acknowledged {
            let Some(&at) = places.get(entry.what.as_str()) else {
                return Err(format!("acknowledged and lost: {entry:?}"));
            };
            if entry.offset.is_some_and(|told| told != at) {
                return Err(format!("acknowledged at another offset than {at}: {entry:?}"));
            }
            placed.push((at, entry));
        }
        for look in &self.looks {
            for (offset, what) in &look.entries {
                let there = usize::try_from(*offset).ok().and_then(|offset| finally.get(offset));
                if there != Some(what) {
                    return Err(format!("read {what} at {offset}, where in the end there is {there:?}: {look:?}"));
                }
            }
            if look.end > finally.len() as u64 {
                return Err(format!("seen longer than it is in the end ({}): {look:?}", finally.len()));
            }
        }
        self.in_real_time(&placed)?;
        one_epoch_after_another(placed)
    }

    /// Whoever was called after an entry had returned stands behind it, or saw it.
    fn in_real_time(&self, placed: &[(u64, &Entry)]) -> Result<(), String> {
        let mut returns: Vec<(u64, u64, &Entry)> = placed.iter().map(|(at, one)| (one.returned, *at, *one)).collect();
        returns.sort_unstable_by_key(|(returned, at, _)| (*returned, *at));
        // The farthest of all that have returned up to each of them; the newest epoch too.
        let (mut farthest, mut epoch, mut known) = (None, None, Vec::new());
        for (returned, at, entry) in &returns {
            farthest = farthest.max(Some(*at));
            epoch = epoch.max(entry.epoch);
            known.push((*returned, farthest, epoch));
        }
        let before = |called: u64| {
            let count = known.partition_point(|(returned, ..)| *returned < called);
            count.checked_sub(1).map(|last| known[last])
        };
        for (at, entry) in placed {
            if let Some((returned, Some(farthest), _)) = before(entry.called)
                && farthest >= *at
            {
                return Err(format!("stands at {at}, though offset {farthest} had returned at {returned}: {entry:?}"));
            }
        }
        for look in &self.looks {
            let Some((returned, farthest, epoch)) = before(look.called) else { continue };
            if farthest.is_some_and(|farthest| look.end <= farthest) {
                return Err(format!("does not show offset {farthest:?}, which had returned by {returned}: {look:?}"));
            }
            if look.epoch.is_some_and(|of| Some(of) < epoch) {
                return Err(format!("an older primary answered than {epoch:?}, which had by {returned}: {look:?}"));
            }
        }
        Ok(())
    }
}

/// In the log's order the epochs of primaries never go back: no two ever wrote by turns.
fn one_epoch_after_another(mut placed: Vec<(u64, &Entry)>) -> Result<(), String> {
    placed.sort_unstable_by_key(|(at, _)| *at);
    let mut newest: Option<&Entry> = None;
    for (at, entry) in placed.into_iter().filter(|(_, entry)| entry.epoch.is_some()) {
        if newest.is_some_and(|newest| entry.epoch < newest.epoch) {
            return Err(format!("the entry at {at} is of an older primary than one before it: {entry:?}, {newest:?}"));
        }
        newest = Some(entry);
    }
    Ok(())
}

/// The first place at which a later look at a log does not hold what an earlier one did; none if it only goes on.
pub fn first_difference(earlier: &[String], later: &[String]) -> Option<usize> {
    (0..earlier.len()).find(|place| later.get(*place) != earlier.get(*place))
}

/// The keys in the ledger's stream, in order, if its balances add up: each entry adds 1.
pub fn keys(written: &[Value]) -> Result<Vec<String>, String> {
    let mut keys = Vec::with_capacity(written.len());
    for (balance, entry) in (1_u64..).zip(written) {
        if entry["balance"] != balance || entry["amount"] != 1 {
            return Err(format!("an entry goes on from another balance than {}: {entry}", balance - 1));
        }
        keys.push(entry["key"].as_str().unwrap_or_default().to_owned());
    }
    Ok(keys)
}
