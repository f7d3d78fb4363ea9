//! Time and chance, as the process sees them.
//!
//! Deadlines live on tokio's monotonic clock, so that a paused clock in a test moves all of them
//! together. The wall clock is shown to people and written into objects; it decides nothing.

use std::sync::Mutex;
use std::time::Duration;

use muster_core::time::Timestamp;
use tokio::time::Instant;

use crate::locked;

/// The monotonic clock, counted from the start of the process's scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        let elapsed = Instant::now().saturating_duration_since(self.start);
        Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    /// The instant of a timestamp; a month from now when it is out of reach.
    pub fn instant(&self, at: Timestamp) -> Instant {
        self.start
            .checked_add(Duration::from_millis(at.0))
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(30 * 24 * 3600))
    }
}

/// The wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub enum Wall {
    /// The system's.
    #[default]
    System,
    /// One that follows tokio's clock from a fixed beginning: the same in every run of a test.
    Following {
        /// Wall time at `start`.
        base: jiff::Timestamp,
        /// When `base` was.
        start: Instant,
    },
    /// The same, set forth or back by an hour, and right again, after each `every`: a machine whose clock somebody
    /// sets while the process runs.
    Set {
        /// Wall time at `start`.
        base: jiff::Timestamp,
        /// When `base` was.
        start: Instant,
        /// For how long it goes on as it is.
        every: Duration,
    },
}

/// By how much a clock that is set is wrong, after the first, the second and each further time: seconds.
const SET_BY: [i64; 4] = [0, 3600, 0, -3600];

impl Wall {
    /// A wall clock that follows tokio's clock from now on, starting at `base`.
    pub fn following(base: jiff::Timestamp) -> Self {
        Self::Following {
            base,
            start: Instant::now(),
        }
    }

    /// The same, set by an hour after each `every`.
    pub fn set_after_each(every: Duration, base: jiff::Timestamp) -> Self {
        let start = Instant::now();
        Self::Set { base, start, every }
    }

    /// The current wall time.
    pub fn now(&self) -> jiff::Timestamp {
        let since = |base: &jiff::Timestamp, start: &Instant| {
            let elapsed = Instant::now().saturating_duration_since(*start);
            let elapsed = jiff::SignedDuration::try_from(elapsed).unwrap_or_default();
            base.saturating_add(elapsed).unwrap_or(*base)
        };
        match self {
            Self::System => jiff::Timestamp::now(),
            Self::Following { base, start } => since(base, start),
            Self::Set { base, start, every } => {
                let times = Instant::now().saturating_duration_since(*start).as_secs();
                let times = times.checked_div(every.as_secs()).unwrap_or(0);
                let at = usize::try_from(times).unwrap_or(0) % SET_BY.len();
                let by = SET_BY.get(at).copied().unwrap_or(0);
                let now = since(base, start);
                now.saturating_add(jiff::SignedDuration::from_secs(by))
                    .unwrap_or(now)
            }
        }
    }
}

/// Chance from a seed: for jitter, never for decisions.
#[derive(Debug)]
pub struct Dice(Mutex<u64>);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// A number below `limit`; 0 when the limit is 0. (SplitMix64.)
    pub fn below(&self, limit: u64) -> u64 {
        let mut state = locked(&self.0);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).checked_rem(limit).unwrap_or(0)
    }

    /// `span`, less a random part of at most a quarter.
    pub fn shortened(&self, span: Duration) -> Duration {
        let quarter = u64::try_from(span.as_millis() / 4).unwrap_or(u64::MAX);
        span.saturating_sub(Duration::from_millis(self.below(quarter.saturating_add(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn both_clocks_follow_the_paused_one() {
        let clock = Clock::start();
        let wall = Wall::following(jiff::Timestamp::UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(clock.now(), Timestamp(90_000));
        assert_eq!(wall.now().as_second(), 90);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_goes_forth_and_back_by_an_hour() {
        let wall = Wall::set_after_each(Duration::from_secs(60), jiff::Timestamp::UNIX_EPOCH);
        let mut told = Vec::new();
        for _ in 0..5 {
            told.push(wall.now().as_second());
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(told, [0, 3_660, 120, -3_420, 240]);
    }

    #[test]
    fn dice_fall_the_same_way_for_the_same_seed() {
        let roll = || {
            let dice = Dice::new(7);
            (0..5).map(|_| dice.below(100)).collect::<Vec<_>>()
        };
        assert_eq!(roll(), roll());
        let span = Dice::new(1).shortened(Duration::from_secs(100));
        assert!((75..=100).contains(&span.as_secs()));
    }
}
