//! Moves one body from a source to a sink: read, find the body, wrap it anew, write; at most one buffer ahead.
//! Used twice by the forward step, once per direction. What is staged for the sink begins with a head, so that head
//! and first bytes leave in one write. Deliberately absent: timeouts, and which direction it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::buffer::{Buffer, LARGE_BYTES, Spares};
use crate::compress::Encoder;
use crate::front::{Sink, Source};
use crate::http1::{Bad, Decoder, Framing, Limits};
use crate::text::push_hex;

/// Why a body could not be moved to its end.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The source ended too early.
    SourceClosed,
    /// The sink takes nothing more.
    Sink,
    /// The body breaks its framing or a bound.
    Bad(Bad),
}

/// What a pump waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    No,
    OnSource,
    OnSink,
}

const TOO_LARGE: Bad = Bad::with(413, "body-too-large");

/// One direction of one exchange.
#[derive(Debug)]
pub(crate) struct Pump {
    decoder: Decoder,
    /// Whether the sink gets chunks.
    chunked: bool,
    /// Whether trailers go along, filtered by the caller's rule.
    trailers: Option<fn(&[u8]) -> bool>,
    /// Trailers for a sink that does not take them as bytes.
    tail: Vec<u8>,
    /// Bytes for the sink, of which `sent` are gone.
    pub(crate) staged: Vec<u8>,
    sent: usize,
    /// The body's end is staged.
    finished: bool,
    /// Body bytes taken from the source.
    pub(crate) passed: u64,
    most: u64,
    /// What compresses the body.
    encoder: Option<Box<Encoder>>,
    /// Bytes of the body for another attempt; `None` once there were too many.
    kept: Option<Vec<u8>>,
    keep_bytes: usize,
    /// What is kept is of use only until the first byte has left.
    keep_unwritten: bool,
    /// A copy of the body for somebody else, as long as it is not too large. Outlives [`Pump::begin`].
    copy: Option<Box<Copied>>,
    /// Any byte was taken by the sink.
    pub(crate) wrote: bool,
    written: u64,
    pub(crate) blocked: Blocked,
}

impl Pump {
    pub(crate) fn new(staged: Vec<u8>) -> Self {
        Self {
            decoder: Decoder::Length(0),
            chunked: false,
            trailers: None,
            tail: Vec::new(),
            staged,
            sent: 0,
            finished: false,
            passed: 0,
            most: u64::MAX,
            encoder: None,
            kept: None,
            keep_bytes: 0,
            keep_unwritten: false,
            copy: None,
            wrote: false,
            written: 0,
            blocked: Blocked::No,
        }
    }

    /// A new body. Bytes staged before stay in front of it.
    pub(crate) fn begin(&mut self, decoder: Decoder, chunked: bool) {
        (self.decoder, self.chunked, self.trailers) = (decoder, chunked, None);
        self.tail.clear();
        self.encoder = None;
        (self.sent, self.finished, self.passed, self.most) = (0, false, 0, u64::MAX);
        (self.kept, self.keep_bytes, self.wrote, self.written, self.blocked) = (None, 0, false, 0, Blocked::No);
    }

    /// Passes trailers on for whose names `rule` holds.
    pub(crate) fn forward_trailers(&mut self, rule: fn(&[u8]) -> bool) {
        self.trailers = Some(rule);
    }

    /// Compresses the body. To be called before the first byte is taken.
    pub(crate) fn compress(&mut self, encoder: Encoder) {
        self.encoder = Some(Box::new(encoder));
    }

    /// Refuses more than `most` bytes.
    pub(crate) fn limit(&mut self, most: u64) {
        self.most = most;
    }

    /// Keeps up to so many bytes for another attempt, if `unwritten` only until the sink takes the first one. To be
    /// called before the first byte is taken; `expected` is the body's length where it is known.
    pub(crate) fn keep(&mut self, bytes: usize, expected: u64, unwritten: bool) {
        if self.passed == 0 && self.kept.is_none() {
            let expected = usize::try_from(expected).unwrap_or(usize::MAX);
            self.kept = Some(if unwritten || expected > bytes { Vec::new() } else { Vec::with_capacity(expected) });
            (self.keep_bytes, self.keep_unwritten) = (bytes, unwritten);
        }
    }

    /// Copies the next body, up to so many bytes.
    pub(crate) fn copy(&mut self, most: usize) {
        self.copy = Some(Box::new(Copied { bytes: Vec::new(), most, whole: true }));
    }

    /// The copy, if the body has come to its end and was not too large.
    ///
    /// # Errors
    /// Whether it was too large.
    pub(crate) fn take_copy(&mut self) -> Result<Vec<u8>, bool> {
        let Some(copy) = self.copy.take() else { return Err(false) };
        if copy.whole && self.decoder.ended() { Ok(copy.bytes) } else { Err(!copy.whole) }
    }

    /// Keeps bytes taken from the source, unless they are too many.
    fn keep_data(kept: &mut Option<Vec<u8>>, most: usize, data: &[u8]) {
        match kept {
            Some(bytes) if bytes.len() + data.len() <= most => bytes.extend_from_slice(data),
            _ => *kept = None,
        }
    }

    /// The sink has taken so many bytes.
    fn note_written(&mut self, count: usize) {
        (self.wrote, self.written) = (true, self.written + count as u64);
        if self.keep_unwritten {
            self.kept = None;
        }
    }

    /// Whether every byte taken from the source is still at hand.
    pub(crate) fn replayable(&self) -> bool {
        self.passed == 0 || self.kept.is_some()
    }

    /// Starts over towards another sink: `head` writes what comes first, then follow the bytes kept.
    pub(crate) fn restart(&mut self, chunked: bool, head: impl FnOnce(&mut Vec<u8>)) {
        self.chunked = chunked;
        self.staged.clear();
        head(&mut self.staged);
        (self.sent, self.finished, self.wrote, self.blocked) = (0, false, false, Blocked::No);
        if let Some(kept) = self.kept.take() {
            push_data(&mut self.staged, self.chunked, &kept);
            self.kept = Some(kept);
        }
        self.finish_if_ended();
    }

    /// Whether the whole body has been taken from the source.
    pub(crate) fn source_ended(&self) -> bool {
        self.decoder.ended()
    }

    /// Grows whenever the sink takes something.
    pub(crate) fn progress(&self) -> u64 {
        self.written
    }

    /// Whether the sink has everything.
    pub(crate) fn is_done(&self) -> bool {
        self.finished && self.sent == self.staged.len()
    }

    /// Moves what can be moved now.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Source,
        input: &mut Buffer,
        sink: &mut impl Sink,
        spares: &Spares,
    ) -> Poll<Result<(), PumpError>> {
        loop {
            if self.is_straight() && !input.is_empty() {
                self.blocked = Blocked::OnSink;
                ready!(self.poll_straight(cx, input, sink))?;
                continue;
            }
            self.stage(input)?;
            if self.sent < self.staged.len() {
                self.blocked = Blocked::OnSink;
                ready!(self.poll_send(cx, sink)).map_err(|_| PumpError::Sink)?;
                continue;
            }
            self.staged.clear();
            self.sent = 0;
            if self.finished {
                self.blocked = Blocked::No;
                return sink.poll_finish(cx, &self.tail).map_err(|_| PumpError::Sink);
            }
            self.blocked = Blocked::OnSource;
            let filled = input.poll_fill(cx, source, spares);
            if filled.is_pending() && self.flush_encoder() {
                continue;
            }
            match ready!(filled) {
                Ok(0) if self.decoder.ends_with_stream() => {
                    let trailers = source.take_trailers();
                    self.finish(&trailers);
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(PumpError::SourceClosed)),
                Ok(_) => {}
            }
        }
    }

    /// Whether bytes go on as they come, with nothing in front of them.
    fn is_straight(&self) -> bool {
        self.staged.is_empty() && !self.finished && !self.chunked && self.encoder.is_none() && self.decoder.is_plain()
    }

    /// Writes body bytes from where they were read.
    fn poll_straight(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut Buffer,
        sink: &mut impl Sink,
    ) -> Poll<Result<(), PumpError>> {
        let look = &input.filled()[..self.decoder.plain_bytes(input.filled().len())];
        if self.passed + look.len() as u64 > self.most {
            return Poll::Ready(Err(PumpError::Bad(TOO_LARGE)));
        }
        let count = match ready!(Pin::new(sink).poll_write(cx, look)) {
            Ok(count @ 1..) => count,
            Ok(_) | Err(_) => return Poll::Ready(Err(PumpError::Sink)),
        };
        let piece = self.decoder.next(&look[..count]).map_err(PumpError::Bad)?;
        debug_assert_eq!((piece.skip, piece.data), (0, count));
        self.passed += count as u64;
        Copied::add(&mut self.copy, &look[..count]);
        Self::keep_data(&mut self.kept, self.keep_bytes, &look[..count]);
        self.note_written(count);
        input.consume(count);
        self.finish_if_ended();
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, sink: &mut impl Sink) -> Poll<io::Result<()>> {
        let count = ready!(Pin::new(sink).poll_write(cx, &self.staged[self.sent..]))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.note_written(count);
        self.sent += count;
        Poll::Ready(Ok(()))
    }

    /// Takes body bytes from `input` as far as there is room.
    fn stage(&mut self, input: &mut Buffer) -> Result<(), PumpError> {
        while !self.finished && !input.is_empty() && self.staged.len() < LARGE_BYTES {
            let room = LARGE_BYTES - self.staged.len();
            let filled = input.filled();
            let look = &filled[..filled.len().min(room)];
            let piece = self.decoder.next(look).map_err(PumpError::Bad)?;
            let data = &look[piece.skip..piece.skip + piece.data];
            self.passed += data.len() as u64;
            if self.passed > self.most {
                return Err(PumpError::Bad(TOO_LARGE));
            }
            match &mut self.encoder {
                None => push_data(&mut self.staged, self.chunked, data),
                Some(encoder) => {
                    let mut coded = Vec::new();
                    encoder.write(data, &mut coded);
                    push_data(&mut self.staged, self.chunked, &coded);
                }
            }
            Copied::add(&mut self.copy, data);
            Self::keep_data(&mut self.kept, self.keep_bytes, data);
            input.consume(piece.skip + piece.data);
            self.finish_if_ended();
        }
        self.finish_if_ended();
        Ok(())
    }

    fn finish_if_ended(&mut self) {
        if !self.finished && self.decoder.ended() {
            self.finish(&[]);
        }
    }

    /// Brings out what the encoder holds back, when nothing more comes for now. False if it holds nothing.
    fn flush_encoder(&mut self) -> bool {
        let Some(encoder) = &mut self.encoder else { return false };
        let mut coded = Vec::new();
        encoder.flush(&mut coded);
        push_data(&mut self.staged, self.chunked, &coded);
        !coded.is_empty()
    }

    /// The end, with what came behind the body: by the decoder's framing, or `trailers`.
    fn finish(&mut self, trailers: &[u8]) {
        self.finished = true;
        if let Some(mut encoder) = self.encoder.take() {
            let mut coded = Vec::new();
            encoder.finish(&mut coded);
            push_data(&mut self.staged, self.chunked, &coded);
        }
        let out = if self.chunked { &mut self.staged } else { &mut self.tail };
        if self.chunked {
            out.extend_from_slice(b"0\r\n");
        }
        if let Some(rule) = self.trailers {
            let trailers = if trailers.is_empty() { self.decoder.trailers() } else { trailers };
            for line in trailers.split_inclusive(|&byte| byte == b'\n') {
                let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
                if rule(name) {
                    out.extend_from_slice(line);
                }
            }
        }
        if self.chunked {
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Gives back what has grown, for the time until the next request.
    pub(crate) fn shrink(&mut self) {
        (self.kept, self.copy) = (None, None);
        if self.staged.capacity() > 4_096 {
            self.staged = Vec::new();
        }
    }
}

#[derive(Debug)]
struct Copied {
    bytes: Vec<u8>,
    most: usize,
    /// Nothing was left out.
    whole: bool,
}

impl Copied {
    fn add(copy: &mut Option<Box<Self>>, data: &[u8]) {
        let Some(copy) = copy else { return };
        if copy.whole && copy.bytes.len() + data.len() <= copy.most {
            copy.bytes.extend_from_slice(data);
        } else {
            (copy.whole, copy.bytes) = (false, Vec::new());
        }
    }
}

fn push_data(staged: &mut Vec<u8>, chunked: bool, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    if chunked {
        push_hex(staged, data.len() as u64);
        staged.extend_from_slice(b"\r\n");
    }
    staged.extend_from_slice(data);
    if chunked {
        staged.extend_from_slice(b"\r\n");
    }
}

/// A decoder for what `source` yields of a body of this framing.
pub(crate) fn decoder_for(source: &impl Source, framing: Framing, limits: &Limits) -> Decoder {
    match framing {
        Framing::Chunked if source.is_bare() => Decoder::UntilClose,
        _ => Decoder::new(framing, limits),
    }
}
