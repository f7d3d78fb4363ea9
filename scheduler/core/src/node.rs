//! A node as the API server describes it, and the rules by which a pod may stand on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::ids::NodeName;
use crate::resources::Resources;
use crate::sharing::Shared;

/// A Node object, reduced to what placement looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: NodeName,
    /// `metadata.uid`: a node deleted and added again under its name is another node.
    pub uid: Arc<str>,
    /// `status.nodeInfo.bootID`; `None` when not known.
    pub boot_id: Option<Arc<str>>,
    /// `metadata.labels`.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
    /// Condition `Ready` is `True`.
    pub ready: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaintEffect {
    /// No new pods.
    NoSchedule,
    /// A wish; placement ignores it.
    PreferNoSchedule,
    /// No new pods, and running ones are evicted.
    NoExecute,
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// Taint key.
    pub key: Arc<str>,
    /// Taint value; empty when absent.
    pub value: Arc<str>,
    /// What it does.
    pub effect: TaintEffect,
}

impl fmt::Display for Taint {
    /// As kubectl has it: `nvidia.com/gpu=present:NoSchedule`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if !self.value.is_empty() {
            write!(f, "={}", self.value)?;
        }
        f.write_str(match self.effect {
            TaintEffect::NoSchedule => ":NoSchedule",
            TaintEffect::PreferNoSchedule => ":PreferNoSchedule",
            TaintEffect::NoExecute => ":NoExecute",
        })
    }
}

/// How a toleration compares values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TolerationOperator {
    /// Any value.
    Exists,
    /// This value.
    Equal(Arc<str>),
}

/// A pod's toleration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Toleration {
    /// `None` tolerates every key (with `Exists`).
    pub key: Option<Arc<str>>,
    /// How values compare.
    pub operator: TolerationOperator,
    /// `None` tolerates every effect.
    pub effect: Option<TaintEffect>,
}

impl Toleration {
    /// Whether this toleration covers `taint`.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && self.key.as_ref().is_none_or(|key| *key == taint.key)
            && match &self.operator {
                TolerationOperator::Exists => true,
                TolerationOperator::Equal(value) => *value == taint.value,
            }
    }
}

/// Taint by which the node lifecycle controller says that a node is short of memory. Its kubelet takes pods
/// that tolerate it and ask for something.
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/>
const MEMORY: &str = "node.kubernetes.io/memory-pressure";

/// Taints by which it says that a node is short of something else: its kubelet takes nobody new.
const PRESSURE: [&str; 2] = [
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
];

/// Taints by which controllers say that a node is not there yet, or not now, whatever its kubelet says.
const UNAVAILABLE: [&str; 3] = [
    "node.kubernetes.io/network-unavailable",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "node.cloudprovider.kubernetes.io/shutdown",
];

impl Node {
    /// Takes from `texts` what others have as well: its name, and labels and their values.
    pub fn share(&mut self, texts: &mut Shared<str>) {
        self.name.share(texts);
        let labels = std::mem::take(&mut self.labels);
        self.labels = labels
            .into_iter()
            .map(|(key, value)| (texts.share(key), texts.share(value)))
            .collect();
        for taint in &mut self.taints {
            texts.share_in(&mut taint.key);
            texts.share_in(&mut taint.value);
        }
    }

    /// The node without what passes: pressure. `None` where it has none that pods may tolerate.
    pub fn without_pressure(&self) -> Option<Self> {
        let is_memory = |taint: &Taint| &*taint.key == MEMORY;
        self.taints.iter().any(is_memory).then(|| {
            let mut node = self.clone();
            node.taints.retain(|taint| !is_memory(taint));
            node
        })
    }

    /// Its taints, but for those by which controllers say what state it is in, whatever a pod tolerates:
    /// cordoned, not ready, short of disk. That passes, and is no property of the node.
    pub fn own_taints(&self) -> impl Iterator<Item = &Taint> {
        self.taints.iter().filter(|taint| match &*taint.key {
            "node.kubernetes.io/unschedulable" => !self.unschedulable,
            "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable" => self.ready,
            key => !PRESSURE.contains(&key) && !UNAVAILABLE.contains(&key),
        })
    }

    /// Whether it is short of disk or process numbers. Its kubelet refuses pods then, also those that
    /// tolerate the taint.
    pub fn is_under_pressure(&self) -> bool {
        self.keeps_off_by(&PRESSURE)
    }

    /// Whether its kubelet is well, and nothing says that its network or its machine is not there.
    pub fn is_available(&self) -> bool {
        self.ready && !self.keeps_off_by(&UNAVAILABLE)
    }

    fn keeps_off_by(&self, keys: &[&str]) -> bool {
        self.taints.iter().any(|taint| {
            taint.effect != TaintEffect::PreferNoSchedule && keys.contains(&&*taint.key)
        })
    }
}

/// The first taint of `taints` that keeps a pod with `tolerations` away.
pub fn untolerated<'a>(
    taints: impl IntoIterator<Item = &'a Taint>,
    tolerations: &[Toleration],
) -> Option<&'a Taint> {
    taints.into_iter().find(|taint| {
        taint.effect != TaintEffect::PreferNoSchedule
            && !tolerations
                .iter()
                .any(|toleration| toleration.tolerates(taint))
    })
}

/// How a requirement of a node selector term compares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SelectorOperator {
    /// The value is one of these.
    In(BTreeSet<Arc<str>>),
    /// The value is none of these, or absent.
    NotIn(BTreeSet<Arc<str>>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The value, read as an integer, is larger.
    Gt(i64),
    /// The value, read as an integer, is smaller.
    Lt(i64),
}

/// One requirement of a node selector term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// Label key, or field name (`metadata.name`).
    pub key: Arc<str>,
    /// How it compares.
    pub operator: SelectorOperator,
}

impl Requirement {
    /// Whether a label with this value meets it; `None` is a label that is not there.
    pub fn holds(&self, value: Option<&str>) -> bool {
        match &self.operator {
            SelectorOperator::In(values) => value.is_some_and(|value| values.contains(value)),
            SelectorOperator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
            SelectorOperator::Gt(bound) => value
                .and_then(|value| value.parse::<i64>().ok())
                .is_some_and(|value| value > *bound),
            SelectorOperator::Lt(bound) => value
                .and_then(|value| value.parse::<i64>().ok())
                .is_some_and(|value| value < *bound),
        }
    }
}

/// One term of required node affinity: all of its requirements hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SelectorTerm {
    /// Requirements on labels.
    pub expressions: Vec<Requirement>,
    /// Requirements on `metadata.name`.
    pub fields: Vec<Requirement>,
}

impl SelectorTerm {
    /// Whether the term matches. An empty term matches nothing, as in Kubernetes.
    pub fn matches(&self, name: &str, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        if self.expressions.is_empty() && self.fields.is_empty() {
            return false;
        }
        self.expressions
            .iter()
            .all(|requirement| requirement.holds(labels.get(&requirement.key).map(AsRef::as_ref)))
            && self.fields.iter().all(|requirement| {
                &*requirement.key == "metadata.name" && requirement.holds(Some(name))
            })
    }
}

/// A port of the node that a pod takes: protocol, address, number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Arc<str>,
    /// `0.0.0.0` stands for every address.
    pub address: Arc<str>,
    /// Port number.
    pub port: u16,
}

impl HostPort {
    /// Whether two pods with these ports cannot share a node.
    pub fn conflicts(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || &*self.address == ANY || &*other.address == ANY)
    }
}
