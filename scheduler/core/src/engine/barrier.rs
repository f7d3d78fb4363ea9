//! The bind barrier: no member is bound before kube-scheduler has accepted all of them on their
//! planned nodes. A Bind that comes early is held; when the last one is there, all bind at once.
//!
//! A held Bind costs kube-scheduler a goroutine and nothing else. It is answered `Ok` only after
//! the binding is confirmed: an `Ok` without a binding would lose the pod for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::doubt::newest;
use super::freeze::NODE_FROZEN;
use super::gang::{Gang, Record, Said};
use super::members::LOST_SLOT;
use super::{BindPurpose, Engine, LooseBind, Purpose};
use crate::action::WriteKind;
use crate::event::{BindAsked, Ticket, WriteId, WriteOutcome};
use crate::ids::{GangKey, NodeName, PodUid, ResourceVersion, RoleName};
use crate::ledger::SlotKey;
use crate::planted::{self, Bug};
use crate::pod::{BindRecord, Pod};
use crate::record::PlanRecord;
use crate::time::Timestamp;
use crate::view::{FROZEN, NO_ROOM};

use super::gang::{Seat, Slot};

/// Text for a Bind that a later one of the same pod replaces.
const SUPERSEDED: &str = "muster: another Bind of this pod has come";
/// Text for a Bind of a pod that has not been seen.
const NOT_SEEN: &str = "muster: this pod is not known";
/// Text for a Bind of a pod that is bound to another node.
pub(super) const BOUND_ELSEWHERE: &str = "muster: this pod is bound to another node";
/// Text for a Bind whose Binding was refused or whose outcome is not known.
const BIND_FAILED: &str = "muster: the binding was refused or is not confirmed";

impl Engine {
    /// Finds the pod of each Bind that has come since the last round. Returns the gangs of those that
    /// belong to one.
    pub(super) fn settle_strays(&mut self, now: Timestamp) -> BTreeSet<GangKey> {
        let strays: Vec<(Ticket, Timestamp)> = self
            .strays
            .iter()
            .map(|(ticket, until)| (*ticket, *until))
            .collect();
        let mut arrived: BTreeMap<GangKey, Vec<BindAsked>> = BTreeMap::new();
        for (ticket, until) in strays {
            let Some(asked) = self.tickets.get(&ticket).cloned() else {
                self.strays.remove(&ticket);
                continue;
            };
            let Some(pod) = self.pods.get(&asked.pod) else {
                if now >= until {
                    self.answer(ticket, Err(Arc::from(NOT_SEEN)));
                }
                continue;
            };
            if let Some(node) = pod.node.clone() {
                self.answer_bound(ticket, Some(&node));
                continue;
            }
            self.strays.remove(&ticket);
            match self.gang_key_of(&asked.pod) {
                None => self.bind_loose(&asked, now),
                Some(key) => arrived.entry(key).or_default().push(asked),
            }
        }
        for (key, asked) in &arrived {
            // A pod may have been seen a moment ago: it has its place before its Bind is looked at.
            // Everything else is the round's that follows.
            self.with_gang(key, |engine, gang| {
                if !matches!(gang.record, Record::Unreadable(_)) {
                    engine.adopt(gang, now);
                    engine.claim_members(gang, now);
                }
            });
            self.dirty.insert(key.clone());
            self.arrive(key, asked, now);
        }
        arrived.into_keys().collect()
    }

    /// Binds of a gang's members have come.
    fn arrive(&mut self, key: &GangKey, arrived: &[BindAsked], now: Timestamp) {
        let lost = || Err(Arc::from(LOST_SLOT));
        let answers = self.with_gang(key, |_, gang| {
            let durable = gang.is_durable();
            let refusal = gang.refusal();
            let Some(plan) = gang.plan.as_mut() else {
                let refuse = |asked: &BindAsked| (asked.ticket, Err(Arc::clone(&refusal)));
                return arrived.iter().map(refuse).collect();
            };
            let seats: BTreeMap<PodUid, Seat> = plan
                .slots
                .iter()
                .filter_map(|(seat, slot)| Some((slot.pod.clone()?, seat.clone())))
                .collect();
            let mut answers: Vec<(Ticket, Result<(), Arc<str>>)> = Vec::new();
            for asked in arrived {
                let slot = seats
                    .get(&asked.pod)
                    .and_then(|seat| plan.slots.get_mut(seat))
                    .filter(|slot| {
                        // Never "fix up" a Bind to another node: refuse, and let it come again.
                        durable
                            && slot.node.as_ref() == Some(&asked.node)
                            && slot.predecessor.is_none()
                    });
                let Some(slot) = slot else {
                    answers.push((asked.ticket, Err(Arc::clone(&refusal))));
                    continue;
                };
                let before = slot.ticket.replace(asked.ticket);
                slot.refused_since = None;
                plan.progress_at = now;
                plan.first_held_at.get_or_insert(now);
                if let Some(before) = before.filter(|before| *before != asked.ticket) {
                    answers.push((before, Err(Arc::from(SUPERSEDED))));
                }
            }
            answers
        });
        let answers = answers.unwrap_or_else(|| {
            let refuse = |asked: &BindAsked| (asked.ticket, lost());
            arrived.iter().map(refuse).collect()
        });
        for (ticket, answer) in answers {
            self.answer(ticket, answer);
        }
    }

    /// Binds a pod of no gang, if there is room beside what is reserved.
    fn bind_loose(&mut self, asked: &BindAsked, now: Timestamp) {
        let Some(pod) = self.pods.get(&asked.pod).cloned() else {
            return;
        };
        let frozen = if self.is_frozen() {
            Some(FROZEN)
        } else {
            self.is_node_frozen(&asked.node).then_some(NODE_FROZEN)
        };
        if let Some(text) = frozen {
            self.answer(asked.ticket, Err(Arc::from(text)));
            return;
        }
        let key = GangKey::new(pod.namespace.as_str(), pod.uid.as_str());
        if let Some(loose) = self.loose.get_mut(&asked.pod) {
            let elsewhere = loose.node != asked.node;
            if elsewhere && loose.write.is_some() {
                self.answer(asked.ticket, Err(Arc::from(BOUND_ELSEWHERE)));
                return;
            }
            if !elsewhere {
                // The same pod again: the newer Bind gets the answer. A Binding of which nothing is
                // known is sent again; it counts as done when it was.
                let before = loose.ticket.replace(asked.ticket);
                if loose.write.is_none() {
                    self.send_loose(&key, &pod, &asked.node);
                }
                if let Some(before) = before.filter(|before| *before != asked.ticket) {
                    self.answer(before, Err(Arc::from(SUPERSEDED)));
                }
                return;
            }
            // The earlier Binding may still apply, on the other node: not before it is void.
            self.answer(asked.ticket, Err(Arc::from(BIND_FAILED)));
            return;
        }
        // Binds of one batch see each other's reservations.
        self.refresh_capacity(now);
        if !self.view.has_room(asked.node.as_str(), &pod.shape.requests) {
            self.answer(asked.ticket, Err(Arc::from(NO_ROOM)));
            return;
        }
        let slot = SlotKey {
            gang: key.clone(),
            role: RoleName::from("loose"),
            index: 0,
        };
        self.ledger.reserve(
            slot.clone(),
            asked.node.clone(),
            Arc::clone(&pod.shape),
            Vec::new(),
        );
        self.dirty_nodes.insert(asked.node.clone());
        self.loose.insert(
            asked.pod.clone(),
            LooseBind {
                ticket: Some(asked.ticket),
                slot,
                node: asked.node.clone(),
                write: None,
                doubtful: None,
            },
        );
        self.send_loose(&key, &pod, &asked.node);
    }

    fn send_loose(&mut self, key: &GangKey, pod: &Pod, node: &NodeName) {
        let plan = self.new_plan_id();
        let what = WriteKind::Bind {
            pod: Self::target(pod),
            node: node.clone(),
            plan: plan.clone(),
            devices: Vec::new(),
        };
        let version = pod.resource_version.clone();
        let purpose = Purpose::BindLoose(pod.uid.clone(), node.clone(), version);
        let id = self.write(key, Some(plan), purpose, what);
        if let Some(loose) = self.loose.get_mut(&pod.uid) {
            loose.write = Some(id);
        }
    }

    pub(super) fn loose_bind_done(
        &mut self,
        id: WriteId,
        pod: &PodUid,
        node: &NodeName,
        version: &ResourceVersion,
        outcome: &WriteOutcome,
    ) {
        let mine = self
            .loose
            .get(pod)
            .is_some_and(|loose| loose.write == Some(id));
        if matches!(outcome, WriteOutcome::Done(_)) {
            // From here on the pod's own charge stands for the reservation.
            self.learn_bound(pod, node, None);
            self.drop_loose(pod, Some(node));
            return;
        }
        if !mine {
            return;
        }
        let known = self.pods.get(pod).map(|pod| &pod.resource_version);
        let Some(loose) = self.loose.get_mut(pod) else {
            return;
        };
        let ticket = loose.ticket.take();
        loose.write = None;
        newest(&mut loose.doubtful, outcome.doubtful_version(version));
        if let Some(known) = known {
            loose.note_version(known);
        }
        // What is not known may still apply, until the pod is seen at a later version.
        let over = loose.is_over();
        if let Some(ticket) = ticket {
            self.answer(ticket, Err(Arc::from(BIND_FAILED)));
        }
        if over {
            self.drop_loose(pod, None);
        }
    }

    /// Opens the barrier when every member is there, and binds whoever has come.
    pub(super) fn pass_barrier(&mut self, gang: &mut Gang, now: Timestamp) {
        if !gang.is_durable() || self.why_frozen(gang).is_some() {
            return;
        }
        let Some(mut plan) = gang.plan.take() else {
            return;
        };
        let mut come = plan
            .slots
            .values()
            .map(|slot| slot.is_settled() || slot.ticket.is_some());
        let all_there = match planted::is(Bug::BarrierOpensEarly) {
            true => come.any(|there| there),
            false => come.all(|there| there),
        };
        let waits = |slot: &Slot| !slot.is_settled() && self.is_slot_frozen(slot);
        if !plan.open && all_there && !plan.slots.values().any(waits) {
            plan.open = true;
            plan.partial_since = Some(now);
        }
        if plan.open {
            let id = plan.id.clone();
            for (seat, slot) in &mut plan.slots {
                if slot.bound {
                    if let Some(ticket) = slot.ticket.take() {
                        self.answer_bound(ticket, slot.node.as_ref());
                    }
                    continue;
                }
                let (Some(_), None, Some(node)) = (slot.ticket, &slot.binding, &slot.node) else {
                    continue;
                };
                if slot.predecessor.is_some() || self.is_node_frozen(node) {
                    continue;
                }
                let Some(pod) = slot.pod.as_ref().and_then(|uid| self.pods.get(uid)) else {
                    continue;
                };
                let what = WriteKind::Bind {
                    pod: Self::target(pod),
                    node: node.clone(),
                    plan: id.clone(),
                    devices: slot.devices.clone(),
                };
                let purpose = Purpose::Bind(Box::new(BindPurpose {
                    gang: gang.key.clone(),
                    seat: seat.clone(),
                    pod: pod.uid.clone(),
                    version: pod.resource_version.clone(),
                    node: node.clone(),
                    record: BindRecord {
                        plan: id.clone(),
                        epoch: self.epoch,
                        devices: slot.devices.clone(),
                    },
                }));
                slot.binding = Some(self.write(&gang.key, Some(id.clone()), purpose, what));
                if planted::is(Bug::AnsweredBeforeBound)
                    && let Some(ticket) = slot.ticket.take()
                {
                    self.answer(ticket, Ok(()));
                }
            }
        }
        gang.plan = Some(plan);
    }

    pub(super) fn bind_done(
        &mut self,
        id: WriteId,
        purpose: &BindPurpose,
        outcome: WriteOutcome,
        now: Timestamp,
    ) {
        let BindPurpose {
            gang: key,
            seat,
            pod,
            version,
            node,
            record,
        } = purpose;
        self.dirty.insert(key.clone());
        let done = matches!(outcome, WriteOutcome::Done(_));
        let retry = now + self.config.refusal_grace;
        let slot = self
            .gangs
            .get_mut(key)
            .and_then(|gang| gang.plan.as_mut())
            .and_then(|plan| plan.slots.get_mut(seat))
            .filter(|slot| slot.pod.as_ref() == Some(pod) && slot.binding == Some(id));
        let Some(slot) = slot else {
            // Its plan is no more, or another leadership has begun.
            self.doubt_answered(id, pod, version, &outcome);
            if done {
                self.learn_bound(pod, node, Some(record.clone()));
            }
            return;
        };
        slot.binding = None;
        newest(&mut slot.doubtful, outcome.doubtful_version(version));
        slot.bound |= done;
        if let Some(ticket) = slot.ticket.take() {
            let answer = if done {
                Ok(())
            } else {
                Err(Arc::from(BIND_FAILED))
            };
            self.answer(ticket, answer);
        }
        if done {
            self.learn_bound(pod, node, Some(record.clone()));
        }
        let Some(plan) = self.gangs.get_mut(key).and_then(|gang| gang.plan.as_mut()) else {
            return;
        };
        if done {
            plan.progress_at = now;
            if plan.bound() >= plan.minimum {
                plan.complete = true;
                plan.partial_since = None;
            }
        }
        if let WriteOutcome::Refused(said) = outcome {
            plan.said = Some(Said::of(seat, &said));
            if let Some(gang) = self.gangs.get_mut(key) {
                gang.blocked_until = gang.blocked_until.max(retry);
            }
        }
    }

    /// Answers every held Bind of the gang with the same text.
    pub(super) fn turn_away(&mut self, gang: &mut Gang, text: &Arc<str>) {
        let Some(plan) = &mut gang.plan else { return };
        let tickets: Vec<Ticket> = plan
            .slots
            .values_mut()
            .filter_map(|slot| slot.ticket.take())
            .collect();
        for ticket in tickets {
            self.answer(ticket, Err(Arc::clone(text)));
        }
    }
}

/// Slots of a record by seat, for comparisons.
pub(super) fn seats(record: &PlanRecord) -> BTreeMap<Seat, &crate::record::SlotRecord> {
    record
        .slots
        .iter()
        .map(|slot| ((slot.role.clone(), slot.index), slot))
        .collect()
}
