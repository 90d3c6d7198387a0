//! The cluster's authority, where its key is: `ca.key` in the folder of the cluster's certificates. It signs for members
//! that renew their certificates, and for nodes that have a token.
//! Deliberately absent: making an authority (`seawall cluster init`), and how requests get here (`data/raft`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_raft::{CertificateAnswer, CertificateRequest, Certifier, RaftStore};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::tokens;

/// How long a node's certificate is good.
const NODE_DAYS: i64 = 825;
/// Against clocks that differ: certificates are good from a day before they are made.
const EARLIER_DAYS: i64 = 1;

/// The authority's key, in a node's folder.
pub const KEY: &str = "ca.key";
/// The authority's certificate, in a node's folder.
pub const CERTIFICATE: &str = "ca.pem";

/// What stands in the certificate of the node of this name.
///
/// # Errors
/// The name cannot stand in a certificate, or the clock is off by ages.
pub fn parameters(node: &str) -> Result<CertificateParams, String> {
    let mut parameters =
        CertificateParams::new(vec![data_raft::PEER_NAME.to_owned()]).map_err(|error| error.to_string())?;
    parameters.distinguished_name.push(DnType::CommonName, node);
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    validity(&mut parameters, NODE_DAYS)?;
    Ok(parameters)
}

/// Makes a certificate good from now on for so many days.
///
/// # Errors
/// The clock is off by ages.
pub fn validity(parameters: &mut CertificateParams, days: i64) -> Result<(), String> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let day = |from_now: i64| {
        let at = now.checked_add(jiff::Span::new().days(from_now)).map_err(|error| error.to_string())?;
        Ok::<_, String>(rcgen::date_time_ymd(i32::from(at.year()), at.month().unsigned_abs(), at.day().unsigned_abs()))
    };
    (parameters.not_before, parameters.not_after) = (day(-EARLIER_DAYS)?, day(days)?);
    Ok(())
}

/// A request for a certificate (DER), signed with the key it is for.
///
/// # Errors
/// The name cannot stand in a certificate.
pub fn request(node: &str, key: &KeyPair) -> Result<Vec<u8>, String> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, node);
    let request = parameters.serialize_request(key).map_err(|error| error.to_string())?;
    Ok(request.der().to_vec())
}

/// The authority, as far as a node's folder has it.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Of this folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Whether its key is here.
    pub fn can_sign(&self) -> bool {
        self.folder.join(KEY).is_file()
    }

    /// Signs for the node of this name. Of the request only the key counts: its owner has signed it.
    ///
    /// # Errors
    /// The request is none, or a file cannot be used.
    pub fn sign(&self, node: &str, request: &[u8]) -> Result<CertificateAnswer, String> {
        let read = |name: &str| {
            let path = self.folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let mut asked = parsed(request)?;
        asked.params = parameters(node)?;
        let authority = read(CERTIFICATE)?;
        let unusable = |error: rcgen::Error| format!("{}: {error}", self.folder.join(KEY).display());
        let key = KeyPair::from_pem(&read(KEY)?).map_err(unusable)?;
        let issuer = Issuer::from_ca_cert_pem(&authority, key).map_err(unusable)?;
        let certificate = asked.signed_by(&issuer).map_err(unusable)?.pem();
        tracing::info!(node, "a certificate of the cluster was signed");
        Ok(CertificateAnswer::Signed { certificate, authority })
    }

    /// What stands behind the door and answers members.
    pub fn certifier(self, store: &Arc<RaftStore>) -> Certifier {
        let store = Arc::downgrade(store);
        Arc::new(move |request| {
            let (authority, store) = (self.clone(), store.clone());
            Box::pin(async move {
                let refused = CertificateAnswer::Refused;
                match (request, authority.can_sign()) {
                    (CertificateRequest::Can, true) => CertificateAnswer::Can,
                    (CertificateRequest::Can | CertificateRequest::Renewal { .. }, false)
                    | (CertificateRequest::Joining { relayed: true, .. }, false) => CertificateAnswer::Elsewhere,
                    (CertificateRequest::Renewal { name, request }, true) => {
                        authority.sign(&name, &request).unwrap_or_else(refused)
                    }
                    (CertificateRequest::Joining { secret, name, request, .. }, signs) => {
                        let Some(store) = store.upgrade() else { return refused("the node is stopping".into()) };
                        if signs {
                            return authority.join(&store, &secret, &name, &request).await.unwrap_or_else(refused);
                        }
                        let relayed = CertificateRequest::Joining { secret, name, request, relayed: true };
                        match store.certificate(&relayed).await {
                            CertificateAnswer::Elsewhere => refused(NOBODY.to_owned()),
                            answer => answer,
                        }
                    }
                }
            })
        })
    }

    /// Redeems a token. Whatever else can be wrong is looked at before it is used up.
    async fn join(
        &self,
        store: &RaftStore,
        secret: &str,
        node: &str,
        request: &[u8],
    ) -> Result<CertificateAnswer, String> {
        parsed(request)?;
        tokens::redeem(store, secret, node).await?;
        self.sign(node, request)
    }
}

/// Why nobody signs.
pub const NOBODY: &str = "no member that can be reached has the authority's key: put `ca.key` (from the folder that \
                          `seawall cluster init` made) into `cluster.tls.dir` of one that runs, readable by its user \
                          alone, or use `seawall cluster issue` where the key is";

/// Checks that whoever asks has the key that the request is for.
fn parsed(request: &[u8]) -> Result<CertificateSigningRequestParams, String> {
    CertificateSigningRequestParams::from_der(&request.to_vec().into())
        .map_err(|error| format!("that is no request for a certificate: {error}"))
}

#[cfg(test)]
mod tests {
    use data_raft::CertificateAnswer;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::{Authority, request};

    #[test]
    fn only_the_key_of_a_request_counts_and_it_must_be_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path());
        assert!(!authority.can_sign());
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        std::fs::write(folder.path().join("ca.key"), issuer.key().serialize_pem()).unwrap();
        assert!(authority.can_sign());

        let key = KeyPair::generate().unwrap();
        let asked = request("somebody-else", &key).unwrap();
        let Ok(CertificateAnswer::Signed { certificate, .. }) = authority.sign("n4", &asked) else {
            panic!("it is not signed");
        };
        let read = gateway::tls::Certificate::read(certificate.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        assert!(read.expires_unix - read.begins_unix > 800 * 86_400, "{read:?}");
        let shown = format!("{read:?}");
        assert!(!shown.contains("somebody-else"), "{shown}");
        let mut stolen = asked.clone();
        let last = stolen.len() - 1;
        stolen[last] ^= 1;
        assert!(authority.sign("n4", &stolen).is_err(), "its signature is not its key's");
        assert!(authority.sign("n4", b"nonsense").is_err());
    }
}
