//! The data plane: HTTP requests from listening sockets to live instances.
//! `pipeline.rs` has the request walk on one page; `Table` is how the control plane speaks to it, `Signal` how it
//! speaks back. The request path never waits for the control plane: it reads what was swapped in last.
//! Deliberately absent: configuration types, probes, any decision about who is ready or primary.

mod answer;
mod balance;
mod buffer;
mod carrier;
mod chains;
mod challenge;
mod compress;
mod connection;
mod dial;
mod ended;
mod entry;
mod forward;
mod front;
mod gateway;
mod guards;
mod handshake;
mod heads;
mod hold;
pub mod http1;
mod http2;
mod listen;
mod metrics;
mod options;
mod overload;
mod pipeline;
mod policy;
mod pool;
#[doc(hidden)]
pub mod proof;
mod proxy_protocol;
mod pump;
mod record;
mod retired;
mod routes;
mod service;
mod shares;
mod signal;
mod table;
mod tcp;
mod text;
mod timer;
pub mod tls;
mod tunnel;
mod worker;

pub use challenge::{Challenges, UnderWay};
pub use compress::Coding;
pub use entry::{Manner, Protocols};
pub use gateway::Gateway;
pub use guard::{
    AdaptivePolicy, HoldPolicy, OutlierPolicy, Places, Priority, Release, RetryBudget, RetryPolicy, breaker,
};
pub use guards::{
    AdaptiveView, Allowance, AtOnce, AtOnceView, BreakerScope, BreakerView, Concurrency, ConcurrencyView, EjectedView,
    Fallback, GuardsView, InstanceBreakerView, KeepPolicy, Keyed, LimitKey, LimitView, Meter, NoBreaker, Note,
    RateLimit, Scope, Traffic,
};
pub use http1::Limits;
pub use listen::Listener;
pub use metrics::Metrics;
pub use options::{Balance, ErrorPage, Options, Trailers};
pub use overload::OverloadView;
pub use policy::{Fault, HeaderEdits, Mirror, PathRewrite, Policy, Redirect, is_own_field};
pub use proxy_protocol::ProxyVersion;
pub use record::AccessRecord;
pub use routes::{
    Action, Cors, HostMatch, Match, Part, PathMatch, Route, RouteError, Scheme, Split, Sticky, Target, ValueMatch,
};
pub use service::{Endpoint, Endpoints, Readiness, Selection, Service, StaleEpoch, Upstream};
pub use signal::{COALESCE_MS, Signal};
pub use table::Table;
pub use traffic::system::SystemPolicy;
pub use traffic::{Behaviour, LimitPolicy, Tally, Totals};
