//! A kept connection to a node's API, of the standard library only: a client must see breaks as they are, with no
//! retries in between. Chunked answers are deliberately not read: the requests of a round get none.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Where the API of a node listens, in its own namespace.
pub const API: &str = "127.0.0.1:8500";

/// One answer.
pub struct Answer {
    pub status: u16,
    /// Of `seawall-revision`.
    pub revision: Option<u64>,
    /// Of `seawall-end`.
    pub end: Option<u64>,
    /// The connection is of no use any more.
    pub closing: bool,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A connection.
pub struct Connection {
    reader: BufReader<TcpStream>,
    host: &'static str,
    token: Option<String>,
}

impl Connection {
    /// To the API in the namespace this thread is in. `timeout` holds for every wait on it.
    pub fn open(timeout: Duration) -> io::Result<Self> {
        Self::to(API, timeout)
    }

    /// To something else in that namespace.
    pub fn to(host: &'static str, timeout: Duration) -> io::Result<Self> {
        let address: SocketAddr = host.parse().map_err(io::Error::other)?;
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::new(stream), host, token: None })
    }

    /// Sends what is in this file with each request, if one is named: a node that cannot tell who calls wants it.
    ///
    /// # Errors
    /// There is none: a node whose disk was lost accepts connections a moment before it has written another.
    pub fn with_token(mut self, file: Option<&Path>) -> io::Result<Self> {
        self.token = file.map(std::fs::read_to_string).transpose()?.map(|token| token.trim().to_owned());
        Ok(self)
    }

    /// Sends and waits for the answer.
    pub fn send(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.send_with(method, path, "", body)
    }

    /// The same with more header lines, each with its end.
    pub fn send_with(&mut self, method: &str, path: &str, more: &str, body: &[u8]) -> io::Result<Answer> {
        let (host, length) = (self.host, body.len());
        let token = self.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{more}{token}content-length: {length}\r\n\r\n");
        self.reader.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {first:?}")))?;
        let (mut length, mut revision, mut end, mut closing) = (None, None, None, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            let Some((name, value)) = line.split_once(':') else { break };
            match name {
                "content-length" => length = value.trim().parse::<usize>().ok(),
                "seawall-revision" => revision = value.trim().parse().ok(),
                "seawall-end" => end = value.trim().parse().ok(),
                "connection" => closing = value.trim() == "close",
                _ => {}
            }
        }
        let length = length.filter(|length| *length < 64 << 20);
        let mut body = vec![0; length.ok_or_else(|| io::Error::other("an answer without a length"))?];
        self.reader.read_exact(&mut body)?;
        Ok(Answer { status, revision, end, closing, body })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
