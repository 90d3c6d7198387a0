//! Carries out a plan and takes everything back: one thread that begins faults when they are due, ends them when they
//! are over, and writes down when a majority was whole and connected.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::machine::{Machine, end_kill, signal};
use super::network::Network;
use super::plan::{Fault, Plan, Step, Target};

/// A node that was started is looked at so often.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for a cluster that serves again after everything was taken back.
pub const HEALING: Duration = Duration::from_secs(60);

/// A fault that lasts.
struct Lasting {
    until: Instant,
    step: Step,
    undo: Undo,
}

enum Undo {
    Start(Vec<usize>),
    Continue { place: usize, pid: u32 },
    Resume(u32),
    Mend(Vec<(usize, usize)>),
    Quicken(usize),
    FreeDisk(usize),
    StopFailing { place: usize, strace: u32 },
    Clock(usize),
    Nothing,
}

/// The cluster under faults.
pub struct Faults {
    pub machines: Vec<Machine>,
    pub network: Network,
    began: Instant,
    lasting: Vec<Lasting>,
    /// Started or restarted, and not seen whole yet; with `true`, it must be let in again.
    starting: BTreeMap<usize, bool>,
    /// How often each kind was done.
    pub done: BTreeMap<Fault, u64>,
    /// The version that all are to be of in the end.
    newest: PathBuf,
    /// Upgrades whose node was struck by something else when they were due.
    postponed: Vec<Step>,
    /// How many services there are.
    pub services: usize,
    /// Steps that met another fault which excludes them.
    pub skipped: u64,
    /// From each of these microseconds on, a majority was whole and connected, or not.
    pub majority: Vec<(u64, bool)>,
    /// What was done when, for the log.
    pub told: Vec<String>,
}

impl Faults {
    /// All is well when it begins.
    pub fn new(machines: Vec<Machine>, network: Network, began: Instant, newest: PathBuf) -> Self {
        let (lasting, starting, done) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            machines,
            network,
            began,
            lasting,
            starting,
            done,
            newest,
            postponed: Vec::new(),
            services: 0,
            skipped: 0,
            majority: vec![(0, true)],
            told: Vec::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Does what is planned, in time, then waits for the end.
    pub fn run(&mut self, plan: &Plan, seconds: u64) -> Result<()> {
        let begun = Instant::now();
        let end = begun + Duration::from_secs(seconds);
        let mut steps = plan.steps.iter().peekable();
        while Instant::now() < end {
            while let Some(step) = steps.next_if(|step| begun + Duration::from_millis(step.at_ms) <= Instant::now()) {
                self.begin(*step)?;
            }
            for step in std::mem::take(&mut self.postponed) {
                self.begin(step)?;
            }
            self.look(|lasting| lasting.until <= Instant::now())?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Takes everything back and waits until the whole cluster serves. What is wrong, if it does not.
    pub fn heal(&mut self) -> Result<Option<String>> {
        self.look(|_| true)?;
        for step in std::mem::take(&mut self.postponed) {
            let Target::Node(place) = step.target else { continue };
            self.machines[place].upgrade(&self.newest);
            self.undo(Undo::Start(vec![place]), false)?;
        }
        let until = Instant::now() + HEALING;
        loop {
            self.look(|_| true)?;
            let states: Vec<Option<Value>> = self.machines.iter().map(Machine::status).collect();
            let whole = |status: &Option<Value>| status.as_ref().is_some_and(|status| self.is_whole(status));
            if self.starting.is_empty() && states.iter().all(whole) {
                self.told.push(format!("{:>9} us  all serve", self.now()));
                return Ok(None);
            }
            if Instant::now() > until {
                let text: Vec<String> = states
                    .iter()
                    .enumerate()
                    .map(|(place, status)| {
                        let shown = status.as_ref().map_or_else(
                            || "does not answer".to_owned(),
                            |status| format!("{} {} {}", status["store"], status["cluster"], status["services"]),
                        );
                        format!("n{}: {shown}", place + 1)
                    })
                    .collect();
                return Ok(Some(format!(
                    "does not serve {HEALING:?} after all was taken back:\n  {}",
                    text.join("\n  ")
                )));
            }
            std::thread::sleep(LOOK * 5);
        }
    }

    /// It serves, and everybody is a voter that the leader hears; a lost disk's old number is no member any more. Services,
    /// once there are some, are ready.
    fn is_whole(&self, status: &Value) -> bool {
        let members = status["cluster"]["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let well = |member: &Value| {
            member["role"] == "server" && matches!(member["state"].as_str(), Some("leader" | "follower"))
        };
        let services = status["services"].as_array().map(Vec::as_slice).unwrap_or_default();
        services.len() == self.services
            && services.iter().all(|service| service["state"] == "ready")
            && status["store"]["serving"] == true
            && members.len() == self.machines.len()
            && members.iter().all(well)
    }

    fn leader(&self) -> Option<usize> {
        self.machines.iter().find_map(|machine| {
            let name = machine.status()?["cluster"]["leader"].as_str()?.to_owned();
            name.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)
        })
    }

    /// The process of the ledger's primary, as whoever answers first knows it.
    fn primary(&self) -> Option<u32> {
        self.machines.iter().find_map(|machine| {
            let status = machine.status()?;
            let ledger = status["services"].as_array()?.iter().find(|one| one["name"] == "ledger")?;
            let mut instances = ledger["instances"].as_array()?.iter();
            let primary = instances.find(|one| one["id"] == ledger["primary"])?;
            let place = primary["node"].as_str()?.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)?;
            // A number of Windows' is not one of Linux'.
            (!self.machines.get(place)?.is_windows()).then_some(())?;
            u32::try_from(primary["pid"].as_u64()?).ok()
        })
    }

    /// Whether another fault has the processes of this machine.
    fn is_struck(&self, place: usize) -> bool {
        self.starting.contains_key(&place)
            || !self.machines[place].is_up()
            || self.lasting.iter().any(|lasting| match &lasting.undo {
                Undo::Start(places) => places.contains(&place),
                Undo::Continue { place: struck, .. }
                | Undo::FreeDisk(struck)
                | Undo::StopFailing { place: struck, .. } => *struck == place,
                Undo::Mend(_) | Undo::Quicken(_) | Undo::Clock(_) | Undo::Resume(_) | Undo::Nothing => false,
            })
    }

    fn begin(&mut self, step: Step) -> Result<()> {
        let nodes = self.machines.len();
        let place = match step.target {
            Target::Node(place) => place,
            Target::Leader => self.leader().unwrap_or(usize::try_from(step.dice).unwrap_or(0) % nodes),
        };
        let Some(undo) = self.strike(step, place)? else {
            if step.fault == Fault::Upgrade && !self.machines[place].is_of(&self.newest) {
                self.postponed.push(step);
            } else {
                self.skipped += 1;
            }
            return Ok(());
        };
        *self.done.entry(step.fault).or_default() += 1;
        self.told.push(format!(
            "{:>9} us  {}: n{} for {} ms, dice {}",
            self.now(),
            step.fault.words(),
            place + 1,
            step.lasts_ms,
            step.dice
        ));
        self.lasting.push(Lasting { until: Instant::now() + Duration::from_millis(step.lasts_ms), step, undo });
        self.note_majority();
        Ok(())
    }

    /// Begins a fault; none if it cannot be now.
    fn strike(&mut self, step: Step, place: usize) -> Result<Option<Undo>> {
        let nodes = self.machines.len();
        let dice = usize::try_from(step.dice)?;
        let other = (place + 1 + dice % (nodes - 1)) % nodes;
        let struck = self.is_struck(place);
        Ok(Some(match step.fault {
            Fault::KillKeeper
            | Fault::KillNode
            | Fault::Stop
            | Fault::Pause
            | Fault::FullDisk
            | Fault::FlushError
            | Fault::Upgrade
                if struck =>
            {
                return Ok(None);
            }
            Fault::Upgrade if self.machines[place].is_of(&self.newest) => return Ok(None),
            Fault::Upgrade => {
                self.machines[place].stop();
                self.machines[place].upgrade(&self.newest);
                Undo::Start(vec![place])
            }
            // Wine passes no signal on, and strace and faketime do not see into it.
            Fault::Stop | Fault::FlushError | Fault::Clock if self.machines[place].is_windows() => return Ok(None),
            Fault::Stop => {
                self.machines[place].stop();
                Undo::Start(vec![place])
            }
            Fault::KillKeeper => {
                self.machines[place].kill();
                Undo::Start(vec![place])
            }
            Fault::KillNode => {
                self.machines[place].signal_node("KILL");
                self.starting.insert(place, false);
                Undo::Nothing
            }
            Fault::KillAll => {
                if (0..nodes).any(|place| self.is_struck(place)) {
                    return Ok(None);
                }
                let dying: Vec<u32> = self.machines.iter_mut().flat_map(Machine::begin_kill).collect();
                end_kill(&dying);
                Undo::Start((0..nodes).collect())
            }
            Fault::Pause => match self.machines[place].signal_node("STOP") {
                Some(pid) => Undo::Continue { place, pid },
                None => return Ok(None),
            },
            Fault::Isolate => {
                let both =
                    (0..nodes).filter(|other| *other != place).flat_map(|other| [(place, other), (other, place)]);
                self.cut(both.collect())?
            }
            // One direction: from it, or to it.
            Fault::OneWay => self.cut(vec![if dice.is_multiple_of(2) { (place, other) } else { (other, place) }])?,
            Fault::Slow => {
                if self.lasting.iter().any(|lasting| matches!(lasting.undo, Undo::Quicken(slow) if slow == place)) {
                    return Ok(None);
                }
                self.network.slow(place, [64, 256, 1_000, 8_000][dice % 4])?;
                Undo::Quicken(place)
            }
            Fault::Transfer => {
                self.machines[place].verb(&["cluster", "transfer", &format!("n{}", other + 1)])?;
                Undo::Nothing
            }
            Fault::Wipe => {
                // A majority must hold everything: whoever loses a second disk meanwhile loses data, as anybody would.
                let well = |machine: &Machine| machine.status().is_some_and(|status| self.is_whole(&status));
                if !self.lasting.is_empty() || !self.starting.is_empty() || !self.machines.iter().all(well) {
                    return Ok(None);
                }
                self.machines[place].kill();
                self.machines[place].wipe()?;
                Undo::Start(vec![place])
            }
            Fault::FullDisk => {
                self.machines[place].fill_disk()?;
                Undo::FreeDisk(place)
            }
            Fault::FlushError => match self.machines[place].fail_flushes() {
                Ok(strace) => Undo::StopFailing { place, strace },
                Err(_) => return Ok(None),
            },
            Fault::Clock => {
                let seconds = [-3_600, -60, -5, 5, 60, 3_600, 86_400, -86_400][dice % 8];
                self.machines[place].set_clock(seconds)?;
                Undo::Clock(place)
            }
            Fault::KillPrimary | Fault::PausePrimary => {
                let Some(pid) = self.primary() else { return Ok(None) };
                let kills = step.fault == Fault::KillPrimary;
                signal(pid, if kills { "KILL" } else { "STOP" });
                if kills { Undo::Nothing } else { Undo::Resume(pid) }
            }
            Fault::Promote => {
                self.machines[place].verb(&["promote", "ledger"])?;
                Undo::Nothing
            }
        }))
    }

    fn cut(&mut self, directions: Vec<(usize, usize)>) -> Result<Undo> {
        for (from, to) in &directions {
            self.network.cut(*from, *to)?;
        }
        Ok(Undo::Mend(directions))
    }

    /// Ends the faults that are `over`, and looks at who was started.
    fn look(&mut self, over: impl Fn(&Lasting) -> bool) -> Result<()> {
        let (ended, lasting): (Vec<Lasting>, _) = std::mem::take(&mut self.lasting).into_iter().partition(over);
        self.lasting = lasting;
        for Lasting { step, undo, .. } in ended {
            if !matches!(undo, Undo::Nothing) {
                self.told.push(format!("{:>9} us  over: {}", self.now(), step.fault.words()));
            }
            self.undo(undo, step.fault == Fault::Wipe)?;
        }
        let mut back = Vec::new();
        for (place, must_be_let_in) in &self.starting {
            let status = self.machines[*place].status();
            if status.is_some_and(|status| !must_be_let_in || self.is_whole(&status)) {
                back.push(*place);
            }
        }
        for place in back {
            self.starting.remove(&place);
            self.told.push(format!("{:>9} us  n{} answers", self.now(), place + 1));
        }
        self.note_majority();
        Ok(())
    }

    fn undo(&mut self, undo: Undo, wiped: bool) -> Result<()> {
        match undo {
            Undo::Start(places) => {
                for place in places {
                    // One that was asked to stop has had its time.
                    self.machines[place].kill();
                    self.machines[place].start()?;
                    self.starting.insert(place, wiped);
                }
            }
            Undo::Continue { pid, .. } | Undo::Resume(pid) => signal(pid, "CONT"),
            Undo::Mend(directions) => {
                for (from, to) in directions {
                    self.network.mend(from, to)?;
                }
            }
            Undo::Quicken(place) => self.network.quicken(place)?,
            // As the product says: free space, then restart the node process.
            Undo::FreeDisk(place) => {
                self.machines[place].free_disk()?;
                self.machines[place].signal_node("KILL");
                self.starting.insert(place, false);
            }
            Undo::StopFailing { place, strace } => {
                signal(strace, "TERM");
                self.machines[place].signal_node("KILL");
                self.starting.insert(place, false);
            }
            Undo::Clock(place) => self.machines[place].set_clock(0)?,
            Undo::Nothing => {}
        }
        Ok(())
    }

    /// Writes down whether a majority is whole and connected, if that changed. Who sends slowly is not whole.
    fn note_majority(&mut self) {
        let nodes = self.machines.len();
        let is_slow =
            |place| self.lasting.iter().any(|lasting| matches!(lasting.undo, Undo::Quicken(slow) if slow == place));
        let sound: Vec<usize> = (0..nodes).filter(|place| !self.is_struck(*place) && !is_slow(*place)).collect();
        // Of three, whoever reaches another has a majority; of more, this is the best case.
        let reached =
            |from: &usize| sound.iter().filter(|to| *from == **to || self.network.connected(*from, **to)).count();
        let whole = sound.iter().map(reached).max().unwrap_or(0) > nodes / 2;
        if self.majority.last().is_none_or(|(_, known)| *known != whole) {
            self.majority.push((self.now(), whole));
        }
    }

    /// The nodes that ended by themselves, or said that they panicked.
    pub fn broken(&self) -> Result<()> {
        for machine in &self.machines {
            let printed = machine.printed();
            if let Some(line) = printed.lines().find(|line| line.contains("panicked at")) {
                bail!("n{} panicked: {line}", machine.place + 1);
            }
        }
        Ok(())
    }
}
