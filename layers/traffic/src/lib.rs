//! Layer 6, traffic: a storm is shaped, a cut-over is gradual.
//! Policies of the request walk as sans-io values, lock-free where every request asks them: the gateway passes `now`, a
//! policy returns a decision. Deliberately absent: sockets, timers, clocks, randomness, configuration.

mod keys;
pub mod limit;
mod pace;
mod portion;
pub mod shift;
mod tally;
mod warm_up;
pub mod weights;
mod window;

pub use keys::Keys;
pub use limit::{Behaviour, Decision, LimitPolicy, Limiter};
pub use portion::Portion;
pub use tally::{CLASSES, Tally, Totals};
pub use weights::Turns;
