//! Somebody else's server that writes down what it is asked, so that a test sees what an instance sees.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// Its listener and threads end with the test's process.
pub struct Recorder {
    pub address: SocketAddr,
    inside: Arc<Inside>,
}

struct Inside {
    name: String,
    seen: Mutex<Vec<Seen>>,
    status: AtomicU16,
    slow_ms: AtomicU64,
    kept: Mutex<Kept>,
    let_go: Condvar,
}

/// A request that is kept until the test lets it go.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Kept {
    #[default]
    None,
    Next,
    There,
}

impl Recorder {
    pub fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Arc::new(Inside {
            name: name.to_owned(),
            seen: Mutex::default(),
            status: AtomicU16::new(200),
            slow_ms: AtomicU64::new(0),
            kept: Mutex::default(),
            let_go: Condvar::new(),
        });
        let shared = Arc::clone(&inside);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let inside = Arc::clone(&shared);
                // A client that went away is no news.
                std::thread::spawn(move || drop(inside.serve(&stream)));
            }
        });
        Self { address, inside }
    }

    /// What has been asked since this was asked last.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.inside.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How much has been asked since `take`.
    pub fn count(&self) -> usize {
        self.inside.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn answer(&self, status: u16) {
        self.inside.status.store(status, Ordering::SeqCst);
    }

    /// The next request is not answered before [`Self::let_go`].
    pub fn keep_next(&self) {
        *self.inside.kept() = Kept::Next;
    }

    /// Whether a request is kept now.
    pub fn keeps(&self) -> bool {
        *self.inside.kept() == Kept::There
    }

    pub fn let_go(&self) {
        *self.inside.kept() = Kept::None;
        self.inside.let_go.notify_all();
    }

    pub fn slow(&self, by: Duration) {
        self.inside.slow_ms.store(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Inside {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits if this is the request that is kept.
    fn keep(&self) {
        let mut kept = self.kept();
        if *kept == Kept::Next {
            *kept = Kept::There;
            while *kept == Kept::There {
                kept = self.let_go.wait(kept).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut writer = stream;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut words = line.split_whitespace().map(str::to_owned);
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let mut headers = BTreeMap::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                let Some((name, value)) = line.trim_end().split_once(':') else { break };
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            if target != "/health" {
                let seen = Seen { method, target, headers, body };
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
                self.keep();
                std::thread::sleep(Duration::from_millis(self.slow_ms.load(Ordering::SeqCst)));
            }
            let status = self.status.load(Ordering::SeqCst);
            let name = &self.name;
            write!(
                writer,
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nx-answered-by: {name}\r\nserver: recorder\r\n\r\n{name}",
                name.len()
            )?;
        }
    }
}
