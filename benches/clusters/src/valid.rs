//! Whether a plan is real, told from the rules and not from the planner.

use std::collections::{BTreeMap, BTreeSet};

use muster_core::ids::NodeName;
use muster_core::plan::{GangRequest, Placement};
use muster_core::resources::Resources;
use muster_core::snapshot::{Eligibility, Snapshot};

use crate::GPU;

/// Says what is wrong with a plan for a gang none of which has a place yet: each member once, on a node that it tolerates
/// and that has room for all of its members together, on devices that are there and of nobody else, within the level that
/// is required.
pub fn fault(snapshot: &Snapshot, gang: &GangRequest, placement: &Placement) -> Option<String> {
    let wanted: BTreeSet<_> = gang
        .roles
        .iter()
        .flat_map(|role| role.indices.iter().map(|index| (role.role.clone(), *index)))
        .collect();
    let placed: BTreeSet<_> = placement
        .members
        .iter()
        .map(|member| (member.role.clone(), member.index))
        .collect();
    if placed != wanted || placement.members.len() != wanted.len() {
        return Some(format!(
            "{} members have {} places",
            wanted.len(),
            placement.members.len()
        ));
    }
    let mut asked: BTreeMap<&NodeName, Resources> = BTreeMap::new();
    let (mut devices, mut homes) = (BTreeSet::new(), BTreeSet::new());
    for member in &placement.members {
        let place = format!("{} {} on {}", member.role, member.index, member.node);
        let Some(capacity) = snapshot.get(&member.node) else {
            return Some(format!("{place}: there is no such node"));
        };
        let role = gang.roles.iter().find(|role| role.role == member.role);
        let shape = role.map(|role| &role.shape)?;
        if capacity.eligibility != Eligibility::Eligible || shape.mismatch(&capacity.node).is_some()
        {
            return Some(format!("{place}: the node takes none like it"));
        }
        asked.entry(&member.node).or_default().add(&shape.requests);
        if member.devices.len() as u64 != shape.requests.extended(GPU) {
            return Some(format!("{place}: {} devices", member.devices.len()));
        }
        for device in &member.devices {
            let there = capacity.devices.iter().any(|there| there.uuid == *device);
            if !there || !devices.insert(device) {
                return Some(format!("{place}: {device} is not there, or given twice"));
            }
        }
        if let Some(level) = gang.topology.required {
            homes.insert(capacity.place().get(..=level));
        }
    }
    let full = asked.iter().find(|(node, asked)| {
        let free = snapshot.get(node).map(|capacity| &capacity.free);
        free.is_none_or(|free| free.shortage(asked).is_some())
    });
    if let Some((node, _)) = full {
        return Some(format!("{node} is given out beyond its room"));
    }
    (homes.len() > 1).then(|| format!("{} homes where one is required", homes.len()))
}
