//! The tools people point at a server: curl, wrk, h2load, hey, and Chromium without a window. What each reports must be
//! free of errors and say the version of HTTP that was meant. `cargo xtask tools` installs them; one that is not there is
//! skipped with a line, unless SEAWALL_TOOLS=required.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use gateway::{Endpoints, Options};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::common::authority::Authority;
use crate::common::{Rig, endpoint};
use crate::runtime;

/// Longer than any of them takes.
const MOST: Duration = Duration::from_secs(60);

/// A page that tells, before it counts as loaded, how it came and what a WebSocket and a request said.
const PAGE: &str = r#"<!doctype html><title>proof</title><p id=told>nothing</p>
<script>
const tell = text => { document.getElementById('told').textContent += ' | ' + text; };
tell('page by ' + performance.getEntriesByType('navigation')[0].nextHopProtocol);
const image = new Image();
image.src = '/late';
document.body.append(image);
const socket = new WebSocket(location.origin.replace('http', 'ws') + '/chat');
socket.onopen = () => socket.send('hello');
socket.onmessage = async message => {
  tell('socket said ' + message.data);
  tell('post said ' + await (await fetch('/length', {method: 'POST', body: 'x'.repeat(300000)})).text());
  await fetch('/done');
};
</script>"#;

/// What the page's image waits for.
type Done = Arc<(Mutex<bool>, tokio::sync::Notify)>;

async fn answer(mut request: Request<Incoming>, done: Done) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = |text: String| Response::new(Full::new(Bytes::from(text)));
    Ok(match request.uri().path() {
        "/page" => {
            *done.0.lock().unwrap() = false;
            let mut page = text(PAGE.to_owned());
            page.headers_mut().insert("content-type", http::HeaderValue::from_static("text/html"));
            page
        }
        "/length" => text(request.into_body().collect().await.unwrap().to_bytes().len().to_string()),
        "/chat" => {
            let key = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let stream = TokioIo::new(upgraded.await.unwrap());
                let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
            let mut switch = text(String::new());
            *switch.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
            let fields = switch.headers_mut();
            fields.insert("connection", http::HeaderValue::from_static("upgrade"));
            fields.insert("upgrade", http::HeaderValue::from_static("websocket"));
            fields.insert("sec-websocket-accept", key.parse().unwrap());
            switch
        }
        "/done" => {
            *done.0.lock().unwrap() = true;
            done.1.notify_waiters();
            text("noted".to_owned())
        }
        "/late" => {
            let told = done.1.notified();
            let already = *done.0.lock().unwrap();
            if !already {
                let _ = tokio::time::timeout(MOST / 2, told).await;
            }
            text("late".to_owned())
        }
        _ => text("small".to_owned()),
    })
}

/// Gateways before one instance, in the clear and under TLS.
struct Place {
    clear: Rig,
    tls: Rig,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let done = Done::default();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let done = done.clone();
                let service = hyper::service::service_fn(move |request| answer(request, done.clone()));
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
            }
        });
        let told = || Endpoints { endpoints: vec![endpoint("s-0", address)], ..Endpoints::default() };
        let options = || Options { workers: 2, ..Options::default() };
        let tls = Rig::mannered(Authority::new().manner(), options(), told());
        Self { clear: Rig::with(options(), told(), None), tls, _runtime: runtime }
    }

    fn clear(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.clear.address.port())
    }

    fn tls(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.tls.address.port())
    }
}

/// A tool's program, if it is there.
fn program(names: &[&str]) -> Option<PathBuf> {
    // Where `cargo xtask tools` puts what it builds.
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let places = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&places).chain([own]).collect();
    let found =
        names.iter().flat_map(|name| places.iter().map(move |place| place.join(name))).find(|path| path.is_file());
    if found.is_none() {
        let required = std::env::var("SEAWALL_TOOLS").is_ok_and(|value| value == "required");
        assert!(!required, "{} is not installed: cargo xtask tools", names[0]);
        // Past the test runner, which keeps what a good test prints to itself.
        let _ = writeln!(std::io::stderr(), "skipped: {} is not installed (cargo xtask tools)", names[0]);
    }
    found
}

/// Runs a tool to its end; what it wrote to standard output.
fn run(program: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |from: Box<dyn std::io::Read + Send>| std::thread::spawn(move || std::io::read_to_string(from).unwrap());
    let (out, err) = (read(Box::new(out)), read(Box::new(err)));
    let until = Instant::now() + MOST;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{program:?} {arguments:?} does not end: {}", err.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    assert!(status.success(), "{program:?} {arguments:?}: {status}\n{out}\n{err}");
    out
}

#[test]
fn curl_speaks_every_version_and_sends_every_body() {
    let Some(curl) = program(&["curl"]) else { return };
    let place = Place::new();
    let ask = |arguments: &[&str]| {
        let common = [
            "-sS",
            "-k",
            "--noproxy",
            "*",
            "--max-time",
            "20",
            "-w",
            " %{http_version} %{http_code} %{num_connects}\n",
        ];
        run(&curl, &[&common, arguments].concat())
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![b'u'; 1_500_000]).unwrap();
    let upload = format!("@{}", file.path().display());
    let (small, length) = (place.clear("/"), place.clear("/length"));
    let (small_tls, length_tls) = (place.tls("/"), place.tls("/length"));
    for (arguments, wanted) in [
        (vec!["--http1.1", &small], "small 1.1 200 1\n"),
        // Without `Connection: keep-alive` HTTP/1.0 ends with the answer, which is 1.1 all the same.
        (vec!["--http1.0", &small], "small 1.1 200 1\n"),
        // Asks to go on in h2c and is answered in what it asked in.
        (vec!["--http2", &small], "small 1.1 200 1\n"),
        (vec!["--http2-prior-knowledge", &small], "small 2 200 1\n"),
        (vec!["--http2", &small_tls], "small 2 200 1\n"),
        (vec!["--http1.1", &small_tls], "small 1.1 200 1\n"),
        (vec!["--tls-max", "1.2", &small_tls], "small 2 200 1\n"),
        (vec!["--http1.1", &small, &small, &small], "small 1.1 200 1\nsmall 1.1 200 0\nsmall 1.1 200 0\n"),
        (vec!["--http2", &small_tls, &small_tls], "small 2 200 1\nsmall 2 200 0\n"),
        // Large enough for `Expect: 100-continue`.
        (vec!["--http1.1", "--data-binary", &upload, &length], "1500000 1.1 200 1\n"),
        (
            vec!["--http1.1", "-H", "Transfer-Encoding: chunked", "--data-binary", &upload, &length],
            "1500000 1.1 200 1\n",
        ),
        (vec!["--http2", "--data-binary", &upload, &length_tls], "1500000 2 200 1\n"),
        (vec!["--http2-prior-knowledge", "--data-binary", &upload, &length], "1500000 2 200 1\n"),
    ] {
        assert_eq!(ask(&arguments), wanted, "{arguments:?}");
    }
    for (arguments, url) in [("--http1.1", &small), ("--http2", &small_tls)] {
        let head = ask(&["-I", arguments, url]).to_ascii_lowercase();
        assert!(head.contains("content-length: 5\r\n") && head.ends_with(" 200 1\n"), "{head}");
    }
}

#[test]
fn wrk_counts_no_error() {
    let Some(wrk) = program(&["wrk"]) else { return };
    let place = Place::new();
    for url in [place.clear("/"), place.tls("/")] {
        let told = run(&wrk, &["-t1", "-c16", "-d1s", "--latency", &url]);
        let requests = told.lines().find(|line| line.contains(" requests in ")).expect("a summary");
        let requests: u64 = requests.trim().split(' ').next().unwrap().parse().unwrap();
        assert!(requests > 50, "{told}");
        assert!(!told.contains("Socket errors") && !told.contains("Non-2xx"), "{told}");
    }
}

#[test]
fn h2load_succeeds_with_every_request() {
    let Some(h2load) = program(&["h2load"]) else { return };
    let place = Place::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![b'u'; 20_000]).unwrap();
    let upload = file.path().display().to_string();
    let (small, length, tls) = (place.clear("/"), place.clear("/length"), place.tls("/"));
    for (arguments, protocol) in [
        (vec!["-n1000", "-c4", "-m32", &small], "h2c"),
        (vec!["-n1000", "-c4", "-m32", &tls], "h2"),
        (vec!["-n1000", "-c4", "--h1", &small], "http/1.1"),
        (vec!["-n200", "-c2", "-m8", "-d", &upload, &length], "h2c"),
    ] {
        let told = run(&h2load, &arguments);
        let wanted = arguments[0].trim_start_matches("-n");
        assert!(told.contains(&format!("Application protocol: {protocol}")), "{told}");
        assert!(told.contains(&format!("{wanted} succeeded, 0 failed, 0 errored, 0 timeout")), "{told}");
        assert!(told.contains(&format!("status codes: {wanted} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{told}");
    }
}

#[test]
fn hey_gets_200_for_every_request() {
    let Some(hey) = program(&["hey"]) else { return };
    let place = Place::new();
    let (small, tls) = (place.clear("/"), place.tls("/"));
    for arguments in [
        vec!["-n", "500", "-c", "10", &small],
        vec!["-n", "500", "-c", "10", "-disable-keepalive", &small],
        // It would name the port in TLS's server name, too, which is refused.
        vec!["-n", "500", "-c", "10", "-host", "localhost", "-h2", &tls],
        vec!["-n", "500", "-c", "10", "-host", "localhost", "-m", "POST", "-d", "hello", &tls],
    ] {
        let told = run(&hey, &arguments);
        assert!(told.contains("[200]\t500 responses"), "{arguments:?}: {told}");
        assert!(!told.contains("Error distribution"), "{arguments:?}: {told}");
    }
}

#[test]
fn chromium_renders_a_page_over_http2_and_talks_on_a_websocket() {
    let Some(chromium) = program(&["chromium", "chromium-browser", "google-chrome"]) else { return };
    let place = Place::new();
    for (url, protocol) in [(place.tls("/page"), "h2"), (place.clear("/page"), "http/1.1")] {
        let profile = tempfile::tempdir().unwrap();
        let profile = format!("--user-data-dir={}", profile.path().display());
        let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
             --disable-component-update --disable-sync --no-proxy-server --ignore-certificate-errors --dump-dom";
        let flags: Vec<&str> =
            flags.split(' ').filter(|flag| !flag.is_empty()).chain([profile.as_str(), &url]).collect();
        let page = run(&chromium, &flags);
        for told in [&format!("page by {protocol}"), "socket said hello", "post said 300000"] {
            assert!(page.contains(told), "{told} is not in {page}");
        }
    }
}
