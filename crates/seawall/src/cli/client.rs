//! The command line's side of the API: addresses, authority, and errors in an operator's words.

use std::io::Read;
use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::Failure;

/// Nothing on loopback takes longer to begin to answer than this, except verbs that wait on purpose.
const QUICK: Duration = Duration::from_secs(10);

/// A connection to one node.
pub struct Client {
    base: String,
    agent: Agent,
    token: Option<String>,
}

impl Client {
    /// A client of the API at `url`; the scheme may be left out.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(url: &str) -> Result<Self, Failure> {
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let base = with_scheme.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") || base.len() <= "http://".len() {
            return Err(Failure::bad_input(anyhow!(
                "`{url}` is no address of an API; write e.g. --api http://127.0.0.1:8500"
            )));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(3)))
            .build()
            .into();
        Ok(Self { base, agent, token: std::env::var("SEAWALL_TOKEN").ok().filter(|token| !token.is_empty()) })
    }

    /// A path for one more segment: what is not a plain character is percent-encoded.
    pub fn encode(segment: &str) -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        segment
            .bytes()
            .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
            .collect()
    }

    /// GET, answered at once.
    pub fn get(&self, path: &str) -> Result<Response<Body>, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base)).config().timeout_global(Some(QUICK)).build();
        self.checked(self.authorized(request).call())
    }

    /// GET of something that goes on.
    pub fn follow(&self, path: &str) -> Result<Response<Body>, Failure> {
        self.checked(self.authorized(self.agent.get(format!("{}{path}", self.base))).call())
    }

    /// GET of something large, all of it within `patience`.
    pub fn download(&self, path: &str, patience: Duration) -> Result<Response<Body>, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base)).config().timeout_global(Some(patience)).build();
        self.checked(self.authorized(request).call())
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Response<Body>, Failure> {
        let request = self.agent.delete(format!("{}{path}", self.base)).config().timeout_global(Some(QUICK)).build();
        self.checked(self.authorized(request).call())
    }

    /// PUT of a body.
    pub fn put(&self, path: &str, body: &[u8]) -> Result<Response<Body>, Failure> {
        let request = self.agent.put(format!("{}{path}", self.base)).config().timeout_global(Some(QUICK)).build();
        self.checked(self.authorized(request).send(body))
    }

    /// POST of bytes, in an epoch if there is one.
    pub fn post_bytes(&self, path: &str, epoch: Option<u64>, body: &[u8]) -> Result<Value, Failure> {
        let request = self.agent.post(format!("{}{path}", self.base)).config().timeout_global(Some(QUICK)).build();
        let request = match epoch {
            Some(epoch) => self.authorized(request).header("seawall-epoch", epoch.to_string()),
            None => self.authorized(request),
        };
        json(self.checked(request.send(body))?)
    }

    /// GET of something that goes on, as server-sent events.
    pub fn follow_events(&self, path: &str) -> Result<Response<Body>, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base)).header("accept", "text/event-stream");
        self.checked(self.authorized(request).call())
    }

    /// POST of JSON; waits up to `patience` for the answer.
    pub fn post(&self, path: &str, body: &Value, patience: Duration) -> Result<Value, Failure> {
        let request = self.agent.post(format!("{}{path}", self.base)).config().timeout_global(Some(patience)).build();
        let response = self.checked(
            self.authorized(request).header("content-type", "application/json").send(body.to_string().as_bytes()),
        )?;
        json(response)
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn checked(&self, result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let response = result.map_err(|error| match error {
            ureq::Error::Timeout(_) => Failure::timeout(anyhow!("no answer from {} in time: {error}", self.base)),
            _ => Failure::unreachable(anyhow!("no node answers at {}: {error}; is `seawall up` running there? (--api or SEAWALL_API names another address)", self.base)),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = text(response).unwrap_or_default();
        let told: Value = serde_json::from_str(&body).unwrap_or_default();
        if let Some(report) = told["report"].as_str() {
            eprint!("{report}");
        }
        // Consul's part of the API answers in plain text.
        let plain = body.lines().next().filter(|line| !told.is_object() && !line.is_empty());
        let unsaid = || plain.map_or_else(|| format!("the API answered {status}"), str::to_owned);
        let message = told["error"].as_str().map_or_else(unsaid, str::to_owned);
        let cure =
            told["cure"].as_str().filter(|cure| !cure.is_empty()).map_or_else(String::new, |cure| format!("; {cure}"));
        let error = anyhow!("{message}{cure}");
        Err(match status {
            StatusCode::SERVICE_UNAVAILABLE => Failure::unreachable(error),
            StatusCode::GATEWAY_TIMEOUT => Failure::timeout(error),
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::PAYLOAD_TOO_LARGE => Failure::bad_input(error),
            _ => Failure::failed(error),
        })
    }
}

/// A body as text, up to 64 MiB.
pub fn text(response: Response<Body>) -> Result<String, Failure> {
    let mut text = String::new();
    response.into_body().into_reader().take(64 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// A body as JSON.
pub fn json(response: Response<Body>) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&text(response)?)?)
}
