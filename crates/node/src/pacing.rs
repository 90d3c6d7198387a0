//! What the controller looks at, and how often: a service when something happened to it or its time has come, all of them when
//! something happened that may concern any, and each second. What takes long is done so seldom that it takes a bounded part
//! of the time. Beside the controller's loop.

use std::time::{Duration, Instant};

use model::ServiceName;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use crate::input::Input;

/// Without any input everything is looked at this often, unless that takes long.
pub const IDLE_LOOK: Duration = Duration::from_secs(1);
/// And this often however long it takes.
const MAX_IDLE_LOOK: Duration = Duration::from_secs(5);
/// The part of the time that looks at everything take without any input: one of so many.
const IDLE: u32 = 200;
/// Changes of the status within this time are published together, at the least.
const SHOW_GRAIN: Duration = Duration::from_millis(10);
/// The part of the time that looks at services take at most: one of so many.
const LOOKS: u32 = 5;
/// The same of the status, and of what this node says to others.
const WHOLE: u32 = 20;
/// What is quicker is done for every piece of news.
const QUICK: Duration = Duration::from_micros(500);
/// The longest that news wait for others.
const MAX_GATHER: Duration = Duration::from_millis(20);
/// The longest that others wait for news of this node.
const MAX_SAYING: Duration = Duration::from_millis(100);

/// How long something takes. One stall of the machine counts little: it at most doubles what was known.
#[derive(Clone, Copy)]
struct Cost(Duration);

impl Cost {
    const LEAST: Self = Self(Duration::from_micros(50));

    fn measured(&mut self, took: Duration) {
        self.0 = took.clamp(Self::LEAST.0, self.0 * 2);
    }
}

/// When what is looked at.
pub struct Pace {
    /// Something happened that may concern any service.
    everything: bool,
    /// Something happened to one, or its time may have come: only then they are gone through, as that alone is work where
    /// there are thousands.
    something: bool,
    /// When all were looked at last.
    looked: Option<Instant>,
    /// What that costs.
    looking: Cost,
    /// When those that have a primary were.
    looked_at_standing: Option<Instant>,
    /// The first time at which one wants to be stepped.
    look: Option<Instant>,
    /// Those that have a primary.
    pub standing: Vec<ServiceName>,
    /// Those that have backups.
    pub backed: Vec<ServiceName>,
    /// What their steps knew of the lease and of who leads.
    knew: (bool, bool),
    /// What a step costs.
    stepping: Cost,
    /// When the status was published last.
    shown: Option<Instant>,
    /// What that costs.
    showing: Cost,
    /// It may have changed since.
    stale: bool,
    /// And waits for its time to be published.
    show_due: bool,
    /// Until when others are told nothing new.
    said_until: Option<Instant>,
    /// What finding out what to tell them costs.
    saying: Cost,
}

impl Pace {
    /// Everything is new.
    pub fn new() -> Self {
        Self {
            everything: true,
            something: true,
            looked: None,
            looking: Cost::LEAST,
            looked_at_standing: None,
            look: None,
            standing: Vec::new(),
            backed: Vec::new(),
            knew: (false, false),
            stepping: Cost::LEAST,
            shown: None,
            showing: Cost::LEAST,
            stale: true,
            show_due: false,
            said_until: None,
            saying: Cost::LEAST,
        }
    }

    /// An input arrived.
    pub fn arrived(&mut self, input: &Input) {
        match concern(input) {
            Concern::Nobody => {}
            Concern::One => (self.something, self.stale) = (true, true),
            Concern::Any => self.concerns_any(),
        }
    }

    /// Something happened that may concern any service.
    pub fn concerns_any(&mut self) {
        (self.everything, self.stale) = (true, true);
    }

    /// Whether any service is to be stepped now.
    pub fn takes_something(&self, now: Instant) -> bool {
        self.something || self.look.is_some_and(|look| look <= now)
    }

    /// Those were stepped whose time had come; `look`: when the next one's is.
    pub fn stepped_some(&mut self, look: Option<Instant>) {
        (self.something, self.look, self.stale) = (false, look, true);
    }

    /// When one wants to be stepped.
    pub fn next_look(&self) -> Option<Instant> {
        self.look
    }

    /// Whether every service is stepped now: also when what all of them go by has changed.
    pub fn takes_everything(&mut self, blind: bool, leads: bool, now: Instant) -> bool {
        let known = std::mem::replace(&mut self.knew, (blind, leads)) == (blind, leads);
        let often = (self.looking.0 * IDLE).clamp(IDLE_LOOK, MAX_IDLE_LOOK);
        let lately = self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < often);
        let everything = std::mem::take(&mut self.everything) || !known || !lately;
        if everything {
            (self.looked, self.looked_at_standing) = (Some(now), Some(now));
        }
        everything
    }

    /// All were stepped, which took so long.
    pub fn looked_at_all(&mut self, took: Duration) {
        self.looking.measured(took);
    }

    /// Whether those that have a primary are stepped now; how long one may live is not put off.
    pub fn takes_standing(&mut self, now: Instant) -> bool {
        let due = self.looked_at_standing.is_none_or(|looked| now.saturating_duration_since(looked) >= IDLE_LOOK);
        if due {
            self.looked_at_standing = Some(now);
            self.something |= !self.standing.is_empty();
        }
        due
    }

    /// Whether others may be told news now.
    pub fn may_say(&self, now: Instant) -> bool {
        self.said_until.is_none_or(|until| until <= now)
    }

    /// To find out what to tell others took so long.
    pub fn said(&mut self, now: Instant, took: Duration) {
        self.saying.measured(took);
        let Cost(cost) = self.saying;
        self.said_until = (cost >= QUICK).then(|| now + (cost * WHOLE).min(MAX_SAYING));
    }

    /// A step took so long. For how long news are gathered before the next one.
    pub fn stepped(&mut self, took: Duration) -> Duration {
        self.stepping.measured(took);
        gathering(self.stepping.0)
    }

    /// Whether a status is published now. `answered`: somebody gets an answer, and reads it next. `happened`: there are events,
    /// which nobody sees before it.
    pub fn may_show(&mut self, answered: bool, happened: bool, now: Instant) -> bool {
        // An event may come from what is no service, and waits for no step.
        self.stale |= happened;
        let at_once = answered || (happened && self.showing.0 < QUICK);
        let late = |shown| now.saturating_duration_since(shown) >= grain(self.showing.0);
        let show = at_once || (self.stale && self.shown.is_none_or(late));
        self.show_due = self.stale && !show;
        show
    }

    /// It was published, which took so long.
    pub fn showed(&mut self, now: Instant, took: Duration) {
        (self.shown, self.stale) = (Some(now), false);
        self.showing.measured(took);
    }

    /// The longest that the loop may sleep.
    pub fn longest(&self, now: Instant) -> Duration {
        if self.everything || self.something {
            return Duration::ZERO;
        }
        let show = self.shown.filter(|_| self.show_due).map(|shown| shown + grain(self.showing.0));
        let due = [show, self.said_until.filter(|until| *until > now)].into_iter().flatten().min();
        due.map_or(IDLE_LOOK, |due| due.saturating_duration_since(now).min(IDLE_LOOK))
    }
}

/// Whom an input is about.
enum Concern {
    /// No service has anything to do; how long leases are good is asked when it matters.
    Nobody,
    /// The one that it names.
    One,
    /// Maybe any.
    Any,
}

fn concern(input: &Input) -> Concern {
    use runtime::protocol::Report;
    match input {
        Input::LeaseGood { .. } | Input::LeaseKept { .. } => Concern::Nobody,
        Input::Probed { .. }
        | Input::Noticed(_)
        | Input::PreStopped { .. }
        | Input::Resolved { .. }
        | Input::Keeper(Report::Started { .. } | Report::Exited { .. } | Report::Unkillable { .. }) => Concern::One,
        _ => Concern::Any,
    }
}

/// For how long news are gathered where a step takes so long.
fn gathering(took: Duration) -> Duration {
    if took < QUICK { Duration::ZERO } else { (took * (LOOKS - 1)).min(MAX_GATHER) }
}

/// The least time between two statuses, where one takes so long to make.
fn grain(took: Duration) -> Duration {
    SHOW_GRAIN.max(took * WHOLE).min(Duration::from_secs(1))
}

/// What is there already, or comes until `until`.
pub async fn next<T>(inputs: &mut mpsc::Receiver<T>, gather: Duration, until: tokio::time::Instant) -> Option<T> {
    match inputs.try_recv() {
        Ok(next) => Some(next),
        Err(_) if gather.is_zero() => None,
        Err(_) => timeout_at(until, inputs.recv()).await.ok().flatten(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{IDLE_LOOK, Pace, gathering, grain};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn looks_take_a_fifth_of_the_time_and_few_services_wait_for_nothing() {
        assert_eq!(gathering(Duration::from_micros(400)), ms(0));
        assert_eq!((gathering(ms(2)), gathering(ms(50))), (ms(8), ms(20)));
        assert_eq!((grain(Duration::from_micros(100)), grain(ms(10)), grain(ms(900))), (ms(10), ms(200), ms(1000)));
    }

    #[test]
    fn all_are_stepped_when_that_may_matter_and_each_second() {
        let (mut pace, now) = (Pace::new(), Instant::now());
        assert!(pace.takes_everything(false, false, now), "at first");
        assert!(!pace.takes_everything(false, false, now + ms(10)));
        pace.concerns_any();
        assert!(pace.takes_everything(false, false, now + ms(20)));
        assert!(pace.takes_everything(true, false, now + ms(30)), "the lease has run out");
        assert!(pace.takes_everything(true, true, now + ms(40)), "it leads now");
        assert!(!pace.takes_everything(true, true, now + ms(50)));
        assert!(pace.takes_everything(true, true, now + ms(40) + IDLE_LOOK));
        for _ in 0..20 {
            pace.looked_at_all(ms(15));
        }
        pace.standing = vec!["ledger".into()];
        pace.stepped_some(None);
        let again = now + ms(40) + IDLE_LOOK * 2;
        assert!(!pace.takes_everything(true, true, again), "three seconds where it takes so long");
        assert!(pace.takes_standing(again) && pace.takes_something(again) && !pace.takes_standing(again + ms(999)));
        assert!(pace.takes_everything(true, true, again + IDLE_LOOK * 2));
    }

    #[test]
    fn a_status_waits_for_its_time_but_not_where_somebody_gets_an_answer() {
        let (mut pace, now) = (Pace::new(), Instant::now());
        assert_eq!(pace.longest(now), ms(0), "there is something to do");
        pace.takes_everything(false, false, now);
        pace.stepped_some(Some(now + ms(7)));
        assert!(!pace.takes_something(now + ms(6)) && pace.takes_something(now + ms(7)));
        pace.stepped_some(None);
        assert!(pace.may_show(false, false, now));
        pace.showed(now, ms(5));
        assert!(pace.may_show(false, true, now + ms(1)), "one stall is none");
        for _ in 0..10 {
            pace.showed(now, ms(5));
        }
        pace.stepped_some(None);
        assert!(!pace.may_show(false, true, now + ms(50)), "events wait with it");
        assert_eq!(pace.longest(now + ms(50)), ms(50));
        assert!(pace.may_show(true, false, now + ms(60)));
        assert!(pace.may_show(false, false, now + ms(100)));
        pace.showed(now + ms(100), Duration::from_micros(80));
        assert!(!pace.may_show(false, false, now + ms(150)), "nothing is new");
        assert_eq!(pace.longest(now + ms(150)), IDLE_LOOK);
        for _ in 0..10 {
            pace.showed(now + ms(150), ms(5));
        }
        assert!(!pace.may_show(false, true, now + ms(200)), "an event of no service waits for its time");
        assert!(pace.may_show(false, false, now + ms(250)), "and for nothing else");
        for _ in 0..10 {
            pace.showed(now + ms(100), Duration::from_micros(80));
        }
        pace.stepped_some(None);
        assert!(!pace.may_show(false, false, now + ms(105)));
        assert!(pace.may_show(false, true, now + ms(106)), "a quick one is made for every event");
    }

    #[test]
    fn what_takes_long_is_told_to_others_less_often() {
        let (mut pace, now) = (Pace::new(), Instant::now());
        pace.takes_everything(false, false, now);
        pace.stepped_some(None);
        pace.said(now, ms(2));
        assert!(pace.may_say(now), "one stall is none");
        for _ in 0..10 {
            pace.said(now, ms(2));
        }
        assert!(!pace.may_say(now + ms(39)) && pace.may_say(now + ms(40)));
        assert_eq!(pace.longest(now), ms(40));
        for _ in 0..10 {
            pace.said(now, ms(50));
        }
        assert!(!pace.may_say(now + ms(99)) && pace.may_say(now + ms(100)));
    }
}
