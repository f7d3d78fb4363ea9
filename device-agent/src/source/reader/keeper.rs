//! When a reader is started, given up and replaced. Pure: time comes in, as a duration since any fixed moment.
//!
//! ```text
//!   resting --due--> running --a word every few seconds--> running
//!      ^                |--no word for the watchdog's time: hung, it is killed
//!      |                `--its pipe ends: crashed
//!      `---- after a pause that doubles with each reader that fails soon
//! ```
//! A process that hangs in the kernel does not die of SIGKILL before the kernel lets it go. There may be
//! [`STUCK_MAX`] of those; then none is started until one is gone.

use std::time::Duration;

use muster_proto::inventory::Sampler;

/// Pause after the first failure of a reader.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause: a driver that crashes whoever asks it is asked once a minute.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A reader that has read for this long was a good one: the pause begins anew.
const GOOD_AFTER: Duration = Duration::from_secs(60);
/// Killed readers that may be there still. Each holds a few MiB and a place among the node's processes.
pub const STUCK_MAX: usize = 3;
/// How often it is looked whether a killed one is gone, while none may be started for them.
const STUCK_LOOK: Duration = Duration::from_secs(5);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start a reader.
    Start,
    /// Kill the one that runs: it has said nothing for too long.
    GiveUp,
    /// Nothing before this time.
    Wait(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Resting {
        until: Duration,
    },
    Running {
        heard: Duration,
        /// Since when it has been reading.
        reading_since: Option<Duration>,
        /// Whether it ever has.
        has_read: bool,
    },
}

/// Keeps a reader running.
#[derive(Debug, Clone)]
pub struct Keeper {
    watchdog: Duration,
    phase: Phase,
    failures: u32,
    /// What was told last, so that it is told once.
    told: Option<Sampler>,
}

impl Keeper {
    /// No reader runs yet. One that says nothing for `watchdog` hangs.
    pub fn new(watchdog: Duration) -> Self {
        Self {
            watchdog,
            phase: Phase::Resting {
                until: Duration::ZERO,
            },
            failures: 0,
            told: None,
        }
    }

    /// What to do now, while `stuck` killed ones are there still.
    pub fn step(&self, now: Duration, stuck: usize) -> Step {
        match self.phase {
            Phase::Resting { until } if now < until => Step::Wait(until),
            Phase::Resting { .. } if stuck >= STUCK_MAX => {
                Step::Wait(now.saturating_add(STUCK_LOOK))
            }
            Phase::Resting { .. } => Step::Start,
            Phase::Running { heard, .. } => {
                let end = heard.saturating_add(self.watchdog);
                if now >= end {
                    Step::GiveUp
                } else {
                    Step::Wait(end)
                }
            }
        }
    }

    /// A reader was started.
    pub fn started(&mut self, now: Duration) {
        self.phase = Phase::Running {
            heard: now,
            reading_since: None,
            has_read: false,
        };
    }

    /// The reader has said something; `told` if that was the state of the sampler, and [`Sampler::Ok`] if it
    /// was a reading.
    pub fn heard(&mut self, now: Duration, told: Option<Sampler>) {
        if told.is_some() {
            self.told = told;
        }
        if let Phase::Running {
            heard,
            reading_since,
            has_read,
        } = &mut self.phase
        {
            *heard = now;
            match told {
                Some(Sampler::Ok) => {
                    reading_since.get_or_insert(now);
                    *has_read = true;
                }
                Some(_) => *reading_since = None,
                None => {}
            }
        }
    }

    /// Whether the reader that runs has read anything.
    pub fn has_read(&self) -> bool {
        matches!(self.phase, Phase::Running { has_read: true, .. })
    }

    /// Nothing could be heard up to now, because it was not listened: whoever held this process up may have held up
    /// the reader too.
    pub fn excuse(&mut self, now: Duration) {
        self.heard(now, None);
    }

    /// The reader is gone, or as good as gone; another one comes after a pause. Returns what to tell, if that
    /// was not told before.
    pub fn failed(&mut self, now: Duration, how: Sampler) -> Option<Sampler> {
        let was_good = match self.phase {
            Phase::Running {
                reading_since: Some(since),
                heard,
                ..
            } => heard.saturating_sub(since) >= GOOD_AFTER,
            _ => false,
        };
        if was_good {
            self.failures = 0;
        }
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let pause = PAUSE_MIN.saturating_mul(factor).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Resting {
            until: now.saturating_add(pause),
        };
        (self.told.replace(how) != Some(how)).then_some(how)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn running(at_s: u64) -> Keeper {
        let mut keeper = Keeper::new(s(40));
        assert_eq!(keeper.step(s(at_s), 0), Step::Start);
        keeper.started(s(at_s));
        keeper
    }

    #[test]
    fn a_reader_that_falls_silent_is_given_up_told_once_and_replaced() {
        let mut keeper = running(0);
        keeper.heard(s(1), Some(Sampler::Ok));
        keeper.heard(s(3), None);
        assert_eq!(keeper.step(s(42), 0), Step::Wait(s(43)));
        assert_eq!(keeper.step(s(43), 0), Step::GiveUp);
        assert_eq!(keeper.failed(s(43), Sampler::Hung), Some(Sampler::Hung));
        assert_eq!(keeper.step(s(43), 1), Step::Wait(s(44)));
        assert_eq!(keeper.step(s(44), 1), Step::Start);
        // The next one hangs in its first call. A sign of life is no reading.
        keeper.started(s(44));
        keeper.heard(s(45), None);
        assert_eq!(keeper.step(s(85), 1), Step::GiveUp);
        assert_eq!(keeper.failed(s(85), Sampler::Hung), None);
        keeper.started(s(87));
        keeper.heard(s(88), Some(Sampler::Ok));
        assert_eq!(keeper.failed(s(130), Sampler::Hung), Some(Sampler::Hung));
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute_and_begins_anew_after_a_good_reader() {
        let mut keeper = running(0);
        let mut now = s(0);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            keeper.failed(now, Sampler::Crashed);
            assert_eq!(keeper.step(now, 0), Step::Wait(now + s(pause)));
            now += s(pause);
            assert_eq!(keeper.step(now, 0), Step::Start);
            keeper.started(now);
            keeper.heard(now, Some(Sampler::Ok));
        }
        keeper.heard(now + s(59), None);
        keeper.failed(now + s(59), Sampler::Crashed);
        assert_eq!(keeper.step(now + s(59), 0), Step::Wait(now + s(119)));
        keeper.started(now + s(119));
        keeper.heard(now + s(120), Some(Sampler::Ok));
        keeper.heard(now + s(180), Some(Sampler::Ok));
        keeper.failed(now + s(181), Sampler::Crashed);
        assert_eq!(keeper.step(now + s(181), 0), Step::Wait(now + s(182)));
    }

    /// In uninterruptible sleep they outlive SIGKILL: a new one each minute would fill the node with them.
    #[test]
    fn no_more_than_a_few_readers_that_cannot_be_killed() {
        let mut keeper = running(0);
        keeper.failed(s(40), Sampler::Hung);
        assert_eq!(keeper.step(s(50), STUCK_MAX - 1), Step::Start);
        assert_eq!(keeper.step(s(50), STUCK_MAX), Step::Wait(s(55)));
        assert_eq!(keeper.step(s(55), STUCK_MAX - 1), Step::Start);
    }

    #[test]
    fn a_driver_that_is_gone_is_no_failure_of_the_reader() {
        let mut keeper = running(0);
        keeper.heard(s(1), Some(Sampler::NoDriver));
        assert!(!keeper.has_read());
        keeper.heard(s(20), None);
        assert_eq!(keeper.step(s(59), 0), Step::Wait(s(60)));
        keeper.heard(s(30), Some(Sampler::Ok));
        keeper.heard(s(40), Some(Sampler::NoDriver));
        assert!(keeper.has_read(), "with the library that was there then");
    }
}
