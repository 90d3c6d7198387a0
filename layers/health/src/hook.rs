//! Tells an instance that its role changed: `onPromote`, `onDemote`; and what is done before a stop: `preStop`.

use std::time::Duration;

use model::config::{Hook, StopHook};
use model::{Epoch, InstanceId, ServiceName};
use tokio::time::timeout;

use crate::decide::Sealed;
use crate::prober::{ENDING, Target, connect, http_get, request};

/// Who is told.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceId,
    /// Where and how it runs.
    pub target: Target,
}

/// Calls a role hook with the epoch and, where a stream was sealed for it, with that; at most its own timeout.
///
/// # Errors
/// In one line, why it did not succeed.
pub async fn call(hook: &Hook, subject: &Subject, epoch: Epoch, sealed: Option<&Sealed>) -> Result<(), String> {
    let limit = Duration::from_secs(hook.timeout_seconds.into());
    let called = async {
        if let Some(post) = &hook.http_post {
            let epoch = epoch.to_string();
            let mut headers: Vec<(&str, &str)> =
                post.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            headers.push(("seawall-epoch", &epoch));
            headers.push(("seawall-service", subject.service.as_str()));
            headers.push(("seawall-instance", subject.instance.as_str()));
            let end = sealed.map(|sealed| sealed.end.to_string());
            if let (Some(sealed), Some(end)) = (sealed, &end) {
                headers.push(("seawall-stream", &sealed.stream));
                headers.push(("seawall-stream-end", end));
            }
            return post_to(&post.path, post.port, &headers, &subject.target).await;
        }
        if let Some(exec) = &hook.exec {
            let mut env = subject.target.env.clone();
            env.insert("SEAWALL_EPOCH".into(), epoch.to_string());
            if let Some(sealed) = sealed {
                env.insert("SEAWALL_STREAM_END".into(), sealed.end.to_string());
            }
            return subject.target.run(exec, &env, limit).await;
        }
        Err("the hook has no handler".into())
    };
    let patience = if hook.exec.is_some() { limit + ENDING } else { limit };
    timeout(patience, called).await.unwrap_or_else(|_| Err(format!("no answer within {} s", hook.timeout_seconds)))
}

/// Does what `preStop` says, at most `limit`.
///
/// # Errors
/// In one line, why it did not succeed; the stop goes on all the same.
pub async fn before_stop(hook: &StopHook, subject: &Subject, limit: Duration) -> Result<(), String> {
    let done = async {
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.into())).await;
        }
        if let Some(get) = &hook.http_get {
            http_get(get, &subject.target).await?;
        }
        if let Some(post) = &hook.http_post {
            let headers: Vec<(&str, &str)> =
                post.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            post_to(&post.path, post.port, &headers, &subject.target).await?;
        }
        if let Some(exec) = &hook.exec {
            subject.target.run(exec, &subject.target.env, limit).await?;
        }
        Ok(())
    };
    let patience = if hook.exec.is_some() { limit + ENDING } else { limit };
    timeout(patience, done).await.unwrap_or_else(|_| Err("not done within the grace period".into()))
}

async fn post_to(path: &str, port: Option<u16>, headers: &[(&str, &str)], target: &Target) -> Result<(), String> {
    let stream = connect(None, port, target).await?;
    let mut all = vec![("content-length", "0")];
    all.extend_from_slice(headers);
    let answer = request(stream, "POST", path, target.address, &all).await?;
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&answer.body);
    let quote: String = body.lines().next().unwrap_or_default().chars().take(120).collect();
    Err(format!("POST {path} answered {} {quote}", answer.status).trim_end().to_owned())
}
