//! Names of streams, producers and cursors: short, printable, and whole in a URL.

use std::fmt;
use std::sync::Arc;

use super::StreamError;

/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A name: 1 to [`MAX_NAME_BYTES`] letters, digits, `.`, `_`, `-` and `:`; the first is a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and wraps.
    ///
    /// # Errors
    /// [`StreamError::TooLarge`] past [`MAX_NAME_BYTES`], [`StreamError::Invalid`] for other characters or none.
    pub fn new(text: &str) -> Result<Self, StreamError> {
        if text.len() > MAX_NAME_BYTES {
            return Err(StreamError::TooLarge { what: "a name", bytes: text.len(), limit: MAX_NAME_BYTES });
        }
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
        if !text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) || !text.bytes().all(rest) {
            let what = "a name has letters, digits, `.`, `_`, `-` and `:`, and begins with a letter or a digit";
            return Err(StreamError::Invalid { what });
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_NAME_BYTES, Name};

    #[test]
    fn names_are_whole_in_a_url_and_bounded() {
        for good in ["a", "0", "orders.v1", "node-1:worker_2", &"x".repeat(MAX_NAME_BYTES)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "-a", "a/b", "a b", "ä", "a?b", "a%20", &"x".repeat(MAX_NAME_BYTES + 1)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }
}
