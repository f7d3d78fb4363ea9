//! How the watches fare: listed yet, failing since when.

use std::collections::BTreeMap;
use std::sync::Mutex;

use muster_core::time::{Millis, Timestamp};
use tokio::sync::Notify;

use crate::locked;

/// Errors further apart than this belong to different troubles: the longest pause between two
/// tries, and the time a connection may take to fail, with room to spare.
const SAME_TROUBLE: Millis = Millis::from_secs(60);

#[derive(Clone, Debug, Default)]
struct State {
    listed: bool,
    /// First and last error of the trouble that goes on.
    trouble: Option<(Timestamp, Timestamp, String)>,
}

/// State of every watch.
#[derive(Debug)]
pub struct Health {
    kinds: Mutex<BTreeMap<&'static str, State>>,
    listed: Notify,
    unhealthy_after: Millis,
}

impl Health {
    /// State of these kinds, none of which is listed yet.
    pub fn new(kinds: &[&'static str], unhealthy_after: Millis) -> Self {
        Self {
            kinds: Mutex::new(kinds.iter().map(|kind| (*kind, State::default())).collect()),
            listed: Notify::new(),
            unhealthy_after,
        }
    }

    /// A kind was listed completely, or is not served and thus has no objects.
    pub fn note_listed(&self, kind: &'static str) {
        let mut kinds = locked(&self.kinds);
        let state = kinds.entry(kind).or_default();
        state.listed = true;
        state.trouble = None;
        drop(kinds);
        self.listed.notify_waiters();
    }

    /// Something of the kind arrived.
    pub fn note_alive(&self, kind: &'static str) {
        if let Some(state) = locked(&self.kinds).get_mut(kind) {
            state.trouble = None;
        }
    }

    /// A list or watch failed. Returns for how long it has been failing.
    pub fn note_error(&self, kind: &'static str, error: &str, now: Timestamp) -> Millis {
        let mut kinds = locked(&self.kinds);
        let state = kinds.entry(kind).or_default();
        let first = match &state.trouble {
            Some((first, last, _)) if now.since(*last) <= SAME_TROUBLE => *first,
            _ => now,
        };
        state.trouble = Some((first, now, error.to_owned()));
        now.since(first)
    }

    /// Waits until every kind is listed.
    pub async fn all_listed(&self) {
        loop {
            let changed = self.listed.notified();
            tokio::pin!(changed);
            // Listed between the look and the wait counts too.
            changed.as_mut().enable();
            if locked(&self.kinds).values().all(|state| state.listed) {
                return;
            }
            changed.await;
        }
    }

    /// What keeps this replica from being ready; one line each.
    pub fn problems(&self, now: Timestamp) -> Vec<String> {
        let kinds = locked(&self.kinds);
        let mut problems = Vec::new();
        for (kind, state) in kinds.iter() {
            let trouble = state
                .trouble
                .as_ref()
                .filter(|(_, last, _)| now.since(*last) <= SAME_TROUBLE);
            if let Some((first, last, error)) = trouble {
                if !state.listed || last.since(*first) >= self.unhealthy_after {
                    problems.push(format!(
                        "{kind}: failing for {}: {error}",
                        now.since(*first)
                    ));
                }
            } else if !state.listed {
                problems.push(format!("{kind}: not listed yet"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_a_problem_only_when_it_lasts_and_ends_with_the_next_sign_of_life() {
        let health = Health::new(&["Pod", "Node"], Millis::from_secs(60));
        health.note_listed("Node");
        assert_eq!(health.problems(Timestamp(0)), ["Pod: not listed yet"]);
        health.note_listed("Pod");
        assert!(health.problems(Timestamp(0)).is_empty());
        for second in 0..7 {
            health.note_error("Pod", "connection refused", Timestamp(second * 10_000));
        }
        assert_eq!(
            health.problems(Timestamp(61_000)),
            ["Pod: failing for 61 s: connection refused"]
        );
        health.note_alive("Pod");
        assert!(health.problems(Timestamp(61_000)).is_empty());
    }

    #[test]
    fn errors_far_apart_are_not_one_trouble() {
        let health = Health::new(&["Pod"], Millis::from_secs(60));
        health.note_listed("Pod");
        assert_eq!(health.note_error("Pod", "cut", Timestamp(0)), Millis(0));
        assert_eq!(
            health.note_error("Pod", "cut", Timestamp(290_000)),
            Millis(0)
        );
        assert!(health.problems(Timestamp(290_000)).is_empty());
    }
}
