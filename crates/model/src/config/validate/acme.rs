//! Rules of certificates that are ordered: what an authority must be told, and what it must be able to reach.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::{Acme, AcmeCertificate, Challenge, Config, ListenerCertificate, ListenerTls};
use crate::diagnostic::Diagnostics;

/// The most names of one certificate, as Let's Encrypt has it.
pub const MAX_DOMAINS: usize = 100;
/// A renewal sooner before the end than this leaves no room for a second try.
const LEAST_RENEW_BEFORE_SECONDS: u64 = 60;

/// Checks `gateway.acme`.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    let Some(acme) = &config.gateway.acme else { return };
    let rest = acme.directory.strip_prefix("https://");
    if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/') || rest.contains(char::is_whitespace)) {
        diagnostics.error(
            acme.at.field("directory"),
            format!("`{}` is not the https:// URL of a directory", acme.directory),
            format!("write the URL that the authority names, e.g. {}", crate::config::LETS_ENCRYPT),
        );
    }
    for address in &acme.email.0 {
        if address.starts_with("mailto:") || address.split('@').filter(|part| !part.is_empty()).count() != 2 {
            diagnostics.error(
                acme.at.field("email"),
                format!("`{address}` is not an email address"),
                "write name@example.org",
            );
        }
    }
    if !acme.terms_of_service_agreed {
        diagnostics.error(
            acme.at.field("termsOfServiceAgreed"),
            "the authority's terms of service are not agreed to",
            "read them (the directory names them) and write termsOfServiceAgreed: true",
        );
    }
    if let Some(external) = &acme.external_account
        && external.key_id.is_empty()
    {
        diagnostics.error(external.at.field("keyId"), "`keyId` is empty", "write the id that the authority gave you");
    }
    if acme.renew_before.is_some_and(|before| before.as_secs() < LEAST_RENEW_BEFORE_SECONDS) {
        diagnostics.error(
            acme.at.field("renewBefore"),
            "`renewBefore` leaves no time for a second try",
            "write e.g. 720h, or leave it out: a third of the lifetime",
        );
    }
    reachable(config, acme, diagnostics);
}

fn reachable(config: &Config, acme: &Acme, diagnostics: &mut Diagnostics) {
    if acme.challenge == Some(Challenge::Http01) && !has_http(config) {
        diagnostics.error(
            acme.at.field("challenge"),
            "`http-01` needs an HTTP listener in the clear, and the gateway has none",
            "add an address without `tls` to `gateway.listen` to which port 80 of the names leads (the authority connects to that port), or write challenge: tls-alpn-01",
        );
    }
    let ordered = |tls: &ListenerTls| tls.certificates.iter().any(|certificate| certificate.acme.is_some());
    if !config.gateway.listen.iter().any(|listen| listen.0.tls.as_ref().is_some_and(ordered)) {
        diagnostics.warning(
            acme.at.whole,
            "`acme` without a certificate that is ordered",
            "write certificates: [{ acme: { domains: [shop.example] } }] in a listener's `tls`, or remove `acme`",
        );
    }
}

fn has_http(config: &Config) -> bool {
    config.gateway.listen.iter().any(|listen| listen.0.tls.is_none() && listen.0.tcp.is_none())
}

impl Config {
    /// The challenge in force: what is written, else what the listeners allow.
    pub fn acme_challenge(&self) -> Challenge {
        let written = self.gateway.acme.as_ref().and_then(|acme| acme.challenge);
        written.unwrap_or(if has_http(self) { Challenge::Http01 } else { Challenge::TlsAlpn01 })
    }
}

/// Checks where a listener's certificate comes from.
pub fn certificate(config: &Config, certificate: &ListenerCertificate, diagnostics: &mut Diagnostics) {
    let (files, place) = ((&certificate.cert_file, &certificate.key_file), certificate.at.whole);
    match (files, &certificate.acme) {
        ((Some(_), Some(_)), None) => {}
        ((None, None), Some(acme)) => domains(config, acme, diagnostics),
        ((None, None), None) => diagnostics.error(
            place,
            "a certificate that comes from nowhere",
            "write certFile: cert.pem and keyFile: key.pem, or acme: { domains: [shop.example] }",
        ),
        (_, Some(_)) => diagnostics.error(
            certificate.at.field("acme"),
            "`acme` beside `certFile` or `keyFile`",
            "a certificate is read from files or ordered: keep one of the two",
        ),
        (_, None) => {
            diagnostics.error(place, "`certFile` and `keyFile` belong together", "write both");
        }
    }
}

fn domains(config: &Config, acme: &AcmeCertificate, diagnostics: &mut Diagnostics) {
    let place = acme.at.field("domains");
    if config.gateway.acme.is_none() {
        diagnostics.error(
            acme.at.whole,
            "a certificate is to be ordered, and `gateway.acme` does not say from whom",
            "add acme: { termsOfServiceAgreed: true, email: you@example.org } to `gateway`",
        );
    }
    if acme.domains.is_empty() || acme.domains.len() > MAX_DOMAINS {
        let message = format!("a certificate for {} names", acme.domains.len());
        diagnostics.error(place, message, format!("name 1 to {MAX_DOMAINS} domains"));
    }
    let mut seen = BTreeSet::new();
    for domain in &acme.domains {
        if let Some((message, cure)) = wrong(domain) {
            diagnostics.error(place, message, cure);
        } else if !seen.insert(domain.to_ascii_lowercase()) {
            diagnostics.error(place, format!("`{domain}` is named twice"), "name each domain once");
        }
    }
}

/// Why no authority would order this, and what to do.
fn wrong(domain: &str) -> Option<(String, &'static str)> {
    if domain.starts_with("*.") {
        let message = format!("`{domain}` is a wildcard, which an authority checks by DNS only (dns-01)");
        return Some((message, "name each domain, or bring the certificate as files"));
    }
    if domain.parse::<IpAddr>().is_ok() {
        return Some((format!("`{domain}` is an address, and certificates are ordered for names"), "write a name"));
    }
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
    };
    let valid = domain.len() <= 253 && domain.contains('.') && domain.split('.').all(label);
    (!valid).then(|| {
        let message = format!("`{domain}` is not a domain that an authority knows");
        (message, "write a full name such as shop.example.org, letters beyond ASCII in their xn-- form")
    })
}
