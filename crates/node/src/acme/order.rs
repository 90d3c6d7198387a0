//! One order, from the account to the chain (RFC 8555, 7.4): ask, show that each name leads here, send the request for the
//! certificate, fetch it. Whatever is shown is shown no longer once this ends, however it ends.
//! Deliberately absent: when (`schedule.rs`), what becomes of a failure (`acme.rs`).

use std::sync::Arc;
use std::time::Duration;

use gateway::tls::Certificate;
use gateway::{Challenges, UnderWay};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeHandle, ChallengeType, Error, ExternalAccountKey,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use model::config::{self, Challenge};

use super::http::Http;
use super::kept::{Kept, is_for};
use crate::files;

/// All of an order, checks by the authority included.
const LIMIT: Duration = Duration::from_secs(300);
/// How the authority is asked whether it is done: after this, then half as long again, for so long. `Retry-After` is obeyed.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(120));
/// Orders begun again at once because the authority did not like a nonce: that is nobody's mistake.
const NONCES_FORGIVEN: u32 = 3;

/// An authority, and everything it has to be told and shown.
pub struct Authority {
    /// Its directory and account. Files that it names are read for each order: who mends one need not start anything anew.
    pub written: config::Acme,
    /// How names are shown to lead here.
    pub challenge: Challenge,
    /// Where they are shown.
    pub challenges: Arc<Challenges>,
    /// Its files.
    pub kept: Kept,
}

/// Why there is none, in words for an operator.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong.
    pub message: String,
    /// Until when the authority does not want to be asked again.
    pub asked: Option<i64>,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { message, asked: None }
    }
}

impl Authority {
    /// Orders a certificate for `domains`, in place of `before` if there is one.
    pub async fn order(&self, domains: &[String], before: Option<&Certificate>) -> Result<Certificate, Failure> {
        let http = self.http()?;
        let ordered = tokio::time::timeout(LIMIT, self.order_again(&http, domains, before)).await;
        let ordered = ordered.unwrap_or_else(|_| Err(format!("the order took longer than {} s", LIMIT.as_secs())));
        ordered.map_err(|message| Failure { message, asked: http.asked() })
    }

    fn http(&self) -> Result<Http, String> {
        let ca = self.written.ca_file.as_ref().map(files::authorities).transpose()?;
        Ok(Http::new(ca.as_deref()))
    }

    async fn order_again(
        &self,
        http: &Http,
        domains: &[String],
        before: Option<&Certificate>,
    ) -> Result<Certificate, String> {
        let (mut nonces, mut accounts) = (NONCES_FORGIVEN, 1);
        loop {
            match self.order_once(http, domains, before).await {
                Err(Stopped::Protocol(Error::Api(problem))) if is(&problem, "badNonce") && nonces > 0 => nonces -= 1,
                Err(Stopped::Protocol(Error::Api(problem))) if is(&problem, "accountDoesNotExist") && accounts > 0 => {
                    accounts -= 1;
                    let directory = &self.written.directory;
                    tracing::warn!(directory, "the authority does not know the account any more, a new one is made");
                    self.kept.forget_account().map_err(|error| format!("the account's file: {error}"))?;
                }
                Err(Stopped::Protocol(error)) => return Err(words(&error)),
                Err(Stopped::Here(message)) => return Err(message),
                Ok(certificate) => return Ok(certificate),
            }
        }
    }

    async fn order_once(
        &self,
        http: &Http,
        domains: &[String],
        before: Option<&Certificate>,
    ) -> Result<Certificate, Stopped> {
        let account = self.account(http).await?;
        let identifiers: Vec<Identifier> = domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = self.begin(&account, &identifiers, before).await?;
        let under_way = self.show(&mut order).await?;
        if order.state().status != OrderStatus::Ready {
            let status = order.poll_ready(&POLL).await;
            if !matches!(status, Ok(OrderStatus::Ready)) {
                return Err(refused(&mut order, status).await);
            }
        }
        drop(under_way);
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&POLL).await?;
        let pem = format!("{}\n{chain}", key.trim_end());
        let certificate = Certificate::read(pem.as_bytes(), pem.as_bytes())
            .map_err(|error| Stopped::Here(format!("what the authority sent cannot be used: {error}")))?;
        if !is_for(&certificate, domains) {
            let names = certificate.names.join(", ");
            return Err(Stopped::Here(format!("what the authority sent is for {names} only")));
        }
        self.kept
            .keep_certificate(domains, pem)
            .await
            .map_err(|error| Stopped::Here(format!("the certificate cannot be kept: {error}")))?;
        Ok(certificate)
    }

    /// The kept account, or a new one.
    async fn account(&self, http: &Http) -> Result<Account, Stopped> {
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let wanted: Vec<String> = self.written.email.0.iter().map(|address| format!("mailto:{address}")).collect();
        let contacts: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let cannot = |error: std::io::Error| Stopped::Here(format!("the account cannot be kept: {error}"));
        if let Some((credentials, known)) = self.kept.account() {
            let account = builder.from_credentials(credentials).await?;
            if known != wanted
                && let Some((credentials, _)) = self.kept.account()
            {
                account.update_contacts(&contacts).await?;
                self.kept.keep_account(&credentials, &wanted).await.map_err(cannot)?;
            }
            return Ok(account);
        }
        let new = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let external = match &self.written.external_account {
            None => None,
            Some(account) => {
                let key = files::hmac_key(&account.hmac_key_file).map_err(Stopped::Here)?;
                Some(ExternalAccountKey::new(account.key_id.clone(), &key))
            }
        };
        let (account, credentials) = builder.create(&new, self.written.directory.clone(), external.as_ref()).await?;
        self.kept.keep_account(&credentials, &wanted).await.map_err(cannot)?;
        Ok(account)
    }

    /// Says what the new certificate replaces, to authorities that want to know (RFC 9773, 5): they count it less. One that
    /// does not take it is asked without.
    async fn begin(
        &self,
        account: &Account,
        identifiers: &[Identifier],
        before: Option<&Certificate>,
    ) -> Result<Order, Stopped> {
        if let Some(replaced) = before.and_then(|before| CertificateIdentifier::try_from(before.leaf()).ok()) {
            match account.new_order(&NewOrder::new(identifiers).replaces(replaced)).await {
                Ok(order) => return Ok(order),
                Err(Error::Api(problem))
                    if ["rateLimited", "accountDoesNotExist", "badNonce"].iter().any(|kind| is(&problem, kind)) =>
                {
                    return Err(Error::Api(problem).into());
                }
                Err(error) => tracing::debug!(%error, "ordered without a word of what it replaces"),
            }
        }
        Ok(account.new_order(&NewOrder::new(identifiers)).await?)
    }

    /// Shows for every name that has not been checked before that it leads here, and has the authority look.
    async fn show(&self, order: &mut Order) -> Result<Vec<UnderWay>, Stopped> {
        let mut under_way = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let name = authorization.identifier().to_string();
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => return Err(Stopped::Here(format!("{name}: the authority says {status:?}"))),
            }
            let kind = match self.challenge {
                Challenge::Http01 => ChallengeType::Http01,
                Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            };
            let offered = self.challenge.as_str();
            let Some(mut challenge) = authorization.challenge(kind) else {
                return Err(Stopped::Here(format!("{name}: the authority does not offer {offered}")));
            };
            under_way.push(self.answer(&name, &challenge)?);
            challenge.set_ready().await?;
        }
        Ok(under_way)
    }

    fn answer(&self, name: &str, challenge: &ChallengeHandle<'_>) -> Result<UnderWay, Stopped> {
        let authorization = challenge.key_authorization();
        match self.challenge {
            Challenge::Http01 => Ok(self.challenges.answer(&challenge.token, authorization.as_str())),
            Challenge::TlsAlpn01 => {
                let cannot = |error: String| Stopped::Here(format!("{name}: no certificate for the visit: {error}"));
                let (chain, key) = for_visit(name, authorization.digest().as_ref()).map_err(cannot)?;
                let certificate = Certificate::read(chain.as_bytes(), key.as_bytes());
                let shown = certificate.and_then(|certificate| self.challenges.show(name, &certificate));
                shown.map_err(|error| cannot(error.to_string()))
            }
        }
    }

    /// The window in which the authority advises to renew (RFC 9773), and when to ask again; `None` if it gives no advice.
    pub async fn advice(&self, certificate: &Certificate) -> Option<((i64, i64), Duration)> {
        let (credentials, _) = self.kept.account()?;
        let builder = Account::builder_with_http(Box::new(self.http().ok()?));
        let account = builder.from_credentials(credentials).await.ok()?;
        let id = CertificateIdentifier::try_from(certificate.leaf()).ok()?;
        let (info, again) = account.renewal_info(&id).await.ok()?;
        let window = &info.suggested_window;
        Some(((window.start.unix_timestamp(), window.end.unix_timestamp()), again))
    }
}

/// Why an order ended early.
enum Stopped {
    /// The authority says so, or cannot be reached.
    Protocol(Error),
    /// Something here.
    Here(String),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Protocol(error)
    }
}

/// What the authority saw when it looked: the order itself says only that it was not enough.
async fn refused(order: &mut Order, status: Result<OrderStatus, Error>) -> Stopped {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else { continue };
        let problems = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(problems.map(|problem| format!("{name}: {}", of_problem(problem))));
    }
    match (reasons.is_empty(), status) {
        (false, _) => Stopped::Here(reasons.join("; ")),
        (true, Ok(status)) => Stopped::Here(format!("the authority says {status:?} and no more")),
        (true, Err(error)) => Stopped::Protocol(error),
    }
}

/// A certificate that tells the authority, and nobody else, that `name` leads here (RFC 8737, 3); its key.
fn for_visit(name: &str, digest: &[u8]) -> Result<(String, String), String> {
    let make = || {
        let mut params = rcgen::CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
        let key = rcgen::KeyPair::generate()?;
        Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
    };
    make().map_err(|error: rcgen::Error| error.to_string())
}

fn is(problem: &Problem, kind: &str) -> bool {
    problem.r#type.as_deref().and_then(|kind| kind.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
}

/// An error as an operator reads it.
fn words(error: &Error) -> String {
    match error {
        Error::Api(problem) => of_problem(problem),
        Error::Timeout(_) => "the authority did not come to an end in time".to_owned(),
        Error::Json(error) => format!("what the authority answers is not ACME: {error}"),
        other => other.to_string(),
    }
}

fn of_problem(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind);
    let mut text = problem.detail.clone().unwrap_or_else(|| "no reason given".to_owned());
    for part in &problem.subproblems {
        text.push_str(&format!("; {part}"));
    }
    if kind.is_empty() { text } else { format!("{text} ({kind})") }
}
