//! What is measured: leaders killed, leads handed over, primaries cut off, and promotions while streams are flooded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::field::{Field, NODES};
use super::figures;
use super::load::{Call, Doing, Load};
use crate::rounds::machine::{end_kill, signal};

/// What is looked at after a lead was handed over.
const AFTER: Duration = Duration::from_millis(1500);
/// A primary that was cut off stays so for this long after another serves.
const CUT_FOR: Duration = Duration::from_secs(1);
/// Entries acknowledged before the next primary is killed: the flood gave way to the promotion before, and flows again.
const FLOWS: usize = 64;
/// Promotions of each service between the beginning of a flood and its end.
const ABREAST: usize = 10;
/// Longest answer of a read of the stream.
const LOOK: Duration = Duration::from_secs(10);

type Section = (&'static str, String);

/// The leader is killed with everything of its node: until the next write is acknowledged.
pub fn leader(field: &mut Field, count: usize) -> Result<Section> {
    let mut times = Vec::new();
    for _ in 0..count {
        let leader = field.whole()?;
        let others: Vec<usize> = (0..NODES).filter(|place| *place != leader).collect();
        let load = Load::start(&field.network, &others, 2, Doing::Put)?;
        field.wait("writes", |_| (load.calls().len() > 50).then_some(()))?;
        let dying = field.machines[leader].begin_kill();
        let killed = Instant::now();
        let next = field.wait("the next write", |_| load.first(killed, |call| call.sent > killed))?;
        times.push(next.done - killed);
        end_kill(&dying);
        load.finish();
        field.machines[leader].start()?;
    }
    let table = format!(
        "| what | figure | target |\n| --- | --- | --- |\n| the leader's node killed, until the next write asked for after it is acknowledged, 2 writers on each of the other nodes | {} | p99 under 1 s |\n",
        figures(&mut times)
    );
    Ok(("Leaders killed", table))
}

/// The lead is handed over on purpose: the longest time without an acknowledged write, and failures.
pub fn transfer(field: &mut Field, count: usize) -> Result<Section> {
    let load = Load::start(&field.network, &[0, 1, 2], 2, Doing::Put)?;
    let (mut gaps, mut verbs) = (Vec::new(), Vec::new());
    for round in 0..count {
        let leader = field.leader()?;
        let next = format!("n{}", (leader + 1) % NODES + 1);
        let begun = Instant::now();
        field.machines[round % NODES].verb_done(&["cluster", "transfer", &next], None)?;
        verbs.push(begun.elapsed());
        std::thread::sleep(AFTER.saturating_sub(begun.elapsed()));
        gaps.push(longest_gap(&load.calls(), begun, begun + AFTER));
    }
    let calls = load.finish();
    let failed = calls.iter().filter(|call| call.status != 200).count();
    let table = format!(
        "| what | figure | target |\n| --- | --- | --- |\n| `cluster transfer` under 2 writers a node, longest time without an acknowledged write of any | {} | under 100 ms |\n| the verb itself, with the start of its process | {} | |\n| writes that failed | {failed} of {} | 0 |\n",
        figures(&mut gaps),
        figures(&mut verbs),
        calls.len(),
    );
    Ok(("Leads handed over", table))
}

fn longest_gap(calls: &[Call], from: Instant, to: Instant) -> Duration {
    let mut done: Vec<Instant> = calls.iter().filter(|call| call.status == 200).map(|call| call.done).collect();
    done.sort();
    let around = done.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
    around.map(|pair| pair[1] - pair[0]).max().unwrap_or(to - from)
}

/// The node of the ledger's primary is cut off: until another serves through the other gateways; and what is lost.
pub fn cut(field: &mut Field, count: usize) -> Result<Section> {
    field.services()?;
    let (mut serving, mut back, mut acknowledged) = (Vec::new(), Vec::new(), Vec::new());
    let mut led = 0;
    for _ in 0..count {
        let leader = field.whole()?;
        let old = field.settled("ledger")?;
        led += usize::from(leader == old.place);
        let others: Vec<usize> = (0..NODES).filter(|place| *place != old.place).collect();
        let load = Load::start(&field.network, &others, 2, Doing::Post)?;
        field.wait("amounts", |_| (load.calls().len() > 20).then_some(()))?;
        let cut_at = Instant::now();
        for other in &others {
            field.network.cut(old.place, *other)?;
            field.network.cut(*other, old.place)?;
        }
        let next = field.wait("another primary", |_| load.first(cut_at, |call| call.epoch > old.epoch))?;
        serving.push(next.done - cut_at);
        std::thread::sleep(CUT_FOR);
        let healed = Instant::now();
        for other in &others {
            field.network.mend(old.place, *other)?;
            field.network.mend(*other, old.place)?;
        }
        let end = field.wait("the stream's end", |field| {
            field.machines[others[0]].get("/api/v1/streams/ledger/describe", LOOK)?["next"].as_u64()
        })?;
        let cursor = format!("/api/v1/streams/ledger/cursors/{}", old.instance);
        field.wait("the old primary has read what it missed", |field| {
            let told = field.machines[old.place].get(&cursor, LOOK)?;
            let standby = field.primary(old.place, "ledger")?.instance != old.instance;
            (standby && told["offset"].as_u64()? >= end).then_some(())
        })?;
        back.push(healed.elapsed());
        acknowledged.extend(load.finish().into_iter().filter(|call| call.status == 200).map(|call| call.key));
    }
    let written = entries(field)?;
    let (lost, twice) = missing(&acknowledged, &written)?;
    let table = format!(
        "| what | figure | target |\n| --- | --- | --- |\n| the node of the `ledger`'s primary cut off ({led} of {count} times it led the cluster, too), until an amount asked for through another gateway is acknowledged by the next primary; 2 clients on each of the others, which ask again after 200 ms | {} | p99 under 3 s |\n| the cut healed, until the old primary is a standby that has read what it missed | {} | 10 s |\n| amounts acknowledged, and lost; entries there twice | {}, {lost}; {twice} | 0; 0 |\n",
        figures(&mut serving),
        figures(&mut back),
        acknowledged.len(),
    );
    ensure!(lost == 0 && twice == 0, "{table}");
    Ok(("Primaries cut off", table))
}

/// Everything that was written to the ledger's stream.
fn entries(field: &Field) -> Result<Vec<Value>> {
    let mut found: Vec<Value> = Vec::new();
    loop {
        let path = format!("/api/v1/streams/ledger?from={}&limit=1000", found.len());
        let more = field.wait("the stream", |field| field.machines[0].lines(&path, LOOK))?;
        if more.is_empty() {
            return Ok(found);
        }
        for line in more {
            found.push(serde_json::from_str(line["data"].as_str().context("an entry without text")?)?);
        }
    }
}

/// How many acknowledged keys are missing, and how many entries are there again; their balances must add up.
fn missing(acknowledged: &[String], written: &[Value]) -> Result<(usize, usize)> {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, entry) in written.iter().enumerate() {
        ensure!(entry["balance"] == number as u64 + 1, "entry {number} has another balance: {entry}");
        *times.entry(entry["key"].as_str().unwrap_or_default()).or_default() += 1;
    }
    let lost = acknowledged.iter().filter(|key| !times.contains_key(key.as_str())).count();
    Ok((lost, times.values().filter(|times| **times > 1).count()))
}

/// Primaries are killed while streams are idle and while they are flooded, by turns.
pub fn flood(field: &mut Field, count: usize) -> Result<Section> {
    field.services()?;
    let mut times: BTreeMap<(&str, bool), Vec<Duration>> = BTreeMap::new();
    let (mut flooded, mut flooded_for) = (0, Duration::ZERO);
    // Side by side in time: some quiet, some flooded, some flooded, some quiet, and so on.
    for part in 0..count.div_ceil(ABREAST) * 2 {
        let is_flooded = matches!(part % 4, 1 | 2);
        let begun = Instant::now();
        let load = is_flooded.then(|| Load::start(&field.network, &[0, 1, 2], 4, Doing::Flood)).transpose()?;
        for _ in 0..ABREAST.min(count - part / 2 * ABREAST) {
            for (service, path) in [("plain", "/plain"), ("ledger", "/ledger")] {
                let old = field.settled(service)?;
                if let Some(load) = &load {
                    let before = load.acknowledged();
                    field.wait("entries", |_| (load.acknowledged() >= before + FLOWS).then_some(()))?;
                }
                let reading = Load::start(&field.network, &[(old.place + 1) % NODES], 2, Doing::Get(path))?;
                field.wait("answers", |_| (reading.calls().len() > 4).then_some(()))?;
                let killed = Instant::now();
                signal(old.pid, "KILL");
                let next = field.wait("another primary", |_| reading.first(killed, |call| call.epoch > old.epoch))?;
                times.entry((service, is_flooded)).or_default().push(next.done - killed);
                reading.finish();
            }
        }
        if let Some(load) = load {
            flooded += load.finish().iter().filter(|call| call.status == 200).count();
            flooded_for += begun.elapsed();
        }
    }
    let mut table = "| a primary killed, until another answers through another node's gateway | streams idle | streams flooded |\n| --- | --- | --- |\n".to_owned();
    for service in ["plain", "ledger"] {
        let mut of = |flooded| figures(times.get_mut(&(service, flooded)).map_or(&mut [], |times| times));
        let (what, idle) = (if service == "plain" { "without a stream" } else { "with a stream" }, of(false));
        let _ = writeln!(table, "| {what} | {idle} | {} |", of(true));
    }
    let rate = flooded as f64 / 16.0 / flooded_for.as_secs_f64();
    let _ = writeln!(
        table,
        "\nFlooded: 12 clients, which take the processors last, append entries of 64 KiB as fast as they are acknowledged, {rate:.1} MiB/s over all. Target: p99 at most 20 % longer."
    );
    Ok(("Promotions while streams are flooded", table))
}
