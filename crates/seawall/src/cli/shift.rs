//! `seawall shift SERVICE --to VERSION|SERVICE`, and `seawall shift SERVICE status|pause|resume|abort|clear`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::anyhow;
use api::view::{ShiftView, Status};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::client::{Client, text};
use super::{Failure, Format, Outcome};

/// What `shift` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service whose requests are moved.
    service: String,
    /// How a shift goes on, instead of beginning one
    #[arg(value_enum, conflicts_with = "to")]
    action: Option<Action>,
    /// The version of it, or another service, that gets the requests
    #[arg(long, value_name = "VERSION|SERVICE")]
    to: Option<String>,
    /// The version that has the requests; needed only where several have them
    #[arg(long, value_name = "VERSION", requires = "to")]
    from: Option<String>,
    /// Percentages of the requests, growing, the last one 100 [default: the service's `traffic.shift`, else 10,50,100]
    #[arg(long, value_delimiter = ',', value_name = "PERCENT", requires = "to")]
    steps: Vec<u32>,
    /// A table of steps and gates
    #[arg(long, value_name = "NAME", requires = "to")]
    preset: Option<String>,
    /// How long each step lasts at least, e.g. 5m
    #[arg(long, value_name = "TIME", requires = "to")]
    hold: Option<String>,
    /// How often a step is judged, e.g. 10s
    #[arg(long, value_name = "TIME", requires = "to")]
    every: Option<String>,
    /// With fewer requests than this nothing is said
    #[arg(long, value_name = "COUNT", requires = "to")]
    min_requests: Option<u32>,
    /// At most this part of the requests may fail, e.g. 1%
    #[arg(long, value_name = "PART", requires = "to")]
    max_error_rate: Option<String>,
    /// At least this part of whole chains must succeed, e.g. 99%
    #[arg(long, value_name = "PART", requires = "to")]
    min_success_rate: Option<String>,
    /// Half of the answers must be this quick
    #[arg(long, value_name = "TIME", requires = "to")]
    max_p50: Option<String>,
    /// 99 of 100 answers must be this quick
    #[arg(long, value_name = "TIME", requires = "to")]
    max_p99: Option<String>,
    /// How often its instances may restart in a step
    #[arg(long, value_name = "COUNT", requires = "to")]
    max_restarts: Option<u32>,
    /// The part of one processor that each of its instances may use, e.g. 80%
    #[arg(long, value_name = "PART", requires = "to")]
    max_cpu: Option<String>,
    /// Return when the shift has ended: 0 when all requests go to the new destination, else 1
    #[arg(long)]
    wait: bool,
    /// Seconds to wait with --wait
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    timeout: u64,
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// How a shift goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Action {
    /// Show how it stands
    Status,
    /// Stay at the step
    Pause,
    /// Go on with the step
    Resume,
    /// All requests go where they went before, at once
    Abort,
    /// Forget one that has ended: routes alone say where requests go
    Clear,
}

impl Arguments {
    /// What was said of steps and gates, in the configuration's words.
    fn plan(&self) -> Value {
        let mut gates = Map::new();
        let mut gate = |key: &str, value: Option<Value>| drop(value.map(|value| gates.insert(key.into(), value)));
        gate("errorRate", self.max_error_rate.clone().map(Value::from));
        gate("successRate", self.min_success_rate.clone().map(Value::from));
        gate("p50", self.max_p50.clone().map(Value::from));
        gate("p99", self.max_p99.clone().map(Value::from));
        gate("restarts", self.max_restarts.map(Value::from));
        gate("cpu", self.max_cpu.clone().map(Value::from));
        let mut plan = Map::new();
        let mut say = |key: &str, value: Option<Value>| drop(value.map(|value| plan.insert(key.into(), value)));
        say("preset", self.preset.clone().map(Value::from));
        say("steps", (!self.steps.is_empty()).then(|| self.steps.clone().into()));
        say("hold", self.hold.clone().map(Value::from));
        say("every", self.every.clone().map(Value::from));
        say("minRequests", self.min_requests.map(Value::from));
        say("gates", (!gates.is_empty()).then(|| gates.into()));
        plan.into()
    }
}

/// Asks for it and says how the shift stands.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let path = format!("/api/v1/services/{}/shift", Client::encode(&arguments.service));
    let action = match (arguments.action, &arguments.to) {
        (Some(Action::Status), _) => None,
        (Some(Action::Pause), _) => Some(json!({ "action": "pause" })),
        (Some(Action::Resume), _) => Some(json!({ "action": "resume" })),
        (Some(Action::Abort), _) => Some(json!({ "action": "abort" })),
        (Some(Action::Clear), _) => Some(json!({ "action": "clear" })),
        (None, Some(to)) => Some(json!({ "to": to, "from": arguments.from, "plan": arguments.plan() })),
        (None, None) => {
            let message = "where to? `--to VERSION|SERVICE` begins a shift; `status`, `pause`, `resume`, `abort` and `clear` are about one";
            return Err(Failure::bad_input(anyhow!(message)));
        }
    };
    let mut view = match action {
        Some(body) => serde_json::from_value(client.post(&path, &body, Duration::from_secs(30))?)?,
        None => shown(client, &arguments.service)?,
    };
    if arguments.wait {
        let until = std::time::Instant::now() + Duration::from_secs(arguments.timeout);
        while view.state == "running" {
            if std::time::Instant::now() >= until {
                return Err(Failure::timeout(anyhow!("it still runs: {}", line(&arguments.service, &view))));
            }
            std::thread::sleep(Duration::from_millis(200));
            view = shown(client, &arguments.service)?;
        }
    }
    let mut out = std::io::stdout();
    match arguments.output {
        Format::Json => writeln!(out, "{}", serde_json::to_string(&view)?)?,
        Format::Table => writeln!(out, "{}", line(&arguments.service, &view))?,
    }
    if arguments.wait && view.state != "done" {
        return Err(Failure::failed(anyhow!("the shift of {} is {}: {}", arguments.service, view.state, view.why)));
    }
    Ok(())
}

fn shown(client: &Client, service: &str) -> Result<ShiftView, Failure> {
    let status: Status = serde_json::from_str(&text(client.get("/api/v1/status")?)?)?;
    let found = status.services.into_iter().find(|known| known.name.as_str() == service);
    let Some(found) = found else { return Err(Failure::bad_input(anyhow!("no service `{service}`"))) };
    found.shift.ok_or_else(|| Failure::bad_input(anyhow!("there is no shift of {service}")))
}

fn line(service: &str, view: &ShiftView) -> String {
    if view.state.is_empty() {
        return format!("routes alone say where requests for {service} go");
    }
    let since = view.since.get(..19).unwrap_or_default();
    let judged = view.judged.as_ref().map_or_else(String::new, |word| format!("; last judgement: {word}"));
    format!(
        "{service}: {} % of the requests go to {} (from {}), step {} of {}, {} since {since}Z: {}{judged}",
        view.percent, view.to, view.from, view.step, view.steps, view.state, view.why
    )
}
