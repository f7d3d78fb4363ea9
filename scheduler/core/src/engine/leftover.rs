//! Gang objects that outlive their gangs. Neither a label nor a PodGroup that is gone takes its Gang
//! object along, so it is deleted, however often that fails. A restart finds it without its gang and
//! begins anew. A gang that comes back under its name takes the object over.

use std::sync::Arc;

use super::gang::{Gang, Record};
use super::{Engine, Purpose};
use crate::action::WriteKind;
use crate::event::{WriteId, WriteOutcome};
use crate::ids::{GangKey, ResourceVersion};
use crate::record::GangRecord;
use crate::time::{Millis, Timestamp};
use crate::workload::WorkloadKind;

/// A Gang object to be deleted.
#[derive(Clone, Debug)]
pub(super) struct Leftover {
    object: Arc<str>,
    object_uid: Arc<str>,
    version: ResourceVersion,
    /// The deletion that is on its way.
    write: Option<WriteId>,
    /// When it is tried again.
    again_at: Timestamp,
    /// Deletions that failed in a row.
    failures: u32,
}

impl Engine {
    /// Has the Gang object of a gang that is gone deleted.
    pub(super) fn leave_over(&mut self, gang: &Gang) {
        if matches!(gang.kind, WorkloadKind::Label | WorkloadKind::PodGroup)
            && let Record::Known {
                object,
                uid,
                version,
            } = &gang.record
        {
            let leftover = Leftover {
                object: Arc::clone(object),
                object_uid: Arc::clone(uid),
                version: version.clone(),
                write: None,
                again_at: Timestamp(0),
                failures: 0,
            };
            self.leftovers.insert(gang.key.clone(), leftover);
            self.delete_leftover(&gang.key);
        }
    }

    fn delete_leftover(&mut self, key: &GangKey) {
        let Some(leftover) = self.leftovers.get(key) else {
            return;
        };
        let what = WriteKind::DeleteRecord {
            object: Arc::clone(&leftover.object),
            object_uid: Arc::clone(&leftover.object_uid),
            resource_version: leftover.version.clone(),
        };
        let id = self.write(key, None, Purpose::DeleteRecord(key.clone()), what);
        if let Some(leftover) = self.leftovers.get_mut(key) {
            leftover.write = Some(id);
        }
    }

    /// Whether an object is one that is being deleted: what the watch says of it is old, and no plan
    /// is written into it.
    pub(super) fn is_leftover(&self, record: &GangRecord) -> bool {
        let is_back = self.gangs.contains_key(&record.key);
        self.leftovers.get(&record.key).is_some_and(|leftover| {
            leftover.object_uid == record.object_uid && (!is_back || leftover.write.is_some())
        })
    }

    pub(super) fn record_deleted(
        &mut self,
        key: &GangKey,
        id: WriteId,
        outcome: &WriteOutcome,
        now: Timestamp,
    ) {
        let pause = self.config.retry_after.0;
        let Some(leftover) = self.leftovers.get_mut(key) else {
            return;
        };
        if leftover.write != Some(id) {
            return;
        }
        if matches!(outcome, WriteOutcome::Done(_) | WriteOutcome::Gone) {
            self.leftovers.remove(key);
            return;
        }
        leftover.write = None;
        leftover.again_at = now + Millis(pause.saturating_mul(1 << leftover.failures.min(4)));
        leftover.failures = leftover.failures.saturating_add(1);
    }

    /// Repeats deletions that failed, unless the gang has come back.
    pub(super) fn tend_leftovers(&mut self, now: Timestamp) {
        let gangs = &self.gangs;
        self.leftovers
            .retain(|key, leftover| leftover.write.is_some() || !gangs.contains_key(key));
        let due: Vec<GangKey> = self
            .leftovers
            .iter()
            .filter(|(_, leftover)| leftover.write.is_none() && leftover.again_at <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.delete_leftover(&key);
        }
    }

    /// When a deletion is to be repeated.
    pub(super) fn next_leftover(&self) -> Option<Timestamp> {
        self.leftovers
            .values()
            .filter(|leftover| leftover.write.is_none())
            .map(|leftover| leftover.again_at)
            .min()
    }

    /// The leadership is over: no answer is awaited any more.
    pub(super) fn forget_leftover_writes(&mut self) {
        for leftover in self.leftovers.values_mut() {
            leftover.write = None;
        }
    }
}
