//! Frames of HTTP/2 by hand: no client library would send what these cases need.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::common::PATIENCE;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered(u16),
    /// The stream was reset, or the connection ended.
    Reset,
}

/// Fields, and what they say.
type Field = (Vec<u8>, Vec<u8>);

/// A connection's begin and one request on it.
pub fn request(fields: &[Field], data: Vec<Vec<u8>>, trailers: &[Field]) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, SETTINGS, 0, 0, &[]);
    let mut parts = vec![(HEADERS, block(fields))];
    parts.extend(data.into_iter().map(|data| (DATA, data)));
    if !trailers.is_empty() {
        parts.push((HEADERS, block(trailers)));
    }
    let last = parts.len() - 1;
    for (index, (kind, payload)) in parts.into_iter().enumerate() {
        let end = if index == last { END_STREAM } else { 0 };
        frame(&mut out, kind, end | if kind == HEADERS { END_HEADERS } else { 0 }, 1, &payload);
    }
    out
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Literal fields without indexing and without Huffman codes (RFC 7541, 6.2.2).
fn block(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        assert!(name.len() < 127 && value.len() < 127, "shorter than a length of more bytes");
        out.extend_from_slice(&[0, name.len() as u8]);
        out.extend_from_slice(name);
        out.push(value.len() as u8);
        out.extend_from_slice(value);
    }
    out
}

/// Sends `bytes` and waits for what becomes of the first stream.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> Outcome {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut head = [0; 9];
    loop {
        if stream.read_exact(&mut head).is_err() {
            return Outcome::Reset;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).is_err() {
            return Outcome::Reset;
        }
        match (head[3], head[8]) {
            (RST_STREAM, 1) | (GOAWAY, _) => return Outcome::Reset,
            (HEADERS, 1) => {
                return Outcome::Answered(status(&payload));
            }
            _ => {}
        }
    }
}

/// The first field of an answer (RFC 7541, appendices A and B).
fn status(block: &[u8]) -> u16 {
    match block[0] {
        0x88 => 200,
        0x8c => 400,
        // A literal, its digits in Huffman codes: five bits for 0 to 2, six for the others.
        0x48 if block[1] & 0x80 != 0 => {
            let bits = block[2..5].iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << 8;
            let (mut at, mut status) = (0, 0);
            for _ in 0..3 {
                let five = bits << at >> 27;
                let six = bits << at >> 26;
                let (digit, width) = if five < 3 { (five, 5) } else { (six - 0b01_1001 + 3, 6) };
                status = status * 10 + digit as u16;
                at += width;
            }
            status
        }
        other => panic!("a status of another kind: {other:x}"),
    }
}
