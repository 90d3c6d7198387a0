//! What last went wrong with which address: for status, and for the log, where each is told when it changes and once a
//! minute while it lasts, not at every try.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::wal::lock;

/// Between two log lines about the same trouble.
const AGAIN: Duration = Duration::from_secs(60);
/// A trouble that was not met again for so long is over.
const OVER: Duration = Duration::from_secs(10);
/// Connections of others stand under this: whom this node refuses does not refuse it.
pub(crate) const INCOMING: &str = "incoming";
/// Most addresses remembered; strangers must not fill the memory.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<BTreeMap<String, Trouble>>);

#[derive(Debug)]
struct Trouble {
    words: String,
    /// The other side was there and refused this node.
    refused: bool,
    met: Instant,
    told: Instant,
}

impl Troubles {
    /// How a connection to or from an address went.
    pub(crate) fn note(&self, address: &str, error: Option<&io::Error>) {
        let mut all = lock(&self.0);
        let Some(error) = error else {
            all.remove(address);
            return;
        };
        let (words, now) = (error.to_string(), Instant::now());
        let known = all.get(address);
        let same = known.is_some_and(|known| known.words == words);
        let told = known.filter(|known| same && known.told.elapsed() < AGAIN).map(|known| known.told);
        if told.is_none() {
            tracing::warn!(address, error = words, "trouble with another node");
        }
        if all.len() < MOST || all.contains_key(address) {
            let refused = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData);
            all.insert(address.to_owned(), Trouble { words, refused, met: now, told: told.unwrap_or(now) });
        }
    }

    /// What is wrong now, as `address: words`; refusals first, since they do not pass by themselves.
    pub(crate) fn now(&self) -> Option<String> {
        let all = lock(&self.0);
        let mut now: Vec<_> = all.iter().filter(|(_, trouble)| trouble.met.elapsed() < OVER).collect();
        now.sort_by_key(|(_, trouble)| !trouble.refused);
        let words: Vec<String> = now.iter().map(|(address, trouble)| format!("{address}: {}", trouble.words)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// That this node is refused, if it is.
    pub(crate) fn refusal(&self) -> Option<String> {
        let all = lock(&self.0);
        let ours =
            |address: &str, trouble: &Trouble| address != INCOMING && trouble.refused && trouble.met.elapsed() < OVER;
        let refused = all.iter().find(|(address, trouble)| ours(address, trouble));
        refused.map(|(address, trouble)| format!("{address}: {}", trouble.words))
    }
}

#[cfg(test)]
mod tests {
    use super::Troubles;
    use std::io;

    #[test]
    fn refusals_come_first_and_what_works_again_is_forgotten() {
        let troubles = Troubles::default();
        assert_eq!(troubles.now(), None);
        troubles.note("a:1", Some(&io::Error::other("no answer")));
        troubles.note("b:1", Some(&io::Error::new(io::ErrorKind::PermissionDenied, "wrong cluster")));
        assert_eq!(troubles.now().as_deref(), Some("b:1: wrong cluster; a:1: no answer"));
        assert_eq!(troubles.refusal().as_deref(), Some("b:1: wrong cluster"));
        troubles.note(super::INCOMING, Some(&io::Error::new(io::ErrorKind::PermissionDenied, "a stranger")));
        troubles.note("b:1", None);
        assert_eq!(troubles.now().as_deref(), Some("incoming: a stranger; a:1: no answer"));
        assert_eq!(troubles.refusal(), None, "whom it refuses does not refuse it");
    }
}
