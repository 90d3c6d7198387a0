//! A member asks another one for a certificate: for itself, or for a node that has shown it a token. One call on a
//! connection of its own, because nodes of the version before do not know it. Whose certificate is renewed is what the
//! caller's present one proves, never what it says.
//! Deliberately absent: signing, and who has the authority's key.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::Peers;
use super::frame::{Frame, Kind};
use super::message::payload;
use crate::transport::{CertificateAnswer, CertificateRequest};
use crate::wire::{self, Bin};

/// Nodes that speak this version of the conversation know the call.
const SINCE: u16 = 3;
/// Longest wait for one member.
const PATIENCE: Duration = Duration::from_secs(4);

#[derive(Serialize, Deserialize)]
pub(crate) enum CertifyV1 {
    Can,
    Renewal { request: Bin },
    Joining { secret: String, name: String, request: Bin },
}

#[derive(Serialize, Deserialize)]
pub(crate) enum CertifiedV1 {
    Can,
    Signed { certificate: String, authority: String },
    Elsewhere,
    Refused(String),
}

impl CertifyV1 {
    /// As the request of the node that has proved to be this one.
    pub(crate) fn of(self, proved: &str) -> CertificateRequest {
        match self {
            Self::Can => CertificateRequest::Can,
            Self::Renewal { request } => {
                CertificateRequest::Renewal { name: Arc::from(proved), request: request.0.to_vec() }
            }
            Self::Joining { secret, name, request } => {
                CertificateRequest::Joining { secret, name, request: request.0.to_vec(), relayed: true }
            }
        }
    }
}

impl From<&CertificateRequest> for CertifyV1 {
    fn from(request: &CertificateRequest) -> Self {
        match request {
            CertificateRequest::Can => Self::Can,
            CertificateRequest::Renewal { request, .. } => Self::Renewal { request: Bin(request.clone().into()) },
            CertificateRequest::Joining { secret, name, request, .. } => {
                Self::Joining { secret: secret.clone(), name: name.clone(), request: Bin(request.clone().into()) }
            }
        }
    }
}

impl From<CertificateAnswer> for CertifiedV1 {
    fn from(answer: CertificateAnswer) -> Self {
        match answer {
            CertificateAnswer::Can => Self::Can,
            CertificateAnswer::Signed { certificate, authority } => Self::Signed { certificate, authority },
            CertificateAnswer::Elsewhere => Self::Elsewhere,
            CertificateAnswer::Refused(why) => Self::Refused(why),
        }
    }
}

impl From<CertifiedV1> for CertificateAnswer {
    fn from(answer: CertifiedV1) -> Self {
        match answer {
            CertifiedV1::Can => Self::Can,
            CertifiedV1::Signed { certificate, authority } => Self::Signed { certificate, authority },
            CertifiedV1::Elsewhere => Self::Elsewhere,
            CertifiedV1::Refused(why) => Self::Refused(why),
        }
    }
}

impl Peers {
    /// Asks one member.
    pub(crate) async fn certificate(&self, of: u64, request: &CertificateRequest) -> io::Result<CertificateAnswer> {
        let asked = CertifyV1::from(request);
        let all = async {
            let mut greeted = self.dial(of).await?;
            if greeted.hello.versions.1 < SINCE {
                let why = format!("{} is of a version that signs nothing", greeted.hello.name);
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            let mut bytes = BytesMut::new();
            Frame { kind: Kind::Certify, group: 0, call: 1, payload: payload(&asked) }.encode(&mut bytes);
            greeted.out.write_all(&bytes).await?;
            greeted.out.flush().await?;
            let answer = greeted.frames.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            match answer.kind {
                Kind::Reply => Ok(wire::decode::<CertifiedV1>(&answer.payload).map_err(invalid)?.into()),
                _ => Err(io::Error::other("it failed there")),
            }
        };
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| Err(late()))
    }
}
