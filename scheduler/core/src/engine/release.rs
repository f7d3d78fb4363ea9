//! Releasing: what makes a planned gang's pods come, and what takes our marks off again.
//!
//! A job that we hold is unsuspended by one PATCH, with the planned nodes in its templates. Pods
//! that we gated are let go by one PATCH each. Pods that were there ungated, and were refused
//! before the plan, are woken once. Nothing is released before the plan is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::gang::{Gang, Plan, Seat, Step};
use super::{Engine, Purpose};
use crate::action::{JobChange, JobTarget, WriteKind};
use crate::event::{WriteId, WriteOutcome};
use crate::ids::{GangKey, NodeName, PodUid, RoleName};
use crate::pod::{Mismatch, Pod};
use crate::reason::Reason;
use crate::time::{Millis, Timestamp};
use crate::workload::{Hold, MemberSource, Shown, Workload};

/// How long after a write was refused it is tried again.
const REFUSED_RETRY: Millis = Millis(30_000);

/// How long after the release of a pod failed it is tried again.
const RELEASE_RETRY: Millis = Millis(1000);

impl Engine {
    /// Releases what the plan says, as far as it is durable; holds a job whose plan is no more.
    pub(super) fn release(&mut self, gang: &mut Gang, now: Timestamp) {
        if gang.is_job() {
            self.steer_job(gang, now);
        }
        if gang.releasing {
            self.go_on_releasing(gang, now);
        }
        let durable = gang.is_durable();
        if let Some(plan) = &mut gang.plan {
            if durable && !plan.was_durable {
                // Filter refused its members while it was not: they are woken again.
                for slot in plan.slots.values_mut() {
                    slot.woken_from = None;
                }
            }
            plan.was_durable = durable;
        }
        if durable {
            self.release_pods(gang, now);
        }
    }

    /// A gang that was released as a whole: whatever of it is still bound goes, however often the
    /// write for it has failed. A job that we hold loses its pods by being held again; where its
    /// controller does not take them away in time, they are deleted like others.
    pub(super) fn go_on_releasing(&mut self, gang: &mut Gang, now: Timestamp) {
        let bound: Vec<PodUid> = self.bound_alive(gang).map(|pod| pod.uid.clone()).collect();
        if bound.is_empty() {
            gang.releasing = false;
            return;
        }
        let in_time = now < gang.releasing_since + self.held_pods_go_in() || self.is_halted();
        // A pause after another write, a Binding that was refused for example, is none for this. One
        // after a deletion that failed is kept for each pod.
        if self.loses_pods_when_held(gang) && in_time {
            return;
        }
        for uid in bound {
            self.delete_pod(&gang.key, &uid, None, now);
        }
    }

    /// Whether holding the job is what takes its pods away.
    pub(super) fn loses_pods_when_held(&self, gang: &Gang) -> bool {
        gang.is_job() && matches!(gang.hold(), Some(Hold::Held | Hold::Released(_)))
    }

    /// How long a job's controller has to take the pods of a gang that was released whole: a third of the time for which a gang may
    /// be bound in part, for until then it still is.
    pub(super) fn held_pods_go_in(&self) -> Millis {
        Millis(self.config.repair_max.0 / 3)
    }

    /// Members that are bound and have not ended.
    pub(super) fn bound_alive<'a>(&'a self, gang: &'a Gang) -> impl Iterator<Item = &'a Pod> {
        gang.pods
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .filter(|pod| pod.node.is_some() && pod.is_alive())
    }

    /// What the job should be, given its plan.
    fn steer_job(&mut self, gang: &mut Gang, now: Timestamp) {
        let Some(workload) = &gang.workload else {
            return;
        };
        let durable = gang.is_durable();
        let change = match (&gang.plan, &workload.hold) {
            // It was held, and we began anew before the plan was taken back: its controller takes what pods it has.
            (Some(plan), Hold::Held) if !plan.open && self.is_left(gang, now) => None,
            (Some(plan), Hold::Held) if durable => Some(JobChange::Release {
                plan: plan.id.clone(),
                pins: self.pins(plan),
            }),
            (Some(plan), Hold::Released(id)) if durable => {
                let pins = self.pins(plan);
                // Only a pod that is still to be born needs the template. Whoever edits it while
                // all run, for example a GitOps tool, is let be.
                let needed = plan.slots.values().any(|slot| !slot.is_settled());
                let differs = *id != plan.id || !is_pinned_to(workload, &pins);
                (needed && differs).then(|| JobChange::Repin {
                    plan: plan.id.clone(),
                    pins,
                })
            }
            (None, Hold::Released(_)) if gang.recovered.is_none() => {
                let bound = self.bound_alive(gang).next().is_some();
                (gang.releasing || !bound).then_some(JobChange::Hold)
            }
            (_, Hold::Free) => has_pins(workload).then_some(JobChange::Strip),
            _ => None,
        };
        let starts = |change: &JobChange| {
            matches!(change, JobChange::Release { .. } | JobChange::Repin { .. })
        };
        if let Some(change) = change.filter(|change| !(starts(change) && self.is_suspect(gang))) {
            self.change_job(gang, change, now);
        }
    }

    /// Lets the job's own status say who holds it. As a rule it does already: an admission policy
    /// sees to that when the job's controller writes that it is suspended. But nothing makes the
    /// controller write when a suspended job changes hands, from its user to us or back. Tried once
    /// for each version of the job.
    pub(super) fn show_hold(&mut self, gang: &mut Gang, now: Timestamp) {
        let wrong = gang.workload.as_ref().is_some_and(|workload| {
            workload.finished.is_none()
                && gang.job_shown_at.as_ref() != Some(&workload.resource_version)
                && match (&workload.hold, workload.shown) {
                    // With a plan it is about to be released.
                    (Hold::Held, Shown::Suspended) => gang.plan.is_none(),
                    (Hold::SuspendedByUser, Shown::Queued) => true,
                    _ => false,
                }
        });
        if wrong {
            self.change_job(gang, JobChange::Show, now);
        }
    }

    /// Nodes by role; a role with more of them than the template should carry is not confined.
    fn pins(&self, plan: &Plan) -> BTreeMap<RoleName, Vec<NodeName>> {
        let most = self.config.template_nodes_max;
        let mut pins: BTreeMap<&RoleName, BTreeSet<&NodeName>> = BTreeMap::new();
        for ((role, _), slot) in &plan.slots {
            let nodes = pins.entry(role).or_default();
            // One more than that tells that there are too many.
            if nodes.len() <= most {
                nodes.extend(&slot.node);
            }
        }
        let confined = |nodes: BTreeSet<&NodeName>| match nodes.len() {
            count if count > most => Vec::new(),
            _ => nodes.into_iter().cloned().collect(),
        };
        pins.into_iter()
            .map(|(role, nodes)| (role.clone(), confined(nodes)))
            .collect()
    }

    /// Sends a change of the job, unless one is on its way or the last one has not been seen yet. Not while all
    /// is frozen.
    pub(super) fn change_job(&mut self, gang: &mut Gang, change: JobChange, now: Timestamp) {
        if self.is_frozen() {
            return;
        }
        let Some(workload) = &gang.workload else {
            return;
        };
        if gang.job_write.is_some()
            || (gang.job_changed_at.as_ref() == Some(&workload.resource_version)
                && now < gang.job_again_at)
            || now < gang.blocked_until
        {
            return;
        }
        let job = JobTarget {
            kind: workload.kind,
            namespace: workload.key.namespace.clone(),
            name: Arc::clone(&workload.name),
            uid: Arc::clone(&workload.key.uid),
            resource_version: workload.resource_version.clone(),
        };
        let version = Some(workload.resource_version.clone());
        let purpose = if change == JobChange::Show {
            gang.job_shown_at.clone_from(&version);
            Purpose::ShowJob(gang.key.clone())
        } else {
            Purpose::ChangeJob(gang.key.clone())
        };
        gang.job_changed_at = version;
        gang.job_again_at = Timestamp(u64::MAX);
        let plan = gang.plan.as_ref().map(|plan| plan.id.clone());
        gang.job_write = Some(self.write(
            &gang.key,
            plan,
            purpose,
            WriteKind::ChangeJob { job, change },
        ));
    }

    pub(super) fn job_changed(
        &mut self,
        key: &GangKey,
        id: WriteId,
        outcome: WriteOutcome,
        now: Timestamp,
    ) {
        self.dirty.insert(key.clone());
        let Some(gang) = self.gangs.get_mut(key) else {
            return;
        };
        if gang.job_write != Some(id) {
            return;
        }
        gang.job_write = None;
        gang.job_again_at = now + REFUSED_RETRY;
        match outcome {
            WriteOutcome::Done(_) => {
                if let Some(plan) = &mut gang.plan {
                    plan.progress_at = now;
                }
            }
            // The watch brings the job as it is now; until then, or for a good while, nothing is
            // repeated.
            WriteOutcome::Conflict(_) | WriteOutcome::Gone => {}
            WriteOutcome::Unknown(_) | WriteOutcome::BindingUnknown { .. } => {
                gang.job_changed_at = None;
                gang.blocked_until = now + self.config.retry_after;
            }
            WriteOutcome::Refused(said) => {
                gang.job_changed_at = None;
                gang.blocked_until = now + REFUSED_RETRY;
                gang.reason = Some(Reason::WriteRefused {
                    what: Arc::from("changing the job"),
                    said,
                });
            }
        }
    }

    /// What a status shows is a decoration: its failure is no reason to wait, and none to be told.
    pub(super) fn job_shown(
        &mut self,
        key: &GangKey,
        id: WriteId,
        outcome: &WriteOutcome,
        now: Timestamp,
    ) {
        self.dirty.insert(key.clone());
        let Some(gang) = self.gangs.get_mut(key) else {
            return;
        };
        if gang.job_write != Some(id) {
            return;
        }
        gang.job_write = None;
        gang.job_again_at = now + REFUSED_RETRY;
        if !matches!(outcome, WriteOutcome::Done(_)) {
            gang.job_changed_at = None;
        }
    }

    /// Takes our gate off pods, wakes those that were refused before, and deletes those that are
    /// confined to nodes which are no longer theirs.
    fn release_pods(&mut self, gang: &mut Gang, now: Timestamp) {
        if now < gang.blocked_until || self.why_frozen(gang).is_some() {
            return;
        }
        let Some(mut plan) = gang.plan.take() else {
            return;
        };
        let held_job = matches!(gang.hold(), Some(Hold::Held | Hold::Released(_)));
        let id = plan.id.clone();
        // What the template says now is what a deleted pod's successor is born with.
        let template_is_right = gang.workload.as_ref().is_none_or(|workload| {
            if held_job {
                is_pinned_to(workload, &self.pins(&plan))
            } else {
                !has_pins(workload)
            }
        });
        for (seat, slot) in &mut plan.slots {
            let refusal = slot
                .pod
                .as_ref()
                .and_then(|uid| self.pods.get(uid))
                .and_then(|pod| pod.unschedulable.as_ref())
                .filter(|said| said.contains("muster:"));
            // One whose predecessor still holds the room is refused until that is gone, however often it is woken.
            let refused = refusal.is_some()
                && refusal != slot.woken_from.as_ref()
                && slot.predecessor.is_none();
            let due = slot.release == Step::NotYet
                || (slot.release == Step::Done && refused && slot.ticket.is_none());
            if slot.is_settled() || !due || now < slot.release_after {
                continue;
            }
            let refusal = refusal.cloned();
            let Some(node) = slot.node.clone() else {
                continue;
            };
            let Some(pod) = slot.pod.as_ref().and_then(|uid| self.pods.get(uid)) else {
                continue;
            };
            let target = Self::target(pod);
            let strayed = self
                .ledger
                .node(&node)
                .is_some_and(|node| pod.shape.mismatch(node) == Some(Mismatch::Selector));
            let purpose = Purpose::ReleasePod(gang.key.clone(), seat.clone());
            if strayed && pod.controlled && pod.shape.is_pinned() {
                // It was born confined to other nodes, which cannot be changed any more.
                if !template_is_right {
                    continue;
                }
                let uid = pod.uid.clone();
                self.delete_pod(&gang.key, &uid, Some(id.clone()), now);
            } else if pod.gated {
                let pin = pod.controlled.then_some(node);
                let what = WriteKind::ReleasePod {
                    pod: target,
                    pin,
                    plain: !pod.gated_by_others && pod.shape.required_affinity.is_none(),
                };
                slot.release =
                    Step::InFlight(self.write(&gang.key, Some(id.clone()), purpose, what));
            } else if refused {
                slot.woken_from = refusal;
                let what = WriteKind::WakePod {
                    pod: target,
                    plan: id.clone(),
                };
                slot.release =
                    Step::InFlight(self.write(&gang.key, Some(id.clone()), purpose, what));
            } else {
                slot.release = Step::Done;
            }
        }
        gang.plan = Some(plan);
    }

    pub(super) fn pod_released(
        &mut self,
        key: &GangKey,
        seat: &Seat,
        id: WriteId,
        outcome: &WriteOutcome,
        now: Timestamp,
    ) {
        self.dirty.insert(key.clone());
        let slot = self
            .gangs
            .get_mut(key)
            .and_then(|gang| gang.plan.as_mut())
            .and_then(|plan| plan.slots.get_mut(seat))
            .filter(|slot| slot.release == Step::InFlight(id));
        let Some(slot) = slot else { return };
        let pause = match outcome {
            WriteOutcome::Done(_) | WriteOutcome::Gone => {
                slot.release = Step::Done;
                return;
            }
            WriteOutcome::Conflict(_)
            | WriteOutcome::Unknown(_)
            | WriteOutcome::BindingUnknown { .. } => RELEASE_RETRY,
            // Whatever refuses it may stop doing so. Nobody else would ever let the pod go.
            WriteOutcome::Refused(_) => REFUSED_RETRY,
        };
        slot.release = Step::NotYet;
        slot.woken_from = None;
        slot.release_after = now + pause;
    }
}

fn has_pins(workload: &Workload) -> bool {
    match &workload.members {
        MemberSource::Roles(roles) => roles
            .iter()
            .any(|role| role.pinned.as_ref().is_some_and(|nodes| !nodes.is_empty())),
        MemberSource::Pods => false,
    }
}

/// Whether anything of ours is on the job: nodes in its templates, or the mark of a release.
pub(super) fn carries_marks(workload: &Workload) -> bool {
    has_pins(workload) || matches!(workload.hold, Hold::Released(_))
}

fn is_pinned_to(workload: &Workload, pins: &BTreeMap<RoleName, Vec<NodeName>>) -> bool {
    let MemberSource::Roles(roles) = &workload.members else {
        return true;
    };
    roles.iter().all(|role| {
        let wanted = pins.get(&role.name).map_or(&[][..], Vec::as_slice);
        role.pinned.as_deref().unwrap_or(&[]) == wanted
    })
}
