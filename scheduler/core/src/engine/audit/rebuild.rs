//! LEDGER-1: what is kept of each node, change by change, is what it comes to when it is added up afresh from pods,
//! reservations and reports. What drifts here is seen nowhere else: everything is planned on it.

use std::collections::BTreeSet;

use super::super::Engine;
use super::{Broken, Violation};
use crate::ids::NodeName;
use crate::snapshot::NodeCapacity;

impl Engine {
    /// Every node whose account, or what is planned on, is not what it should be; for tests, which have few nodes.
    pub fn audit_nodes(&self) -> Vec<Violation> {
        let names = self.ledger.accounted().cloned().collect();
        self.audit_ledger(&names)
    }

    /// The same for these nodes.
    pub(crate) fn audit_ledger(&self, names: &BTreeSet<NodeName>) -> Vec<Violation> {
        let uncharged = self.uncharged(names);
        let mut found = Vec::new();
        for node in names {
            let missing = uncharged.contains(node).then_some("the list of pods");
            let what = missing
                .or_else(|| self.wrongly_charged(node))
                .or_else(|| self.ledger.miscounted(node))
                .or_else(|| self.stale_capacity(node));
            if let Some(what) = what {
                let node = node.clone();
                let what = Broken::Ledger { node, what };
                found.push(Violation { gang: None, what });
            }
        }
        found
    }

    /// Nodes that a pod of ours holds room on without being charged for it.
    fn uncharged(&self, names: &BTreeSet<NodeName>) -> BTreeSet<NodeName> {
        let holds = self.pods.values().filter(|pod| pod.holds_room());
        let placed = holds.filter_map(|pod| Some((pod, pod.node.as_ref()?)));
        placed
            .filter(|(_, node)| names.contains(*node))
            .filter(|(pod, node)| !self.ledger.is_charged(&pod.uid, node, &pod.shape))
            .map(|(_, node)| node.clone())
            .collect()
    }

    /// Whether a pod is charged that holds no room there.
    fn wrongly_charged(&self, node: &NodeName) -> Option<&'static str> {
        let mut ours = self
            .ledger
            .pods_on(node)
            .filter_map(|uid| self.pods.get(uid));
        let wrong = ours.any(|pod| pod.node.as_ref() != Some(node) || !pod.holds_room());
        wrong.then_some("the list of pods")
    }

    /// Whether what the planner and Filter look at is out of date. A node that has just changed, or whose agent has
    /// just fallen silent, is brought up to date with the next decision.
    fn stale_capacity(&self, name: &NodeName) -> Option<&'static str> {
        let (now, limit) = (self.decided_at, self.config.report_age_max);
        let is_fresh = self.inventory.is_fresh(name, now, limit);
        let was_fresh = self.fresh.get(name).copied().unwrap_or(false);
        if self.dirty_nodes.contains(name) || is_fresh != was_fresh {
            return None;
        }
        let afresh = self
            .ledger
            .capacity(name, &self.inventory, &self.config, now);
        let known = self.snapshot.get(name);
        let shown = self.view.free.get(name);
        if shown.map(AsRef::as_ref) != afresh.as_ref().map(|afresh| &afresh.free) {
            return Some("the room shown to Filter");
        }
        match (known, &afresh) {
            (None, None) => None,
            (Some(known), Some(afresh)) => {
                (!is_same(known, afresh)).then_some("the room that is planned on")
            }
            _ => Some("whether it is planned on"),
        }
    }
}

fn is_same(known: &NodeCapacity, afresh: &NodeCapacity) -> bool {
    known.eligibility == afresh.eligibility
        && known.free == afresh.free
        && known.well == afresh.well
        && known.reported == afresh.reported
        && known.ports == afresh.ports
        && known.devices == afresh.devices
        && known.links == afresh.links
        && known.shared == afresh.shared
        && known.path == afresh.path
        && known.node == afresh.node
}
