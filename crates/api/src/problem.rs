//! Errors as the API tells them: a status and `{"error": …, "cure": …}`.

use std::borrow::Cow;

use axum::Json;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use data::{NotServing, StoreError};
use serde_json::json;

/// A refusal or failure of one request.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    error: String,
    cure: Cow<'static, str>,
}

impl Problem {
    /// A problem with this status.
    pub fn new(status: StatusCode, error: impl Into<String>, cure: impl Into<Cow<'static, str>>) -> Self {
        Self { status, error: error.into(), cure: cure.into() }
    }

    /// The request itself is wrong.
    pub fn bad_request(error: impl Into<String>, cure: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, cure)
    }

    /// Something that should not happen did.
    pub fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error, "this is a defect; the log of the node has more")
    }

    /// The node is stopping and takes no more verbs.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the node is stopping", "try again when it is back")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.error, "cure": self.cure }))).into_response()
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            // It serves, elsewhere.
            StoreError::NotServing(reason @ NotServing::Agent) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                reason.to_string(),
                "nothing was done; name a server: --api HOST:PORT (`seawall cluster members` lists them)",
            ),
            StoreError::NotServing(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                "nothing was written; `seawall status` says why the store does not serve",
            ),
            StoreError::Closed => Self::stopping(),
            StoreError::QuotaExceeded { .. } => {
                let cure = "nothing was written; delete keys that are no longer needed, or raise `kvQuotaBytes` of the \
                            service whose name they begin with (all keys together have 240 MiB)";
                Self::new(StatusCode::INSUFFICIENT_STORAGE, text, cure)
            }
            StoreError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, text, "nothing was written; split the value")
            }
            _ => Self::bad_request(text, "nothing was written"),
        }
    }
}

/// Gives errors that a library answered in plain text (a bad query, a body that is too large) the form of all others.
pub async fn in_one_form(response: Response) -> Response {
    let status = response.status();
    let plain = response.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !status.is_client_error() || !plain {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    Problem::new(status, String::from_utf8_lossy(&text), "GET /api/v1/openapi.json describes every request")
        .into_response()
}

/// The answer to a path that is none.
pub async fn no_such_path(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("no such path: {}", uri.path()),
        "GET /api/v1/openapi.json lists them all",
    )
}

/// The answer to a method that the path does not have.
pub async fn wrong_method(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not have this method", uri.path()),
        "GET /api/v1/openapi.json lists them all",
    )
}
