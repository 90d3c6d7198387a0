//! Visits of a certificate authority that checks whether a name leads here (ACME, RFC 8555), answered while a check is
//! under way: a file in the clear (http-01) before any route, or a certificate of its own under TLS (tls-alpn-01, RFC 8737).
//! At the begin of the request walk. While nothing is under way a request costs one look at its path, a handshake one
//! look at a pointer. Deliberately absent: talking to the authority.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use crate::options::ErrorPage;
use crate::tls::{Certificate, TlsError};

/// Where http-01 looks (RFC 8555, 8.3); a token follows.
const PREFIX: &[u8] = b"/.well-known/acme-challenge/";
/// What tls-alpn-01 speaks, and nothing else does (RFC 8737, 6.2).
pub(crate) const PROTOCOL: &[u8] = b"acme-tls/1";

/// The checks under way.
#[derive(Debug, Default)]
pub struct Challenges {
    /// What is answered, by token.
    files: ArcSwap<HashMap<String, Arc<ErrorPage>>>,
    /// What is shown, by name; absent while there is nothing.
    shown: ArcSwapOption<HashMap<String, Arc<ServerConfig>>>,
}

/// A check under way; dropping it ends that.
#[derive(Debug)]
pub struct UnderWay {
    challenges: Arc<Challenges>,
    what: What,
}

#[derive(Debug)]
enum What {
    File { token: String },
    Shown { name: String },
}

impl Challenges {
    /// Answers requests for `token` on listeners in the clear with `text`.
    pub fn answer(self: &Arc<Self>, token: &str, text: &str) -> UnderWay {
        // RFC 8555, 8.3: this type, though any is taken.
        let page = ErrorPage {
            statuses: 200..=200,
            content_type: "application/octet-stream".into(),
            body: text.as_bytes().into(),
        };
        let page = Arc::new(page);
        self.files.rcu(|files| {
            let mut files = HashMap::clone(files);
            files.insert(token.to_owned(), page.clone());
            files
        });
        UnderWay { challenges: self.clone(), what: What::File { token: token.to_owned() } }
    }

    /// Shows `certificate` to whoever asks for `name` and speaks nothing but `acme-tls/1`, on every listener under TLS.
    ///
    /// # Errors
    /// The certificate cannot be shown.
    pub fn show(self: &Arc<Self>, name: &str, certificate: &Certificate) -> Result<UnderWay, TlsError> {
        let name = name.to_ascii_lowercase();
        let config = Arc::new(certificate.shown_alone(PROTOCOL)?);
        self.shown.rcu(|shown| {
            let mut shown = shown.as_deref().cloned().unwrap_or_default();
            shown.insert(name.clone(), config.clone());
            Some(Arc::new(shown))
        });
        Ok(UnderWay { challenges: self.clone(), what: What::Shown { name } })
    }

    /// The answer to a request in the clear, if it asks for one.
    pub(crate) fn file(&self, path_and_query: &[u8]) -> Option<Arc<ErrorPage>> {
        let token = std::str::from_utf8(path_and_query.strip_prefix(PREFIX)?).ok()?;
        self.files.load().get(token).cloned()
    }

    /// What to accept connections with that may be such visits; `None`, nearly always, if none can be.
    pub(crate) fn visits(&self) -> Option<Visits> {
        self.shown.load_full().map(Visits)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        match &self.what {
            What::File { token } => {
                self.challenges.files.rcu(|files| {
                    let mut files = HashMap::clone(files);
                    files.remove(token);
                    files
                });
            }
            What::Shown { name } => {
                self.challenges.shown.rcu(|shown| {
                    let mut shown = shown.as_deref().cloned().unwrap_or_default();
                    shown.remove(name);
                    (!shown.is_empty()).then(|| Arc::new(shown))
                });
            }
        }
    }
}

/// Certificates for visits, by name.
pub(crate) struct Visits(Arc<HashMap<String, Arc<ServerConfig>>>);

/// A connection of which it is known whether it is a visit.
pub(crate) enum Greeted {
    /// The authority has seen what it came for.
    Visit,
    /// A client.
    Client(Box<TlsStream<TcpStream>>),
    /// A client, and the listener has no certificate.
    Nobody,
}

impl Visits {
    /// Looks at the client's first message before it is decided with what it is answered.
    pub(crate) async fn accept(&self, stream: TcpStream, usual: Option<Arc<ServerConfig>>) -> io::Result<Greeted> {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if let Some(config) = self.of(&begun.client_hello()) {
            let mut stream = begun.into_stream(config).await?;
            // RFC 8737, 3: nothing is said on it.
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
            return Ok(Greeted::Visit);
        }
        let Some(usual) = usual else { return Ok(Greeted::Nobody) };
        Ok(Greeted::Client(Box::new(begun.into_stream(usual).await?.into())))
    }

    fn of(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let mut protocols = hello.alpn()?;
        let alone = protocols.next() == Some(PROTOCOL) && protocols.next().is_none();
        let name = hello.server_name().filter(|_| alone)?.to_ascii_lowercase();
        self.0.get(&name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::Challenges;
    use std::sync::Arc;

    #[test]
    fn a_token_is_answered_as_long_as_it_is_under_way_and_nothing_else_is() {
        let challenges = Arc::new(Challenges::default());
        let text = |path: &str| challenges.file(path.as_bytes()).map(|page| page.body.to_vec());
        assert_eq!(text("/.well-known/acme-challenge/one"), None);
        let (one, two) = (challenges.answer("one", "one.key"), challenges.answer("two", "two.key"));
        assert_eq!(text("/.well-known/acme-challenge/one"), Some(b"one.key".to_vec()));
        assert_eq!(text("/.well-known/acme-challenge/two"), Some(b"two.key".to_vec()));
        for other in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/three", "/one", "/"] {
            assert_eq!(text(other), None, "{other}");
        }
        drop(one);
        assert_eq!(text("/.well-known/acme-challenge/one"), None);
        assert_eq!(text("/.well-known/acme-challenge/two"), Some(b"two.key".to_vec()));
        drop(two);
        assert!(challenges.files.load().is_empty() && challenges.visits().is_none());
    }
}
