//! From probe results to verdicts: Kubernetes' counting of successes and failures in a row.
//! Stands at the beginning of the failure walk. Sans-io: results and the time come in, due probes and verdicts go out.

use std::time::{Duration, Instant};

use model::Service;
use model::config::{Probe, TcpAction};

/// Which of an instance's probes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProbeKind {
    /// Holds the others back until it has succeeded once.
    Startup,
    /// Its failure means the instance is restarted.
    Liveness,
    /// Decides whether the instance gets traffic.
    Readiness,
}

impl ProbeKind {
    /// Kubernetes' name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startupProbe",
            Self::Liveness => "livenessProbe",
            Self::Readiness => "readinessProbe",
        }
    }
}

/// Until an instance is ready for the first time, readiness is asked this often, whatever the period:
/// Kubernetes allows it, and an instance that is up should not wait for traffic.
pub const EAGER_PERIOD: Duration = Duration::from_millis(100);
/// The period of the implicit check that the port accepts connections.
pub const IMPLICIT_PERIOD_SECONDS: u32 = 1;
/// Refused connections in a row, seen by the gateway, that take an instance out of traffic before its next probe.
pub const REFUSALS_TO_UNREADY: u32 = 3;

/// What changed with a probe's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing.
    Unchanged,
    /// The startup probe has succeeded: the other probes begin.
    Started,
    /// It turned ready.
    Ready,
    /// It stopped being ready.
    Unready,
    /// It must be restarted.
    Unhealthy,
}

/// One probe's counters.
#[derive(Clone, Debug)]
struct Gate {
    probe: Probe,
    successes: u32,
    failures: u32,
    next: Instant,
    in_flight: bool,
}

/// The probes of one running process; made anew for every start.
#[derive(Clone, Debug)]
pub struct Probes {
    startup: Option<Gate>,
    liveness: Option<Gate>,
    readiness: Option<Gate>,
    ready: bool,
    was_ready: bool,
    refusals: u32,
    unhealthy: bool,
}

/// The check used when the service has no readinessProbe but listens: its port accepts connections.
pub fn implicit_readiness(service: &Service, is_routed: bool) -> Option<Probe> {
    let uses_port = |text: &String| text.contains("${port}");
    let versions = service.versions.values().flat_map(|version| version.command.iter().chain(version.env.values()));
    let listens = is_routed
        || !service.ports.is_empty()
        || service.command.iter().chain(service.env.values()).chain(versions).any(uses_port);
    listens.then(|| Probe {
        http_get: None,
        tcp_socket: Some(TcpAction { port: None, host: None, at: Default::default() }),
        exec: None,
        grpc: None,
        initial_delay_seconds: 0,
        period_seconds: IMPLICIT_PERIOD_SECONDS,
        timeout_seconds: 1,
        success_threshold: 1,
        failure_threshold: 3,
        termination_grace_period_seconds: None,
        at: Default::default(),
    })
}

impl Probes {
    /// The probes of a process started at `started`. One that was `adopted` ready stays so until a probe says otherwise.
    pub fn new(service: &Service, is_routed: bool, started: Instant, now: Instant, adopted_ready: bool) -> Self {
        let gate = |probe: &Option<Probe>| {
            probe.as_ref().map(|probe| Gate {
                next: (started + Duration::from_secs(probe.initial_delay_seconds.into())).max(now),
                probe: probe.clone(),
                successes: 0,
                failures: 0,
                in_flight: false,
            })
        };
        let readiness = service.readiness_probe.clone().or_else(|| implicit_readiness(service, is_routed));
        let mut probes = Self {
            startup: gate(&service.startup_probe).filter(|_| !adopted_ready),
            liveness: gate(&service.liveness_probe),
            readiness: gate(&readiness),
            ready: adopted_ready,
            was_ready: adopted_ready,
            refusals: 0,
            unhealthy: false,
        };
        if probes.readiness.is_none() && probes.startup.is_none() {
            probes.ready = true;
        }
        probes
    }

    /// Whether the instance may get traffic.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// True once the startup probe, if there is one, has succeeded.
    pub fn is_started(&self) -> bool {
        self.startup.is_none()
    }

    fn gate(&mut self, kind: ProbeKind) -> Option<&mut Gate> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
        }
    }

    /// The probes to send now. Each is in flight until its result is given to [`Probes::result`].
    pub fn due(&mut self, now: Instant) -> Vec<(ProbeKind, Probe)> {
        let eager = !self.was_ready;
        let kinds: &[ProbeKind] =
            if self.startup.is_some() { &[ProbeKind::Startup] } else { &[ProbeKind::Liveness, ProbeKind::Readiness] };
        let mut due = Vec::new();
        for kind in kinds {
            let Some(gate) = self.gate(*kind) else { continue };
            if !gate.in_flight && gate.next <= now {
                gate.in_flight = true;
                let period = if eager && *kind == ProbeKind::Readiness {
                    gate.probe.period().min(EAGER_PERIOD)
                } else {
                    gate.probe.period()
                };
                gate.next = now + period;
                due.push((*kind, gate.probe.clone()));
            }
        }
        due
    }

    /// When [`Probes::due`] should be asked again.
    pub fn next_due(&self) -> Option<Instant> {
        let gates = if self.startup.is_some() {
            [self.startup.as_ref(), None]
        } else {
            [self.liveness.as_ref(), self.readiness.as_ref()]
        };
        gates.into_iter().flatten().filter(|gate| !gate.in_flight).map(|gate| gate.next).min()
    }

    /// Counts a result.
    pub fn result(&mut self, kind: ProbeKind, success: bool, now: Instant) -> Verdict {
        let Some(gate) = self.gate(kind) else { return Verdict::Unchanged };
        gate.in_flight = false;
        if success {
            gate.successes = gate.successes.saturating_add(1);
            gate.failures = 0;
        } else {
            gate.failures = gate.failures.saturating_add(1);
            gate.successes = 0;
        }
        let passed = gate.successes >= gate.probe.success_threshold;
        let failed = gate.failures >= gate.probe.failure_threshold;
        match kind {
            ProbeKind::Startup if passed => self.started(now),
            ProbeKind::Startup | ProbeKind::Liveness if failed && !self.unhealthy => {
                self.unhealthy = true;
                self.ready = false;
                Verdict::Unhealthy
            }
            ProbeKind::Readiness if passed => self.turn(true),
            // Before it has ever been ready there is nothing to take away.
            ProbeKind::Readiness if failed => self.turn(false),
            _ => Verdict::Unchanged,
        }
    }

    fn started(&mut self, now: Instant) -> Verdict {
        self.startup = None;
        for gate in [self.liveness.as_mut(), self.readiness.as_mut()].into_iter().flatten() {
            gate.next = gate.next.max(now);
        }
        if self.readiness.is_none() {
            self.turn(true);
        }
        Verdict::Started
    }

    fn turn(&mut self, ready: bool) -> Verdict {
        if ready {
            self.refusals = 0;
            self.was_ready = true;
        }
        // An instance that is to be restarted does not become ready again.
        if self.ready == ready || (ready && self.unhealthy) {
            return Verdict::Unchanged;
        }
        self.ready = ready;
        if ready { Verdict::Ready } else { Verdict::Unready }
    }

    /// The gateway could not connect. Probes are moved forward; several in a row take the instance out of traffic.
    /// Only a first failure can come early: under load refusals come by the hundred, and a threshold counts periods.
    pub fn refused(&mut self, now: Instant) -> Verdict {
        for gate in [self.liveness.as_mut(), self.readiness.as_mut()].into_iter().flatten() {
            if gate.failures == 0 && !gate.in_flight {
                gate.next = gate.next.min(now);
            }
        }
        self.refusals = self.refusals.saturating_add(1);
        // Without a readiness probe nothing would ever take it back in.
        if self.refusals >= REFUSALS_TO_UNREADY && self.readiness.is_some() {
            self.turn(false)
        } else {
            Verdict::Unchanged
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::{ProbeKind, Probes, Verdict};

    fn probes(yaml: &str, start: Instant) -> Probes {
        let text = format!("services: {{ a: {{ command: [x, \"${{port}}\"], {yaml} }} }}");
        let loaded = model::config::load(Path::new("a.yaml"), &mut |_| Ok(text.clone()));
        let config = loaded.config.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render(&loaded.sources)));
        Probes::new(&config.services[&"a".into()], false, start, start, false)
    }

    fn kinds(probes: &mut Probes, now: Instant) -> Vec<ProbeKind> {
        probes.due(now).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn liveness_fails_after_the_threshold_in_a_row_and_says_so_once() {
        let start = Instant::now();
        let mut probes =
            probes("livenessProbe: { httpGet: { path: / }, periodSeconds: 1, failureThreshold: 2 }", start);
        let mut results = Vec::new();
        for (second, success) in [(0, false), (1, true), (2, false), (3, false), (4, false)] {
            let now = start + Duration::from_secs(second);
            assert!(kinds(&mut probes, now).contains(&ProbeKind::Liveness));
            results.push(probes.result(ProbeKind::Liveness, success, now));
        }
        let unchanged = Verdict::Unchanged;
        assert_eq!(results, [unchanged, unchanged, unchanged, Verdict::Unhealthy, unchanged]);
        assert_eq!(
            probes.result(ProbeKind::Readiness, true, start),
            unchanged,
            "what is to be restarted is not made ready"
        );
    }

    #[test]
    fn startup_holds_the_others_back() {
        let start = Instant::now();
        let mut probes =
            probes("startupProbe: { tcpSocket: {}, periodSeconds: 1 }, livenessProbe: { httpGet: { path: / } }", start);
        assert_eq!(kinds(&mut probes, start), [ProbeKind::Startup]);
        assert_eq!(probes.result(ProbeKind::Startup, false, start), Verdict::Unchanged);
        let later = start + Duration::from_secs(1);
        assert_eq!(kinds(&mut probes, later), [ProbeKind::Startup]);
        assert_eq!(probes.result(ProbeKind::Startup, true, later), Verdict::Started);
        assert_eq!(kinds(&mut probes, later), [ProbeKind::Liveness, ProbeKind::Readiness]);
    }

    #[test]
    fn readiness_is_asked_eagerly_until_first_ready_then_by_its_period() {
        let start = Instant::now();
        let mut probes =
            probes("readinessProbe: { httpGet: { path: /ready }, periodSeconds: 5, failureThreshold: 1 }", start);
        assert!(!probes.is_ready());
        assert_eq!(kinds(&mut probes, start), [ProbeKind::Readiness]);
        assert_eq!(kinds(&mut probes, start + Duration::from_secs(9)), [], "one at a time");
        assert_eq!(probes.result(ProbeKind::Readiness, false, start), Verdict::Unchanged);
        let soon = start + Duration::from_millis(100);
        assert_eq!(kinds(&mut probes, soon), [ProbeKind::Readiness]);
        assert_eq!(probes.result(ProbeKind::Readiness, true, soon), Verdict::Ready);
        assert_eq!(
            kinds(&mut probes, soon + Duration::from_millis(100)),
            [ProbeKind::Readiness],
            "the one planned while eager"
        );
        assert_eq!(probes.result(ProbeKind::Readiness, true, soon), Verdict::Unchanged);
        assert_eq!(kinds(&mut probes, soon + Duration::from_secs(4)), []);
    }

    #[test]
    fn refused_connections_do_not_use_up_the_failure_threshold() {
        let start = Instant::now();
        let mut probes =
            probes("livenessProbe: { httpGet: { path: / }, periodSeconds: 1, failureThreshold: 2 }", start);
        kinds(&mut probes, start);
        assert_eq!(probes.result(ProbeKind::Liveness, true, start), Verdict::Unchanged);
        let broken = start + Duration::from_millis(500);
        probes.refused(broken);
        assert_eq!(kinds(&mut probes, broken), [ProbeKind::Liveness], "at once");
        probes.refused(broken);
        assert_eq!(probes.result(ProbeKind::Liveness, false, broken), Verdict::Unchanged);
        probes.refused(broken);
        let soon = broken + Duration::from_millis(999);
        assert_eq!(kinds(&mut probes, soon), [], "the second failure takes a period, however many are refused");
        assert_eq!(kinds(&mut probes, broken + Duration::from_secs(1)), [ProbeKind::Liveness]);
        assert_eq!(probes.result(ProbeKind::Liveness, false, soon), Verdict::Unhealthy);
    }

    #[test]
    fn refused_connections_hasten_the_probes_and_end_readiness() {
        let start = Instant::now();
        let mut probes = probes("livenessProbe: { httpGet: { path: / }, periodSeconds: 10 }", start);
        assert_eq!(kinds(&mut probes, start).len(), 2);
        probes.result(ProbeKind::Liveness, true, start);
        assert_eq!(probes.result(ProbeKind::Readiness, true, start), Verdict::Ready);
        let now = start + Duration::from_millis(50);
        assert_eq!(kinds(&mut probes, now), []);
        assert_eq!(probes.refused(now), Verdict::Unchanged);
        assert_eq!(kinds(&mut probes, now).len(), 2, "both are asked at once");
        assert_eq!(probes.refused(now), Verdict::Unchanged);
        assert_eq!(probes.refused(now), Verdict::Unready);
    }
}
