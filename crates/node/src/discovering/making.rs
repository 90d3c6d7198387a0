//! How one check is made, in Consul's meaning: 2xx passes, 429 warns; exit code 0 passes, 1 warns. What is said is bounded
//! in time and size: an instance that answers ten megabytes costs ten kilobytes.
//! Deliberately absent: the protocols themselves (`health::prober`), and when a check is due (`checks.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use discovery::record::{CheckDefinition, CheckStatus};
use health::prober::{self, Connection, Terms};
use http::Uri;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Redirects that are followed; Consul's bound.
const MAX_REDIRECTS: u32 = 10;

/// What all checks share.
pub struct Tools {
    working_dir: PathBuf,
}

impl Tools {
    /// Programs run in this folder.
    pub fn new(working_dir: PathBuf) -> Self {
        Self { working_dir }
    }
}

/// A result with what was found.
type Outcome = (CheckStatus, String);

/// Makes a check once.
pub async fn make(definition: &CheckDefinition, tools: &Tools) -> Outcome {
    let limit = Duration::from_millis(definition.timeout_ms.max(1));
    // A program has its own limit inside, and needs a moment more to be ended with its whole tree.
    let patience = if definition.args.is_empty() { limit } else { limit + prober::ENDING };
    let made = async {
        if !definition.http.is_empty() {
            return over_http(definition).await;
        }
        if !definition.args.is_empty() {
            return run(definition, tools, limit).await;
        }
        let passed = if !definition.tcp.is_empty() {
            over_tcp(definition).await
        } else if !definition.h2ping.is_empty() {
            over_h2(definition).await
        } else if !definition.udp.is_empty() {
            datagram(&definition.udp, limit).await
        } else {
            over_grpc(definition).await
        };
        match passed {
            Ok(output) => (CheckStatus::Passing, output),
            Err(why) => (CheckStatus::Critical, why),
        }
    };
    match timeout(patience, made).await {
        Ok(result) => result,
        Err(_) => (CheckStatus::Critical, format!("no answer within {} ms", limit.as_millis())),
    }
}

async fn connect(address: &str) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))
}

fn status_of(code: u16) -> CheckStatus {
    match code {
        200..300 => CheckStatus::Passing,
        429 => CheckStatus::Warning,
        _ => CheckStatus::Critical,
    }
}

fn told(step: &Step, code: u16, body: &[u8]) -> Outcome {
    let reason = http::StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason()).unwrap_or_default();
    let body = String::from_utf8_lossy(body);
    (status_of(code), format!("HTTP {} {}: {code} {reason} Output: {body}", step.method, step.url))
}

/// The other side of the connection that a check is made on; its own name unless the check says another.
fn terms<'d>(definition: &'d CheckDefinition, host: &'d str, protocol: &'static [u8]) -> Terms<'d> {
    let named = definition.tls_server_name.as_str();
    let name = if named.is_empty() { host } else { named };
    Terms { name, skip_verify: definition.tls_skip_verify, protocol }
}

/// The host of `HOST:PORT`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

async fn over_tcp(definition: &CheckDefinition) -> Result<String, String> {
    let address = &definition.tcp;
    let stream = connect(address).await?;
    if definition.tcp_use_tls {
        prober::over_tls(stream, terms(definition, host_of(address), b"")).await?;
    }
    Ok(format!("TCP connect {address}: Success"))
}

async fn over_h2(definition: &CheckDefinition) -> Result<String, String> {
    let address = &definition.h2ping;
    let stream = connect(address).await?;
    if definition.h2ping_use_tls {
        prober::h2_ping(prober::over_tls(stream, terms(definition, host_of(address), b"h2")).await?).await?;
    } else {
        prober::h2_ping(stream).await?;
    }
    Ok("HTTP2 ping was successful".into())
}

async fn over_http(definition: &CheckDefinition) -> Outcome {
    let first = if definition.method.is_empty() { "GET" } else { &definition.method };
    let mut step =
        Step { url: definition.http.clone(), method: first.to_owned(), body: definition.body.clone(), home: true };
    for _ in 0..=MAX_REDIRECTS {
        let Ok(uri) = step.url.parse::<Uri>() else {
            return (CheckStatus::Critical, format!("{} is no URL", step.url));
        };
        let answer = match ask_once(definition, &uri, &step).await {
            Ok(answer) => answer,
            Err(why) => return (CheckStatus::Critical, why),
        };
        let next = answer.location.as_deref().filter(|_| !definition.disable_redirects);
        match next.and_then(|location| redirected(&uri, &step, answer.status, location)) {
            Some(next) => step = next,
            None => return told(&step, answer.status, &answer.body),
        }
    }
    (CheckStatus::Critical, format!("{first} {}: stopped after {MAX_REDIRECTS} redirects", definition.http))
}

/// One request of a check.
struct Step {
    url: String,
    method: String,
    body: String,
    /// It goes where the check's author sent it: what he put into header fields is for nobody else.
    home: bool,
}

async fn ask_once(definition: &CheckDefinition, uri: &Uri, step: &Step) -> Result<prober::Answer, String> {
    let host = uri.host().ok_or_else(|| format!("{} names no host", step.url))?.trim_matches(['[', ']']);
    let secure = uri.scheme_str() == Some("https");
    let failed = |why: &dyn std::fmt::Display| format!("{} {}: {why}", step.method, step.url);
    let connected = TcpStream::connect((host, uri.port_u16().unwrap_or(if secure { 443 } else { 80 }))).await;
    let stream = connected.map_err(|error| failed(&error))?;
    if secure {
        // The name that the check's author gave is for the host he gave.
        let name = if step.home { definition.tls_server_name.as_str() } else { "" };
        let name = if name.is_empty() { host } else { name };
        let terms = Terms { name, skip_verify: definition.tls_skip_verify, protocol: b"" };
        let stream = prober::over_tls(stream, terms).await.map_err(|why| failed(&why))?;
        return ask_on(stream, definition, uri, step).await;
    }
    ask_on(stream, definition, uri, step).await
}

async fn ask_on(
    stream: impl Connection,
    definition: &CheckDefinition,
    uri: &Uri,
    step: &Step,
) -> Result<prober::Answer, String> {
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let fields = definition.header.iter().filter(|_| step.home);
    let mut headers: Vec<(&str, &str)> =
        fields.flat_map(|(name, values)| values.iter().map(move |value| (name.as_str(), value.as_str()))).collect();
    for (name, value) in [("host", authority.as_str()), ("user-agent", "Consul Health Check")] {
        if !headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
            headers.push((name, value));
        }
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let body = Bytes::copy_from_slice(step.body.as_bytes());
    // The host is among the headers already.
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    prober::request_with(stream, &step.method, path, nobody, &headers, body).await
}

/// Where an answer sends the check on to; `None` if it does not.
fn redirected(from: &Uri, step: &Step, status: u16, location: &str) -> Option<Step> {
    let keeps = match status {
        301..=303 => false,
        307 | 308 => true,
        _ => return None,
    };
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let url = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let home = step.home && url.parse::<Uri>().is_ok_and(|to| to.host() == from.host());
    let (method, body) = match (keeps, step.method.as_str()) {
        (true, _) | (_, "HEAD") => (step.method.clone(), step.body.clone()),
        (false, _) => ("GET".to_owned(), String::new()),
    };
    Some(Step { url, method, body, home })
}

async fn run(definition: &CheckDefinition, tools: &Tools, limit: Duration) -> Outcome {
    match prober::judge_command(&definition.args, &BTreeMap::new(), &tools.working_dir, limit).await {
        Ok((Some(0), said)) => (CheckStatus::Passing, said),
        Ok((Some(1), said)) => (CheckStatus::Warning, said),
        Ok((Some(code), said)) if said.is_empty() => (CheckStatus::Critical, format!("exit code {code}")),
        Ok((_, said)) => (CheckStatus::Critical, said),
        Err(why) => (CheckStatus::Critical, why),
    }
}

/// A datagram that is refused comes back as an error; silence is no failure, as in Consul.
async fn datagram(address: &str, limit: Duration) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("UDP {address}: {error}");
    let target = tokio::net::lookup_host(address).await.map_err(failed)?.next();
    let Some(target) = target else { return Err(format!("UDP {address}: no address")) };
    let own: SocketAddr =
        if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(own).await.map_err(failed)?;
    socket.connect(target).await.map_err(failed)?;
    socket.send(b"").await.map_err(failed)?;
    let mut answer = [0; 16];
    match timeout(limit / 2, socket.recv(&mut answer)).await {
        Ok(Err(error)) => Err(failed(error)),
        Ok(Ok(_)) | Err(_) => Ok(format!("UDP connect {address}: Success")),
    }
}

/// `HOST:PORT[/SERVICE]`.
async fn over_grpc(definition: &CheckDefinition) -> Result<String, String> {
    let written = &definition.grpc;
    let (address, service) = written.split_once('/').unwrap_or((written, ""));
    let stream = connect(address).await?;
    if definition.grpc_use_tls {
        let stream = prober::over_tls(stream, terms(definition, host_of(address), b"h2")).await?;
        prober::grpc_check(stream, &format!("https://{address}"), service).await?;
    } else {
        prober::grpc_check(stream, &format!("http://{address}"), service).await?;
    }
    Ok(format!("gRPC check {written}: success"))
}
