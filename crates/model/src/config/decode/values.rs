//! How single values decode: text, numbers, durations, lists, maps and names.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Decode, text, wrong};
use crate::config::yaml::{Kind, Node};
use crate::diagnostic::{Diagnostics, Place};
use crate::id::{NodeName, ServiceName, VersionName};

impl Decode for String {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        text(node, "text", diagnostics).map(str::to_owned)
    }

    fn encode(&self) -> Value {
        self.as_str().into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": ["string", "number", "boolean"] })
    }
}

impl Decode for bool {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Scalar { text, quoted: false } if text == "true" => Some(true),
            Kind::Scalar { text, quoted: false } if text == "false" => Some(false),
            _ => {
                wrong(node, "true or false", diagnostics);
                None
            }
        }
    }

    fn encode(&self) -> Value {
        (*self).into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "boolean" })
    }
}

macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Decode for $type {
            fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
                if let Kind::Scalar { text, quoted: false } = &node.kind
                    && let Ok(number) = text.parse()
                {
                    return Some(number);
                }
                wrong(node, &format!("a whole number from 0 to {}", <$type>::MAX), diagnostics);
                None
            }

            fn encode(&self) -> Value {
                (*self).into()
            }

            fn schema(_: &mut BTreeMap<String, Value>) -> Value {
                json!({ "type": "integer", "minimum": 0, "maximum": <$type>::MAX })
            }
        }
    )*};
}
integer!(u16, u32, u64);

/// No less than nothing.
impl Decode for f64 {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        if let Kind::Scalar { text, quoted: false } = &node.kind
            && let Ok(number) = text.parse::<Self>()
            && number.is_finite()
            && number >= 0.0
        {
            return Some(number);
        }
        wrong(node, "a number such as 5 or 0.2", diagnostics);
        None
    }

    fn encode(&self) -> Value {
        // A whole number is written as one, so that it is read the same.
        if self.fract() == 0.0 && *self < 1e15 { (*self as u64).into() } else { (*self).into() }
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "number", "minimum": 0 })
    }
}

impl Decode for Duration {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a duration such as 500ms, 2s or 1m30s";
        if let Some(duration) = parse_duration(text(node, EXPECTED, diagnostics)?) {
            return Some(duration);
        }
        wrong(node, EXPECTED, diagnostics);
        None
    }

    fn encode(&self) -> Value {
        let millis = self.as_millis();
        if millis.is_multiple_of(1000) { format!("{}s", millis / 1000).into() } else { format!("{millis}ms").into() }
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$|^0$" })
    }
}

/// Go's duration syntax without signs, microseconds and nanoseconds: `1m30s`, `1.5s`, `500ms`, `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
        total += number
            * match &rest[..letters] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    (!text.is_empty()).then_some(())?;
    Duration::try_from_secs_f64(total).ok()
}

impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match node.kind {
            Kind::Null => Some(None),
            _ => T::decode(node, diagnostics).map(Some),
        }
    }

    fn encode(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::encode)
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        T::schema(definitions)
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Null => Some(Self::new()),
            Kind::List(items) => {
                // Bad items are left out, with their mistake recorded, so that all mistakes are shown.
                Some(items.iter().filter_map(|item| T::decode(item, diagnostics)).collect())
            }
            _ => {
                wrong(node, "a list ([a, b] or one `- item` a line)", diagnostics);
                None
            }
        }
    }

    fn encode(&self) -> Value {
        self.iter().map(T::encode).collect()
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "array", "items": T::schema(definitions) })
    }
}

/// A word, or a list of words.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OneOrMany(pub Vec<String>);

impl Decode for OneOrMany {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Scalar { text, .. } => Some(Self(vec![text.clone()])),
            _ => Vec::decode(node, diagnostics).map(Self),
        }
    }

    fn encode(&self) -> Value {
        // An empty list is what is meant when nothing is written; written, it is a mistake.
        if self.0.is_empty() { Value::Null } else { self.0.encode() }
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// A part of a whole, in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ratio(pub u32);

impl Ratio {
    /// All of it.
    pub const WHOLE: Self = Self(1_000_000);

    /// So many hundredths.
    pub const fn percent(hundredths: u32) -> Self {
        Self(hundredths * 10_000)
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, scale) = text.strip_suffix('%').map_or((text, 1e6), |number| (number.trim_end(), 1e4));
        let number: f64 = number.parse().ok()?;
        let millionths = number * scale;
        (0.0..=1e6).contains(&millionths).then(|| Self(millionths.round() as u32))
    }
}

impl Decode for Ratio {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a part from 0 to 1, such as 0.5 or 50%";
        let ratio = Self::parse(text(node, EXPECTED, diagnostics)?);
        if ratio.is_none() {
            wrong(node, EXPECTED, diagnostics);
        }
        ratio
    }

    fn encode(&self) -> Value {
        let percent = f64::from(self.0) / 1e4;
        format!("{percent}%").into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "oneOf": [{ "type": "number", "minimum": 0, "maximum": 1 }, { "type": "string", "pattern": "^[0-9.]+%$" }] })
    }
}

/// A file in a list or mapping, with its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilePath {
    /// As written; relative to the file until it is resolved.
    pub path: String,
    /// Where it stands.
    pub at: Place,
}

impl Decode for FilePath {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        let path = text(node, "a path", diagnostics)?.to_owned();
        Some(Self { path, at: node.place })
    }

    fn encode(&self) -> Value {
        self.path.as_str().into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "string" })
    }
}

/// A mapping with free keys.
impl<K: MapKey, T: Decode> Decode for BTreeMap<K, T> {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        let pairs = match &node.kind {
            Kind::Null => return Some(Self::new()),
            Kind::Map(pairs) => pairs,
            _ => {
                wrong(node, "a mapping (`key: value` lines)", diagnostics);
                return None;
            }
        };
        let decoded = pairs.iter().filter_map(|(key, value)| {
            let key = K::from_key(&key.name, key.place, diagnostics);
            let value = T::decode(value, diagnostics);
            Some((key?, value?))
        });
        Some(decoded.collect())
    }

    fn encode(&self) -> Value {
        self.iter().map(|(key, value)| (key.to_string(), value.encode())).collect::<serde_json::Map<_, _>>().into()
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "object", "additionalProperties": T::schema(definitions) })
    }
}

/// A type that can be a mapping's key.
pub trait MapKey: Ord + fmt::Display {
    /// Reads the key, or records why not.
    fn from_key(text: &str, place: Place, diagnostics: &mut Diagnostics) -> Option<Self>
    where
        Self: Sized;
}

impl MapKey for String {
    fn from_key(text: &str, _: Place, _: &mut Diagnostics) -> Option<Self> {
        Some(text.to_owned())
    }
}

/// The rule for names (RFC 1123 label, as in Kubernetes and DNS).
///
/// # Errors
/// Which part of it `text` breaks.
pub fn dns_label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 63 {
        return Err("1 to 63 characters");
    }
    if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return Err("lower-case letters, digits and `-` only");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("no `-` at either end");
    }
    Ok(())
}

macro_rules! names {
    ($($type:ty, $what:literal);*) => {$(
        impl MapKey for $type {
            fn from_key(text: &str, place: Place, diagnostics: &mut Diagnostics) -> Option<Self> {
                if let Err(rule) = dns_label(text) {
                    diagnostics.error(place, format!(concat!("`{}` cannot be the name of a ", $what), text), format!("a name is a DNS label: {rule}"));
                    return None;
                }
                Some(Self::from(text))
            }
        }

        impl Decode for $type {
            fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
                let name = text(node, concat!("the name of a ", $what), diagnostics)?;
                Self::from_key(name, node.place, diagnostics)
            }

            fn encode(&self) -> Value {
                self.as_str().into()
            }

            fn schema(_: &mut BTreeMap<String, Value>) -> Value {
                json!({ "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63 })
            }
        }
    )*};
}
names!(ServiceName, "service"; VersionName, "version"; NodeName, "node");
