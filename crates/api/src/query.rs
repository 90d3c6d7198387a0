//! Query parameters: each handler takes a record of those it knows, and one that it does not know is refused by name.
//! A parameter that is ignored in silence (`?cas=` of a read, `?prefx=`) would answer another question than was asked.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use model::diagnostic::nearest;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// The query parameters that a handler knows.
pub trait Known: DeserializeOwned {
    /// Their names.
    const NAMES: &'static [&'static str];
}

/// The query, with nothing in it that the handler does not know.
#[derive(Debug)]
pub struct Parameters<T>(pub T);

/// For handlers that know none.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

impl Known for Nothing {
    const NAMES: &'static [&'static str] = &[];
}

impl<S: Send + Sync, T: Known> FromRequestParts<S> for Parameters<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let given: Query<Vec<(String, String)>> =
            Query::try_from_uri(&parts.uri).map_err(|error| unreadable(&error.body_text()))?;
        if let Some((name, _)) = given.iter().find(|(name, _)| !T::NAMES.contains(&name.as_str())) {
            return Err(
                Problem::bad_request(format!("unknown query parameter `{name}`"), cure(name, T::NAMES)).into_response()
            );
        }
        Query::try_from_uri(&parts.uri).map(|Query(known)| Self(known)).map_err(|error| unreadable(&error.body_text()))
    }
}

fn unreadable(error: &str) -> Response {
    Problem::bad_request(error, "GET /api/v1/openapi.json describes every request").into_response()
}

fn cure(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? This request takes: {}", known.join(", ")),
        None if known.is_empty() => "this request takes none".to_owned(),
        None => format!("this request takes: {}", known.join(", ")),
    }
}
