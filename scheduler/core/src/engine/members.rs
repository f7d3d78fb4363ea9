//! Members: which pod has which slot, and what becomes of a slot whose pod is lost.

use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Plan, Seat, Slot, Step};
use crate::ids::{PodUid, RoleName};
use crate::pod::{Pod, PodPhase};
use crate::record::PlanRecord;
use crate::time::Timestamp;
use crate::workload::MemberSource;

/// Role of a member that nothing names a role for.
pub(super) fn default_role() -> RoleName {
    RoleName::from("member")
}

/// Text of an answer to a Bind whose slot has been lost.
pub(super) const LOST_SLOT: &str = "muster: this pod's place in the plan was given back";

impl Engine {
    /// Takes up a plan that was durable when this process started.
    pub(super) fn adopt(&mut self, gang: &mut Gang, now: Timestamp) {
        let Some(record) = gang.recovered.take() else {
            return;
        };
        if gang.plan.is_some() || record.slots.is_empty() {
            return;
        }
        let minimum = gang.workload.as_ref().and_then(|workload| workload.minimum);
        let mut plan = Plan {
            id: record.id.clone(),
            epoch: self.epoch,
            slots: self.slots_of(gang, &record),
            minimum: 0,
            open: false,
            complete: false,
            progress_at: now,
            first_held_at: None,
            partial_since: None,
            said: None,
        };
        plan.minimum = minimum
            .unwrap_or_else(|| plan.planned())
            .min(plan.planned());
        let all_bound = plan.slots.values().all(Slot::is_settled);
        plan.open = plan.bound() > 0;
        plan.complete = plan.open && plan.bound() >= plan.minimum;
        if all_bound {
            // Nothing is left to be carried out: the plan stays the one that was written.
            plan.epoch = record.epoch;
        }
        for (seat, slot) in &plan.slots {
            if !slot.is_settled()
                && let Some(node) = &slot.node
            {
                self.ledger.reserve(
                    gang.slot_key(seat),
                    node.clone(),
                    Arc::clone(&slot.shape),
                    slot.devices.clone(),
                );
                self.dirty_nodes.insert(node.clone());
            }
        }
        gang.plan = Some(plan);
    }

    fn slots_of(&self, gang: &Gang, record: &PlanRecord) -> std::collections::BTreeMap<Seat, Slot> {
        record
            .slots
            .iter()
            .filter_map(|slot| {
                let pod = slot.pod.as_ref().and_then(|uid| self.pods.get(uid));
                let role = gang
                    .workload
                    .as_ref()
                    .and_then(|workload| workload.role(&slot.role));
                let shape = pod.map(|pod| &pod.shape).or(role.map(|role| &role.shape))?;
                let mut taken = Slot::new(
                    Some(slot.node.clone()),
                    slot.devices.clone(),
                    Arc::clone(shape),
                );
                match pod {
                    Some(pod) => {
                        taken.pod = Some(pod.uid.clone());
                        taken.bound = pod.node.is_some() && pod.is_alive();
                        taken.done = pod.phase == PodPhase::Succeeded;
                    }
                    // A member that had ended well and whose pod is gone since.
                    None => taken.done = false,
                }
                Some(((slot.role.clone(), slot.index), taken))
            })
            .collect()
    }

    /// Lets lost pods go, and gives unclaimed pods their slots.
    pub(super) fn claim_members(&mut self, gang: &mut Gang, now: Timestamp) {
        let Some(mut plan) = gang.plan.take() else {
            return;
        };
        self.drop_lost(gang, &mut plan, now);
        self.drop_scaled_down(gang, &mut plan);
        let mut pods: Vec<&PodUid> = gang.pods.iter().collect();
        pods.sort_by_key(|uid| {
            self.pods
                .get(*uid)
                .map(|pod| (pod.created_seconds, Arc::clone(&pod.name), pod.uid.clone()))
        });
        let unclaimed: Vec<PodUid> = pods
            .into_iter()
            .filter(|uid| {
                !plan
                    .slots
                    .values()
                    .any(|slot| slot.pod.as_ref() == Some(uid))
            })
            .cloned()
            .collect();
        for uid in unclaimed {
            let Some(pod) = self.pods.get(&uid).filter(|pod| pod.is_alive()).cloned() else {
                continue;
            };
            let Some(seat) = find_seat(&plan, &pod) else {
                continue;
            };
            self.seat(gang, &mut plan, &seat, &pod, now);
        }
        self.follow_claimed(gang, &mut plan);
        gang.plan = Some(plan);
    }

    fn seat(&mut self, gang: &Gang, plan: &mut Plan, seat: &Seat, pod: &Pod, now: Timestamp) {
        let Some(slot) = plan.slots.get_mut(seat) else {
            return;
        };
        slot.pod = Some(pod.uid.clone());
        slot.release = Step::NotYet;
        slot.refused_since = None;
        plan.progress_at = now;
        if slot.shape.requests != pod.shape.requests
            || slot.shape.host_ports != pod.shape.host_ports
        {
            slot.shape = Arc::clone(&pod.shape);
            if pod.node.is_none()
                && let Some(node) = slot.node.clone()
            {
                self.ledger.reserve(
                    gang.slot_key(seat),
                    node.clone(),
                    Arc::clone(&slot.shape),
                    slot.devices.clone(),
                );
                self.dirty_nodes.insert(node);
            }
        }
    }

    /// Follows what the watch says of pods that have a slot.
    fn follow_claimed(&mut self, gang: &Gang, plan: &mut Plan) {
        for (seat, slot) in &mut plan.slots {
            let Some(pod) = slot.pod.as_ref().and_then(|uid| self.pods.get(uid)) else {
                continue;
            };
            if pod.phase == PodPhase::Succeeded {
                slot.done = true;
            }
            if let Some(node) = &pod.node {
                slot.bound = true;
                if slot.node.as_ref() != Some(node) {
                    slot.node = Some(node.clone());
                    slot.devices = pod
                        .record
                        .as_ref()
                        .map(|record| record.devices.clone())
                        .unwrap_or_default();
                }
                // The pod's own charge is in the ledger by now: the reservation has done its duty.
                if let Some(node) = self.ledger.release(&gang.slot_key(seat)) {
                    self.dirty_nodes.insert(node);
                }
            }
        }
    }

    fn drop_lost(&mut self, gang: &mut Gang, plan: &mut Plan, now: Timestamp) {
        for (seat, slot) in &mut plan.slots {
            if let Some(uid) = &slot.predecessor
                && !self.pods.contains_key(uid)
            {
                slot.predecessor = None;
            }
            let Some(uid) = slot.pod.clone() else {
                continue;
            };
            let alive = |pod: &Pod| pod.is_alive() || pod.phase == PodPhase::Succeeded;
            if slot.done || self.pods.get(&uid).is_some_and(alive) {
                continue;
            }
            if let Some(ticket) = slot.ticket.take() {
                self.answer(ticket, Err(Arc::from(LOST_SLOT)));
            }
            let pod = self.pods.get(&uid);
            slot.predecessor = pod
                .filter(|pod| pod.holds_room())
                .map(|pod| pod.uid.clone());
            if let Some(pod) = pod
                && pod.phase == PodPhase::Failed
                && let Some(node) = &pod.node
            {
                // A node that failed a member is not where its replacement should go.
                gang.refused_nodes
                    .insert(node.clone(), now + self.config.refused_node_for);
                slot.node = None;
            }
            slot.pod = None;
            slot.binding = None;
            slot.bound = false;
            slot.release = Step::NotYet;
            slot.refused_since = None;
            if slot.predecessor.is_none()
                && let Some(node) = slot.node.clone()
            {
                // The room is kept for the replacement from the moment that it is free.
                let key = gang.slot_key(seat);
                self.ledger.reserve(
                    key,
                    node.clone(),
                    Arc::clone(&slot.shape),
                    slot.devices.clone(),
                );
                self.dirty_nodes.insert(node);
            }
        }
        for (seat, slot) in &mut plan.slots {
            // The predecessor is gone: now the room can be kept.
            let waits = slot.pod.is_none() && slot.predecessor.is_none() && !slot.is_settled();
            if waits && let Some(node) = slot.node.clone() {
                let key = gang.slot_key(seat);
                if self.ledger.reserved_on(&key) != Some(&node) {
                    self.ledger.reserve(
                        key,
                        node.clone(),
                        Arc::clone(&slot.shape),
                        slot.devices.clone(),
                    );
                    self.dirty_nodes.insert(node);
                }
            }
        }
    }

    /// Slots beyond what the job asks for now, that no pod has.
    fn drop_scaled_down(&mut self, gang: &Gang, plan: &mut Plan) {
        let Some(workload) = &gang.workload else {
            return;
        };
        if !plan.open || !matches!(workload.members, MemberSource::Roles(_)) {
            return;
        }
        let surplus: Vec<Seat> = plan
            .slots
            .iter()
            .filter(|((role, index), slot)| {
                slot.pod.is_none() && workload.role(role).is_none_or(|role| *index >= role.count)
            })
            .map(|(seat, _)| seat.clone())
            .collect();
        for seat in surplus {
            if let Some(slot) = plan.slots.remove(&seat)
                && let Some(ticket) = slot.ticket
            {
                self.answer(ticket, Err(Arc::from(LOST_SLOT)));
            }
            if let Some(node) = self.ledger.release(&gang.slot_key(&seat)) {
                self.dirty_nodes.insert(node);
            }
        }
        let total = workload.total().unwrap_or(u32::MAX);
        plan.minimum = plan
            .minimum
            .min(workload.minimum.unwrap_or(total))
            .min(total);
    }
}

/// The slot for a pod: its own by role and index; for pods that are alike, one of the same shape
/// that nobody has, on the pod's node where it has one.
fn find_seat(plan: &Plan, pod: &Pod) -> Option<Seat> {
    let membership = pod.membership.as_ref()?;
    if let (Some(role), Some(index)) = (&membership.role, membership.index) {
        let seat = (role.clone(), index);
        return plan
            .slots
            .get(&seat)
            .is_some_and(|slot| slot.pod.is_none() && !slot.done)
            .then_some(seat);
    }
    let free = plan.slots.iter().filter(|((role, _), slot)| {
        slot.pod.is_none()
            && !slot.done
            && slot.shape.requests == pod.shape.requests
            && membership.role.as_ref().is_none_or(|mine| mine == role)
    });
    free.min_by_key(|(seat, slot)| (pod.node.is_some() && slot.node != pod.node, (*seat).clone()))
        .map(|(seat, _)| seat.clone())
}
