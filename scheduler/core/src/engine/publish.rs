//! Publishing the picture that readers see.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use super::gang::Gang;
use crate::ids::{GangKey, PodUid};
use crate::view::{GangView, SlotView, View};

impl Engine {
    /// Brings the published picture up to date with the gangs that changed.
    pub(super) fn publish(&mut self) {
        let leading = self.lead == super::Lead::Yes;
        let now = (leading, self.synced, self.is_frozen(), self.epoch);
        let view = &self.view;
        if (view.leading, view.synced, view.frozen, view.epoch) != now {
            let view = Arc::make_mut(&mut self.view);
            (view.leading, view.synced, view.frozen, view.epoch) = now;
        }
        let touched = std::mem::take(&mut self.view_dirty);
        let mut changed = Vec::new();
        let mut protect = Vec::new();
        for key in touched {
            let gang = self.gangs.get(&key);
            for uid in gang.iter().flat_map(|gang| &gang.pods) {
                if !self.view.protected.contains(uid)
                    && self.pods.get(uid).is_some_and(|pod| pod.node.is_some())
                {
                    protect.push(uid.clone());
                }
            }
            let view = gang.map(|gang| gang_view(gang));
            if self.view.gangs.get(&key).map(AsRef::as_ref) != view.as_ref() {
                changed.push((key, view));
            }
        }
        let mut gone = std::mem::take(&mut self.view_gone);
        gone.retain(|uid| self.view.protected.contains(uid));
        if changed.is_empty() && protect.is_empty() && gone.is_empty() {
            return;
        }
        let view = Arc::make_mut(&mut self.view);
        for (key, gang) in changed {
            follow_members(view, &key, gang.as_ref());
            match gang {
                Some(gang) => view.gangs.insert_mut(key, Arc::new(gang)),
                None => {
                    view.gangs.remove_mut(&key);
                }
            }
        }
        for uid in gone {
            view.protected.remove_mut(&uid);
        }
        for uid in protect {
            view.protected.insert_mut(uid);
        }
    }
}

/// Brings the gang of each pod up to date with one gang's change, which is not in the view yet.
fn follow_members(view: &mut View, key: &GangKey, after: Option<&GangView>) {
    let before = view.gangs.get(key).map(Arc::clone);
    let has = |gang: Option<&GangView>, pod: &PodUid| {
        gang.is_some_and(|gang| gang.nodes.contains_key(pod))
    };
    for pod in before.iter().flat_map(|gang| gang.nodes.keys()) {
        if !has(after, pod) && view.members.get(pod) == Some(key) {
            view.members.remove_mut(pod);
        }
    }
    for pod in after.iter().flat_map(|gang| gang.nodes.keys()) {
        if !has(before.as_deref(), pod) {
            view.members.insert_mut(pod.clone(), key.clone());
        }
    }
}

fn gang_view(gang: &Gang) -> GangView {
    let durable = gang.is_durable();
    let mut slots = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    if durable && let Some(plan) = &gang.plan {
        for (seat, slot) in &plan.slots {
            let Some(node) = &slot.node else { continue };
            if slot.predecessor.is_some() {
                continue;
            }
            slots.insert(
                seat.clone(),
                SlotView {
                    node: node.clone(),
                    pod: slot.pod.clone(),
                },
            );
            if let Some(pod) = &slot.pod {
                nodes.insert(pod.clone(), node.clone());
            }
        }
    }
    GangView {
        plan: gang
            .plan
            .as_ref()
            .filter(|_| durable)
            .map(|plan| plan.id.clone()),
        slots,
        nodes,
        refusal: gang.refusal(),
    }
}
