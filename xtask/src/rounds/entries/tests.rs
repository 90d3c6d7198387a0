//! Histories made by hand: what must be caught is, and what may be is let be.

use serde_json::json;

use super::{Entry, Log, Look, first_difference, keys};

fn entry(what: &str, called: u64, returned: u64, offset: u64, epoch: u64) -> Entry {
    let epoch = (epoch > 0).then_some(epoch);
    Entry { what: what.to_owned(), called, returned, offset: Some(offset), epoch }
}

fn look(called: u64, end: u64, epoch: u64, entries: &[(u64, &str)]) -> Look {
    let entries = entries.iter().map(|(at, what)| (*at, (*what).to_owned())).collect();
    Look { called, end, epoch: (epoch > 0).then_some(epoch), entries }
}

fn check(acknowledged: &[Entry], looks: &[Look], finally: &str) -> Result<(), String> {
    let log = Log { acknowledged: acknowledged.to_vec(), looks: looks.to_vec() };
    log.check(&finally.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
}

#[track_caller]
fn wrong(acknowledged: &[Entry], looks: &[Look], finally: &str, why: &str) {
    let found = check(acknowledged, looks, finally).unwrap_err();
    assert!(found.contains(why), "{found}");
}

#[test]
fn calls_that_overlap_may_stand_either_way_and_unknown_ones_anywhere_or_nowhere() {
    let overlap = [entry("a", 0, 10, 1, 0), entry("b", 5, 9, 0, 0)];
    check(&overlap, &[look(9, 1, 0, &[(0, "b")]), look(20, 3, 0, &[(2, "unknown")])], "b a unknown").unwrap();
    let again = Entry { offset: None, ..entry("b", 5, 30, 0, 0) };
    check(&[entry("a", 0, 3, 0, 1), again], &[], "a b").unwrap();
}

#[test]
fn what_is_lost_doubled_or_elsewhere_is_caught() {
    wrong(&[entry("a", 0, 1, 0, 0)], &[], "b", "acknowledged and lost");
    wrong(&[], &[], "a b a", "twice, at 0 and 2");
    wrong(&[entry("a", 0, 1, 0, 0)], &[], "b a", "another offset than 1");
    wrong(&[], &[look(0, 1, 0, &[(0, "a")])], "b", "read a at 0");
    wrong(&[], &[look(0, 3, 0, &[])], "a b", "longer than it is");
}

#[test]
fn who_comes_later_stands_behind_and_sees_what_had_returned() {
    wrong(&[entry("a", 0, 1, 1, 0), entry("b", 2, 3, 0, 0)], &[], "b a", "stands at 0, though offset 1");
    wrong(&[entry("a", 0, 1, 0, 0)], &[look(2, 0, 0, &[])], "a", "does not show offset");
    check(&[entry("a", 0, 2, 0, 0)], &[look(2, 0, 0, &[])], "a").unwrap();
}

#[test]
fn two_primaries_at_once_are_caught() {
    let by_turns = [entry("a", 0, 9, 0, 1), entry("b", 0, 9, 1, 2), entry("c", 0, 9, 2, 1)];
    wrong(&by_turns, &[], "a b c", "of an older primary");
    check(&by_turns[..2], &[], "a b").unwrap();
    wrong(&by_turns[1..2], &[look(10, 2, 1, &[])], "a b", "an older primary answered");
    check(&by_turns[1..2], &[look(9, 2, 1, &[])], "a b").unwrap();
}

#[test]
fn balances_go_on_from_one_another() {
    let written = |balances: &[u64]| -> Vec<_> {
        balances
            .iter()
            .map(|balance| json!({ "amount": 1, "balance": balance, "key": format!("k{balance}") }))
            .collect()
    };
    assert_eq!(keys(&written(&[1, 2])).unwrap(), ["k1", "k2"]);
    assert!(keys(&written(&[1, 2, 2])).unwrap_err().contains("another balance than 2"));
}

#[test]
fn a_later_look_may_go_on_and_changes_nothing() {
    let of = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(first_difference(&of("a b"), &of("a b unknown")), None);
    assert_eq!(first_difference(&of("a b"), &of("a")), Some(1));
    assert_eq!(first_difference(&of("a b"), &of("b a c")), Some(0));
}
