//! Is any node ever asked for more than it has?

use std::collections::{BTreeMap, BTreeSet};

use super::{Amounts, Change, History, PodState, Violation, World};

impl History {
    /// Bindings that took more of a node than it offered at that instant, counting bound pods until they finish or are gone (a pod being
    /// deleted still holds its GPUs). A node that shrinks under running pods is no violation; a pod bound afterwards to what is no
    /// longer there is one. A node the history does not know is passed over.
    pub fn over_commitments(&self) -> Vec<Violation> {
        let mut world = World::default();
        let mut used: BTreeMap<String, Amounts> = BTreeMap::new();
        let mut holding: BTreeSet<String> = BTreeSet::new();
        let mut violations = Vec::new();
        for event in &self.events {
            match &event.change {
                Change::Pod(pod) => {
                    let before = world
                        .pods
                        .get(&pod.uid)
                        .filter(|old| old.holds_resources())
                        .cloned();
                    if let Some(old) = &before {
                        book(&mut used, old, -1);
                    }
                    let newly = pod.holds_resources() && holding.insert(pod.uid.clone());
                    if pod.holds_resources() {
                        book(&mut used, pod, 1);
                    }
                    world.apply(&event.change);
                    if newly {
                        violations.extend(over(&world, &used, pod, event.at));
                    }
                }
                Change::PodGone(pod) => {
                    if let Some(old) = world.pods.get(&pod.uid).filter(|old| old.holds_resources())
                    {
                        book(&mut used, old, -1);
                    }
                    world.apply(&event.change);
                }
                _ => world.apply(&event.change),
            }
        }
        violations
    }
}

fn book(used: &mut BTreeMap<String, Amounts>, pod: &PodState, sign: i128) {
    let Some(node) = &pod.node else { return };
    let node = used.entry(node.clone()).or_default();
    for (resource, amount) in &pod.requests {
        let entry = node.entry(resource.clone()).or_default();
        *entry = entry.saturating_add(amount.saturating_mul(sign));
    }
}

/// What the node lacks of the resources that this pod asks for.
fn over(
    world: &World,
    used: &BTreeMap<String, Amounts>,
    pod: &PodState,
    at: jiff::Timestamp,
) -> Vec<Violation> {
    let Some(name) = &pod.node else {
        return Vec::new();
    };
    let (Some(node), Some(used)) = (world.nodes.get(name), used.get(name)) else {
        return Vec::new();
    };
    let holders = |resource: &str| -> Vec<String> {
        world
            .pods
            .values()
            .filter(|other| other.node.as_ref() == Some(name) && other.holds_resources())
            .filter(|other| {
                other
                    .requests
                    .get(resource)
                    .is_some_and(|amount| *amount > 0)
            })
            .map(|other| format!("{}/{}", other.namespace, other.name))
            .collect()
    };
    pod.requests
        .iter()
        .filter(|(_, amount)| **amount > 0)
        .filter_map(|(resource, _)| {
            let used = used.get(resource).copied().unwrap_or(0);
            let allocatable = node.allocatable.get(resource).copied().unwrap_or(0);
            (used > allocatable).then(|| Violation::OverCommitted {
                node: name.clone(),
                pod: format!("{}/{}", pod.namespace, pod.name),
                at,
                resource: resource.clone(),
                used,
                allocatable,
                pods: holders(resource),
            })
        })
        .collect()
}
