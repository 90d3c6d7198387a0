//! The gateway against judges we did not write: h2spec's cases of HTTP/2, in the clear and under TLS.
//! Not part of the tests: it fetches and builds the judge with Go. Deliberately absent: cases of our own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::bench::process::Running;
use crate::{bench, run};

/// The judge's version.
const H2SPEC: &str = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";

/// Builds judge and product, and runs every case.
pub fn conformance() -> Result<()> {
    let target = std::env::current_exe()?.ancestors().nth(2).context("no target folder")?.to_owned();
    let place = target.join("conformance");
    std::fs::create_dir_all(&place)?;
    let judge = h2spec(&place)?;
    bench::cargo(&["build", "--locked", "-p", "seawall"])?;
    certificate(&place)?;
    let (_running, plain, tls) = start(&target, &place)?;
    for (how, arguments) in [("in the clear", vec!["-p", &plain]), ("under TLS", vec!["-p", &tls, "-t", "-k"])] {
        let verdict = judged(&judge, &arguments)?;
        ensure!(verdict.failed.is_empty(), "h2spec {how}: of {} cases failed {:?}", verdict.cases, verdict.failed);
        println!("h2spec {how}: all {} cases passed", verdict.cases);
    }
    Ok(())
}

fn h2spec(place: &Path) -> Result<PathBuf> {
    let program = place.join("h2spec");
    if !program.exists() {
        let mut go = Command::new("go");
        go.args(["install", H2SPEC]).env("GOBIN", place);
        run(&mut go).context("h2spec is built with Go: install it, https://go.dev/dl")?;
    }
    Ok(program)
}

fn certificate(place: &Path) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost".split(' '));
    openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"]).arg(place.join("key.pem"));
    run(openssl.arg("-out").arg(place.join("cert.pem")).stderr(Stdio::null()))
}

/// The product with a demo service. In the clear HTTP/2 alone is spoken: where HTTP/1.1 is, too, a broken preface is a
/// broken request of it and answered 400 before the end of the connection, where the judge expects the end. Returns its ports in the clear and under TLS.
fn start(target: &Path, place: &Path) -> Result<(Running, String, String)> {
    let program = target.join("debug/seawall");
    let file = place.join("seawall.yaml");
    let text = format!(
        "node: {{ dataDir: data }}\napi: {{ listen: \"127.0.0.1:0\" }}\ngateway:\n  listen:\n    - {{ address: \"127.0.0.1:0\", protocols: [http2] }}\n    \
         - {{ address: \"127.0.0.1:0\", tls: {{ certificates: [{{ certFile: cert.pem, keyFile: key.pem }}] }} }}\n\
         services:\n  demo: {{ command: [{program:?}, demo-service, --port, \"${{port}}\"] }}\n\
         routes:\n  - {{ to: {{ service: demo }} }}\n"
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new(&program);
    command.arg("up").arg(&file);
    let mut running = Running::start(command, place.join("seawall.log"))?;
    let ready = running.wait_for("ready line", |output| {
        output.lines().find_map(|line| line.strip_prefix("ready ")).map(str::to_owned)
    })?;
    let ready: Value = serde_json::from_str(&ready)?;
    let port = |index: usize| {
        let address = ready["gateway"][index].as_str().context("no address of the gateway")?;
        Ok::<_, anyhow::Error>(address.rsplit(':').next().unwrap_or_default().to_owned())
    };
    Ok((running, port(0)?, port(1)?))
}

/// What the judge said.
struct Verdict {
    cases: usize,
    failed: Vec<String>,
}

fn judged(judge: &Path, arguments: &[&str]) -> Result<Verdict> {
    let output = Command::new(judge).args(["-h", "127.0.0.1", "-o", "5"]).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text.lines().find(|line| line.contains(" tests, ")).context("h2spec gave no summary")?;
    let cases = summary.split(' ').next().and_then(|count| count.parse().ok()).context("h2spec counted nothing")?;
    // Each failed case once as it ran and once in the list at the end.
    let (_, list) = text.split_once("Failures:").unwrap_or((&text, ""));
    let failed: Vec<String> =
        list.lines().filter(|line| line.contains('×')).map(|line| line.trim().to_owned()).collect();
    if cases == 0 || (!output.status.success() && failed.is_empty()) {
        bail!("h2spec did not run to its end:\n{text}");
    }
    Ok(Verdict { cases, failed })
}
