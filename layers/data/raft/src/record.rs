//! The bytes of the log: segment headers and records. Little-endian, versioned, chained by CRC.
//!
//! A record's CRC is seeded by its segment's header and covers the CRC of the record before it, so a record is valid
//! only in its place. `synced` is the segment offset that was flushed when the record was written: it is what tells a
//! torn tail (never flushed, never acknowledged) from damage to something acknowledged.

use bytes::Bytes;

/// Bytes of a segment header.
pub(crate) const SEGMENT_HEADER: usize = 64;
/// Bytes of a record header.
pub(crate) const RECORD_HEADER: usize = 40;
/// Longest payload a reader believes in: a transaction of the largest size, encoded, with room to spare.
pub(crate) const MAX_PAYLOAD: usize = 8 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"SWALSEG\0";
const SEGMENT_VERSION: u16 = 1;
/// Version of every record kind so far.
pub(crate) const RECORD_VERSION: u8 = 1;

/// What a record holds. Numbers are for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// One command of the state machine, from before a record held several: not written any more, still read.
    Command,
    /// Commands of the state machine, of one caller or of several.
    Commands,
    /// A command of the streams.
    StreamCommand,
    /// A leader's empty first entry.
    Blank,
    /// A membership of the group.
    Membership,
    /// Everything after this index is void (a follower gave way to a leader).
    Truncate,
}

impl Kind {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Command => 1,
            Self::Blank => 2,
            Self::Membership => 3,
            Self::Truncate => 4,
            Self::StreamCommand => 5,
            Self::Commands => 6,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Command,
            2 => Self::Blank,
            3 => Self::Membership,
            4 => Self::Truncate,
            5 => Self::StreamCommand,
            6 => Self::Commands,
            _ => return None,
        })
    }
}

/// One record's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub kind: Kind,
    pub term: u64,
    pub index: u64,
    pub payload: Bytes,
}

impl Record {
    pub(crate) fn encoded_length(&self) -> usize {
        RECORD_HEADER + self.payload.len()
    }
}

/// Head of a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub group: u16,
    pub sequence: u64,
    /// CRC of the last record of the segment before.
    pub previous: u32,
    pub store_id: [u8; 16],
}

impl SegmentHeader {
    /// The header's bytes and its CRC, which seeds the records.
    pub(crate) fn encode(&self) -> ([u8; SEGMENT_HEADER], u32) {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.group.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.previous.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.store_id);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// Reads a header back. `Err` says what is wrong.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, u32), HeaderFault> {
        if bytes.len() < SEGMENT_HEADER || &bytes[0..8] != MAGIC {
            return Err(HeaderFault::Damaged);
        }
        let crc = read_u32(bytes, 60);
        if crc32fast::hash(&bytes[..60]) != crc {
            return Err(HeaderFault::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != SEGMENT_VERSION {
            return Err(HeaderFault::Version(version));
        }
        let mut store_id = [0; 16];
        store_id.copy_from_slice(&bytes[24..40]);
        let group = u16::from_le_bytes([bytes[10], bytes[11]]);
        Ok((Self { group, sequence: read_u64(bytes, 12), previous: read_u32(bytes, 20), store_id }, crc))
    }
}

/// Why a segment header was not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderFault {
    Damaged,
    Version(u16),
}

/// Where a record stands: what its CRC depends on besides its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// CRC of the segment header.
    pub seed: u32,
    pub group: u16,
    /// CRC of the record before.
    pub previous: u32,
    /// Segment offset flushed when this record is written.
    pub synced: u32,
}

/// Appends a record's bytes to `out` and returns its CRC.
pub(crate) fn encode(record: &Record, place: Place, out: &mut Vec<u8>) -> u32 {
    let start = out.len();
    let length = u32::try_from(record.payload.len()).expect("payloads are bounded by the transaction limit");
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&place.previous.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&place.synced.to_le_bytes());
    out.extend_from_slice(&[record.kind.number(), RECORD_VERSION]);
    out.extend_from_slice(&place.group.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&record.term.to_le_bytes());
    out.extend_from_slice(&record.index.to_le_bytes());
    out.extend_from_slice(&record.payload);
    let crc = checksum(place.seed, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// A record found in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found<'a> {
    pub crc: u32,
    pub previous: u32,
    pub synced: u32,
    pub kind: u8,
    pub version: u8,
    pub group: u16,
    pub term: u64,
    pub index: u64,
    pub payload: &'a [u8],
}

impl Found<'_> {
    pub(crate) fn length(&self) -> usize {
        RECORD_HEADER + self.payload.len()
    }

    /// The record, unless a newer version wrote it.
    pub(crate) fn record(&self) -> Result<Record, String> {
        let kind = Kind::from_number(self.kind).filter(|_| self.version == RECORD_VERSION);
        let Some(kind) = kind else {
            return Err(format!("a record of kind {} version {}", self.kind, self.version));
        };
        Ok(Record { kind, term: self.term, index: self.index, payload: Bytes::copy_from_slice(self.payload) })
    }
}

/// Length of the record that begins with this header, if it can be one; its CRC is not checked.
pub(crate) fn claimed_length(header: &[u8]) -> Option<usize> {
    let header = header.get(..RECORD_HEADER)?;
    // Kind 0 is never written: it is what reserved space reads as. The four spare bytes are zero in this version.
    if header[16] == 0 || header[20..24] != [0; 4] {
        return None;
    }
    let payload = read_u32(header, 8) as usize;
    (payload <= MAX_PAYLOAD).then_some(RECORD_HEADER + payload)
}

/// The record at the start of `bytes`, if its CRC holds in a segment with this seed. Its place in the chain is not checked.
pub(crate) fn decode(bytes: &[u8], seed: u32) -> Option<Found<'_>> {
    let whole = bytes.get(..claimed_length(bytes)?)?;
    let header = &whole[..RECORD_HEADER];
    let crc = read_u32(header, 0);
    if checksum(seed, &whole[4..]) != crc {
        return None;
    }
    Some(Found {
        crc,
        previous: read_u32(header, 4),
        synced: read_u32(header, 12),
        kind: header[16],
        version: header[17],
        group: u16::from_le_bytes([header[18], header[19]]),
        term: read_u64(header, 24),
        index: read_u64(header, 32),
        payload: &whole[RECORD_HEADER..],
    })
}

fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::{Kind, Place, Record, SegmentHeader, decode, encode};

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let record = Record { kind: Kind::Command, term: 3, index: 9, payload: b"payload"[..].into() };
        let place = Place { seed: 17, group: 0, previous: 5, synced: 64 };
        let mut bytes = Vec::new();
        encode(&record, place, &mut bytes);
        assert_eq!(decode(&bytes, 17).unwrap().record().unwrap(), record);
        assert!(decode(&bytes, 18).is_none(), "valid only in its own segment");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, 17).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_segment_header_is_noticed() {
        let header = SegmentHeader { group: 0, sequence: 4, previous: 77, store_id: [9; 16] };
        let (bytes, crc) = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok((header, crc)));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "bit {bit}");
        }
    }
}
