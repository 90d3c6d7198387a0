//! The reader: words first, then one function for each rule. Each level of nesting is counted.

use regex_lite::RegexBuilder;

use super::{Expression, FilterError, MAX_BYTES, MAX_DEPTH, Test};

/// The most memory of one regular expression, in bytes.
const REGEX_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Word {
    /// A name, a number or a keyword.
    Bare(String),
    /// In quotes or backticks.
    Quoted(String),
    /// One of `( ) [ ] . == !=`.
    Sign(&'static str),
}

struct Reader {
    /// With their place, from 1.
    words: Vec<(usize, Word)>,
    next: usize,
    end: usize,
    depth: usize,
}

pub(super) fn filter(text: &str) -> Result<Expression, FilterError> {
    if text.len() > MAX_BYTES {
        let what = format!("longer than {MAX_BYTES} bytes");
        return Err(FilterError::Syntax { at: MAX_BYTES, what });
    }
    let mut reader = Reader { words: words(text)?, next: 0, end: text.chars().count() + 1, depth: 0 };
    let expression = reader.either()?;
    match reader.words.get(reader.next) {
        None => Ok(expression),
        Some((at, _)) => Err(FilterError::Syntax { at: *at, what: "`and`, `or` or the end is expected".into() }),
    }
}

fn words(text: &str) -> Result<Vec<(usize, Word)>, FilterError> {
    let chars: Vec<char> = text.chars().collect();
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let place = at + 1;
        let sign = match (c, chars.get(at + 1)) {
            ('=', Some('=')) => Some("=="),
            ('!', Some('=')) => Some("!="),
            ('(', _) => Some("("),
            (')', _) => Some(")"),
            ('[', _) => Some("["),
            (']', _) => Some("]"),
            ('.', _) => Some("."),
            _ => None,
        };
        if let Some(sign) = sign {
            at += sign.len();
            words.push((place, Word::Sign(sign)));
        } else if c.is_whitespace() {
            at += 1;
        } else if c == '"' || c == '`' {
            let (text, after) = quoted(&chars, at, c)?;
            words.push((place, Word::Quoted(text)));
            at = after;
        } else if is_bare(c) {
            let end = chars[at..].iter().position(|c| !is_bare(*c)).map_or(chars.len(), |length| at + length);
            words.push((place, Word::Bare(chars[at..end].iter().collect())));
            at = end;
        } else {
            return Err(FilterError::Syntax {
                at: place,
                what: format!("`{c}` has no meaning here; is it `==`, or in quotes?"),
            });
        }
    }
    Ok(words)
}

fn is_bare(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | ':' | '@' | '*' | '+')
}

fn quoted(chars: &[char], start: usize, quote: char) -> Result<(String, usize), FilterError> {
    let mut text = String::new();
    let mut at = start + 1;
    while let Some(&c) = chars.get(at) {
        if c == quote {
            return Ok((text, at + 1));
        }
        if c == '\\' && quote == '"' {
            at += 1;
            match chars.get(at) {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(&other @ ('"' | '\\')) => text.push(other),
                // A regular expression may have it.
                Some(&other) => text.extend(['\\', other]),
                None => break,
            }
        } else {
            text.push(c);
        }
        at += 1;
    }
    Err(FilterError::Syntax { at: start + 1, what: "the quotes are not closed".into() })
}

impl Reader {
    fn fail<T>(&self, what: &str) -> Result<T, FilterError> {
        let at = self.words.get(self.next).map_or(self.end, |(at, _)| *at);
        Err(FilterError::Syntax { at, what: what.to_owned() })
    }

    fn peek(&self) -> Option<&Word> {
        self.words.get(self.next).map(|(_, word)| word)
    }

    /// Takes a keyword, in any case.
    fn keyword(&mut self, keyword: &str) -> bool {
        let is = matches!(self.peek(), Some(Word::Bare(word)) if word.eq_ignore_ascii_case(keyword));
        self.next += usize::from(is);
        is
    }

    fn sign(&mut self, sign: &str) -> bool {
        let is = matches!(self.peek(), Some(Word::Sign(found)) if *found == sign);
        self.next += usize::from(is);
        is
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, FilterError>) -> Result<T, FilterError> {
        if self.depth >= MAX_DEPTH {
            return self.fail(&format!("more than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn either(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.both()?];
        while self.keyword("or") {
            parts.push(self.both()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::Or(parts) })
    }

    fn both(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.one()?];
        while self.keyword("and") {
            parts.push(self.one()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::And(parts) })
    }

    fn one(&mut self) -> Result<Expression, FilterError> {
        if self.keyword("not") {
            return Ok(Expression::Not(Box::new(self.deeper(Self::one)?)));
        }
        if self.sign("(") {
            let inner = self.deeper(Self::either)?;
            return if self.sign(")") { Ok(inner) } else { self.fail("`)` is expected") };
        }
        self.matched()
    }

    /// `selector op value`, or `value in selector`.
    fn matched(&mut self) -> Result<Expression, FilterError> {
        let start = self.next;
        let Some(first) = self.peek().cloned() else { return self.fail("a condition is expected") };
        if matches!(first, Word::Sign(_)) {
            return self.fail("a name or a value is expected");
        }
        self.next += 1;
        let denied = self.keyword("not");
        if self.keyword("in") {
            let value = match first {
                Word::Bare(text) | Word::Quoted(text) => text,
                Word::Sign(_) => return self.fail("a value is expected"),
            };
            let path = self.selector()?;
            return Ok(Expression::Match {
                path,
                test: if denied { Test::HoldsNot(value) } else { Test::Holds(value) },
            });
        }
        self.next = start;
        let path = self.selector()?;
        let test = self.test()?;
        Ok(Expression::Match { path, test })
    }

    fn selector(&mut self) -> Result<Vec<String>, FilterError> {
        let mut path = Vec::new();
        match self.peek().cloned() {
            // A JSON pointer.
            Some(Word::Quoted(text)) if text.starts_with('/') => {
                self.next += 1;
                return Ok(text[1..].split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect());
            }
            Some(Word::Bare(name)) => path.push(name),
            _ => return self.fail("the name of a field is expected"),
        }
        self.next += 1;
        loop {
            if self.sign(".") {
                match self.peek().cloned() {
                    Some(Word::Bare(name)) => path.push(name),
                    _ => return self.fail("a name is expected after `.`"),
                }
                self.next += 1;
            } else if self.sign("[") {
                match self.peek().cloned() {
                    Some(Word::Quoted(name)) => path.push(name),
                    _ => return self.fail("a name in quotes is expected after `[`"),
                }
                self.next += 1;
                if !self.sign("]") {
                    return self.fail("`]` is expected");
                }
            } else {
                return Ok(path);
            }
        }
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        if self.sign("==") {
            return self.value().map(Test::Equal);
        }
        if self.sign("!=") {
            return self.value().map(Test::NotEqual);
        }
        if self.keyword("is") {
            let denied = self.keyword("not");
            return match self.keyword("empty") {
                true if denied => Ok(Test::NotEmpty),
                true => Ok(Test::Empty),
                false => self.fail("`empty` is expected"),
            };
        }
        let denied = self.keyword("not");
        if self.keyword("contains") {
            let value = self.value()?;
            return Ok(if denied { Test::HoldsNot(value) } else { Test::Holds(value) });
        }
        if self.keyword("matches") {
            let value = self.value()?;
            let regex = RegexBuilder::new(&value).size_limit(REGEX_BYTES).build();
            return match regex {
                Ok(regex) if denied => Ok(Test::MatchesNot(regex)),
                Ok(regex) => Ok(Test::Matches(regex)),
                Err(error) => self.fail(&format!("{value:?} is no regular expression: {error}")),
            };
        }
        self.fail("`==`, `!=`, `in`, `contains`, `matches` or `is empty` is expected")
    }

    fn value(&mut self) -> Result<String, FilterError> {
        let value = match self.peek().cloned() {
            Some(Word::Quoted(text)) => text,
            // A number may have a point.
            Some(Word::Bare(text)) => {
                if let (Some((_, Word::Sign("."))), Some((_, Word::Bare(rest)))) =
                    (self.words.get(self.next + 1), self.words.get(self.next + 2))
                {
                    let whole = format!("{text}.{rest}");
                    self.next += 3;
                    return Ok(whole);
                }
                text
            }
            _ => return self.fail("a value is expected"),
        };
        self.next += 1;
        Ok(value)
    }
}
