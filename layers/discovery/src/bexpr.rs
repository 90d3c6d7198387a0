//! Filters as Consul's clients write them (`"v1" in ServiceTags and Node != "n1"`): the grammar of hashicorp/bexpr, read
//! into a tree whose depth and size are bounded, and judged against one JSON object of an answer.
//! Deliberately absent: `any` and `all`, which Consul's own documentation does not offer for these answers.

mod parse;

use regex_lite::Regex;
use serde_json::Value;

/// The longest filter, in bytes.
pub const MAX_BYTES: usize = 8192;
/// Brackets and `not`s inside each other at most.
pub const MAX_DEPTH: usize = 64;
/// Objects whose keys are anybody's: what is not in them is absent, and no mistake.
const MAPS: [&str; 10] = [
    "meta",
    "nodemeta",
    "servicemeta",
    "taggedaddresses",
    "servicetaggedaddresses",
    "header",
    "headers",
    "labels",
    "config",
    "weights",
];

/// A filter.
#[derive(Debug)]
pub struct Filter(Expression);

#[derive(Debug)]
enum Expression {
    Or(Vec<Expression>),
    And(Vec<Expression>),
    Not(Box<Expression>),
    Match { path: Vec<String>, test: Test },
}

#[derive(Debug)]
enum Test {
    Equal(String),
    NotEqual(String),
    Holds(String),
    HoldsNot(String),
    Empty,
    NotEmpty,
    Matches(Regex),
    MatchesNot(Regex),
}

/// Why a filter cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FilterError {
    /// It is none.
    #[error("filter: at character {at}: {what}")]
    Syntax {
        /// Where, from 1.
        at: usize,
        /// What, and what is expected.
        what: String,
    },
    /// It names what is not there.
    #[error("filter: there is no `{0}` here")]
    Unknown(String),
    /// It asks what cannot be asked of a value.
    #[error("filter: `{path}` is {kind}, of which this cannot be asked")]
    Kind {
        /// Of which value.
        path: String,
        /// What that is.
        kind: &'static str,
    },
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// Where it is none, or that it is too long.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        parse::filter(text).map(Self)
    }

    /// Whether an object fits.
    ///
    /// # Errors
    /// The filter names something that such objects do not have.
    pub fn fits(&self, object: &Value) -> Result<bool, FilterError> {
        judge(&self.0, object)
    }

    /// Those of a list that fit.
    ///
    /// # Errors
    /// See [`Self::fits`].
    pub fn keep(&self, list: &mut Vec<Value>) -> Result<(), FilterError> {
        let mut kept = Vec::with_capacity(list.len());
        for one in list.drain(..) {
            if self.fits(&one)? {
                kept.push(one);
            }
        }
        *list = kept;
        Ok(())
    }
}

fn judge(expression: &Expression, object: &Value) -> Result<bool, FilterError> {
    match expression {
        Expression::Or(parts) => {
            for part in parts {
                if judge(part, object)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Expression::And(parts) => {
            for part in parts {
                if !judge(part, object)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Expression::Not(part) => Ok(!judge(part, object)?),
        Expression::Match { path, test } => asked(&find(path, object)?, test, path),
    }
}

/// What a path leads to. A path through a list leads to all that its members have there.
enum Found<'a> {
    Value(&'a Value),
    Many(Vec<&'a Value>),
    Absent,
}

fn find<'a>(path: &[String], object: &'a Value) -> Result<Found<'a>, FilterError> {
    let mut now = object;
    for (index, part) in path.iter().enumerate() {
        match now {
            Value::Object(fields) => {
                let found = fields
                    .get(part)
                    .or_else(|| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(part)).map(|(_, value)| value));
                let Some(found) = found else {
                    let of_map = index > 0 && MAPS.contains(&path[index - 1].to_ascii_lowercase().as_str());
                    return if of_map {
                        Ok(Found::Absent)
                    } else {
                        Err(FilterError::Unknown(path[..=index].join(".")))
                    };
                };
                now = found;
            }
            Value::Array(list) => {
                let mut many = Vec::new();
                for one in list {
                    match find(&path[index..], one)? {
                        Found::Value(value) => many.push(value),
                        Found::Many(values) => many.extend(values),
                        Found::Absent => {}
                    }
                }
                return Ok(Found::Many(many));
            }
            Value::Null => return Ok(Found::Absent),
            _ => return Err(FilterError::Unknown(path[..=index].join("."))),
        }
    }
    Ok(Found::Value(now))
}

fn asked(found: &Found<'_>, test: &Test, path: &[String]) -> Result<bool, FilterError> {
    let value = match found {
        Found::Value(value) => *value,
        // Any of them; `not` is that none does.
        Found::Many(values) => {
            let any = |test: &dyn Fn(&Value) -> bool| values.iter().any(|value| test(value));
            return Ok(match test {
                Test::Equal(wanted) | Test::Holds(wanted) => any(&|value| equal(value, wanted)),
                Test::NotEqual(wanted) | Test::HoldsNot(wanted) => !any(&|value| equal(value, wanted)),
                Test::Empty => values.is_empty(),
                Test::NotEmpty => !values.is_empty(),
                Test::Matches(regex) => any(&|value| value.as_str().is_some_and(|text| regex.is_match(text))),
                Test::MatchesNot(regex) => !any(&|value| value.as_str().is_some_and(|text| regex.is_match(text))),
            });
        }
        Found::Absent => {
            return Ok(matches!(test, Test::NotEqual(_) | Test::HoldsNot(_) | Test::Empty | Test::MatchesNot(_)));
        }
    };
    let refused = || FilterError::Kind { path: path.join("."), kind: kind(value) };
    match test {
        Test::Equal(wanted) if is_plain(value) => Ok(equal(value, wanted)),
        Test::NotEqual(wanted) if is_plain(value) => Ok(!equal(value, wanted)),
        Test::Holds(wanted) => holds(value, wanted).ok_or_else(refused),
        Test::HoldsNot(wanted) => holds(value, wanted).map(|holds| !holds).ok_or_else(refused),
        Test::Empty => is_empty(value).ok_or_else(refused),
        Test::NotEmpty => is_empty(value).map(|empty| !empty).ok_or_else(refused),
        Test::Matches(regex) => value.as_str().map(|text| regex.is_match(text)).ok_or_else(refused),
        Test::MatchesNot(regex) => value.as_str().map(|text| !regex.is_match(text)).ok_or_else(refused),
        Test::Equal(_) | Test::NotEqual(_) => Err(refused()),
    }
}

fn is_plain(value: &Value) -> bool {
    matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null)
}

fn equal(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Bool(flag) => wanted.parse() == Ok(*flag),
        Value::Number(number) => {
            number.to_string() == wanted || wanted.parse::<f64>().is_ok_and(|wanted| number.as_f64() == Some(wanted))
        }
        Value::Null => wanted.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

/// A list has an element, an object a key, a text a part.
fn holds(value: &Value, wanted: &str) -> Option<bool> {
    match value {
        Value::Array(list) => Some(list.iter().any(|one| equal(one, wanted))),
        Value::Object(object) => Some(object.contains_key(wanted)),
        Value::String(text) => Some(text.contains(wanted)),
        Value::Null => Some(false),
        _ => None,
    }
}

fn is_empty(value: &Value) -> Option<bool> {
    match value {
        Value::Array(list) => Some(list.is_empty()),
        Value::Object(object) => Some(object.is_empty()),
        Value::String(text) => Some(text.is_empty()),
        Value::Null => Some(true),
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
        Value::String(_) => "a text",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "nothing",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use serde_json::json;

    use super::{Filter, MAX_BYTES, MAX_DEPTH};

    fn check(filter: &str, expected: bool) {
        let object = json!({
            "Node": "n1", "ServiceName": "web", "ServiceTags": ["v1", "green"], "ServicePort": 8080, "ServiceAddress": "",
            "ServiceMeta": { "env": "prod", "a/b": "c" }, "ServiceEnableTagOverride": false, "Tags": [],
            "Checks": [{ "Status": "passing" }, { "Status": "warning" }],
        });
        let fits = Filter::parse(filter).and_then(|parsed| parsed.fits(&object));
        assert_eq!(fits, Ok(expected), "{filter}");
    }

    #[test]
    fn the_grammar_of_bexpr() {
        check(r#"ServiceName == "web""#, true);
        check("ServiceName == web", true);
        check("ServiceName == `web`", true);
        check(r#"ServiceName != web"#, false);
        check(r#""v1" in ServiceTags"#, true);
        check(r#"v3 not in ServiceTags"#, true);
        check(r#"ServiceTags contains "green""#, true);
        check(r#"ServiceTags not contains green"#, false);
        check("ServiceAddress is empty and Tags is empty", true);
        check("ServiceTags is not empty", true);
        check(r#"ServiceName matches "^w.b$""#, true);
        check(r#"ServiceName not matches `^x`"#, true);
        check("ServicePort == 8080", true);
        check("ServiceEnableTagOverride == false", true);
        check(r#"ServiceMeta.env == prod"#, true);
        check(r#"ServiceMeta["a/b"] == c"#, true);
        check(r#"ServiceMeta.none == x or ServiceMeta.none != x"#, true);
        check("env in ServiceMeta", true);
        check(r#"ServiceMeta.none is empty"#, true);
        check(r#"not (Node == n1 and ServiceName == db)"#, true);
        check(r#"not Node == n1 or ServiceName == web and Node == n2"#, false);
        check(r#"(Node == n2 or Node == n1) and web == ServiceName or Node == n1"#.replace("web == ServiceName", "ServiceName == db").as_str(), true);
        check("Checks.Status == warning", true);
        check(r#""/ServiceMeta/env" == prod"#, true);
    }

    #[test]
    fn what_is_no_filter_is_told_with_its_place() {
        for (filter, says) in [
            ("", "character 1"),
            ("Node", "character 5"),
            ("Node = x", "character 6"),
            ("(Node == x", "character 11"),
            ("Node == \"x", "character 9"),
            ("Node == x y", "character 11"),
            ("Node matches \"(\"", "regular expression"),
            ("x in", "character 5"),
        ] {
            let error = Filter::parse(filter).unwrap_err().to_string();
            assert!(error.contains(says), "{filter}: {error} should say {says}");
        }
        let error = |filter: &str| Filter::parse(filter).unwrap().fits(&json!({ "Node": 1 })).unwrap_err().to_string();
        assert!(error("Nod == x").contains("no `Nod`"));
        assert!(error("Node matches x").contains("a number"));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = |depth: usize| format!("{}Node == x{}", "(".repeat(depth), ")".repeat(depth));
        assert!(Filter::parse(&deep(MAX_DEPTH - 1)).is_ok());
        assert!(Filter::parse(&deep(MAX_DEPTH + 1)).is_err());
        assert!(Filter::parse(&"not ".repeat(5000)).is_err());
        assert!(Filter::parse(&format!("{}Node == x", "not ".repeat(MAX_DEPTH + 1))).is_err());
        assert!(Filter::parse(&format!("Node == {}", "x".repeat(MAX_BYTES))).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in any::<String>()) {
            if let Ok(filter) = Filter::parse(&text) {
                let _ = filter.fits(&json!({ "a": [1, { "b": null }] }));
            }
        }
    }
}
