//! Publishing the picture that readers see.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use super::gang::Gang;
use crate::view::{GangView, SlotView};

impl Engine {
    /// Brings the published picture up to date with the gangs that changed.
    pub(super) fn publish(&mut self) {
        let (leading, synced, epoch) = (self.lead == super::Lead::Yes, self.synced, self.epoch);
        if (self.view.leading, self.view.synced, self.view.epoch) != (leading, synced, epoch) {
            let view = Arc::make_mut(&mut self.view);
            (view.leading, view.synced, view.epoch) = (leading, synced, epoch);
        }
        if self.view_dirty.is_empty() {
            return;
        }
        let touched = std::mem::take(&mut self.view_dirty);
        let mut gangs = (*self.view.gangs).clone();
        let mut protected = (*self.view.protected).clone();
        for key in touched {
            match self.gangs.get(&key) {
                None => {
                    gangs.remove(&key);
                }
                Some(gang) => {
                    let view = gang_view(gang);
                    if gangs.get(&key).is_none_or(|before| **before != view) {
                        gangs.insert(key, Arc::new(view));
                    }
                    for uid in &gang.pods {
                        if self.pods.get(uid).is_some_and(|pod| pod.node.is_some()) {
                            protected.insert(uid.clone());
                        }
                    }
                }
            }
        }
        protected.retain(|uid| self.pods.contains_key(uid));
        let view = Arc::make_mut(&mut self.view);
        view.gangs = Arc::new(gangs);
        view.protected = Arc::new(protected);
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
