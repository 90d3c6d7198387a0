//! The short way for the most frequent requests: one key is written or read, without parameters. The same checks and the
//! same answers as by the router, without its layers, which cost more than the request itself. Deliberately absent: every
//! request that is not plainly one of these, and whoever has no authority; those take the router's way.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, Uri};
use axum::response::{IntoResponse as _, Response};
use data::MAX_VALUE_BYTES;
use hyper::body::Body as _;
use tower::ServiceExt as _;

use crate::authority::{self, Peer};
use crate::fence::Fence;
use crate::problem::Problem;
use crate::{Context, kv};

/// In front of a key.
const KEYS: &str = "/api/v1/kv/";

/// An answer that is being made. It has room for every step of that, and hyper moves it several times before it runs: its
/// address is cheaper.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// What answers requests. Clones share it.
#[derive(Clone)]
pub struct Answers(Arc<(Router, Option<Context>)>);

impl Answers {
    /// By the router. With a context only to requests of the same site, and what is hot by the short way.
    pub(crate) fn new(router: Router, context: Option<Context>) -> Self {
        Self(Arc::new((router, context)))
    }

    /// Whether the short way is open to whoever sends these fields, and with what.
    pub(crate) fn hot(&self, peer: &Peer, headers: &HeaderMap) -> Option<&Context> {
        self.0.1.as_ref().filter(|context| {
            authority::same_site(context, headers).is_ok() && authority::has_authority(context, peer, headers)
        })
    }

    /// Answers one request of a connection to `peer`. Each way has a box of its own: thousands of questions wait at a time,
    /// and none of them needs the room that the short way takes.
    pub(crate) fn answer(&self, peer: &Peer, mut request: Request<Body>) -> Answering {
        let (router, context) = &*self.0;
        if let Some(context) = context {
            if let Err(problem) = authority::same_site(context, request.headers()) {
                return Box::pin(ready(problem.into_response()));
            }
            if is_hot(&request) && authority::has_authority(context, peer, request.headers()) {
                let context = context.clone();
                return match *request.method() {
                    Method::GET => Box::pin(async move { kv::get(&context, key_in(request.uri())).await }),
                    _ => Box::pin(async move { write(&context, request).await }),
                };
            }
        }
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        let answering = router.clone().oneshot(request);
        Box::pin(async move {
            match answering.await {
                Ok(answer) => answer,
            }
        })
    }
}

/// The key that is plainly asked for, if so.
pub(crate) fn key_of(path: &str) -> Option<&str> {
    path.strip_prefix(KEYS).filter(|key| !key.is_empty() && !key.contains('%'))
}

fn is_hot(request: &Request<Body>) -> bool {
    let uri = request.uri();
    let size = request.body().size_hint();
    let fits = |most: usize| size.exact().is_some_and(|bytes| bytes <= most as u64);
    key_of(uri.path()).is_some()
        && uri.query().is_none()
        && match *request.method() {
            Method::GET => fits(0),
            Method::PUT => fits(MAX_VALUE_BYTES),
            _ => false,
        }
}

fn key_in(uri: &Uri) -> &str {
    key_of(uri.path()).unwrap_or_default()
}

async fn write(context: &Context, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    match axum::body::to_bytes(body, MAX_VALUE_BYTES).await {
        Ok(value) => put(context, key_in(&head.uri), &head.headers, value).await,
        Err(error) => {
            Problem::bad_request(format!("the body did not arrive: {error}"), "nothing was written; send it again")
                .into_response()
        }
    }
}

/// The short way of a request that is here as a whole: a write of `key`, or a read where there is no value.
pub(crate) async fn answer_whole(context: &Context, key: &str, headers: &HeaderMap, value: Option<Bytes>) -> Response {
    match value {
        // Larger, and a read need not have room for it.
        Some(value) => Box::pin(put(context, key, headers, value)).await,
        None => kv::get(context, key).await,
    }
}

async fn put(context: &Context, key: &str, headers: &HeaderMap, value: Bytes) -> Response {
    match Fence::of(headers) {
        Ok(fence) => kv::put_plain(context, key, fence, value).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, Request};

    use super::{MAX_VALUE_BYTES, is_hot};

    #[test]
    fn only_plain_requests_of_one_key_take_the_short_way() {
        let check = |method: Method, path: &str, body: Vec<u8>, expected: bool| {
            let request = Request::builder().method(&method).uri(path).body(Body::from(body)).unwrap();
            assert_eq!(is_hot(&request), expected, "{method} {path}");
        };
        check(Method::PUT, "/api/v1/kv/a/b", vec![0; MAX_VALUE_BYTES], true);
        check(Method::GET, "/api/v1/kv/a", vec![], true);
        check(Method::PUT, "/api/v1/kv/a", vec![0; MAX_VALUE_BYTES + 1], false);
        check(Method::GET, "/api/v1/kv/a", vec![0], false);
        check(Method::PUT, "/api/v1/kv/a?cas=1", vec![0], false);
        check(Method::GET, "/api/v1/kv/a?", vec![], false);
        check(Method::GET, "/api/v1/kv/a%2fb", vec![], false);
        check(Method::GET, "/api/v1/kv/", vec![], false);
        check(Method::DELETE, "/api/v1/kv/a", vec![], false);
        check(Method::HEAD, "/api/v1/kv/a", vec![], false);
        check(Method::GET, "/api/v1/status", vec![], false);
    }
}
