//! Certificates that are ordered (ACME, RFC 8555): one task that owns them all, orders what is missing, renews what ends,
//! and waits longer after each failure. What it gets is kept first and shown then; listeners take it over as they take
//! over changed files (`entrances.rs`). Deliberately absent: the listeners, and sharing certificates among nodes.

mod http;
mod kept;
mod order;
mod schedule;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway::Challenges;
use gateway::tls::Certificate;
use model::config::{AcmeCertificate, Config, Listen};
use tokio::sync::mpsc;

use kept::Kept;
use order::{Authority, Failure};

pub use crate::entrances::now_unix;

/// The clock may be set while the task sleeps: it looks at least this often.
const LOOK: Duration = Duration::from_secs(60);
/// How often an authority is asked for advice (RFC 9773), whatever it says ...
const ADVICE_SECONDS: std::ops::RangeInclusive<i64> = 3600..=86_400;
/// ... and when it gives none.
const ADVICE_AGAIN_SECONDS: i64 = 6 * 3600;
/// News that may wait for the listeners; more make the task wait.
const NEWS: usize = 16;

/// A certificate that is ordered, as the task and the listeners share it.
#[derive(Debug)]
pub struct Ordered {
    /// The names it is for.
    pub domains: Vec<String>,
    /// What it is called where a file would have its path.
    pub name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    certificate: Option<Certificate>,
    /// Grows with each certificate.
    version: u64,
    problem: Option<String>,
    /// When it is renewed, or tried again.
    next: i64,
}

/// Something the listeners should know at once.
#[derive(Debug)]
pub enum News {
    /// There is a new certificate.
    Issued,
    /// There is none, and why.
    Failed(String),
}

impl Ordered {
    fn new(domains: Vec<String>, certificate: Option<Certificate>) -> Self {
        let name = format!("acme:{}", domains.join(","));
        let version = u64::from(certificate.is_some());
        Self { domains, name, state: Mutex::new(State { certificate, version, ..State::default() }) }
    }

    /// What there is, and a number that grows with each.
    pub fn certificate(&self) -> (Option<Certificate>, u64) {
        let state = self.lock();
        (state.certificate.clone(), state.version)
    }

    /// Why the last order failed, if it did, and when it is tried again or renewed.
    pub fn outlook(&self) -> (Option<String>, i64) {
        let state = self.lock();
        (state.problem.clone(), state.next)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task, before it is started.
pub struct Acme {
    worker: Worker,
    all: Vec<Task>,
}

/// Whom everything is ordered from, and who hears of it.
struct Worker {
    authority: Authority,
    renew_before: Option<Duration>,
    news: mpsc::Sender<News>,
}

/// One certificate's way through time.
struct Task {
    ordered: Arc<Ordered>,
    failures: u32,
    /// When the authority is asked for advice.
    ask_at: i64,
    advised: Option<(i64, i64)>,
}

/// Everything that is ordered, for the listeners.
#[derive(Default)]
pub struct Orders {
    all: Vec<Arc<Ordered>>,
    /// What they should know at once.
    pub news: Option<mpsc::Receiver<News>>,
}

impl Orders {
    /// The one for these names.
    pub fn find(&self, written: &AcmeCertificate) -> Option<Arc<Ordered>> {
        let domains = domains(written);
        self.all.iter().find(|ordered| same(&ordered.domains, &domains)).cloned()
    }
}

/// Names in lower case, as they stand in certificates.
fn domains(written: &AcmeCertificate) -> Vec<String> {
    written.domains.iter().map(|domain| domain.to_ascii_lowercase()).collect()
}

fn same(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().all(|domain| other.contains(domain))
}

/// What listeners are to be given, from what was kept, and the task that orders the rest; `None` without `gateway.acme`.
pub fn open(config: &Config, challenges: &Arc<Challenges>) -> (Orders, Option<Acme>) {
    let Some(written) = &config.gateway.acme else { return (Orders::default(), None) };
    let kept = Kept::new(Path::new(&config.node.data_dir), &written.directory);
    let mut all: Vec<Arc<Ordered>> = Vec::new();
    let certificates = config.gateway.listen.iter().filter_map(|Listen(listener)| listener.tls.as_ref());
    for written in certificates.flat_map(|tls| &tls.certificates).filter_map(|certificate| certificate.acme.as_ref()) {
        let domains = domains(written);
        if !all.iter().any(|known| same(&known.domains, &domains)) {
            let certificate = kept.certificate(&domains);
            all.push(Arc::new(Ordered::new(domains, certificate)));
        }
    }
    let authority = Authority {
        written: written.clone(),
        challenge: config.acme_challenge(),
        challenges: Arc::clone(challenges),
        kept,
    };
    let (news, heard) = mpsc::channel(NEWS);
    let worker = Worker { authority, renew_before: written.renew_before, news };
    let tasks = all.iter().map(|ordered| worker.begin(ordered)).collect();
    (Orders { all, news: Some(heard) }, Some(Acme { worker, all: tasks }))
}

impl Acme {
    /// Orders and renews until it is dropped.
    pub async fn run(mut self) {
        loop {
            for task in &mut self.all {
                self.worker.step(task).await;
            }
            let due = self.all.iter().map(Task::due).min().unwrap_or(i64::MAX);
            let pause = Duration::from_secs(u64::try_from(due - now_unix()).unwrap_or(0));
            tokio::time::sleep(pause.clamp(Duration::from_secs(1), LOOK)).await;
        }
    }
}

impl Task {
    /// When there is something to do.
    fn due(&self) -> i64 {
        let state = self.ordered.lock();
        if self.asks(&state) { state.next.min(self.ask_at) } else { state.next }
    }

    /// Advice is for a certificate that is well.
    fn asks(&self, state: &State) -> bool {
        state.certificate.is_some() && self.failures == 0
    }
}

impl Worker {
    fn begin(&self, ordered: &Arc<Ordered>) -> Task {
        let mut state = ordered.lock();
        // Without one it is due at once.
        state.next = state.certificate.as_ref().map_or_else(now_unix, |certificate| self.usual(certificate));
        drop(state);
        Task { ordered: Arc::clone(ordered), failures: 0, ask_at: 0, advised: None }
    }

    fn usual(&self, certificate: &Certificate) -> i64 {
        schedule::renew_at(certificate.begins_unix, certificate.expires_unix, self.renew_before)
    }

    async fn step(&self, task: &mut Task) {
        let now = now_unix();
        let (certificate, next, asks) = {
            let state = task.ordered.lock();
            (state.certificate.clone(), state.next, task.asks(&state))
        };
        match certificate {
            certificate if next <= now => self.order(task, certificate).await,
            Some(certificate) if asks && task.ask_at <= now => self.ask(task, &certificate).await,
            _ => {}
        }
    }

    async fn order(&self, task: &mut Task, before: Option<Certificate>) {
        let ordered = self.authority.order(&task.ordered.domains, before.as_ref()).await;
        let news = match ordered {
            Ok(certificate) => {
                (task.failures, task.ask_at, task.advised) = (0, 0, None);
                let mut state = task.ordered.lock();
                state.next = self.usual(&certificate);
                state.version += 1;
                (state.certificate, state.problem) = (Some(certificate), None);
                News::Issued
            }
            Err(failure) => {
                task.failures = task.failures.saturating_add(1);
                News::Failed(failed(task, failure, before.as_ref()))
            }
        };
        // Ignored: nobody shows certificates any more.
        let _ = self.news.send(news).await;
    }

    /// The authority may want a certificate renewed sooner, as when it has to revoke it.
    async fn ask(&self, task: &mut Task, certificate: &Certificate) {
        let advice = self.authority.advice(certificate).await;
        let again = advice.as_ref().map_or(ADVICE_AGAIN_SECONDS, |(_, again)| {
            let asked = i64::try_from(again.as_secs()).unwrap_or(i64::MAX);
            asked.clamp(*ADVICE_SECONDS.start(), *ADVICE_SECONDS.end())
        });
        task.ask_at = now_unix().saturating_add(again);
        // Drawn once for each window: a new draw with each look would end up at its begin.
        if let Some((window, _)) = advice
            && task.advised != Some(window)
        {
            task.advised = Some(window);
            let usual = self.usual(certificate);
            let (begins, expires) = (certificate.begins_unix, certificate.expires_unix);
            task.ordered.lock().next = schedule::advised(begins, expires, usual, window, chance());
        }
    }
}

/// Notes a failure; what an operator is told.
fn failed(task: &Task, failure: Failure, before: Option<&Certificate>) -> String {
    let now = now_unix();
    let expires = before.map(|certificate| certificate.expires_unix);
    let next = schedule::try_again_at(now, task.failures, expires, failure.asked, chance());
    let at = |unix: i64| observe::at_unix_ms(unix.saturating_mul(1000));
    let meanwhile = match expires {
        None => "connections that ask for it are closed meanwhile".to_owned(),
        Some(expires) if expires <= now => format!("the one in force ended on {}: clients refuse it", at(expires)),
        Some(expires) => format!("the one in force lasts until {}", at(expires)),
    };
    let name = &task.ordered.name;
    let message = format!("{name} was not issued: {}; tried again at {}, {meanwhile}", failure.message, at(next));
    let mut state = task.ordered.lock();
    (state.problem, state.next) = (Some(failure.message), next);
    message
}

fn chance() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}
