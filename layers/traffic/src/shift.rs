//! Whether a shift may take its next step: what the new destination shows is held against the gates of the step.
//! Argo Rollouts' and Flagger's rule: failed goes back, inconclusive pauses. The shift's controller asks again and again,
//! and gives `now` and what all gateways have counted since the step began. Deliberately absent: who counts, the store,
//! and what the steps are.

use std::time::{Duration, Instant};

use crate::tally::Totals;

/// A part of the whole.
type Millionths = u32;

/// The whole.
const WHOLE: f64 = 1e6;

/// How a shift is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How often.
    pub every: Duration,
    /// With fewer requests nothing is said.
    pub min_requests: u64,
    /// Judgements in a row that say nothing, before it pauses; zero counts as one.
    pub patience: u32,
}

/// What a step must show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gates {
    /// How long it lasts at least.
    pub hold: Duration,
    /// At most this part of the requests may fail.
    pub error_rate: Option<Millionths>,
    /// At least this part of the chains must succeed.
    pub success_rate: Option<Millionths>,
    /// Half of the answers are this quick.
    pub p50: Option<Duration>,
    /// 99 of 100 answers are this quick.
    pub p99: Option<Duration>,
    /// So many restarts are let pass.
    pub restarts: Option<u32>,
    /// The part of a processor that an instance may use.
    pub cpu: Option<Millionths>,
    /// Bounds of series, each with what it is called.
    pub series: Vec<(String, f64)>,
}

/// What the new destination has shown in this step so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Its requests.
    pub totals: Totals,
    /// Restarts of its instances.
    pub restarts: u32,
    /// The part of a processor that each of its instances uses on average; `None` where nobody tells.
    pub cpu: Option<Millionths>,
    /// The series of the gates, in their order; `None` where no instance has it.
    pub series: Vec<Option<f64>>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// The step has shown what it must for as long as it must.
    Advance,
    /// It has shown that it must not go on, and why.
    RollBack(String),
    /// Nothing can be said, and why.
    Pause(String),
}

/// One step under judgement. A new leader begins a new one.
#[derive(Clone, Debug)]
pub struct Judge {
    since: Instant,
    judged_at: Instant,
    /// What had been counted when it was last judged.
    judged: Totals,
    /// Requests between the last two judgements.
    usual: u64,
    unsaid: u32,
    /// The last judgement was a good one.
    passed: bool,
    /// The last judgement, in words.
    pub word: String,
}

impl Judge {
    /// Begins at `now`.
    pub fn begin(now: Instant) -> Self {
        let judged = Totals::default();
        Self { since: now, judged_at: now, judged, usual: 0, unsaid: 0, passed: false, word: String::new() }
    }

    /// Whether the step has lasted for so long.
    pub fn held(&self, hold: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= hold
    }

    /// When to ask again, unless something has happened.
    pub fn next_look(&self, terms: &Terms, gates: &Gates) -> Instant {
        let judged = self.judged_at + terms.every;
        if self.passed { judged.min(self.since + gates.hold) } else { judged }
    }

    /// What follows from what has been seen.
    pub fn judge(&mut self, terms: &Terms, gates: &Gates, seen: &Seen, now: Instant) -> Verdict {
        let new = seen.totals.since(&self.judged);
        let elapsed = now.saturating_duration_since(self.judged_at);
        if let Some(why) = self.certain(terms, gates, seen, &new, elapsed) {
            return Verdict::RollBack(why);
        }
        if elapsed >= terms.every {
            match self.look(terms, gates, seen, &new) {
                Ok(word) => {
                    (self.judged_at, self.usual, self.unsaid, self.passed) = (now, new.requests, 0, true);
                    self.judged = seen.totals.clone();
                    self.word = word;
                }
                Err(Verdict::Pause(why)) => {
                    (self.judged_at, self.passed) = (now, false);
                    self.unsaid += 1;
                    self.word.clone_from(&why);
                    if self.unsaid >= terms.patience.max(1) {
                        return Verdict::Pause(why);
                    }
                }
                Err(verdict) => return verdict,
            }
        }
        let held = now.saturating_duration_since(self.since) >= gates.hold;
        if self.passed && held { Verdict::Advance } else { Verdict::Wait }
    }

    /// What has failed already, whatever may still come until the next judgement.
    fn certain(&self, terms: &Terms, gates: &Gates, seen: &Seen, new: &Totals, elapsed: Duration) -> Option<String> {
        if let Some(most) = gates.restarts
            && seen.restarts > most
        {
            return Some(format!("{} restarts of its instances (at most {most})", seen.restarts));
        }
        if new.requests < terms.min_requests {
            return None;
        }
        let pace = terms.every.as_secs_f64() / elapsed.as_secs_f64().max(0.001);
        let expected = (new.requests as f64 * pace.max(1.0)).max(self.usual as f64);
        let too_many = |failed: u64, part: f64| failed as f64 > expected * part;
        if let Some(rate) = gates.error_rate
            && too_many(new.failed, f64::from(rate) / WHOLE)
        {
            return Some(errors(new, rate));
        }
        if let Some(rate) = gates.success_rate
            && too_many(new.chains_failed, 1.0 - f64::from(rate) / WHOLE)
        {
            return Some(chains(new, rate));
        }
        None
    }

    /// A judgement: what was found, in words.
    fn look(&self, terms: &Terms, gates: &Gates, seen: &Seen, new: &Totals) -> Result<String, Verdict> {
        if new.requests < terms.min_requests {
            let (came, least) = (new.requests, terms.min_requests);
            // Too many, even if all that are missing came and went well.
            let too_many = |failed: u64, part: f64| failed as f64 > least as f64 * part;
            if let Some(rate) = gates.error_rate
                && too_many(new.failed, f64::from(rate) / WHOLE)
            {
                return Err(Verdict::RollBack(errors(new, rate)));
            }
            if let Some(rate) = gates.success_rate
                && too_many(new.chains_failed, 1.0 - f64::from(rate) / WHOLE)
            {
                return Err(Verdict::RollBack(chains(new, rate)));
            }
            return Err(Verdict::Pause(format!("only {came} requests came, too few to judge by (at least {least})")));
        }
        let fail = |why: String| Err(Verdict::RollBack(why));
        let part = |count: u64| count as f64 / new.requests as f64;
        if let Some(rate) = gates.error_rate
            && part(new.failed) > f64::from(rate) / WHOLE
        {
            return fail(errors(new, rate));
        }
        if let Some(rate) = gates.success_rate
            && 1.0 - part(new.chains_failed) < f64::from(rate) / WHOLE
        {
            return fail(chains(new, rate));
        }
        for (name, part, most) in [("P50", 0.5, gates.p50), ("P99", 0.99, gates.p99)] {
            if let (Some(most), Some(took)) = (most, new.quantile(part))
                && took > most
            {
                return fail(format!("{name} {took:?} (at most {most:?})"));
            }
        }
        if let Some(most) = gates.cpu {
            match seen.cpu {
                None => return Err(Verdict::Pause("nobody tells how much CPU its instances use".into())),
                Some(cpu) if cpu > most => {
                    return fail(format!(
                        "CPU {} of a processor for each instance (at most {})",
                        percent(cpu),
                        percent(most)
                    ));
                }
                Some(_) => {}
            }
        }
        for ((name, most), value) in gates.series.iter().zip(&seen.series) {
            match value {
                None => return Err(Verdict::Pause(format!("no instance of it tells {name}"))),
                Some(value) if value > most => return fail(format!("{name} {value:.2} (at most {most})")),
                Some(_) => {}
            }
        }
        let p99 = new.quantile(0.99).unwrap_or_default();
        Ok(format!("{} of {} requests failed, P99 {p99:?}", new.failed, new.requests))
    }
}

fn errors(new: &Totals, rate: Millionths) -> String {
    format!("{} of {} requests failed (at most {})", new.failed, new.requests, percent(rate))
}

fn chains(new: &Totals, rate: Millionths) -> String {
    let (failed, all) = (new.chains_failed, new.requests);
    format!("{failed} of {all} chains of requests failed somewhere (at least {} must succeed)", percent(rate))
}

fn percent(part: Millionths) -> String {
    format!("{}%", f64::from(part) / 1e4)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Gates, Judge, Seen, Terms, Verdict};
    use crate::tally::Tally;

    const SECOND: Duration = Duration::from_secs(1);

    fn terms() -> Terms {
        Terms { every: 10 * SECOND, min_requests: 20, patience: 2 }
    }

    fn gates() -> Gates {
        Gates { hold: 25 * SECOND, error_rate: Some(10_000), p99: Some(SECOND), restarts: Some(0), ..Gates::default() }
    }

    fn add(tally: &Tally, good: u64, bad: u64, took: Duration) -> Seen {
        (0..good).for_each(|_| tally.add(false, false, took));
        (0..bad).for_each(|_| tally.add(true, true, took));
        Seen { totals: tally.read(), ..Seen::default() }
    }

    /// Judges at these seconds, each after so many good and bad requests.
    fn run(gates: &Gates, table: &[(u64, u64, u64)]) -> Vec<Verdict> {
        let (begun, tally) = (Instant::now(), Tally::default());
        let mut judge = Judge::begin(begun);
        let quick = Duration::from_millis(5);
        let look = |(at, good, bad): &(u64, u64, u64)| {
            judge.judge(&terms(), gates, &add(&tally, *good, *bad, quick), begun + SECOND * u32::try_from(*at).unwrap())
        };
        table.iter().map(look).collect()
    }

    #[test]
    fn a_good_step_ends_after_its_hold_and_a_judgement() {
        use Verdict::{Advance, Wait};
        let table = [(1, 50, 0), (10, 50, 0), (20, 100, 1), (24, 5, 0), (25, 0, 0)];
        assert_eq!(run(&gates(), &table), [Wait, Wait, Wait, Wait, Advance]);
        let short = Gates { hold: Duration::ZERO, ..gates() };
        assert_eq!(run(&short, &[(1, 50, 0), (10, 0, 0)]), [Wait, Advance], "not without a judgement");
    }

    #[test]
    fn what_can_no_longer_pass_goes_back_at_once() {
        let verdicts = run(&gates(), &[(1, 80, 20)]);
        assert_eq!(why(&verdicts[0]), "20 of 100 requests failed (at most 1%)");
        // At this pace a thousand come, of which ten may fail.
        assert_eq!(run(&gates(), &[(1, 90, 10)]), [Verdict::Wait]);
        // As many came in the time before: one failure of the first twenty decides nothing.
        assert_eq!(run(&gates(), &[(10, 1000, 0), (11, 19, 1)]), [Verdict::Wait, Verdict::Wait]);
    }

    fn why(verdict: &Verdict) -> &str {
        if let Verdict::RollBack(why) = verdict { why } else { panic!("{verdict:?}") }
    }

    #[test]
    fn too_little_to_judge_by_pauses_after_a_while() {
        let verdicts = run(&gates(), &[(10, 5, 0), (20, 5, 0)]);
        assert_eq!(verdicts[0], Verdict::Wait);
        assert!(matches!(&verdicts[1], Verdict::Pause(why) if why.contains("only 10 requests")), "{verdicts:?}");
        // A hundredth of twenty may fail: one is too many, whatever the other nineteen would have been.
        let verdicts = run(&gates(), &[(9, 4, 1), (10, 0, 0)]);
        assert_eq!((&verdicts[0], why(&verdicts[1])), (&Verdict::Wait, "1 of 5 requests failed (at most 1%)"));
        let verdicts = run(&gates(), &[(10, 5, 0), (20, 15, 0), (30, 20, 0)]);
        assert_eq!(verdicts, [Verdict::Wait, Verdict::Wait, Verdict::Advance], "what came counts until it is judged");
    }

    #[test]
    fn each_gate_is_looked_at() {
        let (begun, tally) = (Instant::now(), Tally::default());
        let good = add(&tally, 100, 0, Duration::from_millis(5));
        let base = Gates { hold: Duration::ZERO, ..Gates::default() };
        let with = |gates: Gates, seen: &Seen| Judge::begin(begun).judge(&terms(), &gates, seen, begun + 10 * SECOND);
        let series = |most: f64| vec![("gc".to_owned(), most)];
        for (gates, seen, word) in [
            (Gates { p99: Some(Duration::from_millis(4)), ..base.clone() }, good.clone(), "P99 5.1"),
            (Gates { p50: Some(Duration::from_millis(4)), ..base.clone() }, good.clone(), "P50 5.1"),
            (Gates { restarts: Some(1), ..base.clone() }, Seen { restarts: 2, ..good.clone() }, "2 restarts"),
            (Gates { cpu: Some(500_000), ..base.clone() }, Seen { cpu: Some(600_000), ..good.clone() }, "CPU 60%"),
            (
                Gates { series: series(2.0), ..base.clone() },
                Seen { series: vec![Some(2.5)], ..good.clone() },
                "gc 2.50",
            ),
        ] {
            let verdict = with(gates.clone(), &seen);
            assert!(why(&verdict).starts_with(word), "{verdict:?}");
            let lenient = Gates {
                cpu: gates.cpu.map(|_| 900_000),
                series: Vec::new(),
                p50: None,
                p99: None,
                restarts: None,
                ..gates
            };
            assert_eq!(with(lenient, &seen), Verdict::Advance);
        }
        let patient = Terms { patience: 1, ..terms() };
        for gates in [Gates { cpu: Some(1), ..base.clone() }, Gates { series: series(1.0), ..base.clone() }] {
            let seen = Seen { series: vec![None], ..good.clone() };
            let verdict = Judge::begin(begun).judge(&patient, &gates, &seen, begun + 10 * SECOND);
            assert!(matches!(verdict, Verdict::Pause(_)), "{verdict:?}");
        }
        let tally = Tally::default();
        (0..100).for_each(|number| tally.add(false, number < 5, Duration::from_millis(5)));
        let hidden = Seen { totals: tally.read(), ..Seen::default() };
        let gates = Gates { error_rate: Some(0), success_rate: Some(990_000), ..base };
        assert!(why(&with(gates, &hidden)).starts_with("5 of 100 chains"));
    }
}
