//! The gRPC health protocol (grpc.health.v1.Health/Check): one small message each way, so that no gRPC library is needed.

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::tls::Connection;

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u8 = 1;

/// Asks whether `service` (the server as a whole when empty) is SERVING. The origin is scheme and authority, without a slash.
///
/// # Errors
/// In one line: no HTTP/2, a gRPC error, or another status.
pub async fn check(stream: impl Connection, origin: &str, service: &str) -> Result<(), String> {
    let broken = |error: hyper::Error| format!("gRPC health: {error}");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::post(format!("{origin}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(message(service)?))
        .map_err(|error| format!("gRPC health: {error}"))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        if let Some(status) = response.headers().get("grpc-status").filter(|status| *status != "0") {
            return Err(format!("gRPC health: status {}", status.to_str().unwrap_or("?")));
        }
        let body = Limited::new(response.into_body(), 1024)
            .collect()
            .await
            .map_err(|error| format!("gRPC health: {error}"))?;
        serving(&body.to_bytes())
    };
    let result = answered.await;
    connection.abort();
    result
}

/// A length-prefixed HealthCheckRequest: field 1, the service's name.
fn message(service: &str) -> Result<Bytes, String> {
    let length = u8::try_from(service.len())
        .ok()
        .filter(|length| *length < 128)
        .ok_or("gRPC health: a service name over 127 bytes")?;
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(if length == 0 { 0 } else { u32::from(length) + 2 });
    if length > 0 {
        message.put_u8(0x0a);
        message.put_u8(length);
        message.put_slice(service.as_bytes());
    }
    Ok(message.freeze())
}

/// A HealthCheckResponse: field 1, an enumeration; absent means 0, UNKNOWN.
fn serving(body: &[u8]) -> Result<(), String> {
    match body.get(5..) {
        Some([0x08, SERVING, ..]) => Ok(()),
        Some([0x08, 2, ..]) => Err("gRPC health: NOT_SERVING".into()),
        Some([0x08, 3, ..]) => Err("gRPC health: SERVICE_UNKNOWN".into()),
        _ => Err("gRPC health: UNKNOWN".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{message, serving};

    #[test]
    fn messages_have_the_wire_format_of_the_protocol() {
        assert_eq!(message("").unwrap().as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(message("ab").unwrap().as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(message(&"x".repeat(128)).is_err());
        assert!(serving(&[0, 0, 0, 0, 2, 8, 1]).is_ok());
        assert!(serving(&[0, 0, 0, 0, 2, 8, 2]).unwrap_err().contains("NOT_SERVING"));
        assert!(serving(&[0, 0, 0, 0, 0]).is_err());
    }
}
