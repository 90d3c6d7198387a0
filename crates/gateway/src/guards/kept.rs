//! Answers of a service that are kept for when it cannot answer: the last good one to each GET, if anybody may see it.
//! Filled by the forward step, asked by the fallback step of the request walk. Bounded in number and in bytes; what was
//! kept longest ago goes first. An answer is kept only where a shared cache may serve it stale (RFC 9111, 3 and 4.2.4) and
//! where it does not depend on more of the request than its host, path and query.
//! Deliberately absent: answering from it while the service answers: it is no cache.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::Client;
use crate::front::Front;
use crate::heads::{Delivery, write_response};
use crate::http1::{Fields, Framing, Kind, RequestHead, ResponseHead, Version};
use crate::policy::HeaderEdits;
use crate::routes::Destination;
use crate::service::Service;

/// How answers of a service are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepPolicy {
    /// One that was kept longer ago is not answered.
    pub max_age: Duration,
    /// Most bytes of heads and bodies.
    pub max_bytes: usize,
    /// Most answers.
    pub max_entries: usize,
}

/// The longest body that is kept.
pub(crate) const LONGEST_BODY: usize = 1024 * 1024;

/// An answer is replaced by a newer one no sooner, so that most requests cost one look.
const RENEWED_AFTER: Duration = Duration::from_secs(1);

/// One answer, always of status 200.
#[derive(Debug)]
pub(crate) struct KeptAnswer {
    /// Its fields as they went to a client, but for those of the connection.
    pub(crate) fields: Vec<u8>,
    pub(crate) body: Vec<u8>,
    at: Instant,
    /// How old it was when it came.
    age: Duration,
    /// It says itself that anybody may have it.
    public: bool,
}

impl KeptAnswer {
    /// Whole seconds since it was made.
    pub(crate) fn age(&self, now: Instant) -> u64 {
        (self.age + now.saturating_duration_since(self.at)).as_secs()
    }

    fn bytes(&self) -> usize {
        self.fields.len() + self.body.len()
    }
}

/// One service's kept answers, shared by all workers.
#[derive(Debug)]
pub(crate) struct Kept {
    policy: KeepPolicy,
    inside: Mutex<Inside>,
    /// Answers that went for want of room.
    pub(crate) displaced: AtomicU64,
}

#[derive(Debug, Default)]
struct Inside {
    answers: HashMap<Arc<[u8]>, (u64, Arc<KeptAnswer>)>,
    /// Keys in the order in which they were kept.
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
    bytes: usize,
}

/// An answer on its way that may be worth keeping.
#[derive(Debug)]
pub(crate) struct Keeping {
    kept: Arc<Kept>,
    key: Arc<[u8]>,
    /// Its client shows who it is: only what is for everybody is kept.
    known: bool,
    /// What is known of the answer, once its head has come and nothing speaks against it.
    head: Option<(Vec<u8>, Duration, bool)>,
}

impl Service {
    /// Whether an answer to this request is to be kept.
    pub(crate) fn keeps<S: Front>(&self, to: &Destination, client: &Client<S>) -> Option<Box<Keeping>> {
        let guards = self.guards.load();
        let kept = guards.as_ref()?.kept.as_ref()?;
        let asked = Asked::of(client, to).filter(|asked| asked.whole && client.head.method() == b"GET")?;
        let key: Arc<[u8]> = asked.key.into();
        let now = Instant::now();
        let is_new = |answer: &KeptAnswer| now.saturating_duration_since(answer.at) < RENEWED_AFTER;
        if kept.lock().answers.get(&key).is_some_and(|(_, answer)| is_new(answer)) {
            return None;
        }
        Some(Box::new(Keeping { kept: kept.clone(), key, known: asked.known, head: None }))
    }
}

/// What a request asks for, if others may ask for the same.
struct Asked {
    key: Vec<u8>,
    known: bool,
    /// It does not say that nothing is to be kept.
    whole: bool,
}

impl Asked {
    fn of<S: Front>(client: &Client<S>, to: &Destination) -> Option<Self> {
        let head = &client.head;
        if !matches!(head.method(), b"GET" | b"HEAD") || head.framing() != Framing::None {
            return None;
        }
        if has_field(head, b"authorization") {
            return None;
        }
        let whole = !directives(&head.fields, head.bytes()).any(|word| word.eq_ignore_ascii_case(b"no-store"));
        let version = to.version.as_ref().map_or("", |version| version.as_str());
        let parts = [client.scheme().as_str().as_bytes(), version.as_bytes(), head.authority(), head.path_and_query()];
        // None of the parts has a line's end in it.
        let mut key = parts.join(&b'\n');
        let host = parts[0].len() + parts[1].len() + 2;
        key[host..host + parts[2].len()].make_ascii_lowercase();
        Some(Self { key, known: has_field(head, b"cookie"), whole })
    }
}

fn has_field(head: &RequestHead, name: &[u8]) -> bool {
    head.fields.headers.iter().any(|field| field.name.get(head.bytes()).eq_ignore_ascii_case(name))
}

/// Words of `Cache-Control`, without what they are set to.
fn directives<'a>(fields: &'a Fields, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    values(fields, bytes, b"cache-control")
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(|word| word.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii())
}

fn values<'a>(fields: &'a Fields, bytes: &'a [u8], name: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
    let named = move |field: &&crate::http1::Header| field.name.get(bytes).eq_ignore_ascii_case(name);
    fields.headers.iter().filter(named).map(move |field| field.value.get(bytes))
}

/// Words that forbid to serve an answer to others, or when it is stale.
const FORBIDDING: [&[u8]; 6] =
    [b"no-store", b"private", b"no-cache", b"must-revalidate", b"proxy-revalidate", b"s-maxage"];

impl Keeping {
    /// Looks at an answer's head; itself if the body is to be copied.
    pub(crate) fn begin(
        mut self: Box<Self>,
        response: &ResponseHead,
        bytes: &[u8],
        edits: &HeaderEdits,
    ) -> Option<Box<Self>> {
        let is_longer = matches!(response.framing, Framing::Length(length) if length > self.most() as u64);
        if response.status != 200 || is_longer {
            return None;
        }
        let public = may_be_kept(&response.fields, bytes)?;
        if self.known && !public {
            return None;
        }
        let age = values(&response.fields, bytes, b"age").next();
        let age = age.and_then(|age| std::str::from_utf8(age).ok()?.parse().ok()).unwrap_or(0_u32);
        let mut head = Vec::with_capacity(512);
        write_response(&mut head, response, bytes, Delivery::Plain, Version::Http11, true, edits);
        self.head = Some((lasting_fields(&head), Duration::from_secs(age.into()), public));
        Some(self)
    }

    /// The most bytes of a body.
    pub(crate) fn most(&self) -> usize {
        LONGEST_BODY.min(self.kept.policy.max_bytes)
    }

    /// The whole answer went out, and this was its body.
    pub(crate) fn finish(self, body: Vec<u8>) {
        let Some((fields, age, public)) = self.head else { return };
        let answer = KeptAnswer { fields, body, at: Instant::now(), age, public };
        self.kept.put(self.key, answer);
    }
}

/// `Some` if nothing speaks against it: whether it says that anybody may have it.
fn may_be_kept(fields: &Fields, bytes: &[u8]) -> Option<bool> {
    let is_coded = values(fields, bytes, b"content-encoding").next().is_some();
    let varies = values(fields, bytes, b"vary").flat_map(|value| value.split(|&byte| byte == b','));
    // What is not coded is for every client (RFC 9110, 12.5.3); all else it varies by is unknown here.
    let mut varies = varies.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    let is_same = varies.all(|name| name.eq_ignore_ascii_case(b"accept-encoding") && !is_coded);
    let is = |word: &[u8], known: &[u8]| word.eq_ignore_ascii_case(known);
    let forbidden = directives(fields, bytes).any(|word| FORBIDDING.iter().any(|known| is(word, known)));
    let sets_cookie = values(fields, bytes, b"set-cookie").next().is_some();
    let public = directives(fields, bytes).any(|word| is(word, b"public"));
    (is_same && !forbidden && !sets_cookie).then_some(public)
}

/// The lines of a written head that hold for every client and at any time.
fn lasting_fields(head: &[u8]) -> Vec<u8> {
    let mut lasting = Vec::with_capacity(head.len());
    for line in head.split_inclusive(|&byte| byte == b'\n').skip(1) {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        let passes = Kind::of(name) == Kind::Other
            && !name.eq_ignore_ascii_case(b"age")
            && !name.eq_ignore_ascii_case(b"warning")
            && line != b"\r\n";
        if passes {
            lasting.extend_from_slice(line);
        }
    }
    lasting
}

impl Kept {
    pub(super) fn new(policy: KeepPolicy) -> Self {
        Self { policy, inside: Mutex::default(), displaced: AtomicU64::new(0) }
    }

    pub(super) fn is(&self, policy: KeepPolicy) -> bool {
        self.policy == policy
    }

    /// What was answered to the same request, not too long ago.
    pub(crate) fn find<S: Front>(&self, client: &Client<S>, to: &Destination, now: Instant) -> Option<Arc<KeptAnswer>> {
        let asked = Asked::of(client, to)?;
        let (_, answer) = self.lock().answers.get(asked.key.as_slice()).cloned()?;
        let is_old = now.saturating_duration_since(answer.at) > self.policy.max_age;
        (!is_old && (answer.public || !asked.known)).then_some(answer)
    }

    /// How many there are, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        let inside = self.lock();
        (inside.answers.len(), inside.bytes)
    }

    fn put(&self, key: Arc<[u8]>, answer: KeptAnswer) {
        if key.len() + answer.bytes() > self.policy.max_bytes {
            return;
        }
        let mut inside = self.lock();
        inside.remove(&key);
        let seq = inside.next;
        inside.next += 1;
        inside.bytes += key.len() + answer.bytes();
        inside.order.insert(seq, key.clone());
        inside.answers.insert(key, (seq, Arc::new(answer)));
        while inside.bytes > self.policy.max_bytes || inside.answers.len() > self.policy.max_entries.max(1) {
            let Some((_, oldest)) = inside.order.pop_first() else { break };
            inside.remove(&oldest);
            self.displaced.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn remove(&mut self, key: &[u8]) {
        if let Some((seq, answer)) = self.answers.remove(key) {
            self.order.remove(&seq);
            self.bytes -= key.len() + answer.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KeepPolicy, Kept, KeptAnswer, lasting_fields, may_be_kept};
    use crate::http1::{Limits, ResponseHead};
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    fn judged(fields: &str) -> Option<bool> {
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\n");
        let mut head = ResponseHead::default();
        head.parse(text.as_bytes(), false, &Limits::default()).unwrap();
        may_be_kept(&head.fields, text.as_bytes())
    }

    #[test]
    fn what_may_be_kept() {
        for (fields, want) in [
            ("", Some(false)),
            ("Cache-Control: max-age=60\r\n", Some(false)),
            ("Cache-Control: PUBLIC, max-age=60\r\n", Some(true)),
            ("Cache-Control: max-age=60\r\nCache-Control: no-store\r\n", None),
            ("Cache-Control: max-age=60,Private\r\n", None),
            ("Cache-Control: private=\"x\"\r\n", None),
            ("Cache-Control: no-cache\r\n", None),
            ("Cache-Control: max-age=1, must-revalidate\r\n", None),
            ("Cache-Control: s-maxage=9\r\n", None),
            ("Cache-Control: public\r\nset-cookie: a=b\r\n", None),
            ("Vary: Origin\r\n", None),
            ("Vary: *\r\n", None),
            ("Vary: accept-encoding\r\n", Some(false)),
            ("Vary: Accept-Encoding, Accept\r\n", None),
            ("Vary: Accept-Encoding\r\nContent-Encoding: gzip\r\n", None),
            ("Content-Encoding: gzip\r\n", Some(false)),
        ] {
            assert_eq!(judged(fields), want, "{fields}");
        }
    }

    #[test]
    fn what_is_of_the_connection_or_of_the_moment_is_left_out() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: 1\r\nAge: 4\r\nwarning: 110 - \"x\"\r\nConnection: close\r\nDate: D\r\n\r\n";
        assert_eq!(String::from_utf8(lasting_fields(head)).unwrap(), "X-A: 1\r\nDate: D\r\n");
    }

    #[test]
    fn room_is_bounded_in_number_and_bytes() {
        let policy = KeepPolicy { max_age: Duration::from_secs(1), max_bytes: 100, max_entries: 3 };
        let kept = Kept::new(policy);
        let answer = |bytes: usize| KeptAnswer {
            fields: Vec::new(),
            body: vec![0; bytes],
            at: Instant::now(),
            age: Duration::ZERO,
            public: false,
        };
        let has = |key: &str| kept.lock().answers.contains_key(key.as_bytes());
        let put = |key: &str, bytes| kept.put(key.as_bytes().into(), answer(bytes));
        ["a", "b", "c", "a", "d"].into_iter().for_each(|key| put(key, 9));
        assert!(has("a") && !has("b") && has("c") && has("d"), "the one kept longest ago went");
        assert_eq!(kept.size(), (3, 30));
        put("e", 80);
        assert!(has("d") && has("e") && !has("a"));
        assert_eq!(kept.size(), (2, 91));
        put("f", 100);
        assert_eq!(kept.size(), (2, 91), "too large for all of the room");
        assert_eq!(kept.displaced.load(Ordering::Relaxed), 3);
    }
}
