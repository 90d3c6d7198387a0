//! The state of streams against the obvious model: lists of entries, and every acknowledgement ever given.

use std::collections::BTreeMap;

use proptest::prelude::{ProptestConfig, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{Retention, StreamAnswer, StreamCommand, StreamRequest, StreamsState};
use crate::streams::{
    Append, Counted, MAX_CURSORS, MAX_PRODUCERS, MAX_STREAMS, Name, PRODUCER_IDLE, REMEMBERED_SEQS, StreamError,
};

const LARGE: Retention = Retention { max_bytes: 1 << 40, max_age_ms: None };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn append(stream: &str, producer: Option<(&str, u64)>, epoch: Option<u64>, bytes: usize) -> StreamRequest {
    StreamRequest::Append(Append {
        stream: name(stream),
        producer: producer.map(|(producer, seq)| (name(producer), seq)),
        epoch,
        entry: vec![b'x'; bytes].into(),
    })
}

fn run(state: &mut StreamsState, now_ms: u64, retention: Retention, request: StreamRequest) -> StreamAnswer {
    let command = StreamCommand { now_ms, retention, request };
    let place = state.place(&command);
    let next = if let StreamRequest::Append(append) = &command.request {
        state.stream(&append.stream).map_or(0, |record| record.next)
    } else {
        0
    };
    let answer = state.apply(&command);
    let taken = matches!(answer, StreamAnswer::Appended { repeated: false, .. });
    assert_eq!(place.is_some(), taken, "what is placed is taken, and nothing else: {answer:?}");
    assert!(place.is_none_or(|place| place.offset == next));
    answer
}

fn offset(offset: u64) -> StreamAnswer {
    StreamAnswer::Appended { offset, repeated: false }
}

fn again(offset: u64) -> StreamAnswer {
    StreamAnswer::Appended { offset, repeated: true }
}

#[test]
fn a_repetition_gets_the_first_offset_and_a_gap_is_told_what_was_expected() {
    let mut state = StreamsState::default();
    let mut put = |seq| run(&mut state, 0, LARGE, append("s", Some(("p", seq)), None, 1));
    assert_eq!(put(2), StreamAnswer::Failed(StreamError::OutOfSequence { expected: 1 }));
    for seq in 1..=40 {
        assert_eq!(put(seq), offset(seq - 1));
    }
    for seq in 40 - REMEMBERED_SEQS as u64 + 1..=40 {
        assert_eq!(put(seq), again(seq - 1));
    }
    for wrong in [0, 1, 40 - REMEMBERED_SEQS as u64, 42, u64::MAX] {
        assert_eq!(put(wrong), StreamAnswer::Failed(StreamError::OutOfSequence { expected: 41 }), "{wrong}");
    }
}

#[test]
fn a_sealed_stream_takes_only_its_epoch_or_newer_ones() {
    let mut state = StreamsState::default();
    let mut ask = |request| run(&mut state, 0, LARGE, request);
    let seal = |epoch| StreamRequest::Seal { stream: name("s"), epoch };
    assert_eq!(ask(append("s", Some(("old", 1)), Some(3), 1)), offset(0));
    assert_eq!(ask(seal(5)), StreamAnswer::Sealed { end: 1 });
    let fenced = StreamAnswer::Failed(StreamError::Fenced { epoch: 5 });
    assert_eq!(ask(append("s", Some(("old", 2)), Some(3), 1)), fenced);
    assert_eq!(ask(append("s", None, None, 1)), fenced);
    assert_eq!(ask(append("s", Some(("old", 1)), Some(3), 1)), again(0), "what is there is there");
    assert_eq!(ask(append("s", None, Some(5), 1)), offset(1));
    assert_eq!(ask(append("s", None, Some(6), 1)), offset(2));
    assert_eq!(ask(seal(5)), StreamAnswer::Sealed { end: 1 }, "the same seal, the same end");
    assert_eq!(ask(seal(4)), fenced);
    assert_eq!(ask(StreamRequest::Delete { stream: name("s"), epoch: Some(4) }), fenced);
    assert_eq!(ask(seal(9)), StreamAnswer::Sealed { end: 3 });
    assert_eq!(ask(StreamRequest::Delete { stream: name("s"), epoch: None }), StreamAnswer::Deleted);
    assert_eq!(ask(StreamRequest::Seal { stream: name("new"), epoch: 2 }), StreamAnswer::Sealed { end: 0 });
    assert_eq!(ask(append("new", None, Some(1), 1)), StreamAnswer::Failed(StreamError::Fenced { epoch: 2 }));
}

#[test]
fn streams_producers_and_cursors_are_bounded_and_only_idle_producers_are_forgotten() {
    let mut state = StreamsState::default();
    let idle = u64::try_from(PRODUCER_IDLE.as_millis()).unwrap();
    for producer in 0..MAX_PRODUCERS {
        let request = append("s", Some((&format!("p{producer}"), 1)), None, 1);
        assert_eq!(run(&mut state, producer as u64, LARGE, request), offset(producer as u64));
    }
    let one_more = |state: &mut StreamsState, now| run(state, now, LARGE, append("s", Some(("more", 1)), None, 1));
    let full = StreamError::Full(Counted::Producers);
    assert_eq!(one_more(&mut state, idle - 1), StreamAnswer::Failed(full));
    assert_eq!(one_more(&mut state, idle), offset(MAX_PRODUCERS as u64));
    let record = state.stream(&name("s")).unwrap();
    assert_eq!(record.producers.len(), MAX_PRODUCERS);
    assert!(!record.producers.contains_key(&name("p0")) && record.producers.contains_key(&name("p1")));

    for number in 0..=MAX_CURSORS {
        let cursor = name(&format!("c{number}"));
        let answer = run(&mut state, 0, LARGE, StreamRequest::Commit { stream: name("s"), cursor, offset: 1 });
        assert_eq!(answer == StreamAnswer::Committed, number < MAX_CURSORS);
    }
    for stream in 1..MAX_STREAMS {
        assert_eq!(run(&mut state, 0, LARGE, append(&format!("s{stream}"), None, None, 1)), offset(0));
    }
    let full = StreamAnswer::Failed(StreamError::Full(Counted::Streams));
    assert_eq!(run(&mut state, 0, LARGE, append("many", None, None, 1)), full);
    assert_eq!(run(&mut state, 0, LARGE, StreamRequest::Seal { stream: name("many"), epoch: 1 }), full);
}

#[test]
fn a_stream_keeps_its_newest_bytes_and_what_is_young_enough() {
    let mut state = StreamsState::default();
    let retention = Retention { max_bytes: 1024 * 1024, max_age_ms: Some(1600) };
    for count in 0..100 {
        run(&mut state, 0, retention, append("s", None, None, 50_000));
        let record = state.stream(&name("s")).unwrap();
        assert!(record.bytes <= retention.max_bytes, "{} bytes after {count}", record.bytes);
        assert!(record.bytes > retention.max_bytes / 16 * 14 || record.first == 0);
    }
    // One entry a hundred milliseconds: each lives for the maximum age, and at most one part of it longer.
    for now in (10_000..20_000).step_by(100) {
        run(&mut state, now, retention, append("s", None, None, 10));
        let record = state.stream(&name("s")).unwrap();
        let oldest = record.segments.front().unwrap().first_at_ms;
        assert!(oldest + 1600 + 2 * 200 >= now, "{oldest} at {now}");
    }
    assert!(state.stream(&name("s")).unwrap().segments.front().unwrap().first_at_ms <= 20_000 - 1600);
    run(&mut state, 30_000, retention, StreamRequest::Trim);
    let record = state.stream(&name("s")).unwrap();
    assert_eq!((record.first, record.bytes), (record.next, 0));
    assert_eq!(run(&mut state, 30_000, retention, append("s", None, None, 1)), offset(200));
    let cursor = |offset| StreamRequest::Commit { stream: name("s"), cursor: name("c"), offset };
    assert_eq!(run(&mut state, 0, LARGE, cursor(201)), StreamAnswer::Committed);
    assert_eq!(run(&mut state, 0, LARGE, cursor(202)), StreamAnswer::Failed(StreamError::PastEnd { next: 201 }));
}

#[derive(Clone, Debug)]
enum Step {
    Append { stream: u8, producer: u8, seq_delta: i8, epoch: Option<u64>, bytes: usize },
    Seal { stream: u8, epoch: u64 },
    Commit { stream: u8, cursor: u8, offset: u64 },
    Delete { stream: u8 },
    Trim,
    Wait(u64),
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..3_u8, 0..3_u8, -3..3_i8, prop::option::of(0..5_u64), 0..40_000_usize).prop_map(
            |(stream, producer, seq_delta, epoch, bytes)| Step::Append { stream, producer, seq_delta, epoch, bytes }
        ),
        1 => (0..3_u8, 0..5_u64).prop_map(|(stream, epoch)| Step::Seal { stream, epoch }),
        1 => (0..3_u8, 0..3_u8, 0..20_u64).prop_map(|(stream, cursor, offset)| Step::Commit { stream, cursor, offset }),
        1 => (0..3_u8).prop_map(|stream| Step::Delete { stream }),
        1 => prop_oneof![prop::strategy::Just(Step::Trim), prop::strategy::Just(Step::Restore)],
        2 => (0..500_u64).prop_map(Step::Wait),
    ]
}

/// What a snapshot carries.
fn restored(state: &StreamsState) -> StreamsState {
    let mut copy = StreamsState::restore(state.next_id());
    for (name, record) in state.streams() {
        copy.restore_stream(name.clone(), (**record).clone());
    }
    copy
}

fn check(state: &StreamsState) -> Result<(), proptest::test_runner::TestCaseError> {
    for (_, record) in state.streams() {
        let mut next = record.first;
        let mut at = 0;
        for segment in &record.segments {
            prop_assert_eq!(segment.first, next);
            prop_assert!(segment.entries > 0 && segment.first_at_ms <= segment.last_at_ms && at <= segment.first_at_ms);
            (next, at) = (next + segment.entries, segment.last_at_ms);
        }
        prop_assert_eq!(next, record.next);
        prop_assert_eq!(record.bytes, record.segments.iter().map(|segment| segment.bytes).sum::<u64>());
        prop_assert!(record.cursors.values().all(|cursor| *cursor <= record.next));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_acknowledgement_holds_and_replicas_agree(steps in prop::collection::vec(step(), 1..80)) {
        let retention = Retention { max_bytes: 1024 * 1024, max_age_ms: Some(2000) };
        let (mut state, mut other) = (StreamsState::default(), StreamsState::default());
        let mut acknowledged: BTreeMap<(u8, u8, u64), u64> = BTreeMap::new();
        let mut ends: BTreeMap<u8, u64> = BTreeMap::new();
        let mut seals: BTreeMap<u8, u64> = BTreeMap::new();
        let mut now_ms = 0;
        for step in steps {
            let stream = |number: u8| name(&format!("s{number}"));
            let request = match &step {
                Step::Wait(time) => {
                    now_ms += time;
                    continue;
                }
                Step::Restore => {
                    other = restored(&other);
                    continue;
                }
                Step::Trim => StreamRequest::Trim,
                Step::Seal { stream: number, epoch } => StreamRequest::Seal { stream: stream(*number), epoch: *epoch },
                Step::Delete { stream: number } => StreamRequest::Delete { stream: stream(*number), epoch: None },
                Step::Commit { stream: number, cursor, offset } => {
                    StreamRequest::Commit { stream: stream(*number), cursor: name(&format!("c{cursor}")), offset: *offset }
                }
                Step::Append { stream: number, producer, seq_delta, epoch, bytes } => {
                    let newest = acknowledged.range((*number, *producer, 0)..=(*number, *producer, u64::MAX)).next_back();
                    let next = newest.map_or(1, |((_, _, seq), _)| seq + 1);
                    let seq = next.saturating_add_signed(i64::from(*seq_delta));
                    let producer = format!("p{producer}");
                    append(&format!("s{number}"), Some((&producer, seq)), *epoch, *bytes)
                }
            };
            let answer = run(&mut state, now_ms, retention, request.clone());
            prop_assert_eq!(&answer, &run(&mut other, now_ms, retention, request.clone()));
            match (&step, &answer) {
                (Step::Append { stream, producer, epoch, .. }, StreamAnswer::Appended { offset, repeated }) => {
                    let StreamRequest::Append(Append { producer: Some((_, seq)), .. }) = &request else { unreachable!() };
                    let first = acknowledged.entry((*stream, *producer, *seq)).or_insert(*offset);
                    prop_assert_eq!(*first, *offset);
                    if !repeated {
                        let end = ends.entry(*stream).or_default();
                        prop_assert_eq!(*end, *offset);
                        *end += 1;
                        prop_assert!(seals.get(stream).is_none_or(|sealed| epoch.is_some_and(|epoch| epoch >= *sealed)));
                    }
                }
                (Step::Seal { stream, epoch }, StreamAnswer::Sealed { end }) => {
                    prop_assert!(*end <= ends.get(stream).copied().unwrap_or_default());
                    prop_assert!(seals.insert(*stream, *epoch).is_none_or(|before| before <= *epoch));
                }
                (Step::Delete { stream }, StreamAnswer::Deleted) => {
                    ends.remove(stream);
                    seals.remove(stream);
                    acknowledged.retain(|(of, _, _), _| of != stream);
                }
                _ => {}
            }
            check(&state)?;
            prop_assert!(restored(&state) == restored(&other));
        }
    }
}
