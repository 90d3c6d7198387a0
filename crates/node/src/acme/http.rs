//! How an authority is spoken to: HTTPS by the small client that the product has anyway, on a thread of its own for each
//! request, so that whoever waits can stop waiting. Remembers until when the authority does not want to be asked.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// One request, from looking the name up to the last byte.
const LIMIT: Duration = Duration::from_secs(30);
/// No answer of an authority is that long.
const MOST_BYTES: u64 = 1 << 20;

/// A client. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Http {
    agent: ureq::Agent,
    asked: Arc<Mutex<Option<i64>>>,
}

impl Http {
    /// One that trusts the authorities of `ca` (PEM), or the public ones.
    pub fn new(ca: Option<&[u8]>) -> Self {
        let roots = match ca {
            None => RootCerts::WebPki,
            Some(pem) => {
                let certificate = |item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                };
                RootCerts::new_with_certs(&parse_pem(pem).filter_map(certificate).collect::<Vec<Certificate<'_>>>())
            }
        };
        let config = ureq::Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_global(Some(LIMIT))
            .https_only(true)
            .http_status_as_error(false);
        Self { agent: config.build().new_agent(), asked: Arc::default() }
    }

    /// Until when the authority asked to be left alone, in seconds since the Unix epoch.
    pub fn asked(&self) -> Option<i64> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, request: Request<Vec<u8>>) -> Result<BytesResponse, Error> {
        let other = |error: String| Error::Other(error.into());
        let host = request.uri().host().unwrap_or_default().to_owned();
        let cannot = |error: ureq::Error| other(format!("{host} cannot be asked: {error}"));
        let answer =
            if request.body().is_empty() { self.agent.run(request.map(|_| ())) } else { self.agent.run(request) };
        let (parts, body) = answer.map_err(cannot)?.into_parts();
        // Also with good news: an order that takes longer than anybody waits for it.
        if let Some(until) = retry_after(&parts.headers) {
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        if !parts.status.is_success() {
            let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            if !kind.contains("json") {
                return Err(other(format!("{host} answers {}", parts.status)));
            }
        }
        let bytes = body.into_with_config().limit(MOST_BYTES).read_to_vec().map_err(cannot)?;
        Ok(Response::from_parts(parts, Full::new(Bytes::from(bytes))).into())
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let http = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let agent = concat!("seawall/", env!("CARGO_PKG_VERSION"), " (instant-acme)");
            parts.headers.insert(USER_AGENT, HeaderValue::from_static(agent));
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(parts, body.to_bytes().to_vec());
            let (reply, answer) = tokio::sync::oneshot::channel();
            let ask = move || {
                // Ignored: nobody waits for the answer any more.
                let _ = reply.send(http.call(request));
            };
            std::thread::Builder::new()
                .name("acme-http".into())
                .spawn(ask)
                .map_err(|error| Error::Other(error.into()))?;
            answer.await.unwrap_or_else(|_| Err(Error::Other("the request was given up".into())))
        })
    }
}

/// RFC 9110, 10.2.3: seconds from now, or a date.
fn retry_after(headers: &HeaderMap) -> Option<i64> {
    let written = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match u32::from_str(written) {
        Ok(seconds) => Some(super::now_unix() + i64::from(seconds)),
        Err(_) => Some(jiff::fmt::rfc2822::parse(written).ok()?.timestamp().as_second()),
    }
}

#[cfg(test)]
mod tests {
    use super::{HeaderMap, HeaderValue, RETRY_AFTER, retry_after};

    #[test]
    fn what_an_authority_asks_for_is_understood() {
        let of = |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]));
        let now = crate::acme::now_unix();
        assert!(of("120").is_some_and(|at| (now + 120..now + 130).contains(&at)));
        assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), Some(946_684_799));
        assert_eq!((of("soon"), of(""), retry_after(&HeaderMap::new())), (None, None, None));
    }
}
