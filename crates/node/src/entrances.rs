//! The gateway's listeners as the file describes them: certificates read and kept current, instances' TLS.
//! Certificate files are looked at every ten seconds; what has changed is for connections that come later. A file that
//! cannot be used leaves what is in force. Deliberately absent: handshakes (`gateway::tls`).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::view::CertificateView;
use arc_swap::ArcSwapOption;
use gateway::tls::{Certificate, ClientAuth, ClientTls, MinVersion, ServerTls, Tickets, Trust};
use gateway::{ErrorPage, Manner, Upstream};
use model::config::{self, ClientAuthMode, Listener, ListenerTls};
use model::{Config, Service as Definition};
use tokio::sync::mpsc;

use crate::input::Input;

/// How often certificate files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Days left at which an expiry is told; once each.
const TOLD_AT_DAYS: [i64; 5] = [30, 14, 7, 3, 1];

/// A listener under TLS and what its files held when last read.
struct Watched {
    address: String,
    tls: ListenerTls,
    tickets: Tickets,
    manner: Arc<Manner>,
    contents: Vec<Vec<u8>>,
    certificates: Vec<Certificate>,
    problem: Option<String>,
}

/// Something to tell about certificates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Changed files are in force.
    Reloaded(String),
    /// Changed files cannot be used.
    Refused(String),
    /// One ends soon, or has ended.
    Expiring(String),
}

/// The manner of each listener, in the file's order, and whoever keeps their certificates current.
pub struct Entrances {
    /// One for each address.
    pub manners: Vec<Arc<Manner>>,
    watched: Vec<Watched>,
}

impl Entrances {
    /// Reads everything the listeners need.
    ///
    /// # Errors
    /// Which file of which listener cannot be used, and why.
    pub fn open(config: &Config) -> Result<Self, String> {
        let entrances = Self::open_anyway(config)?;
        match entrances.watched.iter().find_map(|watched| Some((watched, watched.problem.as_ref()?))) {
            Some((watched, problem)) => Err(format!("listener {}: {problem}", watched.address)),
            None => Ok(entrances),
        }
    }

    /// The same for a node process that takes over from one that died: a listener whose files cannot be used any more
    /// serves nobody until they can, and everything else goes on.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn open_anyway(config: &Config) -> Result<Self, String> {
        let (mut manners, mut watched) = (Vec::new(), Vec::new());
        for config::Listen(listener) in &config.gateway.listen {
            let (manner, under_tls) = open(listener)?;
            manners.push(manner);
            watched.extend(under_tls);
        }
        Ok(Self { manners, watched })
    }

    /// What `seawall tls` shows.
    pub fn view(&self) -> Vec<CertificateView> {
        self.watched.iter().flat_map(Watched::view).collect()
    }

    /// Looks at the files again and again until the node ends.
    pub async fn keep_current(mut self, inputs: mpsc::Sender<Input>) {
        let mut told = Vec::new();
        // A problem found at the start has not been told yet.
        self.watched.iter_mut().for_each(|watched| watched.problem = None);
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let notices = self.look(&mut told);
                (self, told, notices)
            });
            let Ok((entrances, still_told, notices)) = looked.await else { return };
            (self, told) = (entrances, still_told);
            if inputs.send(Input::Certificates { shown: self.view(), notices }).await.is_err() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&mut self, told: &mut Vec<(String, i64)>) -> Vec<Notice> {
        let mut notices: Vec<Notice> = self.watched.iter_mut().filter_map(Watched::look).collect();
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs().cast_signed());
        let mut due = Vec::new();
        for watched in &self.watched {
            for (files, certificate) in watched.tls.certificates.iter().zip(&watched.certificates) {
                let left = (certificate.expires_unix - now).div_euclid(86_400);
                let Some(step) = TOLD_AT_DAYS.iter().rev().copied().chain([i64::MAX]).find(|days| left < *days) else {
                    continue;
                };
                let step = if left < 0 { -1 } else { step };
                if step == i64::MAX {
                    continue;
                }
                let key = (format!("{} {}", files.cert_file, certificate.expires_unix), step);
                if !told.contains(&key) {
                    notices.push(Notice::Expiring(expiry(&files.cert_file, &watched.address, left)));
                }
                due.push(key);
            }
        }
        *told = due;
        notices
    }
}

fn expiry(file: &str, address: &str, days_left: i64) -> String {
    let when = match days_left {
        ..0 => "has expired: clients refuse it".to_owned(),
        0 => "expires within a day".to_owned(),
        days => format!("expires in {days} days"),
    };
    format!("the certificate in {file} ({address}) {when}; put a new one in its place, it is taken over by itself")
}

fn open(listener: &Listener) -> Result<(Arc<Manner>, Option<Watched>), String> {
    let tcp = listener.tcp.as_ref().map(|tcp| tcp.service.clone());
    let manner = Manner { tls: None, proxy_protocol: listener.proxy_protocol, tcp };
    let Some(tls) = &listener.tls else { return Ok((Arc::new(manner), None)) };
    let tickets = Tickets::new().map_err(|error| format!("listener {}: {error}", listener.address))?;
    let manner = Arc::new(Manner { tls: Some(ArcSwapOption::empty()), ..manner });
    let mut watched = Watched {
        address: listener.address.clone(),
        tls: tls.clone(),
        tickets,
        manner: Arc::clone(&manner),
        contents: Vec::new(),
        certificates: Vec::new(),
        problem: None,
    };
    watched.look();
    Ok((manner, Some(watched)))
}

/// Every file of the listener: chain and key of each certificate, then the authorities.
fn contents(tls: &ListenerTls) -> Result<Vec<Vec<u8>>, String> {
    let pairs = tls.certificates.iter().flat_map(|files| [&files.cert_file, &files.key_file]);
    pairs.chain(tls.client_auth.iter().map(|auth| &auth.ca_file)).map(read).collect()
}

fn offer(tls: &ListenerTls, contents: &[Vec<u8>], tickets: &Tickets) -> Result<(ServerTls, Vec<Certificate>), String> {
    let certificates = tls.certificates.iter().zip(contents.chunks(2)).map(|(files, pair)| {
        Certificate::read(&pair[0], &pair[1])
            .map_err(|error| format!("{} with {}: {error}", files.cert_file, files.key_file))
    });
    let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
    let auth = match (&tls.client_auth, contents.last()) {
        (Some(auth), Some(authorities)) => match auth.mode {
            ClientAuthMode::Optional => ClientAuth::Optional(authorities.clone()),
            ClientAuthMode::Required => ClientAuth::Required(authorities.clone()),
        },
        _ => ClientAuth::None,
    };
    let min_version = match tls.min_version {
        config::MinVersion::Tls12 => MinVersion::Tls12,
        config::MinVersion::Tls13 => MinVersion::Tls13,
    };
    let offered =
        ServerTls::new(&certificates, min_version, &auth, tickets).map_err(|error| match &tls.client_auth {
            Some(auth) => format!("{}: {error}", auth.ca_file),
            None => error.to_string(),
        })?;
    Ok((offered, certificates))
}

impl Watched {
    /// Takes changed files over, or says why not.
    fn look(&mut self) -> Option<Notice> {
        let read = contents(&self.tls);
        if read.as_ref().is_ok_and(|contents| *contents == self.contents) {
            self.problem = None;
            return None;
        }
        let made = read.and_then(|contents| Ok((offer(&self.tls, &contents, &self.tickets)?, contents)));
        match made {
            Ok(((offered, certificates), contents)) => {
                if let Some(tls) = &self.manner.tls {
                    tls.store(Some(Arc::new(offered)));
                }
                (self.certificates, self.contents, self.problem) = (certificates, contents, None);
                Some(Notice::Reloaded(format!("changed certificate files of {} are in force", self.address)))
            }
            Err(problem) => {
                let meanwhile = if self.certificates.is_empty() { "serves nobody" } else { "goes on with what it has" };
                let message = format!(
                    "{problem}; {} {meanwhile}: mend the file, it is looked at every {} s",
                    self.address,
                    LOOK.as_secs()
                );
                let known = self.problem.replace(problem.clone()) == Some(problem);
                (!known).then_some(Notice::Refused(message))
            }
        }
    }

    fn view(&self) -> impl Iterator<Item = CertificateView> {
        let shown = |(index, files): (usize, &config::CertificateFiles)| {
            let empty = CertificateView {
                listener: self.address.clone(),
                file: files.cert_file.clone(),
                problem: self.problem.clone(),
                ..CertificateView::default()
            };
            let Some(certificate) = self.certificates.get(index) else { return empty };
            CertificateView {
                names: certificate.names.clone(),
                issuer: certificate.issuer.clone(),
                expires: observe::at_unix_ms(certificate.expires_unix.saturating_mul(1000)),
                expires_unix: certificate.expires_unix,
                ..empty
            }
        };
        self.tls.certificates.iter().enumerate().map(shown)
    }
}

/// The pages for the gateway's own answers, one status before a class.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn error_pages(written: &config::GatewayConfig) -> Result<Vec<ErrorPage>, String> {
    let page = |(key, path): (&String, &String)| {
        let statuses =
            config::validate::error_statuses(key).ok_or_else(|| format!("`{key}` is no status of an error"))?;
        Ok(ErrorPage { statuses, content_type: "text/html; charset=utf-8".into(), body: read(path)?.into() })
    };
    let mut pages = written.error_pages.iter().map(page).collect::<Result<Vec<_>, String>>()?;
    pages.sort_by_key(|page| page.statuses.end() - page.statuses.start());
    Ok(pages)
}

/// How a service's instances are spoken to.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn upstream(definition: &Definition) -> Result<Upstream, String> {
    let tls = match &definition.tls {
        None => None,
        Some(written) => {
            let trust = match &written.ca_file {
                Some(path) => Trust::Authorities(read(path)?),
                None => Trust::Anybody,
            };
            let identity = match (&written.cert_file, &written.key_file) {
                (Some(chain), Some(key)) => Some((read(chain)?, read(key)?)),
                _ => None,
            };
            let identity = identity.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice()));
            let files = [&written.ca_file, &written.cert_file].into_iter().flatten().cloned().collect::<Vec<_>>();
            let tls = ClientTls::new(&trust, written.server_name.as_deref(), identity)
                .map_err(|error| format!("{}: {error}", files.join(", ")))?;
            Some(tls)
        }
    };
    let proxy_protocol = definition.send_proxy_protocol.map(|version| match version {
        config::ProxyVersion::V1 => gateway::ProxyVersion::V1,
        config::ProxyVersion::V2 => gateway::ProxyVersion::V2,
    });
    Ok(Upstream { http2: definition.http2, tls, proxy_protocol })
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, String> {
    /// No certificate file is that large.
    const MOST: u64 = 1 << 20;
    let path = path.as_ref();
    let cannot = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    if std::fs::metadata(path).map_err(cannot)?.len() > MOST {
        return Err(format!("{} is larger than 1 MiB: that is more than is read", path.display()));
    }
    std::fs::read(path).map_err(cannot)
}
