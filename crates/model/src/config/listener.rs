//! Listeners of the gateway and the TLS on both of its sides.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::acme::AcmeCertificate;
use super::decode::{Decode, record, text, words, wrong};
use super::yaml::{Kind, Node};
use crate::diagnostic::Diagnostics;
use crate::id::ServiceName;
use crate::network::Network;

/// A listener: `"IP:port"` alone, or a mapping.
#[derive(Clone, PartialEq, Debug)]
pub struct Listen(pub Listener);

record! {
    /// A listener of the gateway.
    Listener as "a listener" {
        /// Address and port; port 0 picks a free one.
        address: String,
        /// Under TLS.
        tls: Option<ListenerTls> = None,
        /// Whether each connection begins with a PROXY protocol header (version 1 or 2) that names the client; then a connection without one is closed.
        proxy_protocol: bool = false,
        /// The versions of HTTP spoken. With both they are told apart by ALPN under TLS and by the first bytes in the clear; with one, a client of the other is turned away.
        protocols: Vec<HttpVersion> = vec![HttpVersion::Http1, HttpVersion::Http2],
        /// Not HTTP: bytes are passed to an instance of a service as they come.
        tcp: Option<Tcp> = None,
    }
}

impl From<&str> for Listen {
    fn from(address: &str) -> Self {
        let nothing = super::decode::Places::default();
        Self(Listener {
            address: address.to_owned(),
            tls: None,
            proxy_protocol: false,
            protocols: vec![HttpVersion::Http1, HttpVersion::Http2],
            tcp: None,
            at: nothing,
        })
    }
}

impl Decode for Listen {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Scalar { text, .. } => {
                let Self(mut listener) = Self::from(text.as_str());
                listener.at.whole = node.place;
                Some(Self(listener))
            }
            Kind::Map(_) => Listener::decode(node, diagnostics).map(Self),
            _ => {
                wrong(node, "an address (\"127.0.0.1:8080\") or a mapping with `address`", diagnostics);
                None
            }
        }
    }

    fn encode(&self) -> Value {
        self.0.encode()
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        json!({ "oneOf": [{ "type": "string" }, Listener::schema(definitions)] })
    }
}

words! {
    /// A version of HTTP.
    HttpVersion {
        /// HTTP/1.0 and HTTP/1.1.
        Http1 = "http1",
        /// HTTP/2; in the clear with prior knowledge.
        Http2 = "http2",
    }
}

record! {
    /// TLS towards clients.
    ListenerTls as "`tls`" {
        /// Certificates; a client is shown the first whose names include the one it asks for, else the first. Files that change are taken over within ten seconds, without a connection being dropped.
        certificates: Vec<ListenerCertificate>,
        /// The oldest version spoken.
        min_version: MinVersion = MinVersion::Tls12,
        /// Clients show certificates.
        client_auth: Option<ClientAuth> = None,
    }
}

record! {
    /// A certificate with its key: from two files, or ordered from an authority.
    ListenerCertificate as "a certificate" {
        /// The PEM chain, leaf first; relative to the file.
        cert_file: Option<String> = None,
        /// The PEM key (PKCS#8, PKCS#1 or SEC1); relative to the file.
        key_file: Option<String> = None,
        /// Ordered from the authority of `gateway.acme`. Until it is there connections that ask for its names are closed.
        acme: Option<AcmeCertificate> = None,
    }
}

words! {
    /// The oldest version of TLS.
    MinVersion {
        /// TLS 1.2 with forward secrecy.
        Tls12 = "1.2",
        /// TLS 1.3.
        Tls13 = "1.3",
    }
}

record! {
    /// Certificates of clients.
    ClientAuth as "`clientAuth`" {
        /// The PEM authorities that sign them; relative to the file.
        ca_file: String,
        /// Whether a client without one is let in.
        mode: ClientAuthMode = ClientAuthMode::Required,
    }
}

words! {
    /// Whether a client without a certificate is let in.
    ClientAuthMode {
        /// It is; but a certificate that is shown must be good.
        Optional = "optional",
        /// It is not.
        Required = "required",
    }
}

record! {
    /// Where a TCP listener's bytes go.
    Tcp as "`tcp`" {
        /// The service. In `primary-standby` mode that means its primary: connections end when it is one no longer.
        service: ServiceName,
    }
}

record! {
    /// TLS towards instances.
    InstanceTls as "`tls`" {
        /// The PEM authorities that sign instances' certificates; relative to the file.
        ca_file: Option<String> = None,
        /// Asked for and verified; each instance's address when absent.
        server_name: Option<String> = None,
        /// Take any certificate: encrypted, but anybody in between can read along.
        insecure_skip_verify: bool = false,
        /// The PEM chain shown to instances that ask for one; relative to the file.
        cert_file: Option<String> = None,
        /// Its PEM key; relative to the file.
        key_file: Option<String> = None,
    }
}

words! {
    /// The PROXY protocol's version.
    ProxyVersion {
        /// A line of text.
        V1 = "v1",
        /// Binary.
        V2 = "v2",
    }
}

impl Decode for Network {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "an address or a network such as 10.0.0.0/8";
        let parsed = Self::parse(text(node, EXPECTED, diagnostics)?);
        if parsed.is_none() {
            wrong(node, EXPECTED, diagnostics);
        }
        parsed
    }

    fn encode(&self) -> Value {
        self.to_string().into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "string" })
    }
}
