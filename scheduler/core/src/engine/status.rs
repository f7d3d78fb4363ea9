//! The Gang object: made once, written when something changed that a person or a restart needs.
//! The write that first carries a plan is the commit: nothing is released before it is confirmed.

use std::sync::Arc;

use super::gang::{Gang, Record, Seat};
use super::intake::take_record;
use super::{Engine, Purpose};
use crate::action::{Action, Announcement, Subject, WriteKind};
use crate::event::{WriteId, WriteOutcome};
use crate::ids::{Epoch, GangKey, Namespace, NodeName, PlanId};
use crate::reason::Reason;
use crate::record::{GangStatus, Phase, SlotRecord};
use crate::settings;
use crate::time::{Millis, Timestamp};
use crate::workload::{Hold, Outcome, WorkloadKind};

/// Pause after a write of a Gang object of which nothing is known; doubles with each in a row, up
/// to sixteen times this.
const STATUS_PAUSE: Millis = Millis(500);

/// A Gang object that is deleted sooner than this after it was the last time is made again after a pause: one second, then
/// twice as long each time, half a minute at most.
const RECORD_STAYS: Millis = Millis::from_secs(60);

/// Reason of the Event about keys that nobody reads.
const IGNORED: &str = "UnknownKey";

/// Reason of the Event about a member on a GPU that has failed.
const GPU_FAILED: &str = "GpuFailed";

impl Engine {
    /// Phase that the gang is in.
    fn phase(gang: &Gang) -> Phase {
        match gang.ended {
            Some(Outcome::Succeeded) => return Phase::Succeeded,
            Some(Outcome::Failed) => return Phase::Failed,
            None => {}
        }
        if let Some(workload) = &gang.workload {
            match workload.finished {
                Some(Outcome::Succeeded) => return Phase::Succeeded,
                Some(Outcome::Failed) => return Phase::Failed,
                None => {}
            }
            if workload.hold == Hold::SuspendedByUser {
                return Phase::Suspended;
            }
        }
        match &gang.plan {
            None => Phase::Waiting,
            Some(plan) if plan.open && plan.bound() >= plan.minimum => Phase::Running,
            Some(plan) if plan.complete => Phase::Repairing,
            Some(_) => Phase::Starting,
        }
    }

    pub(super) fn status(&self, gang: &Gang) -> GangStatus {
        let phase = Self::phase(gang);
        let reason = match (phase, &gang.plan) {
            (Phase::Starting, Some(_)) if self.why_frozen(gang).is_some() => self.why_frozen(gang),
            (Phase::Starting, Some(plan)) => {
                // How many have arrived changes with each of them: it is not worth a write.
                Some(Reason::Gathering {
                    planned: plan.planned(),
                    said: plan.said_text(),
                })
            }
            _ => gang.reason.clone(),
        };
        let names = |uid: &crate::ids::PodUid| self.pods.get(uid).map(|pod| Arc::clone(&pod.name));
        let total = gang.total();
        GangStatus {
            phase,
            reason,
            plan: gang.plan.as_ref().map(|plan| plan.record(names)),
            bound: match &gang.plan {
                Some(plan) => plan.bound(),
                None => 0,
            },
            total,
            minimum: gang
                .plan
                .as_ref()
                .map(|plan| plan.minimum)
                .or_else(|| gang.workload.as_ref().and_then(|workload| workload.minimum))
                .unwrap_or(total),
            observed_generation: gang
                .workload
                .as_ref()
                .map_or(0, |workload| workload.generation),
            ignored: self.settings_of(gang).and_then(settings::ignored),
            failing: gang
                .failing
                .as_ref()
                .map(|failing| Arc::clone(&failing.text)),
        }
    }

    /// Makes the Gang object, or writes its status if that is worth a write.
    pub(super) fn write_status(&mut self, gang: &mut Gang, now: Timestamp) {
        let wanted = self.status(gang);
        self.warn(gang, &wanted);
        self.warn_of_failure(gang, &wanted);
        self.announce(gang, &wanted);
        if matches!(gang.record, Record::Unreadable(_)) {
            return;
        }
        let is_known = gang.acked.is_some() && !gang.unsaid;
        if is_known && gang.plan.is_none() && matches!(gang.reason, Some(Reason::AgentsAwaited)) {
            // What keeps it was written before the scheduler began anew, and is soon said again.
            return;
        }
        if now < gang.status_after || (is_known && self.is_going(gang, now)) {
            return;
        }
        match &gang.record {
            Record::Missing if self.is_worth_an_object(gang, &wanted) => {
                gang.unsaid = true;
                let purpose = Purpose::CreateRecord(gang.key.clone());
                let what = WriteKind::CreateRecord {
                    object: gang.object_name(),
                    kind: gang.kind,
                    name: Arc::clone(&gang.name),
                };
                gang.record = Record::Creating(self.write(&gang.key, None, purpose, what));
            }
            Record::Known {
                object, version, ..
            } if gang.status_write.is_none() => {
                let settled = gang
                    .plan
                    .as_ref()
                    .is_none_or(|plan| plan.slots.values().all(|slot| slot.binding.is_none()));
                let differs = gang
                    .acked
                    .as_ref()
                    .is_none_or(|acked| is_worth_a_write(acked, &wanted));
                let uncommitted = gang.plan.is_some() && !gang.is_durable();
                if uncommitted || (differs && settled) {
                    gang.unsaid = false;
                    let what = WriteKind::PutStatus {
                        object: Arc::clone(object),
                        resource_version: version.clone(),
                        status: wanted.clone(),
                    };
                    let plan = gang.plan.as_ref().map(|plan| plan.id.clone());
                    let id =
                        self.write(&gang.key, plan, Purpose::PutStatus(gang.key.clone()), what);
                    gang.status_write = Some((id, wanted));
                }
            }
            _ => {}
        }
    }

    /// Whether its job is gone, and its pods and its Gang object are about to go too. While a pod of it is bound, what is written says how
    /// many must run together, which nobody else remembers.
    fn is_going(&self, gang: &Gang, now: Timestamp) -> bool {
        let is_gone = gang.is_job() && gang.workload.is_none();
        is_gone && (now < gang.goes_until || self.bound_alive(gang).next().is_some())
    }

    fn is_worth_an_object(&self, gang: &Gang, wanted: &GangStatus) -> bool {
        let has_pods = !gang.pods.is_empty();
        match (gang.kind, wanted.phase) {
            (_, Phase::Succeeded | Phase::Failed | Phase::Suspended) => false,
            (WorkloadKind::PyTorchJob, _) => gang.workload.is_some(),
            // A pod of its own that runs already has nothing to be told about.
            _ => has_pods && (gang.plan.is_some() || gang.reason.is_some()),
        }
    }

    pub(super) fn record_created(
        &mut self,
        key: &GangKey,
        id: WriteId,
        outcome: WriteOutcome,
        now: Timestamp,
    ) {
        self.dirty.insert(key.clone());
        if let WriteOutcome::Done(Some(record)) | WriteOutcome::Conflict(Some(record)) = &outcome {
            self.note_record(record);
        }
        let Some(gang) = self.gangs.get_mut(key) else {
            return;
        };
        if gang.record != Record::Creating(id) {
            // The watch, or a new leadership, knows better.
            return;
        }
        gang.record = Record::Missing;
        match outcome {
            WriteOutcome::Done(Some(record)) | WriteOutcome::Conflict(Some(record)) => {
                gang.status_failures = 0;
                gang.past_versions.clear();
                take_record(gang, record);
            }
            WriteOutcome::Refused(said) => {
                let what = Arc::from("creating the Gang");
                self.status_refused(key, Reason::WriteRefused { what, said }, now);
            }
            _ => self.pause_status(key, now),
        }
    }

    /// The Gang object is gone. It is made again at once, unless that has just been done: whoever deletes it, such as the
    /// garbage collector while we do not see yet that its owner is gone, would do so again and again.
    pub(super) fn record_removed(&mut self, key: GangKey, now: Timestamp) {
        self.leftovers.remove(&key);
        let Some(gang) = self.gangs.get_mut(&key) else {
            return;
        };
        gang.record = Record::Missing;
        gang.acked = None;
        // Its answer would speak of an object that is no more.
        gang.status_write = None;
        let (lost_at, times) = gang.record_lost;
        let again = times > 0 && now.since(lost_at) < RECORD_STAYS;
        let times = if again { times.saturating_add(1) } else { 1 };
        gang.record_lost = (now, times);
        if again {
            let pause = STATUS_PAUSE.0 << times.saturating_sub(1).min(6);
            gang.status_after = gang.status_after.max(now + Millis(pause));
        }
        self.dirty.insert(key);
    }

    /// Puts the next write of the Gang object off: longer with each failure in a row.
    fn pause_status(&mut self, key: &GangKey, now: Timestamp) {
        if let Some(gang) = self.gangs.get_mut(key) {
            let pause = STATUS_PAUSE.0 << gang.status_failures.min(4);
            gang.status_after = now + Millis(pause);
            gang.status_failures = gang.status_failures.saturating_add(1);
        }
    }

    /// The Gang object cannot be written. Without a durable plan nothing may start: a plan that has
    /// not begun is given back, and made again later.
    fn status_refused(&mut self, key: &GangKey, reason: Reason, now: Timestamp) {
        let retry_after = self.config.retry_after.0;
        self.with_gang(key, |engine, gang| {
            let pause = retry_after.saturating_mul(1 << gang.status_failures.min(4));
            gang.status_after = now + Millis(pause);
            gang.status_failures = gang.status_failures.saturating_add(1);
            match &gang.plan {
                // What it promises is written already; it was another line that could not be.
                Some(plan) if plan.open || gang.is_durable() => {}
                Some(_) => {
                    engine.give_back(gang, reason, now, true);
                    gang.not_before = gang.not_before.max(gang.status_after);
                }
                None => gang.reason = Some(reason),
            }
        });
    }

    pub(super) fn status_put(
        &mut self,
        key: &GangKey,
        id: WriteId,
        outcome: WriteOutcome,
        now: Timestamp,
    ) {
        self.dirty.insert(key.clone());
        if let WriteOutcome::Conflict(Some(record)) = &outcome {
            self.note_record(record);
        }
        let Some(gang) = self.gangs.get_mut(key) else {
            return;
        };
        let Some((_, status)) = gang.status_write.take_if(|(other, _)| *other == id) else {
            return;
        };
        match outcome {
            WriteOutcome::Done(record) => {
                if let Some(record) = record {
                    gang.know_object(record.object, record.object_uid, record.resource_version);
                }
                let commits = !gang.is_durable();
                gang.acked = Some(status);
                gang.status_failures = 0;
                if let Some(plan) = gang.plan.as_mut().filter(|_| commits) {
                    plan.progress_at = now;
                    // It may have been so for less than a round, in which Filter refused nevertheless.
                    plan.was_durable = false;
                }
            }
            WriteOutcome::Conflict(Some(record)) => {
                // Somebody wrote in between. What is there now is what counts; ours comes on top.
                // An answer is never a late echo, whatever the watch has said before.
                gang.past_versions
                    .retain(|past| *past != record.resource_version);
                gang.acked = Some(GangStatus::default());
                take_record(gang, record);
                let again = gang.status_failures > 0;
                gang.status_failures = gang.status_failures.saturating_add(1);
                if again {
                    self.pause_status(key, now);
                }
            }
            WriteOutcome::Conflict(None) | WriteOutcome::Gone => {
                gang.record = Record::Missing;
                gang.acked = None;
                self.pause_status(key, now);
            }
            WriteOutcome::Refused(said) => {
                let what = Arc::from("writing the Gang's status");
                self.status_refused(key, Reason::WriteRefused { what, said }, now);
            }
            // Not known: the next attempt finds out by its resourceVersion.
            WriteOutcome::Unknown(_) | WriteOutcome::BindingUnknown { .. } => {
                gang.acked = match gang.acked.take() {
                    // Whichever of the two is there, it makes the same promise.
                    Some(acked) if promise(&acked) == promise(&status) => {
                        Some(forget_reason(acked))
                    }
                    acked => acked.map(forget_plan),
                };
                self.pause_status(key, now);
            }
        }
    }

    /// One Event when keys are ignored. What an earlier process has found it has said.
    fn warn(&mut self, gang: &mut Gang, status: &GangStatus) {
        if gang.warned == status.ignored {
            return;
        }
        let subject = subject(gang);
        let is_to_come = matches!(subject, Subject::Gang { uid: None, .. });
        if is_to_come && status.ignored.is_some() && gang.status_failures == 0 {
            return;
        }
        let is_new = gang.announced.is_some() || gang.unannounced || gang.acked.is_none();
        gang.warned.clone_from(&status.ignored);
        if let Some(message) = status.ignored.clone().filter(|_| is_new) {
            self.actions.push_back(Action::Announce(Announcement {
                gang: gang.key.clone(),
                subject,
                warning: true,
                reason: IGNORED,
                message,
            }));
        }
    }

    /// One Event for a failed GPU under a member. What an earlier process has found it has said.
    fn warn_of_failure(&mut self, gang: &mut Gang, status: &GangStatus) {
        if gang.told_failing == status.failing {
            return;
        }
        let is_new = gang.announced.is_some() || gang.unannounced || gang.acked.is_none();
        gang.told_failing.clone_from(&status.failing);
        if let Some(message) = status.failing.clone().filter(|_| is_new) {
            self.actions.push_back(Action::Announce(Announcement {
                gang: gang.key.clone(),
                subject: subject(gang),
                warning: true,
                reason: GPU_FAILED,
                message,
            }));
        }
    }

    /// One Event per change of phase or reason. Starting is not told: it is over in a moment, or
    /// ends in something that is. An Event about a Gang object waits until that is made.
    fn announce(&mut self, gang: &mut Gang, status: &GangStatus) {
        let Some(reason) = &status.reason else { return };
        let state = (status.phase, reason.code());
        if gang.announced == Some(state) || status.phase == Phase::Starting {
            return;
        }
        let subject = subject(gang);
        let is_to_come = matches!(subject, Subject::Gang { uid: None, .. })
            && matches!(gang.record, Record::Missing | Record::Creating(_));
        if is_to_come && gang.status_failures == 0 && self.is_worth_an_object(gang, status) {
            gang.unannounced = true;
            return;
        }
        let first_sight = gang.announced.is_none()
            && !gang.unannounced
            && gang
                .acked
                .as_ref()
                .is_some_and(|acked| acked.phase == status.phase);
        gang.announced = Some(state);
        if first_sight {
            // Said before this process started.
            return;
        }
        let warning = matches!(status.phase, Phase::Repairing | Phase::Failed)
            || matches!(
                reason,
                Reason::Invalid(_)
                    | Reason::MinimumTooLarge { .. }
                    | Reason::BarrierTimeout { .. }
                    | Reason::ReleasedWhole { .. }
                    | Reason::GpuFailed { .. }
                    | Reason::WriteRefused { .. }
                    | Reason::UnreadableRecord(_)
                    | Reason::Unplaceable(crate::reason::Unplaceable::NeverFits { .. })
                    | Reason::Unplaceable(crate::reason::Unplaceable::NoSuchResource { .. })
                    | Reason::Unplaceable(crate::reason::Unplaceable::RuleBetweenMembers {
                        possible: Some(_),
                        ..
                    })
                    | Reason::Unplaceable(crate::reason::Unplaceable::NotInOneDomain {
                        possible: Some(_),
                        ..
                    })
            );
        self.actions.push_back(Action::Announce(Announcement {
            gang: gang.key.clone(),
            subject,
            warning,
            reason: reason.code(),
            message: Arc::from(reason.to_string()),
        }));
    }
}

/// What an Event about the gang is about.
fn subject(gang: &Gang) -> Subject {
    let uid = match gang.kind {
        WorkloadKind::PyTorchJob | WorkloadKind::Pod => Some(&gang.key.uid),
        WorkloadKind::PodGroup => gang.workload.as_ref().map(|group| &group.uid),
        WorkloadKind::Label => None,
    };
    match uid.filter(|uid| !uid.is_empty()) {
        Some(uid) => Subject::Workload {
            kind: gang.kind,
            name: Arc::clone(&gang.name),
            uid: Arc::clone(uid),
        },
        None => Subject::Gang {
            name: gang.object_name(),
            uid: match &gang.record {
                Record::Known { uid, .. } => Some(Arc::clone(uid)),
                _ => None,
            },
        },
    }
}

/// A status of which it is not known whether its reason was written.
fn forget_reason(mut status: GangStatus) -> GangStatus {
    status.reason = None;
    status.observed_generation = -1;
    status
}

/// A status of which it is not known whether its plan was written.
fn forget_plan(mut status: GangStatus) -> GangStatus {
    status.plan = None;
    status.observed_generation = -1;
    status
}

/// Members that have ended well.
fn ended(status: &GangStatus) -> impl Iterator<Item = &SlotRecord> {
    let slots = status.plan.iter().flat_map(|plan| &plan.slots);
    slots.filter(|slot| slot.ended)
}

/// Whether the pod of a member that has ended well is gone, and nothing that survives this process
/// tells of its end.
fn has_unsaid_end(acked: &GangStatus, wanted: &GangStatus) -> bool {
    let is_said = |slot: &SlotRecord| {
        ended(acked).any(|other| (&other.role, other.index) == (&slot.role, slot.index))
    };
    ended(wanted).any(|slot| slot.pod_name.is_none() && !is_said(slot))
}

type Promise = (PlanId, Epoch, Vec<(Seat, NodeName)>);

/// Which place each seat is promised by which plan.
fn promise(status: &GangStatus) -> Option<Promise> {
    status.plan.as_ref().map(|plan| {
        let slots = super::barrier::seats(plan).into_iter();
        let slots = slots.map(|(seat, slot)| (seat, slot.node.clone()));
        (plan.id.clone(), plan.epoch, slots.collect())
    })
}

/// For whom nodes are kept on which the gang would fit. Somebody else's name is no number.
fn kept_for(status: &GangStatus) -> Option<(&Namespace, &str)> {
    match &status.reason {
        Some(Reason::KeptForAnother { namespace, name }) => Some((namespace, name)),
        _ => None,
    }
}

fn says_what_keeps_it(status: &GangStatus) -> bool {
    matches!(
        &status.reason,
        Some(Reason::Gathering { said: Some(_), .. })
    )
}

/// Whether a status differs from what is written in a way that is worth a write. Numbers inside a
/// reason are not: a gang that waits, once its reason is written, costs nothing.
fn is_worth_a_write(acked: &GangStatus, wanted: &GangStatus) -> bool {
    let code = |status: &GangStatus| status.reason.as_ref().map(Reason::code);
    let members = |status: &GangStatus| {
        status.plan.as_ref().map(|plan| {
            plan.slots
                .iter()
                .map(|slot| (slot.pod.clone(), slot.bound))
                .collect::<Vec<_>>()
        })
    };
    if acked.phase != wanted.phase
        || code(acked) != code(wanted)
        || promise(acked) != promise(wanted)
        || acked.ignored != wanted.ignored
        || acked.failing != wanted.failing
        || kept_for(acked) != kept_for(wanted)
    {
        return true;
    }
    if has_unsaid_end(acked, wanted) {
        return true;
    }
    // What its end changes of a job, our marks that are taken out, is nothing to be told.
    let untold = [Phase::Starting, Phase::Succeeded, Phase::Failed];
    if acked.observed_generation != wanted.observed_generation && !untold.contains(&wanted.phase) {
        return true;
    }
    match wanted.phase {
        // The commit names the pods that exist; later ones claim their slots by role and index. What
        // keeps one of them from its place is worth one write, and not one for each that it keeps, and
        // that it has come after all another one.
        Phase::Starting => says_what_keeps_it(acked) != says_what_keeps_it(wanted),
        // How many of a gang's pods exist changes with each that comes.
        Phase::Waiting => members(acked) != members(wanted),
        _ => {
            members(acked) != members(wanted)
                || acked.total != wanted.total
                || acked.minimum != wanted.minimum
        }
    }
}
