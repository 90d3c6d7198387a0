//! Layer 6, traffic: a storm is shaped, a cut-over is gradual.
//! Policies of the request walk as sans-io values, lock-free where every request asks them: the gateway passes `now`, a
//! policy returns a decision. Deliberately absent: sockets, timers, clocks, randomness, configuration.

mod bucket;
mod crowd;
mod keys;
pub mod limit;
mod pace;
mod passes;
mod portion;
pub mod shift;
pub mod system;
mod tally;
mod warm_up;
pub mod weights;
mod window;

pub use crowd::{Crowd, Joined};
pub use keys::Keys;
pub use limit::{Asked, Behaviour, Decision, LimitPolicy, Limiter, Rate};
pub use passes::Passes;
pub use portion::Portion;
pub use tally::{CLASSES, Tally, Totals};
pub use weights::Turns;
