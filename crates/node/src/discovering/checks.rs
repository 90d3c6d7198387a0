//! Makes the checks of what registered with this node: one task for each, begun and ended as the registry says. How a
//! check stands is written only when it changes, or when what was found has been another for a while: results that are the
//! same cost the store nothing.
//! Beside the failure walk, for what Seawall does not run. Deliberately absent: how one is made (`making.rs`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::definition::{MAX_OUTPUT, cut};
use discovery::judge::Judge;
use discovery::record::{CheckDefinition, CheckStatus, Owner};
use discovery::{Registry, RegistryError, Topic, select, writing};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::making::{self, Tools};

/// Checks under way at a time.
const AT_ONCE: usize = 128;
/// Changes of the registry within this time are taken together.
const GRAIN: Duration = Duration::from_millis(20);
/// The registry is looked at this often though nothing seems to have happened.
const LOOK: Duration = Duration::from_secs(5);
/// What was found is written anew this often at most, while the check stands as before.
const OUTPUT_GRAIN: Duration = Duration::from_secs(30);
/// An alias and a check that waits for its owner's word are looked at this often at least.
const WAKE: Duration = Duration::from_secs(1);

/// A check that is being made.
struct Running {
    definition: CheckDefinition,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes checks until the node ends.
pub async fn run(registry: Arc<Registry>, working_dir: PathBuf) {
    let tools = Arc::new(Tools::new(working_dir));
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let topic = Topic::NodeChecks(registry.node().to_owned());
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    loop {
        let seen = begin_and_end(&registry, &topic, &tools, &places, &mut running);
        registry.wait(&topic, seen, LOOK).await;
        tokio::time::sleep(GRAIN).await;
    }
}

fn begin_and_end(
    registry: &Arc<Registry>,
    topic: &Topic,
    tools: &Arc<Tools>,
    places: &Arc<Semaphore>,
    running: &mut BTreeMap<String, Running>,
) -> u64 {
    let catalog = registry.read();
    let seen = catalog.index(topic);
    let Some((_, entry)) = catalog.node(registry.node()) else { return seen };
    let made = |id: &str| {
        let record = &entry.checks.get(id)?.record;
        let ours = matches!(record.owner, Owner::Agent | Owner::File);
        record.definition.as_ref().filter(|_| ours && !record.kind.is_empty())
    };
    running.retain(|id, one| {
        let stays = made(id) == Some(&one.definition);
        if !stays && !entry.checks.contains_key(id) {
            registry.forget_heard(id);
        }
        stays
    });
    for id in entry.checks.keys() {
        let Some(definition) = made(id).filter(|_| !running.contains_key(id)) else { continue };
        let check = Check {
            registry: Arc::clone(registry),
            tools: Arc::clone(tools),
            places: Arc::clone(places),
            id: id.clone(),
            definition: definition.clone(),
            judge: Judge::default(),
            written: Instant::now(),
            critical_since: None,
        };
        running.insert(id.clone(), Running { definition: definition.clone(), task: tokio::spawn(check.keep()) });
    }
    seen
}

struct Check {
    registry: Arc<Registry>,
    tools: Arc<Tools>,
    places: Arc<Semaphore>,
    id: String,
    definition: CheckDefinition,
    judge: Judge,
    /// When its output was written last.
    written: Instant,
    critical_since: Option<Instant>,
}

impl Check {
    async fn keep(mut self) {
        let began = Instant::now();
        loop {
            let pause = if self.definition.ttl_ms > 0 {
                self.listen(began).await
            } else if !self.definition.alias_node.is_empty() || !self.definition.alias_service.is_empty() {
                self.follow().await
            } else {
                self.make().await
            };
            self.take_out().await;
            tokio::time::sleep(pause).await;
        }
    }

    /// Nobody has spoken up for it in time.
    async fn listen(&self, began: Instant) -> Duration {
        let ttl = Duration::from_millis(self.definition.ttl_ms);
        // A node that has just started gives everybody the whole time.
        let heard = self.registry.heard(&self.id).map_or(began, |heard| heard.at.max(began));
        let left = ttl.saturating_sub(heard.elapsed());
        if !left.is_zero() {
            return left.min(WAKE);
        }
        let standing = self.standing();
        if standing.is_some_and(|(status, _)| status != CheckStatus::Critical) {
            self.write(CheckStatus::Critical, "TTL expired").await;
        }
        WAKE.min(ttl)
    }

    /// As the worst of what it stands for.
    async fn follow(&self) -> Duration {
        let (status, output) = {
            let catalog = self.registry.read();
            let own = self.registry.node();
            let wanted = &self.definition.alias_node;
            let node = if wanted.is_empty() { own } else { catalog.find_node(wanted).unwrap_or(wanted) };
            let checks = catalog.node(node).map(|(_, entry)| match self.definition.alias_service.as_str() {
                "" => select::node_checks(entry),
                id => select::checks_of(entry, id),
            });
            let others = checks
                .into_iter()
                .flatten()
                .filter(|(id, check)| (node != own || *id != self.id) && check.record.kind != "alias");
            let others: Vec<_> = others.collect();
            let service = &self.definition.alias_service;
            let there =
                catalog.node(node).is_some_and(|(_, entry)| service.is_empty() || entry.services.contains_key(service));
            match select::worst(&others) {
                _ if !there => (CheckStatus::Critical, "what this is an alias of is not registered"),
                CheckStatus::Passing if others.is_empty() => (CheckStatus::Passing, "No checks found."),
                CheckStatus::Passing => (CheckStatus::Passing, "All checks passing."),
                CheckStatus::Warning => (CheckStatus::Warning, "A check warns."),
                CheckStatus::Critical => (CheckStatus::Critical, "A check is critical."),
            }
        };
        if self.standing().is_some_and(|(now, _)| now != status) {
            self.write(status, output).await;
        }
        WAKE
    }

    async fn make(&mut self) -> Duration {
        let interval = Duration::from_millis(self.definition.interval_ms);
        let Ok(place) = self.places.acquire().await else { return interval };
        let (result, output) = making::make(&self.definition, &self.tools).await;
        drop(place);
        let output = cut(output, self.output_limit());
        let Some(status) = self.judge.take(&self.definition, result) else { return interval };
        if let Some((now, before)) = self.standing() {
            let old = before != output && self.written.elapsed() >= OUTPUT_GRAIN;
            if now != status || before.is_empty() || old {
                self.write(status, &output).await;
                self.written = Instant::now();
            }
        }
        interval
    }

    fn output_limit(&self) -> usize {
        match self.definition.output_max_size {
            0 => MAX_OUTPUT,
            written => (written as usize).min(MAX_OUTPUT),
        }
    }

    fn standing(&self) -> Option<(CheckStatus, String)> {
        let catalog = self.registry.read();
        let (_, entry) = catalog.node(self.registry.node())?;
        let record = &entry.checks.get(&self.id)?.record;
        Some((record.status, record.output.clone()))
    }

    async fn write(&self, status: CheckStatus, output: &str) {
        if let Err(error) = self.registry.stands(self.registry.node(), &self.id, status, output).await {
            tracing::debug!(check = self.id, %error, "how a check stands could not be written; the next result is");
        }
    }

    /// An instance that has been critical for long goes, if its definition says so. Not while the store does not serve: then
    /// nobody knows whether others see it the same way.
    async fn take_out(&mut self) {
        let after = Duration::from_millis(self.definition.deregister_after_ms);
        let critical = self.standing().is_some_and(|(status, _)| status == CheckStatus::Critical);
        if after.is_zero() || !critical || self.registry.leaderless().is_some() {
            self.critical_since = None;
            return;
        }
        // It may have served for a moment that nobody looked at.
        let served = self.registry.heard(&self.id).and_then(|heard| heard.serves);
        let since = *self.critical_since.get_or_insert_with(Instant::now);
        let since = served.map_or(since, |served| served.max(since));
        if since.elapsed() < after {
            return;
        }
        let node = self.registry.node().to_owned();
        let (service, ops) = {
            let catalog = self.registry.read();
            let known = catalog.node(&node).and_then(|(_, entry)| entry.checks.get(&self.id));
            let Some(service) = known.map(|check| check.record.service_id.clone()).filter(|id| !id.is_empty()) else {
                return;
            };
            let ops = writing::deregister(&catalog, &node, &service);
            (service, ops)
        };
        tracing::warn!(service, check = self.id, after = ?after, "an instance is taken out: its check has been critical for so long");
        let gone = match ops {
            Ok(ops) => self.registry.change(ops).await,
            Err(error) => Err(RegistryError::Store(error)),
        };
        if let Err(error) = gone {
            tracing::debug!(service, %error, "it could not be taken out; trying again");
        }
    }
}
