//! DEV-1: what is held on a node, and planned there, is within what it offers.
//!
//! What Muster itself has bound counts at once, whoever led: a Binding is known to its leader, and a later leader lists what
//! was bound before it plans. What others have put there counts once a scheduler has seen it.

use std::collections::BTreeMap;

use muster_embedded::standins::fit::Resources;
use muster_embedded::value;
use serde_json::Value;
use tokio::time::Instant;

use super::facts::PodFact;
use super::judge::Judge;
use super::sight::Grounds;

impl Judge {
    /// Pods that hold room of a node, as far as a scheduler must know.
    fn holders<'a>(
        &'a self,
        node: &'a str,
        grounds: &'a Grounds,
    ) -> impl Iterator<Item = &'a PodFact> {
        let counts = move |other: &&PodFact| {
            let seen = other.bound.is_none_or(|bound| grounds.know_pod(bound));
            other.node == node && other.holds() && (other.is_ours() || seen)
        };
        self.pods.values().filter(counts)
    }

    /// A pod was bound.
    pub(super) fn judge_room(&mut self, pod: &PodFact, grounds: &Grounds) {
        let Some(node) = self.nodes.get(&pod.node) else {
            return;
        };
        let holders: Vec<&PodFact> = self.holders(&pod.node, grounds).collect();
        let mut broken = Vec::new();
        for (resource, asked) in pod.requests.iter() {
            let held = sum(holders.iter().copied(), resource);
            let offered = node.offered(resource, grounds);
            if *asked > 0 && held > offered {
                broken.push(format!(
                    "DEV-1: {} is bound to {}, where {held} of {offered} {resource} (thousandths) are held by {}",
                    pod.name,
                    pod.node,
                    names(&holders)
                ));
            }
        }
        for text in broken {
            self.violated(text, &[&pod.name, &pod.node]);
        }
    }

    /// A plan was made: beside what others hold there is room for the members that it is yet to bind.
    pub(super) fn judge_plan_room(&mut self, gang: &Value, members: &[Value], grounds: &Grounds) {
        let workload = value::text(gang, &["spec", "workload", "uid"]);
        let key = format!("{}/{workload}", value::namespace(gang));
        let plan = value::text(gang, &["status", "planId"]);
        let mut broken = Vec::new();
        for (node, planned) in self.planned(members) {
            let Some(fact) = self.nodes.get(&node) else {
                continue;
            };
            let others = self
                .holders(&node, grounds)
                .filter(|other| other.gang != key);
            // A plan is judged when it arrives, which may be long after it was made, and given back since.
            let others = others.filter(|other| !is_later(&other.plan, plan));
            // A repair keeps its plan's number: the same, by when it was written.
            let others = others.filter(|other| {
                self.moved(other, &node)
                    .is_none_or(|since| grounds.know_plan(since))
            });
            let others: Vec<&PodFact> = others.collect();
            for (resource, planned) in planned {
                let held = sum(others.iter().copied(), &resource);
                let offered = fact.offered(&resource, grounds);
                if planned > 0 && planned.saturating_add(held) > offered {
                    broken.push(format!(
                        "DEV-1: gang {} is planned on {node} with {planned} {resource} (thousandths), where {held} of \
                         {offered} are held by {}",
                        value::name(gang),
                        names(&others)
                    ));
                }
            }
        }
        for text in broken {
            self.violated(text, &[value::name(gang)]);
        }
    }

    /// When a pod's plan was changed so that it came to this node; `None` when it had been planned there from the first.
    fn moved(&self, pod: &PodFact, node: &str) -> Option<Instant> {
        self.plans.get(&pod.plan)?.moved(&pod.uid, node)
    }

    /// What the members of a plan that are not bound yet will hold, by node. Of one that has no pod yet only the devices
    /// are known.
    fn planned(&self, members: &[Value]) -> BTreeMap<String, Resources> {
        let mut planned: BTreeMap<String, Resources> = BTreeMap::new();
        for member in members {
            let pod = self.pods.get(value::text(member, &["podUid"]));
            let settled = value::flag(member, &["ended"]) || value::flag(member, &["bound"]);
            if settled || pod.is_some_and(|pod| !pod.node.is_empty()) {
                continue;
            }
            let node = value::text(member, &["node"]).to_owned();
            let on_node = planned.entry(node).or_default();
            let requests =
                pod.map_or_else(|| devices(member), |pod| Resources::clone(&pod.requests));
            for (resource, amount) in requests {
                let sum = on_node.entry(resource).or_default();
                *sum = sum.saturating_add(amount);
            }
        }
        planned
    }
}

/// Whether a plan was made after another one: `eEPOCH-NUMBER`, see `muster_core::ids`.
fn is_later(plan: &str, than: &str) -> bool {
    let order = |id: &str| -> Option<(u64, u64)> {
        let (epoch, number) = id.strip_prefix('e')?.split_once('-')?;
        Some((epoch.parse().ok()?, number.parse().ok()?))
    };
    order(plan)
        .zip(order(than))
        .is_some_and(|(plan, than)| plan > than)
}

fn devices(member: &Value) -> Resources {
    let devices = value::items(member, &["devices"]).len();
    let thousandths = i128::try_from(devices)
        .unwrap_or(i128::MAX)
        .saturating_mul(1000);
    Resources::from([("nvidia.com/gpu".to_owned(), thousandths)])
}

fn sum<'a>(pods: impl Iterator<Item = &'a PodFact>, resource: &str) -> i128 {
    pods.filter_map(|pod| pod.requests.get(resource))
        .fold(0, |sum, amount| sum.saturating_add(*amount))
}

fn names(pods: &[&PodFact]) -> String {
    let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::is_later;

    #[test]
    fn plans_are_in_order_of_their_numbers() {
        assert!(is_later("e379-12", "e379-11") && is_later("e380-1", "e379-11"));
        assert!(!is_later("e379-9", "e379-11") && !is_later("", "e379-11"));
    }
}
