//! What `seawall.exe` must do under Wine, in the order of an operator's first hour. Each proof checks what a user would notice.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::shop;
use super::wine::{Node, PATIENCE, Wine, http};

/// From the end of the keeper to the end of everything that it ran.
const KILL_BOUND: Duration = Duration::from_secs(1);

/// Runs every proof.
pub fn all(wine: &Wine, root: &Path, target: &Path, program: &Path) -> Result<()> {
    let folder = target.join("proof");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    check(wine, program, root, &folder)?;
    let file = shop(root, &folder)?;
    let mut node = Node::up(wine, program, &file)?;
    say("up says ready");
    routes(&mut node)?;
    authority(&node, &folder)?;
    restarts(wine, &mut node)?;
    ends_trees(wine, &mut node)?;
    promotes(&mut node)?;
    remembers(&node)?;
    survives_its_node_process(wine, &mut node)?;
    stops(wine, node)?;
    dies_with_its_keeper(wine, program, &file)
}

fn say(what: &str) {
    eprintln!("windows: proved: {what}");
}

fn check(wine: &Wine, program: &Path, root: &Path, folder: &Path) -> Result<()> {
    let good = wine.command(program, &["check", "examples/shop/seawall.yaml"]).current_dir(root).output()?;
    ensure!(good.status.code() == Some(0), "check of the shop: {good:?}");
    std::fs::write(folder.join("bad.yaml"), "services:\n  a:\n    comand: [x]\n")?;
    let bad = wine.command(program, &["check", "bad.yaml"]).current_dir(folder).output()?;
    let report = String::from_utf8_lossy(&bad.stdout);
    ensure!(bad.status.code() == Some(2), "check of a bad file: {bad:?}");
    ensure!(report.contains("comand") && report.contains("command"), "the report does not help: {report}");
    say("check tells a good file (exit code 0) from a bad one (2)");
    Ok(())
}

/// Every instance of an active-active service gets requests.
fn routes(node: &mut Node) -> Result<()> {
    let mut seen = BTreeSet::new();
    node.until("answers of all three instances", |node| {
        seen.insert(served_by(node, "/orders")?);
        ensure!(seen.len() == 3, "so far only {seen:?} answered");
        Ok(())
    })?;
    ensure!(served_by(node, "/ledger")?.starts_with("ledger-"), "the ledger answers elsewhere");
    say("the gateway routes to every instance");
    Ok(())
}

/// Which instance answered.
fn served_by(node: &Node, path: &str) -> Result<String> {
    let (status, body) = http(&node.gateway, "GET", path, "")?;
    ensure!(status == 200, "GET {path} answered {status}: {body}");
    let body: Value = serde_json::from_str(&body)?;
    Ok(body["instance"].as_str().context("no instance in the answer")?.to_owned())
}

/// A caller that the system does not know as the same user needs the token. Linux processes are strangers to Wine's tables.
fn authority(node: &Node, folder: &Path) -> Result<()> {
    let (refused, _) = http(&node.api, "GET", "/api/v1/config", "")?;
    ensure!(refused == 401, "a stranger without a token was answered {refused}");
    let path = folder.join("data/api-token");
    // Wine shows an access list as permissions.
    let stat = Command::new("stat").arg("--format=%a").arg(&path).output()?;
    ensure!(stat.stdout.ends_with(b"0\n"), "others may use the token: {}", String::from_utf8_lossy(&stat.stdout));
    let token = std::fs::read_to_string(path)?;
    let (allowed, _) = http(&node.api, "GET", "/api/v1/config", &format!("Authorization: Bearer {}", token.trim()))?;
    ensure!(allowed == 200, "the token was answered {allowed}");
    node.done(&["kv", "put", "proof", "before"])?;
    say("strangers need the token, the same user does not");
    Ok(())
}

/// A killed process and one that crashes by itself come back, and the status counts it.
fn restarts(wine: &Wine, node: &mut Node) -> Result<()> {
    let killed = node.instance("order-service-1")?;
    wine.kill(pid(&killed)?)?;
    is_back(node, &killed)?;
    let crashed = node.instance("order-service-2")?;
    crash(&crashed)?;
    is_back(node, &crashed)?;
    let events = node.done(&["events"])?;
    ensure!(events.contains("order-service-2") && events.contains("0xC0000409"), "events hide the crash: {events}");
    say("a killed and a crashed instance come back with restarts=1, and events say how they ended");
    Ok(())
}

fn pid(instance: &Value) -> Result<u64> {
    instance["pid"].as_u64().with_context(|| format!("no process in {instance}"))
}

/// The switch of the demo service that ends it with an abort.
fn crash(instance: &Value) -> Result<()> {
    let address = instance["address"].as_str().context("no address")?;
    match http(address, "POST", "/fault/crash", "") {
        Ok((status, _)) => bail!("it answered {status} instead of crashing"),
        Err(_) => Ok(()),
    }
}

fn is_back(node: &mut Node, before: &Value) -> Result<()> {
    let id = before["id"].as_str().unwrap_or_default().to_owned();
    let old = pid(before)?;
    node.until(&format!("{id} to come back"), |node| {
        let now = node.instance(&id)?;
        let back = now["state"] == "ready" && now["restarts"] == 1 && pid(&now)? != old;
        if back { Ok(()) } else { bail!("it is {now}") }
    })
}

/// The root of the batch service is the command interpreter; the service itself is a child of it, and must go with it.
fn ends_trees(wine: &Wine, node: &mut Node) -> Result<()> {
    let running = |wine: &Wine| wine.processes().iter().filter(|line| line.contains("--name batch")).count();
    node.until("the batch service", |node| {
        let batch = node.instance("batch-0")?;
        if batch["state"] == "ready" && running(wine) == 1 { Ok(()) } else { bail!("it is {batch}") }
    })?;
    let before = node.instance("batch-0")?;
    wine.kill(pid(&before)?)?;
    is_back(node, &before)?;
    node.until("one batch service, not two", |_| {
        let count = running(wine);
        if count == 1 { Ok(()) } else { bail!("{count} of them run") }
    })?;
    say("a batch file is found without its extension, and what its end left behind is ended with its job");
    Ok(())
}

/// A planned and an unplanned switch; the epoch grows, and callers get an answer.
fn promotes(node: &mut Node) -> Result<()> {
    let (first, before) = primary(node)?;
    let told = node.done(&["promote", "ledger", "--wait"])?;
    let (second, planned) = primary(node)?;
    ensure!(first != second && planned > before, "promote said {told:?}, the status: {second} in {planned}");
    ensure!(told.contains(&second) && told.contains(&planned.to_string()), "promote said {told:?}");
    crash(&node.instance(&second)?)?;
    ensure!(served_by(node, "/ledger")? != second, "the dead primary answered");
    let (third, unplanned) = node.until("another primary", |node| {
        let now = primary(node)?;
        if now.0 != second && now.1 > planned { Ok(now) } else { bail!("it is {now:?}") }
    })?;
    let logs = node.done(&["logs", "ledger", "--instance", &third])?;
    ensure!(logs.contains(&format!("primary in epoch {unplanned}")), "the log of {third}: {logs}");
    let events = node.done(&["events"])?;
    for kind in ["fenced", "fence-confirmed", "promoted", "routed"] {
        ensure!(events.contains(kind), "no `{kind}` in the events: {events}");
    }
    say("a planned and an unplanned promotion, each in a greater epoch; logs and events tell");
    Ok(())
}

fn primary(node: &Node) -> Result<(String, u64)> {
    let status = node.status()?;
    let services = status["services"].as_array().context("no services")?;
    let ledger = services.iter().find(|service| service["name"] == "ledger").context("no ledger")?;
    let name = ledger["primary"].as_str().context("nobody is primary")?;
    Ok((name.to_owned(), ledger["epoch"].as_u64().context("no epoch")?))
}

fn remembers(node: &Node) -> Result<()> {
    let value = node.done(&["kv", "get", "proof"])?;
    ensure!(value.trim_end() == "before", "the store answered {value:?}");
    let status = node.done(&["status"])?;
    ensure!(status.contains("order-service") && status.contains("ledger"), "status shows {status}");
    say("kv and status answer");
    Ok(())
}

/// The node process is killed: nobody is refused a connection, and every instance goes on.
fn survives_its_node_process(wine: &Wine, node: &mut Node) -> Result<()> {
    node.until("all instances ready", |node| all_ready(&node.status()?))?;
    let before = node.status()?;
    let (gateway, done) = (node.gateway.clone(), AtomicBool::new(false));
    let (connected, refused) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let (mut connected, mut refused) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                match std::net::TcpStream::connect(&gateway) {
                    Ok(_) => connected += 1,
                    Err(_) => refused += 1,
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            (connected, refused)
        });
        let killed = wine.kill(before["node"]["pid"].as_u64().unwrap_or(0)).and_then(|()| {
            node.until("another node process", |node| {
                let now = node.status()?;
                ensure!(now["node"]["nodeStarts"] == 2 && now["node"]["pid"] != before["node"]["pid"], "it is {now}");
                all_ready(&now)
            })
        });
        done.store(true, Ordering::Relaxed);
        let counted = connecting.join().unwrap_or((0, 1));
        killed.map(|()| counted)
    })?;
    ensure!(refused == 0 && connected > 0, "{refused} of {} connections were refused", refused + connected);
    ensure!(pids(&before) == pids(&node.status()?), "instances were restarted: {before}, now {}", node.status()?);
    served_by(node, "/orders")?;
    let value = node.done(&["kv", "get", "proof"])?;
    ensure!(value.trim_end() == "before", "the store answered {value:?}");
    say("a killed node process comes back on the same sockets: no connection refused, no instance restarted");
    Ok(())
}

fn all_ready(status: &Value) -> Result<()> {
    let services = status["services"].as_array().context("no services")?;
    let ready = services.len() == 3 && services.iter().all(|service| service["state"] == "ready");
    if ready { Ok(()) } else { bail!("the services are {}", status["services"]) }
}

fn pids(status: &Value) -> Vec<(String, u64)> {
    let instances = status["services"].as_array().into_iter().flatten().filter_map(|one| one["instances"].as_array());
    instances.flatten().map(|one| (one["id"].to_string(), one["pid"].as_u64().unwrap_or(0))).collect()
}

fn stops(wine: &Wine, node: Node) -> Result<()> {
    let code = node.ctrl_c()?;
    ensure!(code == 0, "`up` ended with {code} after Ctrl+C");
    let left = wine.processes();
    ensure!(left.is_empty(), "left behind: {left:?}");
    say("Ctrl+C on the console stops everything in order: exit code 0, nothing left behind");
    Ok(())
}

/// A second keeper on the same data goes on where the first ended; killed, it takes everything along.
fn dies_with_its_keeper(wine: &Wine, program: &Path, file: &Path) -> Result<()> {
    let mut node = Node::up(wine, program, file)?;
    node.until("all instances ready", |node| all_ready(&node.status()?))?;
    remembers(&node)?;
    let ran = wine.processes().len();
    wine.kill(node.status()?["node"]["keeperPid"].as_u64().unwrap_or(0))?;
    let killed = Instant::now();
    while !wine.processes().is_empty() {
        ensure!(killed.elapsed() < PATIENCE, "still running: {:?}", wine.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = killed.elapsed();
    ensure!(took < KILL_BOUND, "it took {took:?} until everything was gone");
    node.end()?;
    say(&format!("a killed keeper takes its {ran} processes along, in {} ms", took.as_millis()));
    Ok(())
}
