//! Instances of HTTP/2 that leave, hang, or do not keep their word, for clients of both versions: what the client gets,
//! that nothing is left of the request, and that the next one is answered. The instance is the `h2` crate's server.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{PATIENCE, Rig, endpoint, eventually};
use gateway::{Endpoints, Options, Upstream};
use http::{Request, Response};

/// How often the instance saw a request taken back.
#[derive(Clone, Default)]
struct Counts {
    connections: Arc<AtomicUsize>,
    taken_back: Arc<AtomicUsize>,
}

/// Serves each connection until a path tells it otherwise.
async fn instance(counts: Counts) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (counts, number) = (counts.clone(), counts.connections.fetch_add(1, Ordering::SeqCst));
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let send =
                        |respond: &mut h2::server::SendResponse<Bytes>, length: usize, body: &'static str, ends| {
                            let head = Response::builder().header("content-length", length).body(()).unwrap();
                            let mut stream = respond.send_response(head, false).unwrap();
                            stream.send_data(Bytes::from_static(body.as_bytes()), ends).unwrap();
                            stream
                        };
                    match request.uri().path() {
                        // The first connection ends without a word.
                        "/leaves" if number == 0 => return,
                        "/goes-away" => {
                            connection.graceful_shutdown();
                            send(&mut respond, 4, "last", true);
                        }
                        "/stops" => {
                            connection.abrupt_shutdown(h2::Reason::INTERNAL_ERROR);
                        }
                        "/half" => {
                            let half = send(&mut respond, 10, "01234", false);
                            // Out before the end.
                            let _ = tokio::time::timeout(Duration::from_millis(50), connection.accept()).await;
                            drop(half);
                            return;
                        }
                        "/short" => drop(send(&mut respond, 10, "01234", true)),
                        "/long" => drop(send(&mut respond, 3, "abcEVIL", true)),
                        "/hangs" => {
                            let counts = counts.clone();
                            tokio::spawn(async move {
                                // Holds the body, too, and takes none of it.
                                let _body = request.into_body();
                                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                                counts.taken_back.fetch_add(1, Ordering::SeqCst);
                            });
                        }
                        _ => drop(send(&mut respond, 5, "again", true)),
                    }
                }
            });
        }
    });
    address
}

/// What a client got: an answer, or that it was cut or that nothing came.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Answer(u16, String),
    Broken,
}

/// Asks in HTTP/1.1.
fn ask_http1(rig: &Rig, method: &str, path: &str, body: usize) -> Got {
    let mut client = rig.client();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {body}\r\nConnection: close\r\n\r\n"));
    client.send(vec![b'x'; body]);
    let Some((status, head)) = client.head() else { return Got::Broken };
    let length: usize = head.to_ascii_lowercase().split("content-length: ").nth(1).unwrap()[..]
        .split('\r')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let rest = String::from_utf8(client.until_end()).unwrap();
    assert!(rest.len() <= length, "more than the answer came: {rest}");
    if rest.len() < length { Got::Broken } else { Got::Answer(status, rest) }
}

/// Asks in HTTP/2.
async fn ask_http2(address: SocketAddr, method: &str, path: &str, body: usize) -> Got {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(format!("http://h{path}")).body(()).unwrap();
    let (answer, mut outgoing) = sender.ready().await.unwrap().send_request(request, body == 0).unwrap();
    if body > 0 {
        // Fails if the answer was faster.
        let _ = outgoing.send_data(Bytes::from(vec![b'x'; body]), true);
    }
    let Ok(answer) = tokio::time::timeout(PATIENCE, answer).await.expect("nothing came") else { return Got::Broken };
    let (head, mut incoming) = answer.into_parts();
    let mut text = Vec::new();
    while let Some(data) = incoming.data().await {
        let Ok(data) = data else { return Got::Broken };
        text.extend_from_slice(&data);
    }
    Got::Answer(head.status.as_u16(), String::from_utf8(text).unwrap())
}

#[test]
fn an_instance_of_http2_in_trouble() {
    let answer = |status: u16, text: &str| Some(Got::Answer(status, text.to_owned()));
    let large = 1 << 20;
    for (method, path, body, wanted, taken_back) in [
        ("GET", "/leaves", 0, answer(200, "again"), 0),
        ("POST", "/leaves", 1, answer(502, "502 Bad Gateway: instance-closed\n"), 0),
        ("GET", "/goes-away", 0, answer(200, "last"), 0),
        ("POST", "/stops", 1, answer(502, "502 Bad Gateway: instance-closed\n"), 0),
        ("GET", "/half", 0, Some(Got::Broken), 0),
        ("GET", "/short", 0, Some(Got::Broken), 0),
        // Cut, or as long as was promised, but never more.
        ("GET", "/long", 0, None, 0),
        ("GET", "/hangs", 0, answer(504, "504 Gateway Timeout: timeout\n"), 1),
        ("POST", "/hangs", large, answer(504, "504 Gateway Timeout: timeout\n"), 1),
    ] {
        for http2 in [false, true] {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let counts = Counts::default();
            let address = runtime.block_on(instance(counts.clone()));
            let upstream = Upstream { http2: true, ..Upstream::default() };
            let told = Endpoints { endpoints: vec![endpoint("s-0", address)], upstream, ..Endpoints::default() };
            let options = Options { workers: 1, ..Options::default() };
            let timeout = (path == "/hangs").then_some(Duration::from_millis(400));
            let rig = Rig::with(options, told, timeout);
            let what = format!("{method} {path} {body}, a client of HTTP/{}", if http2 { "2" } else { "1.1" });
            let got = match http2 {
                false => ask_http1(&rig, method, path, body),
                true => runtime.block_on(ask_http2(rig.address, method, path, body)),
            };
            match &wanted {
                Some(wanted) => assert_eq!(got, *wanted, "{what}"),
                None => assert!([Got::Broken, Got::Answer(200, "abc".to_owned())].contains(&got), "{what}: {got:?}"),
            }
            eventually("no request is under way", || rig.service.in_flight(&"s-0".into()) == 0);
            eventually("the instance knows", || counts.taken_back.load(Ordering::SeqCst) == taken_back);
            let after = rig.get("/after");
            assert_eq!((after.status, after.text().as_str()), (200, "again"), "{what}");
            rig.expect_metric("connections 0");
        }
    }
}
