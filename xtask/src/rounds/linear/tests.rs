//! Histories made by hand that a register with compare-and-set cannot have, or can.

use super::super::chance::Chance;
use super::super::history::{Did, NEVER, Operation};
use super::check;

fn did(client: usize, called: u64, returned: u64, did: Did) -> Operation {
    Operation { client, node: 0, key: 0, called, returned, did }
}

fn wrote(value: u64, revision: u64) -> Did {
    Did::Wrote { value, cas: None, revision }
}

fn unknown(value: u64) -> Did {
    Did::Unknown { value, cas: None }
}

fn read(value: u64, revision: u64) -> Did {
    Did::Read(Some((value, revision)))
}

#[test]
fn a_stale_read_is_refused() {
    let history = [did(0, 0, 1, wrote(1, 1)), did(0, 2, 3, wrote(2, 2)), did(1, 4, 5, read(1, 1))];
    let said = check(&history).unwrap_err();
    assert!(said.contains("\"read\":1"), "{said}");
    // Of a write under way, either may be read.
    let history = [did(0, 0, 1, wrote(1, 1)), did(0, 2, 6, wrote(2, 2)), did(1, 4, 5, read(1, 1))];
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn a_lost_write_is_refused() {
    let nothing = [did(0, 0, 1, wrote(1, 1)), did(1, 2, 3, Did::Read(None))];
    assert!(check(&nothing).is_err());
    let history =
        [did(0, 0, 1, wrote(1, 1)), did(0, 2, 3, wrote(2, 2)), did(1, 4, 5, read(1, 1)), did(1, 6, 7, read(2, 2))];
    assert!(check(&history).is_err(), "lost and there again");
}

#[test]
fn two_readers_agree_on_an_order() {
    let history =
        [did(0, 0, 9, wrote(1, 1)), did(1, 0, 9, wrote(2, 2)), did(2, 10, 11, read(1, 1)), did(3, 12, 13, read(2, 2))];
    assert!(check(&history).is_err());
    let history = [
        did(0, 0, 9, wrote(1, 1)),
        did(1, 0, 9, wrote(2, 2)),
        did(2, 3, 4, read(2, 2)),
        did(3, 5, 6, read(1, 1)),
        did(3, 10, 11, read(1, 1)),
    ];
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn what_is_unknown_may_happen_late_or_never_but_once() {
    let begun = did(0, 0, NEVER, unknown(1));
    let history = [begun.clone(), did(1, 1, 2, wrote(2, 1)), did(1, 8, 9, read(1, 2))];
    assert_eq!(check(&history), Ok(()));
    let history = [begun.clone(), did(1, 1, 2, wrote(2, 1)), did(1, 8, 9, read(2, 1))];
    assert_eq!(check(&history), Ok(()));
    let twice = [begun, did(1, 3, 4, read(1, 1)), did(1, 5, 6, wrote(2, 2)), did(1, 7, 8, read(1, 3))];
    assert!(check(&twice).unwrap_err().contains("written twice"));
    let early = [did(1, 1, 2, read(1, 1)), did(0, 3, NEVER, unknown(1))];
    assert!(check(&early).is_err(), "read before it was called");
}

#[test]
fn a_value_nobody_wrote_is_refused() {
    let history = [did(0, 0, 1, Did::Refused { value: 1 }), did(1, 2, 3, read(1, 1))];
    assert!(check(&history).unwrap_err().contains("nobody's write"));
}

#[test]
fn of_two_comparisons_with_one_revision_one_fails() {
    let cas = |value, cas, revision| Did::Wrote { value, cas: Some(cas), revision };
    let both = [did(0, 0, 1, wrote(1, 1)), did(1, 2, 9, cas(2, 1, 2)), did(2, 2, 9, cas(3, 1, 3))];
    assert!(check(&both).is_err());
    let one =
        [did(0, 0, 1, wrote(1, 1)), did(1, 2, 9, cas(2, 1, 2)), did(2, 2, 9, Did::Conflicted { cas: 1, current: 2 })];
    assert_eq!(check(&one), Ok(()));
    let early =
        [did(0, 0, 1, wrote(1, 1)), did(2, 2, 3, Did::Conflicted { cas: 1, current: 2 }), did(1, 4, 9, cas(2, 1, 2))];
    assert!(check(&early).is_err(), "the conflict was with something later");
    let created = [did(0, 0, 1, cas(1, 0, 1)), did(1, 2, 3, cas(2, 0, 2))];
    assert!(check(&created).is_err(), "made twice");
}

#[test]
fn a_conflict_with_an_unknown_write_is_explained_by_it() {
    let history = [
        did(0, 0, 1, wrote(1, 1)),
        did(1, 2, NEVER, unknown(2)),
        did(2, 4, 5, Did::Conflicted { cas: 1, current: 2 }),
        did(2, 6, 7, wrote(3, 3)),
    ];
    assert_eq!(check(&history), Ok(()));
    let nobody = [history[0].clone(), history[2].clone()];
    assert!(check(&nobody).is_err());
}

/// A register that is right, with calls that overlap; then one answer is bent.
#[test]
fn ten_thousand_operations_are_judged_and_one_wrong_answer_among_them_is_found() {
    let mut chance = Chance::new(7, 0);
    let (mut history, mut state, mut values) = (Vec::new(), None, 0);
    for at in 0..10_000_u64 {
        // Each takes effect at 10 * at, and lasts a while before and after.
        let (called, returned) = ((at * 10).saturating_sub(chance.below(30)), at * 10 + chance.below(30));
        let step = match chance.below(3) {
            0 => Did::Read(state),
            1 if chance.percent(2) => {
                values += 1;
                // Half of the unknown ones happen.
                if chance.percent(50) {
                    state = Some((values, at + 1));
                }
                history.push(did(0, called, NEVER, unknown(values)));
                continue;
            }
            1 => {
                values += 1;
                state = Some((values, at + 1));
                wrote(values, at + 1)
            }
            _ => match state {
                Some((_, current)) if chance.percent(50) => {
                    values += 1;
                    state = Some((values, at + 1));
                    Did::Wrote { value: values, cas: Some(current), revision: at + 1 }
                }
                Some((_, current)) => Did::Conflicted { cas: current - 1, current },
                None => Did::Read(None),
            },
        };
        history.push(did(0, called, returned, step));
    }
    assert_eq!(check(&history), Ok(()));
    assert_eq!(super::super::order::check(&history), Ok(()));
    let old =
        history.iter().find_map(|one| if let Did::Read(Some(found)) = one.did { Some(found) } else { None }).unwrap();
    let late = history.iter().rposition(|one| matches!(one.did, Did::Read(_))).unwrap();
    history[late].did = Did::Read(Some(old));
    assert!(check(&history).is_err());
    assert!(super::super::order::check(&history).is_err());
}
