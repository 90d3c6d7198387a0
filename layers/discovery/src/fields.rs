//! Reads JSON objects as Consul does: a key in any spelling (`EnableTagOverride`, `enable_tag_override`,
//! `enabletagoverride`), a value of the type that is expected or a located error. Deliberately absent: what the keys mean.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::duration;
use crate::record::Map;

/// What is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{message}", if path.is_empty() { String::new() } else { format!("`{path}`: ") })]
pub struct FieldError {
    /// The keys that lead there, with dots between.
    pub path: String,
    /// What, and what is expected.
    pub message: String,
}

impl FieldError {
    /// At `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// One object.
#[derive(Debug)]
pub struct Fields<'a> {
    path: String,
    known: BTreeMap<String, (&'a str, &'a Value)>,
    asked: Vec<&'static str>,
}

/// A key in the one spelling that all spellings share.
fn plain(key: &str) -> String {
    key.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect()
}

impl<'a> Fields<'a> {
    /// Of an object at `path`.
    ///
    /// # Errors
    /// It is none, or has a key in two spellings.
    pub fn of(value: &'a Value, path: &str) -> Result<Self, FieldError> {
        let Value::Object(object) = value else {
            return Err(FieldError::new(path, "an object is expected here"));
        };
        let mut known = BTreeMap::new();
        for (key, value) in object {
            if let Some((before, _)) = known.insert(plain(key), (key.as_str(), value)) {
                return Err(FieldError::new(join(path, key), format!("`{before}` says the same")));
            }
        }
        Ok(Self { path: path.to_owned(), known, asked: Vec::new() })
    }

    /// Where a key of it is.
    pub fn path(&self, key: &str) -> String {
        let written = self.known.get(key).map_or(key, |(written, _)| written);
        join(&self.path, written)
    }

    /// The value of a key; `null` is as good as none. `key` is spelled in lower case without separators.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.known.get(key).map(|(_, value)| *value).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, key: &str, expected: &str, value: &Value) -> Result<T, FieldError> {
        let mut found = value.to_string();
        if found.len() > 60 {
            found = format!("{}…", found.chars().take(60).collect::<String>());
        }
        Err(FieldError::new(self.path(key), format!("{expected} is expected, found {found}")))
    }

    /// A text; empty when absent.
    ///
    /// # Errors
    /// It is none.
    pub fn text(&mut self, key: &'static str) -> Result<String, FieldError> {
        match self.get(key) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => self.wrong(key, "a text", other),
        }
    }

    /// A name: a text that a terminal, a file or a header can show.
    ///
    /// # Errors
    /// It is no text, or has control characters.
    pub fn name(&mut self, key: &'static str) -> Result<String, FieldError> {
        let text = self.text(key)?;
        if text.chars().any(char::is_control) {
            return Err(FieldError::new(self.path(key), "a name has no control characters"));
        }
        Ok(text)
    }

    /// True or false; false when absent.
    ///
    /// # Errors
    /// It is neither.
    pub fn flag(&mut self, key: &'static str) -> Result<bool, FieldError> {
        self.flag_or(key, false)
    }

    /// True or false; what is said here when absent.
    ///
    /// # Errors
    /// It is neither.
    pub fn flag_or(&mut self, key: &'static str, otherwise: bool) -> Result<bool, FieldError> {
        match self.get(key) {
            None => Ok(otherwise),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            Some(other) => self.wrong(key, "true or false", other),
        }
    }

    /// A whole number up to `most`; `None` when absent.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&mut self, key: &'static str, most: u64) -> Result<Option<u64>, FieldError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let read = value.as_u64().or_else(|| {
            let whole = value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 0.0 && *number < 1e15)?;
            Some(whole as u64)
        });
        match read.or_else(|| value.as_str().and_then(|text| text.parse().ok())).filter(|number| *number <= most) {
            Some(number) => Ok(Some(number)),
            None => self.wrong(key, &format!("a whole number from 0 to {most}"), value),
        }
    }

    /// A duration in milliseconds, 0 when absent or empty; a plain number is nanoseconds, as in Consul's JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn millis(&mut self, key: &'static str) -> Result<u64, FieldError> {
        let Some(value) = self.get(key) else { return Ok(0) };
        let read = match value {
            Value::String(text) if text.is_empty() => Some(Duration::ZERO),
            Value::String(text) => duration::parse(text),
            Value::Number(_) => value.as_u64().map(Duration::from_nanos),
            _ => None,
        };
        match read {
            // A duration that is there is not none.
            Some(duration) if duration.is_zero() => Ok(0),
            Some(duration) => Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)),
            None => self.wrong(key, "a duration like `10s` or `1m30s`", value),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// It is none.
    pub fn texts(&mut self, key: &'static str) -> Result<Vec<String>, FieldError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map(|list| list.iter().map(|one| one.as_str().map(str::to_owned)).collect());
        match list {
            Some(Some(texts)) => Ok(texts),
            _ => self.wrong(key, "a list of texts", value),
        }
    }

    /// Texts by text.
    ///
    /// # Errors
    /// It is something else.
    pub fn map(&mut self, key: &'static str) -> Result<Map, FieldError> {
        let Some(value) = self.get(key) else { return Ok(Map::new()) };
        let pairs = value
            .as_object()
            .map(|object| object.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect());
        match pairs {
            Some(Some(map)) => Ok(map),
            _ => self.wrong(key, "an object of texts", value),
        }
    }

    /// Lists of texts by text; a text alone is a list of one.
    ///
    /// # Errors
    /// It is something else.
    pub fn lists(&mut self, key: &'static str) -> Result<BTreeMap<String, Vec<String>>, FieldError> {
        let Some(value) = self.get(key) else { return Ok(BTreeMap::new()) };
        let one = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let pairs = value
            .as_object()
            .map(|object| object.iter().map(|(key, value)| Some((key.clone(), one(value)?))).collect());
        match pairs {
            Some(Some(map)) => Ok(map),
            _ => self.wrong(key, "an object of lists of texts", value),
        }
    }

    /// The first key that nobody has asked for, as it is written.
    pub fn unknown(&self) -> Option<(&'a str, Option<&'static str>)> {
        let (plain, (written, _)) = self.known.iter().find(|(plain, _)| !self.asked.contains(&plain.as_str()))?;
        Some((written, model::diagnostic::nearest(plain, self.asked.iter().copied())))
    }

    /// Refuses a key that nobody has asked for.
    ///
    /// # Errors
    /// Its name, and the nearest that is known.
    pub fn refuse_unknown(&self) -> Result<(), FieldError> {
        let Some((written, near)) = self.unknown() else { return Ok(()) };
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        Err(FieldError::new(join(&self.path, written), format!("this key is not known{near}")))
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Fields;

    #[test]
    fn a_key_is_found_in_any_spelling_and_a_mistake_has_its_place() {
        for key in ["EnableTagOverride", "enable_tag_override", "enabletagoverride"] {
            let value = json!({ key: true });
            assert_eq!(Fields::of(&value, "service").unwrap().flag("enabletagoverride"), Ok(true));
        }
        let value = json!({ "Port": -1, "Tags": "x", "interval": "ten", "Nmae": "x", "A_b": 1 });
        let mut fields = Fields::of(&value, "service").unwrap();
        let error = fields.number("port", 65_535).unwrap_err().to_string();
        assert_eq!(error, "`service.Port`: a whole number from 0 to 65535 is expected, found -1");
        assert!(fields.texts("tags").is_err());
        assert!(fields.millis("interval").unwrap_err().to_string().contains("like `10s`"));
        fields.text("name").unwrap();
        fields.get("ab");
        assert_eq!(
            fields.refuse_unknown().unwrap_err().to_string(),
            "`service.Nmae`: this key is not known; did you mean `name`?"
        );
        let twice = json!({ "a_b": 1, "AB": 1 });
        assert!(Fields::of(&twice, "").is_err());
    }
}
