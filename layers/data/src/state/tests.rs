//! The state machine against a model that does everything the slow and obvious way.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::Revision;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_assert_eq, prop_oneof, proptest};

use super::{Command, Response, StateMachine};
use crate::{
    Compare, Event, Key, KeyRange, KeyValue, LeaseId, LeaseRecord, Op, OpResult, RangeRequest, StoreError, Txn,
};

fn key(number: u8) -> Key {
    Key::new(vec![b'k', b'0' + number]).unwrap()
}

/// The obvious store: a map of pairs and, for each lease, its renewal.
#[derive(Default, Clone)]
struct Naive {
    revision: u64,
    pairs: BTreeMap<Key, KeyValue>,
    leases: BTreeMap<u64, u64>,
    last_lease: u64,
}

impl Naive {
    fn apply(&mut self, command: &Command) -> Vec<(Key, bool)> {
        let mut changed = Vec::new();
        let next = Revision(self.revision + 1);
        match command {
            Command::Txn { txn, .. } => {
                let holds = txn.compares.iter().all(|compare| {
                    let crate::CompareTarget::ModRevision(want) = compare.target else { unreachable!() };
                    self.pairs.get(&compare.key).map_or(Revision(0), |pair| pair.mod_revision) == want
                });
                let ops = if holds { &txn.then } else { &txn.otherwise };
                let missing =
                    |op: &Op| matches!(op, Op::Put { lease: Some(lease), .. } if !self.leases.contains_key(&lease.0));
                if ops.iter().any(missing) {
                    return changed;
                }
                for op in ops {
                    self.run(op, next, &mut changed);
                }
            }
            Command::LeaseGrant { .. } => {
                self.last_lease += 1;
                self.leases.insert(self.last_lease, 0);
            }
            Command::LeaseRevoke { lease } => self.end(*lease, &mut changed),
            Command::LeaseExpire { lease, renewal } => {
                if self.leases.get(&lease.0) == Some(renewal) {
                    self.end(*lease, &mut changed);
                }
            }
            Command::LeaseRenewAll => self.leases.values_mut().for_each(|renewal| *renewal += 1),
        }
        if !changed.is_empty() {
            self.revision += 1;
        }
        changed
    }

    fn run(&mut self, op: &Op, revision: Revision, changed: &mut Vec<(Key, bool)>) {
        match op {
            Op::Put { key, value, lease } => {
                let old = self.pairs.get(key);
                let create_revision = old.map_or(revision, |old| old.create_revision);
                let version = old.map_or(1, |old| old.version + 1);
                let (value, lease) = (value.clone(), *lease);
                let pair =
                    KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version, lease };
                self.pairs.insert(key.clone(), pair);
                changed.push((key.clone(), true));
            }
            Op::Delete { range } => {
                let keys: Vec<_> = self.pairs.keys().filter(|key| range.contains(key)).cloned().collect();
                for key in keys {
                    self.pairs.remove(&key);
                    changed.push((key, false));
                }
            }
            Op::Range(_) => {}
        }
    }

    fn end(&mut self, lease: LeaseId, changed: &mut Vec<(Key, bool)>) {
        if self.leases.remove(&lease.0).is_none() {
            return;
        }
        let keys: Vec<_> = self.pairs.values().filter(|kv| kv.lease == Some(lease)).map(|kv| kv.key.clone()).collect();
        for key in keys {
            self.pairs.remove(&key);
            changed.push((key, false));
        }
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let lease = prop_oneof![2 => Just(None), 1 => (1..5_u64).prop_map(|lease| Some(LeaseId(lease)))];
    let put = (0..6_u8, 0..4_u8, lease).prop_map(|(number, value, lease)| Op::Put {
        key: key(number),
        value: Bytes::from(vec![value]),
        lease,
    });
    let delete = (6..8_u8, 0..8_u8).prop_map(|(start, width)| Op::Delete {
        range: KeyRange::between(key(start - 6).to_bytes(), Some(key((start - 6 + width).min(9)).to_bytes())),
    });
    let op = prop_oneof![3 => put, 1 => delete];
    let compare =
        (0..6_u8, 0..6_u64).prop_map(|(number, revision)| Compare::mod_revision(key(number), Revision(revision)));
    let ops = || prop::collection::vec(op.clone(), 0..3);
    let txn = (prop::collection::vec(compare, 0..2), ops(), ops())
        .prop_map(|(compares, then, otherwise)| Txn { compares, then, otherwise })
        .prop_filter("valid", |txn| txn.validate().is_ok())
        .prop_map(|txn| Command::Txn { txn, quota_bytes: u64::MAX });
    let lease = 1..5_u64;
    prop_oneof![
        8 => txn,
        1 => Just(Command::LeaseGrant { ttl: std::time::Duration::from_secs(1) }),
        1 => lease.clone().prop_map(|lease| Command::LeaseRevoke { lease: LeaseId(lease) }),
        1 => (lease, 0..3_u64).prop_map(|(lease, renewal)| Command::LeaseExpire { lease: LeaseId(lease), renewal }),
        1 => Just(Command::LeaseRenewAll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn agrees_with_the_naive_model(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut state = StateMachine::default();
        let mut naive = Naive::default();
        for command in &commands {
            let applied = state.apply(command);
            let changed = naive.apply(command);
            let events: Vec<_> = applied.events.iter().map(|e| (e.key().clone(), matches!(e, Event::Put(_)))).collect();
            prop_assert_eq!(events, changed);
            prop_assert_eq!(state.revision().0, naive.revision);
            prop_assert_eq!(state.pairs().collect::<Vec<_>>(), naive.pairs.values().cloned().collect::<Vec<_>>());
            let used: u64 = state.pairs().map(|kv| super::pair_bytes(&kv.key, &kv.value)).sum();
            prop_assert_eq!(state.used_bytes(), used);
        }
    }

    #[test]
    fn a_restored_snapshot_is_the_same_state(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut state = StateMachine::default();
        for command in &commands {
            state.apply(command);
        }
        let mut restored = StateMachine::restore(state.revision(), state.last_lease());
        state.leases().for_each(|lease| restored.restore_lease(&lease));
        state.pairs().for_each(|kv| restored.restore_pair(kv));
        prop_assert_eq!(content(&state), content(&restored));
    }
}

type Content = (u64, u64, u64, Vec<KeyValue>, Vec<(LeaseRecord, Vec<Key>)>);

fn content(state: &StateMachine) -> Content {
    let leases = state.leases().filter_map(|record| state.lease(record.lease)).collect();
    (state.revision().0, state.used_bytes(), state.last_lease(), state.pairs().collect(), leases)
}

fn txn(txn: Txn) -> Command {
    Command::Txn { txn, quota_bytes: 1000 }
}

#[test]
fn a_put_on_a_missing_lease_changes_nothing_at_all() {
    let mut state = StateMachine::default();
    let both = Txn::put(key(1), "a").then(Op::put_leased(key(2), "b", LeaseId(9)));
    let applied = state.apply(&txn(both));
    assert_eq!(applied.response, Response::Failed(StoreError::LeaseNotFound(LeaseId(9))));
    assert!(state.is_empty() && applied.events.is_empty() && applied.revision == Revision(0));
}

#[test]
fn a_stale_expiry_does_not_end_a_renewed_lease() {
    let mut state = StateMachine::default();
    state.apply(&Command::LeaseGrant { ttl: std::time::Duration::from_secs(1) });
    state.apply(&Command::LeaseRenewAll);
    let stale = Command::LeaseExpire { lease: LeaseId(1), renewal: 0 };
    assert_eq!(state.apply(&stale).response, Response::LeaseKept { lease: LeaseId(1) });
    let current = Command::LeaseExpire { lease: LeaseId(1), renewal: 1 };
    assert!(matches!(state.apply(&current).response, Response::LeaseEnded { .. }));
}

#[test]
fn the_quota_refuses_growth_and_lets_deletes_and_replacements_through() {
    let mut state = StateMachine::default();
    state.apply(&txn(Txn::put(key(1), vec![0; 800])));
    let full = state.apply(&txn(Txn::put(key(2), vec![0; 800])));
    assert!(matches!(full.response, Response::Failed(StoreError::QuotaExceeded { .. })));
    let replaced = state.apply(&txn(Txn::put(key(1), vec![1; 800])));
    assert!(matches!(replaced.response, Response::Txn { succeeded: true, .. }));
    let swap = Txn::delete(KeyRange::key(&key(1))).then(Op::put(key(2), vec![0; 800]));
    assert!(matches!(state.apply(&txn(swap)).response, Response::Txn { succeeded: true, .. }));
}

#[test]
fn what_the_keys_of_each_owner_take_is_counted_through_everything_that_changes_them() {
    let mut state = StateMachine::default();
    let owned = |name: &str| Key::try_from(name).unwrap();
    let Response::LeaseGranted { lease, .. } =
        state.apply(&Command::LeaseGrant { ttl: std::time::Duration::from_secs(1) }).response
    else {
        panic!()
    };
    let apply = |state: &mut StateMachine, txn: Txn| state.apply(&Command::Txn { txn, quota_bytes: u64::MAX });
    apply(&mut state, Txn::put(owned("kv/a/1"), vec![0; 100]));
    apply(&mut state, Txn::put(owned("kv/a/1"), vec![0; 50]));
    let leased = Op::Put { key: owned("kv/a/2"), value: vec![0; 10].into(), lease: Some(lease) };
    apply(&mut state, Txn::default().then(leased));
    apply(&mut state, Txn::put(owned("kv/b/1"), vec![0; 7]));
    for of_nobody in ["kv/a", "kv//a", "other/a/1"] {
        apply(&mut state, Txn::put(owned(of_nobody), vec![0; 1000]));
    }
    let pair = |bytes: u64| 6 + bytes + 128;
    assert_eq!((state.used_by(b"a"), state.used_by(b"b")), (pair(50) + pair(10), pair(7)));
    assert_eq!(state.growth(&owned("kv/a/1"), &vec![0; 60].into()), 10);
    assert_eq!(state.growth(&owned("kv/a/1"), &vec![0; 40].into()), 0);
    state.apply(&Command::LeaseRevoke { lease });
    assert_eq!(state.used_by(b"a"), pair(50));
    let mut again = StateMachine::restore(state.revision(), state.last_lease());
    state.pairs().for_each(|pair| again.restore_pair(pair));
    assert_eq!(again.used_by(b"a"), pair(50));
    apply(&mut state, Txn::delete(KeyRange::prefix(b"kv/".to_vec())));
    assert_eq!((state.used_by(b"a"), state.used_by(b"b")), (0, 0));
}

#[test]
fn a_read_inside_a_transaction_sees_the_writes_before_it() {
    let mut state = StateMachine::default();
    let read = Txn::put(key(1), "a").then(Op::Range(RangeRequest::key(&key(1)))).then(Op::put(key(2), "b"));
    let Response::Txn { results, revision, .. } = state.apply(&txn(read)).response else { panic!() };
    let OpResult::Range(range) = &results[1] else { panic!() };
    assert_eq!((range.kvs.len(), range.revision, revision), (1, Revision(1), Revision(1)));
}
