//! What goes over a connection between nodes: frames with kind, version, group, call, length and CRC. Sans-io.
//! Deliberately absent: what a payload means (`message.rs`).

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Bytes before a payload.
pub(crate) const HEADER: usize = 20;
/// Longest payload: a round of the largest entries, with room to spare.
pub(crate) const MAX_PAYLOAD: usize = 16 * 1024 * 1024;
/// Version of every kind so far.
pub(crate) const VERSION: u8 = 1;

/// What a frame is. Numbers are for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The first frame of each side.
    Hello,
    /// Instead of a hello: why this connection is not wanted.
    Refused,
    /// Entries, in order.
    Append,
    /// No entries: the leader is there.
    Heartbeat,
    Vote,
    PreVote,
    /// Leadership is handed over.
    Transfer,
    /// A snapshot begins,
    SnapshotBegin,
    /// goes on,
    SnapshotBlock,
    /// and is complete.
    SnapshotEnd,
    /// The pieces of segments that the receiver of a snapshot still needs; each follows in blocks with an end.
    SegmentsWanted,
    /// A command for the leader.
    Propose,
    /// From which index on a read is linearizable.
    ReadIndex,
    /// A lease goes on.
    KeepAlive,
    /// What is left of a lease.
    LeaseInfo,
    /// Large entries of a stream are to take turns for a while.
    GiveWay,
    /// A lease is to go on although nothing can be decided.
    Confirm,
    /// A new node asks to be let in.
    Admit,
    /// The members as the leader sees them.
    Members,
    /// A change of the members.
    Change,
    /// A certificate is asked for.
    Certify,
    /// What an agent asks of a server.
    Ask,
    /// An answer to an agent that is longer than a frame, in order; what a watch yields.
    Part,
    /// An agent takes so many more parts of a watch.
    More,
    /// An agent needs no more of a watch.
    Enough,
    /// The answer to a call.
    Reply,
    /// The error that is the answer to a call.
    Failed,
}

const KINDS: [(Kind, u8); 27] = [
    (Kind::Hello, 1),
    (Kind::Refused, 2),
    (Kind::Append, 10),
    (Kind::Vote, 11),
    (Kind::PreVote, 12),
    (Kind::Transfer, 13),
    (Kind::Heartbeat, 14),
    (Kind::SnapshotBegin, 20),
    (Kind::SnapshotBlock, 21),
    (Kind::SnapshotEnd, 22),
    (Kind::SegmentsWanted, 23),
    (Kind::Propose, 30),
    (Kind::ReadIndex, 31),
    (Kind::KeepAlive, 32),
    (Kind::LeaseInfo, 33),
    (Kind::GiveWay, 34),
    (Kind::Confirm, 35),
    (Kind::Admit, 40),
    (Kind::Members, 41),
    (Kind::Change, 42),
    (Kind::Certify, 43),
    (Kind::Ask, 50),
    (Kind::Part, 51),
    (Kind::More, 52),
    (Kind::Enough, 53),
    (Kind::Reply, 60),
    (Kind::Failed, 61),
];

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub kind: Kind,
    pub group: u16,
    /// Which call it belongs to; an answer carries its call's.
    pub call: u64,
    pub payload: Bytes,
}

/// Bytes that are no frame of a version known here. The connection is of no use any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame is damaged")]
    Damaged,
    #[error("a frame of {0} bytes is longer than any")]
    TooLong(usize),
    #[error("a frame of kind {kind} version {version} is not known here")]
    Unknown { kind: u8, version: u8 },
}

impl Frame {
    /// Appends the frame's bytes.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let number = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or(0, |(_, number)| *number);
        let start = out.len();
        out.reserve(HEADER + self.payload.len());
        out.put_u32_le(u32::try_from(self.payload.len()).expect("payloads are bounded by their makers"));
        out.put_u8(number);
        out.put_u8(VERSION);
        out.put_u16_le(self.group);
        out.put_u64_le(self.call);
        out.put_u32_le(checksum(&out[start..start + HEADER - 4], &self.payload));
        out.extend_from_slice(&self.payload);
    }

    /// Takes the next frame off the front, once all of it is there.
    pub(crate) fn take(bytes: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(mut header) = bytes.get(..HEADER) else { return Ok(None) };
        let length = header.get_u32_le() as usize;
        let (number, version) = (header.get_u8(), header.get_u8());
        let (group, call, crc) = (header.get_u16_le(), header.get_u64_le(), header.get_u32_le());
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        if bytes.len() < HEADER + length {
            bytes.reserve(HEADER + length - bytes.len());
            return Ok(None);
        }
        let mut whole = bytes.split_to(HEADER + length);
        if checksum(&whole[..HEADER - 4], &whole[HEADER..]) != crc {
            return Err(FrameError::Damaged);
        }
        let kind = KINDS.iter().find(|(_, known)| *known == number).filter(|_| version == VERSION);
        let Some((kind, _)) = kind else { return Err(FrameError::Unknown { kind: number, version }) };
        whole.advance(HEADER);
        Ok(Some(Self { kind: *kind, group, call, payload: whole.freeze() }))
    }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::{Frame, FrameError, KINDS, Kind};
    use bytes::{Bytes, BytesMut};

    fn frame(kind: Kind) -> Frame {
        Frame { kind, group: 3, call: u64::MAX - 1, payload: Bytes::from_static(b"payload") }
    }

    #[test]
    fn frames_of_every_kind_arrive_whole_however_they_are_cut() {
        let mut sent = BytesMut::new();
        let frames: Vec<Frame> = KINDS.iter().map(|(kind, _)| frame(*kind)).collect();
        frames.iter().for_each(|frame| frame.encode(&mut sent));
        for step in [1, 7, sent.len()] {
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in sent.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::take(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut sent = BytesMut::new();
        frame(Kind::Append).encode(&mut sent);
        for bit in 0..sent.len() * 8 {
            let mut damaged = sent.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A greater length waits for more, which never comes or does not check.
            assert!(!matches!(Frame::take(&mut damaged), Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut sent = BytesMut::new();
        frame(Kind::Vote).encode(&mut sent);
        sent[5] = 2;
        let crc = super::checksum(&sent[..16], b"payload");
        sent[16..20].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Frame::take(&mut sent), Err(FrameError::Unknown { kind: 11, version: 2 }));
    }
}
