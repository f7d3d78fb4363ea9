//! The queue of the kube-scheduler stand-in: active, backoff, unschedulable.
//!
//! ```text
//! new pod ─► active ─► in flight ─► bound
//!              ▲          │ refused ─► unschedulable ── event, 5 min ─► backoff ─► active
//!              │          └ error ──► error backoff ───────────────────────────► active
//!              └── backoff is skipped while active is empty (not the error backoff) ◄──┘
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

const FLUSH_AFTER: Duration = Duration::from_secs(300);

/// Why a pod waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A default filter refused every node.
    Filters,
    /// An extender refused every node: every event wakes the pod.
    Extender,
    /// The pod has scheduling gates: only its own update helps.
    Gates,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    Backoff { until: Instant },
    ErrorBackoff { until: Instant },
    Waiting { since: Instant, cause: Cause },
    InFlight { woken: bool },
}

#[derive(Debug)]
struct Entry {
    priority: i64,
    number: u64,
    attempts: u32,
    failed_at: Instant,
    place: Place,
}

/// The queue; pods are named by uid.
#[derive(Debug)]
pub(crate) struct Queue {
    entries: BTreeMap<String, Entry>,
    active: BTreeSet<(Reverse<i64>, u64, String)>,
    next: u64,
    backoff_first: Duration,
    backoff_max: Duration,
}

impl Queue {
    pub(crate) fn new(backoff_first: Duration, backoff_max: Duration) -> Self {
        Self {
            entries: BTreeMap::new(),
            active: BTreeSet::new(),
            next: 0,
            backoff_first,
            backoff_max,
        }
    }

    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    pub(crate) fn add(&mut self, uid: &str, priority: i64, gated: bool) {
        self.next += 1;
        let now = Instant::now();
        let place = if gated {
            Place::Waiting {
                since: now,
                cause: Cause::Gates,
            }
        } else {
            Place::Active
        };
        let entry = Entry {
            priority,
            number: self.next,
            attempts: 0,
            failed_at: now,
            place,
        };
        if place == Place::Active {
            self.active
                .insert((Reverse(priority), self.next, uid.to_owned()));
        }
        self.entries.insert(uid.to_owned(), entry);
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.entries.remove(uid) {
            self.active
                .remove(&(Reverse(entry.priority), entry.number, uid.to_owned()));
        }
    }

    fn activate(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::Active;
            self.active
                .insert((Reverse(entry.priority), entry.number, uid.to_owned()));
        }
    }

    /// The next pod to try; it is in flight until `failed`, `refused` or `remove`.
    pub(crate) fn pop(&mut self) -> Option<String> {
        let now = Instant::now();
        self.move_due(now);
        let uid = match self.active.pop_first() {
            Some((_, _, uid)) => uid,
            None => {
                let backing_off = self.entries.iter().filter_map(|(uid, e)| match e.place {
                    Place::Backoff { until } => Some((until, e.number, uid)),
                    _ => None,
                });
                backing_off.min()?.2.clone()
            }
        };
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.place = Place::InFlight { woken: false };
        Some(uid)
    }

    fn move_due(&mut self, now: Instant) {
        let mut due: Vec<(u64, String)> = Vec::new();
        for (uid, entry) in &self.entries {
            let ready = match entry.place {
                Place::Backoff { until } | Place::ErrorBackoff { until } => until <= now,
                Place::Waiting { since, cause } => {
                    cause != Cause::Gates && now.duration_since(since) >= FLUSH_AFTER
                }
                _ => false,
            };
            if ready {
                due.push((entry.number, uid.clone()));
            }
        }
        due.sort();
        due.iter().for_each(|(_, uid)| self.activate(uid));
    }

    fn backoff(&self, attempts: u32) -> Duration {
        let factor = 2_u32.saturating_pow(attempts.saturating_sub(1).min(16));
        self.backoff_first
            .saturating_mul(factor)
            .min(self.backoff_max)
    }

    /// The attempt failed by an error: wait the backoff out, whatever happens.
    pub(crate) fn failed(&mut self, uid: &str) {
        let now = Instant::now();
        let backoff = self.entries.get(uid).map(|e| self.backoff(e.attempts));
        if let (Some(entry), Some(backoff)) = (self.entries.get_mut(uid), backoff) {
            entry.failed_at = now;
            entry.place = Place::ErrorBackoff {
                until: now + backoff,
            };
        }
    }

    /// No node took the pod: wait for an event, unless one came while it was tried.
    pub(crate) fn refused(&mut self, uid: &str, cause: Cause) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        let woken = entry.place == Place::InFlight { woken: true };
        entry.failed_at = now;
        entry.place = Place::Waiting { since: now, cause };
        if woken {
            self.wake(uid);
        }
    }

    fn wake(&mut self, uid: &str) {
        let now = Instant::now();
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let until = entry.failed_at + self.backoff(entry.attempts);
        if entry.attempts == 0 || until <= now {
            self.activate(uid);
        } else if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::Backoff { until };
        }
    }

    /// Something happened that may help: `everybody`, or only those that an extender refused.
    pub(crate) fn event(&mut self, everybody: bool) {
        let mut waiting: Vec<(u64, String)> = Vec::new();
        for (uid, entry) in &mut self.entries {
            match &mut entry.place {
                Place::Waiting { cause, .. }
                    if *cause == Cause::Extender || (everybody && *cause == Cause::Filters) =>
                {
                    waiting.push((entry.number, uid.clone()));
                }
                Place::InFlight { woken } => *woken = true,
                _ => {}
            }
        }
        waiting.sort();
        waiting.iter().for_each(|(_, uid)| self.wake(uid));
    }

    /// The pod itself changed in a way that may help.
    pub(crate) fn pod_changed(&mut self, uid: &str, ungated: bool) {
        match self.entries.get_mut(uid).map(|e| &mut e.place) {
            Some(Place::InFlight { woken }) => *woken = true,
            Some(Place::Waiting {
                cause: Cause::Gates,
                ..
            }) if !ungated => {}
            Some(Place::Waiting { .. }) => self.wake(uid),
            _ => {}
        }
    }

    /// When something becomes due by time alone; `None` when nothing waits for time.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let times = self.entries.values().filter_map(|e| match e.place {
            Place::Backoff { until } | Place::ErrorBackoff { until } => Some(until),
            Place::Waiting { since, cause } if cause != Cause::Gates => Some(since + FLUSH_AFTER),
            _ => None,
        });
        times.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        Queue::new(Duration::from_secs(1), Duration::from_secs(10))
    }

    #[tokio::test(start_paused = true)]
    async fn higher_priority_goes_first_and_gated_pods_wait_for_their_update() {
        let mut queue = queue();
        queue.add("low", 0, false);
        queue.add("high", 10, false);
        queue.add("gated", 100, true);
        assert_eq!(queue.pop().as_deref(), Some("high"));
        assert_eq!(queue.pop().as_deref(), Some("low"));
        queue.event(true);
        assert_eq!(queue.pop(), None);
        queue.pod_changed("gated", true);
        assert_eq!(queue.pop().as_deref(), Some("gated"));
    }

    #[tokio::test(start_paused = true)]
    async fn errors_back_off_1_2_4_8_10_10_seconds_and_events_do_not_help() {
        let mut queue = queue();
        queue.add("a", 0, false);
        assert!(queue.pop().is_some());
        for seconds in [1, 2, 4, 8, 10, 10] {
            queue.failed("a");
            queue.event(true);
            assert_eq!(queue.pop(), None);
            let due = queue.next_due().unwrap();
            assert_eq!(due.duration_since(Instant::now()).as_secs(), seconds);
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(queue.pop().as_deref(), Some("a"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_pods_are_woken_by_events_and_skip_the_backoff_when_nothing_else_waits() {
        let mut queue = queue();
        queue.add("a", 0, false);
        assert!(queue.pop().is_some());
        queue.refused("a", Cause::Filters);
        queue.event(false);
        assert_eq!(queue.pop(), None);
        queue.event(true);
        assert_eq!(queue.pop().as_deref(), Some("a"));
        queue.event(false);
        queue.refused("a", Cause::Extender);
        assert_eq!(
            queue.pop().as_deref(),
            Some("a"),
            "an event during the attempt is not lost"
        );
    }
}
