//! What the windows come to, as a section of Markdown.

use std::fmt::Write as _;
use std::time::Duration;

use crate::{BIG, BIG_SWAPS, CHANGES, HOT, INSTANCES, ROUTE_SWAPS, ROUTES_EACH, SERVICES, client};

/// One kind of swap.
pub struct Part {
    name: &'static str,
    windows: Vec<Vec<Duration>>,
    pub failed: u64,
    /// From a change to the answer of the instance it brought, under swaps.
    pub routed: Vec<Duration>,
    pub swaps: Vec<Duration>,
    pub swapped_for: Duration,
    quiet: Vec<Duration>,
    swapping: Vec<Duration>,
    /// Swapping to quiet of windows side by side, at 50 and 99 of 100.
    ratios: [Vec<f64>; 2],
}

/// What is measured once.
pub struct Once {
    pub setup: Duration,
    pub setup_mib: f64,
    pub big_setup: Duration,
    pub big_mib: f64,
    pub all_new: Duration,
    /// The time and the bytes of one page of metrics.
    pub scrape: (Duration, usize),
}

impl Part {
    pub fn new(name: &'static str, windows: usize) -> Self {
        Self {
            name,
            windows: vec![Vec::new(); windows],
            failed: 0,
            routed: Vec::new(),
            swaps: Vec::new(),
            swapped_for: Duration::ZERO,
            quiet: Vec::new(),
            swapping: Vec::new(),
            ratios: [Vec::new(), Vec::new()],
        }
    }

    pub fn add(&mut self, window: u8, took: Duration) {
        self.windows[usize::from(window) - 1].push(took);
    }

    pub fn finish(&mut self, pattern: &[bool]) {
        self.windows.iter_mut().for_each(|window| window.sort_unstable());
        for pair in 0..pattern.len() / 2 {
            let (first, second) = (&self.windows[2 * pair], &self.windows[2 * pair + 1]);
            let (quiet, swapping) = if pattern[2 * pair] { (second, first) } else { (first, second) };
            for (ratios, share) in self.ratios.iter_mut().zip([0.5, 0.99]) {
                ratios.push(at(swapping, share).as_secs_f64() / at(quiet, share).as_secs_f64());
            }
        }
        for (window, &swaps) in self.windows.iter().zip(pattern) {
            if swaps { &mut self.swapping } else { &mut self.quiet }.extend(window);
        }
        for list in [&mut self.quiet, &mut self.swapping, &mut self.routed, &mut self.swaps] {
            list.sort_unstable();
        }
        self.ratios.iter_mut().for_each(|ratios| ratios.sort_by(f64::total_cmp));
        eprintln!(
            "{}: quiet p99 {:?}, swapping p99 {:?}, ratios {:.2?}, {} failed",
            self.name,
            at(&self.quiet, 0.99),
            at(&self.swapping, 0.99),
            self.ratios[1],
            self.failed
        );
    }

    fn row(&self, what: &str) -> String {
        let ratio = |which: usize| {
            let list = &self.ratios[which];
            let middle = (list[(list.len() - 1) / 2] + list[list.len() / 2]) / 2.0;
            format!("{middle:.2} ({:.2} to {:.2})", list[0], list[list.len() - 1])
        };
        format!(
            "| {what} | {:.0} | {} / {} | {} / {} | {} | {} | {} / {} | {} / {} | {} of {} |\n",
            self.swaps.len() as f64 / self.swapped_for.as_secs_f64(),
            us(at(&self.quiet, 0.5)),
            us(at(&self.quiet, 0.99)),
            us(at(&self.swapping, 0.5)),
            us(at(&self.swapping, 0.99)),
            ratio(0),
            ratio(1),
            ms(at(&self.routed, 0.5)),
            ms(at(&self.routed, 0.99)),
            ms(at(&self.swaps, 0.5)),
            ms(at(&self.swaps, 0.99)),
            self.failed,
            self.quiet.len() + self.swapping.len(),
        )
    }
}

pub fn section(parts: &[Part], once: &Once, repeats: usize, window: Duration) -> String {
    let names = [
        format!("one of {INSTANCES} instances replaced, {CHANGES} times a second, over {SERVICES} services"),
        format!("all {} routes, {ROUTE_SWAPS} times a second", SERVICES * ROUTES_EACH),
        format!("one of {BIG} endpoints of one service, {BIG_SWAPS} times a second"),
    ];
    let mut page = format!(
        "{SERVICES} services of {INSTANCES} instances and {} routes; {} requests a second on {} kept connections, to {HOT} \
         of the services; load, instances and gateway in one process. {} windows of {} s, alternately quiet and swapping; \
         a ratio is that of two windows side by side, median (range). Times in us (requests) and ms; p50 / p99.\n\n",
        SERVICES * ROUTES_EACH,
        client::CLIENTS * 500,
        client::CLIENTS,
        repeats * 4,
        window.as_secs_f64(),
    );
    page += "| swapped | swaps/s | quiet us | swapping us | ratio of p50 | ratio of p99 | change to first answer ms | one swap ms | failed or lost |\n";
    page += "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    parts.iter().zip(&names).for_each(|(part, name)| page += &part.row(name));
    let _ = writeln!(
        page,
        "\nSet-up of the {} instances: {} ms, {:.0} MiB with the routes. One service of {BIG} endpoints: {} ms, {:.0} MiB; all \
         of them replaced at once: {} ms. A page of metrics afterwards: {} ms, {:.1} MB.",
        SERVICES * INSTANCES,
        ms(once.setup),
        once.setup_mib,
        ms(once.big_setup),
        once.big_mib,
        ms(once.all_new),
        ms(once.scrape.0),
        once.scrape.1 as f64 / 1e6,
    );
    page
}

/// Memory of this process; nothing where there is no `/proc`.
pub fn resident_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).map_or(f64::NAN, |kib: f64| kib / 1024.0)
}

/// Of a sorted list.
fn at(sorted: &[Duration], share: f64) -> Duration {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn us(time: Duration) -> u128 {
    time.as_micros()
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}
