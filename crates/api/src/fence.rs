//! Writes in the name of a term: a service's primary says in which epoch it writes, and once a newer one has begun it is
//! refused, however late the write arrives. The check is part of the write's own transaction, so nothing comes between.
//! Beside the write walk. Deliberately absent: terms themselves, which are the control plane's (`health::decide`).

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use data::{Compare, Consistency, Key, RangeRequest, Store, Txn, TxnOutcome};
use health::decide::{Record, record_key};
use model::{Epoch, ServiceName};
use serde_json::json;

use crate::problem::Problem;

/// The service in whose name is written.
pub const SERVICE: &str = "seawall-service";
/// The epoch in which.
pub const EPOCH: &str = "seawall-epoch";
/// Terms that may change between reading and writing before the write is given up.
const TRIES: usize = 5;

/// In whose name, and in which of its terms.
#[derive(Debug, PartialEq, Eq)]
pub struct Fence {
    service: ServiceName,
    epoch: Epoch,
}

impl Fence {
    /// What the request says of it; `None` when it says nothing.
    ///
    /// # Errors
    /// One of the two fields without the other, or no number.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let cure = "send both as `onPromote` gave them: Seawall-Service: NAME, Seawall-Epoch: NUMBER; or neither";
        match (text(SERVICE), text(EPOCH)) {
            (None, None) => Ok(None),
            (Some(service), Some(epoch)) if !service.is_empty() => match epoch.parse() {
                Ok(number) => Ok(Some(Self { service: service.into(), epoch: Epoch(number) })),
                Err(_) => Err(Problem::bad_request(format!("`{epoch}` is no epoch"), cure)),
            },
            _ => Err(Problem::bad_request("Seawall-Service and Seawall-Epoch belong together", cure)),
        }
    }

    /// Runs `txn` if this is the service's newest term at the very moment of the write.
    ///
    /// # Errors
    /// An answer: another term has begun, or the store cannot be asked.
    pub async fn txn(&self, store: &dyn Store, txn: Txn) -> Result<TxnOutcome, Response> {
        let key = Key::new(record_key(&self.service).into_bytes())
            .map_err(|error| Problem::bad_request(error.to_string(), "shorten the name").into_response())?;
        let known = async || {
            let found = store.range(RangeRequest::key(&key), Consistency::Linearizable).await;
            found.map_err(|error| Problem::from(error).into_response()).map(|found| found.kvs.into_iter().next())
        };
        for _ in 0..TRIES {
            let (current, at) = match known().await? {
                // No term of it has ever begun, so nobody writes in one.
                None => return Err(self.refusal(Epoch::default())),
                Some(kv) => {
                    let record: Record = serde_json::from_slice(&kv.value)
                        .map_err(|error| Problem::internal(error.to_string()).into_response())?;
                    (record.epoch(kv.mod_revision), kv.mod_revision)
                }
            };
            if current != self.epoch {
                return Err(self.refusal(current));
            }
            let fenced = txn.clone().when(Compare::mod_revision(key.clone(), at));
            let outcome = store.txn(fenced).await.map_err(|error| Problem::from(error).into_response())?;
            let rejected = matches!(outcome, TxnOutcome::Rejected { .. });
            // Was it the term that changed, or what the request itself compares?
            if !rejected || known().await?.map(|kv| kv.mod_revision).unwrap_or_default() == at {
                return Ok(outcome);
            }
        }
        let error = format!("the terms of {} change all the time", self.service);
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error, "nothing was written; see `seawall events`")
            .into_response())
    }

    fn refusal(&self, current: Epoch) -> Response {
        let error = format!("epoch {} of {} is not its newest, which is {current}", self.epoch, self.service);
        let cure = "nothing was written: whoever writes in another epoch is not its primary";
        let body = json!({ "error": error, "epoch": current.0, "cure": cure });
        let mut response = (StatusCode::CONFLICT, Json(body)).into_response();
        response.headers_mut().insert(EPOCH, HeaderValue::from(current.0));
        response
    }
}
