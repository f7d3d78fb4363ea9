//! Deadlines that stand still: the API server is away, and nothing can be bound, born or released there; or all is
//! frozen. What waits for such things does not run out of time meanwhile; that time is added to it when it goes on.
//!
//! The one deadline that goes on is that of a Bind which is held: kube-scheduler's own time-out runs.

use super::Engine;
use crate::time::{Millis, Timestamp};

impl Engine {
    /// Whether deadlines stand still.
    pub(super) fn is_halted(&self) -> bool {
        self.away_since.is_some() || self.is_frozen()
    }

    /// The API server has not answered for this long.
    pub(super) fn api_away(&mut self, span: Millis, now: Timestamp) {
        let from = now - span;
        let since = *self.away_since.get_or_insert(from);
        self.halt(since);
    }

    /// The API server answers again.
    pub(super) fn api_back(&mut self, now: Timestamp) {
        self.away_since = None;
        self.go_on(now);
    }

    /// Deadlines stand still from this moment on, if they do not already.
    pub(super) fn halt(&mut self, from: Timestamp) {
        let since = self.halted_since.map_or(from, |since| since.min(from));
        self.halted_since = Some(since);
    }

    /// Deadlines go on, if nothing else halts them: the time in which they stood still counts for nobody. Whoever
    /// has slept through its deadline is looked at.
    pub(super) fn go_on(&mut self, now: Timestamp) {
        if self.is_halted() {
            return;
        }
        let Some(from) = self.halted_since.take() else {
            return;
        };
        let born_at = self.job_pod_born_at;
        self.job_pod_born_at = born_at + now.since(from.max(born_at));
        let (repair_max, quiet_max) = (self.config.repair_max, self.config.gather_quiet_max);
        let held_pods_go_in = self.held_pods_go_in();
        for gang in self.gangs.values_mut() {
            let mut overdue = false;
            let mut shift = |since: &mut Timestamp, limit: Millis| {
                overdue |= *since + limit <= now;
                *since = *since + now.since(from.max(*since));
            };
            if let Some(since) = &mut gang.partial_since {
                shift(since, repair_max);
            }
            if gang.releasing {
                shift(&mut gang.releasing_since, held_pods_go_in);
            }
            if let Some(plan) = &mut gang.plan {
                if let Some(since) = &mut plan.partial_since {
                    shift(since, repair_max);
                }
                if !plan.open {
                    shift(&mut plan.progress_at, quiet_max);
                }
                let lost = plan.slots.values_mut();
                for since in lost.filter_map(|slot| slot.lost_at.as_mut()) {
                    shift(since, repair_max);
                }
            }
            if overdue {
                self.dirty.insert(gang.key.clone());
            }
        }
    }
}
