//! What makes the demo service a ledger: its balance is kept in a stream of Seawall's, so that it survives the process and
//! the machine. The primary appends what it accepts and answers once that is acknowledged; everybody reads the stream,
//! the primary too, and says by a cursor how far. Written to be read as an example; the Go one does the same.
//! Deliberately absent: a copy of its own. Each entry carries the balance after it, so what the stream has forgotten is
//! not needed.

use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::{Request, Response, request};
use ureq::{Agent, AsSendBody, Body};

/// How long an append is repeated whose outcome is not known; longer than the streams need for another leader.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(50);
/// The longest wait of one read for the next entry; after it the cursor is said again.
const WAIT: Duration = Duration::from_secs(1);
/// A primary need not say often how far it has read: it knows what it wrote.
const PRIMARY_PAUSE: Duration = Duration::from_millis(50);
/// Requests that are known when they come again: the newest so many.
const KEYS: usize = 4096;
/// Longest body that is read of an answer of the API: 1000 entries of this program.
const LONGEST: u64 = 4 << 20;

/// A status line and a body.
type Answer = (&'static str, String);

/// What the entries say.
#[derive(Default)]
struct Book {
    /// The offset that is read next.
    next: u64,
    balance: i64,
    /// Requests that were done, and the balance after each.
    keys: HashMap<String, i64>,
    order: VecDeque<String>,
    /// Everything that was there at the start has been read.
    caught_up: bool,
}

/// The time as primary.
struct Term {
    epoch: u64,
    seq: u64,
    /// An entry whose outcome is not known yet: nothing else may take its number.
    pending: Option<Value>,
}

enum Refused {
    /// A newer term has begun.
    Fenced,
    /// Nobody knows, or not now.
    Later(String),
}

/// The ledger of one instance.
pub struct Ledger {
    /// `URL/api/v1/streams/NAME`
    url: String,
    instance: String,
    token: Option<String>,
    agent: Agent,
    book: Mutex<Book>,
    moved: Condvar,
    /// Held while something is appended: one after the other.
    term: Mutex<Option<Term>>,
    primary: AtomicBool,
    deaf: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// The ledger in the stream that Seawall named in the environment, if it named one.
    pub fn open(instance: &str) -> Option<Arc<Self>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = format!("{}/api/v1/streams/{}", variable("SEAWALL_API")?, variable("SEAWALL_STREAM")?);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(1)))
            .timeout_global(Some(WAIT + Duration::from_secs(6)))
            .build()
            .into();
        let ledger = Arc::new(Self {
            url,
            instance: instance.to_owned(),
            token: variable("SEAWALL_TOKEN"),
            agent,
            book: Mutex::default(),
            moved: Condvar::new(),
            term: Mutex::default(),
            primary: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
        });
        let following = Arc::clone(&ledger);
        std::thread::spawn(move || following.follow());
        Some(ledger)
    }

    /// Whether what was there at the start has been read.
    pub fn is_ready(&self) -> bool {
        lock(&self.book).caught_up
    }

    /// From now on the stream is not read any more: a fault.
    pub fn turn_deaf(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// More members of an answer: the balance, and how many entries it comes from.
    pub fn state(&self) -> String {
        let book = lock(&self.book);
        format!(",\"balance\":{},\"entries\":{}", book.balance, book.next)
    }

    /// This instance is primary, in a term that begins at offset `end`.
    ///
    /// # Errors
    /// It has not read everything before.
    pub fn promote(&self, epoch: u64, end: u64) -> Result<(), String> {
        let mut term = lock(&self.term);
        // Seawall has waited for the cursor; but the one that it saw may be of the process before this one, arrived late.
        if !self.has_read(end) {
            return Err(format!("it has read up to {}, not to {end}", lock(&self.book).next));
        }
        if term.as_ref().is_none_or(|known| known.epoch < epoch) {
            *term = Some(Term { epoch, seq: 0, pending: None });
        }
        self.primary.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// This instance is not primary any more; nothing is on its way when this returns.
    pub fn demote(&self) {
        // Its numbers stay: the same term may be given to it again.
        let _nothing_on_its_way = lock(&self.term);
        self.primary.store(false, Ordering::SeqCst);
    }

    /// Adds an amount. A `key` that was done already is not done again.
    pub fn post(&self, amount: i64, key: &str) -> Answer {
        let mut held = lock(&self.term);
        let Some(term) = held.as_mut().filter(|_| self.primary.load(Ordering::SeqCst)) else {
            return ("409 Conflict", "{\"error\":\"a standby takes nothing\"}\n".into());
        };
        let done = match term.pending.take() {
            Some(entry) => self.append(term, entry).map(drop),
            None => Ok(()),
        };
        let done = done.and_then(|()| {
            let (known, balance) = {
                let book = lock(&self.book);
                (book.keys.get(key).copied(), book.balance)
            };
            if let Some(balance) = known {
                return Ok(json!({ "balance": balance, "repeated": true }));
            }
            let balance = balance.saturating_add(amount);
            let mut entry = json!({ "amount": amount, "balance": balance });
            if !key.is_empty() {
                entry["key"] = key.into();
            }
            let offset = self.append(term, entry)?;
            Ok(json!({ "balance": balance, "offset": offset, "epoch": term.epoch, "repeated": false }))
        });
        match done {
            Ok(body) => ("200 OK", format!("{body}\n")),
            Err(Refused::Fenced) => {
                self.primary.store(false, Ordering::SeqCst);
                ("503 Service Unavailable", "{\"error\":\"another is primary by now; nothing was added\"}\n".into())
            }
            Err(Refused::Later(why)) => ("503 Service Unavailable", format!("{}\n", json!({ "error": why }))),
        }
    }

    /// Appends one entry and returns its offset, once it is acknowledged and in the book.
    fn append(&self, term: &mut Term, entry: Value) -> Result<u64, Refused> {
        let producer = format!("{}-{}", self.instance, term.epoch);
        let url = format!("{}?producer={producer}&seq={}", self.url, term.seq + 1);
        let until = Instant::now() + PATIENCE;
        loop {
            let request = Request::post(&url).header("seawall-epoch", term.epoch.to_string());
            let why = match self.send(request, entry.to_string()) {
                Ok((200, told)) => {
                    term.seq += 1;
                    let offset = told["offset"].as_u64().unwrap_or_default();
                    self.read_entry(offset, &entry);
                    self.has_read(offset + 1);
                    return Ok(offset);
                }
                Ok((409, told)) if !told["epoch"].is_null() => return Err(Refused::Fenced),
                Ok((status @ 400..500, told)) => return Err(Refused::Later(format!("{status}: {told}"))),
                Ok((status, told)) => format!("{status}: {told}"),
                Err(error) => error,
            };
            // With producer and number a repetition adds nothing.
            if Instant::now() > until {
                term.pending = Some(entry);
                return Err(Refused::Later(format!("it is not known whether it was added: {why}")));
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Waits until the entries before `end` are in the book.
    fn has_read(&self, end: u64) -> bool {
        let book = lock(&self.book);
        let waited = self.moved.wait_timeout_while(book, Duration::from_secs(2), |book| book.next < end);
        waited.unwrap_or_else(PoisonError::into_inner).0.next >= end
    }

    /// An entry at its offset, each once, whoever brings it first.
    fn read_entry(&self, offset: u64, entry: &Value) {
        let mut book = lock(&self.book);
        if offset != book.next {
            return;
        }
        book.next += 1;
        // What somebody else has written there changes nothing.
        if let Some(balance) = entry["balance"].as_i64() {
            book.balance = balance;
            if let Some(key) = entry["key"].as_str() {
                book.keys.insert(key.to_owned(), balance);
                book.order.push_back(key.to_owned());
            }
        }
        while book.order.len() > KEYS {
            let oldest = book.order.pop_front().unwrap_or_default();
            book.keys.remove(&oldest);
        }
        self.moved.notify_all();
    }

    /// Reads the stream for as long as the process lives.
    fn follow(&self) {
        // A process begins with an empty book, so it says so before it is ready: what the one before it had read is gone.
        while let Err(error) = self.say_cursor(0) {
            eprintln!("the stream cannot be reached yet: {error}");
            std::thread::sleep(AGAIN * 4);
        }
        loop {
            if let Err(error) = self.read_more() {
                eprintln!("the stream cannot be read: {error}; trying again");
                std::thread::sleep(AGAIN);
            }
            while self.deaf.load(Ordering::SeqCst) {
                std::thread::park();
            }
            if self.primary.load(Ordering::SeqCst) {
                std::thread::sleep(PRIMARY_PAUSE);
            }
        }
    }

    fn read_more(&self) -> Result<(), String> {
        let (from, caught_up) = {
            let book = lock(&self.book);
            (book.next, book.caught_up)
        };
        let wait = if caught_up { WAIT.as_secs() } else { 0 };
        let url = format!("{}?from={from}&limit=1000&wait={wait}s", self.url);
        let response = self.call(Request::get(url), ())?;
        let (status, end) = (response.status().as_u16(), number(&response, "seawall-end"));
        let text = text(response)?;
        let told: Value = serde_json::from_str(&text).unwrap_or_default();
        match status {
            200 if self.deaf.load(Ordering::SeqCst) => return Ok(()),
            200 => {}
            // Nobody has written to it yet.
            404 => {
                lock(&self.book).caught_up = true;
                std::thread::sleep(AGAIN);
                return Ok(());
            }
            // The oldest are not kept any more: the next one has the balance.
            410 => {
                lock(&self.book).next = told["first"].as_u64().unwrap_or(from);
                return Ok(());
            }
            // Another stream of the same name: somebody has deleted the one before.
            400 if !told["next"].is_null() => {
                *lock(&self.book) = Book::default();
                return self.say_cursor(0);
            }
            _ => return Err(format!("{status}: {told}")),
        }
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
            let entry = line["data"].as_str().and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
            self.read_entry(line["offset"].as_u64().unwrap_or_default(), &entry);
        }
        let next = lock(&self.book).next;
        // Also when nothing is new: what the process before this one had sent may have arrived late and stand there instead.
        self.say_cursor(next)?;
        if end.is_some_and(|end| end <= next) {
            lock(&self.book).caught_up = true;
        }
        Ok(())
    }

    /// Says how far this instance has read: that is what Seawall promotes by.
    fn say_cursor(&self, offset: u64) -> Result<(), String> {
        let url = format!("{}/cursors/{}?offset={offset}", self.url, self.instance);
        match self.send(Request::put(url), String::new())? {
            (200 | 404, _) => Ok(()),
            (status, told) => Err(format!("{status}: {told}")),
        }
    }

    fn send(&self, request: request::Builder, body: String) -> Result<(u16, Value), String> {
        let response = self.call(request, body)?;
        let status = response.status().as_u16();
        Ok((status, serde_json::from_str(&text(response)?).unwrap_or_default()))
    }

    fn call(&self, request: request::Builder, body: impl AsSendBody) -> Result<Response<Body>, String> {
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        let request = request.body(body).map_err(|error| error.to_string())?;
        self.agent.run(request).map_err(|error| error.to_string())
    }
}

fn number(response: &Response<Body>, header: &str) -> Option<u64> {
    response.headers().get(header)?.to_str().ok()?.parse().ok()
}

fn text(response: Response<Body>) -> Result<String, String> {
    let mut text = String::new();
    let read = response.into_body().into_reader().take(LONGEST).read_to_string(&mut text);
    read.map_err(|error| error.to_string()).map(|_| text)
}
