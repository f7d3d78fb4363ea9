//! Bindings of which it is not known whether they apply, and whose plan is no more.
//!
//! ```text
//!   Bind sent ──> answered: bound, or certainly not       nothing is in doubt
//!            └──> its plan is given back, or no answer    the room stays reserved, until
//!                     the pod is seen bound               its own charge takes over
//!                     the pod is seen at another version  the Binding cites the old one: it is void
//!                     the pod is gone                     nothing can be bound any more
//! ```
//! Giving the room to somebody else before that would book it twice when the Binding applies late.

use super::Engine;
use super::gang::Slot;
use crate::event::{WriteId, WriteOutcome};
use crate::ids::{NodeName, PodUid, ResourceVersion, RoleName};
use crate::ledger::SlotKey;
use crate::pod::BindRecord;

/// Room that a Binding may still take up.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    /// The reservation.
    pub slot: SlotKey,
    /// resourceVersion of the pod that the Binding cites.
    version: ResourceVersion,
    /// The Binding, while its answer is awaited.
    write: Option<WriteId>,
}

impl Engine {
    /// Gives the reservation of a slot back; keeps it on as a doubt while a Binding may use it.
    pub(super) fn let_go(&mut self, key: &SlotKey, slot: &Slot) {
        let in_doubt = slot.cited.clone().zip(slot.pod.clone()).filter(|(_, uid)| {
            self.pods
                .get(uid)
                .is_some_and(|pod| pod.node.is_none() && pod.is_alive())
        });
        let node = self.ledger.release(key);
        if let Some((version, uid)) = in_doubt
            && let Some(node) = node.clone()
        {
            let kept = SlotKey {
                gang: key.gang.clone(),
                role: RoleName::from("in-doubt"),
                index: self.next_doubt,
            };
            self.next_doubt = self.next_doubt.wrapping_add(1);
            self.ledger.reserve(
                kept.clone(),
                node,
                std::sync::Arc::clone(&slot.shape),
                slot.devices.clone(),
            );
            self.doubts.entry(uid).or_default().push(Doubt {
                slot: kept,
                version,
                write: slot.binding,
            });
        }
        if let Some(node) = node {
            self.touch_node(&node);
        }
    }

    /// Ends the doubts about a pod that what is known of it now ends.
    pub(super) fn settle_doubts(&mut self, uid: &PodUid) {
        let Some(doubts) = self.doubts.remove(uid) else {
            return;
        };
        let open = self
            .pods
            .get(uid)
            .filter(|pod| pod.node.is_none())
            .map(|pod| pod.resource_version.clone());
        let (kept, ended): (Vec<_>, Vec<_>) = doubts
            .into_iter()
            // A Binding on its way may be sent again with a newer version: only its answer ends that.
            .partition(|doubt| {
                open.as_ref()
                    .is_some_and(|version| doubt.write.is_some() || *version == doubt.version)
            });
        for doubt in ended {
            if let Some(node) = self.ledger.release(&doubt.slot) {
                self.touch_node(&node);
            }
        }
        if !kept.is_empty() {
            self.doubts.insert(uid.clone(), kept);
        }
    }

    /// The answer to a Binding that nobody waits for any more.
    pub(super) fn doubt_answered(&mut self, id: WriteId, uid: &PodUid, outcome: &WriteOutcome) {
        let Some(doubts) = self.doubts.get_mut(uid) else {
            return;
        };
        let Some(at) = doubts.iter().position(|doubt| doubt.write == Some(id)) else {
            return;
        };
        if matches!(outcome, WriteOutcome::Unknown(_)) {
            if let Some(doubt) = doubts.get_mut(at) {
                doubt.write = None;
            }
            return;
        }
        let doubt = doubts.remove(at);
        if doubts.is_empty() {
            self.doubts.remove(uid);
        }
        if let Some(node) = self.ledger.release(&doubt.slot) {
            self.touch_node(&node);
        }
    }

    /// Takes a confirmed Binding in as if the watch had told it: what was written is known at once,
    /// and a plan made before the watch catches up counts it.
    pub(super) fn learn_bound(
        &mut self,
        uid: &PodUid,
        node: &NodeName,
        record: Option<BindRecord>,
    ) {
        let Some(pod) = self.pods.get_mut(uid).filter(|pod| pod.node.is_none()) else {
            return;
        };
        pod.node = Some(node.clone());
        pod.record = record;
        let pod = pod.clone();
        for node in self.ledger.set_pod(&pod) {
            self.touch_node(&node);
        }
        if let Some(key) = self.gang_key_of(uid) {
            self.dirty.insert(key);
        }
        self.settle_doubts(uid);
    }

    /// Forgets every doubt and every Bind outside gangs: a new leadership stamps all pods that are
    /// not bound, after which no earlier Binding applies.
    pub(super) fn drop_doubts(&mut self) {
        let doubts = std::mem::take(&mut self.doubts);
        let loose = std::mem::take(&mut self.loose);
        let slots = doubts.into_values().flatten().map(|doubt| doubt.slot);
        for slot in slots.chain(loose.into_values().map(|loose| loose.slot)) {
            if let Some(node) = self.ledger.release(&slot) {
                self.touch_node(&node);
            }
        }
    }

    /// Takes back the writes that nobody has fetched yet.
    pub(super) fn unsend(&mut self) {
        let in_flight = &mut self.in_flight;
        self.actions.retain(|action| match action {
            crate::action::Action::Write(write) => {
                in_flight.remove(&write.id);
                false
            }
            crate::action::Action::Relist => false,
            _ => true,
        });
    }
}
