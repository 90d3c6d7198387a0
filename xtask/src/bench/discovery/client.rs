//! A client of Consul's HTTP API with one connection, as simple as can be: what it costs must not count much.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `X-Consul-Index`, or 0.
    pub index: u64,
    /// The body.
    pub body: Vec<u8>,
}

impl Client {
    /// To a member.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Asks and waits for the answer, however long that takes.
    pub async fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n{body}");
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection ended");
            }
            let Some(head) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&self.buffer[..head])?.to_ascii_lowercase();
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let length: usize = field("content-length").context("an answer without a length")?.trim().parse()?;
            if self.buffer.len() < head + 4 + length {
                continue;
            }
            let status = text.get(9..12).context("no status")?.parse()?;
            let index = field("x-consul-index").map_or(Ok(0), |index| index.trim().parse())?;
            let body = self.buffer[head + 4..head + 4 + length].to_vec();
            // A connection that waits keeps no more than it needs.
            self.buffer.shrink_to(512);
            return Ok(Answer { status, index, body });
        }
    }

    /// The same for what must succeed.
    pub async fn done(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let answer = self.ask(method, path, body).await?;
        if answer.status != 200 {
            bail!("{method} {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(answer)
    }
}
