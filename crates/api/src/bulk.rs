//! Connections whose clients append large entries to streams are served by a thread that takes the processors after all others:
//! their bytes must not make wait what the controller does meanwhile, a promotion above all. Whatever else is asked on such a
//! connection is answered on the controller's thread, as everywhere.

use std::io;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::IntoResponse as _;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::hot::Answering;
use crate::preface::Begun;

/// Fields that are looked at.
const MAX_FIELDS: usize = 32;
/// In front of a stream's name.
const STREAMS: &str = "/api/v1/streams/";
/// An entry of fewer bytes is no matter.
const LARGE: u64 = 4 * 1024;

/// The thread, until this is dropped.
#[derive(Debug)]
pub(crate) struct Bulk {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Bulk {
    /// # Errors
    /// The operating system's.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name("api-bulk".into()).spawn(move || {
            platform::thread::give_way();
            // An error means the handle is gone, which is a stop as well.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, _stop: stop })
    }

    /// Has the thread serve this connection, to its end.
    pub(crate) async fn serve<F>(&self, begun: Begun, serve: impl FnOnce(Begun) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let (read, stream) = begun.into_parts();
        // A connection that fails here is over.
        let Ok(stream) = stream.into_std() else { return };
        let mut serving = JoinSet::new();
        let served = async move {
            if let Ok(stream) = TcpStream::from_std(stream) {
                serve(Begun::of(read, stream)).await;
            }
        };
        serving.spawn_on(served, &self.handle);
        // A panic there has been told where it was.
        let _ = serving.join_next().await;
    }
}

/// Whether a connection that begins so is served there.
pub(crate) fn begins_with_much(read: &[u8]) -> bool {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    if !matches!(head.parse(read), Ok(httparse::Status::Complete(_))) || !is_append(head.method, head.path) {
        return false;
    }
    let length = head.headers.iter().find(|field| header::CONTENT_LENGTH == field.name);
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.trim().parse::<u64>().ok());
    length.is_some_and(|bytes| bytes >= LARGE)
}

fn is_append(method: Option<&str>, path: Option<&str>) -> bool {
    let path = path.and_then(|path| path.split('?').next()?.strip_prefix(STREAMS));
    method == Some("POST") && path.is_some_and(|stream| !stream.contains('/'))
}

/// Answers a request of such a connection; what is no append is answered by `home`.
pub(crate) fn answer(
    request: Request<Body>,
    answer: impl FnOnce(Request<Body>) -> Answering,
    home: &Handle,
) -> Answering {
    let is_append = is_append(Some(request.method().as_str()), Some(request.uri().path()));
    let answering = answer(request);
    if is_append {
        return answering;
    }
    // Ended with its client.
    let mut at_home = JoinSet::new();
    at_home.spawn_on(answering, home);
    Box::pin(async move {
        match at_home.join_next().await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) | None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::begins_with_much;

    #[test]
    fn only_large_entries_of_streams_are_much() {
        let much = |head: &str| begins_with_much(head.as_bytes());
        assert!(much("POST /api/v1/streams/s HTTP/1.1\r\nhost: h\r\nContent-Length: 4096\r\n\r\n"));
        assert!(much("POST /api/v1/streams/s?producer=p&seq=1 HTTP/1.1\r\ncontent-length: 65536\r\n\r\nxx"));
        assert!(!much("POST /api/v1/streams/s HTTP/1.1\r\ncontent-length: 4095\r\n\r\n"), "small");
        assert!(!much("POST /api/v1/streams/s HTTP/1.1\r\ncontent-length: 65536\r\n"), "half a head");
        assert!(!much("POST /api/v1/streams/s HTTP/1.1\r\ncontent-length: much\r\n\r\n"));
        assert!(!much("POST /api/v1/streams/s HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"));
        assert!(!much("POST /api/v1/streams/s/seal?epoch=1 HTTP/1.1\r\ncontent-length: 65536\r\n\r\n"), "no entry");
        assert!(!much("GET /api/v1/streams/s HTTP/1.1\r\ncontent-length: 65536\r\n\r\n"));
        assert!(!much("PUT /api/v1/kv/key HTTP/1.1\r\ncontent-length: 65536\r\n\r\n"));
    }
}
