//! The API server is away: nothing can be bound, born or released there. What waits for such things
//! does not run out of time meanwhile; that time is added to it when the API server is back.
//!
//! The one deadline that goes on is that of a Bind which is held: kube-scheduler's own time-out runs.

use super::Engine;
use crate::time::{Millis, Timestamp};

impl Engine {
    /// Whether deadlines stand still.
    pub(super) fn is_away(&self) -> bool {
        self.away_since.is_some()
    }

    /// The API server answers again: the time it was away for counts for nobody. Whoever has slept
    /// through its deadline is looked at.
    pub(super) fn api_back(&mut self, now: Timestamp) {
        let Some(from) = self.away_since.take() else {
            return;
        };
        let (repair_max, quiet_max) = (self.config.repair_max, self.config.gather_quiet_max);
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
                shift(&mut gang.releasing_since, repair_max);
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
