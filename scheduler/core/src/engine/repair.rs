//! What goes wrong between plan and bind, and after it: nodes that no longer qualify, members that
//! do not come, gangs that stay partial.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Plan, Said, Seat, Slot};
use super::release::carries_marks;
use crate::action::JobChange;
use crate::ids::NodeName;
use crate::node::{Node, untolerated};
use crate::planted::{self, Bug};
use crate::pod::{Pod, PodPhase, PodShape, TurnedDown};
use crate::reason::Reason;
use crate::time::{Millis, Timestamp};
use crate::workload::{Hold, MemberSource, Outcome};

/// What to do about a gang whose members were still coming when the first had waited for as long as
/// its caller lets it. Constant for a configuration.
fn still_coming(gather_max: Millis) -> Arc<str> {
    let seconds = gather_max.0 / 1000;
    Arc::from(format!(
        "they were still coming after {seconds} s (gang.gatherMax), the longest that the first may wait; \
         let the job's controller make pods faster, or raise extender.bindTimeout, \
         kube-scheduler's httpTimeout for bind with it, and gang.gatherMax to half of that"
    ))
}

/// Plans given back in a row after which the next one is not made at once.
const HASTY_FAILURES: u32 = 3;

/// Time after which a refusal counts beside one that has lasted for [`crate::config::Config::refusal_grace`].
/// A pod's nominated node is asked for alone, and all nodes at once after that.
const REFUSED_BESIDE: Millis = Millis::from_secs(1);

impl Engine {
    /// Whether nothing is left of the gang: no object, no pod.
    pub(super) fn is_gone(&self, gang: &Gang) -> bool {
        gang.workload.is_none() && gang.pods.is_empty()
    }

    /// Gives back everything of a gang that is gone.
    pub(super) fn dissolve(&mut self, gang: &mut Gang) {
        self.drop_plan(gang, &Arc::from("muster: the gang is gone"));
        if let Some(at) = gang.deadline.take() {
            self.timers.remove(&(at, gang.key.clone()));
        }
        self.leave_over(gang);
    }

    /// Answers held Binds, gives reservations back, forgets the plan.
    fn drop_plan(&mut self, gang: &mut Gang, text: &Arc<str>) {
        self.turn_away(gang, text);
        let Some(plan) = gang.plan.take() else { return };
        for (seat, slot) in &plan.slots {
            self.let_go(&gang.slot_key(seat), slot);
        }
        gang.tried_at = None;
        self.view_dirty.insert(gang.key.clone());
    }

    /// Gives the plan back before anything of it is bound.
    pub(super) fn give_back(
        &mut self,
        gang: &mut Gang,
        reason: Reason,
        now: Timestamp,
        rest: bool,
    ) {
        // A pod that we confined to a node by taking its gate off cannot be sent elsewhere.
        let confined: Vec<_> = self
            .alive(gang)
            .filter(|pod| pod.node.is_none() && pod.controlled && !pod.gated)
            .filter(|pod| !gang.is_job() && pod.shape.is_pinned())
            .map(|pod| pod.uid.clone())
            .collect();
        for uid in confined {
            self.delete_pod(&gang.key, &uid, None, now);
        }
        self.drop_plan(gang, &Arc::from(super::members::LOST_SLOT));
        gang.reason = Some(reason);
        // A plan that keeps being given back is not made again in a hurry, whatever the cause.
        if rest || gang.failures >= HASTY_FAILURES {
            let factor = 1u64 << gang.failures.min(4);
            gang.not_before = now + Millis(self.config.retry_after.0.saturating_mul(factor));
        }
        gang.failures = gang.failures.saturating_add(1);
    }

    /// A gang that is not to run: invalid, ended, suspended by its user, or without its job. Returns
    /// whether that is so.
    pub(super) fn stop_if_unwanted(&mut self, gang: &mut Gang, now: Timestamp) -> bool {
        let open = gang.plan.as_ref().is_some_and(|plan| plan.open);
        gang.ended = if gang.is_job() {
            None
        } else {
            self.ending_of(gang)
        };
        if gang.ended.is_some() {
            gang.ended_slots.clear();
        }
        let reason = match &gang.workload {
            _ if gang.ended.is_some() => Some(Some(self.leftovers(gang))),
            None if gang.is_job() => Some(None),
            None => None,
            Some(workload) => match (&workload.invalid, workload.finished, &workload.hold) {
                (_, Some(_), _) => Some(Some(self.leftovers(gang))),
                (_, _, Hold::SuspendedByUser) => Some(Some(Reason::SuspendedByUser)),
                // What runs goes on running by the plan that it was started with.
                (Some(invalid), _, _) if !open => Some(Some(Reason::Invalid(invalid.clone()))),
                _ => None,
            },
        };
        let Some(reason) = reason else { return false };
        if gang.workload.is_none() {
            let own = gang.plan.as_ref().map(|plan| plan.minimum);
            gang.minimum_kept = own.or(gang.minimum_kept);
        }
        self.drop_plan(gang, &Arc::from("muster: the gang is not to run"));
        self.queue.remove(&gang.key);
        gang.recovered = None;
        let ends = !matches!(reason, Some(Reason::Invalid(_)));
        let without_job = gang.workload.is_none() && gang.ended.is_none();
        if !ends || without_job {
            // Nothing will ever complete it; what is bound of it is not left standing. (The pods of a job
            // that is gone go with it, as a rule; those of one that somebody else manages now do not.)
            self.enforce_without_plan(gang, now);
            if gang.releasing {
                self.release(gang, now);
            }
        }
        gang.reason = reason;
        if ends && gang.workload.as_ref().is_some_and(carries_marks) {
            self.change_job(gang, JobChange::Strip, now);
        }
        true
    }

    /// A gang whose Gang object cannot be read: nothing new is promised to it, and nothing of what an
    /// earlier process promised is touched. What this one has begun keeps its deadlines: Binds are not
    /// held for ever, and nothing stays bound in part.
    pub(super) fn stand_still(&mut self, gang: &mut Gang, why: Arc<str>, now: Timestamp) {
        let reason = Reason::UnreadableRecord(why);
        self.queue.remove(&gang.key);
        if gang.plan.as_ref().is_some_and(|plan| !plan.open) {
            self.give_back(gang, reason.clone(), now, true);
        }
        if gang.plan.is_some() {
            self.claim_members(gang, now);
            self.enforce_deadlines(gang, now);
        }
        if gang.releasing {
            self.go_on_releasing(gang, now);
        }
        let refusal = gang.refusal();
        self.turn_away(gang, &refusal);
        gang.reason = Some(reason);
    }

    /// How a gang that is known by its pods has ended, once all of them have. Pods that come after
    /// that are another run: a gang anew, not late members of this one.
    fn ending_of(&self, gang: &Gang) -> Option<Outcome> {
        let mut pods = gang
            .pods
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .peekable();
        pods.peek()?;
        let mut outcome = Outcome::Succeeded;
        for pod in pods {
            match pod.phase {
                PodPhase::Succeeded => {}
                PodPhase::Failed => outcome = Outcome::Failed,
                PodPhase::Pending | PodPhase::Running => return None,
            }
        }
        (!self.awaits_lost(gang)).then_some(outcome)
    }

    /// Whether a member was lost, or failed, without which the gang is not whole: others have ended
    /// well, and it may be on its way back. Where none has, whoever comes back is a gang anew.
    fn awaits_lost(&self, gang: &Gang) -> bool {
        let Some(plan) = gang.plan.as_ref().filter(|plan| plan.open) else {
            return false;
        };
        let has_ended = |slot: &&Slot| {
            let pod = slot.pod.as_ref().and_then(|uid| self.pods.get(uid));
            slot.done || pod.is_some_and(|pod| pod.phase == PodPhase::Succeeded)
        };
        let ended = plan.slots.values().filter(has_ended).count();
        u32::try_from(ended).is_ok_and(|ended| ended > 0 && ended < plan.minimum)
    }

    fn leftovers(&self, gang: &Gang) -> Reason {
        let running = gang
            .pods
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .filter(|pod| pod.holds_room());
        let (pods, devices) = running.fold((0u32, 0u64), |(pods, devices), pod| {
            let held = pod.shape.devices(&self.config);
            (pods.saturating_add(1), devices.saturating_add(held))
        });
        Reason::Finished {
            leftover_pods: pods,
            leftover_devices: devices,
        }
    }

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
            if let Some(node) = &slot.node
                && let Some(what) =
                    self.objection(slot.predecessor.is_some(), node, &slot.shape, now)
            {
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
        let until = now + self.config.refused_node_for;
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
            let until = if is_over(since) { until } else { now + grace };
            gang.refused_nodes.insert(node.clone(), until);
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
                *index >= role.count || (slot.pod.is_none() && slot.shape != role.shape)
            })
        }) || (minimum == total
            && roles.iter().any(|role| {
                (0..role.count).any(|index| !plan.slots.contains_key(&(role.name.clone(), index)))
            }))
    }

    /// Deadlines of the barrier and of repair.
    pub(super) fn enforce_deadlines(&mut self, gang: &mut Gang, now: Timestamp) {
        let durable = gang.is_durable();
        if gang.plan.is_none() {
            self.enforce_without_plan(gang, now);
            return;
        }
        gang.partial_since = None;
        let Some(plan) = &mut gang.plan else { return };
        let (arrived, planned, bound) = (plan.arrived(), plan.planned(), plan.bound());
        if !plan.open {
            let quiet = durable
                && self.away_since.is_none()
                && now >= plan.progress_at + self.config.gather_quiet_max;
            let long = plan
                .first_held_at
                .is_some_and(|since| now >= since + self.config.gather_max);
            if quiet || long {
                let too_large = (!quiet).then(|| still_coming(self.config.gather_max));
                let said = plan.said_text().or(too_large);
                self.avoid_refusing_nodes(gang, now);
                self.give_back(
                    gang,
                    Reason::BarrierTimeout {
                        arrived,
                        planned,
                        said,
                    },
                    now,
                    true,
                );
            }
            return;
        }
        // A member that has ended well counts as bound: a gang is completing, and let be, as long as
        // each of the others runs or has ended too. One that is lost is missing all the same.
        if bound >= plan.minimum {
            plan.complete = true;
            plan.partial_since = None;
            gang.failures = 0;
            gang.reason = Some(if bound >= planned {
                Reason::AllBound
            } else {
                Reason::MinimumBound {
                    missing: planned.saturating_sub(bound),
                }
            });
            return;
        }
        let minimum = plan.minimum;
        let since = *plan.partial_since.get_or_insert(now);
        if plan.complete {
            gang.reason = Some(Reason::MembersLost { bound, minimum });
        }
        if self.is_partial_too_long(since, now) {
            self.release_whole(gang, bound, minimum, now);
        }
    }

    fn is_partial_too_long(&self, since: Timestamp, now: Timestamp) -> bool {
        now >= since + self.config.repair_max
            && !self.is_away()
            && !planted::is(Bug::PartialForEver)
    }

    /// The barrier's deadline has passed: the next plan keeps away from the nodes on which
    /// kube-scheduler says that a member cannot stand.
    fn avoid_refusing_nodes(&mut self, gang: &mut Gang, now: Timestamp) {
        let until = now + self.config.refused_node_for;
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
                gang.refused_nodes.insert(node.clone(), until);
            }
        }
    }

    /// A gang of which something is bound and that has no plan: a release that was cut short, or a
    /// Gang object that was lost. It is completed by a new plan or released, in the same time.
    fn enforce_without_plan(&mut self, gang: &mut Gang, now: Timestamp) {
        let count = |pods: usize| u32::try_from(pods).unwrap_or(u32::MAX);
        let bound = count(self.bound_alive(gang).count());
        let plan_of = |pod: &Pod| pod.record.as_ref().map(|record| record.plan.clone());
        let plans: BTreeSet<_> = self.bound_alive(gang).filter_map(plan_of).collect();
        // Of the same run: what has ended of an earlier one under the same label says nothing.
        let ended = gang
            .pods
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .filter(|pod| pod.phase == PodPhase::Succeeded)
            .filter(|pod| plan_of(pod).is_some_and(|plan| plans.contains(&plan)));
        let settled = bound.saturating_add(count(ended.count()));
        let minimum = self
            .minimum_of(gang)
            .or(gang.minimum_kept.filter(|_| gang.workload.is_none()))
            .unwrap_or_else(|| self.all_of(gang, settled));
        if bound == 0 || settled >= minimum || gang.releasing {
            gang.partial_since = None;
            return;
        }
        let since = *gang.partial_since.get_or_insert(now);
        if self.is_partial_too_long(since, now) {
            self.release_whole(gang, settled, minimum, now);
        }
    }

    /// Size of a gang for which nothing states one: all the pods it has. What somebody else has bound
    /// was never promised a whole.
    fn all_of(&self, gang: &Gang, settled: u32) -> u32 {
        if self.bound_alive(gang).all(|pod| pod.record.is_none()) {
            return 0;
        }
        let waiting = self.alive(gang).filter(|pod| pod.node.is_none()).count();
        settled.saturating_add(u32::try_from(waiting).unwrap_or(u32::MAX))
    }

    /// Lets a gang go that stayed partial: all of it, so that what it held is of use to others.
    fn release_whole(&mut self, gang: &mut Gang, bound: u32, minimum: u32, now: Timestamp) {
        if let Some(plan) = &gang.plan {
            gang.ended_slots = plan.ended();
        }
        self.give_back(gang, Reason::ReleasedWhole { bound, minimum }, now, true);
        gang.releasing = true;
        gang.releasing_since = now;
        gang.partial_since = None;
        if self.loses_pods_when_held(gang) {
            // One PATCH: the job's controller deletes its pods and makes them again when released.
            gang.job_changed_at = None;
            self.change_job(gang, JobChange::Hold, now);
        } else {
            self.go_on_releasing(gang, now);
        }
    }

    /// When the gang wants to be looked at again.
    pub(super) fn set_timer(&mut self, gang: &mut Gang, now: Timestamp) {
        let mut at: Vec<Timestamp> = Vec::new();
        if let Some(plan) = &gang.plan {
            at.push(self.led_at + self.config.report_age_max);
            if !plan.open {
                at.push(plan.progress_at + self.config.gather_quiet_max);
                at.extend(
                    plan.first_held_at
                        .map(|since| since + self.config.gather_max),
                );
            }
            at.extend(
                plan.partial_since
                    .map(|since| since + self.config.repair_max),
            );
            at.extend(plan.slots.values().map(|slot| slot.release_after));
            let given_up = |slot: &Slot| slot.given_up_at(self.config.repair_max);
            at.extend(plan.slots.values().filter_map(given_up));
            at.extend(
                plan.slots
                    .values()
                    .filter_map(|slot| slot.refused_since)
                    .map(|since| since + self.config.refusal_grace),
            );
        } else {
            at.push(gang.not_before);
            at.push(gang.last_pod_at + self.config.settle);
            at.extend(
                gang.partial_since
                    .map(|since| since + self.config.repair_max),
            );
        }
        if gang.releasing {
            at.push(gang.releasing_since + self.config.repair_max);
        }
        at.extend(gang.refused_nodes.values().copied());
        at.push(gang.status_after);
        at.extend((gang.job_again_at < Timestamp(u64::MAX)).then_some(gang.job_again_at));
        at.push(gang.blocked_until);
        let next = at.into_iter().filter(|at| *at > now).min();
        if next == gang.deadline {
            return;
        }
        if let Some(before) = gang.deadline.take() {
            self.timers.remove(&(before, gang.key.clone()));
        }
        if let Some(next) = next {
            self.timers.insert((next, gang.key.clone()));
            gang.deadline = Some(next);
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
