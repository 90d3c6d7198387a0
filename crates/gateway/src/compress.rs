//! Answers compressed on their way, for routes that ask for it and clients that can read it.
//! Part of the forward step, between the decoder of an instance's body and the client's framing. Decided by the head
//! alone: what an instance has coded itself, a part of a body, what is small or does not shrink passes as it came. What
//! has been read is never kept waiting for more: a body that trickles is flushed as it comes.
//! Deliberately absent: decompression, and a cache of what was compressed.

use std::cell::Cell;
use std::io::Write as _;
use std::rc::Rc;

use crate::http1::{Framing, Kind, RequestHead, ResponseHead, Version};
use crate::policy::HeaderEdits;

/// Answers of fewer bytes are not worth it.
const LEAST_BYTES: u64 = 256;
/// Answers a worker compresses at a time, since each has a window of its own. More pass as they came.
const MOST_ENCODERS: usize = 256;

/// A content coding (RFC 9110, 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `gzip`, level 5.
    Gzip,
    /// `br`, quality 4 in a window of 256 KiB.
    Brotli,
    /// `zstd`, level 3 in a window of 256 KiB.
    Zstd,
}

impl Coding {
    /// Its name in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// How many encoders a worker has.
pub(crate) type Encoders = Rc<Cell<usize>>;

/// Compresses one body.
pub(crate) struct Encoder {
    writer: Writer,
    /// Something was written that is not out yet.
    pending: bool,
    count: Encoders,
}

enum Writer {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
    }
}

/// A writer into memory does not fail; neither do the coders themselves.
const NEVER: &str = "compressing into memory does not fail";

impl Encoder {
    fn new(coding: Coding, count: &Encoders) -> Option<Self> {
        if count.get() >= MOST_ENCODERS {
            return None;
        }
        let writer = match coding {
            Coding::Gzip => Writer::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(5))),
            Coding::Brotli => Writer::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 16 * 1024, 4, 18))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).ok()?;
                encoder.window_log(18).ok()?;
                Writer::Zstd(encoder)
            }
        };
        count.set(count.get() + 1);
        Some(Self { writer, pending: false, count: count.clone() })
    }

    /// Takes data in and appends what has become of it.
    pub(crate) fn write(&mut self, data: &[u8], out: &mut Vec<u8>) {
        match &mut self.writer {
            Writer::Gzip(writer) => writer.write_all(data).expect(NEVER),
            Writer::Brotli(writer) => writer.write_all(data).expect(NEVER),
            Writer::Zstd(writer) => writer.write_all(data).expect(NEVER),
        }
        self.pending = true;
        self.take(out);
    }

    /// Appends everything that was taken in and is not out yet, so that the client can read it now.
    pub(crate) fn flush(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.pending) {
            match &mut self.writer {
                Writer::Gzip(writer) => writer.flush().expect(NEVER),
                Writer::Brotli(writer) => writer.flush().expect(NEVER),
                Writer::Zstd(writer) => writer.flush().expect(NEVER),
            }
            self.take(out);
        }
    }

    /// Appends the end.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        match &mut self.writer {
            Writer::Gzip(writer) => writer.try_finish().expect(NEVER),
            Writer::Brotli(writer) => {
                // It writes its end when it is taken apart.
                let empty = brotli::CompressorWriter::new(Vec::new(), 1, 0, 10);
                out.append(&mut std::mem::replace(&mut **writer, empty).into_inner());
                return;
            }
            Writer::Zstd(writer) => writer.do_finish().expect(NEVER),
        }
        self.take(out);
    }

    fn take(&mut self, out: &mut Vec<u8>) {
        match &mut self.writer {
            Writer::Gzip(writer) => out.append(writer.get_mut()),
            Writer::Brotli(writer) => out.append(writer.get_mut()),
            Writer::Zstd(writer) => out.append(writer.get_mut()),
        }
    }
}

/// Decides on an answer that may be coded: `edits` with the new fields, and who codes it if this client takes a coding.
/// The head is changed to what the client gets: no length. An answer that stays as it is for this client alone says so.
pub(crate) fn choose(
    offered: &[Coding],
    head: &RequestHead,
    response: &mut ResponseHead,
    bytes: &[u8],
    edits: &HeaderEdits,
    count: &Encoders,
) -> Option<(Option<Encoder>, HeaderEdits)> {
    // What a GET would be told of: the head of its answer alone has no body to code, but varies all the same.
    let to_head = head.method() == b"HEAD";
    let worth = match response.framing {
        Framing::None => to_head,
        Framing::Length(length) => length >= LEAST_BYTES,
        Framing::Chunked | Framing::UntilClose => true,
    };
    if !worth || response.status == 206 || response.status < 200 {
        return None;
    }
    let may_code = !to_head && head.version() != Version::Http10;
    let mut etag = None;
    let mut is_text = false;
    let mut false_now = Vec::new();
    for (index, header) in response.fields.headers.iter().enumerate() {
        let (name, value) = (header.name.get(bytes), header.value.get(bytes));
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            16 if is("content-encoding") => return None,
            13 if is("content-range") => return None,
            // Of the bytes that the instance would have sent: what is sent has others, and parts of it cannot be asked for.
            13 if is("accept-ranges") => false_now.push(index),
            11 if is("content-md5") => false_now.push(index),
            6 if is("digest") => false_now.push(index),
            14 if is("content-digest") => false_now.push(index),
            13 if is("cache-control") && contains(value, b"no-transform") => return None,
            12 if is("content-type") => is_text = shrinks(value),
            4 if is("etag") => etag = Some(index),
            _ => {}
        }
    }
    if !is_text {
        return None;
    }
    let edits_drop_etag = edits.drops(b"etag");
    let mut edits = edits.clone();
    let mut add = |name: &str, value: String| edits.add.push((name.to_owned(), value));
    add("Vary", "Accept-Encoding".to_owned());
    let coding = offered.iter().filter(|_| may_code).find(|coding| accepts(head, coding.name()));
    let coded = coding.and_then(|coding| Some((coding.name(), Encoder::new(*coding, count)?)));
    let Some((coding, encoder)) = coded else { return Some((None, edits)) };
    add("Content-Encoding", coding.to_owned());
    for index in false_now {
        response.fields.headers[index].kind = Kind::Hop;
    }
    let etag = etag.filter(|_| !edits_drop_etag);
    if let Some(header) = etag.map(|index| &mut response.fields.headers[index]) {
        // Not the same bytes any more: only the weak form still holds (RFC 9110, 8.8.3).
        let value = String::from_utf8_lossy(header.value.get(bytes)).into_owned();
        if !value.starts_with("W/") {
            header.kind = Kind::Hop;
            add("ETag", format!("W/{value}"));
        }
    }
    for header in response.fields.headers.iter_mut().filter(|header| header.kind == Kind::ContentLength) {
        header.kind = Kind::Hop;
    }
    response.framing = Framing::UntilClose;
    Some((Some(encoder), edits))
}

/// Whether a client takes a coding: named, or covered by `*`, and not with `q=0`.
fn accepts(head: &RequestHead, coding: &str) -> bool {
    let mut by_star = false;
    for header in &head.fields.headers {
        if !header.name.get(head.bytes()).eq_ignore_ascii_case(b"accept-encoding") {
            continue;
        }
        for item in header.value.get(head.bytes()).split(|&byte| byte == b',') {
            let mut parts = item.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let refused = parts.any(is_zero);
            if name.eq_ignore_ascii_case(coding.as_bytes()) {
                return !refused;
            }
            by_star |= name == b"*" && !refused;
        }
    }
    by_star
}

/// `q=0`, `q=0.0` and so on.
fn is_zero(parameter: &[u8]) -> bool {
    let weight = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    weight.is_some_and(|weight| weight.first() == Some(&b'0') && weight.iter().all(|&byte| matches!(byte, b'0' | b'.')))
}

fn contains(value: &[u8], word: &[u8]) -> bool {
    value.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

/// Media types that are text of some kind. Events are not among them: whoever sends them wants each one out at once, and
/// a flush for each costs more than it saves.
fn shrinks(media_type: &[u8]) -> bool {
    const TYPES: [&str; 8] = [
        "application/javascript",
        "application/json",
        "application/manifest+json",
        "application/wasm",
        "application/x-ndjson",
        "application/xml",
        "font/ttf",
        "image/svg+xml",
    ];
    let name = media_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    if name == "text/event-stream" {
        return false;
    }
    name.starts_with("text/") || name.ends_with("+json") || name.ends_with("+xml") || TYPES.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::{Coding, Encoder, Encoders, MOST_ENCODERS, accepts, shrinks};
    use crate::http1::{Limits, RequestHead};
    use std::io::Read as _;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    fn decoded(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            Coding::Gzip => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut out)),
            Coding::Brotli => drop(brotli::Decompressor::new(bytes, 4_096).read_to_end(&mut out)),
            Coding::Zstd => drop(zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut out)),
        }
        out
    }

    #[test]
    fn what_goes_in_comes_out_whole_and_flushed_parts_at_once() {
        for coding in ALL {
            let count = Encoders::default();
            let mut encoder = Encoder::new(coding, &count).unwrap();
            let (mut out, mut whole) = (Vec::new(), Vec::new());
            for turn in 0..50_u32 {
                let part = format!("line {turn} of a text that repeats itself, as texts do\n").repeat(20);
                encoder.write(part.as_bytes(), &mut out);
                whole.extend_from_slice(part.as_bytes());
                if turn % 10 == 0 {
                    encoder.flush(&mut out);
                    assert_eq!(decoded(coding, &out), whole, "{coding:?} after a flush");
                    let before = out.len();
                    encoder.flush(&mut out);
                    assert_eq!(out.len(), before, "nothing new, nothing said");
                }
            }
            encoder.finish(&mut out);
            assert_eq!(decoded(coding, &out), whole, "{coding:?}");
            assert!(out.len() * 10 < whole.len(), "{coding:?}: {} of {}", out.len(), whole.len());
            drop(encoder);
            assert_eq!(count.get(), 0);
        }
    }

    #[test]
    fn encoders_are_bounded() {
        let count = Encoders::default();
        let held: Vec<_> = (0..MOST_ENCODERS).map(|_| Encoder::new(Coding::Gzip, &count).unwrap()).collect();
        assert!(Encoder::new(Coding::Gzip, &count).is_none());
        drop(held);
        assert!(Encoder::new(Coding::Gzip, &count).is_some());
    }

    #[test]
    fn negotiation() {
        for (field, coding, want) in [
            ("gzip, br", "br", true),
            ("gzip;q=0.5, br;q=0", "br", false),
            ("gzip;q=0.5", "gzip", true),
            ("GZIP", "gzip", true),
            ("*", "zstd", true),
            ("*;q=0", "zstd", false),
            ("br;q=0, *", "br", false),
            ("identity", "gzip", false),
            ("xgzip", "gzip", false),
            ("", "gzip", false),
        ] {
            let mut head = RequestHead::default();
            let text = format!("GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: {field}\r\n\r\n");
            head.parse(text.as_bytes(), &Limits::default()).unwrap();
            assert_eq!(accepts(&head, coding), want, "{coding} in {field:?}");
        }
    }

    #[test]
    fn types() {
        for (media_type, want) in [
            ("text/html; charset=utf-8", true),
            ("application/json", true),
            ("application/problem+JSON", true),
            ("image/svg+xml", true),
            ("text/event-stream", false),
            ("application/grpc", false),
            ("image/png", false),
            ("application/octet-stream", false),
            ("", false),
        ] {
            assert_eq!(shrinks(media_type.as_bytes()), want, "{media_type}");
        }
    }
}
