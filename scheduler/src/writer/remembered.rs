//! Statuses of Gang objects as they were last written: what the next status needs of them, the times of conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use muster_core::ids::GangKey;
use muster_kubernetes::gang::GangStatus;
use tokio::time::Instant;

use crate::locked;

/// Most gangs whose status is remembered; beyond that it is read again.
const REMEMBERED_MAX: usize = 50_000;

/// Gangs of which it is known that their object has gone: twice as many at most. Of more that go at once the first are forgotten.
const GONE_MAX: usize = 4_096;

/// For how long that is known at least; those of before go with the next deletion after that. The answer to a write comes some seconds
/// after the word of a deletion.
const GONE_FOR: Duration = Duration::from_secs(300);

/// What was written last, by gang: without its members.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    last: BTreeMap<GangKey, Last>,
    gone: Gone,
}

/// Gangs whose object went last: an answer that is later than the word of that brings nothing back.
#[derive(Debug, Default)]
struct Gone {
    new: BTreeSet<GangKey>,
    /// Those that are forgotten next.
    old: BTreeSet<GangKey>,
    /// Since when the new ones are written down.
    since: Option<Instant>,
}

impl Gone {
    fn add(&mut self, gang: &GangKey, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= GONE_FOR || self.new.len() >= GONE_MAX {
            self.old = std::mem::take(&mut self.new);
            self.since = Some(now);
        }
        self.new.insert(gang.clone());
    }

    fn remove(&mut self, gang: &GangKey) {
        self.new.remove(gang);
        self.old.remove(gang);
    }

    fn contains(&self, gang: &GangKey) -> bool {
        self.new.contains(gang) || self.old.contains(gang)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.new.len() + self.old.len()
    }
}

#[derive(Debug)]
struct Last {
    /// Name of the Gang object.
    object: String,
    status: GangStatus,
}

impl Remembered {
    /// Gangs whose status is remembered.
    pub fn len(&self) -> usize {
        locked(&self.0).last.len()
    }

    /// Whether no status is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The watch tells that the Gang object of a gang is gone.
    pub fn gone(&self, gang: &GangKey) {
        let mut known = locked(&self.0);
        known.last.remove(gang);
        known.gone.add(gang, Instant::now());
    }

    /// The watch tells of a gang's Gang object: one may be made before it tells that another is gone.
    pub fn is_there(&self, gang: &GangKey) {
        locked(&self.0).gone.remove(gang);
    }

    /// It is not known any more what a Gang object says.
    pub(super) fn forget(&self, gang: &GangKey) {
        locked(&self.0).last.remove(gang);
    }

    /// The same as [`Remembered::keep`], of an object that was made.
    pub(super) fn keep_made(&self, gang: &GangKey, object: &str, status: Option<GangStatus>) {
        locked(&self.0).gone.remove(gang);
        self.keep(gang, object, status);
    }

    /// Keeps what the next status needs of this one: its conditions and its epoch.
    pub(super) fn keep(&self, gang: &GangKey, object: &str, status: Option<GangStatus>) {
        let mut known = locked(&self.0);
        if known.gone.contains(gang) {
            return;
        }
        let all = &mut known.last;
        if all.len() >= REMEMBERED_MAX {
            all.clear();
        }
        let mut status = status.unwrap_or_default();
        status.members = Vec::new();
        let object = object.to_owned();
        all.insert(gang.clone(), Last { object, status });
    }

    /// What was written last to a gang's object of this name.
    pub(super) fn recall(&self, gang: &GangKey, object: &str) -> Option<GangStatus> {
        let known = locked(&self.0);
        let last = known.last.get(gang).filter(|last| last.object == object);
        last.map(|last| last.status.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_later_than_the_word_of_the_deletion_brings_nothing_back() {
        let (remembered, gang) = (Remembered::default(), GangKey::new("ns", "uid"));
        remembered.keep_made(&gang, "train", None);
        assert_eq!(remembered.len(), 1);
        remembered.gone(&gang);
        remembered.keep(&gang, "train", None);
        assert!(remembered.is_empty());
        // Somebody has deleted the object alone: it is made again.
        remembered.keep_made(&gang, "train", None);
        remembered.keep(&gang, "train", None);
        assert!(remembered.recall(&gang, "train").is_some());
        assert!(remembered.recall(&gang, "other").is_none());
        // Made before the watch told that the one before is gone.
        remembered.gone(&gang);
        remembered.is_there(&gang);
        remembered.keep(&gang, "train", None);
        assert_eq!(remembered.len(), 1);
    }

    #[test]
    fn gangs_that_are_gone_are_forgotten_after_minutes_however_few_come_after_them() {
        let (mut gone, start) = (Gone::default(), Instant::now());
        let gang = |number: u64| GangKey::new("ns", &format!("uid-{number}"));
        for number in 0..2_000_u64 {
            gone.add(&gang(number), start + Duration::from_secs(number));
            assert!(gone.contains(&gang(number)));
            assert!(gone.contains(&gang(number.saturating_sub(299))));
        }
        // A soak had each of some thousand jobs add to them until all were forgotten at once.
        assert!(gone.len() <= 600, "{}", gone.len());
        assert!(!gone.contains(&gang(1_000)));
        gone.remove(&gang(1_999));
        assert!(!gone.contains(&gang(1_999)));
    }

    #[test]
    fn a_burst_of_deletions_is_remembered_in_bounds() {
        let (mut gone, now) = (Gone::default(), Instant::now());
        for number in 0..10_000 {
            gone.add(&GangKey::new("ns", &format!("uid-{number}")), now);
        }
        assert!(gone.len() <= 2 * GONE_MAX);
        assert!(gone.contains(&GangKey::new("ns", "uid-9999")));
    }
}
