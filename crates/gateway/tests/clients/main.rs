//! Clients and instances that others have written, through a real gateway: WebSocket (tungstenite), gRPC (tonic), and the
//! tools people point at a server (curl, wrk, h2load, hey, Chromium).
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod grpc;
mod tools;
mod websocket;

use common::PATIENCE;

/// A runtime whose instances go on while a test waits.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Waits for a step.
async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Any stream of bytes.
trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

type Stream = Box<dyn Io>;
