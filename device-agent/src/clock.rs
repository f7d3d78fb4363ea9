//! The node's wall clock, for people only: what is told as `observed_at`.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Wall time derived from one reading and tokio's clock, so that it never jumps and follows a paused clock.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    start: Instant,
    start_ms: i64,
}

impl WallClock {
    /// A clock that shows `start_ms` milliseconds since the Unix epoch now.
    pub fn starting_at(start_ms: i64) -> Self {
        Self {
            start: Instant::now(),
            start_ms,
        }
    }

    /// A clock set by the system's.
    pub fn system() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::starting_at(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.start_ms.saturating_add(elapsed)
    }
}
