//! gRPC by tonic at both ends, over HTTP/2 without and with TLS: the four kinds of call, errors with their trailers,
//! deadlines, large messages, and calls that are taken back. The service is written by hand: messages are bytes.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _};
use futures_util::{Stream, StreamExt as _};
use gateway::{Endpoints, Options, Upstream};
use http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::common::authority::Authority;
use crate::common::{PATIENCE, Rig, endpoint};
use crate::{runtime, within};

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; bytes.remaining()];
        bytes.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// What the instance tells of calls: their names when somebody takes them back.
type Told = mpsc::UnboundedSender<String>;
type Answers = Pin<Box<dyn Stream<Item = Result<Vec<u8>, Status>> + Send>>;

/// Told when it is dropped.
struct Dropped(Told, &'static str);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(self.1.to_owned());
    }
}

async fn instance(told: Told) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let told = told.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let told = told.clone();
                    async move { Ok::<_, std::convert::Infallible>(serve(request, told).await) }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

async fn serve(request: http::Request<hyper::body::Incoming>, told: Told) -> http::Response<tonic::body::Body> {
    let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(16 << 20);
    match request.uri().path() {
        "/proof.Service/Unary" => grpc.unary(tower::service_fn(unary), request).await,
        call @ ("/proof.Service/Hang" | "/proof.Service/Keep") => {
            let keeps = call.ends_with("Keep");
            let timeout = request.headers().get("grpc-timeout").and_then(|timeout| timeout.to_str().ok());
            let timeout = timeout.unwrap_or_default().to_owned();
            let _ = told.send(timeout.clone());
            let hang = move |_: Request<Vec<u8>>| hang(keeps, timeout.clone(), Dropped(told.clone(), "hang"));
            grpc.unary(tower::service_fn(hang), request).await
        }
        "/proof.Service/Down" => grpc.server_streaming(tower::service_fn(down), request).await,
        "/proof.Service/Endless" => {
            let endless = move |_: Request<Vec<u8>>| {
                let dropped = Dropped(told.clone(), "endless");
                async move {
                    let answers = futures_util::stream::unfold((dropped, 0_u8), |(dropped, count)| async move {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        Some((Ok(vec![count]), (dropped, count.wrapping_add(1))))
                    });
                    Ok::<_, Status>(Response::new(Box::pin(answers) as Answers))
                }
            };
            grpc.server_streaming(tower::service_fn(endless), request).await
        }
        "/proof.Service/Up" => grpc.client_streaming(tower::service_fn(up), request).await,
        "/proof.Service/Both" => grpc.streaming(tower::service_fn(both_ways), request).await,
        _ => Status::unimplemented("no such call").into_http(),
    }
}

/// The message back with the metadata that came; one that begins with `!` is refused.
async fn unary(request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, Status> {
    let asked = request.metadata().get("x-ask").cloned();
    let message = request.into_inner();
    if message.first() == Some(&b'!') {
        let mut trailers = MetadataMap::new();
        trailers.insert("x-why", MetadataValue::from_static("because"));
        trailers.insert_bin("x-detail-bin", MetadataValue::from_bytes(&[0, 159, 255]));
        return Err(Status::with_metadata(Code::FailedPrecondition, "nicht möglich: 100 %", trailers));
    }
    let mut response = Response::new(message);
    if let Some(asked) = asked {
        response.metadata_mut().insert("x-answer", asked);
    }
    Ok(response)
}

/// What is left by the gateway's word, in milliseconds.
fn left(timeout: &str) -> u64 {
    timeout.strip_suffix('m').and_then(|number| number.parse().ok()).unwrap()
}

/// Hangs for ever, or until the deadline it was told.
async fn hang(keeps: bool, timeout: String, dropped: Dropped) -> Result<Response<Vec<u8>>, Status> {
    let deadline = Duration::from_millis(left(&timeout));
    if !keeps {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(deadline).await;
    drop(dropped);
    Err(Status::deadline_exceeded("hung"))
}

/// As many messages as the first byte says, then an error if the second is not zero.
async fn down(request: Request<Vec<u8>>) -> Result<Response<Answers>, Status> {
    let asked = request.into_inner();
    let messages = (0..asked[0]).map(|number| Ok(vec![number; usize::from(number) * 100]));
    let end = (asked[1] != 0).then(|| Err(Status::aborted("in the middle")));
    Ok(Response::new(Box::pin(futures_util::stream::iter(messages.chain(end)))))
}

async fn up(request: Request<Streaming<Vec<u8>>>) -> Result<Response<Vec<u8>>, Status> {
    let (mut messages, mut count, mut total) = (request.into_inner(), 0_u32, 0);
    while let Some(message) = messages.message().await? {
        (count, total) = (count + 1, total + message.len());
    }
    Ok(Response::new(format!("{count} {total}").into_bytes()))
}

async fn both_ways(request: Request<Streaming<Vec<u8>>>) -> Result<Response<Answers>, Status> {
    Ok(Response::new(Box::pin(request.into_inner())))
}

/// A gateway before such an instance, and a client behind it.
struct Place {
    rig: Rig,
    authority: Arc<Option<Authority>>,
    client: tonic::client::Grpc<Channel>,
    told: mpsc::UnboundedReceiver<String>,
}

impl Place {
    async fn new(authority: Option<Authority>) -> Self {
        let (sender, told) = mpsc::unbounded_channel();
        let endpoints = vec![endpoint("s-0", instance(sender).await)];
        let upstream = Upstream { http2: true, ..Upstream::default() };
        let manner = authority.as_ref().map(Authority::manner).unwrap_or_default();
        let options = Options { workers: 2, ..Options::default() };
        let rig = Rig::mannered(manner, options, Endpoints { endpoints, upstream, ..Endpoints::default() });
        let (address, authority) = (rig.address, Arc::new(authority));
        let under = authority.clone();
        let connector = tower::service_fn(move |_| {
            let under = under.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(connect(address, &under).await)) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
        let client = tonic::client::Grpc::new(channel).max_decoding_message_size(16 << 20);
        Self { rig, authority, client, told }
    }

    /// A connection of its own.
    async fn connect(&self) -> crate::Stream {
        connect(self.rig.address, &self.authority).await
    }

    async fn ready(&mut self) -> &mut tonic::client::Grpc<Channel> {
        within("a connection", self.client.ready()).await.unwrap();
        &mut self.client
    }

    async fn unary(&mut self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, Status> {
        within("an answer", self.ready().await.unary(request, path("Unary"), Raw)).await
    }

    async fn told(&mut self) -> String {
        within("what the instance tells", self.told.recv()).await.unwrap()
    }
}

async fn connect(address: SocketAddr, authority: &Option<Authority>) -> crate::Stream {
    match authority {
        Some(authority) => Box::new(authority.connect(address, "h2").await),
        None => {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            Box::new(stream)
        }
    }
}

fn path(call: &str) -> PathAndQuery {
    PathAndQuery::try_from(format!("/proof.Service/{call}")).unwrap()
}

/// Runs a test in the clear and under TLS.
fn both(test: impl AsyncFn(&mut Place)) {
    runtime().block_on(async {
        for authority in [None, Some(Authority::new())] {
            test(&mut Place::new(authority).await).await;
        }
    });
}

#[test]
fn a_unary_call_brings_message_and_metadata_both_ways() {
    both(async |place| {
        for message in [Vec::new(), b"hello".to_vec(), vec![7; 100_000], vec![8; 4_000_000], vec![9; 4 << 20]] {
            let mut request = Request::new(message.clone());
            request.metadata_mut().insert("x-ask", MetadataValue::from_static("for it"));
            let response = place.unary(request).await.unwrap();
            assert_eq!(response.metadata().get("x-answer").unwrap(), "for it");
            assert!(response.into_inner() == message);
        }
    });
}

#[test]
fn an_error_brings_its_words_and_its_trailers() {
    both(async |place| {
        let status = place.unary(Request::new(b"!".to_vec())).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "nicht möglich: 100 %"));
        assert_eq!(status.metadata().get("x-why").unwrap(), "because");
        assert_eq!(status.metadata().get_bin("x-detail-bin").unwrap().to_bytes().unwrap(), &[0, 159, 255][..]);
        let unknown =
            within("a refusal", place.ready().await.unary(Request::new(Vec::new()), path("Unknown"), Raw)).await;
        assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    });
}

#[test]
fn a_stream_of_answers_comes_whole_or_with_its_error() {
    both(async |place| {
        for fails in [0, 1] {
            let request = Request::new(vec![200, fails]);
            let call = place.ready().await.server_streaming(request, path("Down"), Raw);
            let mut answers = within("a head", call).await.unwrap().into_inner();
            for number in 0..200 {
                let message = within("a message", answers.message()).await.unwrap().unwrap();
                assert!(message == vec![number; usize::from(number) * 100]);
            }
            let end = within("the end", answers.message()).await;
            assert_eq!(end.map_err(|status| status.code()), if fails == 0 { Ok(None) } else { Err(Code::Aborted) });
        }
    });
}

#[test]
fn a_stream_of_requests_arrives_whole() {
    both(async |place| {
        let messages = futures_util::stream::iter((0..300_usize).map(|number| vec![1; number * 10]));
        let call = place.ready().await.client_streaming(Request::new(messages), path("Up"), Raw);
        let answer = within("an answer", call).await.unwrap().into_inner();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("300 {}", 299 * 300 / 2 * 10));
    });
}

#[test]
fn both_directions_move_by_turns() {
    both(async |place| {
        let (sender, receiver) = mpsc::channel::<Vec<u8>>(1);
        let messages = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let call = place.ready().await.streaming(Request::new(messages.boxed()), path("Both"), Raw);
        let mut answers = within("a head", call).await.unwrap().into_inner();
        for turn in 0..50_u8 {
            // Each waits for the one before: nothing may be held back.
            sender.send(vec![turn; 1_000]).await.unwrap();
            assert_eq!(within("an echo", answers.message()).await.unwrap().unwrap(), vec![turn; 1_000]);
        }
        drop(sender);
        assert_eq!(within("the end", answers.message()).await.unwrap(), None);
    });
}

#[test]
fn a_deadline_ends_the_call_at_both_ends_in_time() {
    both(async |place| {
        let mut request = Request::new(b"x".to_vec());
        request.set_timeout(Duration::from_millis(300));
        let begun = Instant::now();
        let status = within("an end", place.ready().await.unary(request, path("Hang"), Raw)).await.unwrap_err();
        // The client's own watch; tonic calls it so.
        assert_eq!((status.code(), status.message()), (Code::Cancelled, "Timeout expired"));
        in_time(begun);
        assert!((200..=300).contains(&left(&place.told().await)), "what is left of it");
        assert_eq!(place.told().await, "hang", "the instance works on");
    });
}

/// The instance keeps the deadline it was told; the client has no watch of its own.
#[test]
fn a_deadline_kept_by_the_instance_is_told_in_time() {
    both(async |place| {
        let stream = place.connect().await;
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let service = tower::service_fn(move |request| sender.clone().send_request(request));
        let mut client = tonic::client::Grpc::with_origin(service, http::Uri::from_static("http://localhost"));
        client.ready().await.unwrap();
        let mut request = Request::new(b"x".to_vec());
        request.set_timeout(Duration::from_millis(300));
        let begun = Instant::now();
        let status = within("an end", client.unary(request, path("Keep"), Raw)).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        in_time(begun);
    });
}

fn in_time(begun: Instant) {
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(200) && took < PATIENCE / 4, "{took:?}");
}

#[test]
fn a_call_taken_back_ends_at_the_instance() {
    both(async |place| {
        let call = place.ready().await.server_streaming(Request::new(Vec::new()), path("Endless"), Raw);
        let mut answers = within("a head", call).await.unwrap().into_inner();
        for count in 0..3 {
            assert_eq!(within("a message", answers.message()).await.unwrap().unwrap(), [count]);
        }
        drop(answers);
        assert_eq!(place.told().await, "endless");
        // The connection and its other calls live on.
        assert_eq!(place.unary(Request::new(b"on".to_vec())).await.unwrap().into_inner(), b"on");
    });
}
