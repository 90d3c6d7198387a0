//! The other reader: hyper, as an instance would use it (server) or a client would (client), over a pipe of memory.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A message as hyper read it.
#[derive(Debug)]
pub struct Seen<H> {
    pub head: H,
    /// `None` if it broke off.
    pub body: Option<Vec<u8>>,
    pub trailers: HeaderMap,
}

/// What a reader makes of a connection's bytes.
pub type Requests = Vec<Seen<http::request::Parts>>;

/// Larger than anything a target writes, so that nobody waits for room.
const PIPE: usize = 1 << 20;

fn run<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Reads a body; `None` if it broke off.
async fn whole(mut body: Incoming) -> (Option<Vec<u8>>, HeaderMap) {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (None, trailers) };
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    (Some(bytes), trailers)
}

/// All requests a hyper server reads out of `bytes`, in order.
pub fn server(bytes: &[u8]) -> Requests {
    let seen = Rc::new(RefCell::new(Requests::new()));
    run(async {
        let (mut near, far) = tokio::io::duplex(PIPE);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let seen = seen.clone();
            async move {
                let (head, body) = request.into_parts();
                let (body, trailers) = whole(body).await;
                seen.borrow_mut().push(Seen { head, body, trailers });
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        // The gateway's own fields come on top of what a client may send.
        builder.max_headers(128).half_close(true).auto_date_header(false);
        let _ = builder.serve_connection(TokioIo::new(far), service).await;
    });
    Rc::into_inner(seen).expect("the connection is over").into_inner()
}

/// What a hyper client reads out of `bytes` as the answer to one request; `None` if it refuses.
pub fn client(bytes: &[u8], to_head: bool) -> Option<Seen<http::response::Parts>> {
    run(async {
        let (mut near, far) = tokio::io::duplex(PIPE);
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_headers(128);
        let (mut sender, connection) = builder.handshake(TokioIo::new(far)).await.unwrap();
        let method = if to_head { Method::HEAD } else { Method::GET };
        let request = Request::builder().method(method).uri("/").body(Empty::<Bytes>::new()).unwrap();
        let exchange = async {
            let answer = sender.send_request(request).await.ok()?;
            let (head, body) = answer.into_parts();
            let (body, trailers) = whole(body).await;
            Some(Seen { head, body, trailers })
        };
        let feed = async {
            // A client takes an answer only to what it has asked.
            let _ = near.read(&mut [0; 1024]).await;
            let _ = near.write_all(bytes).await;
            let _ = near.shutdown().await;
            let _ = near.read_to_end(&mut Vec::new()).await;
        };
        let (seen, _, ()) = tokio::join!(exchange, connection, feed);
        seen
    })
}
