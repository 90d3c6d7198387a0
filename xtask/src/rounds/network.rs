//! One network namespace a node, joined by a bridge in a namespace of its own: rounds side by side cannot meet.
//! A direction between two nodes is cut by a false link-layer address for the other: what is sent is lost without a word,
//! as on a bad switch, and no packet filter is needed. Linux with root and iproute2 only.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Namespaces of this program begin so, then comes its process id.
const PREFIX: &str = "seawall-round-";
/// A link-layer address nobody has.
const NOWHERE: &str = "02:00:00:00:ff:ff";

/// The namespaces of one round; removed with it.
pub struct Network {
    hub: String,
    names: Vec<String>,
    /// How many faults cut the direction now, by sender and receiver.
    cuts: Vec<Vec<u32>>,
}

/// Why no namespaces can be made here, if so.
pub fn why_not() -> Option<&'static str> {
    if !cfg!(target_os = "linux") {
        return Some("network namespaces are Linux's");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root = status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    if !root {
        return Some("it needs root");
    }
    let found = |program: &str| {
        Command::new(program).arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    if found("ip").is_err() || found("setpriv").is_err() {
        return Some("it needs `ip` (iproute2) and `setpriv` (util-linux)");
    }
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    if ip(&["netns", "add", &probe]).is_err() {
        return Some("this machine lets nobody make network namespaces");
    }
    // Ignored: the next run removes it.
    let _ = ip(&["netns", "del", &probe]);
    None
}

/// Removes what a killed run left.
pub fn remove_leftovers() {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            // Ignored: another run may do the same.
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

impl Network {
    /// As many namespaces as nodes, all connected. `tag` tells this round from others of this process.
    pub fn make(tag: &str, nodes: usize) -> Result<Self> {
        let name = |part: &str| format!("{PREFIX}{}-{tag}-{part}", std::process::id());
        let hub = name("hub");
        let names: Vec<String> = (1..=nodes).map(|place| name(&format!("n{place}"))).collect();
        let network = Self { hub, names, cuts: vec![vec![0; nodes]; nodes] };
        let hub = network.hub.as_str();
        ip(&["netns", "add", hub])?;
        ip(&["-n", hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", hub, "link", "set", "br0", "up"])?;
        for (place, name) in network.names.iter().enumerate() {
            let (port, address) = (format!("p{place}"), format!("{}/24", address(place)));
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", hub])?;
            ip(&["-n", hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    /// The namespaces, to enter.
    pub fn open(&self) -> Result<Vec<File>> {
        let open = |name: &String| {
            File::open(Path::new("/run/netns").join(name)).with_context(|| format!("the namespace {name}"))
        };
        self.names.iter().map(open).collect()
    }

    /// Nothing from one node reaches the other any more.
    pub fn cut(&mut self, from: usize, to: usize) -> Result<()> {
        self.cuts[from][to] += 1;
        ip(&[
            "-n",
            &self.names[from],
            "neigh",
            "replace",
            &address(to),
            "lladdr",
            NOWHERE,
            "dev",
            "eth0",
            "nud",
            "permanent",
        ])
    }

    /// Takes back one `cut`; the direction is whole when all are taken back.
    pub fn mend(&mut self, from: usize, to: usize) -> Result<()> {
        self.cuts[from][to] -= 1;
        if self.cuts[from][to] > 0 {
            return Ok(());
        }
        ip(&["-n", &self.names[from], "neigh", "del", &address(to), "dev", "eth0"])
    }

    /// Whether both directions between two nodes are whole.
    pub fn connected(&self, one: usize, other: usize) -> bool {
        self.cuts[one][other] == 0 && self.cuts[other][one] == 0
    }

    /// What a node sends passes at so many kilobits a second, the rest waits a little and is lost.
    pub fn slow(&self, place: usize, kilobits: u64) -> Result<()> {
        let (name, rate) = (&self.names[place], format!("{kilobits}kbit"));
        let tbf = ["tbf", "rate", &rate, "burst", "16kb", "latency", "100ms"];
        tool("tc", &[&["-n", name, "qdisc", "replace", "dev", "eth0", "root"], &tbf[..]].concat())
    }

    /// Takes back `slow`.
    pub fn quicken(&self, place: usize) -> Result<()> {
        tool("tc", &["-n", &self.names[place], "qdisc", "del", "dev", "eth0", "root"])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.hub]) {
            // Ignored: one that was never made cannot be removed.
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// A node's address among the others.
pub fn address(place: usize) -> String {
    format!("10.77.0.{}", place + 1)
}

/// This thread, and what it starts, is in the namespace from now on.
pub fn enter(namespace: &File) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsFd as _;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).context("cannot enter a namespace")
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = namespace;
        bail!("network namespaces are Linux's")
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    tool("ip", arguments)
}

/// Runs a tool to its end; its words are in the error.
pub fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    let Ok(output) = command.args(arguments).stdin(Stdio::null()).output() else { bail!("cannot run {program}") };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
