//! Bindings of which it is not known whether they apply, and whose plan is no more.
//!
//! ```text
//!   Bind sent ──> answered: bound, or certainly not       nothing is in doubt
//!            └──> its plan is given back, or no answer    the room stays reserved, until
//!                     the pod is seen bound               its own charge takes over
//!                     the pod is seen at a later version  every attempt cites an older one: void
//!                     the pod is gone                     nothing can be bound any more
//! ```
//! Giving the room to somebody else before that would book it twice when the Binding applies late.
//! The writer may cite a later version than the one it was given; its answer says which one was the
//! last. What the watch brings may be older than that: only a later version voids a Binding.

use super::gang::Slot;
use super::{Engine, LooseBind};
use crate::event::{WriteId, WriteOutcome};
use crate::ids::{NodeName, PodUid, ResourceVersion, RoleName};
use crate::ledger::SlotKey;
use crate::pod::BindRecord;

/// Room that a Binding may still take up.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    /// The reservation.
    pub slot: SlotKey,
    /// Newest resourceVersion of the pod that a Binding has cited whose outcome is not known.
    version: Option<ResourceVersion>,
    /// The Binding whose answer is awaited.
    write: Option<WriteId>,
}

/// Keeps the later of two versions; of two that cannot be compared the one that came last.
pub(super) fn newest(kept: &mut Option<ResourceVersion>, other: Option<ResourceVersion>) {
    let Some(other) = other else { return };
    if kept.as_ref().is_none_or(|kept| !kept.is_after(&other)) {
        *kept = Some(other);
    }
}

impl LooseBind {
    /// The pod is seen at this version.
    pub(super) fn note_version(&mut self, version: &ResourceVersion) {
        self.doubtful.take_if(|doubtful| version.is_after(doubtful));
    }

    /// Whether no Binding of it can apply any more.
    pub(super) fn is_over(&self) -> bool {
        self.write.is_none() && self.doubtful.is_none()
    }
}

impl Engine {
    /// Gives the reservation of a slot back; keeps it on as a doubt while a Binding may use it.
    pub(super) fn let_go(&mut self, key: &SlotKey, slot: &Slot) {
        let in_doubt = slot.pod.clone().filter(|uid| {
            self.pods.get(uid).is_some_and(|pod| {
                let may_apply = |cited| !pod.resource_version.is_after(cited);
                pod.node.is_none()
                    && pod.is_alive()
                    && (slot.binding.is_some() || slot.doubtful.as_ref().is_some_and(may_apply))
            })
        });
        let node = self.ledger.release(key);
        if let Some(uid) = in_doubt
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
                version: slot.doubtful.clone(),
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
                open.as_ref().is_some_and(|seen| {
                    let may_apply = |cited: &ResourceVersion| !seen.is_after(cited);
                    doubt.write.is_some() || doubt.version.as_ref().is_some_and(may_apply)
                })
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

    /// The answer to a Binding, sent with this version of the pod, that nobody waits for any more.
    pub(super) fn doubt_answered(
        &mut self,
        id: WriteId,
        uid: &PodUid,
        sent: &ResourceVersion,
        outcome: &WriteOutcome,
    ) {
        let mut doubts = self.doubts.get_mut(uid).into_iter().flatten();
        let Some(doubt) = doubts.find(|doubt| doubt.write == Some(id)) else {
            return;
        };
        doubt.write = None;
        newest(&mut doubt.version, outcome.doubtful_version(sent));
        self.settle_doubts(uid);
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
