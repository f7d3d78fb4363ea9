//! The API server is away: nothing can be bound, born or released there. What waits for such things
//! does not run out of time meanwhile; that time is added to it when the API server is back.
//!
//! The one deadline that goes on is that of a Bind which is held: kube-scheduler's own time-out runs.

use super::Engine;
use crate::time::Timestamp;

impl Engine {
    /// Whether deadlines stand still.
    pub(super) fn is_away(&self) -> bool {
        self.away_since.is_some()
    }

    /// The API server answers again: the time it was away for counts for nobody.
    pub(super) fn api_back(&mut self, now: Timestamp) {
        let Some(from) = self.away_since.take() else {
            return;
        };
        let shift = |since: &mut Timestamp| *since = *since + now.since(from.max(*since));
        for gang in self.gangs.values_mut() {
            gang.partial_since.iter_mut().for_each(shift);
            let Some(plan) = &mut gang.plan else { continue };
            shift(&mut plan.progress_at);
            plan.partial_since.iter_mut().for_each(shift);
            for slot in plan.slots.values_mut() {
                slot.refused_since.iter_mut().for_each(shift);
            }
        }
        self.dirty.extend(self.gangs.keys().cloned());
    }
}
