//! Join tokens: a secret that gets the node of one name its first certificate, once, for a while. The store holds its
//! SHA-256 alone, under a lease; the secret is in the token that is handed to an operator, with all else that a new machine
//! has to know: the cluster's name, where members are, and by which fingerprint the authority is known.
//! Deliberately absent: signing (`authority.rs`) and the new machine's side (`joining.rs`).

use std::path::Path;
use std::time::{Duration, SystemTime};

use api::{JoinToken, Refusal, RefusalKind};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use data::{Compare, Consistency, KeyRange, Op, RangeRequest, Store as _, Txn, TxnOutcome};
use data_raft::{CertificateAnswer, CertificateRequest, RaftStore};
use serde::{Deserialize, Serialize};

use super::authority::{Authority, CERTIFICATE, NOBODY};
use super::records::key;
use super::seat::Seat;

/// Before the SHA-256 of a token's secret.
const TOKEN: &str = "control/token/";
/// What a token begins with; the number is that of its form.
const BEGIN: &str = "seawall1.";
/// How long a token may be good, at least and at most.
const VALID: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Longest text that is read as a token.
const MOST_BYTES: usize = 16 * 1024;

/// What a token says to the machine that joins.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The cluster's name.
    pub cluster: String,
    /// Whom it lets in.
    pub node: String,
    /// The SHA-256 of the authority's certificate, in hexadecimal.
    pub authority: String,
    /// Where members are.
    pub addresses: Vec<String>,
    /// What is worth a certificate.
    pub secret: String,
}

/// What the store holds of one.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenRecord {
    node: String,
    expires_unix_ms: u64,
}

impl Token {
    fn text(&self) -> String {
        let json = serde_json::to_vec(self).expect("plain data becomes JSON");
        format!("{BEGIN}{}", BASE64_URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads one as it was printed.
    pub fn read(text: &str) -> Option<Self> {
        let body = text.trim().strip_prefix(BEGIN).filter(|body| body.len() <= MOST_BYTES)?;
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(body).ok()?).ok()
    }

    /// The authority's fingerprint.
    pub fn fingerprint(&self) -> Option<data_raft::Fingerprint> {
        let digits = self.authority.as_bytes();
        let mut fingerprint = [0; 32];
        if digits.len() != 64 || !self.authority.is_ascii() {
            return None;
        }
        for (byte, pair) in fingerprint.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(fingerprint)
    }
}

/// Makes one for the node of this name.
///
/// # Errors
/// The name or the time is none, nobody could sign, or the store does not serve.
pub async fn make(
    seat: Seat,
    folder: &Path,
    cluster: String,
    node: String,
    valid: Duration,
) -> Result<JoinToken, Refusal> {
    let refused = |message: String| Refusal { kind: RefusalKind::Refused, message };
    let failed = |message: String| Refusal { kind: RefusalKind::Failed, message };
    model::config::decode::dns_label(&node)
        .map_err(|rule| refused(format!("a node cannot be called `{node}`: a name is a DNS label: {rule}")))?;
    if !(VALID.0..=VALID.1).contains(&valid) {
        return Err(refused("a token is good for 1 second to 24 hours".to_owned()));
    }
    let can =
        Authority::new(folder).can_sign() || seat.certificate(&CertificateRequest::Can).await == CertificateAnswer::Can;
    if !can {
        return Err(refused(NOBODY.to_owned()));
    }
    let authority = super::certificates::authority_of(&folder.join(CERTIFICATE)).map_err(failed)?;
    let secret = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let expires_unix_ms = now_unix_ms() + u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
    let record = TokenRecord { node: node.clone(), expires_unix_ms };
    let value = serde_json::to_vec(&record).expect("plain data becomes JSON");
    let store = seat.store();
    let lease = store.lease_grant(valid).await.map_err(|error| failed(error.to_string()))?.lease;
    let put = Op::Put { key: key(&place(&secret)), value: value.into(), lease: Some(lease) };
    match store.txn(Txn::default().then(put)).await {
        Ok(TxnOutcome::Committed { .. }) => {}
        Ok(_) => return Err(failed("nobody knows whether the token was kept: make another".to_owned())),
        Err(error) => return Err(failed(error.to_string())),
    }
    let addresses = seat.members().await.members.iter().map(|member| member.address.to_string()).collect();
    tracing::info!(%node, valid_s = valid.as_secs(), "a join token was made");
    let token = Token { cluster, node: node.clone(), authority, addresses, secret };
    Ok(JoinToken { node, token: token.text(), expires_unix_ms })
}

/// Uses a token up.
///
/// # Errors
/// It is not known, has expired, is another node's, or somebody else used it at the same moment.
pub async fn redeem(store: &RaftStore, secret: &str, node: &str) -> Result<(), String> {
    const UNKNOWN: &str = "this token is not good: it was used, has expired, or is another cluster's; \
                           `seawall cluster token NAME` on a member makes another";
    let at = key(&place(secret));
    let found = store.range(RangeRequest::key(&at), Consistency::Linearizable).await;
    let found = found.map_err(|error| format!("the token could not be looked up: {error}; try again"))?;
    let kv = found.kvs.into_iter().next().ok_or(UNKNOWN)?;
    let record: TokenRecord = serde_json::from_slice(&kv.value).map_err(|error| error.to_string())?;
    // Its lease ends it; but a new leader gives a lease its whole time again.
    if record.expires_unix_ms <= now_unix_ms() {
        return Err(UNKNOWN.to_owned());
    }
    if record.node != node {
        return Err(format!("this token is for a node called `{}`, not `{node}`", record.node));
    }
    let delete = Op::Delete { range: KeyRange::key(&at) };
    match store.txn(Txn::default().then(delete).when(Compare::mod_revision(at, kv.mod_revision))).await {
        Ok(TxnOutcome::Committed { .. }) => Ok(()),
        Ok(TxnOutcome::Rejected { .. }) => Err(UNKNOWN.to_owned()),
        Ok(TxnOutcome::Unknown) => {
            Err("nobody knows whether the token was used up: try again, or make another".to_owned())
        }
        Err(error) => Err(format!("the token could not be used: {error}; try again")),
    }
}

fn place(secret: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
    format!("{TOKEN}{}", super::certificates::hexadecimal(hash.as_ref()))
}

fn now_unix_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{Token, place};

    #[test]
    fn a_token_is_read_as_it_is_printed_and_nothing_else_is() {
        let token = Token {
            cluster: "shop".into(),
            node: "n4".into(),
            authority: "0f".repeat(32),
            addresses: vec!["10.0.0.1:8300".into()],
            secret: "secret".into(),
        };
        let text = token.text();
        assert!(Token::read(&format!(" {text}\n")).unwrap() == token);
        assert_eq!(token.fingerprint(), Some([0x0f; 32]));
        for wrong in ["", "seawall1.", "seawall2.e30", "seawall1.e30", "seawall1.%%%", &text[1..]] {
            assert!(Token::read(wrong).is_none(), "{wrong}");
        }
        for wrong in ["", "0f", &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(Token { authority: wrong.into(), ..token.clone() }.fingerprint(), None, "{wrong}");
        }
        assert!(!place("secret").contains("secret"), "the store never sees it");
    }
}
