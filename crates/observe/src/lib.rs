//! Over all layers: what happened and how it goes. The event journal, notices to webhooks, logs and metrics.
//! One typed event per state change; notices come from events, never from log text.

pub mod journal;
pub mod logs;
pub mod metrics;
pub mod notify;

/// Now, RFC 3339 in UTC with microseconds.
pub fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// Any moment given in milliseconds since the Unix epoch, in the form of [`now`].
pub fn at_unix_ms(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds).map_or_else(|_| now(), |moment| format!("{moment:.6}"))
}
