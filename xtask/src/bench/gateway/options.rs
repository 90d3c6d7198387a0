//! The command line of `cargo xtask bench gateway`, and what a scenario is called.

use anyhow::{Context as _, Result, bail, ensure};

use super::proxy::Kind;

const USAGE: &str =
    "usage: cargo xtask bench gateway [--peer haproxy,nginx,envoy,pingora] [--h2] [--tls] [--body 64k] [--post]
    [--guards] [--conns 10k] [--rounds 7] [--seconds 5] [--profile dist|release]
  --peer     beside whom; all four when absent
  --h2       HTTP/2 from the client: by ALPN with --tls, by prior knowledge without
  --body     bytes of each answer; 65 when absent
  --post     the body goes up instead, and 65 bytes come down
  --guards   with a rate limit, a breaker and their like, and 1000 rules more, beside itself without any of them; the peers
             are haproxy and envoy, guarded alike
  --conns    no load: memory with so many idle connections";

/// An answer as small as most are.
const SMALL: usize = 65;

/// What was asked for.
pub struct Options {
    /// What is measured.
    pub scenario: Scenario,
    /// Beside whom.
    pub peers: Vec<Kind>,
    /// Windows for each proxy.
    pub rounds: usize,
    /// The length of a window.
    pub seconds: u64,
    /// How seawall is built.
    pub profile: String,
    /// The command line, to be repeated.
    pub command: String,
}

/// What kind of load.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// HTTP/2 from the client.
    pub h2: bool,
    /// Over TLS.
    pub tls: bool,
    /// Bytes of the body.
    pub body: usize,
    /// The body goes up.
    pub post: bool,
    /// All guards are on, and none ever answers.
    pub guards: bool,
    /// No load, so many idle connections.
    pub idle: Option<usize>,
}

impl Options {
    /// Reads the words behind `bench gateway`.
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let mut scenario = Scenario { h2: false, tls: false, body: SMALL, post: false, guards: false, idle: None };
        let command = std::iter::once("cargo xtask bench gateway".to_owned()).chain(arguments.iter().cloned());
        let mut options = Self {
            scenario,
            peers: Vec::new(),
            rounds: 7,
            seconds: 5,
            profile: "dist".to_owned(),
            command: command.collect::<Vec<_>>().join(" "),
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--peer" => options.peers = value()?.split(',').map(peer).collect::<Result<_>>()?,
                "--h2" => scenario.h2 = true,
                "--tls" => scenario.tls = true,
                "--post" => scenario.post = true,
                "--guards" => scenario.guards = true,
                "--body" => scenario.body = amount(value()?, 1024)?,
                "--conns" => scenario.idle = Some(amount(value()?, 1000)?),
                "--rounds" => options.rounds = amount(value()?, 1)?,
                "--seconds" => options.seconds = amount(value()?, 1)? as u64,
                "--profile" => options.profile = value()?.clone(),
                _ => bail!("unknown: {word}\n{USAGE}"),
            }
        }
        ensure!(["dist", "release"].contains(&options.profile.as_str()), "--profile is dist or release\n{USAGE}");
        let alone = !scenario.h2 && !scenario.tls && !scenario.post && !scenario.guards;
        ensure!(scenario.idle.is_none() || alone, "--conns stands without --h2, --tls, --post and --guards\n{USAGE}");
        let peers: &[Kind] = if scenario.guards { &Kind::GUARDED_PEERS } else { &Kind::PEERS };
        if options.peers.is_empty() {
            options.peers = peers.to_vec();
        }
        if let Some(kind) = options.peers.iter().find(|kind| !peers.contains(kind)) {
            bail!("`{}` has no guards like these to compare\n{USAGE}", kind.name());
        }
        if scenario.guards {
            options.peers.insert(0, Kind::Bare);
        }
        Ok(Self { scenario, ..options })
    }
}

impl Scenario {
    /// Bytes of each answer.
    pub fn answered(&self) -> usize {
        if self.post { SMALL } else { self.body }
    }

    /// Bytes of each request's body, if it has one.
    pub fn posted(&self) -> Option<usize> {
        self.post.then_some(self.body)
    }

    /// Whether bodies, not requests, are what costs.
    pub fn is_bulk(&self) -> bool {
        self.body >= 4096
    }

    /// The section's heading, which also names it.
    pub fn title(&self) -> String {
        if let Some(count) = self.idle {
            return format!("{count} idle connections");
        }
        let protocol = if self.h2 { "HTTP/2" } else { "HTTP/1.1" };
        let secured = if self.tls { " over TLS" } else { "" };
        let method = if self.post { "POST" } else { "GET" };
        let size = if self.is_bulk() { format!("{} KiB", self.body / 1024) } else { format!("{} bytes", self.body) };
        let guarded = if self.guards { ", every guard on" } else { "" };
        format!("{protocol}{secured}, {method} with {size}{guarded}")
    }
}

fn peer(name: &str) -> Result<Kind> {
    let found = Kind::PEERS.into_iter().find(|kind| kind.name() == name);
    found.with_context(|| format!("no peer `{name}`\n{USAGE}"))
}

/// `64k` with a thousand of 1024 or of 1000.
fn amount(text: &str, thousand: usize) -> Result<usize> {
    let (digits, factor) = match text.strip_suffix('k') {
        Some(digits) => (digits, thousand),
        None => (text, 1),
    };
    let count: usize = digits.parse().with_context(|| format!("`{text}` is not a number\n{USAGE}"))?;
    ensure!(count > 0, "0 is too few\n{USAGE}");
    Ok(count * factor)
}

#[cfg(test)]
mod tests {
    use super::{Kind, Options};

    fn parse(line: &str) -> Result<Options, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_and_counts_have_their_own_thousand() {
        assert_eq!(parse("--body 64k").unwrap().scenario.body, 65_536);
        assert_eq!(parse("--conns 10k").unwrap().scenario.idle, Some(10_000));
        assert_eq!(parse("--body 64k --post").unwrap().scenario.title(), "HTTP/1.1, POST with 64 KiB");
    }

    #[test]
    fn guards_are_compared_with_none_and_with_peers_that_have_them() {
        let options = parse("--guards").unwrap();
        assert_eq!(options.peers, [Kind::Bare, Kind::Haproxy, Kind::Envoy]);
        assert_eq!(options.scenario.title(), "HTTP/1.1, GET with 65 bytes, every guard on");
        assert_eq!(parse("--guards --peer haproxy").unwrap().peers, [Kind::Bare, Kind::Haproxy]);
        assert_eq!(parse("").unwrap().peers, Kind::PEERS);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let lines = ["--peer apache", "--peer bare", "--body", "--body x", "--rounds 0", "--fast", "--profile dev"];
        for line in lines.into_iter().chain(["--conns 1k --tls", "--conns 1k --guards", "--guards --peer nginx"]) {
            assert!(parse(line).is_err_and(|error| error.contains("usage: ")), "{line}");
        }
    }
}
