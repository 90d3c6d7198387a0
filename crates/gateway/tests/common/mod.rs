//! What the gateway's tests share: instances that record and do as they are told, a rig around one real gateway,
//! a raw client. Everything on port 0, every wait with a deadline. Deliberately absent: an HTTP library, which
//! would hide what is on the wire.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses its own part")]

pub mod authority;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gateway::{
    Action, Endpoint, Endpoints, Gateway, Listener, Manner, Metrics, Options, Policy, Readiness, Route, Service,
    Signal, Table, Target,
};
use prometheus_client::registry::Registry;

/// Longer than anything here takes; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a condition.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One connection as an instance sees it.
pub struct Conn {
    pub stream: TcpStream,
    /// Which connection of its instance, from zero.
    pub index: usize,
    rest: Vec<u8>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Conn {
    fn more(&mut self) -> bool {
        let mut chunk = [0; 65_536];
        match self.stream.read(&mut chunk) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.rest.extend_from_slice(&chunk[..count]);
                self.seen.lock().unwrap().extend_from_slice(&chunk[..count]);
                true
            }
        }
    }

    /// Whatever has come, at least a byte; empty at the end of the stream.
    pub fn some(&mut self) -> Vec<u8> {
        if self.rest.is_empty() {
            self.more();
        }
        std::mem::take(&mut self.rest)
    }

    /// So many bytes.
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.rest.len() < count && self.more() {}
        self.rest.drain(..count.min(self.rest.len())).collect()
    }

    /// Everything up to and with `end`.
    pub fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = find(&self.rest, end) {
                return self.rest.drain(..at + end.len()).collect();
            }
            if !self.more() {
                return Vec::new();
            }
        }
    }

    /// The next head; `None` at the end of the stream.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.rest, b"\r\n\r\n") {
                let head = self.rest.drain(..at + 4).collect();
                return Some(latin1(head));
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// The body behind a head, as it is on the wire.
    pub fn body(&mut self, head: &str) -> Vec<u8> {
        let lower = head.to_ascii_lowercase();
        if let Some(at) = lower.find("content-length: ") {
            let length: usize = lower[at + 16..].split("\r\n").next().unwrap().parse().unwrap();
            while self.rest.len() < length && self.more() {}
            return self.rest.drain(..length.min(self.rest.len())).collect();
        }
        if !lower.contains("transfer-encoding: chunked") {
            return Vec::new();
        }
        loop {
            let last = |bytes: &[u8]| bytes.starts_with(b"0\r\n") || find(bytes, b"\r\n0\r\n").is_some();
            let ends = |bytes: &[u8]| bytes.ends_with(b"\r\n\r\n") && last(bytes);
            if ends(&self.rest) || !self.more() {
                return std::mem::take(&mut self.rest);
            }
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }
}

/// The instance holds the stream too, to end it when killed.
impl Drop for Conn {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Bytes as text, one character each.
pub fn latin1(bytes: Vec<u8>) -> String {
    bytes.into_iter().map(char::from).collect()
}

pub fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// A raw TCP instance.
pub struct Instance {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<u8>>>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Instance {
    /// Runs `handle` for each connection on a thread of its own.
    pub fn start(handle: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), handle)
    }

    pub fn on(socket: TcpListener, handle: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, accepted, handle) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(handle));
        let (seen, streams) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let mut instance =
            Self { address, stop: stop.clone(), accepted: accepted.clone(), seen, streams, thread: None };
        let (seen, streams) = (instance.seen.clone(), instance.streams.clone());
        instance.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                match socket.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(PATIENCE)).unwrap();
                        streams.lock().unwrap().push(stream.try_clone().unwrap());
                        let index = accepted.fetch_add(1, Ordering::SeqCst);
                        let (handle, seen) = (handle.clone(), seen.clone());
                        std::thread::spawn(move || handle(Conn { stream, index, rest: Vec::new(), seen }));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                    Err(_) => return,
                }
            }
        }));
        instance
    }

    /// Answers every request with 200 and `name` as its body, for as long as the connection lasts.
    pub fn answering(name: &str) -> Self {
        let name = name.to_owned();
        Self::start(move |conn| answer_all(conn, &name))
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Every byte received so far.
    pub fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap().clone()
    }

    /// Ends like a killed process: the socket is closed and so is each connection.
    pub fn kill(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn answer_all(mut conn: Conn, name: &str) {
    while let Some(head) = conn.head() {
        conn.body(&head);
        if !conn.send(ok(name)) {
            return;
        }
    }
}

pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub fn endpoint(id: &str, address: SocketAddr) -> Endpoint {
    Endpoint { id: id.into(), address, version: None, readiness: Readiness::Ready, weight: 1, local: true }
}

/// A gateway with one service, `s`, that every request goes to.
pub struct Rig {
    pub gateway: Option<Gateway>,
    pub address: SocketAddr,
    pub table: Arc<Table>,
    pub service: Arc<Service>,
    pub registry: Registry,
    pub signals: tokio::sync::mpsc::Receiver<Signal>,
}

impl Rig {
    pub fn new(endpoints: Endpoints) -> Self {
        Self::with(Options { workers: 2, ..Options::default() }, endpoints, None)
    }

    pub fn of(instances: &[&Instance]) -> Self {
        Self::new(endpoints_of(instances))
    }

    pub fn with(options: Options, endpoints: Endpoints, timeout: Option<Duration>) -> Self {
        Self::on(1, options, endpoints, timeout)
    }

    /// With a listener that treats its connections so.
    pub fn mannered(manner: Manner, options: Options, endpoints: Endpoints) -> Self {
        Self::sharing(Arc::new(manner), options, endpoints)
    }

    /// The same, with a manner that the test changes later.
    pub fn sharing(manner: Arc<Manner>, options: Options, endpoints: Endpoints) -> Self {
        Self::start(1, options, endpoints, None, manner)
    }

    /// With so many sockets on its one address.
    pub fn on(sockets: usize, options: Options, endpoints: Endpoints, timeout: Option<Duration>) -> Self {
        Self::start(sockets, options, endpoints, timeout, Arc::default())
    }

    fn start(
        sockets: usize,
        options: Options,
        endpoints: Endpoints,
        timeout: Option<Duration>,
        manner: Arc<Manner>,
    ) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let sockets = (0..sockets).map(|_| socket.try_clone().unwrap()).collect();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let table = Table::new(metrics.clone());
        let service = table.service(&"s".into());
        service.set_endpoints(endpoints).unwrap();
        let target = Target { service: "s".into(), version: None };
        let all = Route {
            name: "all".into(),
            series: None,
            hosts: Vec::new(),
            matches: Vec::new(),
            action: Action::Forward(target),
            timeout,
            retry: None,
            policy: Policy::default(),
        };
        table.set_routes(vec![all]).unwrap();
        let (sender, signals) = tokio::sync::mpsc::channel(64);
        let listeners = vec![Listener { address, sockets, manner }];
        drop(socket);
        let gateway = Gateway::start(options, listeners, table.clone(), metrics, sender).unwrap();
        Self { gateway: Some(gateway), address, table, service, registry, signals }
    }

    pub fn client(&self) -> Client {
        Client::to(self.address)
    }

    /// One request on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        let mut client = self.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
        client.response()
    }

    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Waits for a line of the metrics.
    pub fn expect_metric(&self, line: &str) {
        eventually(line, || self.metrics().lines().any(|found| found == format!("seawall_gateway_{line}")));
    }

    /// Runs the gateway's drain to its end.
    pub fn drain(&self, limit: Duration) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(self.gateway.as_ref().unwrap().drain(limit))
    }
}

pub fn endpoints_of(instances: &[&Instance]) -> Endpoints {
    let endpoints = instances
        .iter()
        .enumerate()
        .map(|(index, instance)| endpoint(&format!("s-{index}"), instance.address))
        .collect();
    Endpoints { endpoints, ..Endpoints::default() }
}

/// A raw client.
pub struct Client {
    pub stream: TcpStream,
    rest: Vec<u8>,
}

/// What a client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.split("\r\n").skip(1);
        lines.filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts that the gateway itself answered so.
    pub fn assert_reason(&self, status: u16, reason: &str) {
        assert_eq!((self.status, self.header("Seawall-Reason")), (status, Some(reason)), "{self:?}");
    }
}

impl Client {
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, rest: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    fn more(&mut self) -> bool {
        let mut chunk = [0; 65_536];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.rest.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing came: {error}; before: {}", self.rest.escape_ascii()),
        }
    }

    /// The next head, if one comes.
    pub fn head(&mut self) -> Option<(u16, String)> {
        loop {
            if let Some(at) = find(&self.rest, b"\r\n\r\n") {
                let head: Vec<u8> = self.rest.drain(..at + 4).collect();
                let head = String::from_utf8_lossy(&head).into_owned();
                return Some((head[9..12].parse().unwrap(), head));
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// The next response, which must be whole.
    pub fn response(&mut self) -> Response {
        let (status, head) = self.head().expect("a response");
        let lower = head.to_ascii_lowercase();
        let body = if let Some(at) = lower.find("content-length: ") {
            let length: usize = lower[at + 16..].split("\r\n").next().unwrap().parse().unwrap();
            while self.rest.len() < length {
                assert!(self.more(), "body cut: {head}");
            }
            self.rest.drain(..length).collect()
        } else if lower.contains("transfer-encoding: chunked") {
            self.chunked()
        } else if lower.contains("connection: close") {
            self.until_end()
        } else {
            Vec::new()
        };
        Response { status, head, body }
    }

    fn chunked(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line().trim_end(), 16).unwrap();
            if size == 0 {
                // Trailers, if any.
                while self.line() != "\r\n" {}
                return body;
            }
            while self.rest.len() < size + 2 {
                assert!(self.more(), "chunk cut");
            }
            body.extend(self.rest.drain(..size));
            self.rest.drain(..2);
        }
    }

    /// The next line, its end included.
    fn line(&mut self) -> String {
        loop {
            if let Some(at) = find(&self.rest, b"\r\n") {
                return latin1(self.rest.drain(..at + 2).collect());
            }
            assert!(self.more(), "chunks cut");
        }
    }

    /// So many bytes, which must come.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.rest.len() < count {
            assert!(self.more(), "cut after {}", self.rest.escape_ascii());
        }
        self.rest.drain(..count).collect()
    }

    /// Everything until the stream ends.
    pub fn until_end(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.rest)
    }

    /// Waits until the gateway ends the connection; nothing may come before that.
    pub fn assert_closed(&mut self) {
        let rest = self.until_end();
        assert!(rest.is_empty(), "came instead of an end: {}", rest.escape_ascii());
    }
}
