//! Reads the little of HCL that rules are written in: `kind = "word"` and `kind "name" { key = "word" }`, with comments; and the
//! same as JSON, where a list is the same key several times. Everything comes out as statements with their place.
//! Deliberately absent: what the words mean (`rules.rs`), and all else of HCL: numbers, lists, expressions, here-documents.

use serde_json::Value;

use super::rules::{MAX_RULES_BYTES, RulesError};

/// One statement.
#[derive(Debug)]
pub(super) struct Statement {
    /// The first word.
    pub kind: String,
    /// Where it stands, for people.
    pub place: String,
    pub body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    /// `kind = "word"`.
    Word(String),
    /// `kind "name" { … }`: the name, and its pairs.
    Block(String, Vec<Pair>),
}

/// `key = "word"`.
#[derive(Debug)]
pub(super) struct Pair {
    pub key: String,
    pub value: String,
    pub place: String,
}

/// Statements in the order in which they stand.
pub(super) fn statements(text: &str) -> Result<Vec<Statement>, RulesError> {
    if text.len() > MAX_RULES_BYTES {
        return Err(RulesError::new("", format!("longer than {MAX_RULES_BYTES} bytes")));
    }
    if text.trim_start().starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            RulesError::new(format!("line {}, column {}", error.line(), error.column()), format!("no JSON: {error}"))
        })?;
        return json(&value);
    }
    Reader::new(text).all()
}

fn json(whole: &Value) -> Result<Vec<Statement>, RulesError> {
    let mut found = Vec::new();
    for (kind, value) in whole.as_object().into_iter().flatten() {
        if let Value::String(word) = value {
            found.push(Statement { kind: kind.clone(), place: kind.clone(), body: Body::Word(word.clone()) });
            continue;
        }
        for (name, inner) in members(value, kind)? {
            let place = format!("{kind}.{name:?}");
            let mut pairs = Vec::new();
            for (key, word) in members(inner, &place)? {
                let Value::String(word) = word else {
                    return Err(RulesError::new(format!("{place}.{key}"), "a text is expected here"));
                };
                let place = format!("{place}.{key}");
                pairs.push(Pair { key: key.clone(), value: word.clone(), place });
            }
            found.push(Statement { kind: kind.clone(), place, body: Body::Block(name.clone(), pairs) });
        }
    }
    Ok(found)
}

/// Of an object, or of each in a list of objects.
fn members<'a>(value: &'a Value, place: &str) -> Result<Vec<(&'a String, &'a Value)>, RulesError> {
    let wrong = || RulesError::new(place, "an object is expected here");
    match value {
        Value::Object(object) => Ok(object.iter().collect()),
        Value::Array(list) => {
            let objects: Option<Vec<_>> = list.iter().map(Value::as_object).collect();
            Ok(objects.ok_or_else(wrong)?.into_iter().flatten().collect())
        }
        _ => Err(wrong()),
    }
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    column: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text.chars().peekable(), line: 1, column: 1 }
    }

    fn place(&self) -> String {
        format!("line {}, column {}", self.line, self.column)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            (self.line, self.column) = (self.line + 1, 1);
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn wrong<T>(&mut self, expected: &str) -> Result<T, RulesError> {
        let found = self.rest.peek().map_or("the end".to_owned(), |c| format!("{c:?}"));
        Err(RulesError::new(self.place(), format!("{expected} is expected, found {found}")))
    }

    fn all(mut self) -> Result<Vec<Statement>, RulesError> {
        let mut found = Vec::new();
        loop {
            self.space()?;
            if self.rest.peek().is_none() {
                return Ok(found);
            }
            found.push(self.statement()?);
        }
    }

    fn statement(&mut self) -> Result<Statement, RulesError> {
        let place = self.place();
        let kind = self.word("a kind of rule, like `service`")?;
        self.space()?;
        match self.rest.peek() {
            Some('=') => {
                self.next();
                self.space()?;
                let word = self.text()?;
                Ok(Statement { kind, place, body: Body::Word(word) })
            }
            Some('"') => {
                let name = self.text()?;
                self.space()?;
                if self.rest.peek() == Some(&'=') {
                    self.next();
                    self.space()?;
                }
                Ok(Statement { kind, place, body: Body::Block(name, self.block()?) })
            }
            _ => self.wrong("`=` or a name in quotes"),
        }
    }

    fn block(&mut self) -> Result<Vec<Pair>, RulesError> {
        if self.rest.peek() != Some(&'{') {
            return self.wrong("`{`");
        }
        self.next();
        let mut pairs = Vec::new();
        loop {
            self.space()?;
            match self.rest.peek() {
                Some('}') => {
                    self.next();
                    return Ok(pairs);
                }
                Some(',') => {
                    self.next();
                }
                _ => {
                    let place = self.place();
                    let key = self.word("a key, like `policy`, or `}`")?;
                    self.space()?;
                    if self.rest.peek() != Some(&'=') {
                        return self.wrong("`=`");
                    }
                    self.next();
                    self.space()?;
                    pairs.push(Pair { key, value: self.text()?, place });
                }
            }
        }
    }

    /// A name with quotes or without.
    fn word(&mut self, expected: &str) -> Result<String, RulesError> {
        if self.rest.peek() == Some(&'"') {
            return self.text();
        }
        let mut word = String::new();
        while let Some(&c) = self.rest.peek().filter(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
            word.push(c);
            self.next();
        }
        if word.is_empty() { self.wrong(expected) } else { Ok(word) }
    }

    fn text(&mut self) -> Result<String, RulesError> {
        if self.rest.peek() != Some(&'"') {
            return self.wrong("a text in quotes");
        }
        let place = self.place();
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => match self.next() {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(c @ ('"' | '\\')) => text.push(c),
                    _ => {
                        return Err(RulesError::new(
                            place,
                            "after `\\` one of `n`, `t`, `r`, `\"` and `\\` is expected",
                        ));
                    }
                },
                Some('\n') | None => return Err(RulesError::new(place, "this text has no end")),
                Some(c) => text.push(c),
            }
        }
    }

    /// Passes over what means nothing.
    fn space(&mut self) -> Result<(), RulesError> {
        while let Some(&c) = self.rest.peek() {
            match c {
                '#' => self.line_comment(),
                '/' => self.comment()?,
                c if c.is_whitespace() => drop(self.next()),
                _ => break,
            }
        }
        Ok(())
    }

    fn line_comment(&mut self) {
        while self.rest.peek().is_some_and(|c| *c != '\n') {
            self.next();
        }
    }

    fn comment(&mut self) -> Result<(), RulesError> {
        let place = self.place();
        self.next();
        match self.rest.peek() {
            Some('/') => self.line_comment(),
            Some('*') => {
                self.next();
                let mut star = false;
                loop {
                    match self.next() {
                        Some('/') if star => return Ok(()),
                        Some(c) => star = c == '*',
                        None => return Err(RulesError::new(place, "this comment has no end")),
                    }
                }
            }
            _ => return Err(RulesError::new(place, "a comment begins with `#`, `//` or `/*`")),
        }
        Ok(())
    }
}
