//! Linearizability of one key's history, by its values: is there an order, true to real time, in which a plain register
//! with compare-and-set gives the same answers? (Wing and Gong's search with Lowe's memory of visited states.)
//! Keys are judged one by one: a history is linearizable exactly if that of each key is.
//! Deliberately blind to the order of revisions, which `order` judges: revisions only tell here what a `cas` named.

use std::collections::{BTreeMap, HashSet};

use super::history::{Did, NEVER, Operation};

/// States looked at before a search is given up.
const MOST_STATES: usize = 20_000_000;

/// What a register must do for one operation.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read(Option<u64>),
    Write { value: u64, cas: Option<u64> },
    Conflict { cas: u64, current: u64 },
}

/// An operation as the search sees it.
struct Item<'a> {
    step: Step,
    called: u64,
    returned: u64,
    operation: &'a Operation,
}

/// Says why the operations of one key have no order; all are of that key.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let known = revisions(history)?;
    let items = items(history, &known)?;
    Search::new(&items, &known).run()
}

/// The revision of each value, as far as anybody was told: one each.
fn revisions(history: &[Operation]) -> Result<BTreeMap<u64, u64>, String> {
    let mut known = BTreeMap::new();
    for operation in history {
        let (value, revision) = match operation.did {
            Did::Read(Some(found)) => found,
            Did::Wrote { value, revision, .. } => (value, revision),
            _ => continue,
        };
        let first = *known.entry(value).or_insert(revision);
        if first != revision {
            return Err(format!("value {value} was written twice: at {first}, and {}", operation.line()));
        }
    }
    Ok(known)
}

fn items<'a>(history: &'a [Operation], known: &BTreeMap<u64, u64>) -> Result<Vec<Item<'a>>, String> {
    // Whoever has seen a write has returned after it took effect.
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in history {
        if let Did::Read(Some((value, _))) = operation.did {
            let first = seen.entry(value).or_insert(NEVER);
            *first = operation.returned.min(*first);
        }
    }
    let told: HashSet<u64> = known.values().copied().collect();
    // A comparison with one of the unknown writes that nobody read, told by a conflict, says no more than that.
    let can_be_judged = |cas: Option<u64>| cas.filter(|cas| *cas == 0 || told.contains(cas));
    let mut items = Vec::new();
    let mut written = HashSet::new();
    for operation in history {
        let mut returned = operation.returned;
        let step = match operation.did {
            Did::Read(found) => Step::Read(found.map(|(value, _)| value)),
            Did::Wrote { value, cas, .. } => Step::Write { value, cas: can_be_judged(cas) },
            Did::Conflicted { cas, current } if current == 0 || told.contains(&current) => {
                Step::Conflict { cas, current }
            }
            Did::Conflicted { .. } => {
                // It was with one of the unknown writes that nobody read: which of them, no answer tells.
                let may_be = |one: &Operation| {
                    matches!(one.did, Did::Unknown { value, .. } if !seen.contains_key(&value))
                        && one.called <= operation.returned
                };
                if history.iter().any(may_be) {
                    continue;
                }
                return Err(format!("a conflict with a revision that nobody's write can have: {}", operation.line()));
            }
            Did::Unknown { value, cas } => {
                // Nobody can tell whether one that was never read happened: an order with it is one without it, too.
                let Some(first) = seen.get(&value) else { continue };
                returned = *first;
                Step::Write { value, cas: can_be_judged(cas) }
            }
            Did::Refused { .. } => continue,
        };
        if let Step::Write { value, .. } = step {
            written.insert(value);
        }
        items.push(Item { step, called: operation.called, returned, operation });
    }
    for (value, at) in &seen {
        let read = || history.iter().find(|one| matches!(one.did, Did::Read(Some((found, _))) if found == *value));
        if !written.contains(value) {
            let line = read().map(Operation::line).unwrap_or_default();
            return Err(format!("value {value} was read before {at} us and nobody's write made it: {line}"));
        }
    }
    items.sort_by_key(|item| (item.called, item.returned));
    Ok(items)
}

struct Search<'a> {
    items: &'a [Item<'a>],
    known: &'a BTreeMap<u64, u64>,
    /// Which operations have their place in the order.
    done: Vec<bool>,
    /// All before this one have their place.
    first: usize,
    visited: HashSet<(usize, Vec<usize>, Option<u64>)>,
}

impl<'a> Search<'a> {
    fn new(items: &'a [Item<'a>], known: &'a BTreeMap<u64, u64>) -> Self {
        Self { items, known, done: vec![false; items.len()], first: 0, visited: HashSet::new() }
    }

    /// What the register holds after `step`, if the step can be taken now.
    fn after(&self, state: Option<u64>, step: Step) -> Option<Option<u64>> {
        let at = |revision: u64| match state {
            None => revision == 0,
            Some(value) => self.known.get(&value).is_none_or(|known| *known == revision) && revision != 0,
        };
        match step {
            Step::Read(found) => (found == state).then_some(state),
            Step::Write { value, cas } => cas.is_none_or(at).then_some(Some(value)),
            Step::Conflict { cas, current } => (at(current) && cas != current).then_some(state),
        }
    }

    /// Operations that may be next: called before any other that has no place yet returned.
    fn candidates(&self) -> Vec<usize> {
        let (mut found, mut earliest) = (Vec::new(), NEVER);
        for place in self.first..self.items.len() {
            let item = &self.items[place];
            if item.called > earliest {
                break;
            }
            if !self.done[place] {
                found.push(place);
                earliest = earliest.min(item.returned);
            }
        }
        found.retain(|place| self.items[*place].called <= earliest);
        found
    }

    /// What is tried next, last first.
    fn tries(&self, state: Option<u64>) -> Vec<usize> {
        let mut next = self.candidates();
        // What changes nothing and fits now is never worse off now than later.
        let fits = |place: &usize| {
            let step = self.items[*place].step;
            !matches!(step, Step::Write { .. }) && self.after(state, step).is_some()
        };
        if let Some(place) = next.iter().copied().find(fits) {
            return vec![place];
        }
        next.sort_by_key(|place| std::cmp::Reverse(self.items[*place].returned));
        next
    }

    /// What identifies the set of those that have their place.
    fn key(&self, state: Option<u64>, last: usize) -> (usize, Vec<usize>, Option<u64>) {
        let beyond = (self.first..=last.max(self.first)).filter(|place| self.done.get(*place) == Some(&true)).collect();
        (self.first, beyond, state)
    }

    fn advance(&mut self) {
        while self.done.get(self.first) == Some(&true) {
            self.first += 1;
        }
    }

    fn run(&mut self) -> Result<(), String> {
        struct Level {
            state: Option<u64>,
            first: usize,
            last: usize,
            next: Vec<usize>,
            taken: usize,
        }
        let (mut best, mut stuck) = (0, Vec::new());
        let mut placed = 0;
        let mut levels = vec![Level { state: None, first: 0, last: 0, next: self.tries(None), taken: usize::MAX }];
        while let Some(level) = levels.last_mut() {
            if placed == self.items.len() {
                return Ok(());
            }
            let state = level.state;
            let Some(place) = level.next.pop() else {
                if placed >= best {
                    (best, stuck) = (placed, self.candidates());
                }
                let taken = level.taken;
                levels.pop();
                if let Some(before) = levels.last() {
                    self.done[taken] = false;
                    placed -= 1;
                    self.first = before.first;
                }
                continue;
            };
            let Some(after) = self.after(state, self.items[place].step) else { continue };
            let last = level.last.max(place);
            self.done[place] = true;
            self.advance();
            if !self.visited.insert(self.key(after, last)) {
                self.done[place] = false;
                self.first = levels.last().map_or(0, |level| level.first);
                continue;
            }
            if self.visited.len() > MOST_STATES {
                return Err("the search for an order was given up: too many operations at once".into());
            }
            placed += 1;
            levels.push(Level { state: after, first: self.first, last, next: self.tries(after), taken: place });
        }
        let shown: Vec<String> = stuck.iter().map(|place| self.items[*place].operation.line()).collect();
        Err(format!("no order of its operations explains the answers; the search stops at\n  {}", shown.join("\n  ")))
    }
}

#[cfg(test)]
mod tests;
