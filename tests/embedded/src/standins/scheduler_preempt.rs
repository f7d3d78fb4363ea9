//! DefaultPreemption of the kube-scheduler stand-in: pod by pod, the cheapest node, extenders may veto.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fit::{self, Misfit};
use super::kinds::PODS;
use super::scheduler::Scheduler;
use super::scheduler_cache::{CacheNode, Placed, priority, without};
use crate::api::DeleteOptions;
use crate::value;

impl Scheduler {
    /// Deletes pods of lower priority so that `pod` fits somewhere; returns the node it is nominated to.
    pub(crate) async fn preempt(
        &self,
        pod: &Value,
        misfits: &BTreeMap<String, Misfit>,
    ) -> Option<String> {
        if value::text(pod, &["spec", "preemptionPolicy"]) == "Never" {
            return None;
        }
        let mut victims: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (name, _) in misfits.iter().filter(|(_, m)| m.resolvable) {
            let chosen = self
                .cache
                .nodes
                .get(name)
                .and_then(|n| choose_victims(pod, n));
            if let Some(chosen) = chosen {
                victims.insert(name.clone(), chosen);
            }
        }
        for extender in &self.config.extenders {
            if victims.is_empty() {
                return None;
            }
            if extender.config.preempt_verb.is_empty() || !extender.is_interested(pod) {
                continue;
            }
            match extender.preempt(pod, &victims).await {
                Ok(left) => {
                    victims.retain(|node, _| left.contains_key(node));
                    for (node, pods) in &mut victims {
                        let uids = left.get(node).map(Vec::as_slice).unwrap_or_default();
                        pods.retain(|p| uids.iter().any(|u| u == value::uid(p)));
                    }
                }
                Err(error) if extender.config.ignorable => {
                    tracing::debug!(%error, "ignorable extender passed over")
                }
                Err(error) => {
                    tracing::debug!(%error, "preemption failed");
                    return None;
                }
            }
        }
        let cost = |pods: &[Value]| {
            let highest = pods.iter().map(priority).max().unwrap_or(i64::MIN);
            let sum = pods.iter().map(priority).fold(0_i64, i64::saturating_add);
            (highest, sum, pods.len())
        };
        let (node, pods) = victims
            .iter()
            .min_by_key(|(node, pods)| (cost(pods), (*node).clone()))?;
        for victim in pods {
            let options = DeleteOptions {
                uid: Some(value::uid(victim).into()),
                ..DeleteOptions::default()
            };
            let (namespace, name) = (value::namespace(victim), value::name(victim));
            match self.api.delete(PODS, namespace, name, &options) {
                Ok(()) => {
                    let text = format!("Preempted by pod {} on node {node}", value::uid(pod));
                    self.api.event(victim, "Normal", "Preempted", &text);
                }
                Err(error) => tracing::debug!(%error, name, "victim not deleted"),
            }
        }
        Some(node.clone())
    }
}

/// The fewest pods of lower priority to remove, or `None` when that does not help. Empty never: then it fits already.
fn choose_victims(pod: &Value, node: &CacheNode) -> Option<Vec<Value>> {
    let object = node.object.as_ref()?;
    let needs = fit::requests(pod);
    let mine = priority(pod);
    let mut lower: Vec<&Placed> = node
        .pods
        .values()
        .filter(|p| priority(&p.object.value) < mine)
        .collect();
    let all_gone = without(&node.taken, &lower);
    fit::check_with(pod, &needs, &object.value, &node.gives, &all_gone).ok()?;
    // Give back the most important ones first, as long as the pod still fits.
    lower.sort_by_key(|p| {
        (
            std::cmp::Reverse(priority(&p.object.value)),
            value::uid(&p.object.value).to_owned(),
        )
    });
    let mut gone: Vec<&Placed> = lower.clone();
    for candidate in &lower {
        let rest: Vec<&Placed> = gone
            .iter()
            .filter(|g| !std::ptr::eq(**g, *candidate))
            .copied()
            .collect();
        let taken = without(&node.taken, &rest);
        if fit::check_with(pod, &needs, &object.value, &node.gives, &taken).is_ok() {
            gone = rest;
        }
    }
    (!gone.is_empty()).then(|| gone.iter().map(|p| p.object.value.clone()).collect())
}
