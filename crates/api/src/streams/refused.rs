//! Why a request about a stream was refused, in HTTP: a status, what is wrong, what to do, and what would be right.

use axum::Json;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use data::{StoreError, StreamError};
use serde_json::{Value, json};

use super::EPOCH;
use crate::problem::Problem;

/// A refusal.
#[derive(Debug)]
pub(super) enum Refused {
    /// The request itself is wrong.
    Request(Problem),
    /// The streams say no.
    Streams(StreamError),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Request(problem)
    }
}

impl From<StreamError> for Refused {
    fn from(error: StreamError) -> Self {
        Self::Streams(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Request(problem) => problem.into_response(),
            Self::Streams(error) => told_of(error),
        }
    }
}

/// What an error is in HTTP.
fn told_of(error: StreamError) -> Response {
    let text = error.to_string();
    let told = |status: StatusCode, cure: &'static str, more: Value| {
        let mut body = json!({ "error": text, "cure": cure });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        (status, Json(body)).into_response()
    };
    match error {
        StreamError::NotFound(_) => {
            told(StatusCode::NOT_FOUND, "GET /api/v1/streams lists all; the first append makes one", json!({}))
        }
        StreamError::NoCursor(_) => {
            told(StatusCode::NOT_FOUND, "GET /api/v1/streams/NAME/describe names them; PUT makes one", json!({}))
        }
        StreamError::OutOfSequence { expected } => told(
            StatusCode::CONFLICT,
            "nothing was appended; one before it has been missed, or it is older than the 16 that are remembered",
            json!({ "expected": expected }),
        ),
        StreamError::Fenced { epoch } => {
            let cure = "nothing was changed; another is primary in this epoch: stop writing";
            let mut response = told(StatusCode::CONFLICT, cure, json!({ "epoch": epoch }));
            response.headers_mut().insert(EPOCH, HeaderValue::from(epoch));
            response
        }
        StreamError::Trimmed { first } => {
            told(StatusCode::GONE, "read from the oldest offset that is kept", json!({ "first": first }))
        }
        StreamError::PastEnd { next } => told(
            StatusCode::BAD_REQUEST,
            "is it an offset of another stream, or of one that was deleted since?",
            json!({ "next": next }),
        ),
        StreamError::TooLarge { limit, .. } => {
            told(StatusCode::PAYLOAD_TOO_LARGE, "nothing was appended; split it", json!({ "limit": limit }))
        }
        StreamError::Full(_) => {
            told(StatusCode::INSUFFICIENT_STORAGE, "nothing was changed; remove what is not needed", json!({}))
        }
        StreamError::Invalid { .. } => told(StatusCode::BAD_REQUEST, "nothing was changed", json!({})),
        StreamError::NotServing(reason) => Problem::from(StoreError::NotServing(reason)).into_response(),
        StreamError::Damaged { .. } => told(
            StatusCode::INTERNAL_SERVER_ERROR,
            "another node still has them; start this one with an empty data directory to take them over",
            json!({}),
        ),
        StreamError::Closed => Problem::stopping().into_response(),
        StreamError::Unknown => told(
            StatusCode::GATEWAY_TIMEOUT,
            "repeat it with the same `producer` and `seq`: it is not appended twice",
            json!({}),
        ),
    }
}
