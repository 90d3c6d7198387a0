//! An HTTP/2 ping: is there a server that speaks HTTP/2, and does it answer a PING frame (RFC 9113, section 6.7).

use h2::{Ping, client};

use super::tls::Connection;

/// Asks once. The caller bounds the time.
///
/// # Errors
/// In one line: no HTTP/2, or the connection broke before the answer.
pub async fn check(stream: impl Connection) -> Result<(), String> {
    let broken = |error: h2::Error| format!("HTTP/2 ping: {error}");
    // No request is made; its handle is kept, as the connection ends with it.
    let (_requests, mut connection) = client::handshake(stream).await.map_err(broken)?;
    let mut pings = connection.ping_pong().ok_or("HTTP/2 ping: taken already")?;
    tokio::select! {
        ended = connection => Err(match ended {
            Ok(()) => "HTTP/2 ping: the connection was closed".into(),
            Err(error) => broken(error),
        }),
        answered = pings.ping(Ping::opaque()) => answered.map(drop).map_err(broken),
    }
}
