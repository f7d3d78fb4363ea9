//! What goes wrong between plan and bind, and after it: members that do not come, gangs that stay partial. (Nodes that no longer
//! qualify: `places.rs`.)

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Plan, Slot};
use super::release::carries_marks;
use crate::action::JobChange;
use crate::config::Config;
use crate::planted::{self, Bug};
use crate::pod::{Pod, PodPhase};
use crate::reason::Reason;
use crate::time::{Millis, Timestamp};
use crate::workload::{Hold, Outcome};

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

/// As often as this the quiet of a gang whose pods are still to be made may last, while those of other jobs are made.
const QUIET_TIMES: u64 = 5;

/// Since when nothing has come to a gang that gathers, by which its barrier is given up. Its job's controller makes the pods of one job
/// after the other: while it makes some, those of a job behind them in its queue are still to come.
/// Not where that was so to the end once before, and nobody came: something else may keep its pods from being made.
fn quiet_since(plan: &Plan, may_be_behind: bool, born_at: Timestamp, config: &Config) -> Timestamp {
    let mut slots = plan.slots.values();
    let is_behind = may_be_behind && slots.any(|slot| slot.pod.is_none() && !slot.is_settled());
    if !is_behind {
        return plan.progress_at;
    }
    let quiet_max = config.gather_quiet_max.0;
    let at_most = Millis(quiet_max.saturating_mul(QUIET_TIMES - 1));
    let latest = plan.progress_at + at_most;
    born_at.min(latest).max(plan.progress_at)
}

/// Whether the gang's job may stand in its controller's queue.
fn may_be_behind(gang: &Gang) -> bool {
    gang.is_job() && gang.failures == 0 && gang.hold() != Some(&Hold::Held)
}

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
        if gang.plan.is_some() {
            self.note_confined(gang);
        }
        let Some(plan) = gang.plan.take() else { return };
        for (seat, slot) in &plan.slots {
            if !planted::is(Bug::RoomLeaks) {
                self.let_go(&gang.slot_key(seat), slot);
            }
        }
        gang.tried_at = None;
        gang.failing = None;
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
        self.note_confined(gang);
        self.delete_confined(gang, now);
        self.drop_plan(gang, &Arc::from(super::members::LOST_SLOT));
        gang.reason = Some(reason);
        // A plan that keeps being given back is not made again in a hurry, whatever the cause.
        if rest || gang.failures >= HASTY_FAILURES {
            let factor = 1u64 << gang.failures.min(4);
            gang.not_before = match planted::is(Bug::RestsForEver) {
                true => Timestamp(u64::MAX),
                false => now + Millis(self.config.retry_after.0.saturating_mul(factor)),
            };
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

    /// Deadlines of the barrier and of repair.
    pub(super) fn enforce_deadlines(&mut self, gang: &mut Gang, now: Timestamp) {
        let durable = gang.is_durable();
        if gang.plan.is_none() {
            self.enforce_without_plan(gang, now);
            return;
        }
        gang.partial_since = None;
        let (halted, frozen) = (self.is_halted(), self.is_frozen());
        let is_leaving = self.is_leaving(gang, now);
        let (total, behind) = (gang.total(), may_be_behind(gang));
        let Some(plan) = &mut gang.plan else { return };
        let (arrived, planned, bound) = (plan.arrived(), plan.planned(), plan.bound());
        if !plan.open {
            let quiet_since = quiet_since(plan, behind, self.job_pod_born_at, &self.config);
            let quiet = durable && !halted && now >= quiet_since + self.config.gather_quiet_max;
            let long = plan
                .first_held_at
                .is_some_and(|since| now >= since + self.config.gather_max);
            if long && frozen {
                // The plan is kept; kube-scheduler asks again.
                self.turn_away_frozen(gang);
                return;
            }
            if (quiet || long) && !planted::is(Bug::BarrierWaitsForEver) {
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
            // A plan of the minimum and somewhat more leaves out those for which there was no room.
            let wanted = planned.max(total);
            gang.reason = Some(if bound >= wanted {
                Reason::AllBound
            } else {
                Reason::MinimumBound {
                    missing: wanted.saturating_sub(bound),
                }
            });
            return;
        }
        let minimum = plan.minimum;
        if is_leaving {
            plan.partial_since = Some(now);
        }
        let since = *plan.partial_since.get_or_insert(now);
        if plan.complete {
            gang.reason = Some(Reason::MembersLost { bound, minimum });
        }
        if self.is_partial_too_long(since, now) {
            self.release_whole(gang, Reason::ReleasedWhole { bound, minimum }, now);
        }
    }

    fn is_partial_too_long(&self, since: Timestamp, now: Timestamp) -> bool {
        now >= since + self.config.repair_max
            && !self.is_halted()
            && !planted::is(Bug::PartialForEver)
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
            let bound = settled;
            self.release_whole(gang, Reason::ReleasedWhole { bound, minimum }, now);
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

    /// Lets a gang go that stayed partial, or that is to run no longer where it does: all of it, so that what it
    /// held is of use to others.
    pub(super) fn release_whole(&mut self, gang: &mut Gang, reason: Reason, now: Timestamp) {
        if let Some(plan) = &gang.plan {
            gang.ended_slots = plan.ended();
        }
        self.give_back(gang, reason, now, true);
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
                let behind = may_be_behind(gang);
                let quiet_since = quiet_since(plan, behind, self.job_pod_born_at, &self.config);
                at.push(quiet_since + self.config.gather_quiet_max);
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
            at.extend(self.leaves_until(gang));
            let grace = self.config.gpu_failure_grace;
            let failing = gang.failing.as_ref();
            at.extend(failing.and_then(|failing| failing.due_at(grace, now)));
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
            at.push(gang.releasing_since + self.held_pods_go_in());
        }
        at.extend(gang.refused_nodes.ends());
        let leaving = gang.leaving_since;
        at.extend(leaving.map(|since| since + self.config.repair_max));
        at.push(gang.status_after);
        at.push(gang.goes_until);
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
