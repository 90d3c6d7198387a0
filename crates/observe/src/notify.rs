//! Notices: chosen events posted to webhooks, each at least once. A cursor file per webhook says how far it got, so a
//! restart repeats at most one notice and loses none. Bounded by the journal: a receiver that is away longer than that
//! misses the oldest, and an event says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use model::config::{Notify, NotifyKind};
use model::{Event, EventKind};

use crate::journal::{Entry, Journal};

/// One delivery may take this long.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries: doubled from here ...
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// ... up to here.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Tries of one notice before it is given up, some ten minutes.
const MAX_TRIES: u32 = 25;

/// The notice that an event is, if it is one.
pub fn kind_of(event: EventKind) -> Option<NotifyKind> {
    match event {
        EventKind::PrimaryLost => Some(NotifyKind::PrimaryLost),
        EventKind::CrashLoop => Some(NotifyKind::CrashLoop),
        EventKind::NoReadyInstance => Some(NotifyKind::NoReadyInstance),
        _ => None,
    }
}

/// Running deliveries; dropping it stops them.
pub struct Notifier {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Notifier {
    /// Starts a thread for each webhook.
    pub fn start(webhooks: &[Notify], journal: &Journal, directory: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start_one = |webhook: &Notify| {
            let delivery = Delivery {
                agent: ureq::Agent::config_builder().timeout_global(Some(DELIVERY_TIMEOUT)).build().into(),
                cursor: directory.join(format!("notify-{:08x}.cursor", name_hash(&webhook.webhook))),
                webhook: webhook.clone(),
                journal: journal.clone(),
                stop: Arc::clone(&stop),
            };
            std::thread::Builder::new().name("notify".into()).spawn(move || delivery.run())
        };
        let threads = webhooks.iter().filter_map(|webhook| start_one(webhook).ok()).collect();
        Self { stop, threads }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Detached: a delivery under way may take its timeout, and its cursor makes an interrupted one harmless.
        self.threads.clear();
    }
}

struct Delivery {
    agent: ureq::Agent,
    webhook: Notify,
    cursor: PathBuf,
    journal: Journal,
    stop: Arc<AtomicBool>,
}

impl Delivery {
    fn run(self) {
        // A webhook that is new hears of what happens from now on, not of history.
        let newest = || self.journal.newest(1).last().map_or(0, |entry| entry.seq);
        let read = std::fs::read_to_string(&self.cursor).ok().and_then(|text| text.trim().parse().ok());
        let mut done = read.unwrap_or_else(newest);
        self.save(done);
        while !self.stopped() {
            self.journal.wait_after(done, Duration::from_millis(500));
            let entries = self.journal.after(done, 64);
            if let Some(first) = entries.first()
                && first.seq > done + 1
            {
                self.give_up(
                    &first.event,
                    &format!(
                        "{} events were dropped from the journal before they could be looked at",
                        first.seq - done - 1
                    ),
                );
            }
            for entry in entries {
                let wanted = kind_of(entry.event.kind).is_some_and(|kind| self.webhook.on.contains(&kind));
                if wanted && !self.deliver(&entry) {
                    return;
                }
                done = entry.seq;
                if wanted {
                    self.save(done);
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tries until the receiver answers 2xx; false when stopped before that.
    fn deliver(&self, entry: &Entry) -> bool {
        let kind = kind_of(entry.event.kind).map_or("", NotifyKind::as_str);
        let mut body = serde_json::to_value(&entry.event).expect("an event always becomes JSON");
        body["notice"] = kind.into();
        let body = body.to_string();
        let mut pause = FIRST_PAUSE;
        let mut problem = String::new();
        for attempt in 0..MAX_TRIES {
            if attempt > 0 {
                if !self.sleep(pause) {
                    return false;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            let posted =
                self.agent.post(&self.webhook.webhook).header("content-type", "application/json").send(body.as_bytes());
            match posted {
                Ok(_) => return true,
                Err(error) => problem = error.to_string(),
            }
        }
        self.give_up(&entry.event, &format!("not delivered after {MAX_TRIES} tries: {problem}"));
        true
    }

    fn sleep(&self, pause: Duration) -> bool {
        let mut left = pause;
        while !left.is_zero() {
            if self.stopped() {
                return false;
            }
            let slice = left.min(Duration::from_millis(250));
            std::thread::sleep(slice);
            left -= slice;
        }
        true
    }

    fn give_up(&self, event: &Event, why: &str) {
        // The URL may carry a secret: only its host is named.
        let host = self.webhook.webhook.split('/').nth(2).unwrap_or_default().rsplit('@').next().unwrap_or_default();
        let message = format!("notice {} to {host}: {why}", event.kind.name());
        let failed = Event { at: crate::now(), kind: EventKind::NotifyFailed, message, ..event.clone() };
        tracing::error!(event = "notify-failed", "{}", failed.message);
        self.journal.append(failed, None);
    }

    fn save(&self, done: u64) {
        if let Err(error) = std::fs::write(&self.cursor, done.to_string()) {
            tracing::warn!(path = %self.cursor.display(), %error, "a notice may be repeated after a restart");
        }
    }
}

fn name_hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
