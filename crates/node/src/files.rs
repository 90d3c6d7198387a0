//! Files that the configuration names: certificates, keys, authorities and pages, read for the gateway, and checked
//! all at once before anything starts. Deliberately absent: noticing that one changed (`entrances.rs`).

use std::io;
use std::path::Path;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use gateway::tls::{Certificate, ClientTls, TlsError, Trust};
use gateway::{ErrorPage, Upstream};
use model::Service as Definition;
use model::config::{self, Config, InstanceTls, Listen};
use model::diagnostic::Diagnostics;

use crate::discovering::definitions;

/// The cure for most of what can be wrong with a file.
const CURE: &str = "correct the path or the file; relative paths are relative to the configuration file";

/// Looks whether every file that the gateway needs can be used.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    for Listen(listener) in &config.gateway.listen {
        let Some(tls) = &listener.tls else { continue };
        let subject = |problem: &str| format!("listener {}: {problem}", listener.address);
        for files in &tls.certificates {
            if let (Some(cert_file), Some(key_file)) = (&files.cert_file, &files.key_file)
                && let Err(Unusable { key, problem }) = check_pair(cert_file, key_file)
            {
                diagnostics.error(files.at.field(key), subject(&problem), CURE);
            }
        }
        if let Some(auth) = &tls.client_auth
            && let Err(problem) = authorities(&auth.ca_file)
        {
            diagnostics.error(auth.at.field("caFile"), subject(&problem), CURE);
        }
    }
    if let Some(acme) = &config.gateway.acme {
        if let Some(Err(problem)) = acme.ca_file.as_ref().map(authorities) {
            diagnostics.error(acme.at.field("caFile"), format!("gateway.acme: {problem}"), CURE);
        }
        if let Some(account) = &acme.external_account
            && let Err(problem) = hmac_key(&account.hmac_key_file)
        {
            diagnostics.error(account.at.field("hmacKeyFile"), format!("gateway.acme: {problem}"), CURE);
        }
    }
    for file in &config.discovery.definitions {
        if let Err(problem) = definitions::read(Path::new(&file.path)) {
            diagnostics.error(file.at, problem, "docs/guide/consul.md shows a service definition");
        }
    }
    for page in config.gateway.error_pages.values() {
        if let Err(problem) = read(&page.path) {
            diagnostics.error(page.at, format!("gateway.errorPages: {problem}"), CURE);
        }
    }
    for (name, definition) in &config.services {
        if let Some(tls) = &definition.tls {
            let mut tell = |key: &str, problem: &str, cure: &str| {
                diagnostics.error(tls.at.field(key), format!("service `{name}`: {problem}"), cure);
            };
            check_instance_tls(tls, &mut tell);
        }
    }
}

fn check_instance_tls(tls: &InstanceTls, tell: &mut dyn FnMut(&str, &str, &str)) {
    let mut ok = true;
    if let Some(Err(problem)) = tls.ca_file.as_ref().map(authorities) {
        tell("caFile", &problem, CURE);
        ok = false;
    }
    if let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file)
        && let Err(Unusable { key, problem }) = check_pair(cert_file, key_file)
    {
        tell(key, &problem, CURE);
        ok = false;
    }
    if ok && let Err(problem) = client_tls(tls) {
        tell("serverName", &problem, "write a name as it stands in the instances' certificates");
    }
}

/// A certificate that cannot be used.
pub struct Unusable {
    /// The key of the configuration that names the file at fault.
    key: &'static str,
    /// Which file, and why.
    pub problem: String,
}

/// What a certificate's two files hold: chain and key.
pub type Pair = [Vec<u8>; 2];

/// Reads chain and key.
pub fn read_pair(cert_file: &str, key_file: &str) -> Result<Pair, Unusable> {
    let of = |key| move |problem| Unusable { key, problem };
    Ok([read(cert_file).map_err(of("certFile"))?, read(key_file).map_err(of("keyFile"))?])
}

/// The certificate in them.
pub fn certificate(cert_file: &str, key_file: &str, [chain, key]: &Pair) -> Result<Certificate, Unusable> {
    Certificate::read(chain, key).map_err(|error| Unusable {
        key: if error.is_of_key() { "keyFile" } else { "certFile" },
        problem: format!("{cert_file} with {key_file}: {error}"),
    })
}

fn check_pair(cert_file: &str, key_file: &str) -> Result<(), Unusable> {
    let contents = read_pair(cert_file, key_file)?;
    certificate(cert_file, key_file, &contents).map(drop)
}

/// What a file of authorities holds, if it can be used.
pub fn authorities(path: impl AsRef<Path>) -> Result<Vec<u8>, String> {
    let pem = read(&path)?;
    let of_file = |error: TlsError| format!("{}: {error}", path.as_ref().display());
    gateway::tls::check_authorities(&pem).map_err(of_file)?;
    Ok(pem)
}

/// The key of an account elsewhere, base64url with or without its padding. What is in it is never told.
pub fn hmac_key(path: &str) -> Result<Vec<u8>, String> {
    let text = read(path)?;
    let text = text.trim_ascii_end().trim_ascii_start();
    let text = text.iter().rposition(|byte| *byte != b'=').map_or(&text[..0], |last| &text[..=last]);
    match BASE64_URL_SAFE_NO_PAD.decode(text) {
        Ok(key) if !key.is_empty() => Ok(key),
        _ => Err(format!("{path} is not a key in base64url, as the authority gives it")),
    }
}

/// The pages for the gateway's own answers, one status before a class.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn error_pages(written: &config::GatewayConfig) -> Result<Vec<ErrorPage>, String> {
    let page = |(key, page): (&String, &config::FilePath)| {
        let statuses =
            config::validate::error_statuses(key).ok_or_else(|| format!("`{key}` is no status of an error"))?;
        Ok(ErrorPage { statuses, content_type: "text/html; charset=utf-8".into(), body: read(&page.path)?.into() })
    };
    let mut pages = written.error_pages.iter().map(page).collect::<Result<Vec<_>, String>>()?;
    pages.sort_by_key(|page| page.statuses.end() - page.statuses.start());
    Ok(pages)
}

/// How a service's instances are spoken to.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn upstream(definition: &Definition) -> Result<Upstream, String> {
    let tls = definition.tls.as_ref().map(client_tls).transpose()?;
    let proxy_protocol = definition.send_proxy_protocol.map(|version| match version {
        config::ProxyVersion::V1 => gateway::ProxyVersion::V1,
        config::ProxyVersion::V2 => gateway::ProxyVersion::V2,
    });
    Ok(Upstream { http2: definition.http2, tls, proxy_protocol })
}

fn client_tls(written: &InstanceTls) -> Result<ClientTls, String> {
    let trust = match &written.ca_file {
        Some(path) => Trust::Authorities(read(path)?),
        None => Trust::Anybody,
    };
    let identity = match (&written.cert_file, &written.key_file) {
        (Some(chain), Some(key)) => Some((read(chain)?, read(key)?)),
        _ => None,
    };
    let identity = identity.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice()));
    let files = [&written.ca_file, &written.cert_file].into_iter().flatten().cloned().collect::<Vec<_>>();
    ClientTls::new(&trust, written.server_name.as_deref(), identity)
        .map_err(|error| format!("{}: {error}", files.join(", ")))
}

/// What a file holds.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, String> {
    /// No certificate file is that large.
    const MOST: u64 = 1 << 20;
    let path = path.as_ref();
    let cannot = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    if std::fs::metadata(path).map_err(cannot)?.len() > MOST {
        return Err(format!("{} is larger than 1 MiB: that is more than is read", path.display()));
    }
    std::fs::read(path).map_err(cannot)
}
