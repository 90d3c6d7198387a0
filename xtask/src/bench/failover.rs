//! `cargo xtask bench failover`: how long a cluster of three is not at work when something of it goes. Real processes of the
//! release build in network namespaces, as in `cargo xtask rounds`; each part records a section of `bench/RESULTS.md`.
//! The walk: words -> `field` (the cluster) -> `parts` under `load` -> figures. Deliberately absent: other products.

mod field;
mod load;
mod parts;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::gateway::load_average;
use super::section;
use crate::root;
use crate::rounds::{built, network, version};
use field::Field;

const USAGE: &str = "usage: cargo xtask bench failover [leader | transfer | cut | flood] [--count N]";

/// Measures, prints, records. A first word names one part; without it all are measured one after the other.
pub fn failover(arguments: &[String]) -> Result<()> {
    if let Some(why) = network::why_not() {
        println!("bench failover: skipped, {why}");
        return Ok(());
    }
    let (mut part, mut count) = (None, None);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--count" => count = Some(words.next().and_then(|number| number.parse().ok()).unwrap_or(0)),
            name => part = Some(name),
        }
    }
    if count == Some(0) {
        bail!(USAGE);
    }
    let all = ["leader", "transfer", "cut", "flood"];
    let chosen: Vec<&str> = all.into_iter().filter(|known| part.is_none_or(|part| part == *known)).collect();
    if chosen.is_empty() {
        bail!(USAGE);
    }
    let binary = built(true)?;
    network::remove_leftovers();
    for name in chosen {
        let (before, began) = (load_average()?, Instant::now());
        let mut field = Field::begin(&binary)?;
        let (title, table) = match name {
            "leader" => parts::leader(&mut field, count.unwrap_or(50))?,
            "transfer" => parts::transfer(&mut field, count.unwrap_or(20))?,
            "cut" => parts::cut(&mut field, count.unwrap_or(30))?,
            _ => parts::flood(&mut field, count.unwrap_or(40))?,
        };
        let words = count.map_or_else(String::new, |count| format!(" --count {count}"));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let text = format!(
            "### {title}\n\n`cargo xtask bench failover {name}{words}`: three nodes in network namespaces on one machine, {}, in {:.0} s.\n\n{table}\nLinux {}, {} cores for everything; load average {before:.1} before and {:.1} at the end.\n",
            version(&binary)?,
            began.elapsed().as_secs_f32(),
            kernel.trim(),
            std::thread::available_parallelism()?,
            load_average()?,
        );
        println!("{text}");
        section::record(&root().join("bench/RESULTS.md"), "failover", title, &text)?;
    }
    Ok(())
}

/// `p50 A ms, p99 B ms, max C ms` of so many.
fn figures(times: &mut [Duration]) -> String {
    times.sort();
    let at = |percent: usize| {
        let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0
    };
    format!("p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms of {}", at(50), at(99), at(100), times.len())
}
