//! HTTP/2 to clients and to instances, spoken by another implementation's client and server (the `h2` crate's other
//! half), and what a client may not do with it.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Instance, PATIENCE, Rig, endpoint, endpoints_of, eventually, ok};
use gateway::{Endpoints, HoldPolicy, Manner, Options, Protocols, Upstream};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};

type Answer = (Response<()>, Vec<u8>, HeaderMap);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// A client that knows that the server speaks HTTP/2.
async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

async fn ask(sender: &SendRequest<Bytes>, request: Request<()>, body: Option<Vec<u8>>) -> Result<Answer, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (answer, mut outgoing) = sender.send_request(request, body.is_none())?;
    if let Some(body) = body {
        let mut rest = Bytes::from(body);
        while !rest.is_empty() {
            outgoing.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|cx| outgoing.poll_capacity(cx)).await.unwrap()?;
            let last = room >= rest.len();
            outgoing.send_data(rest.split_to(room.min(rest.len())), last)?;
        }
    }
    let (head, mut incoming) = answer.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = incoming.trailers().await?.unwrap_or_default();
    Ok((Response::from_parts(head, ()), body, trailers))
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://shop.local{path}")).body(()).unwrap()
}

#[test]
fn a_request_becomes_the_one_of_http1_that_it_means() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            let body = conn.body(&head);
            if !conn.send(ok(&format!("{head}|{}", body.len()))) {
                return;
            }
        }
    });
    let rig = Rig::of(&[&instance]);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let request = Request::post("http://shop.local/a?b=c")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("x-custom", "yes")
            .header("seawall-epoch", "9")
            .header("content-length", "5")
            .body(())
            .unwrap();
        let (answer, body, _) = within("an answer", ask(&sender, request, Some(b"hello".to_vec()))).await.unwrap();
        assert_eq!(answer.status(), 200);
        let text = String::from_utf8(body).unwrap();
        assert!(text.starts_with("POST /a?b=c HTTP/1.1\r\nHost: shop.local\r\n"), "{text}");
        for line in
            ["cookie: a=1; b=2\r\n", "x-custom: yes\r\n", "Content-Length: 5\r\n", "X-Forwarded-Proto: http\r\n"]
        {
            assert!(text.contains(line), "{line} not in {text}");
        }
        assert!(!text.to_ascii_lowercase().contains("seawall-epoch"), "{text}");
        assert!(text.ends_with("|5"), "{text}");
        // Without a length the instance gets chunks.
        let request = Request::post("http://shop.local/").body(()).unwrap();
        let (_, body, _) = within("an answer", ask(&sender, request, Some(vec![b'x'; 300_000]))).await.unwrap();
        let text = String::from_utf8(body).unwrap();
        assert!(text.contains("Transfer-Encoding: chunked\r\n"), "{text}");
    });
}

#[test]
fn many_streams_share_a_connection_and_a_slow_one_delays_nobody() {
    let told = Arc::new(AtomicBool::new(false));
    let waits_for = told.clone();
    let slow = Instance::start(move |mut conn| {
        while let Some(head) = conn.head() {
            if head.starts_with("GET /slow") {
                eventually("the others are answered", || waits_for.load(Ordering::SeqCst));
            }
            if !conn.send(ok("done")) {
                return;
            }
        }
    });
    let rig = Rig::of(&[&slow]);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let late = ask(&sender, get("/slow"), None);
        let quick = async {
            while rig.service.in_flight(&"s-0".into()) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for _ in 0..50 {
                let (answer, body, _) = ask(&sender, get("/quick"), None).await.unwrap();
                assert_eq!((answer.status().as_u16(), &body[..]), (200, &b"done"[..]));
            }
            told.store(true, Ordering::SeqCst);
        };
        let (late, ()) = within("all answers", async { tokio::join!(late, quick) }).await;
        assert_eq!(late.unwrap().1, b"done");
        rig.expect_metric("connections 1");
    });
}

#[test]
fn a_large_answer_is_whole_and_waits_for_its_reader() {
    let size = 3_000_000;
    let instance = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
            conn.send(vec![b'y'; size]);
        }
    });
    let rig = Rig::of(&[&instance]);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let (answer, body, _) = within("an answer", ask(&sender, get("/"), None)).await.unwrap();
        assert_eq!(answer.headers()["content-length"], size.to_string());
        assert!(body.len() == size && body.iter().all(|&byte| byte == b'y'), "{}", body.len());
    });
}

#[test]
fn an_answer_that_is_cut_is_not_taken_for_whole() {
    let instance = Instance::start(|mut conn| {
        if conn.head().is_some() {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        }
    });
    let rig = Rig::of(&[&instance]);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let cut = within("an end", ask(&sender, get("/"), None)).await;
        assert_eq!(cut.unwrap_err().reason(), Some(h2::Reason::INTERNAL_ERROR));
        // The connection and its other streams live on.
        let again = within("an end", ask(&sender, get("/"), None)).await;
        assert!(again.is_err_and(|error| error.is_reset()));
    });
}

#[test]
fn the_gateways_own_answers_come_in_frames() {
    let rig = Rig::new(Endpoints::default());
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let (answer, body, _) = within("an answer", ask(&sender, get("/"), None)).await.unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["seawall-reason"], "no-ready-instance");
        assert_eq!(body.len().to_string(), answer.headers()["content-length"]);
        assert!(!answer.headers().contains_key("connection"));
        let head = Request::head("http://shop.local/").body(()).unwrap();
        let (answer, body, _) = within("an answer", ask(&sender, head, None)).await.unwrap();
        assert_eq!((answer.status().as_u16(), body.len()), (503, 0));
    });
}

#[test]
fn an_instance_does_not_speak_for_the_gateway() {
    let instance = Instance::start(|mut conn| {
        while conn.head().is_some() {
            conn.send("HTTP/1.1 503 Busy\r\nSeawall-Reason: no-route\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let rig = Rig::of(&[&instance]);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let (answer, _, _) = within("an answer", ask(&sender, get("/"), None)).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().get("seawall-reason")), (503, None));
    });
    assert_eq!(rig.get("/").header("Seawall-Reason"), None);
}

#[test]
fn what_http1_would_refuse_is_refused() {
    let instance = Instance::answering("a");
    let rig = Rig::of(&[&instance]);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        for (request, why) in [
            (get("/").map(|()| ()), ""),
            (Request::get("http://shop.local/").header("host", "other").body(()).unwrap(), "bad-request:several-hosts"),
            (Request::get("http://a@b/").body(()).unwrap(), "bad-request:host"),
            (Request::get("http://shop.local/").header("expect", "magic").body(()).unwrap(), "bad-request:expect"),
        ] {
            let (answer, _, _) = within("an answer", ask(&sender, request, None)).await.unwrap();
            let reason = answer.headers().get("seawall-reason").map_or("", |reason| reason.to_str().unwrap());
            assert_eq!(reason, why);
        }
    });
}

#[test]
fn a_held_stream_waits_and_is_released() {
    let instance = Instance::answering("a");
    let hold = Some(HoldPolicy { max_wait: PATIENCE, max_requests: 10 });
    let rig = Rig::new(Endpoints { hold, ..Endpoints::default() });
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let held = ask(&sender, get("/"), None);
        let release = async {
            while rig.service.held() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            rig.service.set_endpoints(Endpoints { hold, ..endpoints_of(&[&instance]) }).unwrap();
            std::future::pending::<()>().await;
        };
        let answer = within("an answer", async {
            tokio::select! { answer = held => answer, () = release => unreachable!() }
        });
        assert_eq!(answer.await.unwrap().1, b"a");
    });
}

#[test]
fn a_request_taken_back_gives_its_place_back() {
    let hold = Some(HoldPolicy { max_wait: PATIENCE, max_requests: 10 });
    let rig = Rig::new(Endpoints { hold, ..Endpoints::default() });
    runtime().block_on(async {
        let mut sender = client(rig.address).await.ready().await.unwrap();
        let (answer, mut stream) = sender.send_request(get("/"), true).unwrap();
        let held = async |count| {
            while rig.service.held() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within("the wait", held(1)).await;
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
        within("its end", held(0)).await;
    });
}

#[test]
fn a_client_that_takes_everything_back_is_sent_away() {
    let instance = Instance::start(|mut conn| while conn.head().is_some() {});
    let rig = Rig::of(&[&instance]);
    runtime().block_on(async {
        let mut sender = client(rig.address).await;
        let end = within("the connection's end", async {
            loop {
                sender = match sender.ready().await {
                    Ok(ready) => ready,
                    Err(error) => return error,
                };
                match sender.send_request(get("/"), true) {
                    Ok((_, mut stream)) => stream.send_reset(h2::Reason::CANCEL),
                    Err(error) => return error,
                }
                tokio::task::yield_now().await;
            }
        });
        // Told why, unless the end of the connection came first.
        let end = end.await;
        assert!(end.is_io() || end.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM), "{end:?}");
    });
    rig.expect_metric("connections_refused_total{reason=\"http2-enhance-your-calm\"} 1");
    eventually("all requests to the instance are over", || rig.service.in_flight(&"s-0".into()) == 0);
}

#[test]
fn draining_says_goodbye_and_lets_streams_end() {
    let instance = Instance::start(|mut conn| {
        while conn.head().is_some() {
            std::thread::sleep(Duration::from_millis(200));
            conn.send(ok("late"));
        }
    });
    let rig = Rig::of(&[&instance]);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let answer = ask(&sender, get("/"), None);
        let drained = async {
            while rig.service.in_flight(&"s-0".into()) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            rig.gateway.as_ref().unwrap().drain(PATIENCE).await
        };
        let (answer, left) = within("the drain", async { tokio::join!(answer, drained) }).await;
        assert_eq!((answer.unwrap().1, left), (b"late".to_vec(), 0));
        let refused = within("a refusal", ask(&sender, get("/"), None)).await;
        assert!(refused.is_err(), "{refused:?}");
    });
}

#[test]
fn a_connection_is_idle_since_its_last_stream_ended() {
    let slow = Instance::start(|mut conn| {
        while conn.head().is_some() {
            std::thread::sleep(Duration::from_millis(400));
            conn.send(ok("late"));
        }
    });
    let options = gateway::Options { workers: 1, idle_timeout: Duration::from_millis(300), ..Default::default() };
    let rig = Rig::with(options, endpoints_of(&[&slow]), None);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        for _ in 0..3 {
            // Longer than a connection may be idle, which it is not meanwhile.
            let (answer, ..) = within("an answer", ask(&sender, get("/"), None)).await.unwrap();
            assert_eq!(answer.status(), 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(within("a refusal", ask(&sender, get("/"), None)).await.is_err());
    });
}

/// The client of `/broken` has the first half.
static HALF_SEEN: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// An instance that speaks HTTP/2 and answers as `/path` says; returns its address.
async fn instance() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond));
                }
            });
        }
    });
    address
}

async fn serve(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    let mut length = 0;
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        length += data.len();
    }
    let shown = format!(
        "{} {} {} te={:?} epoch={:?} {length}",
        head.method,
        head.uri,
        head.headers["x-forwarded-for"].to_str().unwrap(),
        head.headers.get("te"),
        head.headers.get("seawall-epoch"),
    );
    match head.uri.path() {
        "/refused" => respond.send_reset(h2::Reason::REFUSED_STREAM),
        "/trailers-only" => {
            let answer = Response::builder().header("grpc-status", "5").body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        }
        "/broken" => {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"half"), false).unwrap();
            HALF_SEEN.notified().await;
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        _ => {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(shown.into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
    }
}

fn over_http2(address: SocketAddr) -> Endpoints {
    let upstream = Upstream { http2: true, ..Upstream::default() };
    Endpoints { endpoints: vec![endpoint("s-0", address)], upstream, ..Endpoints::default() }
}

#[test]
fn an_instance_of_http2_serves_both_versions_with_trailers() {
    let runtime = runtime();
    let address = runtime.block_on(instance());
    let rig = Rig::new(over_http2(address));
    runtime.block_on(async {
        let sender = client(rig.address).await;
        let request = Request::post("http://shop.local/call").header("te", "trailers").body(()).unwrap();
        let (answer, body, trailers) =
            within("an answer", ask(&sender, request, Some(vec![0; 100_000]))).await.unwrap();
        assert_eq!(answer.status(), 200);
        let text = String::from_utf8(body).unwrap();
        assert_eq!(text, "POST http://shop.local/call 127.0.0.1 te=Some(\"trailers\") epoch=None 100000");
        assert_eq!(trailers["grpc-status"], "0");
        let (answer, body, trailers) = within("an answer", ask(&sender, get("/trailers-only"), None)).await.unwrap();
        assert_eq!((answer.headers()["grpc-status"].to_str().unwrap(), body.len(), trailers.len()), ("5", 0, 0));
        let (answer, _) = sender.clone().send_request(get("/broken"), true).unwrap();
        let mut body = within("a head", answer).await.unwrap().into_body();
        assert_eq!(within("a half", body.data()).await.unwrap().unwrap(), "half");
        HALF_SEEN.notify_one();
        assert!(within("an end", body.data()).await.unwrap().is_err_and(|error| error.is_reset()));
        let (answer, _, _) = within("an answer", ask(&sender, get("/refused"), None)).await.unwrap();
        assert_eq!(answer.status(), 502);
    });
    let address = rig.address;
    let plain = runtime.block_on(async move {
        tokio::task::spawn_blocking(move || {
            let mut client = common::Client::to(address);
            client.send("GET /plain HTTP/1.1\r\nHost: h\r\n\r\n");
            let first = client.response();
            client.send("GET /trailers-only HTTP/1.1\r\nHost: h\r\n\r\n");
            (first, client.response())
        })
        .await
        .unwrap()
    });
    assert_eq!(plain.0.text(), "GET http://h/plain 127.0.0.1 te=None epoch=None 0");
    assert!(plain.0.head.contains("Transfer-Encoding: chunked"), "{}", plain.0.head);
    assert_eq!((plain.1.status, plain.1.body.len()), (200, 0));
}

#[test]
fn an_answer_that_does_not_wait_for_the_body_is_not_followed_by_a_reset_at_once() {
    let instance = Instance::answering("a");
    let options = gateway::Options { max_body_bytes: Some(10), ..gateway::Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    runtime().block_on(async {
        let sender = client(rig.address).await;
        // More than the stream's window: it moves only if somebody reads.
        for length in [None, Some("300000")] {
            let mut request = Request::post("http://h/").body(()).unwrap();
            if let Some(length) = length {
                request.headers_mut().insert("content-length", length.parse().unwrap());
            }
            let (answer, ..) = within("an answer", ask(&sender, request, Some(vec![b'x'; 300_000]))).await.unwrap();
            assert_eq!(answer.status(), 413, "{length:?}");
        }
        let (again, ..) = ask(&sender, Request::get("http://h/").body(()).unwrap(), None).await.unwrap();
        assert_eq!(again.status(), 200, "the connection goes on");
    });
}

#[test]
fn a_listener_of_one_version_turns_the_other_away() {
    let instance = Instance::answering("one");
    let speaking = |protocols| {
        let manner = Manner { protocols, ..Manner::default() };
        Rig::mannered(manner, Options { workers: 1, ..Options::default() }, endpoints_of(&[&instance]))
    };
    let rig = speaking(Protocols::Http2);
    let mut old = rig.client();
    old.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    // SETTINGS, which a server says unasked, then the end (RFC 9113, 3.4: GOAWAY may be left out).
    let answer = old.until_end();
    assert!(answer.get(3) == Some(&4) && common::find(&answer, b"HTTP/").is_none(), "{answer:?}");
    runtime().block_on(async {
        let sender = client(rig.address).await;
        let (head, body, _) = within("answer", ask(&sender, get("/"), None)).await.unwrap();
        assert_eq!((head.status().as_u16(), body), (200, b"one".to_vec()));
    });

    let rig = speaking(Protocols::Http1);
    assert_eq!(rig.get("/").text(), "one");
    let mut new = rig.client();
    new.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    new.response().assert_reason(505, "bad-request:version");
    new.assert_closed();
}
