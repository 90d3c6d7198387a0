//! From a located tree to typed values, with every mistake collected instead of the first one thrown.
//! One `record!` description gives a type, its decoder, its defaults and its JSON Schema: they cannot disagree.

mod values;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::yaml::{Kind, Node};
use crate::diagnostic::{Diagnostics, Place, nearest};
pub use values::{FilePath, MapKey, OneOrMany, Ratio, dns_label, parse_duration};

/// A type that a configuration value can become.
pub trait Decode: Sized {
    /// Reads `node`; `None` after recording why not.
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self>;

    /// The value as JSON, which decodes to an equal value again.
    fn encode(&self) -> Value;

    /// The type's JSON Schema; records put themselves into `definitions` and return a reference.
    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value;
}

/// Where a record and each of its written fields stand. Always equal: places are not part of the meaning.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The record as a whole.
    pub whole: Place,
    fields: Arc<[(String, Place)]>,
}

impl Places {
    /// The place of `field` if it was written, else of the record.
    pub fn field(&self, field: &str) -> Place {
        self.fields.iter().find(|(name, _)| name == field).map_or(self.whole, |(_, place)| *place)
    }

    /// True when `field` was written.
    pub fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|(name, _)| name == field)
    }

    /// Those of a record that was read as `node`. What stands nowhere was written by nobody, as in the configuration in force, which
    /// has every default in it: there a field counts as written when its value is not `by_default`.
    pub fn of_record(node: &Node, by_default: impl FnOnce() -> Vec<String>) -> Self {
        let all = Self::of(node);
        if node.place.line > 0 {
            return all;
        }
        let by_default = by_default();
        let fields = all.fields.iter().filter(|(name, _)| !by_default.contains(name)).cloned();
        Self::from_parts(all.whole, fields)
    }

    /// These places under other names, each with the one it is written under first; the others are left out.
    pub fn renamed(&self, names: &[(&str, &str)]) -> Self {
        let has = names.iter().filter(|(written, _)| self.has(written));
        Self::from_parts(self.whole, has.map(|(written, name)| ((*name).to_owned(), self.field(written))))
    }

    /// These and others, their own first.
    pub fn with(&self, other: &Self) -> Self {
        let whole = if self.fields.is_empty() { other.whole } else { self.whole };
        Self::from_parts(whole, self.fields.iter().chain(other.fields.iter()).cloned())
    }

    /// The place of the whole, and of each field that was written.
    pub fn from_parts(whole: Place, fields: impl Iterator<Item = (String, Place)>) -> Self {
        Self { whole, fields: fields.collect() }
    }

    /// The places of a mapping's keys.
    pub fn of(node: &Node) -> Self {
        let fields = match &node.kind {
            Kind::Map(pairs) => pairs.iter().map(|(key, _)| (key.name.clone(), key.place)).collect(),
            _ => Vec::new(),
        };
        Self { whole: node.place, fields: fields.into() }
    }
}

impl PartialEq for Places {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Places {}

/// `snake_case` field to `camelCase` key.
pub fn camel_case(field: &str) -> String {
    let mut name = String::with_capacity(field.len());
    let mut upper = false;
    for character in field.chars() {
        if character == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            name.extend(character.to_uppercase());
        } else {
            name.push(character);
        }
    }
    name
}

/// Records a wrong shape: `expected` reads like "a duration such as 500ms".
pub fn wrong(node: &Node, expected: &str, diagnostics: &mut Diagnostics) {
    let message = format!("expected {expected}, found {}", node.kind.describe());
    diagnostics.error(node.place, message, format!("write {expected}"));
}

/// Records a key that `owner` does not have, with the nearest one it has.
pub fn unknown_key(name: &str, place: Place, owner: &str, known: &[&str], diagnostics: &mut Diagnostics) {
    let cure = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{owner} has: {}", known.join(", ")),
    };
    diagnostics.error(place, format!("unknown key `{name}` in {owner}"), cure);
}

/// The text of a scalar, or a recorded mistake.
pub fn text<'n>(node: &'n Node, expected: &str, diagnostics: &mut Diagnostics) -> Option<&'n str> {
    if let Kind::Scalar { text, .. } = &node.kind {
        return Some(text);
    }
    wrong(node, expected, diagnostics);
    None
}

/// Describes a record: `[key] field: Type [= default]`, each with its documentation. A field without a default is required.
macro_rules! record {
    (
        $(#[doc = $doc:literal])*
        $name:ident as $title:literal {
            $( $(#[doc = $field_doc:literal])* $([$key:literal])? $field:ident : $type:ty $(= $default:expr)? ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, PartialEq, Debug)]
        pub struct $name {
            $( $(#[doc = $field_doc])* pub $field: $type, )*
            /// Where this stands in the file.
            pub at: $crate::config::decode::Places,
        }

        impl $name {
            fn keys() -> Vec<String> {
                vec![$( record!(@key $field $($key)?) ),*]
            }
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(node: &$crate::config::yaml::Node, diagnostics: &mut $crate::diagnostic::Diagnostics) -> Option<Self> {
                use $crate::config::{decode, yaml::Kind};
                let pairs = match &node.kind {
                    Kind::Map(pairs) => pairs.as_slice(),
                    Kind::Null => &[],
                    _ => {
                        decode::wrong(node, concat!("a mapping (", $title, ")"), diagnostics);
                        return None;
                    }
                };
                let keys = Self::keys();
                let known: Vec<&str> = keys.iter().map(String::as_str).collect();
                for (key, _) in pairs {
                    if !known.contains(&key.name.as_str()) {
                        decode::unknown_key(&key.name, key.place, $title, &known, diagnostics);
                    }
                }
                let find = |name: &str| pairs.iter().find(|(key, _)| key.name == name).map(|(_, value)| value);
                $(
                    let key = record!(@key $field $($key)?);
                    // A value that cannot be read counts as its default from here on, so that rules over several
                    // fields still find their mistakes; the mistake recorded refuses the file all the same.
                    let $field: Option<$type> = match find(&key) {
                        Some(value) => {
                            <$type as decode::Decode>::decode(value, diagnostics).or_else(|| record!(@fallback $($default)?))
                        }
                        None => record!(@default node, key, diagnostics, $title $(, $default)?),
                    };
                )*
                let by_default = || {
                    let fields: Vec<Option<String>> = vec![
                        $( record!(@by_default $field, record!(@key $field $($key)?), $type $(, $default)?) ),*
                    ];
                    fields.into_iter().flatten().collect()
                };
                let at = decode::Places::of_record(node, by_default);
                Some(Self { $( $field: $field?, )* at })
            }

            fn encode(&self) -> serde_json::Value {
                let mut object = serde_json::Map::new();
                $(
                    let value = $crate::config::decode::Decode::encode(&self.$field);
                    if !value.is_null() {
                        object.insert(record!(@key $field $($key)?), value);
                    }
                )*
                object.into()
            }

            fn schema(definitions: &mut std::collections::BTreeMap<String, serde_json::Value>) -> serde_json::Value {
                let name = stringify!($name);
                if !definitions.contains_key(name) {
                    definitions.insert(name.into(), serde_json::Value::Null);
                    let mut properties = serde_json::Map::new();
                    #[allow(unused_mut, reason = "a record may have no required field")]
                    let mut required: Vec<String> = Vec::new();
                    $(
                        let mut property = <$type as $crate::config::decode::Decode>::schema(definitions);
                        let description = concat!($($field_doc, "\n"),*).trim().to_owned();
                        property["description"] = description.replace("\n ", "\n").into();
                        record!(@schema $type, property, required, record!(@key $field $($key)?) $(, $default)?);
                        properties.insert(record!(@key $field $($key)?), property);
                    )*
                    let description = concat!($($doc, "\n"),*).trim().replace("\n ", "\n");
                    definitions.insert(name.into(), serde_json::json!({
                        "type": "object", "description": description, "additionalProperties": false,
                        "properties": properties, "required": required,
                    }));
                }
                serde_json::json!({ "$ref": format!("#/$defs/{name}") })
            }
        }
    };
    (@key $field:ident $key:literal) => { $key.to_owned() };
    (@key $field:ident) => { $crate::config::decode::camel_case(stringify!($field)) };
    (@by_default $field:ident, $key:expr, $type:ty, $default:expr) => {{
        let default: $type = $default;
        ($field.as_ref() == Some(&default)).then(|| $key)
    }};
    (@by_default $field:ident, $key:expr, $type:ty) => { None };
    (@fallback $default:expr) => { Some($default) };
    (@fallback) => { None };
    (@default $node:ident, $key:ident, $diagnostics:ident, $title:literal, $default:expr) => { Some($default) };
    (@default $node:ident, $key:ident, $diagnostics:ident, $title:literal) => {{
        $diagnostics.error($node.place, format!("{} needs `{}`", $title, $key), format!("add `{}: …`", $key));
        None
    }};
    (@schema $type:ty, $property:ident, $required:ident, $key:expr, $default:expr) => {
        let default: $type = $default;
        let shown = $crate::config::decode::Decode::encode(&default);
        let says_nothing = match &shown {
            serde_json::Value::Null | serde_json::Value::Object(_) => true,
            serde_json::Value::Array(items) => items.is_empty(),
            serde_json::Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !says_nothing {
            $property["default"] = shown;
        }
    };
    (@schema $type:ty, $property:ident, $required:ident, $key:expr) => { $required.push($key); };
}
pub(crate) use record;

/// Describes an enumeration of words.
macro_rules! words {
    ($(#[doc = $doc:literal])* $name:ident { $( $(#[doc = $variant_doc:literal])* $variant:ident = $word:literal ),* $(,)? }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $( $(#[doc = $variant_doc])* $variant ),* }

        impl $name {
            /// The word as written in files and shown on screens.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word ),* }
            }
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(node: &$crate::config::yaml::Node, diagnostics: &mut $crate::diagnostic::Diagnostics) -> Option<Self> {
                let words = [$($word),*];
                let expected = format!("one of {}", words.join(", "));
                let text = $crate::config::decode::text(node, &expected, diagnostics)?;
                match text {
                    $( $word => return Some(Self::$variant), )*
                    _ => {}
                }
                let cure = match $crate::diagnostic::nearest(text, words) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("write {expected}"),
                };
                diagnostics.error(node.place, format!("`{text}` is not {expected}"), cure);
                None
            }

            fn encode(&self) -> serde_json::Value {
                self.as_str().into()
            }

            fn schema(_: &mut std::collections::BTreeMap<String, serde_json::Value>) -> serde_json::Value {
                serde_json::json!({ "enum": [$($word),*] })
            }
        }
    };
}
pub(crate) use words;
