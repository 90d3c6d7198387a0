//! This node's own certificate among members, renewed by itself: from two thirds of its life on, whoever has the
//! authority's key is asked for another one, for the same name and key; it is written beside the old one and put in its
//! place, and the transport takes it over without a connection less. What nobody signs is told before it ends.
//! Deliberately absent: certificates that clients see (`entrances.rs`, `acme`).

use std::sync::Arc;
use std::time::Duration;

use api::view::CertificateView;
use data_raft::{CertificateAnswer, CertificateRequest};
use gateway::tls::Certificate;
use model::EventKind;
use rcgen::KeyPair;
use tokio::sync::mpsc;

use super::authority::{self, Authority, NOBODY};
use super::certificates::OwnFiles;
use super::seat::{Seat, WeakSeat};
use crate::entrances::now_unix;
use crate::input::Input;

/// How often the file is looked at, and a renewal is tried again,
const LOOK: Duration = Duration::from_secs(10);
/// and tried again while there is plenty of time.
const CALM_TRIES: i64 = 600;
/// Parts of the life that are left when its end is told: a sixth, a twelfth, a twenty-fourth.
const TOLD_AT: [i64; 3] = [6, 12, 24];

/// What is told of the node's own certificate.
#[derive(Clone, PartialEq, Debug)]
pub struct Told {
    /// What `seawall tls` shows.
    pub shown: Option<CertificateView>,
    /// Something that happened.
    pub event: Option<(EventKind, String)>,
}

/// Where a certificate stands in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Age {
    Young,
    /// Less than a third is left.
    Due,
    /// Less than a sixth is left; grows towards the end.
    Late(usize),
}

fn age(begins: i64, expires: i64, now: i64) -> Age {
    let (life, left) = ((expires - begins).max(1), expires - now);
    if left <= 0 {
        return Age::Late(TOLD_AT.len());
    }
    match TOLD_AT.iter().rposition(|part| left * part < life) {
        Some(step) => Age::Late(step),
        None if left * 3 < life => Age::Due,
        None => Age::Young,
    }
}

/// Keeps it current until the node ends.
pub async fn keep(own: OwnFiles, node: String, store: WeakSeat, inputs: mpsc::Sender<Input>) {
    let mut keeper = Keeper { own, node, store, told: None, tried: None, failures: 0 };
    loop {
        let Some(told) = keeper.look().await else { return };
        if inputs.send(Input::OwnCertificate(told)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

struct Keeper {
    own: OwnFiles,
    node: String,
    store: WeakSeat,
    /// Of which certificate (by its end) the end was told, and at which step.
    told: Option<(i64, usize)>,
    /// When a renewal was last tried.
    tried: Option<i64>,
    /// Without success, one after the other.
    failures: u32,
}

impl Keeper {
    /// One look; nothing when the node has stopped.
    async fn look(&mut self) -> Option<Told> {
        let store = self.store.upgrade()?;
        let now = now_unix();
        let certificate = match self.own.read() {
            Ok(certificate) => certificate,
            // What is in force is the transport's business, and it has said so.
            Err(problem) => return Some(Told { shown: Some(self.unreadable(problem)), event: None }),
        };
        let age = age(certificate.begins_unix, certificate.expires_unix, now);
        let is_eager = matches!(age, Age::Late(_));
        let pause = if is_eager { 0 } else { CALM_TRIES.min((certificate.expires_unix - now) / 10) };
        if age == Age::Young || self.tried.is_some_and(|tried| now - tried < pause) {
            return Some(Told { shown: Some(self.view(&certificate, None)), event: None });
        }
        self.tried = Some(now);
        match self.renew(&store).await {
            Ok(fresh) => {
                (self.told, self.tried, self.failures) = (None, None, 0);
                let until = jiff::Timestamp::from_second(fresh.expires_unix).unwrap_or_default();
                let message = format!(
                    "the certificate of {} among members was renewed: {} is good until {until}, and in force within ten seconds",
                    self.node,
                    self.own.certificate.display()
                );
                let event = Some((EventKind::NodeCertificateRenewed, message));
                Some(Told { shown: Some(self.view(&fresh, None)), event })
            }
            Err(problem) => {
                tracing::debug!(%problem, "the node's certificate was not renewed");
                self.failures += 1;
                let event = self.due_warning(&certificate, age, now, &problem);
                Some(Told { shown: Some(self.view(&certificate, Some(problem))), event })
            }
        }
    }

    async fn renew(&self, store: &Seat) -> Result<Certificate, String> {
        let read = std::fs::read_to_string(&self.own.key);
        let key = read.map_err(|error| format!("{}: {error}", self.own.key.display()))?;
        let key = KeyPair::from_pem(&key).map_err(|error| format!("{}: {error}", self.own.key.display()))?;
        let request = authority::request(&self.node, &key)?;
        let here = Authority::new(&self.own.folder);
        let answer = if here.can_sign() {
            here.sign(&self.node, &request)?
        } else {
            let name = Arc::from(self.node.as_str());
            store.certificate(&CertificateRequest::Renewal { name, request }).await
        };
        let text = match answer {
            CertificateAnswer::Signed { certificate, .. } => certificate,
            CertificateAnswer::Refused(why) => return Err(why),
            CertificateAnswer::Can | CertificateAnswer::Elsewhere => return Err(NOBODY.to_owned()),
        };
        // A certificate that does not fit the key must not replace one that does.
        let fresh = Certificate::read(text.as_bytes(), key.serialize_pem().as_bytes());
        let fresh = fresh.map_err(|error| format!("what was signed cannot be used: {error}"))?;
        let file = &self.own.certificate;
        let written = platform::identity::replace_private(file, text.as_bytes());
        written.map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(fresh)
    }

    /// Once for each step towards the end.
    fn due_warning(
        &mut self,
        certificate: &Certificate,
        age: Age,
        now: i64,
        problem: &str,
    ) -> Option<(EventKind, String)> {
        let Age::Late(step) = age else { return None };
        // A node that has just started may not have found the others yet.
        if self.failures < 2 {
            return None;
        }
        let told = (certificate.expires_unix, step);
        if self.told.is_some_and(|(expires, before)| expires == told.0 && before >= step) {
            return None;
        }
        self.told = Some(told);
        let file = self.own.certificate.display();
        let left = certificate.expires_unix - now;
        let when = match left {
            ..=0 => "has expired: members refuse new connections of this node".to_owned(),
            1..7200 => format!("ends in {} minutes", left / 60),
            7200..172_800 => format!("ends in {} hours", left / 3600),
            _ => format!("ends in {} days", left / 86_400),
        };
        let message =
            format!("{file}, the certificate of {} among members, {when}, and is not renewed: {problem}", self.node);
        Some((EventKind::NodeCertificateExpires, message))
    }

    fn view(&self, certificate: &Certificate, problem: Option<String>) -> CertificateView {
        let renewed = certificate.expires_unix - (certificate.expires_unix - certificate.begins_unix) / 3;
        let time = |unix: i64| jiff::Timestamp::from_second(unix).unwrap_or_default().to_string();
        CertificateView {
            names: vec![self.node.clone()],
            issuer: certificate.issuer.clone(),
            expires: time(certificate.expires_unix),
            expires_unix: certificate.expires_unix,
            problem,
            next: Some(time(renewed.max(now_unix()))),
            ..self.empty()
        }
    }

    fn unreadable(&self, problem: String) -> CertificateView {
        CertificateView { problem: Some(problem), ..self.empty() }
    }

    fn empty(&self) -> CertificateView {
        CertificateView {
            listener: "members".into(),
            file: self.own.certificate.display().to_string(),
            names: Vec::new(),
            issuer: String::new(),
            expires: String::new(),
            expires_unix: 0,
            problem: None,
            next: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Age, age};

    #[test]
    fn a_certificate_is_renewed_in_its_last_third_and_told_of_in_its_last_sixth() {
        let at = |now| age(0, 240, now);
        assert_eq!((at(0), at(160), at(161)), (Age::Young, Age::Young, Age::Due));
        assert_eq!((at(200), at(201), at(221), at(231)), (Age::Due, Age::Late(0), Age::Late(1), Age::Late(2)));
        assert_eq!((at(240), at(1000)), (Age::Late(3), Age::Late(3)));
        assert_eq!(age(5, 5, 4), Age::Young, "one without a life does no harm");
    }
}
