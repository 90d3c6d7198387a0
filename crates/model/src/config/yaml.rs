//! YAML text to a tree in which every key and value knows its place.
//! Scalars stay text: the type that a field expects decides what they mean, so `version: 1.10` never becomes 1.1.
//! Bounded in size, depth and (through aliases) in the number of nodes.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use crate::diagnostic::{Diagnostics, Place};

/// The largest accepted file, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// The deepest accepted nesting.
pub const MAX_DEPTH: usize = 64;
/// The most nodes a file may hold once its aliases are expanded.
pub const MAX_NODES: usize = 200_000;

/// One value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Where it starts.
    pub place: Place,
}

impl Node {
    /// The same, standing nowhere in its file.
    pub fn without_places(self) -> Self {
        let nowhere = |place: Place| Place { file: place.file, line: 0, column: 0 };
        let kind = match self.kind {
            Kind::List(items) => Kind::List(items.into_iter().map(Self::without_places).collect()),
            Kind::Map(pairs) => {
                let one = |(key, value): (Key, Self)| {
                    (Key { place: nowhere(key.place), name: key.name }, value.without_places())
                };
                Kind::Map(pairs.into_iter().map(one).collect())
            }
            other => other,
        };
        Self { kind, place: nowhere(self.place) }
    }
}

/// The three shapes of YAML, and nothing.
#[derive(Clone, Debug)]
pub enum Kind {
    /// No value, `~` or `null`.
    Null,
    /// A scalar's text; `quoted` when it was written in quotes or as a block.
    Scalar {
        /// The text as read.
        text: String,
        /// Written in quotes or as a block scalar.
        quoted: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order written; keys are unique.
    Map(Vec<(Key, Node)>),
}

impl Kind {
    /// The shape's name in messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".into(),
            Self::Scalar { text, .. } => format!("\"{}\"", text.chars().take(60).collect::<String>()),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a mapping".into(),
        }
    }
}

/// A mapping's key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Where it stands.
    pub place: Place,
}

/// Parses the one document of `text`. `None` when a mistake made a tree impossible; it is then in `diagnostics`.
pub fn parse(text: &str, file: u16, diagnostics: &mut Diagnostics) -> Option<Node> {
    let whole = Place { file, line: 0, column: 0 };
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes; the limit is {MAX_BYTES}", text.len());
        diagnostics.error(whole, message, "split it with `include`");
        return None;
    }
    let mut reader =
        Reader { parser: Parser::new_from_str(text), file, anchors: HashMap::new(), nodes: 0, diagnostics };
    reader.document()
}

/// Parses all documents of `text`; those without anything are left out. `None` as with [`parse`].
pub fn parse_all(text: &str, file: u16, diagnostics: &mut Diagnostics) -> Option<Vec<Node>> {
    let mut reader =
        Reader { parser: Parser::new_from_str(text), file, anchors: HashMap::new(), nodes: 0, diagnostics };
    let mut nodes = Vec::new();
    loop {
        match reader.next()? {
            (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd, _) => {}
            (Event::StreamEnd, _) => return Some(nodes),
            (event, span) => {
                let node = reader.node(event, span, 0)?;
                if !matches!(node.kind, Kind::Null) {
                    nodes.push(node);
                }
            }
        }
    }
}

struct Reader<'a, 'd> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    file: u16,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    diagnostics: &'d mut Diagnostics,
}

impl<'a> Reader<'a, '_> {
    fn document(&mut self) -> Option<Node> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_), _) => {}
                (Event::StreamEnd, _) => {
                    return Some(Node { kind: Kind::Null, place: Place { file: self.file, line: 1, column: 1 } });
                }
                (event, span) => {
                    let node = self.node(event, span, 0)?;
                    return self.end().then_some(node);
                }
            }
        }
    }

    /// Refuses a second document: half of a file silently ignored would be the worst answer.
    fn end(&mut self) -> bool {
        loop {
            match self.next() {
                Some((Event::DocumentEnd, _)) => {}
                Some((Event::DocumentStart(_), span)) => {
                    let place = self.place(span);
                    self.diagnostics.error(
                        place,
                        "a second document starts here",
                        "one file is one document: remove the `---` or use `include`",
                    );
                    return false;
                }
                Some((Event::StreamEnd, _)) => return true,
                _ => return false,
            }
        }
    }

    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        match self.parser.next_event()? {
            Ok(event) => Some(event),
            Err(error) => {
                let marker = error.marker();
                let place = self.at(marker.line(), marker.col());
                let tabs = "YAML is indented with spaces, never tabs; check the indentation and the quotes of this line and the one above";
                self.diagnostics.error(place, format!("not YAML: {}", error.info()), tabs);
                None
            }
        }
    }

    fn at(&self, line: usize, column: usize) -> Place {
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        Place { file: self.file, line, column: u32::try_from(column + 1).unwrap_or(u32::MAX) }
    }

    fn place(&self, span: Span) -> Place {
        self.at(span.start.line(), span.start.col())
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Option<Node> {
        let place = self.place(span);
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            let message = format!("nested deeper than {MAX_DEPTH} levels, or more than {MAX_NODES} values");
            self.diagnostics.error(place, message, "no configuration needs that much: look for a runaway alias");
            return None;
        }
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => (scalar(text.into_owned(), style), anchor),
            Event::SequenceStart(anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(anchor) => (self.alias(anchor, place)?, 0),
            _ => (Kind::Null, 0),
        };
        let node = Node { kind, place };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Some(node)
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Option<Kind> {
        let Some(target) = self.anchors.get(&anchor) else {
            self.diagnostics.error(
                place,
                "an alias to a value that is not complete yet",
                "an alias may only repeat something that ended above it",
            );
            return None;
        };
        self.nodes += count(target);
        Some(target.kind.clone())
    }

    fn list(&mut self, depth: usize) -> Option<Kind> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Some(Kind::List(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Option<Kind> {
        let mut pairs: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Some(Kind::Map(pairs));
            }
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            let Kind::Scalar { text: name, .. } = key.kind else {
                self.diagnostics.error(key.place, "a key must be a plain word", "write `key: value`");
                continue;
            };
            if let Some((first, _)) = pairs.iter().find(|(known, _)| known.name == name) {
                let message = format!("the key `{name}` stands twice; first on line {}", first.place.line);
                self.diagnostics.error(key.place, message, "keep one of the two");
                continue;
            }
            pairs.push((Key { name, place: key.place }, value));
        }
    }
}

fn scalar(text: String, style: ScalarStyle) -> Kind {
    let quoted = style != ScalarStyle::Plain;
    if !quoted && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") {
        return Kind::Null;
    }
    Kind::Scalar { text, quoted }
}

fn count(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::List(items) => items.iter().map(count).sum(),
        Kind::Map(pairs) => pairs.iter().map(|(_, value)| count(value)).sum(),
        Kind::Null | Kind::Scalar { .. } => 0,
    }
}
