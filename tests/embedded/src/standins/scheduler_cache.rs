//! What the kube-scheduler stand-in knows: nodes, what is taken on them, and pods it has assumed there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::fit::{self, Resources, Taken};
use super::fit_between::{self, Between, Populated};
use crate::api::store::Stored;
use crate::value;

/// A pod on a node.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) object: Arc<Stored>,
    needs: Resources,
    ports: Vec<(String, i64)>,
}

/// A node and its pods.
#[derive(Debug, Default)]
pub(crate) struct CacheNode {
    /// `None` while only pods of it are known.
    pub(crate) object: Option<Arc<Stored>>,
    pub(crate) gives: Resources,
    pub(crate) taken: Taken,
    pub(crate) pods: BTreeMap<String, Placed>,
}

/// Nodes by name, and the node of each placed pod by uid.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) nodes: BTreeMap<String, CacheNode>,
    places: BTreeMap<String, (String, bool)>,
    /// Placed pods that refuse others beside them.
    refusing: BTreeSet<String>,
}

impl Cache {
    pub(crate) fn set_node(&mut self, node: &Arc<Stored>) {
        let entry = self
            .nodes
            .entry(value::name(&node.value).to_owned())
            .or_default();
        entry.gives = fit::allocatable(&node.value);
        entry.object = Some(node.clone());
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(entry) = self.nodes.get_mut(name) {
            entry.object = None;
            if entry.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Whether the pod is assumed on a node and not yet seen there.
    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.places.get(uid).is_some_and(|(_, assumed)| *assumed)
    }

    /// Puts a pod onto a node; `assumed` until its binding is seen.
    pub(crate) fn place(&mut self, pod: &Arc<Stored>, node: &str, assumed: bool) {
        let uid = value::uid(&pod.value).to_owned();
        self.forget(&uid);
        let placed = Placed {
            object: pod.clone(),
            needs: fit::requests(&pod.value),
            ports: fit::host_ports(&pod.value),
        };
        if fit_between::refuses_others(&pod.value) {
            self.refusing.insert(uid.clone());
        }
        let entry = self.nodes.entry(node.to_owned()).or_default();
        fit::add(&mut entry.taken.resources, &placed.needs);
        entry.taken.ports.extend(placed.ports.iter().cloned());
        entry.pods.insert(uid.clone(), placed);
        self.places.insert(uid, (node.to_owned(), assumed));
    }

    /// Takes a pod off its node; true when it was on one.
    pub(crate) fn forget(&mut self, uid: &str) -> bool {
        let Some((node, _)) = self.places.remove(uid) else {
            return false;
        };
        self.refusing.remove(uid);
        let Some(entry) = self.nodes.get_mut(&node) else {
            return true;
        };
        let Some(placed) = entry.pods.remove(uid) else {
            return true;
        };
        entry.taken = without(&entry.taken, &[&placed]);
        if entry.object.is_none() && entry.pods.is_empty() {
            self.nodes.remove(&node);
        }
        true
    }

    /// What the placed pods allow to this one; `None` where nobody asks for anything about others.
    pub(crate) fn between(&self, pod: &Value) -> Option<Between> {
        if self.refusing.is_empty() && !fit_between::asks(pod) {
            return None;
        }
        let populated: Vec<Populated> = self
            .nodes
            .values()
            .filter_map(|entry| {
                Some(Populated {
                    node: &entry.object.as_ref()?.value,
                    pods: entry.pods.values().map(|p| &p.object.value).collect(),
                })
            })
            .collect();
        Some(Between::new(pod, &populated))
    }

    pub(crate) fn clear_pods(&mut self) {
        let bound: Vec<String> = self
            .places
            .iter()
            .filter(|(_, (_, assumed))| !assumed)
            .map(|(u, _)| u.clone())
            .collect();
        for uid in bound {
            self.forget(&uid);
        }
    }
}

/// What is taken once these pods are gone.
pub(crate) fn without(taken: &Taken, gone: &[&Placed]) -> Taken {
    let mut left = taken.clone();
    for placed in gone {
        for (resource, amount) in &placed.needs {
            if let Some(slot) = left.resources.get_mut(resource) {
                *slot = slot.saturating_sub(*amount);
            }
        }
        for port in &placed.ports {
            if let Some(at) = left.ports.iter().position(|p| p == port) {
                left.ports.swap_remove(at);
            }
        }
    }
    left
}

/// Priority of a pod.
pub(crate) fn priority(pod: &Value) -> i64 {
    value::int(pod, &["spec", "priority"]).unwrap_or(0)
}
