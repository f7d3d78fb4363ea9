//! The bind barrier: no member is bound before kube-scheduler has accepted all of them on their
//! planned nodes. A Bind that comes early is held; when the last one is there, all bind at once.
//!
//! A held Bind costs kube-scheduler a goroutine and nothing else. It is answered `Ok` only after
//! the binding is confirmed: an `Ok` without a binding would lose the pod for ever.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gang::Gang;
use super::members::LOST_SLOT;
use super::{Engine, LooseBind, Purpose};
use crate::action::WriteKind;
use crate::event::{BindAsked, Ticket, WriteOutcome};
use crate::ids::{GangKey, PodUid, RoleName};
use crate::ledger::SlotKey;
use crate::record::PlanRecord;
use crate::time::Timestamp;
use crate::view::NO_ROOM;

use super::gang::Seat;

/// Text for a Bind that a later one of the same pod replaces.
const SUPERSEDED: &str = "muster: another Bind of this pod has come";
/// Text for a Bind of a pod that has not been seen.
const NOT_SEEN: &str = "muster: this pod is not known";
/// Text for a Bind of a pod that is bound to another node.
const BOUND_ELSEWHERE: &str = "muster: this pod is bound to another node";
/// Text for a Bind whose Binding was refused or whose outcome is not known.
const BIND_FAILED: &str = "muster: the binding was refused or is not confirmed";

impl Engine {
    /// Finds the pod of each Bind that has come since the last round.
    pub(super) fn settle_strays(&mut self, now: Timestamp) {
        let strays: Vec<(Ticket, Timestamp)> = self
            .strays
            .iter()
            .map(|(ticket, until)| (*ticket, *until))
            .collect();
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
            if let Some(node) = &pod.node {
                let same = *node == asked.node;
                self.answer(
                    ticket,
                    if same {
                        Ok(())
                    } else {
                        Err(Arc::from(BOUND_ELSEWHERE))
                    },
                );
                continue;
            }
            self.strays.remove(&ticket);
            match pod
                .membership
                .as_ref()
                .map(|membership| membership.gang.clone())
            {
                None => self.bind_loose(&asked),
                Some(key) => {
                    self.advance(&key, now);
                    self.dirty.insert(key.clone());
                    self.arrive(&key, &asked, now);
                }
            }
        }
    }

    /// A Bind of a gang's member has come.
    fn arrive(&mut self, key: &GangKey, asked: &BindAsked, now: Timestamp) {
        let answer = self
            .with_gang(key, |engine, gang| {
                let durable = gang.is_durable();
                let refusal = gang.refusal();
                let Some(plan) = gang.plan.as_mut() else {
                    return Some((asked.ticket, Err(refusal)));
                };
                let Some(slot) = plan
                    .slots
                    .values_mut()
                    .find(|slot| slot.pod.as_ref() == Some(&asked.pod))
                else {
                    return Some((asked.ticket, Err(refusal)));
                };
                if slot.node.as_ref() != Some(&asked.node) || !durable {
                    // Never "fix up" a Bind to another node: refuse, and let it be scheduled again.
                    return Some((asked.ticket, Err(refusal)));
                }
                let before = slot.ticket.replace(asked.ticket);
                slot.refused_since = None;
                plan.progress_at = now;
                plan.first_held_at.get_or_insert(now);
                let _ = engine;
                before
                    .filter(|before| *before != asked.ticket)
                    .map(|before| (before, Err(Arc::from(SUPERSEDED))))
            })
            .unwrap_or_else(|| Some((asked.ticket, Err(Arc::from(LOST_SLOT)))));
        if let Some((ticket, answer)) = answer {
            self.answer(ticket, answer);
        }
    }

    /// Binds a pod of no gang, if there is room beside what is reserved.
    fn bind_loose(&mut self, asked: &BindAsked) {
        let Some(pod) = self.pods.get(&asked.pod).cloned() else {
            return;
        };
        if let Some(loose) = self.loose.get_mut(&asked.pod) {
            // The same pod again while its Binding is on its way: the newer Bind gets the answer.
            if let Some(before) = loose.ticket.replace(asked.ticket) {
                self.answer(before, Err(Arc::from(SUPERSEDED)));
            }
            return;
        }
        if !self.view.has_room(asked.node.as_str(), &pod.shape.requests) {
            self.answer(asked.ticket, Err(Arc::from(NO_ROOM)));
            return;
        }
        let key = GangKey::new(pod.namespace.as_str(), pod.uid.as_str());
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
            },
        );
        let plan = self.new_plan_id();
        let what = WriteKind::Bind {
            pod: Self::target(&pod),
            node: asked.node.clone(),
            plan: plan.clone(),
            devices: Vec::new(),
        };
        self.write(
            &key,
            Some(plan),
            Purpose::BindLoose(asked.pod.clone()),
            what,
        );
    }

    pub(super) fn loose_bind_done(&mut self, pod: &PodUid, outcome: WriteOutcome) {
        let Some(loose) = self.loose.remove(pod) else {
            return;
        };
        let done = matches!(outcome, WriteOutcome::Done(_));
        if let Some(ticket) = loose.ticket {
            self.answer(
                ticket,
                if done {
                    Ok(())
                } else {
                    Err(Arc::from(BIND_FAILED))
                },
            );
        }
        let unknown = matches!(outcome, WriteOutcome::Unknown(_));
        let seen = self.pods.get(pod).is_some_and(|pod| pod.node.is_some());
        if (done || unknown) && !seen && self.pods.contains_key(pod) {
            // The reservation stays until the watch shows the pod bound, or gone.
            self.loose.insert(
                pod.clone(),
                LooseBind {
                    ticket: None,
                    slot: loose.slot,
                },
            );
        } else if let Some(node) = self.ledger.release(&loose.slot) {
            self.touch_node(&node);
        }
    }

    /// Opens the barrier when every member is there, and binds whoever has come.
    pub(super) fn pass_barrier(&mut self, gang: &mut Gang, now: Timestamp) {
        if !gang.is_durable() {
            return;
        }
        let Some(mut plan) = gang.plan.take() else {
            return;
        };
        if !plan.open
            && plan
                .slots
                .values()
                .all(|slot| slot.is_settled() || slot.ticket.is_some())
        {
            plan.open = true;
            plan.partial_since = Some(now);
        }
        if plan.open {
            let id = plan.id.clone();
            for (seat, slot) in &mut plan.slots {
                if slot.bound {
                    if let Some(ticket) = slot.ticket.take() {
                        self.answer(ticket, Ok(()));
                    }
                    continue;
                }
                let (Some(_), None, Some(node)) = (slot.ticket, &slot.binding, &slot.node) else {
                    continue;
                };
                let Some(pod) = slot.pod.as_ref().and_then(|uid| self.pods.get(uid)) else {
                    continue;
                };
                let what = WriteKind::Bind {
                    pod: Self::target(pod),
                    node: node.clone(),
                    plan: id.clone(),
                    devices: slot.devices.clone(),
                };
                let purpose = Purpose::Bind(gang.key.clone(), seat.clone(), pod.uid.clone());
                slot.binding = Some(self.write(&gang.key, Some(id.clone()), purpose, what));
            }
        }
        gang.plan = Some(plan);
    }

    pub(super) fn bind_done(
        &mut self,
        key: &GangKey,
        seat: &Seat,
        pod: &PodUid,
        outcome: WriteOutcome,
        now: Timestamp,
    ) {
        self.dirty.insert(key.clone());
        let retry = now + self.config.refusal_grace;
        let Some(slot) = self
            .gangs
            .get_mut(key)
            .and_then(|gang| gang.plan.as_mut())
            .and_then(|plan| plan.slots.get_mut(seat))
            .filter(|slot| slot.pod.as_ref() == Some(pod))
        else {
            return;
        };
        slot.binding = None;
        let ticket = slot.ticket.take();
        let done = matches!(outcome, WriteOutcome::Done(_));
        if done {
            slot.bound = true;
        }
        if let Some(ticket) = ticket {
            self.answer(
                ticket,
                if done {
                    Ok(())
                } else {
                    Err(Arc::from(BIND_FAILED))
                },
            );
        }
        if done && let Some(plan) = self.gangs.get_mut(key).and_then(|gang| gang.plan.as_mut()) {
            plan.progress_at = now;
            if plan.bound() >= plan.minimum {
                plan.complete = true;
                plan.partial_since = None;
            }
        }
        if let WriteOutcome::Refused(said) = outcome
            && let Some(gang) = self.gangs.get_mut(key)
        {
            gang.blocked_until = gang.blocked_until.max(retry);
            if let Some(plan) = &mut gang.plan {
                plan.said = Some(said);
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
