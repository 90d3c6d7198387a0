//! What was measured, as the section of `bench/RESULTS.md`.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Findings, Load, Options, Pairs, Window};

/// Of the section.
pub const TITLE: &str = "The store beside etcd";

/// One window on one line.
pub fn line(window: &Window) -> String {
    format!(
        "{:>7.0}/s  p50 {:>6.0} p99 {:>6.0} us  {:.3} ms CPU each  {:.0} MiB a member",
        rate(window),
        window.seen.quantile(0.5),
        window.seen.quantile(0.99),
        cpu_ms(window),
        window.seen.used.member_mib
    )
}

/// The section.
pub fn section(options: &Options, findings: &Findings) -> Result<String> {
    let Findings { pairs, peer, flushes, load_average } = findings;
    let sizes: Vec<String> = options.bytes.iter().map(usize::to_string).collect();
    let mut text = format!(
        "### {TITLE}\n\n`cargo xtask bench store --rounds {} --seconds {} --clients {} --bytes {}`: three members of Seawall and \
         three of {peer}, each in turn under the same load; {} rounds of {} s, median (range). CPU is that of all three \
         members, divided by what was answered; memory that of the largest. Bare flushes of the disk: {} a second.\n\n\
         | load | | Seawall | {peer} | ratio |\n| --- | --- | --- | --- | --- |\n",
        options.rounds,
        options.seconds,
        options.clients,
        sizes.join(","),
        options.rounds,
        options.seconds,
        spread(flushes, 0),
    );
    for pairs in pairs {
        rows(&mut text, options, pairs)?;
    }
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    writeln!(
        text,
        "\nMembers of Seawall speak TLS among themselves, and with clients HTTP/1.1, a connection each, or HTTP/2 with ten on \
         a connection; those of etcd speak without TLS, and gRPC with clients, always ten to a connection. Linux {}, {cores} cores for members and clients; \
         load average {:.1} to {:.1}, the bench included.",
        kernel.trim(),
        load_average.0,
        load_average.1,
    )?;
    Ok(text)
}

fn rows(text: &mut String, options: &Options, pairs: &Pairs) -> Result<()> {
    let (what, many) = match pairs.load {
        Load::Writes(bytes) => (format!("{} clients write {bytes} B", options.clients), true),
        Load::OneWriter(bytes) => (format!("one client writes {bytes} B"), false),
        Load::Reads(bytes) => (format!("{} clients read {bytes} B, linearizable", options.clients), true),
        Load::SharedWrites(bytes) => {
            (format!("{} clients, ten on a connection, write {bytes} B", options.clients), true)
        }
        Load::SharedReads(bytes) => {
            (format!("{} clients, ten on a connection, read {bytes} B, linearizable", options.clients), true)
        }
    };
    let mut row = |what: &str, name: &str, digits: usize, of: &dyn Fn(&Window) -> f64| -> Result<()> {
        let column = |which: usize| -> Vec<f64> { pairs.windows.iter().map(|pair| of(&pair[which])).collect() };
        let ratios: Vec<f64> = pairs.windows.iter().map(|[own, other]| of(own) / of(other)).collect();
        let (own, other) = (spread(&column(0), digits), spread(&column(1), digits));
        writeln!(text, "| {what} | {name} | {own} | {other} | {} |", spread(&ratios, 2))?;
        Ok(())
    };
    if many {
        row(&what, "a second", 0, &rate)?;
        row("", "p50 us", 0, &|window| window.seen.quantile(0.5))?;
        row("", "p99 us", 0, &|window| window.seen.quantile(0.99))?;
        row("", "CPU ms", 3, &cpu_ms)?;
        return row("", "MiB", 0, &|window| window.seen.used.member_mib);
    }
    row(&what, "p50 us", 0, &|window| window.seen.quantile(0.5))?;
    row("", "p99 us", 0, &|window| window.seen.quantile(0.99))
}

fn rate(window: &Window) -> f64 {
    window.seen.answered as f64 / window.seconds
}

fn cpu_ms(window: &Window) -> f64 {
    window.seen.used.cpu_seconds * 1e3 / window.seen.answered.max(1) as f64
}

/// Median and range.
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return "-".to_owned() };
    format!("{:.digits$} ({least:.digits$} to {most:.digits$})", sorted[sorted.len() / 2])
}
