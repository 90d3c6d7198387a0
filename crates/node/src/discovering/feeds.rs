//! Files of what is registered, for programs that read who is there from one: Prometheus' targets, nginx' upstreams. Each is
//! replaced as a whole, and only when what it says has changed; then its reload is run, and again until it has worked.
//! Last link of its own small walk: check -> registry -> here -> the other program. Deliberately absent: what Prometheus'
//! list says, which the API has as well.

mod nginx;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::{Registry, Topic};
use model::EventKind;
use model::config::{ALL, Feeds};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Asked;
use super::routed::Names;
use crate::Input;

/// Changes within this time are written together.
const GATHER: Duration = Duration::from_millis(100);
/// Between two writes, and so between two reloads.
const PAUSE: Duration = Duration::from_secs(1);
/// A reload takes no longer.
const RELOADING: Duration = Duration::from_secs(10);
/// After what failed.
const AGAIN: Duration = Duration::from_secs(5);
/// The registry is read this often though nothing seems to have happened; names that instances have as addresses are
/// looked up then.
const LOOK: Duration = Duration::from_secs(10);

/// A file that the configuration asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feed {
    what: What,
    file: PathBuf,
    /// Program and arguments; empty for none.
    reload: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    Prometheus,
    /// Of these services, or of all.
    Nginx(Option<Vec<String>>),
}

impl Feed {
    /// Those of this configuration.
    pub fn by(written: &Feeds) -> Vec<Self> {
        let targets = written.prometheus.iter().map(|file| Self {
            what: What::Prometheus,
            file: PathBuf::from(&file.path),
            reload: Vec::new(),
        });
        let upstreams = written.nginx.iter().map(|nginx| {
            let services = &nginx.services.0;
            let named = (*services != [ALL]).then(|| services.clone());
            Self { what: What::Nginx(named), file: PathBuf::from(&nginx.file.path), reload: nginx.reload.clone() }
        });
        targets.chain(upstreams).collect()
    }
}

/// What all feeds need.
#[derive(Clone)]
pub struct Shared {
    /// What is registered.
    pub registry: Arc<Registry>,
    /// Who is told what failed.
    pub inputs: mpsc::Sender<Input>,
    /// Where reloads run.
    pub folder: PathBuf,
}

/// Writes what the configuration in force asks for, until the node ends.
pub async fn run(shared: Shared, mut asked: watch::Receiver<Asked>) {
    loop {
        let feeds = asked.borrow_and_update().feeds.clone();
        let mut writing = JoinSet::new();
        for feed in feeds.clone() {
            writing.spawn(Writer { shared: shared.clone(), feed, said: false }.keep());
        }
        while asked.borrow().feeds == feeds {
            if asked.changed().await.is_err() {
                return;
            }
        }
        // One must have ended before another writes the same file.
        writing.shutdown().await;
    }
}

struct Writer {
    shared: Shared,
    feed: Feed,
    /// That it fails has been said.
    said: bool,
}

impl Writer {
    async fn keep(mut self) {
        // A reload may be owed from before this process began: the first goes without a change.
        let mut owed = true;
        let mut names = Names::new();
        loop {
            let began = Instant::now();
            let known = self.shared.registry.read().is_known();
            let seen = self.seen();
            if !known {
                // What is not known yet is not nothing.
                self.wait(seen).await;
                continue;
            }
            let contents = self.contents(&mut names).await;
            let done = self.put(contents, &mut owed).await;
            let failed = done.is_err();
            self.tell(done).await;
            if failed {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            self.wait(seen).await;
            tokio::time::sleep(GATHER.max(PAUSE.saturating_sub(began.elapsed()))).await;
        }
    }

    /// Who is registered, and how they stand.
    fn seen(&self) -> (u64, u64) {
        let catalog = self.shared.registry.read();
        (catalog.index(&Topic::Instances), catalog.index(&Topic::Checks))
    }

    async fn wait(&self, (instances, checks): (u64, u64)) {
        let registry = &self.shared.registry;
        tokio::select! {
            _ = registry.wait(&Topic::Instances, instances, LOOK) => {}
            _ = registry.wait(&Topic::Checks, checks, LOOK) => {}
        }
    }

    async fn contents(&self, names: &mut Names) -> Vec<u8> {
        match &self.feed.what {
            What::Prometheus => {
                let mut text = format!("{:#}", api::prometheus_targets(&self.shared.registry, None));
                text.push('\n');
                text.into_bytes()
            }
            What::Nginx(services) => {
                nginx::upstreams(&self.shared.registry, services.as_deref(), names).await.into_bytes()
            }
        }
    }

    /// Writes what has changed and reloads what is owed; why not.
    async fn put(&self, contents: Vec<u8>, owed: &mut bool) -> Result<(), String> {
        let file = self.feed.file.clone();
        let written = tokio::task::spawn_blocking(move || replace(&file, &contents)).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        *owed |= written.map_err(|error| {
            format!(
                "{} cannot be written: {error}; make its folder, and let Seawall's user write there",
                self.feed.file.display()
            )
        })?;
        if *owed && !self.feed.reload.is_empty() {
            let env = std::collections::BTreeMap::new();
            let ran = health::prober::run_command(&self.feed.reload, &env, &self.shared.folder, RELOADING).await;
            ran.map_err(|why| {
                format!(
                    "{} is written, and its reload failed: {why}; run it by hand to see what it says",
                    self.feed.file.display()
                )
            })?;
        }
        *owed = false;
        Ok(())
    }

    /// Says once that it fails, and once that it does no longer.
    async fn tell(&mut self, done: Result<(), String>) {
        let (kind, message) = match done {
            Err(why) if !self.said => {
                (EventKind::FeedFailed, format!("{why}; tried again every {} s", AGAIN.as_secs()))
            }
            Ok(()) if self.said => {
                (EventKind::FeedRestored, format!("{} is up to date again", self.feed.file.display()))
            }
            _ => return,
        };
        self.said = kind == EventKind::FeedFailed;
        // Ignored: the controller has ended.
        let _ = self.shared.inputs.send(Input::Feed(kind, message)).await;
    }
}

/// True when the file said something else.
fn replace(file: &Path, contents: &[u8]) -> std::io::Result<bool> {
    match std::fs::read(file) {
        Ok(there) if there == contents => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    platform::file::replace(file, contents)?;
    Ok(true)
}
