//! Rules between pods: required anti-affinity, required affinity, and topology spread that must
//! hold. They speak of domains: nodes with the same value of one label, or single nodes where the
//! label is the host name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::node::Requirement;

/// Label whose domains are single nodes.
pub const HOSTNAME: &str = "kubernetes.io/hostname";

/// Labels of a pod.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// One rule of a pod about pods of its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterPodRule {
    /// What it asks for.
    pub kind: InterPodKind,
    /// Label of nodes; nodes with the same value are one domain.
    pub topology: Arc<str>,
    /// The pods that it speaks of: those whose labels meet every requirement.
    pub selector: BTreeSet<Requirement>,
}

/// What a rule between pods asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterPodKind {
    /// No other such pod in the pod's domain. Holds for pods that come later, too.
    AntiAffinity,
    /// At least one other such pod in the pod's domain.
    Affinity,
    /// The pod's domain has at most `skew_max` such pods more than the domain with the fewest.
    Spread(Spread),
}

/// How a topology spread constraint counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spread {
    /// `maxSkew`, at least 1.
    pub skew_max: u32,
    /// `minDomains`: with fewer domains than this, the fewest counts as none.
    pub domains_min: u32,
    /// `nodeAffinityPolicy: Ignore`: nodes that the pod does not select are domains as well.
    pub ignores_affinity: bool,
    /// `nodeTaintsPolicy: Honor`: nodes with taints that the pod does not tolerate are not.
    pub honors_taints: bool,
}

impl InterPodRule {
    /// Whether it speaks of a pod with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.selector
            .iter()
            .all(|requirement| requirement.holds(labels.get(&requirement.key).map(AsRef::as_ref)))
    }

    /// Whether its domains are single nodes.
    pub fn is_by_node(&self) -> bool {
        &*self.topology == HOSTNAME
    }
}

/// Those of `labels` that one of `rules` looks at.
pub fn looked_at<'a>(labels: &Labels, rules: impl IntoIterator<Item = &'a InterPodRule>) -> Labels {
    let keys: BTreeSet<&Arc<str>> = rules
        .into_iter()
        .flat_map(|rule| &rule.selector)
        .map(|requirement| &requirement.key)
        .collect();
    labels
        .iter()
        .filter(|(key, _)| keys.contains(key))
        .map(|(key, value)| (Arc::clone(key), Arc::clone(value)))
        .collect()
}
