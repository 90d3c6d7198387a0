//! One HTTP/1.1 request on a fresh connection, with a bounded answer.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::tls::Connection;

/// How much of an answer's body is read; Kubernetes reads as much.
const MAX_BODY: usize = 10 * 1024;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The beginning of the body.
    pub body: Bytes,
    /// Where it sends the client instead, if it says so.
    pub location: Option<String>,
}

/// Sends a request without body and reads the answer. The caller bounds the time.
///
/// # Errors
/// In one line: the connection broke, or what came back is not HTTP.
pub async fn request(
    stream: impl Connection,
    method: &str,
    path: &str,
    host: SocketAddr,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    request_with(stream, method, path, host, headers, Bytes::new()).await
}

/// The same with a body.
///
/// # Errors
/// As [`request`].
pub async fn request_with(
    stream: impl Connection,
    method: &str,
    path: &str,
    host: SocketAddr,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<Answer, String> {
    let (answer, _) = send(stream, method, path, host, headers, (body, MAX_BODY)).await?;
    Ok(answer)
}

/// The same without one, with at most so many bytes of the answer's: none of a longer one, as half of it says nothing.
///
/// # Errors
/// As [`request`].
pub async fn request_within(
    stream: impl Connection,
    method: &str,
    path: &str,
    host: SocketAddr,
    headers: &[(&str, &str)],
    most: usize,
) -> Result<Answer, String> {
    let (mut answer, whole) = send(stream, method, path, host, headers, (Bytes::new(), most)).await?;
    if !whole {
        answer.body = Bytes::new();
    }
    Ok(answer)
}

async fn send(
    stream: impl Connection,
    method: &str,
    path: &str,
    host: SocketAddr,
    headers: &[(&str, &str)],
    (body, most): (Bytes, usize),
) -> Result<(Answer, bool), String> {
    let mut request = hyper::Request::builder().method(method).uri(path).header("connection", "close");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", host.to_string());
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        request = request.header("user-agent", "seawall-probe");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).map_err(|error| format!("not a request: {error}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let broken = |error: hyper::Error| format!("{method} {path}: {}", root(&error));
    let answered = sender.send_request(request).await.map_err(broken);
    let answer = match answered {
        Ok(response) => {
            let status = response.status().as_u16();
            let location = response.headers().get("location").and_then(|at| at.to_str().ok()).map(str::to_owned);
            // A body that is too long or breaks off is no reason to doubt the status.
            let (body, whole) = begun(response.into_body(), most).await;
            Ok((Answer { status, body, location }, whole))
        }
        Err(error) => Err(error),
    };
    connection.abort();
    answer
}

/// The first `most` bytes of a body, and whether that is all of it.
async fn begun(mut body: hyper::body::Incoming, most: usize) -> (Bytes, bool) {
    let mut begun = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (begun.into(), false) };
        let Ok(data) = frame.into_data() else { continue };
        let left = most - begun.len();
        begun.extend_from_slice(&data[..data.len().min(left)]);
        if data.len() > left {
            return (begun.into(), false);
        }
    }
    (begun.into(), true)
}

/// The innermost cause: "connection reset by peer" instead of "connection error".
fn root(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
