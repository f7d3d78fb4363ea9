//! Pods that were let go towards one node, which cannot be changed any more: without their plan they are of no
//! use, and are deleted, so that their controller makes others.

use super::Engine;
use super::gang::Gang;
use crate::ids::PodUid;
use crate::pod::Pod;
use crate::time::Timestamp;

impl Engine {
    /// Notes the pods of the gang that its plan may have confined. One whose gate is still on is among them: the
    /// request that took it off may have come through without our having seen it. One that its user has confined,
    /// and that came without our gate, looks the same as ours do: only those count that were there under a plan, or
    /// before this leadership, and the pods that come after them are let be.
    pub(super) fn note_confined(&self, gang: &mut Gang) {
        if gang.is_job() {
            return;
        }
        let waiting = self
            .alive(gang)
            .filter(|pod| is_held(pod) || is_confined(pod));
        gang.confined = waiting.map(|pod| pod.uid.clone()).collect();
    }

    /// The same for all gangs, when this leadership begins to act: an earlier one may not have come to it.
    pub(super) fn note_all_confined(&mut self) {
        let mut gangs = std::mem::take(&mut self.gangs);
        for gang in gangs.values_mut() {
            self.note_confined(gang);
        }
        self.gangs = gangs;
    }

    /// Deletes them, for a gang without a plan in each round until they are gone: a deletion may fail, and none is
    /// sent while all is frozen.
    pub(super) fn delete_confined(&mut self, gang: &mut Gang, now: Timestamp) {
        let is_left = |uid: &PodUid| {
            let pod = self.pods.get(uid);
            pod.is_some_and(|pod| pod.is_alive() && (is_held(pod) || is_confined(pod)))
        };
        gang.confined.retain(is_left);
        for uid in &gang.confined {
            if self.pods.get(uid).is_some_and(is_confined) {
                self.delete_pod(&gang.key, uid, None, now);
            }
        }
    }
}

fn is_confined(pod: &Pod) -> bool {
    pod.node.is_none() && pod.controlled && !pod.gated && pod.shape.is_pinned()
}

/// Whether its gate is on, so that it can still be sent anywhere.
fn is_held(pod: &Pod) -> bool {
    pod.node.is_none() && pod.controlled && pod.gated
}
