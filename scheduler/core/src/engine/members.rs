//! Members: which pod has which slot, and what becomes of a slot whose pod is lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Plan, Seat, Slot, Step};
use crate::ids::{PodUid, RoleName};
use crate::pod::{MembershipSource, Pod, PodPhase, PodShape};
use crate::record::{Phase, PlanRecord, SlotRecord};
use crate::time::{Millis, Timestamp};
use crate::workload::MemberSource;

/// Role of a member that nothing names a role for.
pub(super) fn default_role() -> RoleName {
    RoleName::from("member")
}

/// Role and index that the pod itself names.
fn own_seat(pod: &Pod) -> Option<Seat> {
    let membership = pod.membership.as_ref()?;
    membership.role.clone().zip(membership.index)
}

/// Text of an answer to a Bind whose slot has been lost.
pub(super) const LOST_SLOT: &str = "muster: this pod's place in the plan was given back";

impl Engine {
    /// Takes up a plan that was durable when this process started.
    pub(super) fn adopt(&mut self, gang: &mut Gang, now: Timestamp) {
        let Some(record) = gang.recovered.take() else {
            return;
        };
        if gang.plan.is_some() || record.slots.is_empty() || self.is_of_another_run(gang, &record) {
            return;
        }
        let stated = self.minimum_of(gang);
        let promised = u32::try_from(record.slots.len()).unwrap_or(u32::MAX);
        // What was committed holds: a place that was lost is not in the record, and what is asked for
        // may have grown since the start.
        let minimum = match record.minimum {
            0 => stated.unwrap_or(promised).min(promised),
            committed => committed,
        };
        let mut plan = Plan {
            id: record.id.clone(),
            epoch: self.epoch,
            slots: self.slots_of(gang, &record),
            minimum,
            open: false,
            was_durable: false,
            complete: false,
            progress_at: now,
            first_held_at: None,
            partial_since: None,
            said: None,
            took_back: false,
        };
        // Members are gone whose shape nothing tells any more, or had lost their places. If nothing
        // runs, it is planned anew.
        let least = stated.unwrap_or(0).max(plan.minimum);
        let whole = plan.planned() == promised && least <= promised;
        let all_bound = plan.slots.values().all(Slot::is_settled);
        let ran = gang
            .acked
            .as_ref()
            .is_some_and(|acked| matches!(acked.phase, Phase::Running | Phase::Repairing));
        // Members that have ended tell of a run, and only of a run that was written down.
        plan.open = plan.holds_any() || (ran && plan.bound() > 0);
        if !plan.open && !whole {
            gang.ended_slots = plan.ended();
            return;
        }
        plan.complete = plan.open && (ran || plan.bound() >= plan.minimum);
        if all_bound {
            // Nothing is left to be carried out: the plan stays the one that was written.
            plan.epoch = record.epoch;
        }
        gang.plan = Some(plan);
    }

    /// Whether nothing shows that the pods of a gang without a job are the run that a plan was made
    /// for. All that is left of it then are members that have ended, and whoever comes under the same
    /// label is a gang anew: it shall not start in part on their account.
    fn is_of_another_run(&self, gang: &Gang, record: &PlanRecord) -> bool {
        if gang.is_job() || !record.slots.iter().any(|slot| slot.ended) {
            return false;
        }
        let is_named = |pod: &Pod| {
            let mut slots = record.slots.iter();
            slots.any(|slot| slot.pod.as_ref() == Some(&pod.uid))
        };
        let was_bound_by_it = |pod: &Pod| {
            let bound = pod.record.as_ref().filter(|_| pod.node.is_some());
            bound.is_some_and(|bound| bound.plan == record.id)
        };
        !gang
            .pods
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .filter(|pod| pod.is_alive() || pod.phase == PodPhase::Succeeded)
            .any(|pod| is_named(pod) || was_bound_by_it(pod))
    }

    /// Members that must run together, as the job, the PodGroup or the pods say it.
    pub(super) fn minimum_of(&self, gang: &Gang) -> Option<u32> {
        let Some(workload) = &gang.workload else {
            let alive: Vec<&Pod> = self.alive(gang).collect();
            return self.stated_minimum(gang, &alive).ok().flatten();
        };
        workload
            .minimum
            .filter(|least| *least > 0)
            .or_else(|| workload.total())
    }

    fn slots_of(&self, gang: &Gang, record: &PlanRecord) -> std::collections::BTreeMap<Seat, Slot> {
        // A pod has one place, also when others say of themselves that they are it.
        let named: BTreeSet<&PodUid> = record
            .slots
            .iter()
            .filter_map(|slot| slot.pod.as_ref())
            .collect();
        let mut seated: BTreeSet<&PodUid> = BTreeSet::new();
        record
            .slots
            .iter()
            .filter_map(|slot| {
                let pod = slot
                    .pod
                    .as_ref()
                    .filter(|uid| gang.pods.contains(*uid))
                    .and_then(|uid| self.pods.get(uid))
                    .filter(|pod| seated.insert(&pod.uid))
                    // The commit names no pod that was born after it; what is bound has its place.
                    .or_else(|| {
                        self.bound_alive(gang)
                            .filter(|pod| !named.contains(&pod.uid))
                            .find(|pod| own_seat(pod) == Some((slot.role.clone(), slot.index)))
                    });
                let role = gang
                    .workload
                    .as_ref()
                    .and_then(|workload| workload.role(&slot.role));
                if pod.is_none() && slot.ended {
                    return Some(((slot.role.clone(), slot.index), ended_slot(slot)));
                }
                let seat = (slot.role.clone(), slot.index);
                let own = pod.map(|pod| wished_shape(gang, &seat, pod));
                let shape = own.or_else(|| role.map(|role| Arc::clone(&role.shape)))?;
                let mut taken = Slot::new(Some(slot.node.clone()), slot.devices.clone(), shape);
                if let Some(pod) = pod {
                    taken.pod = Some(pod.uid.clone());
                    taken.bound = pod.node.is_some() && pod.is_alive();
                    taken.done = pod.phase == PodPhase::Succeeded;
                }
                Some((seat, taken))
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
        self.drop_given_up(gang, &mut plan, now);
        let claimed: BTreeSet<&PodUid> = plan
            .slots
            .values()
            .filter_map(|slot| slot.pod.as_ref())
            .collect();
        let mut unclaimed: Vec<&Pod> = gang
            .pods
            .iter()
            .filter(|uid| !claimed.contains(uid))
            .filter_map(|uid| self.pods.get(uid))
            .filter(|pod| pod.is_alive() || has_run(pod, &plan))
            .collect();
        unclaimed.sort_by(|a, b| {
            (a.created_seconds, &a.name, &a.uid).cmp(&(b.created_seconds, &b.name, &b.uid))
        });
        for pod in unclaimed.into_iter().cloned().collect::<Vec<_>>() {
            let seat = find_seat(&plan, &pod).or_else(|| self.reopen_seat(&mut plan, &pod));
            if let Some(seat) = seat {
                let shape = wished_shape(gang, &seat, &pod);
                seat_pod(&mut plan, &seat, &pod, &shape, now);
            }
        }
        self.follow_claimed(gang, &mut plan);
        // A member that is bound already, by a Binding that nobody knew the end of, does not wait:
        // the others follow it in the time for repair, or all are released.
        if !plan.open && plan.slots.values().any(|slot| slot.bound) {
            plan.open = true;
            plan.partial_since = Some(now);
        }
        gang.plan = Some(plan);
    }

    /// The slot of a member that had ended well, whose pod somebody has deleted, and that its
    /// controller has made again: it needs a place once more.
    fn reopen_seat(&self, plan: &mut Plan, pod: &Pod) -> Option<Seat> {
        if !pod.is_alive() {
            return None;
        }
        let membership = pod.membership.as_ref()?;
        let own = membership.role.clone().zip(membership.index);
        let (seat, slot) = plan.slots.iter_mut().find(|(seat, slot)| {
            let gone = slot
                .pod
                .as_ref()
                .is_none_or(|uid| !self.pods.contains_key(uid));
            let alike = slot.shape.requests == pod.shape.requests;
            slot.done && gone && own.as_ref().map_or(alike, |own| own == *seat)
        })?;
        *slot = Slot::new(None, Vec::new(), Arc::clone(&slot.shape));
        Some(seat.clone())
    }

    /// Follows what the watch says of pods that have a slot, and keeps for each slot exactly the
    /// reservation that it needs: none once the pod's own charge stands for it, none while a
    /// predecessor still holds the room.
    fn follow_claimed(&mut self, gang: &Gang, plan: &mut Plan) {
        for (seat, slot) in &mut plan.slots {
            let pod = slot.pod.as_ref().and_then(|uid| self.pods.get(uid));
            let mut charged = false;
            if let Some(pod) = pod {
                slot.done |= pod.phase == PodPhase::Succeeded;
                slot.doubtful
                    .take_if(|doubtful| pod.resource_version.is_after(doubtful));
                if let Some(node) = &pod.node {
                    slot.bound = true;
                    charged = true;
                    if slot.node.as_ref() != Some(node) {
                        slot.node = Some(node.clone());
                        slot.devices = self.devices_of(pod);
                    } else if let Some(given) = self.ledger.given(&pod.uid)
                        && slot.devices != given
                    {
                        slot.devices = given.to_vec();
                    }
                }
            }
            let key = gang.slot_key(seat);
            let wanted = slot
                .node
                .as_ref()
                .filter(|_| !charged && !slot.done && slot.predecessor.is_none());
            if self.ledger.reservation(&key) == wanted.map(|node| (node, &slot.shape)) {
                continue;
            }
            if let Some(node) = self.ledger.release(&key) {
                self.dirty_nodes.insert(node);
            }
            if let Some(node) = wanted.cloned() {
                // A prediction that somebody else has made meanwhile is given up: after a restart
                // two plans may count on one device, and a lost member's may have been given away.
                slot.devices
                    .retain(|device| !self.ledger.is_promised(&node, device, &key, &slot.shape));
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

    fn drop_lost(&mut self, gang: &mut Gang, plan: &mut Plan, now: Timestamp) {
        for (seat, slot) in &mut plan.slots {
            let holds_room = |uid| self.pods.get(uid).is_some_and(Pod::holds_room);
            if slot
                .predecessor
                .as_ref()
                .is_some_and(|uid| !holds_room(uid))
            {
                slot.predecessor = None;
            }
            let Some(uid) = slot.pod.clone() else {
                continue;
            };
            let alive = |pod: &Pod| pod.is_alive() || pod.phase == PodPhase::Succeeded;
            let mine = gang.pods.contains(&uid);
            if slot.done || (mine && self.pods.get(&uid).is_some_and(alive)) {
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
                // A node that failed a member is not where its replacement should go. Where the pod
                // may have failed by itself, that is a wish: after a while the node will do again.
                let span = if is_nodes_fault(pod.status_reason.as_deref()) {
                    self.config.refused_node_for
                } else {
                    Millis(self.config.repair_max.0 / 3)
                };
                gang.refused_nodes.avoid(node, now + span, now);
                slot.node = None;
            }
            if slot.leaving.as_ref().is_some_and(|(gone, _)| *gone == uid) {
                // It was deleted because its GPU had failed: the next one goes elsewhere, and need not wait for it.
                slot.node = None;
                slot.devices = Vec::new();
                slot.predecessor = None;
            }
            if slot.is_in_doubt() {
                let key = gang.slot_key(seat);
                self.let_go(&key, slot);
            }
            slot.pod = None;
            slot.doubtful = None;
            slot.binding = None;
            slot.bound = false;
            slot.release = Step::NotYet;
            slot.refused_since = None;
        }
    }

    /// Places of lost members of a gang that is known by its pods, and that runs without them: who knows
    /// whether anybody makes them again. One that comes later gets a place like one that is new.
    fn drop_given_up(&mut self, gang: &Gang, plan: &mut Plan, now: Timestamp) {
        if gang.is_job() || !plan.open || plan.bound() < plan.minimum || self.is_halted() {
            return;
        }
        let repair_max = self.config.repair_max;
        for slot in plan.slots.values_mut().filter(|slot| slot.pod.is_none()) {
            slot.lost_at.get_or_insert(now);
        }
        let is_over = |slot: &Slot| slot.given_up_at(repair_max).is_some_and(|at| at <= now);
        let given_up: Vec<Seat> = plan
            .slots
            .iter()
            .filter(|(_, slot)| is_over(slot))
            .map(|(seat, _)| seat.clone())
            .collect();
        self.drop_seats(gang, plan, given_up);
    }

    fn drop_seats(&mut self, gang: &Gang, plan: &mut Plan, seats: Vec<Seat>) {
        for seat in seats {
            if let Some(slot) = plan.slots.remove(&seat)
                && let Some(ticket) = slot.ticket
            {
                self.answer(ticket, Err(Arc::from(LOST_SLOT)));
            }
            if let Some(node) = self.ledger.release(&gang.slot_key(&seat)) {
                self.dirty_nodes.insert(node);
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
        self.drop_seats(gang, plan, surplus);
        let total = workload.total().unwrap_or(u32::MAX);
        plan.minimum = plan
            .minimum
            .min(workload.minimum.unwrap_or(total))
            .min(total);
    }
}

/// The slot of a member that has ended well and whose pod is gone.
fn ended_slot(record: &SlotRecord) -> Slot {
    let mut slot = Slot::new(Some(record.node.clone()), Vec::new(), Arc::default());
    slot.pod.clone_from(&record.pod);
    slot.done = true;
    slot
}

/// Whether kubelet gave a reason that lies with the node and not with the pod.
fn is_nodes_fault(reason: Option<&str>) -> bool {
    reason.is_some_and(|reason| {
        reason.starts_with("OutOf")
            || matches!(
                reason,
                "UnexpectedAdmissionError"
                    | "NodeAffinity"
                    | "NodeShutdown"
                    | "Terminated"
                    | "NodeLost"
                    | "Evicted"
                    | "Preempting"
            )
    })
}

/// Whether a pod that has ended well is a member that this plan has bound.
fn has_run(pod: &Pod, plan: &Plan) -> bool {
    plan.open
        && pod.phase == PodPhase::Succeeded
        && pod
            .record
            .as_ref()
            .is_some_and(|record| record.plan == plan.id)
}

/// What the pod asks for by itself: nodes that we confined it to are not its own wish.
pub(super) fn wished_shape(gang: &Gang, (role, _): &Seat, pod: &Pod) -> Arc<PodShape> {
    let spec = gang.workload.as_ref().and_then(|job| job.role(role));
    match spec.filter(|_| pod.shape.is_pinned()) {
        Some(spec) => {
            let mut shape = (*pod.shape).clone();
            let own = &spec.shape.required_affinity;
            shape.required_affinity.clone_from(own);
            Arc::new(shape)
        }
        None => Arc::clone(&pod.shape),
    }
}

fn seat_pod(plan: &mut Plan, seat: &Seat, pod: &Pod, shape: &Arc<PodShape>, now: Timestamp) {
    let durable = plan.was_durable;
    let Some(slot) = plan.slots.get_mut(seat) else {
        return;
    };
    slot.pod = Some(pod.uid.clone());
    slot.lost_at = None;
    slot.leaving = None;
    slot.release = Step::NotYet;
    slot.woken_from = None;
    slot.refused_since = None;
    // A pod that is born into its place may have been turned down there before it is first seen: what
    // has been said of it is about this place.
    let born_into = durable && slot.node.is_some() && slot.predecessor.is_none();
    let said = pod.unschedulable.as_ref().filter(|_| !born_into);
    slot.said_before = said.cloned();
    if slot.shape.requests != pod.shape.requests || slot.shape.host_ports != pod.shape.host_ports {
        slot.shape = Arc::clone(shape);
    }
    plan.progress_at = now;
}

/// The slot for a pod: its own by role and index; for pods that are alike, or whose place another
/// one has that says the same of itself, one of the same shape that nobody has, on the pod's node
/// where it has one.
fn find_seat(plan: &Plan, pod: &Pod) -> Option<Seat> {
    let membership = pod.membership.as_ref()?;
    let is_free = |slot: &Slot| slot.pod.is_none() && !slot.done;
    if let (Some(role), Some(index)) = (&membership.role, membership.index) {
        let seat = (role.clone(), index);
        if plan.slots.get(&seat).is_some_and(is_free) {
            return Some(seat);
        }
        if membership.source == MembershipSource::Job {
            return None;
        }
    }
    let free = plan.slots.iter().filter(|((role, _), slot)| {
        is_free(slot)
            && slot.shape.requests == pod.shape.requests
            && membership.role.as_ref().is_none_or(|mine| mine == role)
    });
    free.min_by_key(|(seat, slot)| (pod.node.is_some() && slot.node != pod.node, (*seat).clone()))
        .map(|(seat, _)| seat.clone())
}
