//! nginx' configuration language: words, quotes, comments, `;` and blocks, each directive with its place.
//! Bounded in depth and number. Deliberately absent: what directives mean, variables, `include`.

use crate::diagnostic::{Diagnostics, Place};

/// The deepest nesting.
const DEEPEST: usize = 8;
/// The most directives of a file.
const MOST: usize = 20_000;

/// `name words…;` or `name words… { … }`.
#[derive(Debug)]
pub(super) struct Directive {
    pub name: String,
    pub words: Vec<Word>,
    /// Of a block.
    pub inside: Option<Vec<Directive>>,
    pub at: Place,
}

/// A word of a directive.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub text: String,
    pub at: Place,
}

enum Token {
    Word(Word),
    End(Place),
    Open(Place),
    Close(Place),
}

/// All directives of a text. `None` after a mistake, which is told.
pub(super) fn parse(text: &str, file: u16, diagnostics: &mut Diagnostics) -> Option<Vec<Directive>> {
    let tokens = tokens(text, file, diagnostics)?;
    let mut tokens = tokens.into_iter();
    let mut left = MOST;
    let parsed = block(&mut tokens, 0, &mut left);
    match parsed {
        Ok((directives, None)) => Some(directives),
        Ok((_, Some(at))) => {
            diagnostics.error(at, "a `}` that closes nothing", "remove it");
            None
        }
        Err((at, message)) => {
            let at = at.unwrap_or(Place { file, line: 0, column: 0 });
            diagnostics.error(at, message, "directives end with `;`, blocks with `}`");
            None
        }
    }
}

type Broken = (Option<Place>, &'static str);

/// The directives until the block's end, and where that is.
fn block(
    tokens: &mut impl Iterator<Item = Token>,
    depth: usize,
    left: &mut usize,
) -> Result<(Vec<Directive>, Option<Place>), Broken> {
    let mut directives = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    while let Some(token) = tokens.next() {
        match token {
            Token::Word(word) => words.push(word),
            Token::Close(at) if words.is_empty() => return Ok((directives, Some(at))),
            Token::Close(at) => return Err((Some(at), "a directive without `;` before this `}`")),
            Token::End(at) | Token::Open(at) if words.is_empty() => {
                return Err((Some(at), "a directive without a name"));
            }
            token => {
                let first = words.remove(0);
                *left = left.checked_sub(1).ok_or((Some(first.at), "too many directives"))?;
                let inside = match token {
                    Token::Open(at) if depth >= DEEPEST => return Err((Some(at), "blocks that are too deep")),
                    Token::Open(at) => match block(tokens, depth + 1, left)? {
                        (inside, Some(_)) => Some(inside),
                        (_, None) => return Err((Some(at), "a block that does not end")),
                    },
                    _ => None,
                };
                let words = std::mem::take(&mut words);
                directives.push(Directive { name: first.text, words, inside, at: first.at });
            }
        }
    }
    match words.first() {
        Some(word) => Err((Some(word.at), "a directive without `;`")),
        None => Ok((directives, None)),
    }
}

fn tokens(text: &str, file: u16, diagnostics: &mut Diagnostics) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let (mut line, mut column) = (1, 0);
    let mut characters = text.chars().peekable();
    let mut word: Option<Word> = None;
    let mut quote: Option<char> = None;
    let mut comment = false;
    while let Some(character) = characters.next() {
        column += 1;
        let at = Place { file, line, column };
        if character == '\n' {
            (line, column, comment) = (line + 1, 0, false);
        }
        if comment {
            continue;
        }
        match (quote, character) {
            (Some(open), character) if character == open => quote = None,
            (Some(_), '\\') | (None, '\\') => {
                let word = word.get_or_insert_with(|| Word { text: String::new(), at });
                // nginx keeps the backslash of an expression, and takes it from in front of a quote.
                match characters.next_if(|next| matches!(next, '"' | '\'')) {
                    Some(next) => word.text.push(next),
                    None => word.text.push('\\'),
                }
            }
            (Some(_), character) => word.get_or_insert_with(|| Word { text: String::new(), at }).text.push(character),
            (None, '"' | '\'') if word.is_none() => {
                quote = Some(character);
                word = Some(Word { text: String::new(), at });
            }
            (None, '#') if word.is_none() => comment = true,
            // A brace inside an expression belongs to it: `{2}` behind a word.
            (None, '{') if word.is_some() && characters.peek().is_some_and(char::is_ascii_digit) => {
                let word = word.get_or_insert_with(|| Word { text: String::new(), at });
                word.text.push('{');
                while let Some(next) = characters.next_if(|next| *next != '\n' && *next != ';') {
                    column += 1;
                    word.text.push(next);
                    if next == '}' {
                        break;
                    }
                }
            }
            (None, ';' | '{' | '}') => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(match character {
                    ';' => Token::End(at),
                    '{' => Token::Open(at),
                    _ => Token::Close(at),
                });
            }
            (None, character) if character.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            (None, character) => {
                word.get_or_insert_with(|| Word { text: String::new(), at }).text.push(character);
            }
        }
    }
    if quote.is_some() {
        let at = word.map_or(Place { file, line, column }, |word| word.at);
        diagnostics.error(at, "a quote that does not end", "close it");
        return None;
    }
    tokens.extend(word.take().map(Token::Word));
    Some(tokens)
}

/// nginx' times: `500ms`, `10s`, `1m`, `10` (seconds), and several of them.
pub(super) fn time(text: &str) -> Option<std::time::Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(std::time::Duration::from_secs(seconds));
    }
    super::super::super::decode::parse_duration(text)
}
