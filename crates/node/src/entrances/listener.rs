//! A listener under TLS: what it shows to clients now, and what came of the last look at its files.
//! Each certificate stands for itself: one that cannot be used holds back none of the others, and keeps what it had.

use std::sync::Arc;
use std::time::SystemTime;

use api::view::CertificateView;
use arc_swap::ArcSwapOption;
use gateway::tls::{Certificate, ClientAuth, MinVersion, ServerTls, Tickets, TlsError};
use gateway::{Manner, Protocols};
use model::config::{self, ClientAuthMode, HttpVersion, Listener, ListenerCertificate};

use super::{LOOK, Notice};
use crate::acme::{Ordered, Orders};
use crate::files::{self, Pair};

/// A listener under TLS.
pub struct Watched {
    /// Its address, as configured.
    pub address: String,
    /// Its certificates, in the file's order.
    pub shown: Vec<Shown>,
    authorities: Option<Authorities>,
    min_version: MinVersion,
    tickets: Tickets,
    manner: Arc<Manner>,
}

/// One certificate of a listener.
pub struct Shown {
    source: Source,
    /// Of what was taken over, if it was ordered.
    version: u64,
    certificate: Option<Certificate>,
    problem: Option<String>,
}

/// Where a certificate comes from.
enum Source {
    Files {
        cert_file: String,
        key_file: String,
        /// What both held when they were taken over.
        contents: Pair,
    },
    Ordered(Arc<Ordered>),
}

/// Who signs clients' certificates.
struct Authorities {
    written: config::ClientAuth,
    contents: Option<Vec<u8>>,
    problem: Option<String>,
}

/// What a look found.
enum Found {
    Same,
    New,
    /// What is there cannot be used.
    Bad(String),
}

/// The manner of a listener, and what keeps it current if it is under TLS.
///
/// # Errors
/// The system has no random numbers.
pub fn open(listener: &Listener, orders: &Orders) -> Result<(Arc<Manner>, Option<Watched>), TlsError> {
    let tcp = listener.tcp.as_ref().map(|tcp| tcp.service.clone());
    let protocols = protocols(&listener.protocols);
    let manner = Manner { tls: None, proxy_protocol: listener.proxy_protocol, protocols, tcp };
    let Some(tls) = &listener.tls else { return Ok((Arc::new(manner), None)) };
    let manner = Arc::new(Manner { tls: Some(ArcSwapOption::empty()), ..manner });
    let mut watched = Watched {
        address: listener.address.clone(),
        shown: tls.certificates.iter().filter_map(|written| Shown::new(written, orders)).collect(),
        authorities: tls.client_auth.clone().map(Authorities::new),
        min_version: match tls.min_version {
            config::MinVersion::Tls12 => MinVersion::Tls12,
            config::MinVersion::Tls13 => MinVersion::Tls13,
        },
        tickets: Tickets::new()?,
        manner: Arc::clone(&manner),
    };
    watched.look();
    Ok((manner, Some(watched)))
}

fn protocols(spoken: &[HttpVersion]) -> Protocols {
    match (spoken.contains(&HttpVersion::Http1), spoken.contains(&HttpVersion::Http2)) {
        (true, false) => Protocols::Http1,
        (false, true) => Protocols::Http2,
        _ => Protocols::Both,
    }
}

impl Watched {
    /// Takes over what has changed, or says why not.
    pub fn look(&mut self) -> Vec<Notice> {
        let now = now_unix();
        let (address, mut notices, mut changed) = (&self.address, Vec::new(), false);
        for shown in &mut self.shown {
            let found = shown.look(now);
            changed |= matches!(found, Found::New);
            let (what, has) = (shown.name().to_owned(), shown.certificate.is_some());
            match (found, &shown.source) {
                (Found::New, Source::Ordered(_)) => notices.push(Notice::Issued(issued(shown, address))),
                (found, _) => notices.extend(notice(found, &mut shown.problem, &what, address, has)),
            }
        }
        if let Some(authorities) = &mut self.authorities {
            let found = authorities.look();
            changed |= matches!(found, Found::New);
            let (what, has) = (&authorities.written.ca_file, authorities.contents.is_some());
            notices.extend(notice(found, &mut authorities.problem, what, address, has));
        }
        if changed && let Err(problem) = self.offer() {
            notices.push(Notice::Refused(format!("{}: {problem}", self.address)));
        }
        notices
    }

    /// Has everything that is wrong told again.
    pub fn forget_problems(&mut self) {
        self.shown.iter_mut().for_each(|shown| shown.problem = None);
        self.authorities.iter_mut().for_each(|authorities| authorities.problem = None);
    }

    /// Puts in force what there is, for connections that come later.
    fn offer(&self) -> Result<(), TlsError> {
        let auth = match &self.authorities {
            None => ClientAuth::None,
            Some(authorities) => match authorities.client_auth() {
                Some(auth) => auth,
                // Nobody is let in without being asked who it is.
                None => return Ok(()),
            },
        };
        let certificates: Vec<Certificate> = self.shown.iter().filter_map(|shown| shown.certificate.clone()).collect();
        if certificates.is_empty() {
            return Ok(());
        }
        let awaited: Vec<String> = self.shown.iter().flat_map(|shown| shown.awaited().to_vec()).collect();
        let offered = ServerTls::new(&certificates, &awaited, self.min_version, &auth, &self.tickets)?;
        let offered = offered.speaking(self.manner.protocols);
        if let Some(tls) = &self.manner.tls {
            tls.store(Some(Arc::new(offered)));
        }
        Ok(())
    }

    /// What `seawall tls` shows of it.
    pub fn view(&self) -> impl Iterator<Item = CertificateView> {
        let of_authorities = self.authorities.as_ref().and_then(|authorities| authorities.problem.clone());
        self.shown.iter().map(move |shown| CertificateView {
            listener: self.address.clone(),
            ..with(shown.view(), of_authorities.as_ref())
        })
    }
}

fn with(view: CertificateView, problem: Option<&String>) -> CertificateView {
    CertificateView { problem: view.problem.or(problem.cloned()), ..view }
}

fn issued(shown: &Shown, address: &str) -> String {
    let until = shown.certificate().map(|certificate| day(certificate.expires_unix)).unwrap_or_default();
    format!("{} is in force on {address}, until {until}; it is renewed by itself", shown.name())
}

fn notice(found: Found, known: &mut Option<String>, what: &str, address: &str, has: bool) -> Option<Notice> {
    match found {
        Found::Same => {
            *known = None;
            None
        }
        Found::New => {
            *known = None;
            Some(Notice::Reloaded(format!("{what} has changed and is in force on {address}")))
        }
        Found::Bad(problem) => {
            if known.replace(problem.clone()).as_ref() == Some(&problem) {
                return None;
            }
            let meanwhile = if has { "goes on with what it has" } else { "does without it" };
            Some(Notice::Refused(format!(
                "{problem}; {address} {meanwhile}: mend the file, it is looked at every {} s",
                LOOK.as_secs()
            )))
        }
    }
}

impl Shown {
    fn new(written: &ListenerCertificate, orders: &Orders) -> Option<Self> {
        let ordered = || written.acme.as_ref().and_then(|acme| orders.find(acme)).map(Source::Ordered);
        let source = match (&written.cert_file, &written.key_file) {
            (Some(cert_file), Some(key_file)) => {
                Source::Files { cert_file: cert_file.clone(), key_file: key_file.clone(), contents: Pair::default() }
            }
            _ => ordered()?,
        };
        Some(Self { source, version: 0, certificate: None, problem: None })
    }

    fn look(&mut self, now: i64) -> Found {
        let old = self.certificate.as_ref();
        match &mut self.source {
            Source::Ordered(ordered) => {
                let (certificate, version) = ordered.certificate();
                if version == self.version {
                    return Found::Same;
                }
                (self.certificate, self.version) = (certificate, version);
            }
            Source::Files { cert_file, key_file, contents } => {
                let read = match files::read_pair(cert_file, key_file) {
                    Err(unusable) => return Found::Bad(unusable.problem),
                    Ok(read) if read == *contents => return Found::Same,
                    Ok(read) => read,
                };
                let new = match files::certificate(cert_file, key_file, &read) {
                    Err(unusable) => return Found::Bad(unusable.problem),
                    Ok(new) => new,
                };
                if let Some(old) = old.filter(|old| new.expires_unix <= now && old.expires_unix > now) {
                    let (ended, lasts) = (day(new.expires_unix), day(old.expires_unix));
                    let problem = format!("{cert_file} ended on {ended}, and what is in force lasts until {lasts}");
                    return Found::Bad(problem);
                }
                (self.certificate, *contents) = (Some(new), read);
            }
        }
        Found::New
    }

    /// What it is called in messages and metrics.
    pub fn name(&self) -> &str {
        match &self.source {
            Source::Files { cert_file, .. } => cert_file,
            Source::Ordered(ordered) => &ordered.name,
        }
    }

    /// What to do when it is about to end, if somebody must do something.
    pub fn cure(&self) -> Option<&'static str> {
        match &self.source {
            Source::Files { .. } => Some("put a new one in its place, it is taken over by itself"),
            Source::Ordered(ordered) => {
                ordered.outlook().0.map(|_| "it could not be renewed so far, `seawall tls` says why and what is next")
            }
        }
    }

    /// What is in force.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// Names for which there will be one.
    fn awaited(&self) -> &[String] {
        match &self.source {
            Source::Ordered(ordered) if self.certificate.is_none() => &ordered.domains,
            _ => &[],
        }
    }

    fn view(&self) -> CertificateView {
        let at = |unix: i64| observe::at_unix_ms(unix.saturating_mul(1000));
        let (problem, next) = match &self.source {
            Source::Files { .. } => (self.problem.clone(), None),
            Source::Ordered(ordered) => {
                let (problem, next) = ordered.outlook();
                (problem, Some(at(next)))
            }
        };
        let empty = CertificateView { file: self.name().to_owned(), problem, next, ..CertificateView::default() };
        let Some(certificate) = self.certificate() else { return empty };
        CertificateView {
            names: certificate.names.clone(),
            issuer: certificate.issuer.clone(),
            expires: at(certificate.expires_unix),
            expires_unix: certificate.expires_unix,
            ..empty
        }
    }
}

impl Authorities {
    fn new(written: config::ClientAuth) -> Self {
        Self { written, contents: None, problem: None }
    }

    fn look(&mut self) -> Found {
        match files::authorities(&self.written.ca_file) {
            Err(problem) => Found::Bad(problem),
            Ok(contents) if self.contents.as_ref() == Some(&contents) => Found::Same,
            Ok(contents) => {
                self.contents = Some(contents);
                Found::New
            }
        }
    }

    fn client_auth(&self) -> Option<ClientAuth> {
        let pem = self.contents.clone()?;
        Some(match self.written.mode {
            ClientAuthMode::Optional => ClientAuth::Optional(pem),
            ClientAuthMode::Required => ClientAuth::Required(pem),
        })
    }
}

/// Seconds since the Unix epoch.
pub fn now_unix() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs().cast_signed())
}

fn day(unix: i64) -> String {
    let text = observe::at_unix_ms(unix.saturating_mul(1000));
    text.get(..10).unwrap_or(&text).to_owned()
}
