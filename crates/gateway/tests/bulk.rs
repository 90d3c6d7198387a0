//! A gigabyte each way through the gateway, in both versions of HTTP: whole, and without memory that grows with it.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Conn, Instance, Rig, endpoints_of, find};
use gateway::Options;

/// Of each body.
const SIZE: usize = 1 << 30;
/// What is written at a time; as long as the pattern, which therefore begins anew with each.
const BLOCK: usize = 64 * 1024;
/// How much the whole process, instance and client included, may grow by while a body passes: a window of each stream
/// and the buffers of a connection, with much room to spare.
const MOST_GROWTH: usize = 24 << 20;

/// Bytes no two neighbours of which are alike, so that a lost or doubled piece is seen.
fn pattern() -> Vec<u8> {
    (0..BLOCK).map(|index| (index % 251) as u8).collect()
}

/// Checks a body as it comes.
struct Seen {
    pattern: Vec<u8>,
    count: usize,
}

impl Seen {
    fn nothing() -> Self {
        Self { pattern: pattern(), count: 0 }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = self.count % BLOCK;
            let (here, rest) = bytes.split_at(bytes.len().min(BLOCK - at));
            assert!(here == &self.pattern[at..at + here.len()], "other bytes after {}", self.count);
            self.count += here.len();
            bytes = rest;
        }
    }
}

/// `GET` is answered with a gigabyte, anything else once its gigabyte has come.
fn answer(mut conn: Conn) {
    while let Some(head) = conn.head() {
        if head.starts_with("GET") {
            let sent = conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
            let block = pattern();
            if !sent || !(0..SIZE / BLOCK).all(|_| conn.send(&block)) {
                return;
            }
            continue;
        }
        let mut seen = Seen::nothing();
        // What came with the head; the rest past the harness, which would keep it.
        seen.take(&conn.some());
        let mut buffer = vec![0; BLOCK];
        while seen.count < SIZE {
            match conn.stream.read(&mut buffer) {
                Ok(count @ 1..) => seen.take(&buffer[..count]),
                _ => return,
            }
        }
        conn.send(common::ok(&seen.count.to_string()));
    }
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// The most the process held while something was done, over what it held before.
fn growth(done: impl Fn()) -> usize {
    let before = resident();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(resident());
                std::thread::sleep(Duration::from_millis(5));
            }
            most.max(resident())
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(done));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        watcher.join().unwrap().saturating_sub(before)
    })
}

fn down_http1(address: SocketAddr) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let (mut buffer, mut head) = (vec![0; BLOCK], Vec::new());
    let mut seen = Seen::nothing();
    loop {
        let count = stream.read(&mut buffer).unwrap();
        match find(&head, b"\r\n\r\n") {
            _ if count == 0 => break,
            Some(_) => seen.take(&buffer[..count]),
            None => {
                head.extend_from_slice(&buffer[..count]);
                if let Some(end) = find(&head, b"\r\n\r\n") {
                    seen.take(&head[end + 4..]);
                    head.truncate(end + 4);
                }
            }
        }
    }
    assert_eq!(seen.count, SIZE);
}

fn up_http1(address: SocketAddr) {
    let mut client = common::Client::to(address);
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {SIZE}\r\n\r\n"));
    let block = pattern();
    for _ in 0..SIZE / BLOCK {
        client.send(&block);
    }
    assert_eq!(client.response().text(), SIZE.to_string());
}

/// A body each way over one connection of HTTP/2.
async fn both_http2(address: SocketAddr) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    // Else each small WINDOW_UPDATE waits for the acknowledgement of the one before.
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = |method: &str| http::Request::builder().method(method).uri("http://h/");

    let mut sender = sender.ready().await.unwrap();
    let (answer, _) = sender.send_request(request("GET").body(()).unwrap(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut seen = Seen::nothing();
    while let Some(data) = body.data().await {
        let data = data.unwrap_or_else(|error| panic!("after {} bytes: {error}", seen.count));
        body.flow_control().release_capacity(data.len()).unwrap();
        seen.take(&data);
    }
    assert_eq!(seen.count, SIZE);

    let mut sender = sender.ready().await.unwrap();
    let post = request("POST").header("content-length", SIZE).body(()).unwrap();
    let (answer, mut outgoing) = sender.send_request(post, false).unwrap();
    let (block, mut sent) = (Bytes::from(pattern()), 0);
    while sent < SIZE {
        outgoing.reserve_capacity(BLOCK - sent % BLOCK);
        // Only what is new is told by `poll_capacity`.
        let room = match outgoing.capacity() {
            0 => std::future::poll_fn(|cx| outgoing.poll_capacity(cx)).await.unwrap().unwrap(),
            room => room,
        };
        let at = sent % BLOCK;
        let part = block.slice(at..at + room.min(BLOCK - at));
        sent += part.len();
        outgoing.send_data(part, sent == SIZE).unwrap();
    }
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), SIZE.to_string());
}

#[test]
fn a_gigabyte_each_way_takes_no_more_memory_than_a_little() {
    let instance = Instance::start(answer);
    let options = Options { workers: 1, ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), Some(Duration::from_secs(120)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let passes = |what: &str, step: &dyn Fn()| {
        let begun = std::time::Instant::now();
        let grown = growth(step);
        println!("{what}: {} KiB grown, {:.1} s", grown >> 10, begun.elapsed().as_secs_f64());
        assert!(grown <= MOST_GROWTH, "{what}: {} MiB grown", grown >> 20);
    };
    passes("HTTP/1.1 down", &|| down_http1(rig.address));
    passes("HTTP/1.1 up", &|| up_http1(rig.address));
    passes("HTTP/2 down and up", &|| runtime.block_on(both_http2(rig.address)));
}
