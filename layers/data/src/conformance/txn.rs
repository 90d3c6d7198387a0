//! Clauses on transactions, revisions, reads and limits.

use std::sync::Arc;

use super::{Make, Setup, clause, committed, get, key, put};
use crate::{
    Compare, CompareOp, CompareTarget, Consistency, KeyRange, LeaseId, MAX_TXN_OPS, MAX_VALUE_BYTES, Op, OpResult,
    RangeRequest, Revision, Store, StoreError, Txn, TxnOutcome,
};

pub(super) async fn all(make: Make<'_>) {
    clause("revisions count changes", revisions(make(Setup::default()))).await;
    clause("a transaction is atomic and has one revision", atomic(make(Setup::default()))).await;
    clause("compares", compares(make(Setup::default()))).await;
    clause("ranges", ranges(make(Setup::default()))).await;
    clause("limits", limits(make(Setup::default()))).await;
    clause("quota", quota(make(Setup { quota_bytes: 4096, ..Setup::default() }))).await;
    clause("control has room", control_has_room(make(Setup { quota_bytes: 4096, ..Setup::default() }))).await;
    clause("concurrent increments lose nothing", increments(make(Setup::default()))).await;
}

async fn revisions(store: Arc<dyn Store>) {
    let store = &*store;
    assert_eq!(store.status().revision, Revision(0));
    assert_eq!(put(store, "a", "1").await, Revision(1));
    assert_eq!(put(store, "b", "1").await, Revision(2));
    assert_eq!(put(store, "a", "2").await, Revision(3));
    let a = get(store, "a").await.expect("a exists");
    assert_eq!((a.create_revision, a.mod_revision, a.version), (Revision(1), Revision(3), 2));
    assert_eq!(&a.value[..], b"2");
    let nothing = committed(store, Txn::delete(KeyRange::key(&key("zzz")))).await;
    assert_eq!(nothing, Revision(3), "a delete of nothing changes nothing");
    assert_eq!(committed(store, Txn::delete(KeyRange::key(&key("a")))).await, Revision(4));
    assert_eq!(get(store, "a").await, None);
    put(store, "a", "3").await;
    let a = get(store, "a").await.expect("a exists");
    assert_eq!((a.create_revision, a.mod_revision, a.version), (Revision(5), Revision(5), 1), "a new life");
    assert_eq!(store.status().revision, Revision(5));
}

async fn atomic(store: Arc<dyn Store>) {
    let store = &*store;
    put(store, "gone", "x").await;
    let txn =
        Txn::put(key("a"), "1").then(Op::put(key("b"), "2")).then(Op::Delete { range: KeyRange::key(&key("gone")) });
    let outcome = store.txn(txn.then(Op::Range(RangeRequest::prefix("")))).await.expect("runs");
    let TxnOutcome::Committed { revision, results, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(revision, Revision(2));
    assert_eq!(results[..3], [OpResult::Put, OpResult::Put, OpResult::Deleted { count: 1 }]);
    let OpResult::Range(range) = &results[3] else { panic!("{results:?}") };
    let seen: Vec<_> = range.kvs.iter().map(|kv| (kv.key.as_str().unwrap_or_default(), kv.mod_revision.0)).collect();
    assert_eq!(seen, [("a", 2), ("b", 2)], "a read sees the writes before it");
    assert_eq!(range.revision, Revision(2));

    // One bad operation: none of them happens.
    let missing = LeaseId(999);
    let refused = store.txn(Txn::put(key("a"), "9").then(Op::put_leased(key("c"), "9", missing))).await;
    assert_eq!(refused, Err(StoreError::LeaseNotFound(missing)));
    assert_eq!(&get(store, "a").await.expect("a exists").value[..], b"1");
    let twice = Txn::put(key("a"), "9").then(Op::put(key("a"), "10"));
    assert!(matches!(store.txn(twice).await, Err(StoreError::Invalid { .. })));
    assert_eq!(store.status().revision, Revision(2));
}

async fn compares(store: Arc<dyn Store>) {
    let store = &*store;
    put(store, "a", "m").await;
    put(store, "a", "n").await;
    let holds = async |target: CompareTarget, op: CompareOp, name: &str| {
        let outcome = store.txn(Txn::default().when(Compare { key: key(name), target, op })).await.expect("runs");
        outcome.is_committed()
    };
    use CompareOp::{Equal, Greater, Less, NotEqual};
    let value = |text: &'static str| CompareTarget::Value(text.into());
    for (target, op, want) in [
        (CompareTarget::ModRevision(Revision(2)), Equal, true),
        (CompareTarget::ModRevision(Revision(1)), Equal, false),
        (CompareTarget::ModRevision(Revision(1)), Greater, true),
        (CompareTarget::CreateRevision(Revision(1)), Equal, true),
        (CompareTarget::CreateRevision(Revision(1)), NotEqual, false),
        (CompareTarget::Version(2), Equal, true),
        (CompareTarget::Version(3), Less, true),
        (value("n"), Equal, true),
        (value("m"), NotEqual, true),
        (value("m"), Greater, true),
        (value("o"), Less, true),
        (value("o"), Equal, false),
    ] {
        assert_eq!(holds(target.clone(), op, "a").await, want, "a {op:?} {target:?}");
    }
    for (target, op, want) in [
        (CompareTarget::ModRevision(Revision(0)), Equal, true),
        (CompareTarget::CreateRevision(Revision(0)), Equal, true),
        (CompareTarget::Version(0), Equal, true),
        (CompareTarget::Version(0), Greater, false),
        (value(""), Equal, false),
        (value("x"), NotEqual, false),
    ] {
        assert_eq!(holds(target.clone(), op, "absent").await, want, "absent {op:?} {target:?}");
    }
    let guarded = Txn::put(key("a"), "yes").when(Compare::absent(key("a"))).otherwise(Op::put(key("b"), "no"));
    let outcome = store.txn(guarded).await.expect("runs");
    assert_eq!(outcome, TxnOutcome::Rejected { revision: Revision(3), results: vec![OpResult::Put] });
    assert_eq!(&get(store, "b").await.expect("otherwise ran").value[..], b"no");
}

async fn ranges(store: Arc<dyn Store>) {
    let store = &*store;
    for name in ["b/2", "a", "b/1", "c", "b/3", "b0"] {
        put(store, name, name).await;
    }
    let names = async |request: RangeRequest, consistency| {
        let read = store.range(request, consistency).await.expect("a read");
        let names: Vec<_> = read.kvs.iter().map(|kv| kv.key.to_string()).collect();
        (names.join(" "), read.more, read.revision)
    };
    for consistency in [Consistency::Linearizable, Consistency::Stale] {
        let read = |request| names(request, consistency);
        assert_eq!(read(RangeRequest::prefix("b/")).await, ("b/1 b/2 b/3".into(), false, Revision(6)));
        assert_eq!(read(RangeRequest::prefix("b/").limit(2)).await, ("b/1 b/2".into(), true, Revision(6)));
        assert_eq!(read(RangeRequest::prefix("b/").limit(3)).await, ("b/1 b/2 b/3".into(), false, Revision(6)));
        assert_eq!(read(RangeRequest::new(KeyRange::all())).await.0, "a b/1 b/2 b/3 b0 c");
        let between = KeyRange::between("b/2", Some("c".into()));
        assert_eq!(read(RangeRequest::new(between)).await.0, "b/2 b/3 b0");
        let inverted = KeyRange::between("c", Some("a".into()));
        assert_eq!(read(RangeRequest::new(inverted)).await.0, "");
    }
}

async fn limits(store: Arc<dyn Store>) {
    let store = &*store;
    committed(store, Txn::put(key("big"), vec![7; MAX_VALUE_BYTES])).await;
    assert_eq!(get(store, "big").await.expect("big exists").value.len(), MAX_VALUE_BYTES);
    let too_big = store.txn(Txn::put(key("bigger"), vec![7; MAX_VALUE_BYTES + 1])).await;
    assert!(matches!(too_big, Err(StoreError::TooLarge { what: "value", .. })), "{too_big:?}");
    let mut many = Txn::default();
    for number in 0..=MAX_TXN_OPS {
        many = many.then(Op::put(key(&format!("k{number}")), "v"));
    }
    assert!(matches!(store.txn(many).await, Err(StoreError::TooLarge { .. })));
    let mut heavy = Txn::default();
    for number in 0..5 {
        heavy = heavy.then(Op::put(key(&format!("k{number}")), vec![0; MAX_VALUE_BYTES]));
    }
    assert!(matches!(store.txn(heavy).await, Err(StoreError::TooLarge { what: "transaction", .. })));
    assert_eq!(store.status().revision, Revision(1), "what was refused left no trace");
}

async fn quota(store: Arc<dyn Store>) {
    let store = &*store;
    committed(store, Txn::put(key("a"), vec![1; 3000])).await;
    let full = store.txn(Txn::put(key("b"), vec![1; 3000])).await;
    assert!(matches!(full, Err(StoreError::QuotaExceeded { quota: 4096, .. })), "{full:?}");
    assert_eq!(get(store, "b").await, None);
    committed(store, Txn::delete(KeyRange::key(&key("a")))).await;
    committed(store, Txn::put(key("b"), vec![1; 3000])).await;
}

async fn control_has_room(store: Arc<dyn Store>) {
    let store = &*store;
    committed(store, Txn::put(key("kv/a"), vec![1; 3000])).await;
    let full = store.txn(Txn::put(key("kv/b"), vec![1; 600])).await;
    assert!(matches!(full, Err(StoreError::QuotaExceeded { quota: 3840, .. })), "{full:?}");
    committed(store, Txn::put(key("control/b"), vec![1; 600])).await;
    committed(store, Txn::put(key("kv/a"), vec![1; 2999])).await;
}

async fn increments(store: Arc<dyn Store>) {
    const TASKS: u64 = 8;
    const EACH: u64 = 10;
    put(&*store, "n", "0").await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..EACH {
                    increment(&*store).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no task panics");
    }
    let n = get(&*store, "n").await.expect("n exists");
    assert_eq!(String::from_utf8_lossy(&n.value), (TASKS * EACH).to_string());
    assert_eq!(n.version, 1 + TASKS * EACH);
}

async fn increment(store: &dyn Store) {
    loop {
        let old = get(store, "n").await.expect("n exists");
        let number: u64 = String::from_utf8_lossy(&old.value).parse().expect("a number");
        let txn = Txn::put(key("n"), (number + 1).to_string()).when(Compare::mod_revision(key("n"), old.mod_revision));
        if store.txn(txn).await.expect("runs").is_committed() {
            return;
        }
    }
}
