//! Taking events in: what each one changes, and which gangs it touches.

use std::sync::Arc;

use super::gang::{Gang, Record};
use super::{Engine, Lead, Purpose};
use crate::action::{Action, WriteKind};
use crate::event::{BindAsked, Event, Ticket, WriteId, WriteOutcome};
use crate::ids::{Epoch, GangKey, NodeName, PodUid};
use crate::inventory::NodeReport;
use crate::pod::{MembershipSource, Pod};
use crate::record::{GangRecord, GangStatus};
use crate::time::{Millis, Timestamp};
use crate::view::{NOT_LEADING, NOT_SYNCED};
use crate::workload::{Workload, WorkloadKind};

/// How long a Bind of a pod that has not been seen yet is held: the watch is a little behind.
const STRAY_MAX: Millis = Millis(5000);

impl Engine {
    pub(super) fn take_in(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::NodeApplied(node) => {
                let name = node.name.clone();
                if self.ledger.set_node(node) {
                    self.touch_node(&name);
                }
            }
            Event::NodeRemoved(name) => {
                self.touch_node(&name);
                self.ledger.remove_node(&name);
            }
            Event::PodApplied(pod) => self.pod_applied(pod, now),
            Event::PodRemoved(uid) => self.pod_removed(&uid),
            Event::WorkloadApplied(workload) => self.workload_applied(workload, now),
            Event::WorkloadRemoved(key) => {
                if let Some(gang) = self.gangs.get_mut(&key) {
                    gang.workload = None;
                    self.dirty.insert(key);
                }
            }
            Event::RecordApplied(record) => self.record_applied(record, now),
            Event::RecordRemoved(key) => {
                if let Some(gang) = self.gangs.get_mut(&key) {
                    gang.record = Record::Missing;
                    gang.acked = None;
                    self.dirty.insert(key);
                }
            }
            Event::Synced => {
                self.synced = true;
                self.start_fence();
                self.dirty_all();
            }
            Event::Relisted => {
                if self.lead == Lead::Relisting {
                    self.lead = Lead::Yes;
                    self.dirty_all();
                }
            }
            Event::Report(report) => self.report(report, now),
            Event::Heartbeat {
                node,
                order,
                sampler_ok,
            } => {
                let before = self
                    .inventory
                    .get(&node)
                    .map(|belief| belief.report.sampler_ok);
                let heard = self.inventory.hear(&node, &order, sampler_ok, now);
                if heard && before != Some(sampler_ok) {
                    self.touch_node(&node);
                }
                if heard && self.fresh.get(&node) == Some(&false) {
                    self.fresh.insert(node.clone(), true);
                    self.touch_node(&node);
                }
            }
            Event::LeadershipGained(epoch) => {
                self.epoch = self.epoch.max(epoch);
                self.lead = Lead::Fencing;
                self.start_fence();
                self.dirty_all();
            }
            Event::LeadershipLost => self.leadership_lost(),
            Event::BindAsked(asked) => self.bind_asked(asked, now),
            Event::BindDropped(ticket) => self.bind_dropped(ticket),
            Event::PlannedNodeNotOffered { pod, node } => self.not_offered(&pod, &node, now),
            Event::WriteDone { id, outcome } => self.write_done(id, outcome, now),
            Event::Tick => {}
        }
    }

    fn dirty_all(&mut self) {
        self.dirty.extend(self.gangs.keys().cloned());
    }

    fn gang_of(
        &mut self,
        key: &GangKey,
        kind: WorkloadKind,
        name: &Arc<str>,
        now: Timestamp,
    ) -> &mut Gang {
        let sequence = self.next_sequence;
        self.dirty.insert(key.clone());
        let gang = self.gangs.entry(key.clone()).or_insert_with(|| {
            self.next_sequence = sequence.saturating_add(1);
            Gang::new(key.clone(), kind, Arc::clone(name), sequence, now)
        });
        // An object says what the gang is; before it was seen, its pods could only guess.
        if gang.workload.is_none() {
            gang.kind = kind;
            gang.name = Arc::clone(name);
        }
        gang
    }

    fn pod_applied(&mut self, pod: Pod, now: Timestamp) {
        for node in self.ledger.set_pod(&pod) {
            self.touch_node(&node);
        }
        if !pod.ours {
            return;
        }
        if pod.node.is_some()
            && let Some(loose) = self.loose.get(&pod.uid)
        {
            let slot = loose.slot.clone();
            if let Some(node) = self.ledger.release(&slot) {
                self.touch_node(&node);
            }
        }
        if let Some(membership) = &pod.membership {
            let (kind, name) = match &membership.source {
                MembershipSource::Job => (WorkloadKind::PyTorchJob, Arc::clone(&pod.name)),
                MembershipSource::PodGroup { name } => (WorkloadKind::PodGroup, Arc::clone(name)),
                MembershipSource::Label { name, .. } => (WorkloadKind::Label, Arc::clone(name)),
                MembershipSource::Alone => (WorkloadKind::Pod, Arc::clone(&pod.name)),
            };
            let key = membership.gang.clone();
            let uid = pod.uid.clone();
            let gang = self.gang_of(&key, kind, &name, now);
            if gang.pods.insert(uid) {
                gang.last_pod_at = now;
                if let Some(plan) = &mut gang.plan {
                    plan.progress_at = now;
                }
            }
            // Membership is looked at anew each time: a label may have been changed.
            if let Some(before) = self
                .pods
                .get(&pod.uid)
                .and_then(|pod| pod.membership.as_ref())
                && before.gang != key
            {
                let before = before.gang.clone();
                if let Some(gang) = self.gangs.get_mut(&before) {
                    gang.pods.remove(&pod.uid);
                }
                self.dirty.insert(before);
            }
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn pod_removed(&mut self, uid: &PodUid) {
        for node in self.ledger.remove_pod(uid) {
            self.touch_node(&node);
        }
        self.deleting.remove(uid);
        if let Some(loose) = self.loose.remove(uid)
            && let Some(node) = self.ledger.release(&loose.slot)
        {
            self.touch_node(&node);
        }
        if let Some(pod) = self.pods.remove(uid)
            && let Some(membership) = pod.membership
            && let Some(gang) = self.gangs.get_mut(&membership.gang)
        {
            gang.pods.remove(uid);
            self.dirty.insert(membership.gang);
        }
    }

    fn workload_applied(&mut self, workload: Workload, now: Timestamp) {
        let (key, kind, name) = (
            workload.key.clone(),
            workload.kind,
            Arc::clone(&workload.name),
        );
        let gang = self.gang_of(&key, kind, &name, now);
        gang.kind = kind;
        gang.name = name;
        let edited = gang.workload.as_ref().is_some_and(|before| {
            before.members != workload.members
                || before.minimum != workload.minimum
                || before.hold != workload.hold
        });
        if edited {
            gang.tried_at = None;
        }
        gang.workload = Some(workload);
    }

    fn record_applied(&mut self, record: GangRecord, now: Timestamp) {
        let (kind, name, key) = (record.kind, Arc::clone(&record.name), record.key.clone());
        let gang = self.gang_of(&key, kind, &name, now);
        // While a status is on its way, its answer says what the object is; until then this is the
        // echo of an earlier one.
        if gang.status_write.is_none() {
            take_record(gang, record);
        }
    }

    fn report(&mut self, report: NodeReport, now: Timestamp) {
        let node = report.node.clone();
        if let Ok(changed) = self.inventory.apply(report, now) {
            let was_fresh = self.fresh.insert(node.clone(), true);
            if changed || was_fresh != Some(true) {
                self.touch_node(&node);
            }
        }
    }

    fn leadership_lost(&mut self) {
        self.lead = Lead::No;
        for ticket in self.tickets.keys().copied().collect::<Vec<_>>() {
            self.answer(ticket, Err(Arc::from(NOT_LEADING)));
        }
    }

    /// Stamps every pod that is not bound, so that no Binding of an earlier leader applies to it: a
    /// Binding names the resourceVersion that its sender saw. The first leadership ever has nobody
    /// to fence off.
    fn start_fence(&mut self) {
        if self.lead != Lead::Fencing || !self.synced {
            return;
        }
        let targets: Vec<_> = self
            .pods
            .values()
            .filter(|pod| {
                pod.node.is_none()
                    && pod.is_alive()
                    && pod.stamp.is_none_or(|stamp| stamp < self.epoch)
            })
            .filter(|_| self.epoch > Epoch(1))
            .map(|pod| {
                let gang = pod
                    .membership
                    .as_ref()
                    .map(|membership| membership.gang.clone());
                (
                    gang.unwrap_or_else(|| GangKey::new(pod.namespace.as_str(), pod.uid.as_str())),
                    Self::target(pod),
                )
            })
            .collect();
        for (gang, pod) in targets {
            let id = self.write(&gang, None, Purpose::Stamp, WriteKind::StampPod { pod });
            self.stamps.insert(id);
        }
        if self.stamps.is_empty() {
            self.lead = Lead::Yes;
        }
    }

    fn bind_asked(&mut self, asked: BindAsked, now: Timestamp) {
        let ticket = asked.ticket;
        self.tickets.insert(ticket, asked);
        if self.lead == Lead::No {
            self.answer(ticket, Err(Arc::from(NOT_LEADING)));
        } else if !self.synced {
            self.answer(ticket, Err(Arc::from(NOT_SYNCED)));
        } else {
            self.strays.insert(ticket, now + STRAY_MAX);
        }
    }

    fn bind_dropped(&mut self, ticket: Ticket) {
        self.strays.remove(&ticket);
        let Some(asked) = self.tickets.remove(&ticket) else {
            return;
        };
        if let Some(loose) = self.loose.get_mut(&asked.pod)
            && loose.ticket == Some(ticket)
        {
            loose.ticket = None;
        }
        let Some(key) = self.gang_key_of(&asked.pod) else {
            return;
        };
        if let Some(plan) = self.gangs.get_mut(&key).and_then(|gang| gang.plan.as_mut()) {
            for slot in plan
                .slots
                .values_mut()
                .filter(|slot| slot.ticket == Some(ticket))
            {
                slot.ticket = None;
            }
        }
        self.dirty.insert(key);
    }

    pub(super) fn gang_key_of(&self, pod: &PodUid) -> Option<GangKey> {
        self.pods
            .get(pod)
            .and_then(|pod| pod.membership.as_ref())
            .map(|membership| membership.gang.clone())
    }

    fn not_offered(&mut self, pod: &PodUid, node: &NodeName, now: Timestamp) {
        let Some(key) = self.gang_key_of(pod) else {
            return;
        };
        if let Some(plan) = self.gangs.get_mut(&key).and_then(|gang| gang.plan.as_mut()) {
            for slot in plan.slots.values_mut() {
                if slot.pod.as_ref() == Some(pod)
                    && slot.node.as_ref() == Some(node)
                    && !slot.is_settled()
                {
                    slot.refused_since.get_or_insert(now);
                }
            }
        }
        self.dirty.insert(key);
    }

    fn write_done(&mut self, id: WriteId, outcome: WriteOutcome, now: Timestamp) {
        let Some(purpose) = self.in_flight.remove(&id) else {
            return;
        };
        match purpose {
            Purpose::CreateRecord(key) => self.record_created(&key, outcome, now),
            Purpose::PutStatus(key) => self.status_put(&key, id, outcome, now),
            Purpose::DeleteRecord => {}
            Purpose::ChangeJob(key) => self.job_changed(&key, outcome, now),
            Purpose::ReleasePod(key, seat) => self.pod_released(&key, &seat, id, &outcome),
            Purpose::Bind(key, seat, pod) => self.bind_done(&key, &seat, &pod, outcome, now),
            Purpose::BindLoose(pod) => self.loose_bind_done(&pod, outcome),
            Purpose::DeletePod(pod) => {
                self.deleting.remove(&pod);
                if let Some(key) = self.gang_key_of(&pod) {
                    self.dirty.insert(key);
                }
            }
            Purpose::Stamp => {
                self.stamps.remove(&id);
                if self.stamps.is_empty() && self.lead == Lead::Fencing {
                    self.lead = Lead::Relisting;
                    self.actions.push_back(Action::Relist);
                }
            }
        }
    }
}

/// Takes over what a Gang object says about itself.
pub(super) fn take_record(gang: &mut Gang, record: GangRecord) {
    let plan = match record.plan {
        Ok(plan) => plan,
        Err(why) => {
            gang.record = Record::Unreadable(why);
            return;
        }
    };
    gang.record = Record::Known {
        object: record.object,
        uid: record.object_uid,
        version: record.resource_version,
    };
    if gang.acked.is_none() {
        if gang.plan.is_none() {
            gang.recovered.clone_from(&plan);
        }
        gang.acked = Some(GangStatus {
            phase: record.phase,
            plan,
            ..GangStatus::default()
        });
    }
}
