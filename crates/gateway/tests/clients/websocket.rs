//! WebSocket through an accepted upgrade, as the Autobahn suite asks: lengths around each encoding, fragments with pings
//! between them, close codes, bad UTF-8, masks, backpressure, many at once, bytes one at a time; in the clear and under
//! TLS. Both ends are tungstenite, which judges every frame.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use gateway::Options;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::common::authority::Authority;
use crate::common::{Rig, endpoint};
use crate::{Stream, runtime, within};
use gateway::Endpoints;

type Socket = WebSocketStream<Stream>;

/// An instance that sends every message back, and says why it ends.
async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    narrow(&listener);
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(message) = socket.next().await {
                    let why = match message {
                        Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                            if socket.send(message).await.is_err() {
                                return;
                            }
                            continue;
                        }
                        Ok(_) => continue,
                        Err(Error::Utf8(_)) => CloseCode::Invalid,
                        Err(Error::Protocol(_)) => CloseCode::Protocol,
                        Err(_) => return,
                    };
                    let _ = socket.close(Some(CloseFrame { code: why, reason: "bad".into() })).await;
                }
            });
        }
    });
    address
}

/// Gives a socket small buffers, so that little is under way when nobody reads.
fn narrow<'a>(socket: impl Into<socket2::SockRef<'a>>) {
    let socket = socket.into();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.set_send_buffer_size(64 << 10).unwrap();
}

/// A gateway before such an instance, and how to reach it.
struct Place {
    rig: Rig,
    authority: Option<Authority>,
}

impl Place {
    fn new(instance: SocketAddr, authority: Option<Authority>) -> Self {
        let told = Endpoints { endpoints: vec![endpoint("s-0", instance)], ..Endpoints::default() };
        let manner = authority.as_ref().map(Authority::manner).unwrap_or_default();
        let rig = Rig::mannered(manner, Options { workers: 2, ..Options::default() }, told);
        Self { rig, authority }
    }

    async fn stream(&self) -> Stream {
        match &self.authority {
            Some(authority) => Box::new(authority.connect(self.rig.address, "http/1.1").await),
            None => {
                let stream = TcpStream::connect(self.rig.address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                narrow(&stream);
                Box::new(stream)
            }
        }
    }

    async fn open(&self) -> Socket {
        shake(self.stream().await).await
    }
}

async fn shake(stream: Stream) -> Socket {
    let config = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
    let shaken = tokio_tungstenite::client_async_with_config("ws://localhost/chat", stream, Some(config));
    let (socket, answer) = within("an upgrade", shaken).await.unwrap();
    assert_eq!(answer.status(), 101);
    socket
}

/// Runs a test in the clear and under TLS.
fn both(test: impl AsyncFn(&Place)) {
    let runtime = runtime();
    runtime.block_on(async {
        let instance = echo().await;
        for authority in [None, Some(Authority::new())] {
            test(&Place::new(instance, authority)).await;
        }
    });
}

async fn next(socket: &mut Socket) -> Message {
    within("a message", socket.next()).await.expect("the socket goes on").unwrap()
}

async fn says_back(socket: &mut Socket, message: Message) {
    let length = message.len();
    socket.send(message.clone()).await.unwrap();
    assert!(next(socket).await == message, "{length} bytes came back otherwise");
}

/// Bytes that are no repetition of each other.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

#[test]
fn messages_of_every_length_come_back_the_same() {
    both(async |place| {
        let mut socket = place.open().await;
        for length in
            [0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 16_383, 16_384, 65_534, 65_535, 65_536, 65_537, 1 << 20]
        {
            says_back(&mut socket, Message::binary(bytes(length))).await;
            says_back(&mut socket, Message::text("ä".repeat(length / 2) + &"x".repeat(length % 2))).await;
        }
    });
}

#[test]
fn fragments_with_pings_between_them_are_one_message() {
    both(async |place| {
        let mut socket = place.open().await;
        for parts in [2, 3, 10] {
            let fragments: Vec<Vec<u8>> = (0..parts).map(|part| bytes(part * 40_000)).collect();
            for (index, fragment) in fragments.iter().enumerate() {
                let kind = if index == 0 { Data::Binary } else { Data::Continue };
                let frame = Frame::message(fragment.clone(), OpCode::Data(kind), index == parts - 1);
                socket.send(Message::Frame(frame)).await.unwrap();
                if index < parts - 1 {
                    let ping = bytes(index % 126);
                    socket.send(Message::Ping(ping.clone().into())).await.unwrap();
                    assert_eq!(next(&mut socket).await, Message::Pong(ping.into()));
                }
            }
            assert!(next(&mut socket).await == Message::binary(fragments.concat()));
        }
    });
}

#[test]
fn close_codes_come_back_and_end_the_connection() {
    both(async |place| {
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
            let mut socket = place.open().await;
            says_back(&mut socket, Message::text("before")).await;
            let frame = CloseFrame { code: CloseCode::from(code), reason: "enough".into() };
            socket.close(Some(frame.clone())).await.unwrap();
            // A peer answers with the code (RFC 6455, 5.5.1).
            let Message::Close(Some(answer)) = next(&mut socket).await else { panic!("{code}: no close") };
            assert_eq!(answer.code, frame.code);
            assert!(within("the end", socket.next()).await.is_none(), "{code}");
        }
        let mut socket = place.open().await;
        socket.close(None).await.unwrap();
        assert!(matches!(next(&mut socket).await, Message::Close(_)));
        assert!(within("the end", socket.next()).await.is_none());
    });
}

#[test]
fn bad_text_is_closed_with_1007_and_bad_frames_with_1002() {
    both(async |place| {
        let bad_text =
            [&b"\xff"[..], b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", b"\xf4\x90\x80\x80"];
        for text in bad_text {
            let mut socket = place.open().await;
            let frame = Frame::message(text.to_vec(), OpCode::Data(Data::Text), true);
            socket.send(Message::Frame(frame)).await.unwrap();
            let Message::Close(Some(close)) = next(&mut socket).await else { panic!("no close") };
            assert_eq!(close.code, CloseCode::Invalid);
        }
        // A continuation of nothing.
        let mut socket = place.open().await;
        socket.send(Message::Frame(Frame::message("x", OpCode::Data(Data::Continue), true))).await.unwrap();
        let Message::Close(Some(close)) = next(&mut socket).await else { panic!("no close") };
        assert_eq!(close.code, CloseCode::Protocol);
        // Frames of a client without a mask: the gateway neither adds one nor takes one off.
        let stream = place.open().await.into_inner();
        let mut unmasked = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        unmasked.send(Message::text("bare")).await.unwrap();
        let mut socket = WebSocketStream::from_raw_socket(unmasked.into_inner(), Role::Client, None).await;
        let Message::Close(Some(close)) = next(&mut socket).await else { panic!("no close") };
        assert_eq!(close.code, CloseCode::Protocol);
    });
}

#[test]
fn who_does_not_read_is_waited_for_and_loses_nothing() {
    const MESSAGES: usize = 144;
    both(async |place| {
        let (mut sink, mut stream) = place.open().await.split();
        let message = Message::binary(bytes(256 << 10));
        let (sent, said) = tokio::sync::watch::channel(0);
        let outgoing = message.clone();
        let sender = tokio::spawn(async move {
            for count in 1..=MESSAGES {
                sink.send(outgoing.clone()).await.unwrap();
                sent.send_replace(count);
            }
            sink
        });
        // Nobody reads: sockets fill on both sides of the gateway until the sender waits.
        let mut seen = said.clone();
        while tokio::time::timeout(Duration::from_millis(300), seen.changed())
            .await
            .is_ok_and(|changed| changed.is_ok())
        {}
        let stuck_at = *said.borrow();
        assert!(stuck_at < MESSAGES, "all of it went somewhere");
        for _ in 0..MESSAGES {
            assert!(within("a message", stream.next()).await.unwrap().unwrap() == message);
        }
        drop(within("the sender", sender).await.unwrap());
    });
}

#[test]
fn fifty_at_once_keep_to_themselves() {
    both(async |place| {
        let sockets = (0..50_usize).map(|number| async move {
            let mut socket = place.open().await;
            for round in 0..20 {
                says_back(&mut socket, Message::text(format!("{number} {round} {}", "y".repeat(number * round)))).await;
            }
            socket.close(None).await.unwrap();
        });
        within("all of them", futures_util::future::join_all(sockets)).await;
        place.rig.expect_metric("in_flight_requests{service=\"s\",instance=\"s-0\"} 0");
    });
}

/// Reads and writes a byte at a time.
struct Chopped(Stream);

impl AsyncRead for Chopped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if room.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut one))?;
        room.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Chopped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        // Each byte leaves before the next, under TLS as a record of its own.
        std::task::ready!(Pin::new(&mut self.0).poll_flush(cx))?;
        Pin::new(&mut self.0).poll_write(cx, &bytes[..bytes.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn bytes_one_at_a_time_are_the_same_messages() {
    both(async |place| {
        // Behind the handshake, of which tungstenite wants no small pieces.
        let stream: Stream = Box::new(Chopped(place.open().await.into_inner()));
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        for length in [0, 1, 125, 126, 700] {
            says_back(&mut socket, Message::binary(bytes(length))).await;
        }
        socket.close(None).await.unwrap();
        assert!(matches!(next(&mut socket).await, Message::Close(_)));
    });
}
