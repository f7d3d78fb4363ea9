//! What members usually ask for: by the gangs that there are, running and waiting. A restart finds the same.

use std::sync::Arc;

use super::Engine;
use super::gang::Gang;
use crate::pod::PodShape;
use crate::snapshot::{Counts, Usual};
use crate::time::Timestamp;
use crate::workload::{Hold, MemberSource};

impl Engine {
    /// Looks at the demand anew, where much has changed.
    pub(super) fn review_demand(&mut self) {
        let known = self.gangs.len().saturating_add(self.pods.len());
        if !self.snapshot.is_demand_due(known) {
            return;
        }
        let counts = self.counts();
        for shape in counts.keys() {
            self.snapshot.learn(shape);
        }
        self.snapshot.set_demand(&counts, &self.config);
    }

    /// The demand by which the next gang would be planned.
    pub(super) fn demand(&self, now: Timestamp) -> Vec<Usual> {
        let mut snapshot = self.snapshot.clone();
        for name in &self.dirty_nodes {
            let (ledger, inventory) = (&self.ledger, &self.inventory);
            match ledger.capacity(name, inventory, &self.config, now) {
                Some(capacity) => snapshot.set(Arc::new(capacity)),
                None => {
                    snapshot.remove(name);
                }
            }
        }
        let known = self.gangs.len().saturating_add(self.pods.len());
        if snapshot.is_demand_due(known) {
            let counts = self.counts();
            for shape in counts.keys() {
                snapshot.learn(shape);
            }
            snapshot.set_demand(&counts, &self.config);
        }
        snapshot.demand().to_vec()
    }

    /// What the members of all gangs ask for.
    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for gang in self.gangs.values() {
            self.count_members(gang, &mut counts);
        }
        counts
    }

    fn count_members(&self, gang: &Gang, counts: &mut Counts) {
        let mut add = |shape: &Arc<PodShape>, members: u64| match counts.get_mut(shape) {
            Some(count) => *count = count.saturating_add(members),
            None => {
                counts.insert(Arc::clone(shape), members);
            }
        };
        if let Some(workload) = &gang.workload
            && let MemberSource::Roles(roles) = &workload.members
        {
            let is_wanted = workload.hold != Hold::SuspendedByUser;
            if is_wanted && workload.finished.is_none() && workload.invalid.is_none() {
                for role in roles {
                    add(&role.shape, u64::from(role.count));
                }
            }
            return;
        }
        for pod in self.alive(gang) {
            if pod.shape.is_pinned() {
                // To its planned node: that is not what it asks for.
                let mut shape = PodShape::clone(&pod.shape);
                shape.required_affinity = None;
                add(&Arc::new(shape), 1);
            } else {
                add(&pod.shape, 1);
            }
        }
    }
}
