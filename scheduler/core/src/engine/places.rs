//! Whether a member that is not bound yet can keep its place: its node may no longer qualify, kube-scheduler may refuse it, and
//! the workload may have become another one than was planned.

use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Plan, Said, Seat};
use super::needs::asks_otherwise;
use crate::ids::NodeName;
use crate::node::{Node, untolerated};
use crate::pod::{PodShape, TurnedDown};
use crate::reason::Reason;
use crate::time::{Millis, Timestamp};
use crate::workload::MemberSource;

/// Time after which a refusal counts beside one that has lasted for [`crate::config::Config::refusal_grace`].
/// A pod's nominated node is asked for alone, and all nodes at once after that.
const REFUSED_BESIDE: Millis = Millis::from_secs(1);

impl Engine {
    /// Looks at each place that is not bound yet: does its node still qualify? Before the barrier
    /// has opened the whole plan is given back; after that the one member loses its place.
    pub(super) fn check_slots(&mut self, gang: &mut Gang, now: Timestamp) {
        let Some(plan) = &gang.plan else { return };
        if !plan.open && self.was_edited(gang, plan) {
            let reason = Reason::MembersMissing {
                present: plan.arrived(),
                needed: gang.total(),
            };
            self.give_back(gang, reason, now, false);
            return;
        }
        let Some(plan) = &gang.plan else { return };
        let open = plan.open;
        let mut bad: Vec<(Seat, NodeName, Arc<str>)> = Vec::new();
        for (seat, slot) in &plan.slots {
            if slot.is_settled() || slot.binding.is_some() {
                continue;
            }
            let Some(node) = &slot.node else { continue };
            let waits = slot.predecessor.is_some();
            let what = self.objection(waits, node, &slot.shape, now).or_else(|| {
                let suspect = open && self.is_place_suspect(gang, node);
                suspect.then(|| Arc::from("has books that were found wrong"))
            });
            if let Some(what) = what {
                bad.push((seat.clone(), node.clone(), what));
            }
        }
        self.note_refusals(gang, now, &mut bad);
        let Some((_, node, what)) = bad.first().cloned() else {
            return;
        };
        if !open {
            self.give_back(gang, Reason::NodeChanged { node, what }, now, false);
            return;
        }
        for (seat, _, _) in bad {
            self.lose_place(gang, &seat);
        }
    }

    fn lose_place(&mut self, gang: &mut Gang, seat: &Seat) {
        let key = gang.slot_key(seat);
        let Some(slot) = gang.plan.as_mut().and_then(|plan| plan.slots.get_mut(seat)) else {
            return;
        };
        let before = slot.clone();
        slot.node = None;
        slot.devices = Vec::new();
        slot.refused_since = None;
        slot.release = super::gang::Step::NotYet;
        slot.doubtful = None;
        if let Some(ticket) = slot.ticket.take() {
            self.answer(ticket, Err(Arc::from(super::members::LOST_SLOT)));
        }
        self.let_go(&key, &before);
        if let Some(slot) = gang.plan.as_mut().and_then(|plan| plan.slots.get_mut(seat)) {
            // Its charge stays on the node it terminates on; the successor goes elsewhere.
            slot.predecessor = None;
        }
        gang.tried_at = None;
    }

    /// Members that kube-scheduler has been turning down on their planned node for too long.
    fn note_refusals(
        &mut self,
        gang: &mut Gang,
        now: Timestamp,
        bad: &mut Vec<(Seat, NodeName, Arc<str>)>,
    ) {
        let durable = gang.is_durable();
        let grace = self.config.refusal_grace;
        let longest = self.config.refused_node_for;
        let Some(plan) = &mut gang.plan else { return };
        let begins = durable && !plan.was_durable;
        let mut refused = Vec::new();
        plan.take_back();
        for (seat, slot) in &mut plan.slots {
            let Some(pod) = slot.pod.as_ref().and_then(|uid| self.pods.get(uid)) else {
                continue;
            };
            if slot.is_settled() || slot.ticket.is_some() || slot.binding.is_some() {
                slot.refused_since = None;
                continue;
            }
            if !durable {
                // Filter sends nobody anywhere. What was said of the node before still holds.
                continue;
            }
            if begins {
                // Its time begins when Filter sends it there.
                slot.refused_since = slot.refused_since.map(|_| now);
            }
            // Our own refusals from before the plan say nothing about the node.
            if slot.said_before.is_some() && slot.said_before != pod.unschedulable {
                slot.said_before = None;
            }
            match pod.turned_down() {
                // Nor does what was said before the pod had this place; the barrier's deadline counts it.
                Some((TurnedDown::OnNodes, said)) if slot.said_before.is_none() => {
                    slot.refused_since.get_or_insert(now);
                    plan.said = Some(Said::of(seat, said));
                }
                // No other node would do: the members wait at the barrier for what is missing. Those
                // that run do not, and a member that they can do without holds no room for it.
                Some((TurnedDown::Everywhere, said)) => {
                    plan.said = Some(Said::of(seat, said));
                    if !plan.open {
                        slot.refused_since = None;
                    } else if slot.said_before.is_none() {
                        slot.refused_since.get_or_insert(now);
                    }
                }
                _ => {}
            }
            if let (Some(since), Some(node)) = (slot.refused_since, &slot.node)
                && !bad.iter().any(|(other, _, _)| other == seat)
            {
                refused.push((since, seat.clone(), node.clone()));
            }
        }
        // Those turned down a little later are likely to stay so: one plan more is enough for all.
        let is_over = |since: Timestamp| now >= since + grace;
        let with_others = !plan.open && refused.iter().any(|(since, _, _)| is_over(*since));
        refused.retain(|(since, _, _)| {
            is_over(*since) || (with_others && now >= *since + grace.min(REFUSED_BESIDE))
        });
        for (since, seat, node) in refused {
            // What was said for a moment only is not held against the node for long.
            if is_over(since) {
                gang.refused_nodes.refused(&node, now, longest);
            } else {
                gang.refused_nodes.avoid(&node, now + grace, now);
            }
            bad.push((seat, node, Arc::from("was refused by kube-scheduler")));
        }
    }

    /// Why a place on `node` cannot be kept, as a text that is the same for the same state.
    fn objection(
        &self,
        waits_for_predecessor: bool,
        name: &NodeName,
        shape: &PodShape,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        let Some(node) = self.ledger.node(name) else {
            return Some(Arc::from("is gone"));
        };
        if let Some(what) = unfit(node, shape) {
            return Some(Arc::from(what));
        }
        if waits_for_predecessor {
            return None;
        }
        let wants_devices = shape.devices(&self.config) > 0;
        let known = self.inventory.get(name).is_some();
        let trusted = self.config.nodes_without_agent
            == crate::config::NodesWithoutAgent::UseAllocatable
            && !known;
        // A scheduler that has just begun has heard no agent yet. What was planned on good reports
        // before is carried on; nothing new is planned there.
        let awaited = !known && now < self.led_at + self.config.report_age_max;
        if wants_devices && !trusted && !awaited {
            let fresh = self
                .inventory
                .is_fresh(name, now, self.config.report_age_max);
            if !fresh
                || !self
                    .inventory
                    .get(name)
                    .is_some_and(|belief| belief.report.sampler_ok)
            {
                return Some(Arc::from("is not reported by its agent"));
            }
        }
        self.ledger
            .is_overcommitted(name, shape, &self.inventory, &self.config, now)
            .then(|| Arc::from("has no longer the room"))
    }

    fn was_edited(&self, gang: &Gang, plan: &Plan) -> bool {
        let Some((workload, roles)) = gang.workload.as_ref().and_then(|workload| {
            let MemberSource::Roles(roles) = &workload.members else {
                return None;
            };
            Some((workload, roles))
        }) else {
            // The pods, or their PodGroup, say that more belong together than was planned; or no pod
            // is left, for which no Gang object is made that could hold the plan.
            let stated = self.minimum_of(gang);
            let grown = stated.is_some_and(|least| least > plan.minimum);
            return grown || (!gang.is_job() && gang.pods.is_empty());
        };
        let total = workload.total().unwrap_or(0);
        let minimum = workload
            .minimum
            .filter(|minimum| *minimum > 0)
            .unwrap_or(total);
        if minimum != plan.minimum {
            return true;
        }
        plan.slots.iter().any(|((name, index), slot)| {
            workload.role(name).is_none_or(|role| {
                *index >= role.count
                    || (slot.pod.is_none()
                        && slot.shape != role.shape
                        && asks_otherwise(&slot.shape, &role.shape))
            })
        }) || (minimum == total
            && roles.iter().any(|role| {
                (0..role.count).any(|index| !plan.slots.contains_key(&(role.name.clone(), index)))
            }))
    }

    /// The barrier's deadline has passed: the next plan keeps away from the nodes on which
    /// kube-scheduler says that a member cannot stand.
    pub(super) fn avoid_refusing_nodes(&mut self, gang: &mut Gang, now: Timestamp) {
        let longest = self.config.refused_node_for;
        for slot in gang.plan.iter().flat_map(|plan| plan.slots.values()) {
            let refused = slot
                .pod
                .as_ref()
                .and_then(|uid| self.pods.get(uid))
                .and_then(|pod| pod.turned_down())
                .is_some_and(|(turned_down, said)| {
                    // What Filter said of an earlier place says nothing about this one.
                    let stale = said.contains("muster:") && slot.said_before.is_some();
                    turned_down == TurnedDown::OnNodes && !stale
                });
            if refused
                && slot.ticket.is_none()
                && !slot.is_settled()
                && let Some(node) = &slot.node
            {
                gang.refused_nodes.refused(node, now, longest);
            }
        }
    }
}

/// Why nothing new may come to the node, whatever its room.
fn unfit(node: &Node, shape: &PodShape) -> Option<&'static str> {
    if node.terminating {
        Some("is being deleted")
    } else if node.unschedulable {
        Some("is cordoned")
    } else if !node.is_available() {
        Some("is not ready")
    } else if node.is_under_pressure() {
        Some("is under pressure")
    } else if untolerated(&node.taints, &shape.tolerations).is_some() {
        Some("has a taint that is not tolerated")
    } else if shape.mismatch(node).is_some() {
        Some("no longer matches the selectors")
    } else {
        None
    }
}
