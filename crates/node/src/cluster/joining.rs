//! A new machine gets its certificate for a token: it makes its key here, asks a member, and keeps what comes back. The key
//! leaves this machine never. Deliberately absent: becoming a member, which is what `seawall up` does with these files.

use std::path::Path;

use data_raft::CertificateAnswer;
use rcgen::KeyPair;

use super::authority;
use super::certificates::OwnFiles;
use super::tokens::Token;

/// Whom the token let in, and where.
#[derive(Debug)]
pub struct Joined {
    /// The node's name.
    pub node: String,
    /// The cluster's name.
    pub cluster: String,
    /// Where members are.
    pub addresses: Vec<String>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// What was given is wrong; nobody was asked.
    #[error("{0}")]
    BadInput(String),
    /// No member could be asked.
    #[error("no member answers ({0}): is one of them running, and can it be reached from here?")]
    Unreachable(String),
    /// A member said no, or the answer cannot be kept.
    #[error("{0}")]
    Failed(String),
}

/// Redeems a token and writes `ca.pem`, `NAME.pem` and `NAME.key` into `folder`, which is made if it is absent. Blocks.
///
/// # Errors
/// [`JoinError`]; unless it is [`JoinError::Failed`], the token has not been used.
pub fn join(token: &str, folder: &Path) -> Result<Joined, JoinError> {
    let bad = |what: String| JoinError::BadInput(what);
    let cannot_read = "that is no token as `seawall cluster token NAME` prints it: copy all of it";
    let token = Token::read(token).ok_or_else(|| bad(cannot_read.into()))?;
    let pinned = token.fingerprint().ok_or_else(|| bad(cannot_read.into()))?;
    // It becomes a file's name.
    model::config::decode::dns_label(&token.node).map_err(|rule| bad(format!("`{}`: {rule}", token.node)))?;
    let own = OwnFiles::of(folder, &token.node);
    if own.certificate.exists() || own.key.exists() {
        let error = format!("{} has files of {} already: use another folder", folder.display(), token.node);
        return Err(bad(error));
    }
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| JoinError::Failed(format!("{path}: {error}"))
    };
    // Before the token is used up: what can fail here does now.
    platform::file::create_private_directory(folder).map_err(io(folder))?;
    let key = KeyPair::generate().map_err(|error| JoinError::Failed(error.to_string()))?;
    let request = authority::request(&token.node, &key).map_err(JoinError::Failed)?;
    platform::identity::replace_private(&own.key, key.serialize_pem().as_bytes()).map_err(io(&own.key))?;
    let signed = ask(&token, pinned, &request);
    let (certificate, authority) = match signed {
        Ok(signed) => signed,
        Err(error) => {
            // A key without a certificate is of no use.
            let _ = std::fs::remove_file(&own.key);
            return Err(error);
        }
    };
    let write = |path: &Path, text: &str| std::fs::write(path, text).map_err(io(path));
    write(&own.authority, &authority)?;
    write(&own.certificate, &certificate)?;
    // Another authority's certificate, or another key's, would have it refused only later.
    own.read().map_err(JoinError::Failed)?;
    Ok(Joined { node: token.node, cluster: token.cluster, addresses: token.addresses })
}

fn ask(token: &Token, pinned: data_raft::Fingerprint, request: &[u8]) -> Result<(String, String), JoinError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| JoinError::Failed(error.to_string()))?;
    let mut silent = Vec::new();
    for address in &token.addresses {
        let knock = data_raft::knock(address, pinned, (&token.secret, &token.node), request);
        match runtime.block_on(knock) {
            Ok(CertificateAnswer::Signed { certificate, authority }) => return Ok((certificate, authority)),
            Ok(CertificateAnswer::Refused(why)) => return Err(JoinError::Failed(why)),
            Ok(CertificateAnswer::Can | CertificateAnswer::Elsewhere) => {
                silent.push(format!("{address}: it does not take tokens yet"));
            }
            Err(error) => silent.push(format!("{address}: {error}")),
        }
    }
    Err(JoinError::Unreachable(silent.join("; ")))
}
