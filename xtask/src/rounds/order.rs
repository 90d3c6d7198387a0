//! Whether the store's own order explains everything: revisions count changes of the whole store, so real time must agree
//! with them across all keys, for readers too (strict serializability). Linear in time, and stronger than `linear`, but
//! it believes what the store says of revisions; `linear` does not.

use std::collections::BTreeMap;

use super::history::{Did, NEVER, Operation};

/// The place of an operation in the order of revisions: at least `low`, below `high`.
struct Place {
    low: u64,
    high: u64,
    is_write: bool,
}

/// Revision to value of what is known of a key's writes.
type Writes = BTreeMap<u64, u64>;

/// Says what contradicts the order of revisions.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let writes = writes(history)?;
    let mut places = Vec::with_capacity(history.len());
    for operation in history {
        places.push(place(operation, &writes)?);
    }
    // Calls before returns at the same instant: those overlap.
    let mut instants: Vec<(u64, bool, usize)> = Vec::new();
    for (at, operation) in history.iter().enumerate() {
        if places[at].is_some() {
            instants.push((operation.called, false, at));
            if operation.returned != NEVER {
                instants.push((operation.returned, true, at));
            }
        }
    }
    instants.sort_unstable();
    let mut taken = vec![0; history.len()];
    let (mut least, mut by) = (0, None);
    for (_, is_return, at) in instants {
        let Some(place) = &places[at] else { continue };
        if is_return {
            if taken[at] > least {
                (least, by) = (taken[at], Some(at));
            }
            continue;
        }
        taken[at] = place.low.max(least);
        if taken[at] >= place.high || (place.is_write && place.low <= least) {
            let by = by.map(|by| history[by].line()).unwrap_or_default();
            let what = if place.is_write { "was written before what" } else { "is older than what" };
            return Err(format!("{}\n  {what} had returned by then (revision {least}):\n  {by}", history[at].line()));
        }
    }
    Ok(())
}

/// At a client no key's revision goes backwards, whichever nodes it asks. Implied by `check`; told apart because it is
/// what a user notices first.
pub fn never_backwards(history: &[Operation]) -> Result<(), String> {
    let mut newest: BTreeMap<(usize, usize), (u64, u64)> = BTreeMap::new();
    let mut ordered: Vec<&Operation> = history.iter().filter(|operation| operation.returned != NEVER).collect();
    ordered.sort_by_key(|operation| operation.returned);
    for operation in ordered {
        let revision = match operation.did {
            Did::Read(found) => found.map_or(0, |(_, revision)| revision),
            Did::Wrote { revision, .. } => revision,
            Did::Conflicted { current, .. } => current,
            Did::Unknown { .. } | Did::Refused { .. } => continue,
        };
        let (known, _) = newest.entry((operation.client, operation.key)).or_insert((revision, operation.returned));
        if revision < *known {
            return Err(format!("a client that knew revision {known} was told an older one: {}", operation.line()));
        }
        *known = revision;
    }
    Ok(())
}

/// Every acknowledged write is in the final state or overwritten by a later one. `finally`: what reads said at the end.
pub fn nothing_lost(history: &[Operation], finally: &[Operation]) -> Result<(), String> {
    for read in finally {
        let Did::Read(found) = read.did else { continue };
        let last = found.map_or(0, |(_, revision)| revision);
        for operation in history.iter().filter(|operation| operation.key == read.key) {
            if let Did::Wrote { revision, value, .. } = operation.did
                && (revision > last || (revision == last && found.map(|(value, _)| value) != Some(value)))
            {
                return Err(format!("acknowledged and lost: {}; at the end: {}", operation.line(), read.line()));
            }
        }
    }
    Ok(())
}

/// What was refused with the promise that nothing was written was never read.
pub fn refused_is_refused(history: &[Operation]) -> Result<(), String> {
    let refused: BTreeMap<u64, &Operation> = history
        .iter()
        .filter_map(|one| if let Did::Refused { value } = one.did { Some((value, one)) } else { None })
        .collect();
    for operation in history {
        if let Did::Read(Some((value, _))) = operation.did
            && let Some(write) = refused.get(&value)
        {
            return Err(format!("refused and written all the same: {}; read: {}", write.line(), operation.line()));
        }
    }
    Ok(())
}

/// All writes of each key whose revision is known; a revision is one write.
fn writes(history: &[Operation]) -> Result<BTreeMap<usize, Writes>, String> {
    let mut owner: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    let mut keys: BTreeMap<usize, Writes> = BTreeMap::new();
    for operation in history {
        let (value, revision) = match operation.did {
            Did::Read(Some(found)) => found,
            Did::Wrote { value, revision, .. } => (value, revision),
            _ => continue,
        };
        let known = *owner.entry(revision).or_insert((operation.key, value));
        if known != (operation.key, value) {
            let (key, value) = known;
            return Err(format!("revision {revision} is key {key}'s value {value}, and also {}", operation.line()));
        }
        keys.entry(operation.key).or_default().insert(revision, value);
    }
    Ok(keys)
}

fn place(operation: &Operation, writes: &BTreeMap<usize, Writes>) -> Result<Option<Place>, String> {
    let nothing = Writes::new();
    let of_key = writes.get(&operation.key).unwrap_or(&nothing);
    let next = |revision: u64| of_key.range(revision + 1..).next().map_or(u64::MAX, |(next, _)| *next);
    let seen_as = |value: u64| of_key.iter().find(|(_, known)| **known == value).map(|(revision, _)| *revision);
    let (revision, cas) = match operation.did {
        Did::Read(found) => {
            let low = found.map_or(0, |(_, revision)| revision);
            return Ok(Some(Place { low, high: next(low), is_write: false }));
        }
        Did::Conflicted { cas, current } if cas == current => {
            return Err(format!("refused although the comparison holds: {}", operation.line()));
        }
        Did::Conflicted { current, .. } => {
            return Ok(Some(Place { low: current, high: next(current), is_write: false }));
        }
        Did::Wrote { revision, cas, .. } => (revision, cas),
        Did::Unknown { value, cas } => match seen_as(value) {
            Some(revision) => (revision, cas),
            None => return Ok(None),
        },
        Did::Refused { .. } => return Ok(None),
    };
    if let Some(cas) = cas
        && next(cas) != revision
    {
        let between = next(cas);
        return Err(format!("written although revision {between} came between: {}", operation.line()));
    }
    Ok(Some(Place { low: revision, high: revision + 1, is_write: true }))
}

#[cfg(test)]
mod tests;
