//! What nodes can take, brought up to date; and whether that is more than before, for those who wait.

use std::sync::Arc;

use super::Engine;
use crate::ids::NodeName;
use crate::interpod::InterPodKind;
use crate::pod::PodShape;
use crate::snapshot::{Eligibility, NodeCapacity};
use crate::time::Timestamp;
use crate::workload::MemberSource;

impl Engine {
    /// Brings the snapshot up to date with the nodes that changed.
    pub(super) fn refresh_capacity(&mut self, now: Timestamp) {
        if self.dirty_nodes.is_empty() {
            return;
        }
        let nodes = std::mem::take(&mut self.dirty_nodes);
        let (mut grew, mut lost) = (false, false);
        for name in &nodes {
            let capacity = self
                .ledger
                .capacity(name, &self.inventory, &self.config, now)
                .map(Arc::new);
            grew |= self.has_grown(name, capacity.as_deref());
            let free = &mut Arc::make_mut(&mut self.view).free;
            match &capacity {
                Some(capacity) => {
                    free.insert_mut(name.clone(), Arc::new(capacity.free.clone()));
                }
                None => {
                    free.remove_mut(name);
                }
            }
            match capacity {
                Some(capacity) => self.snapshot.set(capacity),
                None => lost |= self.snapshot.remove(name),
            }
            self.note_unbelieved(name);
            self.look_ahead(name, now);
        }
        // Of a node less only a spread gains: what it takes depends on the domain with the fewest.
        if grew || (lost && self.awaits_spread()) {
            self.revision = self.revision.saturating_add(1);
        }
    }

    /// Whether a gang that did not fit before could fit because of what this node now is. Less of
    /// something helps nobody: waiting gangs are then not tried again.
    fn has_grown(&self, name: &NodeName, now: Option<&NodeCapacity>) -> bool {
        let Some(now) = now else { return false };
        self.snapshot.get(name).is_none_or(|before| {
            (before.eligibility != now.eligibility && now.eligibility == Eligibility::Eligible)
                || before.reported != now.reported
                || before.node.labels != now.node.labels
                || before.path != now.path
                || before.node.taints != now.node.taints
                || before.free.shortage(&now.free).is_some()
                || before.node.allocatable != now.node.allocatable
                || !before.ports.is_subset(&now.ports)
                || has_larger_parts(before, now)
        })
    }

    /// Whether a gang that waits has members with a topology spread.
    fn awaits_spread(&self) -> bool {
        let is_spread = |shape: &PodShape| {
            let mut rules = shape.between_pods.iter();
            rules.any(|rule| matches!(rule.kind, InterPodKind::Spread(_)))
        };
        self.queue
            .iter()
            .filter_map(|(key, _)| self.gangs.get(key))
            .any(|gang| {
                let by_template = match gang.workload.as_ref().map(|workload| &workload.members) {
                    Some(MemberSource::Roles(roles)) => {
                        roles.iter().any(|role| is_spread(&role.shape))
                    }
                    _ => false,
                };
                by_template || self.alive(gang).any(|pod| is_spread(&pod.shape))
            })
    }
}

/// Whether more is left of some device of which a part is left than was before.
fn has_larger_parts(before: &NodeCapacity, now: &NodeCapacity) -> bool {
    now.shared.iter().any(|shared| {
        let uuid = &shared.device.uuid;
        let mut parts = before.shared.iter();
        let part = parts.find(|other| other.device.uuid == *uuid);
        match part {
            Some(part) => part.left < shared.left,
            // It was whole, or all of it was taken.
            None => !before.devices.iter().any(|device| device.uuid == *uuid),
        }
    })
}
