//! What a measurement comes to: medians, ranges, paired ratios, one section of `bench/RESULTS.md`.
//! The last step. Deliberately absent: any judgement; a busy machine is named, not corrected for.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::Result;

use super::guards::RULES;
use super::load::{H2_CONNECTIONS, IN_FLIGHT, Window};
use super::options::{Options, Scenario};
use super::proxy::Kind;
use super::{Findings, MODERATE, Track};

/// A quantity of a window.
type Quantity<'a> = &'a dyn Fn(&Window) -> f64;

/// The section as Markdown.
pub fn section(options: &Options, findings: &Findings) -> Result<String> {
    let mut page = format!("### {}\n\n`{}`", options.scenario.title(), options.command);
    match options.scenario.idle {
        Some(count) => {
            page += ". Each connection has had one answer.\n\n";
            idle_table(&mut page, count, findings)?;
        }
        None => {
            let connections = if options.scenario.h2 { H2_CONNECTIONS } else { IN_FLIGHT };
            writeln!(
                page,
                ": {} rounds of {} s, {IN_FLIGHT} requests under way on {connections} connections; median (range).\n",
                options.rounds, options.seconds
            )?;
            if options.scenario.guards {
                guarded(&mut page)?;
            }
            most_table(&mut page, &options.scenario, findings)?;
            write!(page, "\nThe same at {:.0} requests/s for each, ", findings.fixed_rate)?;
            writeln!(
                page,
                "{:.0} % of what the slowest can (`h2load --rps`, 8 of it, each with a wave every 10 ms):\n",
                MODERATE * 100.0
            )?;
            fixed_table(&mut page, findings)?;
        }
    }
    circumstances(&mut page, options, findings)?;
    Ok(page)
}

/// One window, for who watches.
pub fn line(window: &Window) -> String {
    let [p50, p99, p999] = window.latency_us;
    format!(
        "{:7.2} us CPU/request  {:8.0} requests/s  p50 {p50:.0} p99 {p99:.0} p99.9 {p999:.0} us  {:.1} MiB  core {:.0} %",
        window.cpu_us(),
        window.rate(),
        window.resident_mib,
        busy(window)
    )
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        count => (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0,
    }
}

fn most_table(page: &mut String, scenario: &Scenario, findings: &Findings) -> Result<()> {
    let bulk = scenario.is_bulk();
    page.push_str("| proxy | CPU us/request | seawall's / its | ");
    if scenario.guards {
        page.push_str("requests per CPU second | ");
    }
    if bulk {
        page.push_str("MB per CPU second | seawall's / its | ");
    }
    page.push_str("requests/s | p50 us | p99 us | p99.9 us | RSS MiB | core used |\n| --- |");
    page.push_str(&" --- |".repeat(8 + usize::from(scenario.guards) + if bulk { 2 } else { 0 }));
    page.push('\n');
    let per_second = |window: &Window| scenario.body as f64 * window.requests / window.cpu_seconds / 1e6;
    for track in &findings.tracks {
        let (spread, ratio) =
            (|of: Quantity, digits| spread(&track.most, of, digits), |of| against(findings, track, false, of));
        write!(page, "| {} | {} | {} |", track.proxy.kind.name(), spread(&Window::cpu_us, 1), ratio(&Window::cpu_us))?;
        if scenario.guards {
            write!(page, " {} |", spread(&|window| window.requests / window.cpu_seconds, 0))?;
        }
        if bulk {
            write!(page, " {} | {} |", spread(&per_second, 0), ratio(&per_second))?;
        }
        write!(page, " {} |", spread(&Window::rate, 0))?;
        for index in 0..3 {
            write!(page, " {} |", spread(&|window| window.latency_us[index], 0))?;
        }
        writeln!(page, " {} | {} % |", spread(&|window| window.resident_mib, 1), spread(&busy, 0))?;
    }
    Ok(())
}

/// What is on in the tables that follow; of the rules only that they are there.
fn guarded(page: &mut String) -> Result<()> {
    writeln!(
        page,
        "On in `seawall`, `haproxy` and `envoy`, and never reached: a rate limit (by address; Envoy's of all together), a \
         breaker or what comes closest, a limit of what is under way, ejection, a rule of what is sent again, a bound on \
         time, and {RULES} further routes with all of it. `seawall without` has one route and nothing of it: asked is that \
         `seawall` takes at most 1.10 times its CPU a request.\n"
    )?;
    Ok(())
}

fn fixed_table(page: &mut String, findings: &Findings) -> Result<()> {
    page.push_str("| proxy | p50 us | p99 us | seawall's / its | p99.9 us | CPU us/request | seawall's / its |\n");
    page.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
    for track in &findings.tracks {
        let spread = |of: Quantity, digits| spread(&track.fixed, of, digits);
        let latency = |index: usize| move |window: &Window| window.latency_us[index];
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} |",
            track.proxy.kind.name(),
            spread(&latency(0), 0),
            spread(&latency(1), 0),
            against(findings, track, true, &latency(1)),
            spread(&latency(2), 0),
            spread(&Window::cpu_us, 1),
            against(findings, track, true, &Window::cpu_us),
        )?;
    }
    Ok(())
}

fn idle_table(page: &mut String, count: usize, findings: &Findings) -> Result<()> {
    page.push_str("| proxy | MiB before | MiB with them | KiB each |\n| --- | --- | --- | --- |\n");
    for track in &findings.tracks {
        let Some((before, with)) = track.idle else { continue };
        let each = (with - before) * 1024.0 / count as f64;
        writeln!(page, "| {} | {before:.1} | {with:.1} | {each:.1} |", track.proxy.kind.name())?;
    }
    Ok(())
}

fn circumstances(page: &mut String, options: &Options, findings: &Findings) -> Result<()> {
    let versions: Vec<String> =
        findings.tracks.iter().map(|track| format!("{} {}", track.proxy.kind.name(), track.proxy.version)).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    let generators = if options.scenario.idle.is_some() { String::new() } else { generators() };
    let (low, high) = findings.load_average;
    writeln!(
        page,
        "\nOf: {} (seawall of the profile `{}`){generators}; Linux {}, {cores} cores, the proxy alone on one; load average {low:.1} to {high:.1}.",
        versions.join(", "),
        options.profile,
        kernel.trim(),
    )?;
    // The load itself keeps two processes and the proxy running.
    if options.scenario.idle.is_none() && high > cores.get() as f64 + 1.5 {
        writeln!(
            page,
            "Other work ran on the machine meanwhile: repeat it on a quiet one; the ratios bend less than the figures."
        )?;
    }
    for (kind, why) in &findings.missing {
        let why: Vec<&str> = why.lines().take(2).collect();
        writeln!(page, "Not measured: {}: {}", kind.name(), why.join(" "))?;
    }
    Ok(())
}

fn generators() -> String {
    let first = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Some(text.lines().next()?.split(" [").next()?.to_owned())
    };
    let known: Vec<String> = [first("wrk", "-v"), first("h2load", "--version")].into_iter().flatten().collect();
    format!("; load by {}", known.join(" and "))
}

/// Median and range over the rounds.
fn spread(windows: &[Window], of: Quantity, digits: usize) -> String {
    spread_of(windows.iter().map(of), digits)
}

/// The ratio of seawall's to this one's, round by round.
fn against(findings: &Findings, track: &Track, fixed: bool, of: Quantity) -> String {
    let windows = |track: &'_ Track| if fixed { track.fixed.clone() } else { track.most.clone() };
    let Some(own) = findings.tracks.iter().find(|track| track.proxy.kind == Kind::Seawall) else { return "-".into() };
    if track.proxy.kind == Kind::Seawall {
        return "1".into();
    }
    let pairs: Vec<f64> = windows(own).iter().zip(&windows(track)).map(|(own, its)| of(own) / of(its)).collect();
    spread_of(pairs.into_iter(), 2)
}

fn spread_of(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let sorted = sorted(values);
    match (sorted.first(), sorted.last()) {
        (Some(low), Some(high)) => {
            format!("{:.digits$} ({low:.digits$} to {high:.digits$})", median(sorted.iter().copied()))
        }
        _ => "-".into(),
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// How much of its core the proxy used, in percent: well under 100, something else was the limit.
fn busy(window: &Window) -> f64 {
    window.cpu_seconds / window.seconds * 100.0
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
    }
}
