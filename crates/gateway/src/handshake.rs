//! Why a TLS handshake failed, in words few enough for a label: with a client, and with an instance.
//! Beside the walk, where connections begin on either side. Deliberately absent: handshakes (`entry.rs`, `dial.rs`) and
//! what is done about one that failed (`pipeline.rs`).

use std::io;

use rustls::{CertificateError, Error};

/// A word for why a client's handshake failed.
pub(crate) fn with_client(error: &io::Error) -> &'static str {
    match (error.kind(), cause(error)) {
        (io::ErrorKind::TimedOut, _) => "timeout",
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, _) => "client-gone",
        (_, Some(Error::InvalidMessage(_))) => "not-tls",
        (_, Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol)) => "nothing-in-common",
        (_, Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_))) => "client-certificate",
        (_, Some(Error::AlertReceived(_))) => "refused-by-client",
        // What rustls says of a name for which the listener has no certificate (yet).
        (_, Some(Error::General(_))) => "no-certificate",
        _ => "other",
    }
}

/// Why an instance's handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distrust {
    /// Its certificate has ended, or has not begun.
    Expired,
    /// Nobody trusted has signed it.
    NotTrusted,
    /// It is for other names.
    WrongName,
    /// It cannot be used for another reason.
    Certificate,
    /// What it speaks is no TLS.
    NotTls,
    /// No version, cipher or protocol that both know.
    NothingInCommon,
    /// It does not like what it was shown, a client certificate that is missing above all.
    RefusedByInstance,
    /// Anything else.
    Other,
}

/// In the order of [`Distrust`].
pub(crate) const DISTRUSTS: [&str; 8] = [
    "certificate-expired",
    "certificate-not-trusted",
    "certificate-of-another-name",
    "certificate-not-usable",
    "not-tls",
    "nothing-in-common",
    "refused-by-instance",
    "other",
];

impl Distrust {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        DISTRUSTS[self as usize]
    }

    /// `None`: the connection ended or time did, as when a process starts or stops. That says nothing about trust.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        Some(match cause(error)? {
            Error::InvalidCertificate(why) => match why {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::NotTrusted,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                _ => Self::Certificate,
            },
            Error::InvalidMessage(_) => Self::NotTls,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::NothingInCommon,
            Error::AlertReceived(_) => Self::RefusedByInstance,
            _ => Self::Other,
        })
    }
}

fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}
