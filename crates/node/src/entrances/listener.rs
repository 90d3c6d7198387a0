//! A listener under TLS: what it shows to clients now, and what came of the last look at its files.
//! Each certificate stands for itself: one that cannot be used holds back none of the others, and keeps what it had.

use std::sync::Arc;
use std::time::SystemTime;

use api::view::CertificateView;
use arc_swap::ArcSwapOption;
use gateway::Manner;
use gateway::tls::{Certificate, ClientAuth, MinVersion, ServerTls, Tickets, TlsError};
use model::config::{self, CertificateFiles, ClientAuthMode, Listener};

use super::{LOOK, Notice};
use crate::files;

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
    files: CertificateFiles,
    /// What chain and key held when they were taken over.
    contents: files::Pair,
    certificate: Option<Certificate>,
    problem: Option<String>,
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
pub fn open(listener: &Listener) -> Result<(Arc<Manner>, Option<Watched>), TlsError> {
    let tcp = listener.tcp.as_ref().map(|tcp| tcp.service.clone());
    let manner = Manner { tls: None, proxy_protocol: listener.proxy_protocol, tcp };
    let Some(tls) = &listener.tls else { return Ok((Arc::new(manner), None)) };
    let manner = Arc::new(Manner { tls: Some(ArcSwapOption::empty()), ..manner });
    let mut watched = Watched {
        address: listener.address.clone(),
        shown: tls.certificates.iter().cloned().map(Shown::new).collect(),
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

impl Watched {
    /// Takes over what has changed, or says why not.
    pub fn look(&mut self) -> Vec<Notice> {
        let now = now_unix();
        let (address, mut notices, mut changed) = (&self.address, Vec::new(), false);
        for shown in &mut self.shown {
            let found = shown.look(now);
            changed |= matches!(found, Found::New);
            let (what, has) = (&shown.files.cert_file, shown.certificate.is_some());
            notices.extend(notice(found, &mut shown.problem, what, address, has));
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
        let offered = ServerTls::new(&certificates, &[], self.min_version, &auth, &self.tickets)?;
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
            problem: shown.problem.clone().or(of_authorities.clone()),
            ..shown.view()
        })
    }
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
    fn new(files: CertificateFiles) -> Self {
        Self { files, contents: Default::default(), certificate: None, problem: None }
    }

    fn look(&mut self, now: i64) -> Found {
        let (cert_file, key_file) = (&self.files.cert_file, &self.files.key_file);
        let contents = match files::read_pair(cert_file, key_file) {
            Err(unusable) => return Found::Bad(unusable.problem),
            Ok(contents) if contents == self.contents => return Found::Same,
            Ok(contents) => contents,
        };
        let new = match files::certificate(cert_file, key_file, &contents) {
            Err(unusable) => return Found::Bad(unusable.problem),
            Ok(new) => new,
        };
        if let Some(old) = &self.certificate
            && new.expires_unix <= now
            && old.expires_unix > now
        {
            let (ended, lasts) = (day(new.expires_unix), day(old.expires_unix));
            return Found::Bad(format!("{cert_file} ended on {ended}, and what is in force lasts until {lasts}"));
        }
        (self.certificate, self.contents) = (Some(new), contents);
        Found::New
    }

    /// What it is called in messages and metrics.
    pub fn name(&self) -> &str {
        &self.files.cert_file
    }

    /// What is in force.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    fn view(&self) -> CertificateView {
        let empty = CertificateView { file: self.name().to_owned(), ..CertificateView::default() };
        let Some(certificate) = self.certificate() else { return empty };
        CertificateView {
            names: certificate.names.clone(),
            issuer: certificate.issuer.clone(),
            expires: observe::at_unix_ms(certificate.expires_unix.saturating_mul(1000)),
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
