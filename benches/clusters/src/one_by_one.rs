//! What gangs are planned against: each pod on its own.

use std::collections::BTreeMap;

use muster_core::plan::GangRequest;
use muster_core::resources::Resources;
use muster_core::snapshot::{Eligibility, Snapshot};

use crate::GPU;

/// The straightforward way: each pod on its own, every node filtered and scored. What it places is
/// counted against the next pod.
pub fn pod_by_pod(snapshot: &Snapshot, gang: &GangRequest) -> Option<Vec<usize>> {
    let mut taken: BTreeMap<usize, Resources> = BTreeMap::new();
    let mut places = Vec::new();
    for role in &gang.roles {
        for _ in &role.indices {
            let mut best: Option<(u64, usize)> = None;
            for (at, capacity) in snapshot.nodes().iter().enumerate() {
                let free = taken.get(&at).unwrap_or(&capacity.free);
                if capacity.eligibility != Eligibility::Eligible
                    || role.shape.mismatch(&capacity.node).is_some()
                    || free.shortage(&role.shape.requests).is_some()
                {
                    continue;
                }
                let score = (free.extended(GPU), at);
                best = Some(best.map_or(score, |best| best.min(score)));
            }
            let (_, at) = best?;
            let free = taken
                .entry(at)
                .or_insert_with(|| snapshot.nodes()[at].free.clone());
            free.subtract(&role.shape.requests);
            places.push(at);
        }
    }
    Some(places)
}
