//! `seawall demo-service`: a small HTTP service to try Seawall with. Threads and the standard library only, so that it can
//! also be read as an example of what a service must do: listen on `PORT`, answer its probes. With a stream it is a
//! ledger besides, see [`ledger`].
//!
//! - `GET /health` 200 unless hung; `GET /ready` 200 or, after `POST /fault/unready`, 503
//! - `POST /promote`, `POST /demote` with `Seawall-Epoch`: the instance's role
//! - with a stream, `POST` of anything else: adds `?amount=1` to the balance, once for each `Idempotency-Key`
//! - `GET /metrics` in Prometheus' format: `demo_requests_total`
//! - `POST /fault/hang`, `/fault/crash`, `/fault/slow?ms=500`, `/fault/unready`, `/fault/exit?code=3`, `/fault/none`,
//!   `/fault/close` (lives on without its port), `/fault/garbage` (answers what is no HTTP), `/fault/fail`
//!   (answers 500), `/fault/deaf` (reads its stream no more)
//! - anything else: 200 with instance, role and epoch as JSON, after `--latency-ms`

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod ledger;

use super::Outcome;
use ledger::Ledger;

/// What `demo-service` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The port to listen on
    #[arg(long, env = "PORT", default_value_t = 9000)]
    port: u16,
    /// The address to listen on; in a cluster `${address}`, where other nodes reach it
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The name it answers with
    #[arg(long, default_value = "demo")]
    name: String,
    /// Each answer takes so many milliseconds
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Not ready for so many milliseconds after the start
    #[arg(long, default_value_t = 0)]
    start_ms: u64,
    /// Refuse to be promoted
    #[arg(long)]
    refuse_promotion: bool,
    /// Exit with this code instead of serving
    #[arg(long)]
    exit: Option<i32>,
}

struct Demo {
    arguments: Arguments,
    instance: String,
    /// With a stream.
    ledger: Option<Arc<Ledger>>,
    epoch: AtomicU64,
    primary: AtomicBool,
    hung: AtomicBool,
    unready: AtomicBool,
    closed: AtomicBool,
    garbage: AtomicBool,
    fails: AtomicBool,
    slow_ms: AtomicU64,
    served: AtomicU64,
    fault: Mutex<()>,
}

/// Serves until killed.
pub fn run(arguments: &Arguments) -> Outcome {
    if let Some(code) = arguments.exit {
        eprintln!("{}: exiting with {code} as told", arguments.name);
        std::process::exit(code);
    }
    let instance = std::env::var("SEAWALL_INSTANCE").unwrap_or_else(|_| arguments.name.clone());
    let demo = Arc::new(Demo {
        arguments: arguments.clone(),
        ledger: Ledger::open(&instance),
        instance,
        epoch: AtomicU64::new(0),
        primary: AtomicBool::new(false),
        hung: AtomicBool::new(false),
        unready: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        garbage: AtomicBool::new(false),
        fails: AtomicBool::new(false),
        slow_ms: AtomicU64::new(0),
        served: AtomicU64::new(0),
        fault: Mutex::new(()),
    });
    std::thread::sleep(Duration::from_millis(arguments.start_ms));
    let listener = TcpListener::bind((arguments.host, arguments.port))?;
    println!("{} listens on {}", demo.instance, listener.local_addr()?);
    for stream in listener.incoming() {
        if demo.closed.load(Ordering::SeqCst) {
            drop(listener);
            loop {
                std::thread::park();
            }
        }
        let demo = Arc::clone(&demo);
        let serve = move || {
            // A client that went away is no news.
            let _ = stream.and_then(|stream| demo.connection(stream));
        };
        std::thread::Builder::new().stack_size(128 * 1024).spawn(serve)?;
    }
    Ok(())
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
}

impl Demo {
    fn connection(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::with_capacity(8 * 1024, stream.try_clone()?);
        let mut stream = stream;
        while let Some(request) = read_request(&mut reader)? {
            let close = request.headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            let (status, body) = self.answer(&request);
            if self.garbage.load(Ordering::Relaxed) {
                return stream.write_all(b"\x00\x01 this is no HTTP\r\n\r\n");
            }
            let connection = if close { "close" } else { "keep-alive" };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n",
                body.len()
            );
            let body = if request.method == "HEAD" { "" } else { &body };
            stream.write_all((head + body).as_bytes())?;
            if close {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> (&'static str, String) {
        while self.hung.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
        }
        match (request.method.as_str(), request.path.as_str()) {
            (_, "/health") => ("200 OK", "{\"health\":\"ok\"}\n".into()),
            (_, "/metrics") => ("200 OK", self.metrics()),
            (_, "/ready")
                if self.unready.load(Ordering::Relaxed)
                    || self.ledger.as_ref().is_some_and(|ledger| !ledger.is_ready()) =>
            {
                ("503 Service Unavailable", "{\"ready\":false}\n".into())
            }
            (_, "/ready") => ("200 OK", "{\"ready\":true}\n".into()),
            ("POST", "/promote") => self.promote(request),
            ("POST", "/demote") => {
                if let Some(ledger) = &self.ledger {
                    ledger.demote();
                }
                self.primary.store(false, Ordering::SeqCst);
                println!("stepped down");
                ("200 OK", "{\"role\":\"standby\"}\n".into())
            }
            ("POST", path) if path.starts_with("/fault/") => self.fault(&path[7..], &request.query),
            ("POST", _) if self.ledger.is_some() => self.post(request),
            _ => self.serve(request),
        }
    }

    fn metrics(&self) -> String {
        let served = self.served.load(Ordering::Relaxed);
        format!(
            "# TYPE demo_requests_total counter\ndemo_requests_total{{service=\"{}\"}} {served}\n",
            self.arguments.name
        )
    }

    fn promote(&self, request: &Request) -> (&'static str, String) {
        let number = |name: &str| request.headers.get(name).and_then(|number| number.parse().ok()).unwrap_or(0);
        let epoch = number("seawall-epoch");
        if self.arguments.refuse_promotion {
            return ("409 Conflict", "{\"error\":\"told to refuse\"}\n".into());
        }
        // An older epoch must never win: that is all a service has to do to be safe.
        let previous = self.epoch.fetch_max(epoch, Ordering::SeqCst);
        if epoch < previous {
            return ("409 Conflict", format!("{{\"error\":\"epoch {epoch} is older than {previous}\"}}\n"));
        }
        let end = number("seawall-stream-end");
        if let Some(Err(error)) = self.ledger.as_ref().map(|ledger| ledger.promote(epoch, end)) {
            return ("409 Conflict", format!("{{\"error\":\"{error}\"}}\n"));
        }
        self.primary.store(true, Ordering::SeqCst);
        match self.ledger {
            Some(_) => println!("primary in epoch {epoch}, after offset {end} of its stream"),
            None => println!("primary in epoch {epoch}"),
        }
        ("200 OK", "{\"role\":\"primary\"}\n".into())
    }

    fn fault(&self, which: &str, query: &str) -> (&'static str, String) {
        let _one_at_a_time = self.fault.lock();
        let number = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
        };
        eprintln!("fault: {which} {query}");
        match which {
            "hang" => self.hung.store(true, Ordering::Relaxed),
            "crash" => std::process::abort(),
            "exit" => std::process::exit(i32::try_from(number("code").unwrap_or(1)).unwrap_or(1)),
            "slow" => self.slow_ms.store(number("ms").unwrap_or(500), Ordering::Relaxed),
            "unready" => self.unready.store(true, Ordering::Relaxed),
            "deaf" => self.ledger.iter().for_each(|ledger| ledger.turn_deaf()),
            "garbage" => self.garbage.store(true, Ordering::Relaxed),
            "fail" => self.fails.store(true, Ordering::Relaxed),
            "close" => {
                self.closed.store(true, Ordering::SeqCst);
                // The accepting thread looks at the switch when somebody connects.
                let _ = TcpStream::connect((self.arguments.host, self.arguments.port));
            }
            "none" => {
                self.slow_ms.store(0, Ordering::Relaxed);
                self.unready.store(false, Ordering::Relaxed);
                self.fails.store(false, Ordering::Relaxed);
            }
            _ => {
                return (
                    "404 Not Found",
                    "{\"error\":\"faults: hang, crash, exit, slow, unready, close, garbage, fail, deaf, none\"}\n"
                        .into(),
                );
            }
        }
        ("200 OK", format!("{{\"fault\":\"{which}\"}}\n"))
    }

    fn pause(&self) {
        let pause = self.arguments.latency_ms + self.slow_ms.load(Ordering::Relaxed);
        if pause > 0 {
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    fn post(&self, request: &Request) -> (&'static str, String) {
        self.pause();
        let amount = request.query.split('&').find_map(|pair| pair.strip_prefix("amount=")).unwrap_or("1");
        let key = request.headers.get("idempotency-key").map_or("", String::as_str);
        match (amount.parse(), &self.ledger) {
            (Ok(amount), Some(ledger)) => ledger.post(amount, key),
            _ => ("400 Bad Request", "{\"error\":\"amount is a whole number\"}\n".into()),
        }
    }

    fn serve(&self, request: &Request) -> (&'static str, String) {
        self.pause();
        if self.fails.load(Ordering::Relaxed) {
            return ("500 Internal Server Error", "{\"error\":\"told to fail\"}\n".into());
        }
        let served = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        // The epoch in which the gateway believes this instance to be primary.
        let asked = request.headers.get("seawall-epoch").and_then(|epoch| epoch.parse::<u64>().ok()).unwrap_or(0);
        let role = if self.primary.load(Ordering::SeqCst) { "primary" } else { "standby" };
        let body = format!(
            "{{\"service\":\"{}\",\"instance\":\"{}\",\"pid\":{},\"role\":\"{role}\",\"epoch\":{},\"asked\":{asked},\"served\":{served}{}}}\n",
            self.arguments.name,
            self.instance,
            std::process::id(),
            self.epoch.load(Ordering::SeqCst),
            self.ledger.as_ref().map_or_else(String::new, |ledger| ledger.state())
        );
        ("200 OK", body)
    }
}

/// The next request of a connection, its body read and dropped; `None` at its end.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or("/"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse::<u64>().ok()).unwrap_or(0);
    io::copy(&mut reader.take(length), &mut io::sink())?;
    if headers.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        skip_chunks(reader)?;
    }
    Ok(Some(Request { method, path, query, headers }))
}

fn skip_chunks(reader: &mut BufReader<TcpStream>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16).unwrap_or(0);
        io::copy(&mut reader.take(size + 2), &mut io::sink())?;
        if size == 0 {
            return Ok(());
        }
    }
}
