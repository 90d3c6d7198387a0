//! What a cluster's certificates on this machine are and how long they last.

use std::path::{Path, PathBuf};

use gateway::tls::Certificate;
use model::Config;

use super::authority::CERTIFICATE;
use crate::files;

/// A node's own files in the folder of the cluster's certificates.
#[derive(Clone, Debug)]
pub struct OwnFiles {
    /// The folder.
    pub folder: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority's certificate.
    pub authority: PathBuf,
}

impl OwnFiles {
    /// Of the node of this name.
    pub fn of(folder: &Path, node: &str) -> Self {
        Self {
            folder: folder.to_path_buf(),
            certificate: folder.join(format!("{node}.pem")),
            key: folder.join(format!("{node}.key")),
            authority: folder.join(CERTIFICATE),
        }
    }

    /// Of the node of this configuration; none of a machine by itself.
    pub fn of_config(config: &Config) -> Option<Self> {
        let folder = Path::new(&config.cluster.as_ref()?.tls.dir);
        Some(Self::of(folder, config.node.name.as_str()))
    }

    /// Reads the certificate.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn read(&self) -> Result<Certificate, String> {
        let (certificate, key) = (self.certificate.to_string_lossy(), self.key.to_string_lossy());
        let pair = files::read_pair(&certificate, &key).map_err(|unusable| unusable.problem)?;
        files::certificate(&certificate, &key, &pair).map_err(|unusable| unusable.problem)
    }
}

/// When the node's certificate ends, in words for `seawall check`; none on a machine by itself.
///
/// # Errors
/// It cannot be read.
pub fn described(config: &Config) -> Option<Result<String, String>> {
    let own = OwnFiles::of_config(config)?;
    let ends = |certificate: Certificate| {
        let at = jiff::Timestamp::from_second(certificate.expires_unix).unwrap_or_default();
        let days = (certificate.expires_unix - crate::entrances::now_unix()).div_euclid(86_400);
        let left = if days < 0 { "it has EXPIRED".to_owned() } else { format!("{days} days are left") };
        format!("{}: the node's certificate ends at {at}, {left}", own.certificate.display())
    };
    Some(own.read().map(ends))
}

/// The fingerprint of an authority's certificate, in hexadecimal.
pub(super) fn authority_of(file: &Path) -> Result<String, String> {
    data_raft::authority_fingerprint(file)
        .map(|fingerprint| hexadecimal(&fingerprint))
        .map_err(|error| error.to_string())
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
