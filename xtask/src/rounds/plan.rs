//! Which faults, when and to whom: all from the seed, before the round begins. Only who leads is found out on the way.

use super::chance::Chance;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    KillKeeper,
    KillNode,
    KillAll,
    Stop,
    Pause,
    Isolate,
    OneWay,
    Slow,
    Transfer,
    Wipe,
    FullDisk,
    FlushError,
    Clock,
    KillPrimary,
    PausePrimary,
    Promote,
    /// Not chosen by chance: each node once, in rounds that begin with an older version.
    Upgrade,
}

impl Fault {
    /// All that chance chooses from.
    pub const ALL: [Self; 16] = [
        Self::KillKeeper,
        Self::KillNode,
        Self::KillAll,
        Self::Stop,
        Self::Pause,
        Self::Isolate,
        Self::OneWay,
        Self::Slow,
        Self::Transfer,
        Self::Wipe,
        Self::FullDisk,
        Self::FlushError,
        Self::Clock,
        Self::KillPrimary,
        Self::PausePrimary,
        Self::Promote,
    ];

    /// In reports.
    pub fn words(self) -> &'static str {
        match self {
            Self::KillKeeper => "a node's processes killed",
            Self::KillNode => "a node process killed",
            Self::KillAll => "all killed at once",
            Self::Stop => "a node stopped in good order",
            Self::Pause => "a node process stopped (SIGSTOP)",
            Self::Isolate => "a node cut off",
            Self::OneWay => "one direction between two nodes cut",
            Self::Slow => "a node's link slow",
            Self::Transfer => "the leader changed by hand",
            Self::Wipe => "a node's disk lost",
            Self::FullDisk => "a node's disk full",
            Self::FlushError => "a flush failed (EIO)",
            Self::Clock => "a node's clock set",
            Self::KillPrimary => "a primary killed",
            Self::PausePrimary => "a primary stopped (SIGSTOP)",
            Self::Promote => "the primary changed by hand",
            Self::Upgrade => "a node stopped in good order, and started as the newer version",
        }
    }

    /// How long it lasts, in milliseconds, at least and at most.
    fn lasts(self) -> (u64, u64) {
        match self {
            Self::Pause => (1_000, 10_000),
            Self::KillKeeper | Self::KillAll | Self::Wipe => (0, 2_000),
            Self::Stop => (1_000, 4_000),
            Self::Upgrade => (4_000, 8_000),
            Self::KillNode | Self::Transfer | Self::KillPrimary | Self::Promote => (0, 0),
            Self::Slow | Self::Isolate | Self::OneWay | Self::Clock | Self::PausePrimary => (500, 6_000),
            Self::FullDisk => (2_000, 5_000),
            Self::FlushError => (500, 1_500),
        }
    }
}

/// Whom a fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Whoever leads then.
    Leader,
    /// The node at this place.
    Node(usize),
}

/// One fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Milliseconds after the clients began.
    pub at_ms: u64,
    /// What.
    pub fault: Fault,
    /// To whom.
    pub target: Target,
    /// Until it is taken back.
    pub lasts_ms: u64,
    /// A number for what else is to be chosen.
    pub dice: u64,
}

/// A round's faults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The kinds that were chosen.
    pub kinds: Vec<Fault>,
    /// In order of time.
    pub steps: Vec<Step>,
    /// The node whose clock may be set.
    pub clock: Option<usize>,
}

/// The plan of `seed` for a round of so long. `possible`: the kinds this machine can do, three at least.
pub fn plan(seed: u64, seconds: u64, nodes: usize, possible: &[Fault]) -> Plan {
    let mut chance = Chance::new(seed, 1);
    let mut left = possible.to_vec();
    let count = usize::try_from(chance.between(3, 5)).expect("it is small").min(left.len());
    let kinds: Vec<Fault> = (0..count).map(|_| left.swap_remove(chance.place(left.len()))).collect();
    let clock = kinds.contains(&Fault::Clock).then(|| chance.place(nodes));
    // A short round has shorter faults, so that there are several in it.
    let scale = |ms: u64| if seconds < 20 { ms / 4 } else { ms };
    let (mut steps, mut at_ms, mut busy_until) = (Vec::new(), scale(1_000), 0);
    while at_ms < seconds * 1_000 {
        // Each kind once, then as chance has it.
        let fault = kinds.get(steps.len()).copied().unwrap_or_else(|| kinds[chance.place(kinds.len())]);
        let (least, most) = fault.lasts();
        let lasts_ms = scale(chance.between(least, most));
        let target = match fault {
            Fault::Clock => Target::Node(clock.unwrap_or(0)),
            Fault::Wipe | Fault::Transfer | Fault::Promote => Target::Node(chance.place(nodes)),
            _ if chance.percent(40) => Target::Leader,
            _ => Target::Node(chance.place(nodes)),
        };
        steps.push(Step { at_ms, fault, target, lasts_ms, dice: chance.below(1 << 32) });
        busy_until = busy_until.max(at_ms + lasts_ms);
        // Two in five begin while another lasts.
        let from = if chance.percent(40) { at_ms } else { busy_until };
        at_ms = from + scale(chance.between(200, 1_800));
    }
    Plan { kinds, steps, clock }
}

impl Plan {
    /// The same with every node upgraded meanwhile, one after the other, in an order of chance.
    #[must_use]
    pub fn with_upgrades(mut self, seed: u64, seconds: u64, nodes: usize) -> Self {
        let mut chance = Chance::new(seed, 4);
        let mut left: Vec<usize> = (0..nodes).collect();
        for turn in 1..=nodes as u64 {
            let target = Target::Node(left.swap_remove(chance.place(left.len())));
            let (least, most) = Fault::Upgrade.lasts();
            let lasts_ms = chance.between(least, most).min(seconds * 1_000 / 8);
            let at_ms = seconds * 1_000 * turn / (nodes as u64 + 2);
            self.steps.push(Step { at_ms, fault: Fault::Upgrade, target, lasts_ms, dice: 0 });
        }
        self.steps.sort_by_key(|step| step.at_ms);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Target, plan};

    #[test]
    fn a_seed_gives_the_same_plan_and_three_kinds_at_least() {
        for seed in 0..200 {
            let made = plan(seed, 60, 3, &Fault::ALL);
            assert_eq!(made, plan(seed, 60, 3, &Fault::ALL));
            assert!(made.kinds.len() >= 3, "{made:?}");
            assert!(made.steps.iter().all(|step| step.at_ms < 60_000));
            assert!(made.kinds.iter().all(|kind| made.steps.iter().any(|step| step.fault == *kind)), "{made:?}");
        }
        assert_ne!(plan(1, 60, 3, &Fault::ALL), plan(2, 60, 3, &Fault::ALL));
        let upgraded = plan(1, 60, 3, &Fault::ALL).with_upgrades(1, 60, 3);
        let of = |place| {
            upgraded
                .steps
                .iter()
                .filter(|step| step.fault == Fault::Upgrade && step.target == Target::Node(place))
                .count()
        };
        assert_eq!([0, 1, 2].map(of), [1, 1, 1]);
        assert!(upgraded.steps.is_sorted_by_key(|step| step.at_ms));
    }
}
