//! Histories made by hand that the order of revisions must refuse, or accept.

use super::super::history::{Did, NEVER, Operation};
use super::{check, never_backwards, nothing_lost, refused_is_refused};

fn did(client: usize, key: usize, called: u64, returned: u64, did: Did) -> Operation {
    Operation { client, node: 0, key, called, returned, did }
}

fn wrote(value: u64, revision: u64) -> Did {
    Did::Wrote { value, cas: None, revision }
}

#[test]
fn a_lost_write_is_told_by_name() {
    let history = [did(0, 0, 0, 1, wrote(10, 1)), did(0, 0, 2, 3, wrote(11, 2))];
    let finally = [did(9, 0, 5, 6, Did::Read(Some((10, 1))))];
    let said = nothing_lost(&history, &finally).unwrap_err();
    assert!(said.contains("acknowledged and lost") && said.contains("\"wrote\":11"), "{said}");
    let finally = [did(9, 0, 5, 6, Did::Read(Some((11, 2))))];
    assert_eq!(nothing_lost(&history, &finally), Ok(()));
    let gone = [did(9, 0, 5, 6, Did::Read(None))];
    assert!(nothing_lost(&history, &gone).is_err());
}

#[test]
fn a_revision_that_was_given_twice_is_refused() {
    let history = [did(0, 0, 0, 1, wrote(10, 1)), did(1, 1, 2, 3, wrote(20, 1))];
    assert!(check(&history).unwrap_err().contains("revision 1"));
}

#[test]
fn a_reader_of_another_key_may_not_go_back_in_time() {
    // Key 0 at revision 2 was read; key 1 was overwritten at 3, and that had returned, too.
    let history = [
        did(0, 1, 0, 1, wrote(20, 1)),
        did(0, 0, 2, 3, wrote(10, 2)),
        did(0, 1, 4, 5, wrote(21, 3)),
        did(1, 1, 6, 7, Did::Read(Some((20, 1)))),
    ];
    assert!(check(&history).unwrap_err().contains("is older than what"));
    // While the write is under way both answers are right, in this order only.
    let reads = |first, second| {
        [
            did(0, 1, 0, 1, wrote(20, 1)),
            did(0, 1, 4, 20, wrote(21, 3)),
            did(1, 1, 6, 7, Did::Read(Some(first))),
            did(2, 1, 8, 9, Did::Read(Some(second))),
        ]
    };
    assert_eq!(check(&reads((20, 1), (21, 3))), Ok(()));
    assert!(check(&reads((21, 3), (20, 1))).is_err());
}

#[test]
fn a_later_write_has_a_later_revision() {
    let history = [did(0, 0, 0, 1, wrote(10, 5)), did(1, 1, 2, 3, wrote(20, 4))];
    assert!(check(&history).unwrap_err().contains("was written before what"));
    let overlapping = [did(0, 0, 0, 3, wrote(10, 5)), did(1, 1, 2, 3, wrote(20, 4))];
    assert_eq!(check(&overlapping), Ok(()));
}

#[test]
fn a_comparison_that_let_another_write_through_is_refused() {
    let cas = Did::Wrote { value: 12, cas: Some(1), revision: 3 };
    let history = [did(0, 0, 0, 1, wrote(10, 1)), did(1, 0, 2, 9, wrote(11, 2)), did(2, 0, 2, 9, cas)];
    assert!(check(&history).unwrap_err().contains("although revision 2 came between"));
    let same = Did::Conflicted { cas: 1, current: 1 };
    let history = [did(0, 0, 0, 1, wrote(10, 1)), did(1, 0, 2, 3, same)];
    assert!(check(&history).unwrap_err().contains("although the comparison holds"));
}

#[test]
fn a_client_is_never_told_something_older() {
    let history = [
        did(0, 0, 0, 1, Did::Read(Some((11, 2)))),
        did(1, 0, 2, 3, Did::Read(Some((10, 1)))),
        did(0, 0, 4, 5, Did::Read(Some((10, 1)))),
    ];
    assert_eq!(never_backwards(&history[..2]), Ok(()));
    assert!(never_backwards(&history).unwrap_err().contains("knew revision 2"));
}

#[test]
fn a_refused_write_that_is_read_is_told() {
    let history = [
        did(0, 0, 0, 1, Did::Refused { value: 10 }),
        did(0, 0, 2, NEVER, Did::Unknown { value: 11, cas: None }),
        did(1, 0, 4, 5, Did::Read(Some((11, 1)))),
        did(1, 0, 6, 7, Did::Read(Some((10, 2)))),
    ];
    assert_eq!(refused_is_refused(&history[..3]), Ok(()));
    assert!(refused_is_refused(&history).unwrap_err().contains("refused and written all the same"));
}
