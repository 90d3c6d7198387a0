//! Keys and key ranges: ordered bytes, compared bytewise as etcd does.

use std::fmt;

use bytes::Bytes;

use crate::StoreError;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// A key: 1 to [`MAX_KEY_BYTES`] bytes, by convention UTF-8 text with `/` between parts.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Bytes);

impl Key {
    /// Checks the length and wraps the bytes.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] past [`MAX_KEY_BYTES`], [`StoreError::Invalid`] when empty.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, StoreError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(StoreError::Invalid { what: "a key must not be empty" });
        }
        if bytes.len() > MAX_KEY_BYTES {
            return Err(StoreError::TooLarge { what: "key", bytes: bytes.len(), limit: MAX_KEY_BYTES });
        }
        Ok(Self(bytes))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key's bytes, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// Whose it is: the first part of a user's key that has several, which by convention is a service's name.
    pub fn owner(&self) -> Option<&[u8]> {
        let key = self.0.strip_prefix(crate::USER_KEYS.as_bytes())?;
        let end = key.iter().position(|byte| *byte == b'/')?;
        Some(&key[..end]).filter(|owner| !owner.is_empty())
    }

    /// The key as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl TryFrom<&str> for Key {
    type Error = StoreError;

    fn try_from(text: &str) -> Result<Self, StoreError> {
        Self::new(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl TryFrom<String> for Key {
    type Error = StoreError;

    fn try_from(text: String) -> Result<Self, StoreError> {
        Self::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A half-open range of keys: `start` inclusive, `end` exclusive, no `end` means to the last key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

impl KeyRange {
    /// Exactly one key.
    pub fn key(key: &Key) -> Self {
        let mut end = Vec::with_capacity(key.0.len() + 1);
        end.extend_from_slice(&key.0);
        end.push(0);
        Self { start: key.0.clone(), end: Some(end.into()) }
    }

    /// Every key that begins with `prefix`; the empty prefix is every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self { start, end }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// Keys from `start` (inclusive) to `end` (exclusive; `None` is the end of the key space).
    pub fn between(start: impl Into<Bytes>, end: Option<Bytes>) -> Self {
        Self { start: start.into(), end }
    }

    /// First key that may be in the range.
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// First key past the range.
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    /// The key, if the range can hold one at most.
    pub fn only(&self) -> Option<&[u8]> {
        let end = self.end.as_deref()?.strip_suffix(&[0])?;
        (*end == *self.start).then_some(end)
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &Key) -> bool {
        self.start <= key.0 && self.end.as_ref().is_none_or(|end| key.0 < *end)
    }

    /// Whether the range can hold no key at all.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// The first byte string past every string with this prefix: drop trailing 0xff, add one to the last byte.
fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::{Key, KeyRange, MAX_KEY_BYTES};

    #[test]
    fn prefix_covers_its_keys_and_no_neighbour() {
        let range = KeyRange::prefix("a/");
        for (text, inside) in
            [("a/", true), ("a/b", true), ("a/\u{7f}", true), ("a0", false), ("a", false), ("b", false)]
        {
            assert_eq!(range.contains(&Key::try_from(text).unwrap()), inside, "{text}");
        }
        assert_eq!(KeyRange::prefix(vec![0xff, 0xff]).end(), None);
        assert_eq!(KeyRange::prefix(""), KeyRange::all());
    }

    #[test]
    fn single_key_range_holds_only_that_key() {
        let range = KeyRange::key(&Key::try_from("k").unwrap());
        assert!(range.contains(&Key::try_from("k").unwrap()));
        assert!(!range.contains(&Key::try_from("k\0").unwrap()));
        assert_eq!(range.only(), Some(&b"k"[..]));
        assert_eq!((KeyRange::prefix("k").only(), KeyRange::all().only()), (None, None));
        assert_eq!(KeyRange::between("k", Some("k\0\0".into())).only(), None);
    }

    #[test]
    fn length_is_bounded() {
        assert!(Key::try_from("").is_err());
        assert!(Key::new(vec![b'k'; MAX_KEY_BYTES]).is_ok());
        assert!(Key::new(vec![b'k'; MAX_KEY_BYTES + 1]).is_err());
    }
}
