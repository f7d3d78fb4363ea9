//! Time and chance of one cluster.
//!
//! ```text
//! base date ── + tokio time since start ──► creationTimestamp, conditions, event log
//! seed ── StdRng ──► uids, generated names, shuffles of the stand-ins
//! ```
//! On tokio's paused clock both are a function of the seed and of what was done, so two runs agree byte for byte.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

/// The cluster's wall clock: a base date plus the tokio time that passed since the start.
#[derive(Debug, Clone)]
pub struct Clock {
    base: Timestamp,
    start: Instant,
}

impl Clock {
    /// A clock that starts at the fixed date 2026-01-01T00:00:00Z: for the paused clock.
    #[must_use]
    pub fn fixed() -> Self {
        Self {
            base: Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH),
            start: Instant::now(),
        }
    }

    /// A clock that starts at the machine's date: for clusters that people look at.
    #[must_use]
    pub fn wall() -> Self {
        Self {
            base: Timestamp::now(),
            start: Instant::now(),
        }
    }

    /// Time since the cluster started.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The cluster's date.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.base
            .checked_add(self.elapsed())
            .unwrap_or(Timestamp::MAX)
    }

    /// The date in whole seconds as Kubernetes writes it, `2026-01-01T00:00:00Z`.
    #[must_use]
    pub fn stamp(&self) -> String {
        self.stamp_after(Duration::ZERO)
    }

    /// The date that lies `ahead` of now, in whole seconds.
    #[must_use]
    pub fn stamp_after(&self, ahead: Duration) -> String {
        let at = self.now().checked_add(ahead).unwrap_or(Timestamp::MAX);
        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// The date with microseconds, as leases and `eventTime` have it.
    #[must_use]
    pub fn stamp_micro(&self) -> String {
        self.now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
    }
}

/// The one source of chance: every uid, generated name and shuffle comes from it.
#[derive(Debug)]
pub struct Chance {
    rng: Mutex<StdRng>,
}

impl Chance {
    /// Chance that follows from `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut StdRng) -> T) -> T {
        f(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new uid in the form of a version 4 UUID.
    #[must_use]
    pub fn uid(&self) -> String {
        let bits: u128 = self.with(Rng::random);
        let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bits:032x}");
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
        [
            part(0, 8),
            part(8, 12),
            part(12, 16),
            part(16, 20),
            part(20, 32),
        ]
        .join("-")
    }

    /// Five letters for a generated name, from the alphabet that Kubernetes uses.
    #[must_use]
    pub fn suffix(&self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        self.with(|rng| {
            (0..5)
                .filter_map(|_| {
                    let at = rng.random_range(0..ALPHABET.len());
                    ALPHABET.get(at).map(|b| char::from(*b))
                })
                .collect()
        })
    }

    /// A number below `limit`; 0 when the limit is 0.
    #[must_use]
    pub fn below(&self, limit: u64) -> u64 {
        if limit == 0 {
            return 0;
        }
        self.with(|rng| rng.random_range(0..limit))
    }

    /// A random token of 32 hexadecimal digits.
    #[must_use]
    pub fn token(&self) -> String {
        let bits: u128 = self.with(Rng::random);
        format!("{bits:032x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_uids_in_uuid_form() {
        let (a, b) = (Chance::new(7), Chance::new(7));
        let uid = a.uid();
        assert_eq!(uid, b.uid());
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert_ne!(uid, a.uid());
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_the_paused_time() {
        let clock = Clock::fixed();
        assert_eq!(clock.stamp(), "2026-01-01T00:00:00Z");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(clock.stamp(), "2026-01-01T00:01:01Z");
        assert_eq!(clock.stamp_micro(), "2026-01-01T00:01:01.000000Z");
    }
}
