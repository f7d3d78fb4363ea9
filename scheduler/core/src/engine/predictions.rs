//! Predicted devices against those that kubelet gave.
//!
//! ```text
//!   plan ──> devices predicted ──> Binding ──> kubelet chooses ──> agent reports holders
//!                                                                        │ compared, once for each pod
//!                        charge of the pod, its slot in the plan  <──────┘ what is so, from then on
//! ```
//!
//! Only a report that comes after a pod was bound tells of it: reports know pods by name, and one from before may mean
//! its predecessor. What a first LIST shows bound was so before, and is compared with what agents have said by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use crate::ids::{DeviceUuid, Namespace, NodeName, PodUid};
use crate::inventory::Belief;
use crate::pod::Pod;
use crate::time::Timestamp;

/// How predictions have turned out, in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Predictions {
    /// Pods that have got the devices predicted for them, all of those and no others.
    pub matched: u64,
    /// Pods that have got at least one other.
    pub differed: u64,
}

/// Devices by the pod that holds them.
type Held<'a> = BTreeMap<&'a (Namespace, Arc<str>), BTreeSet<&'a DeviceUuid>>;

impl Engine {
    /// How predictions have turned out so far.
    pub fn predictions(&self) -> Predictions {
        self.predictions
    }

    /// What is known of a bound pod's devices: those that kubelet gave it, before that those predicted.
    pub(super) fn devices_of(&self, pod: &Pod) -> Vec<DeviceUuid> {
        let given = self.ledger.given(&pod.uid).map(<[_]>::to_vec);
        let record = pod.record.as_ref();
        given
            .or_else(|| record.map(|record| record.devices.clone()))
            .unwrap_or_default()
    }

    /// Compares what the agents of the nodes that were heard say of members bound there with what was predicted, and
    /// notes whose devices have failed.
    pub(super) fn compare_predictions(&mut self, now: Timestamp) {
        if !self.synced {
            return;
        }
        for node in std::mem::take(&mut self.heard_nodes) {
            for (uid, devices) in self.newly_given(&node) {
                self.note_given(&uid, devices);
            }
            self.note_failures(&node, now);
        }
    }

    /// Members on a node whose devices are told for the first time, or are others than before.
    fn newly_given(&self, node: &NodeName) -> Vec<(PodUid, Vec<DeviceUuid>)> {
        let belief = self.inventory.get(node);
        let Some(belief) = belief.filter(|belief| belief.report.holders_known) else {
            return Vec::new();
        };
        let held = held(belief);
        if held.is_empty() {
            return Vec::new();
        }
        let mut given = Vec::new();
        for uid in self.ledger.pods_on(node) {
            let Some(pod) = self.pods.get(uid).filter(|pod| pod.membership.is_some()) else {
                continue;
            };
            let name = (pod.namespace.clone(), Arc::clone(&pod.name));
            let Some(devices) = held.get(&name) else {
                continue;
            };
            // Fewer than it asks for: some of them are reported no more. What was known of it stays.
            let asked = self.devices_asked(pod);
            let is_all = u64::try_from(devices.len()).is_ok_and(|count| count == asked);
            let devices: Vec<DeviceUuid> = devices.iter().copied().cloned().collect();
            if is_all && self.ledger.given(uid) != Some(&devices) {
                given.push((uid.clone(), devices));
            }
        }
        given
    }

    fn devices_asked(&self, pod: &Pod) -> u64 {
        let asked = pod.shape.requests.extended.iter();
        asked
            .filter(|(resource, _)| self.config.is_device(resource))
            .fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
    }

    fn note_given(&mut self, uid: &PodUid, devices: Vec<DeviceUuid>) {
        let Some(pod) = self.pods.get(uid) else {
            return;
        };
        let predicted = pod.record.as_ref().map(|record| &record.devices);
        if let Some(predicted) = predicted.filter(|devices| !devices.is_empty())
            && self.ledger.given(uid).is_none()
        {
            let predicted: BTreeSet<&DeviceUuid> = predicted.iter().collect();
            let counter = if predicted == devices.iter().collect() {
                &mut self.predictions.matched
            } else {
                &mut self.predictions.differed
            };
            *counter = counter.saturating_add(1);
        }
        if let Some(node) = self.ledger.give(uid, devices) {
            self.dirty_nodes.insert(node);
        }
        // Its slot follows. That alone is worth no write.
        self.dirty.extend(self.gang_key_of(uid));
    }
}

fn held(belief: &Belief) -> Held<'_> {
    let mut held = Held::new();
    for device in &belief.report.devices {
        for holder in &device.holders {
            held.entry(holder).or_default().insert(&device.uuid);
        }
    }
    held
}
