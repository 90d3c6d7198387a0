//! Certificates that are ordered from an authority (ACME, RFC 8555) instead of read from files.

use std::time::Duration;

use super::decode::{OneOrMany, record, words};

/// Let's Encrypt.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

record! {
    /// The authority that certificates are ordered from (ACME), and how it is shown that a name leads here.
    Acme as "`acme`" {
        /// The URL of the authority's directory; Let's Encrypt when absent.
        directory: String = LETS_ENCRYPT.to_owned(),
        /// Where the authority writes to when something is wrong; one address or several.
        email: OneOrMany = OneOrMany::default(),
        /// That you agree to the authority's terms of service; without `true` nothing is ordered.
        terms_of_service_agreed: bool = false,
        /// How it is shown that a name leads here. When absent: `http-01` if the gateway has an HTTP listener in the clear, else `tls-alpn-01`.
        challenge: Option<Challenge> = None,
        /// The PEM authorities that sign the directory's own certificate, where the public ones do not; relative to the file.
        ca_file: Option<String> = None,
        /// An account elsewhere that the authority wants the new one to be bound to.
        external_account: Option<ExternalAccount> = None,
        /// How long before its end a certificate is renewed; a third of its lifetime when absent. The authority may ask for an earlier time (ARI).
        renew_before: Option<Duration> = None,
    }
}

words! {
    /// How an authority is shown that a name leads here.
    Challenge {
        /// A file in the clear: the authority connects to port 80 of the name.
        Http01 = "http-01",
        /// A certificate made for the visit: the authority connects to port 443 of the name.
        TlsAlpn01 = "tls-alpn-01",
    }
}

record! {
    /// An account that the authority knows already (external account binding).
    ExternalAccount as "`externalAccount`" {
        /// Its key's id, as the authority gave it.
        key_id: String,
        /// A file with its key (HMAC, base64url), as the authority gave it; relative to the file.
        hmac_key_file: String,
    }
}

record! {
    /// A certificate that is ordered, kept under the data directory and renewed by itself.
    AcmeCertificate as "`acme` of a certificate" {
        /// The names it is for, the main one first.
        domains: Vec<String>,
    }
}
