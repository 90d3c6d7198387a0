//! Reads a segment through a small window: recovery must not hold a whole segment in memory.

use std::io;

use crate::disk::{DiskFile, read_exact_at};
use crate::record::{self, Found, RECORD_HEADER};

const WINDOW_BYTES: u64 = 256 * 1024;

pub(crate) struct Window<'a> {
    file: &'a dyn DiskFile,
    length: u64,
    /// Offset of the first byte held.
    base: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(crate) fn new(file: &'a dyn DiskFile, length: u64) -> Self {
        Self { file, length, base: 0, bytes: Vec::new() }
    }

    /// The valid record at `offset`, if there is one.
    pub(crate) fn record(&mut self, offset: u64, seed: u32) -> io::Result<Option<Found<'_>>> {
        let Some(length) = self.at(offset, RECORD_HEADER as u64)?.and_then(record::claimed_length) else {
            return Ok(None);
        };
        Ok(self.at(offset, length as u64)?.and_then(|bytes| record::decode(bytes, seed)))
    }

    /// Where the zeros at the end of the file begin, but not before `from`.
    pub(crate) fn end_of_content(&mut self, from: u64) -> io::Result<u64> {
        let mut end = self.length;
        while end > from {
            let start = end.saturating_sub(WINDOW_BYTES / 4).max(from);
            let bytes = self.at(start, end - start)?.unwrap_or_default();
            // Comparing with zeros is many times faster than searching byte by byte.
            if bytes != &vec![0; bytes.len()][..]
                && let Some(last) = bytes.iter().rposition(|byte| *byte != 0)
            {
                return Ok(start + last as u64 + 1);
            }
            end = start;
        }
        Ok(from)
    }

    /// `length` bytes at `offset`; `None` past the end of the file.
    fn at(&mut self, offset: u64, length: u64) -> io::Result<Option<&[u8]>> {
        let Some(end) = offset.checked_add(length).filter(|end| *end <= self.length) else { return Ok(None) };
        if offset < self.base || end > self.base + self.bytes.len() as u64 {
            let load = length.max(WINDOW_BYTES).min(self.length - offset);
            self.bytes.resize(usize::try_from(load).map_err(io::Error::other)?, 0);
            self.base = offset;
            read_exact_at(self.file, &mut self.bytes, offset)?;
        }
        let start = usize::try_from(offset - self.base).map_err(io::Error::other)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        Ok(Some(&self.bytes[start..start + length]))
    }
}
