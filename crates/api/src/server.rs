//! Serves the API on a socket that the keeper bound: HTTP/1.1, and HTTP/2 to clients that begin with it, so that many
//! requests of one program share a connection. On the controller's thread: whoever has seen an event sees its state as well.
//! Only large entries of streams come on a thread of their own (`bulk.rs`).

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::authority::Peer;
use crate::bulk::{self, Bulk};
use crate::hot::Answers;
use crate::plain;
use crate::preface::{self, Begun, Speaks};

/// The running API.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Connections at a time; a further one waits in the system's backlog. Every blocking query of a Consul client has one,
/// and 512 are for all others.
const MAX_CONNECTIONS: usize = crate::MAX_WAITING + 512;
/// Where the process may have few files open, so many all the same.
const LEAST_CONNECTIONS: usize = 512;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way on one connection of HTTP/2.
const MAX_STREAMS: u32 = 64;
/// All fields of one request's head, in HTTP/2, with 32 bytes more for each (RFC 9113, 6.5.2).
const MAX_HEAD_BYTES: u32 = 16 * 1024;

/// What a server allows.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    connections: usize,
    head: Duration,
}

/// Starts serving `answers` on `listener`. Of the files that this process may have open the API takes two thirds at most: the
/// gateway and the probes need the rest.
///
/// # Errors
/// The operating system's.
pub fn serve(listener: TcpListener, answers: Answers, open_files: usize) -> io::Result<Server> {
    let connections = (open_files / 3 * 2).clamp(LEAST_CONNECTIONS, MAX_CONNECTIONS);
    serve_within(listener, answers, Bounds { connections, head: HEAD_TIMEOUT })
}

fn serve_within(listener: TcpListener, answers: Answers, bounds: Bounds) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (stop, stopped) = watch::channel(false);
    let bulk = Arc::new(Bulk::start()?);
    let task = tokio::spawn(accept(listener, answers, bulk, bounds, stopped));
    Ok(Server { stop, task })
}

/// Accepts until stopped, then waits for the connections there are.
async fn accept(
    listener: tokio::net::TcpListener,
    answers: Answers,
    bulk: Arc<Bulk>,
    bounds: Bounds,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // An error means the server's handle is gone, which is a stop as well.
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                let (answers, bulk, stopped) = (answers.clone(), Arc::clone(&bulk), stopped.clone());
                tokio::spawn(async move {
                    connection(stream, remote, answers, &bulk, bounds.head, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let all = u32::try_from(bounds.connections).expect("a few thousand");
    // Ignored: nobody closes the semaphore.
    let _ = places.acquire_many(all).await;
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    answers: Answers,
    bulk: &Bulk,
    head: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let peer = Peer::new(stream.local_addr().unwrap_or(remote), remote);
    let spoken = tokio::select! {
        spoken = tokio::time::timeout(head, preface::listen(stream)) => spoken,
        _ = stopped.wait_for(|stop| *stop) => return,
    };
    match spoken {
        Ok(Ok((Speaks::Http1, begun))) if bulk::begins_with_much(&begun.read) => {
            let home = Handle::current();
            Box::pin(bulk.serve(begun, move |stream| http1(stream, peer, answers, Some(home), head, stopped))).await;
        }
        Ok(Ok((Speaks::Http1, stream))) => {
            if let Some(stream) = plain::serve(stream, &peer, &answers, head, &mut stopped).await {
                http1(stream, peer, answers, None, head, stopped).await;
            }
        }
        // Larger, and rare: others need not have room for it.
        Ok(Ok((Speaks::Http2, stream))) => Box::pin(http2(stream, peer, answers, head, stopped)).await,
        // It said nothing in time, or went away.
        Ok(Err(_)) | Err(_) => {}
    }
}

/// With a `home` on the thread for what is much.
async fn http1(
    stream: Begun,
    peer: Peer,
    answers: Answers,
    home: Option<Handle>,
    head: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let request = request.map(Body::new);
        let answering = match &home {
            None => answers.answer(&peer, request),
            Some(home) => bulk::answer(request, |request| answers.answer(&peer, request), home),
        };
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // Not half closed: a client that has gone looks the same, and its blocking query would keep a place for ten minutes.
    builder.timer(TokioTimer::new()).header_read_timeout(head).half_close(false);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that went away or spoke no HTTP is no news.
        _ = served.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

/// The same for many requests at a time. A connection on which nothing is asked for `idle` is closed: it has a place that
/// somebody else may need.
async fn http2(stream: Begun, peer: Peer, answers: Answers, idle: Duration, mut stopped: watch::Receiver<bool>) {
    let asked = Arc::new(Asked::default());
    let counted = Arc::clone(&asked);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let under_way = Asked::begin(&counted);
        // What HTTP/1.1 says in a field that is checked against foreign sites.
        let authority = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
        if let Some(host) = authority.filter(|_| request.version() == Version::HTTP_2) {
            request.headers_mut().insert(header::HOST, host);
        }
        let answering = answers.answer(&peer, request.map(Body::new));
        async move {
            let answer = answering.await;
            Ok::<_, Infallible>(answer.map(|body| Body::new(Counted { body, _under_way: under_way })))
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEAD_BYTES);
    // Whoever is gone without a word is noticed.
    builder.keep_alive_interval(idle * 2).keep_alive_timeout(idle);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    loop {
        let before = asked.ever.load(Ordering::Relaxed);
        tokio::select! {
            // A client that went away or spoke no HTTP is no news.
            _ = served.as_mut() => return,
            _ = stopped.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(idle) => {}
        }
        if before == asked.ever.load(Ordering::Relaxed) && asked.now.load(Ordering::Relaxed) == 0 {
            break;
        }
    }
    served.as_mut().graceful_shutdown();
    // A client that opens nothing and closes nothing is not waited for.
    while tokio::time::timeout(idle, served.as_mut()).await.is_err() && asked.now.load(Ordering::Relaxed) > 0 {}
}

/// Requests of a connection.
#[derive(Debug, Default)]
struct Asked {
    ever: AtomicU64,
    now: AtomicU64,
}

/// One of them, until its answer has been sent.
struct UnderWay(Arc<Asked>);

impl Asked {
    fn begin(asked: &Arc<Self>) -> UnderWay {
        asked.ever.fetch_add(1, Ordering::Relaxed);
        asked.now.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(asked))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, which is under way until its end: an answer may be a stream of events.
struct Counted {
    body: Body,
    _under_way: UnderWay,
}

impl hyper::body::Body for Counted {
    type Data = axum::body::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Server {
    /// Stops accepting. Requests under way get `patience`, watches end with the process.
    pub async fn stop(self, patience: Duration) {
        self.stop.send_replace(true);
        let abort = self.task.abort_handle();
        if tokio::time::timeout(patience, self.task).await.is_err() {
            abort.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;
    use std::time::Duration;

    use axum::Router;
    use axum::body::Bytes;
    use axum::http::{HeaderMap, header};
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::{Instant, timeout};

    use crate::hot::Answers;

    use super::{Bounds, HEAD_TIMEOUT, MAX_CONNECTIONS, Server};

    /// Nothing that is waited for takes this long; what must not happen is watched for as long as [`MOMENT`].
    const PATIENCE: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(200);

    fn start(bounds: Bounds) -> (Server, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let host = |headers: HeaderMap| async move { headers[header::HOST].to_str().unwrap().to_owned() };
        let thread = |_: Bytes| async { std::thread::current().name().unwrap_or("none").to_owned() };
        let router = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/host", get(host))
            .route("/thread", get(thread))
            .route("/api/v1/streams/s", post(thread))
            .route("/hang", get(std::future::pending::<()>));
        (super::serve_within(listener, Answers::new(router, None), bounds).unwrap(), address)
    }

    /// Connects and sends this.
    async fn send(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// One answer's worth of bytes, or the end of the connection.
    async fn read(stream: &mut TcpStream) -> io::Result<String> {
        let mut bytes = vec![0; 4096];
        let length = stream.read(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    const ASK: &str = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    #[tokio::test]
    async fn so_many_connections_and_no_more_until_one_ends() {
        let (server, address) = start(Bounds { connections: 2, head: PATIENCE });
        let mut first = send(address, ASK).await;
        let mut second = send(address, ASK).await;
        for stream in [&mut first, &mut second] {
            assert!(timeout(PATIENCE, read(stream)).await.unwrap().unwrap().starts_with("HTTP/1.1 200"));
        }
        let mut third = send(address, ASK).await;
        assert!(timeout(MOMENT, read(&mut third)).await.is_err(), "a third one is not served beside the two");
        drop(first);
        let answer = timeout(PATIENCE, read(&mut third)).await.expect("its turn has come").unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        server.stop(MOMENT).await;
    }

    #[tokio::test]
    async fn a_connection_whose_head_does_not_come_is_closed_and_frees_its_place() {
        let head = Duration::from_millis(150);
        let (server, address) = start(Bounds { connections: 1, head });
        for beginning in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "GET / HT", "GET / HTTP/1.1\r\nhost: localhost\r\n"] {
            let began = Instant::now();
            let mut slow = send(address, beginning).await;
            // Whatever is said before, the connection ends; a reset is an end, too.
            let ended = async { while read(&mut slow).await.is_ok_and(|text| !text.is_empty()) {} };
            timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{beginning:?} is kept open"));
            assert!(began.elapsed() >= head, "{beginning:?} was cut off after {:?}", began.elapsed());
            let mut next = send(address, ASK).await;
            let answer = timeout(PATIENCE, read(&mut next)).await.expect("the place is free").unwrap();
            assert!(answer.ends_with("here"), "{answer}");
            // An idle connection counts as one whose next head does not come.
            assert_eq!(timeout(PATIENCE, read(&mut next)).await.unwrap().unwrap_or_default(), "");
        }
        server.stop(MOMENT).await;
    }

    type Calls = h2::client::SendRequest<Bytes>;

    #[tokio::test]
    async fn large_entries_of_streams_are_served_by_a_thread_of_their_own_and_all_else_is_not() {
        let (server, address) = start(Bounds { connections: 1, head: PATIENCE });
        let append = |bytes: usize| {
            let entry = "x".repeat(bytes);
            format!("POST /api/v1/streams/s HTTP/1.1\r\nhost: localhost\r\ncontent-length: {bytes}\r\n\r\n{entry}")
        };
        let asked = "GET /thread HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let mut large = send(address, &append(65_536)).await;
        let there = read(&mut large).await.unwrap();
        assert!(there.starts_with("HTTP/1.1 200 ") && there.ends_with("\r\n\r\napi-bulk"), "{there}");
        large.write_all(asked.as_bytes()).await.unwrap();
        let elsewhere = read(&mut large).await.unwrap();
        assert!(elsewhere.starts_with("HTTP/1.1 200 ") && !elsewhere.contains("api-bulk"), "{elsewhere}");
        large.write_all(append(10).as_bytes()).await.unwrap();
        assert!(read(&mut large).await.unwrap().ends_with("\r\n\r\napi-bulk"));
        // Its place is free when it goes.
        drop(large);
        let mut small = send(address, &append(10)).await;
        let here = timeout(PATIENCE, read(&mut small)).await.unwrap().unwrap();
        assert!(here.starts_with("HTTP/1.1 200 ") && !here.contains("api-bulk"), "{here}");
        timeout(PATIENCE, server.stop(PATIENCE)).await.unwrap();
    }

    async fn http2(address: SocketAddr) -> (Calls, tokio::task::JoinHandle<Result<(), h2::Error>>) {
        let stream = TcpStream::connect(address).await.unwrap();
        let (calls, connection) = h2::client::handshake(stream).await.unwrap();
        (calls.ready().await.unwrap(), tokio::spawn(connection))
    }

    async fn ask(calls: &Calls, uri: &str) -> Result<String, h2::Error> {
        let mut calls = calls.clone().ready().await?;
        let request = axum::http::Request::get(uri).body(()).unwrap();
        let mut body = calls.send_request(request, true)?.0.await?.into_body();
        let mut text = Vec::new();
        while let Some(chunk) = body.data().await {
            text.extend_from_slice(&chunk?);
        }
        Ok(String::from_utf8(text).unwrap())
    }

    #[tokio::test]
    async fn http2_has_many_requests_on_a_connection_and_its_authority_is_the_host() {
        let (server, address) = start(Bounds { connections: 1, head: PATIENCE });
        let (calls, connection) = http2(address).await;
        let hanging: Vec<_> = (0..20)
            .map(|_| {
                let calls = calls.clone();
                tokio::spawn(async move { ask(&calls, "http://localhost/hang").await })
            })
            .collect();
        for _ in 0..100 {
            assert_eq!(ask(&calls, "http://localhost/").await.unwrap(), "here");
        }
        assert_eq!(ask(&calls, "http://evil.example:8500/host").await.unwrap(), "evil.example:8500");
        // A field of the name does not stand in for it.
        let request = axum::http::Request::get("http://evil.example/host").header(header::HOST, "localhost");
        let (answer, _) = calls.clone().ready().await.unwrap().send_request(request.body(()).unwrap(), true).unwrap();
        let text = answer.await.unwrap().into_body().data().await.unwrap().unwrap();
        assert_eq!(text, "evil.example");
        hanging.iter().for_each(tokio::task::JoinHandle::abort);
        drop(calls);
        server.stop(MOMENT).await;
        // Whichever way, it has ended.
        let _ = timeout(PATIENCE, connection).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_of_http2_on_which_nothing_is_asked_frees_its_place() {
        let (server, address) = start(Bounds { connections: 1, head: MOMENT });
        let (calls, connection) = http2(address).await;
        let hanging = tokio::spawn({
            let calls = calls.clone();
            async move { ask(&calls, "http://localhost/hang").await }
        });
        assert_eq!(ask(&calls, "http://localhost/").await.unwrap(), "here");
        tokio::time::sleep(MOMENT * 5).await;
        assert_eq!(ask(&calls, "http://localhost/").await.unwrap(), "here", "one request is under way");
        hanging.abort();
        timeout(PATIENCE, connection).await.expect("it is closed though the client would stay").unwrap().unwrap();
        let mut next = send(address, ASK).await;
        assert!(timeout(PATIENCE, read(&mut next)).await.expect("the place is free").unwrap().ends_with("here"));
        server.stop(MOMENT).await;
    }

    #[test]
    fn the_bounds_of_the_product_are_those_of_its_documentation() {
        assert_eq!((MAX_CONNECTIONS, HEAD_TIMEOUT), (20_512, Duration::from_secs(10)));
    }
}
