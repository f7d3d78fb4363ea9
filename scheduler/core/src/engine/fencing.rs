//! The fence that a new leadership puts up before it plans: every pod that is not bound is stamped, and every Gang
//! object of which more may come, then both are listed afresh. A Binding of an earlier leader cites an older version of its pod, and
//! a plan an older one of its Gang: both are void. What was bound and promised until then, the LISTs show.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::gang::{Gang, Record};
use super::intake::take_record;
use super::{Engine, Lead, Purpose, Stamped};
use crate::action::{Action, WriteKind};
use crate::event::{Listing, WriteId, WriteOutcome};
use crate::ids::{GangKey, PodUid};
use crate::planted::{self, Bug};
use crate::record::Phase;
use crate::time::{Millis, Timestamp};
use crate::workload::WorkloadKind;

/// Pause before stamps that failed are repeated.
const FENCE_PAUSE: Millis = Millis(1000);
/// How long the LISTs of a new leadership are awaited before they are asked for again.
const RELIST_AGAIN: Millis = Millis::from_secs(30);

impl Engine {
    /// Stamps every pod that is not bound, so that no Binding of an earlier leader applies to it: a
    /// Binding names the resourceVersion that its sender saw. And the Gang object of every gang of which
    /// more may come, for which the same holds of plans. Where nobody has led before there is nobody to
    /// fence off, and however many pods wait already, planning begins at once.
    pub(super) fn start_fence(&mut self) {
        if self.lead != Lead::Fencing || !self.synced {
            return;
        }
        if self.leads_first || planted::is(Bug::NoFence) {
            self.lead = Lead::Yes;
        } else {
            self.stamp_all();
        }
    }

    /// A LIST after the stamps is in. With both there is one more round, or the fence is up.
    pub(super) fn relisted(&mut self, listing: Listing) {
        if self.lead != Lead::Relisting {
            return;
        }
        self.relisted.insert(listing);
        if self.relisted.len() == [Listing::Pods, Listing::Gangs].len() {
            self.end_fence();
        }
    }

    /// What the watch had not shown when the others were stamped is stamped now, and listed once more: an
    /// earlier leader may have known it.
    fn end_fence(&mut self) {
        if !self.fenced_again {
            self.fenced_again = true;
            self.lead = Lead::Fencing;
            self.stamp_all();
            if !self.stamps.is_empty() {
                return;
            }
        }
        self.fenced.clear();
        self.lead = Lead::Yes;
        // An earlier leader may have written them until they were stamped.
        self.recover_plans();
        self.note_all_confined();
        self.dirty_all();
    }

    /// What was promised is what the Gang objects say, not what was meant before.
    pub(super) fn recover_plans(&mut self) {
        for gang in self.gangs.values_mut().filter(|gang| gang.plan.is_none()) {
            gang.recovered = gang.acked.as_ref().and_then(|acked| acked.plan.clone());
        }
    }

    /// Stamps what has not been stamped in this leadership yet. Only the answer to a stamp tells that:
    /// whatever a pod says of itself, its user may have written.
    fn stamp_all(&mut self) {
        let under_way: BTreeSet<&Stamped> = self
            .stamps
            .iter()
            .filter_map(|id| match self.in_flight.get(id) {
                Some(Purpose::Stamp(what)) => Some(what),
                _ => None,
            })
            .chain(&self.restamp)
            .chain(&self.fenced)
            .collect();
        let unbound = self
            .pods
            .values()
            .filter(|pod| pod.node.is_none() && pod.is_alive())
            .map(|pod| Stamped::Pod(pod.uid.clone()));
        let promised = self.gangs.values().filter_map(|gang| gang_to_stamp(gang));
        let targets: Vec<Stamped> = unbound
            .chain(promised)
            .filter(|target| !under_way.contains(target))
            .collect();
        for target in targets {
            self.stamp(&target);
        }
    }

    fn stamp(&mut self, target: &Stamped) {
        let of = match target {
            Stamped::Pod(uid) => self.pod_stamp(uid),
            Stamped::Gang(key, uid) => self.record_stamp(key, uid),
        };
        if let Some((gang, what)) = of {
            let id = self.write(&gang, None, Purpose::Stamp(target.clone()), what);
            self.stamps.insert(id);
        }
    }

    fn pod_stamp(&self, uid: &PodUid) -> Option<(GangKey, WriteKind)> {
        let pod = self.pods.get(uid).filter(|pod| pod.node.is_none())?;
        let gang = pod.membership.as_ref().map_or_else(
            || GangKey::new(pod.namespace.as_str(), pod.uid.as_str()),
            |membership| membership.gang.clone(),
        );
        let pod = Self::target(pod);
        Some((gang, WriteKind::StampPod { pod }))
    }

    fn record_stamp(&self, key: &GangKey, of: &Arc<str>) -> Option<(GangKey, WriteKind)> {
        match &self.gangs.get(key)?.record {
            Record::Known {
                object,
                uid,
                version,
            } if uid == of => {
                let what = WriteKind::StampRecord {
                    object: Arc::clone(object),
                    uid: Arc::clone(uid),
                    resource_version: version.clone(),
                };
                Some((key.clone(), what))
            }
            _ => None,
        }
    }

    /// A stamp was answered. One of which nothing is known does not fence: it is repeated. One that
    /// is refused for good is given up, so that a single object cannot keep the leader from work.
    pub(super) fn stamped(
        &mut self,
        id: WriteId,
        what: Stamped,
        outcome: WriteOutcome,
        now: Timestamp,
    ) {
        if let WriteOutcome::Done(Some(record)) | WriteOutcome::Conflict(Some(record)) = &outcome {
            self.note_record(record);
        }
        if !self.stamps.remove(&id) || self.lead != Lead::Fencing {
            return;
        }
        let again = matches!(
            outcome,
            WriteOutcome::Unknown(_)
                | WriteOutcome::BindingUnknown { .. }
                | WriteOutcome::Conflict(_)
        );
        if let WriteOutcome::Done(Some(record)) | WriteOutcome::Conflict(Some(record)) = outcome
            && let Stamped::Gang(key, _) = &what
            && let Some(gang) = self.gangs.get_mut(key)
            // Not of one that is gone, or was made again since.
            && matches!(&gang.record, Record::Known { uid, .. } if *uid == record.object_uid)
        {
            take_record(gang, record);
        }
        if again {
            if self.restamp.is_empty() {
                self.fence_at = now + FENCE_PAUSE;
            }
            self.restamp.insert(what);
        } else {
            self.fenced.insert(what);
        }
        self.close_fence(now);
    }

    fn close_fence(&mut self, now: Timestamp) {
        if self.lead == Lead::Fencing && self.stamps.is_empty() && self.restamp.is_empty() {
            self.lead = Lead::Relisting;
            self.fence_at = now + RELIST_AGAIN;
            self.relisted.clear();
            self.actions.push_back(Action::Relist);
            if planted::is(Bug::NoListAfterStamps) {
                self.end_fence();
            }
        }
    }

    /// Repeats stamps that failed, and asks again for a LIST that does not come.
    pub(super) fn tend_fence(&mut self, now: Timestamp) {
        if !self.synced {
            return;
        }
        let due = now >= self.fence_at;
        match self.lead {
            Lead::Fencing => {
                if due {
                    for target in std::mem::take(&mut self.restamp) {
                        self.stamp(&target);
                    }
                }
                self.close_fence(now);
            }
            Lead::Relisting if due => {
                self.fence_at = now + RELIST_AGAIN;
                self.actions.push_back(Action::Relist);
            }
            _ => {}
        }
    }
}

/// The stamp that a gang's object needs. A job that has ended begins no second time; pods of a label or a PodGroup may
/// come again.
fn gang_to_stamp(gang: &Gang) -> Option<Stamped> {
    let Record::Known { uid, .. } = &gang.record else {
        return None;
    };
    let phase = gang.acked.as_ref().map(|acked| acked.phase);
    let has_ended = matches!(phase, Some(Phase::Succeeded | Phase::Failed))
        && matches!(gang.kind, WorkloadKind::PyTorchJob | WorkloadKind::Pod);
    (!has_ended).then(|| Stamped::Gang(gang.key.clone(), Arc::clone(uid)))
}
