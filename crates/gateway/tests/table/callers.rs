//! The client's side of a cell, in HTTP/1.1 on a raw socket and as a stream of HTTP/2; both do what they are told, step
//! by step. Deliberately absent: what must come of it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;

use crate::common::{PATIENCE, find};

/// What a client has got in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// An answer with its end.
    Whole { status: u16, reason: String, body: String },
    /// Half an answer, and an end that does not look like its end.
    Cut,
    /// An end without a byte of an answer.
    Closed,
}

/// Bytes of an answer's body that a cell's instance sends before and after the event.
pub const HALF: &str = "01234";

/// One client.
pub trait Caller {
    /// Sends a head: POST with so many bytes to come, or GET.
    fn ask(&mut self, path: &str, length: Option<usize>);
    fn body(&mut self, bytes: &[u8]);
    /// Sends body until nobody takes more.
    fn flood(&mut self);
    /// Waits for an interim answer.
    fn interim(&mut self);
    /// Waits for an answer's head and the first half of its body.
    fn half(&mut self);
    /// Whatever comes, to its end.
    fn end(&mut self) -> Got;
    /// Whether the connection has ended, or ends now.
    fn is_closed(&mut self) -> bool;
    fn fin(&mut self);
    fn rst(&mut self);
}

/// HTTP/1.1.
pub struct Http1 {
    stream: Option<TcpStream>,
    rest: Vec<u8>,
    /// Bytes of the answer's body still to come, once its head has been read.
    begun: Option<usize>,
    half: String,
    sent: usize,
    length: usize,
}

impl Http1 {
    pub fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: Some(stream), rest: Vec::new(), begun: None, half: String::new(), sent: 0, length: 0 }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.as_mut().unwrap().write_all(bytes.as_ref()).unwrap();
    }

    /// Has so many bytes to send.
    pub fn owe(&mut self, length: usize) {
        self.length = length;
    }

    /// So many bytes, whatever they are.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.rest.len() < count {
            assert!(self.more(), "ended after {}", self.rest.escape_ascii());
        }
        self.rest.drain(..count).collect()
    }

    fn more(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut chunk = [0; 65_536];
        match stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.rest.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("nothing came; before: {}", self.rest.escape_ascii())
            }
            Err(_) => false,
        }
    }

    fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.rest, b"\r\n\r\n") {
                return Some(String::from_utf8_lossy(&self.rest.drain(..at + 4).collect::<Vec<u8>>()).into_owned());
            }
            if !self.more() {
                return None;
            }
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

impl Caller for Http1 {
    fn ask(&mut self, path: &str, length: Option<usize>) {
        match length {
            Some(length) => {
                self.length = length;
                self.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"));
            }
            None => self.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")),
        }
    }

    fn body(&mut self, bytes: &[u8]) {
        self.sent += bytes.len();
        self.send(bytes);
    }

    fn flood(&mut self) {
        let stream = self.stream.as_mut().unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        while self.sent < self.length {
            match stream.write(&[b'x'; 65_536]) {
                Ok(count) => self.sent += count,
                Err(_) => return,
            }
        }
        panic!("somebody took it all");
    }

    fn interim(&mut self) {
        assert!(self.head().unwrap().starts_with("HTTP/1.1 103 "));
    }

    fn half(&mut self) {
        let head = self.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
        self.half = String::from_utf8(self.bytes(HALF.len())).unwrap();
        self.begun = Some(length - HALF.len());
    }

    fn end(&mut self) -> Got {
        let (status, reason, left) = match self.begun.take() {
            Some(left) => (200, String::new(), left),
            None => loop {
                let Some(head) = self.head() else {
                    return if self.rest.is_empty() { Got::Closed } else { Got::Cut };
                };
                let status: u16 = head[9..12].parse().unwrap();
                if status >= 200 {
                    let length = field(&head, "content-length").unwrap().parse().unwrap();
                    break (status, field(&head, "seawall-reason").unwrap_or_default().to_owned(), length);
                }
            },
        };
        while self.rest.len() < left {
            if !self.more() {
                return Got::Cut;
            }
        }
        let body: Vec<u8> = self.rest.drain(..left).collect();
        let body = std::mem::take(&mut self.half) + &String::from_utf8_lossy(&body);
        Got::Whole { status, reason, body }
    }

    fn is_closed(&mut self) -> bool {
        let Some(stream) = &self.stream else { return true };
        // Long enough for an end that is on its way.
        stream.set_read_timeout(Some(Duration::from_millis(40))).unwrap();
        let read = stream.peek(&mut [0]);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match read {
            Ok(0) => true,
            Ok(_) => panic!("more came than was asked for"),
            Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        }
    }

    fn fin(&mut self) {
        // Fails if the other side has reset it.
        let _ = self.stream.as_ref().unwrap().shutdown(Shutdown::Write);
    }

    fn rst(&mut self) {
        let stream = self.stream.take().unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Drives the connections of HTTP/2 while a cell waits for something else.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// Waits for a step of HTTP/2.
fn within<T>(step: impl Future<Output = T>) -> T {
    RUNTIME.block_on(async { tokio::time::timeout(PATIENCE, step).await.expect("nothing came") })
}

/// A stream of HTTP/2 on a connection of its own.
pub struct Http2 {
    socket: Option<TcpStream>,
    sender: SendRequest<Bytes>,
    connection: tokio::task::JoinHandle<()>,
    answer: Option<ResponseFuture>,
    outgoing: Option<SendStream<Bytes>>,
    incoming: Option<RecvStream>,
    left: usize,
}

impl Http2 {
    pub fn new(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        let other = socket.try_clone().unwrap();
        other.set_nonblocking(true).unwrap();
        let (sender, connection) = within(async {
            let stream = tokio::net::TcpStream::from_std(other).unwrap();
            h2::client::handshake(stream).await.unwrap()
        });
        let connection = RUNTIME.spawn(async move {
            let _ = connection.await;
        });
        Self { socket: Some(socket), sender, connection, answer: None, outgoing: None, incoming: None, left: 0 }
    }

    /// Takes the stream back.
    pub fn reset(&mut self) {
        self.outgoing.as_mut().unwrap().send_reset(h2::Reason::CANCEL);
    }
}

impl Caller for Http2 {
    fn ask(&mut self, path: &str, length: Option<usize>) {
        let uri = format!("http://h{path}");
        let mut request = if length.is_some() { Request::post(uri) } else { Request::get(uri) };
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        self.left = length.unwrap_or(0);
        let sender = self.sender.clone();
        let (answer, outgoing) = within(async {
            let mut sender = sender.ready().await.unwrap();
            sender.send_request(request.body(()).unwrap(), length.is_none()).unwrap()
        });
        (self.answer, self.outgoing) = (Some(answer), Some(outgoing));
    }

    fn body(&mut self, bytes: &[u8]) {
        self.left -= bytes.len();
        let last = self.left == 0;
        self.outgoing.as_mut().unwrap().send_data(Bytes::copy_from_slice(bytes), last).unwrap();
    }

    fn flood(&mut self) {
        // More than the window lets through. Fails if the request is over already.
        let _ = self.outgoing.as_mut().unwrap().send_data(Bytes::from(vec![b'x'; 1 << 20]), false);
    }

    fn interim(&mut self) {
        let answer = self.answer.as_mut().unwrap();
        let interim = within(std::future::poll_fn(|cx| answer.poll_informational(cx)));
        assert_eq!(interim.unwrap().unwrap().status(), 103);
    }

    fn half(&mut self) {
        let (head, mut incoming) = within(self.answer.take().unwrap()).unwrap().into_parts();
        assert_eq!(head.status, 200);
        let data = within(incoming.data()).unwrap().unwrap();
        assert_eq!(data, HALF);
        incoming.flow_control().release_capacity(data.len()).unwrap();
        self.incoming = Some(incoming);
    }

    fn end(&mut self) -> Got {
        let (mut status, mut reason, mut body) = (200, String::new(), Vec::new());
        let mut incoming = match (self.incoming.take(), self.answer.take()) {
            (Some(incoming), _) => {
                body.extend_from_slice(HALF.as_bytes());
                incoming
            }
            (None, Some(answer)) => match within(answer) {
                Ok(answer) => {
                    let (head, incoming) = answer.into_parts();
                    status = head.status.as_u16();
                    let said = head.headers.get("seawall-reason");
                    reason = said.map_or_else(String::new, |said| said.to_str().unwrap().to_owned());
                    incoming
                }
                Err(_) => return Got::Closed,
            },
            (None, None) => {
                // Nothing was asked: the end of the connection is all that can come.
                let until = Instant::now() + PATIENCE;
                while !self.connection.is_finished() {
                    assert!(Instant::now() < until, "the connection goes on");
                    std::thread::sleep(Duration::from_millis(1));
                }
                return Got::Closed;
            }
        };
        while let Some(data) = within(incoming.data()) {
            let Ok(data) = data else { return Got::Cut };
            let _ = incoming.flow_control().release_capacity(data.len());
            body.extend_from_slice(&data);
        }
        Got::Whole { status, reason, body: String::from_utf8_lossy(&body).into_owned() }
    }

    fn is_closed(&mut self) -> bool {
        let until = Instant::now() + Duration::from_millis(40);
        while Instant::now() < until && !self.connection.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.connection.is_finished()
    }

    fn fin(&mut self) {
        self.socket.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
    }

    fn rst(&mut self) {
        let socket = self.socket.take().unwrap();
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        self.connection.abort();
        (self.answer, self.outgoing, self.incoming) = (None, None, None);
    }
}
