//! The time that flows go by: the runtime's own, which a test can put forward.

use std::time::Instant;

/// The same as `Instant::now`, on a runtime whose clock nobody has moved.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
