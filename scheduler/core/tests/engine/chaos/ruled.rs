//! Rules between the members of a gang in a storm: nodes in two zones, jobs whose members keep apart
//! or are spread, and what must be so of them at every step.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_core::ids::{GangKey, NodeName};
use muster_core::interpod::{HOSTNAME, InterPodKind, InterPodRule, Spread};
use muster_core::node::{Node, Requirement, SelectorOperator};
use muster_core::pod::{Pod, PodShape};

use super::Storm;

const ZONE: &str = "zone";

/// Puts node number `index` into its zone.
pub fn label(node: &mut Node, index: u64) {
    let zone = if index.is_multiple_of(2) { "a" } else { "b" };
    node.labels.insert(ZONE.into(), zone.into());
}

fn rule(kind: InterPodKind, topology: &str) -> InterPodRule {
    InterPodRule {
        kind,
        topology: topology.into(),
        selector: [Requirement {
            key: "app".into(),
            operator: SelectorOperator::In(["gang".into()].into()),
        }]
        .into(),
    }
}

fn is_apart(rule: &InterPodRule) -> bool {
    rule.kind == InterPodKind::AntiAffinity && rule.is_by_node()
}

/// Rules that some job's members have.
#[derive(Clone, Copy, Default)]
pub struct Ruled {
    apart: bool,
    spread: bool,
}

impl Ruled {
    /// The shape with these rules.
    pub fn shape(self, shape: &Arc<PodShape>) -> Arc<PodShape> {
        let mut shape = (**shape).clone();
        if self.apart {
            let kind = InterPodKind::AntiAffinity;
            shape.between_pods.insert(rule(kind, HOSTNAME));
        }
        if self.spread {
            let kind = InterPodKind::Spread(Spread {
                skew_max: 1,
                domains_min: 1,
                ignores_affinity: false,
                honors_taints: false,
            });
            shape.between_pods.insert(rule(kind, ZONE));
        }
        Arc::new(shape)
    }
}

/// Members with these rules that find a place, when each node has room for so many.
pub fn places(shape: &PodShape, nodes: &[(&Node, u64)]) -> u64 {
    let apart = shape.between_pods.iter().any(is_apart);
    let spread = shape.between_pods.iter().any(|rule| !is_apart(rule));
    let each = |room: u64| if apart { room.min(1) } else { room };
    if !spread {
        return nodes.iter().map(|(_, room)| each(*room)).sum();
    }
    let mut zones: BTreeMap<&str, u64> = BTreeMap::new();
    for (node, room) in nodes {
        if let Some(zone) = node.labels.get(ZONE) {
            *zones.entry(zone).or_default() += each(*room);
        }
    }
    // No zone gets more than one above the one with the fewest.
    let fewest = zones.values().min().copied().unwrap_or(0);
    zones.values().map(|room| (*room).min(fewest + 1)).sum()
}

impl Storm {
    /// Rules for some of the gangs.
    pub(super) fn ruled(&mut self) -> Ruled {
        let ruled = self.rng.chance(35);
        let (apart, spread) = (self.rng.chance(65), self.rng.chance(50));
        Ruled {
            apart: ruled && apart,
            spread: ruled && spread,
        }
    }

    /// Two members that must not share a host do not.
    pub(super) fn check_apart(&self) {
        let mut standing: BTreeMap<(&GangKey, &NodeName), Vec<&Pod>> = BTreeMap::new();
        for pod in self.world.pods.values().filter(|pod| pod.is_alive()) {
            if let (Some(member), Some(node)) = (&pod.membership, &pod.node) {
                standing.entry((&member.gang, node)).or_default().push(pod);
            }
        }
        for ((gang, node), pods) in standing {
            let strict = |pod: &&&Pod| pod.shape.between_pods.iter().any(is_apart);
            let apart: Vec<&str> = pods.iter().filter(strict).map(|pod| &*pod.name).collect();
            assert!(
                apart.len() < 2,
                "{gang} has {apart:?} on {node}, which must be apart"
            );
        }
    }
}
