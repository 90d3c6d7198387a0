//! The gateway's listeners as the file describes them: certificates kept current, and told before they end.
//! Certificate files are looked at every ten seconds; what has changed is for connections that come later. A file that
//! cannot be used leaves what is in force. Deliberately absent: handshakes (`gateway::tls`), reading files (`files.rs`).

mod listener;

use std::sync::Arc;
use std::time::Duration;

use api::view::CertificateView;
use gateway::Manner;
use model::Config;
use model::config::Listen;
use tokio::sync::mpsc;

use crate::acme::{News, Orders};
use crate::input::Input;
use listener::Watched;
pub use listener::now_unix;

/// How often certificate files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Days left at which an expiry is told; once each.
const TOLD_AT_DAYS: [i64; 5] = [30, 14, 7, 3, 1];

/// Something to tell about certificates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Changed files are in force.
    Reloaded(String),
    /// A certificate that was ordered is in force.
    Issued(String),
    /// One could not be ordered.
    NotIssued(String),
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
    orders: Orders,
}

impl Entrances {
    /// Reads everything the listeners need. What cannot be used was refused when the file was read; in a node process
    /// that takes over from one that died, such a certificate is done without until it is mended, and a listener that has
    /// none serves nobody meanwhile.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn open(config: &Config, orders: Orders) -> Result<Self, String> {
        let (mut manners, mut watched) = (Vec::new(), Vec::new());
        for Listen(written) in &config.gateway.listen {
            let opened = listener::open(written, &orders);
            let (manner, under_tls) = opened.map_err(|error| format!("listener {}: {error}", written.address))?;
            manners.push(manner);
            watched.extend(under_tls);
        }
        Ok(Self { manners, watched, orders })
    }

    /// What `seawall tls` shows.
    pub fn view(&self) -> Vec<CertificateView> {
        self.watched.iter().flat_map(Watched::view).collect()
    }

    /// Looks at the files again and again until the node ends; at once when a certificate was ordered, or was not.
    pub async fn keep_current(mut self, inputs: mpsc::Sender<Input>) {
        let (mut told, mut failed) = (Vec::new(), None);
        // A problem found at the start has not been told yet.
        self.watched.iter_mut().for_each(Watched::forget_problems);
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let notices = self.look(&mut told);
                (self, told, notices)
            });
            let Ok((entrances, still_told, mut notices)) = looked.await else { return };
            (self, told) = (entrances, still_told);
            notices.extend(failed.take().map(Notice::NotIssued));
            if inputs.send(Input::Certificates { shown: self.view(), notices }).await.is_err() {
                return;
            }
            match tokio::time::timeout(LOOK, self.news()).await {
                Ok(News::Failed(message)) => failed = Some(message),
                Ok(News::Issued) | Err(_) => {}
            }
        }
    }

    /// What is new of orders; waits for ever where nothing is ordered.
    async fn news(&mut self) -> News {
        match &mut self.orders.news {
            None => std::future::pending().await,
            Some(news) => match news.recv().await {
                Some(news) => news,
                None => std::future::pending().await,
            },
        }
    }

    fn look(&mut self, told: &mut Vec<(String, i64)>) -> Vec<Notice> {
        let mut notices: Vec<Notice> = self.watched.iter_mut().flat_map(Watched::look).collect();
        let now = now_unix();
        let mut due = Vec::new();
        for watched in &self.watched {
            for shown in &watched.shown {
                let Some(certificate) = shown.certificate() else { continue };
                let left = (certificate.expires_unix - now).div_euclid(86_400);
                let Some(step) = TOLD_AT_DAYS.iter().rev().copied().find(|days| left < *days) else { continue };
                let step = if left < 0 { -1 } else { step };
                // One that is renewed by itself is told of only when that has not worked.
                let Some(cure) = shown.cure() else { continue };
                let key = (format!("{} {}", shown.name(), certificate.expires_unix), step);
                if !told.contains(&key) {
                    notices.push(Notice::Expiring(expiry(shown.name(), &watched.address, left, cure)));
                }
                due.push(key);
            }
        }
        *told = due;
        notices
    }
}

fn expiry(file: &str, address: &str, days_left: i64, cure: &str) -> String {
    let when = match days_left {
        ..0 => "has expired: clients refuse it".to_owned(),
        0 => "expires within a day".to_owned(),
        days => format!("expires in {days} days"),
    };
    format!("the certificate in {file} ({address}) {when}; {cure}")
}
