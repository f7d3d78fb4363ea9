//! The fence that a new leadership puts up before it plans: every pod that is not bound is stamped,
//! then listed afresh. A Binding of an earlier leader cites an older version of its pod and is void;
//! what it has bound until then, the LIST shows.

use std::collections::BTreeSet;

use super::{Engine, Lead, Purpose};
use crate::action::{Action, WriteKind};
use crate::event::{WriteId, WriteOutcome};
use crate::ids::{GangKey, PodUid};
use crate::planted::{self, Bug};
use crate::time::{Millis, Timestamp};

/// Pause before stamps that failed are repeated.
const FENCE_PAUSE: Millis = Millis(1000);
/// How long the LIST of a new leadership is awaited before it is asked for again.
const RELIST_AGAIN: Millis = Millis::from_secs(30);

impl Engine {
    /// Stamps every pod that is not bound, so that no Binding of an earlier leader applies to it: a
    /// Binding names the resourceVersion that its sender saw. Where nobody has led before there is nobody
    /// to fence off, and however many pods wait already, planning begins at once.
    pub(super) fn start_fence(&mut self) {
        if self.lead != Lead::Fencing || !self.synced {
            return;
        }
        if self.leads_first || planted::is(Bug::NoFence) {
            self.lead = Lead::Yes;
        } else {
            self.stamp_unbound();
        }
    }

    /// The LIST after the stamps is in. Pods that the watch had not shown when the others were stamped
    /// are stamped now, and listed once more: an earlier leader may have known them.
    pub(super) fn end_fence(&mut self) {
        if !self.fenced_again {
            self.fenced_again = true;
            self.lead = Lead::Fencing;
            self.stamp_unbound();
            if !self.stamps.is_empty() {
                return;
            }
        }
        self.fenced.clear();
        self.lead = Lead::Yes;
        self.note_all_confined();
        self.dirty_all();
    }

    /// Stamps what is not bound and has not been stamped in this leadership yet. Only the answer to a
    /// stamp tells that: whatever a pod says of itself, its user may have written.
    fn stamp_unbound(&mut self) {
        let under_way: BTreeSet<&PodUid> = self
            .stamps
            .iter()
            .filter_map(|id| match self.in_flight.get(id) {
                Some(Purpose::Stamp(uid)) => Some(uid),
                _ => None,
            })
            .chain(&self.restamp)
            .chain(&self.fenced)
            .collect();
        let targets: Vec<PodUid> = self
            .pods
            .values()
            .filter(|pod| pod.node.is_none() && pod.is_alive())
            .filter(|pod| !under_way.contains(&pod.uid))
            .map(|pod| pod.uid.clone())
            .collect();
        for uid in targets {
            self.stamp(&uid);
        }
    }

    fn stamp(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid).filter(|pod| pod.node.is_none()) else {
            return;
        };
        let gang = pod.membership.as_ref().map_or_else(
            || GangKey::new(pod.namespace.as_str(), pod.uid.as_str()),
            |membership| membership.gang.clone(),
        );
        let what = WriteKind::StampPod {
            pod: Self::target(pod),
        };
        let id = self.write(&gang, None, Purpose::Stamp(uid.clone()), what);
        self.stamps.insert(id);
    }

    /// A stamp was answered. One of which nothing is known does not fence: it is repeated. One that
    /// is refused for good is given up, so that a single pod cannot keep the leader from work.
    pub(super) fn stamped(
        &mut self,
        id: WriteId,
        pod: &PodUid,
        outcome: &WriteOutcome,
        now: Timestamp,
    ) {
        if !self.stamps.remove(&id) || self.lead != Lead::Fencing {
            return;
        }
        if matches!(
            outcome,
            WriteOutcome::Unknown(_)
                | WriteOutcome::BindingUnknown { .. }
                | WriteOutcome::Conflict(_)
        ) {
            if self.restamp.is_empty() {
                self.fence_at = now + FENCE_PAUSE;
            }
            self.restamp.insert(pod.clone());
        } else {
            self.fenced.insert(pod.clone());
        }
        self.close_fence(now);
    }

    fn close_fence(&mut self, now: Timestamp) {
        if self.lead == Lead::Fencing && self.stamps.is_empty() && self.restamp.is_empty() {
            self.lead = Lead::Relisting;
            self.fence_at = now + RELIST_AGAIN;
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
                    for uid in std::mem::take(&mut self.restamp) {
                        self.stamp(&uid);
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
