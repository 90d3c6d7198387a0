//! Ports for instances: from the configured range, free at this moment, never given out twice.

use std::collections::BTreeSet;

use model::config::{Config, PortRange};

/// Ports in use by instances of this node.
#[derive(Debug, Default)]
pub struct Ports {
    taken: BTreeSet<u16>,
    /// Fixed ports of services: theirs also while nobody listens there.
    fixed: BTreeSet<u16>,
    next: u16,
}

impl Ports {
    /// A pool that begins its search at a place of its own, so that two nodes starting together seldom collide.
    pub fn new(range: PortRange) -> Self {
        let micros = jiff::Timestamp::now().as_microsecond().unsigned_abs() ^ (u64::from(std::process::id()) << 7);
        let span = u64::from(range.last - range.first) + 1;
        let offset = u16::try_from(micros % span).expect("smaller than the range of a u16");
        Self { taken: BTreeSet::new(), fixed: BTreeSet::new(), next: range.first + offset }
    }

    /// Keeps the fixed ports of `config` from being given to others; instead of those of the configuration before.
    pub fn keep_fixed(&mut self, config: &Config) {
        self.fixed = config.services.values().flat_map(|service| service.ports.iter().copied()).collect();
    }

    /// Remembers a port that an instance already has.
    pub fn take(&mut self, port: u16) {
        self.taken.insert(port);
    }

    /// Whether nobody else has taken a port that is ours to give.
    pub fn is_still_free(&self, port: u16) -> bool {
        platform::socket::is_free(port)
    }

    /// Gives a port back.
    pub fn release(&mut self, port: u16) {
        self.taken.remove(&port);
    }

    /// A free port, or `None` when the whole range is in use.
    pub fn allocate(&mut self, range: PortRange) -> Option<u16> {
        let span = u32::from(range.last - range.first) + 1;
        for _ in 0..span {
            let port = self.next;
            self.next = if port >= range.last || port < range.first { range.first } else { port + 1 };
            if (range.first..=range.last).contains(&port)
                && !self.taken.contains(&port)
                && !self.fixed.contains(&port)
                && platform::socket::is_free(port)
            {
                self.taken.insert(port);
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use model::config::PortRange;

    use super::Ports;

    #[test]
    fn ports_are_free_distinct_and_end() {
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        let range = PortRange { first: port.saturating_sub(1), last: port };
        let mut ports = Ports::new(range);
        let given: Vec<u16> = std::iter::from_fn(|| ports.allocate(range)).collect();
        assert!(given.len() <= 1 && !given.contains(&port), "{given:?}");
    }
}
