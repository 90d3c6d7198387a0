//! What an instance is: primary or standby, in which epoch. For programs that would rather ask, or listen, than be told by
//! `onPromote`. The role is the one by which traffic is routed. Deliberately absent: choosing it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use model::{Epoch, InstanceId, ServiceName};
use serde::{Deserialize, Serialize};

use crate::Context;
use crate::problem::Problem;
use crate::query::{Known, Parameters};
use crate::view::{Status, StreamView};

/// What is asked for.
#[derive(Debug, Deserialize)]
pub struct Asked {
    /// Of which instance: its `SEAWALL_INSTANCE`.
    instance: InstanceId,
    /// Go on as it changes.
    #[serde(default)]
    watch: bool,
}

impl Known for Asked {
    const NAMES: &'static [&'static str] = &["instance", "watch"];
}

/// What an instance is at this moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Role {
    service: ServiceName,
    instance: InstanceId,
    /// `primary` or `standby`; absent in an active-active service.
    role: Option<String>,
    /// The service's newest term.
    epoch: Option<Epoch>,
    /// Its stream, sealed for that term; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<StreamView>,
}

fn role_of(status: &Status, id: &InstanceId) -> Option<Role> {
    let with = |service: &crate::view::ServiceView| {
        let instance = service.instances.iter().find(|instance| instance.id == *id)?;
        let (service, epoch, stream) = (service.name.clone(), service.epoch, service.stream.clone());
        Some(Role { service, instance: id.clone(), role: instance.role.clone(), epoch, stream })
    };
    status.services.iter().find_map(with)
}

/// GET: once, or as server-sent events whenever it changes.
pub async fn read(State(context): State<Context>, Parameters(asked): Parameters<Asked>) -> Response {
    let known = role_of(&context.status.borrow(), &asked.instance);
    let Some(now) = known else {
        let error = format!("no instance `{}`", asked.instance);
        let cure = "ask for what the environment variable SEAWALL_INSTANCE says; `seawall status` lists all";
        return Problem::new(StatusCode::NOT_FOUND, error, cure).into_response();
    };
    if !asked.watch {
        return Json(now).into_response();
    }
    let events = stream::unfold((context.status.clone(), None), move |(mut status, told): (_, Option<Role>)| {
        let instance = asked.instance.clone();
        async move {
            loop {
                let current: Arc<Status> = status.borrow_and_update().clone();
                // One that is removed has nothing more to be told.
                let role = role_of(&current, &instance)?;
                if told.as_ref() != Some(&role) {
                    let event = Sent::default().event("role").json_data(&role).unwrap_or_default();
                    return Some((Ok::<_, Infallible>(event), (status, Some(role))));
                }
                status.changed().await.ok()?;
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}
