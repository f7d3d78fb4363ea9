//! Taking events in: what each one changes, and which gangs it touches.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gang::{Gang, Record};
use super::{Deleting, Engine, Lead, Purpose, Stamped};
use crate::event::{BindAsked, Event, Ticket, WriteId, WriteOutcome};
use crate::ids::{GangKey, NodeName, PodUid};
use crate::inventory::NodeReport;
use crate::planted;
use crate::pod::{MembershipSource, Pod, PodPhase};
use crate::record::{GangRecord, GangStatus};
use crate::time::{Millis, Timestamp};
use crate::view::{NOT_LEADING, NOT_SYNCED};
use crate::workload::{Workload, WorkloadKind};

/// How long a Bind of a pod that has not been seen yet is held: the watch is a little behind.
const STRAY_MAX: Millis = Millis(5000);

/// How long after its job has gone the object of a gang, which goes with it, is left as it is.
const GOES_MAX: Millis = Millis::from_secs(30);

impl Engine {
    pub(super) fn take_in(&mut self, event: Event, now: Timestamp) {
        let Some(event) = planted::seen(event) else {
            return;
        };
        match event {
            Event::NodeApplied(node) => {
                let name = node.name.clone();
                self.inventory.set_node(&node);
                self.await_agent(&node);
                if self.ledger.set_node(node) {
                    self.touch_node(&name);
                }
                self.look_after(&name);
            }
            Event::NodeRemoved(name) => {
                self.touch_node(&name);
                self.inventory.remove_node(&name);
                self.await_no_more(&name);
                self.ledger.remove_node(&name);
                self.look_after(&name);
            }
            Event::PodApplied(pod) => self.pod_applied(pod, now),
            Event::PodRemoved(uid) => self.pod_removed(&uid),
            Event::WorkloadApplied(workload) => self.workload_applied(workload, now),
            Event::WorkloadRemoved(key) => {
                self.foreign.remove(&key);
                self.workload_removed(key, now);
            }
            Event::RecordApplied(record) => self.record_applied(record, now),
            Event::RecordRemoved(key) => self.record_removed(key, now),
            Event::Synced => {
                self.synced = true;
                self.start_fence();
                self.dirty_all();
            }
            Event::Relisted(listing) => self.relisted(listing),
            Event::Report(report) => self.report(report, now),
            Event::Heartbeat {
                node,
                order,
                sampler_ok,
            } => {
                let counts = |engine: &Self| {
                    let belief = engine.inventory.get(&node)?;
                    Some(belief.report.sampler_ok)
                };
                let (before, was_fresh) = (counts(self), self.was_fresh(&node, now));
                let heard = self.apply_heartbeat(&node, &order, sampler_ok, now);
                if before != counts(self) {
                    self.heard_nodes.insert(node.clone());
                }
                if heard && (before != counts(self) || !was_fresh) {
                    self.note_fresh(&node, now);
                    self.touch_node(&node);
                }
            }
            Event::LeadershipGained { epoch, first } => {
                self.epoch = self.epoch.max(epoch);
                self.led_at = now;
                self.await_agents(now);
                // Whoever was given the Lease was answered.
                self.away_since = None;
                self.go_on(now);
                self.forget_findings();
                self.lead = Lead::Fencing;
                self.leads_first = first;
                self.stamps.clear();
                self.restamp.clear();
                self.fenced.clear();
                self.fenced_again = false;
                self.recover_plans();
                self.start_fence();
                self.dirty_all();
            }
            Event::LeadershipLost => self.leadership_lost(),
            Event::ApiAway(span) => self.api_away(span, now),
            Event::ApiBack => self.api_back(now),
            Event::Frozen(why) => self.set_frozen(why, now),
            Event::BindAsked(asked) => self.bind_asked(asked, now),
            Event::BindDropped(ticket) => self.bind_dropped(ticket),
            Event::PlannedNodeNotOffered { pod, node } => self.not_offered(&pod, &node, now),
            Event::WriteDone { id, outcome } => self.write_done(id, outcome, now),
            Event::Tick => {}
        }
    }

    pub(super) fn dirty_all(&mut self) {
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
        self.gangs.entry(key.clone()).or_insert_with(|| {
            self.next_sequence = sequence.saturating_add(1);
            let gang = Gang::new(key.clone(), kind, Arc::clone(name), sequence, now);
            Box::new(gang)
        })
    }

    /// The gang of a pod. An object says what a gang is and is called; the first of its pods can
    /// only guess, and the later ones do not change it: refusals carry the name, and their text must
    /// stay the same.
    fn gang_of_pod(&mut self, pod: &Pod, now: Timestamp) -> Option<GangKey> {
        let membership = pod.membership.as_ref()?;
        let (kind, name) = match &membership.source {
            MembershipSource::Job => (WorkloadKind::PyTorchJob, &pod.name),
            MembershipSource::PodGroup { name } => (WorkloadKind::PodGroup, name),
            MembershipSource::Label { name, .. } => (WorkloadKind::Label, name),
            MembershipSource::Alone => (WorkloadKind::Pod, &pod.name),
        };
        let gang = self.gang_of(&membership.gang, kind, name, now);
        if gang.pods.insert(pod.uid.clone()) {
            gang.last_pod_at = now;
            if let Some(plan) = &mut gang.plan {
                plan.progress_at = now;
            }
            if let Some(job) = self.foreign.remove(&membership.gang) {
                self.workload_applied(job, now);
            }
        }
        Some(membership.gang.clone())
    }

    fn was_fresh(&self, node: &NodeName, now: Timestamp) -> bool {
        self.fresh.get(node) == Some(&true)
            && self
                .inventory
                .is_fresh(node, now, self.config.report_age_max)
    }

    /// Notes whether what a node's agent has just said counts: it may be of another boot.
    fn note_fresh(&mut self, node: &NodeName, now: Timestamp) {
        let limit = self.config.report_age_max;
        let is = self.inventory.is_fresh(node, now, limit);
        self.fresh.insert(node.clone(), is);
    }

    /// Whether an event is older than what is known: a binding, a deletion and an end are never
    /// taken back. The watch may lag behind a LIST, and behind the answer to a write.
    fn is_stale(&self, pod: &Pod) -> bool {
        let ended = |pod: &Pod| matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed);
        self.pods.get(&pod.uid).is_some_and(|known| {
            (known.node.is_some() && pod.node.is_none())
                || (known.terminating && !pod.terminating)
                || (ended(known) && !ended(pod))
        })
    }

    fn pod_applied(&mut self, pod: Pod, now: Timestamp) {
        self.keeping.note_created(pod.created_seconds, now);
        if self.is_stale(&pod) {
            return;
        }
        for node in self.ledger.set_pod(&pod) {
            self.touch_node(&node);
        }
        if !pod.ours {
            return;
        }
        if let Some(record) = &pod.record {
            self.note_plan_id_of_pod(&record.plan);
        }
        let void = self.loose.get_mut(&pod.uid).is_some_and(|loose| {
            loose.note_version(&pod.resource_version);
            loose.is_over()
        });
        if pod.node.is_some() || void {
            self.drop_loose(&pod.uid, pod.node.as_ref());
        }
        if pod.terminating {
            self.deleting.remove(&pod.uid);
        }
        let key = self.gang_of_pod(&pod, now);
        // Membership is looked at anew each time: a label may have been changed or taken off.
        if let Some(before) = self.gang_key_of(&pod.uid)
            && Some(&before) != key.as_ref()
        {
            if let Some(gang) = self.gangs.get_mut(&before) {
                gang.pods.remove(&pod.uid);
                if gang.is_job() && gang.workload.is_none() {
                    // Its job was deleted and its pods are let be, one after the other: the others are no part that is left.
                    let plan = gang.plan.as_mut().map(|plan| &mut plan.minimum);
                    for least in plan.into_iter().chain(gang.minimum_kept.as_mut()) {
                        *least = least.saturating_sub(1);
                    }
                }
            }
            self.dirty.insert(before);
        }
        let uid = pod.uid.clone();
        let before = self.pods.get(&uid);
        let of_a_job = |pod: &Pod| {
            let membership = pod.membership.as_ref();
            membership.is_some_and(|membership| membership.source == MembershipSource::Job)
        };
        if before.is_none() && pod.node.is_none() && of_a_job(&pod) {
            self.job_pod_born_at = now;
        }
        if before.is_some_and(|before| before.settings != pod.settings)
            && let Some(gang) = key.as_ref().and_then(|key| self.gangs.get_mut(key))
        {
            gang.tried_at = None;
        }
        self.pods.insert(uid.clone(), pod);
        self.settle_doubts(&uid);
    }

    fn pod_removed(&mut self, uid: &PodUid) {
        for node in self.ledger.remove_pod(uid) {
            self.touch_node(&node);
        }
        self.deleting.remove(uid);
        self.restamp.remove(&Stamped::Pod(uid.clone()));
        self.drop_loose(uid, None);
        self.failures.remove(uid);
        if let Some(pod) = self.pods.remove(uid)
            && let Some(membership) = pod.membership
            && let Some(gang) = self.gangs.get_mut(&membership.gang)
        {
            gang.pods.remove(uid);
            self.view_gone.push(uid.clone());
            self.dirty.insert(membership.gang);
        }
        self.settle_doubts(uid);
    }

    /// Ends the Bind of a pod of no gang: it is bound to `node`, or gone.
    pub(super) fn drop_loose(&mut self, uid: &PodUid, node: Option<&NodeName>) {
        let Some(loose) = self.loose.remove(uid) else {
            return;
        };
        if let Some(ticket) = loose.ticket {
            self.answer_bound(ticket, node);
        }
        if let Some(node) = self.ledger.release(&loose.slot) {
            self.touch_node(&node);
        }
    }

    fn workload_removed(&mut self, key: GangKey, now: Timestamp) {
        if let Some(gang) = self.gangs.get_mut(&key) {
            if gang.is_job() && gang.workload.is_some() {
                gang.goes_until = now + GOES_MAX;
            }
            gang.workload = None;
            self.dirty.insert(key);
        }
    }

    /// A job that does not say that it is ours is kept aside until a pod of it says so. From then
    /// on it stays ours, also while it has no pods: they may be about to be made again.
    fn workload_applied(&mut self, workload: Workload, now: Timestamp) {
        self.keeping.note_created(workload.created_seconds, now);
        let claimed = |gang: &Gang| gang.claimed || !gang.pods.is_empty();
        if !workload.ours
            && !self
                .gangs
                .get(&workload.key)
                .is_some_and(|gang| claimed(gang))
        {
            let key = workload.key.clone();
            self.foreign.insert(key.clone(), workload);
            self.workload_removed(key, now);
            return;
        }
        self.foreign.remove(&workload.key);
        let (key, kind, name) = (
            workload.key.clone(),
            workload.kind,
            Arc::clone(&workload.name),
        );
        let gang = self.gang_of(&key, kind, &name, now);
        (gang.kind, gang.name) = (kind, name);
        gang.goes_until = Timestamp(0);
        gang.claimed = !workload.ours;
        let edited = gang.workload.as_ref().is_some_and(|before| {
            before.members != workload.members
                || before.minimum != workload.minimum
                || before.hold != workload.hold
                || asks(&before.settings) != asks(&workload.settings)
        });
        if edited {
            gang.tried_at = None;
        }
        gang.workload = Some(workload);
    }

    fn record_applied(&mut self, record: GangRecord, now: Timestamp) {
        self.note_record(&record);
        if self.is_leftover(&record) {
            return;
        }
        let (kind, name, key) = (record.kind, Arc::clone(&record.name), record.key.clone());
        let fencing = matches!(self.lead, Lead::Fencing | Lead::Relisting);
        let gang = self.gang_of(&key, kind, &name, now);
        if fencing {
            // The watch may bring older versions than the stamp's answer, and after them the LIST the newest, which is no echo.
            gang.past_versions.clear();
        }
        if gang.workload.is_none() {
            (gang.kind, gang.name) = (kind, name);
        }
        // While a status is on its way, its answer says what the object is; until then this is the
        // echo of an earlier one.
        if gang.status_write.is_none() {
            take_record(gang, record);
        }
    }

    /// What a Gang object tells besides its gang: newer leaderships, and plan ids that are taken.
    pub(super) fn note_record(&mut self, record: &GangRecord) {
        if let Ok(Some(plan)) = &record.plan {
            self.note_plan_id(&plan.id);
        }
    }

    fn report(&mut self, report: NodeReport, now: Timestamp) {
        let node = report.node.clone();
        let was_fresh = self.was_fresh(&node, now);
        // A UUID that two nodes report counts on neither, and on both again when one lets go.
        let mut others = self.inventory.sharing(&node);
        if let Some(changed) = self.apply_report(report, now) {
            self.note_fresh(&node, now);
            if changed {
                self.heard_nodes.insert(node.clone());
            }
            self.heard_of(&node, now);
            if changed || !was_fresh {
                others.extend(self.inventory.sharing(&node));
                others.push(node);
                for node in others {
                    self.touch_node(&node);
                }
            }
        }
    }

    /// Stops writing, and forgets what was meant but is not durable: another replica may lead
    /// before this one does again.
    fn leadership_lost(&mut self) {
        self.lead = Lead::No;
        self.forget_kept();
        self.unsend();
        for ticket in self.tickets.keys().copied().collect::<Vec<_>>() {
            self.answer(ticket, Err(Arc::from(NOT_LEADING)));
        }
        self.drop_doubts();
        self.forget_leftover_writes();
        self.deleting.clear();
        self.stamps.clear();
        self.restamp.clear();
        for key in self.gangs.keys().cloned().collect::<Vec<_>>() {
            self.with_gang(&key, |engine, gang| engine.forget_intentions(gang));
            self.view_dirty.insert(key);
        }
    }

    fn forget_intentions(&mut self, gang: &mut Gang) {
        if let Some(plan) = gang.plan.take() {
            for seat in plan.slots.keys() {
                if let Some(node) = self.ledger.release(&gang.slot_key(seat)) {
                    self.touch_node(&node);
                }
            }
        }
        gang.recovered = None;
        gang.status_write = None;
        gang.job_write = None;
        gang.job_changed_at = None;
        gang.releasing = false;
        gang.partial_since = None;
        gang.leaving_since = None;
        gang.ended_slots.clear();
        gang.tried_at = None;
        if matches!(gang.record, Record::Creating(_)) {
            gang.record = Record::Missing;
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
            if plan.slots.values().all(|slot| slot.ticket.is_none()) {
                plan.first_held_at = None;
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

    /// A deletion was answered. Until the watch shows it, nothing is repeated; a failed one is
    /// repeated after a pause, if it is still wanted then.
    fn deleted(&mut self, pod: &PodUid, outcome: &WriteOutcome, now: Timestamp) {
        let again = now + self.config.retry_after;
        let done = matches!(outcome, WriteOutcome::Done(_) | WriteOutcome::Gone);
        if !done && let Some(state) = self.deleting.get_mut(pod) {
            *state = Deleting::NotBefore(again);
        }
        if let Some(key) = self.gang_key_of(pod) {
            if let Some(gang) = self.gangs.get_mut(&key).filter(|_| !done) {
                gang.blocked_until = gang.blocked_until.max(again);
            }
            self.dirty.insert(key);
        }
    }

    fn write_done(&mut self, id: WriteId, outcome: WriteOutcome, now: Timestamp) {
        let Some(purpose) = self.in_flight.remove(&id) else {
            return;
        };
        match purpose {
            Purpose::CreateRecord(key) => self.record_created(&key, id, outcome, now),
            Purpose::PutStatus(key) => self.status_put(&key, id, outcome, now),
            Purpose::DeleteRecord(key) => self.record_deleted(&key, id, &outcome, now),
            Purpose::ChangeJob(key) => self.job_changed(&key, id, outcome, now),
            Purpose::ShowJob(key) => self.job_shown(&key, id, &outcome, now),
            Purpose::ReleasePod(key, seat) => {
                self.pod_released(&key, &seat, id, &outcome, now);
            }
            Purpose::Bind(purpose) => self.bind_done(id, &purpose, outcome, now),
            Purpose::BindLoose(pod, node, version) => {
                self.loose_bind_done(id, &pod, &node, &version, &outcome);
            }
            Purpose::DeletePod(pod) => self.deleted(&pod, &outcome, now),
            Purpose::Stamp(what) => self.stamped(id, what, outcome, now),
        }
    }
}

/// What settings ask of the topology.
fn asks(settings: &BTreeMap<Arc<str>, Arc<str>>) -> Vec<Option<&Arc<str>>> {
    let keys = crate::topology::KEYS.into_iter();
    keys.map(|key| settings.get(key)).collect()
}

/// Takes over what a Gang object says about itself.
///
/// A version that the object had before is the late echo of an own write. Another one that promises
/// something else was written by somebody else: it is what holds, and the own status comes on top.
pub(super) fn take_record(gang: &mut Gang, record: GangRecord) {
    let plan = match record.plan {
        Ok(plan) => plan,
        Err(why) => {
            gang.record = Record::Unreadable(why);
            return;
        }
    };
    if gang.past_versions.contains(&record.resource_version) {
        return;
    }
    gang.know_object(record.object, record.object_uid, record.resource_version);
    let same = gang.acked.as_ref().map(|acked| acked.plan == plan);
    if same == Some(true) {
        return;
    }
    if same.is_none() && gang.plan.is_none() {
        gang.recovered.clone_from(&plan);
    }
    gang.acked = Some(GangStatus {
        phase: record.phase,
        plan,
        ..GangStatus::default()
    });
}
