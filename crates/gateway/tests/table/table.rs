//! Reads the table: `http1.txt` and `http2.txt`, whose heads say what their columns mean.

/// What a request is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Open,
    HalfHead,
    Head,
    PostHead,
    HalfBody,
    Body,
    Held,
    Interim,
    HalfAnswerHead,
    HalfAnswer,
    Answered,
    Tunnel,
}

/// States by their names in the table.
pub const STATES: [(&str, State); 12] = [
    ("connection open, nothing sent", State::Open),
    ("half a head", State::HalfHead),
    ("GET at the instance", State::Head),
    ("POST at the instance, no body yet", State::PostHead),
    ("half the body", State::HalfBody),
    ("body complete", State::Body),
    ("held", State::Held),
    ("1xx received", State::Interim),
    ("half the answer's head", State::HalfAnswerHead),
    ("half the answer's body", State::HalfAnswer),
    ("answered, connection kept", State::Answered),
    ("tunnel", State::Tunnel),
];

/// What happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    ClientFin,
    ClientRst,
    ClientReset,
    ClientStalls,
    InstanceFin,
    InstanceRst,
    DeadlinePasses,
    InstanceGarbage,
    InterimStorm,
    AnswerTooLong,
    AnswerTooShort,
    AnswerHuge,
    InstanceNeverReads,
    InstanceNeverReadsAndClientLeaves,
    EndpointRemoved,
    DrainBegins,
}

/// Events by their names in the table.
pub const EVENTS: [(&str, Event); 16] = [
    ("client FIN", Event::ClientFin),
    ("client RST", Event::ClientRst),
    ("client RST_STREAM", Event::ClientReset),
    ("client stalls", Event::ClientStalls),
    ("instance FIN", Event::InstanceFin),
    ("instance RST", Event::InstanceRst),
    ("deadline passes", Event::DeadlinePasses),
    ("garbage", Event::InstanceGarbage),
    ("1xx storm", Event::InterimStorm),
    ("answer too long", Event::AnswerTooLong),
    ("answer too short", Event::AnswerTooShort),
    ("4 GiB promised", Event::AnswerHuge),
    ("never reads", Event::InstanceNeverReads),
    ("never reads, client RST", Event::InstanceNeverReadsAndClientLeaves),
    ("endpoint removed", Event::EndpointRemoved),
    ("drain begins", Event::DrainBegins),
];

/// What the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// What the client sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// It does not look any more.
    Left,
    /// The exchange takes its course.
    GoesOn,
    /// Another attempt, or another request on its connection, is answered.
    Again,
    /// The answer breaks off, visibly.
    Cut,
    /// The connection ends without an answer.
    Closed,
    Answer {
        status: u16,
        reason: String,
        /// The connection is kept.
        keeps: bool,
    },
}

/// What the instance sees of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instance {
    /// There is none.
    None,
    /// It ends.
    Ended,
    /// It goes on and is used again.
    Kept,
    /// It has ended it itself.
    Left,
}

/// One cell that can occur.
#[derive(Clone, Debug)]
pub struct Line {
    pub protocol: Protocol,
    pub state: State,
    pub event: Event,
    pub client: Client,
    pub instance: Instance,
    /// Status and reason of the request's record, if it has one.
    pub record: Option<(u16, String)>,
}

/// Every cell of a table; `None` for one that cannot occur, which says why.
pub fn read(text: &str, protocol: Protocol) -> Vec<(State, Event, Option<Line>)> {
    let mut state = None;
    let mut cells = Vec::new();
    for text in text.lines() {
        if let Some(name) = text.strip_prefix("## ") {
            state = Some(named(&STATES, name));
            continue;
        }
        let (Some(state), true) = (state, text.contains('|')) else { continue };
        let columns: Vec<&str> = text.split('|').map(str::trim).collect();
        let event = named(&EVENTS, columns[0]);
        let line = match columns[..] {
            [_, why] => {
                assert!(why.len() > 5, "{text}: says why");
                None
            }
            [_, seen, instance, record] => {
                let (client, instance) = (client(seen), heard(instance));
                Some(Line { protocol, state, event, client, instance, record: recorded(record) })
            }
            _ => panic!("{text}: four columns, or two for a cell that cannot occur"),
        };
        cells.push((state, event, line));
    }
    cells
}

fn named<T: Copy>(all: &[(&str, T)], name: &str) -> T {
    all.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("`{name}` is in no list")).1
}

fn client(words: &str) -> Client {
    match words {
        "left" => Client::Left,
        "goes on" => Client::GoesOn,
        "again" => Client::Again,
        "cut" => Client::Cut,
        "closed" => Client::Closed,
        _ => {
            let words: Vec<&str> = words.split(' ').collect();
            let keeps = match words[words.len() - 1] {
                "kept" => true,
                "closed" => false,
                _ => panic!("{words:?}: kept or closed?"),
            };
            let reason = if words.len() == 3 { words[1].to_owned() } else { String::new() };
            Client::Answer { status: words[0].parse().unwrap(), reason, keeps }
        }
    }
}

fn heard(word: &str) -> Instance {
    match word {
        "none" => Instance::None,
        "ended" => Instance::Ended,
        "kept" => Instance::Kept,
        "left" => Instance::Left,
        _ => panic!("`{word}` says nothing of an instance"),
    }
}

fn recorded(words: &str) -> Option<(u16, String)> {
    let (status, reason) = words.split_once(' ')?;
    Some((status.parse().unwrap(), reason.to_owned()))
}
