//! Many worlds on all cores: counts, the first that fails with the end of its trace and the command that repeats it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sim::{Outcome, Plant};

/// A world takes milliseconds; one that takes so long goes round in circles.
const STUCK: Duration = Duration::from_secs(120);
/// Between two words of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// What the command line asks for.
pub struct Wanted {
    seeds: u64,
    from: u64,
    parallel: usize,
    plant: Option<Plant>,
    names_plants: bool,
    whole: bool,
    record: Option<String>,
}

impl Wanted {
    /// Reads the command line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        let mut wanted =
            Self { seeds: 1000, from: 0, parallel, plant: None, names_plants: false, whole: false, record: None };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("{word}: `{text}` is not a number"));
            match word.as_str() {
                "--seeds" => wanted.seeds = number(value()?)?,
                "--from" => wanted.from = number(value()?)?,
                "--parallel" => {
                    wanted.parallel = usize::try_from(number(value()?)?.max(1)).map_err(|error| error.to_string())?;
                }
                "--plant" => {
                    let name = value()?;
                    let plant =
                        Plant::named(&name).ok_or_else(|| format!("there is no plant `{name}`: see --plants"))?;
                    if plant.is_inside() && !cfg!(feature = "planted") {
                        return Err(format!("`{name}` needs a build with `--features planted`"));
                    }
                    wanted.plant = Some(plant);
                }
                "--plants" => wanted.names_plants = true,
                "--whole" => wanted.whole = true,
                "--record" => wanted.record = Some(value()?),
                other => return Err(format!("`{other}` is not known")),
            }
        }
        Ok(wanted)
    }
}

#[derive(Default)]
struct Sum {
    worlds: u64,
    lines: u64,
    revisions: u64,
    observations: u64,
    virtual_time: Duration,
    faults: BTreeMap<&'static str, u64>,
    failed: Vec<Outcome>,
}

/// Runs them; whether all went well (or, with a plant, whether it was noticed).
///
/// # Errors
/// The result cannot be written.
pub fn run(wanted: &Wanted) -> Result<bool, String> {
    if wanted.names_plants {
        for plant in Plant::ALL {
            println!("{:32} {}", plant.name(), plant.what());
        }
        return Ok(true);
    }
    if wanted.whole {
        let outcome = sim::run(wanted.from, wanted.plant, true);
        print!("{}", outcome.trace);
        println!("{:016x} {} lines, {:?}", outcome.hash, outcome.lines, outcome.violation);
        return Ok(outcome.violation.is_none());
    }
    let began = Instant::now();
    let (next, stop, sum) = (AtomicU64::new(wanted.from), AtomicBool::new(false), Mutex::new(Sum::default()));
    let end = wanted.from + wanted.seeds;
    std::thread::scope(|scope| {
        for _ in 0..wanted.parallel {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = one(seed, wanted.plant);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    if outcome.violation.is_some() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    sum.add(outcome);
                }
            });
        }
        let mut told = Instant::now();
        while next.load(Ordering::Relaxed) < end && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                eprintln!("{} of {} worlds", next.load(Ordering::Relaxed) - wanted.from, wanted.seeds);
            }
        }
    });
    let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.failed.sort_by_key(|outcome| outcome.seed);
    let report = sum.report(wanted, began.elapsed());
    print!("{report}");
    if let Some(file) = &wanted.record {
        std::fs::write(file, &report).map_err(|error| format!("{file}: {error}"))?;
    }
    if let Some(outcome) = sum.failed.first() {
        eprint!("{}", outcome.trace);
    }
    Ok(sum.failed.is_empty() == wanted.plant.is_none())
}

/// One world, on a thread of its own: what it leaves behind in the thread ends with it.
fn one(seed: u64, plant: Option<Plant>) -> Outcome {
    let (done, waits) = std::sync::mpsc::channel();
    let world = std::thread::Builder::new().name(format!("seed-{seed}")).spawn(move || {
        // Ignored: nobody waits any more.
        let _ = done.send(sim::run(seed, plant, false));
    });
    if let Err(error) = world {
        eprintln!("no thread for seed {seed}: {error}");
        std::process::exit(2);
    }
    waits.recv_timeout(STUCK).unwrap_or_else(|_| {
        eprintln!("seed {seed} has not ended in {} s, or has died", STUCK.as_secs());
        std::process::exit(1);
    })
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.worlds += 1;
        self.lines += outcome.lines;
        self.revisions += outcome.revisions;
        self.observations += outcome.observations;
        self.virtual_time += outcome.lasted;
        for (fault, count) in &outcome.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        if outcome.violation.is_some() {
            self.failed.push(outcome);
        }
    }

    fn report(&self, wanted: &Wanted, took: Duration) -> String {
        let mut text = String::new();
        let plant = wanted.plant.map_or_else(String::new, |plant| format!(" --plant {}", plant.name()));
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!(
            "worlds {} (seeds {} to {}), {:.0} s, {:.1} ms a world",
            self.worlds,
            wanted.from,
            wanted.from + wanted.seeds.max(1) - 1,
            took.as_secs_f64(),
            took.as_secs_f64() * 1e3 * wanted.parallel as f64 / self.worlds.max(1) as f64
        ));
        line(format!(
            "simulated {:.1} h; revisions {}, observations {}, lines of trace {}",
            self.virtual_time.as_secs_f64() / 3600.0,
            self.revisions,
            self.observations,
            self.lines
        ));
        for (fault, count) in &self.faults {
            line(format!("  {count:>9} {fault}"));
        }
        match self.failed.first() {
            None => line("nothing was violated".to_owned()),
            Some(outcome) => {
                if let Some(violation) = &outcome.violation {
                    line(format!("seed {} violates {}: {}", outcome.seed, violation.invariant, violation.message));
                }
                line(format!("again: cargo xtask sim --from {} --whole{plant}", outcome.seed));
            }
        }
        text
    }
}
