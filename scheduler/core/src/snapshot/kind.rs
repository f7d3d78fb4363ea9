//! Kinds of nodes: what stays the same about a node while pods come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::demand::Demand;
use super::index::Amounts;
use super::{Eligibility, NodeCapacity};
use crate::interpod::Labels;
use crate::node::{Requirement, Taint, untolerated};
use crate::pod::PodShape;

/// Most values of a label by which kinds are told apart, for each so many nodes: a label that is
/// nearly a name is looked at node by node.
const NODES_PER_VALUE: usize = 4;
/// A label with at most this many values tells kinds apart however small the cluster is.
const VALUES_MIN: usize = 16;

/// What the nodes of a kind have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Labels that somebody asks for.
    labels: Labels,
    /// As of [`crate::node::Node::own_taints`].
    taints: Vec<Taint>,
    /// Whether new pods may come at all.
    pub eligibility: Eligibility,
    /// An agent vouches for the devices, or none is asked for.
    pub reported: bool,
    /// What the nodes offer when they are empty.
    pub offers: Amounts,
}

/// Whether labels and taints let a shape onto the nodes of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Onto each of them.
    All,
    /// Onto none: a taint.
    Taint,
    /// Onto none: a selector.
    Selector,
    /// It has to be asked node by node.
    Each,
}

impl Kind {
    pub(super) fn of(capacity: &NodeCapacity, keys: &Keys, offers: Amounts) -> Self {
        // By the labels of the node: those that were ever asked for may be very many more.
        let labels = capacity.node.labels.iter();
        let asked = labels
            .filter(|(key, _)| keys.narrow.contains(*key))
            .map(|(key, value)| (Arc::clone(key), Arc::clone(value)));
        Self {
            labels: asked.collect(),
            taints: capacity.node.own_taints().cloned().collect(),
            eligibility: capacity.eligibility,
            reported: capacity.reported,
            offers,
        }
    }

    /// Whether labels and taints let the shape onto nodes of this kind.
    pub(super) fn fit(&self, shape: &PodShape, keys: &Keys) -> Fit {
        let tainted = untolerated(&self.taints, &shape.tolerations).is_some();
        match self.selected(shape, keys) {
            Some(false) => Fit::Selector,
            // What the selector says counts more.
            None => Fit::Each,
            Some(true) if tainted => Fit::Taint,
            Some(true) => Fit::All,
        }
    }

    /// Whether selector and affinity match; `None` when labels of each node have to be asked.
    fn selected(&self, shape: &PodShape, keys: &Keys) -> Option<bool> {
        let mut sure = true;
        for (key, value) in &shape.node_selector {
            if !keys.narrow.contains(key) {
                sure = false;
            } else if self.labels.get(key) != Some(value) {
                return Some(false);
            }
        }
        let Some(terms) = &shape.required_affinity else {
            return sure.then_some(true);
        };
        let mut any = Some(false);
        for term in terms {
            let holds = |requirement: &Requirement| {
                requirement.holds(self.labels.get(&requirement.key).map(AsRef::as_ref))
            };
            let known = |requirement: &&Requirement| keys.narrow.contains(&requirement.key);
            if term.expressions.is_empty() && term.fields.is_empty()
                || !term.expressions.iter().filter(known).all(holds)
            {
                continue;
            }
            if term.fields.is_empty() && term.expressions.iter().all(|e| known(&e)) {
                any = Some(true);
                break;
            }
            any = None;
        }
        match any {
            Some(false) => Some(false),
            Some(true) => sure.then_some(true),
            None => None,
        }
    }
}

/// Labels that somebody asks for.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Those by which kinds are told apart.
    narrow: BTreeSet<Arc<str>>,
    /// Those with so many values that each node is asked.
    wide: BTreeSet<Arc<str>>,
}

impl Keys {
    /// Looks again at which labels are nearly names. Whether that changes what kinds are told apart by.
    pub(super) fn review(&mut self, nodes: &[Arc<NodeCapacity>]) -> bool {
        let all = self.narrow.iter().chain(&self.wide).cloned();
        let (wide, narrow): (BTreeSet<_>, BTreeSet<_>) = all.partition(|key| is_wide(key, nodes));
        let changed = narrow != self.narrow;
        (self.narrow, self.wide) = (narrow, wide);
        changed
    }

    /// Notes the labels that a shape asks for. Whether kinds are told apart by more than before.
    pub(super) fn learn(&mut self, shape: &PodShape, nodes: &[Arc<NodeCapacity>]) -> bool {
        let terms = shape.required_affinity.iter().flatten();
        let asked = shape
            .node_selector
            .keys()
            .chain(terms.flat_map(|term| term.expressions.iter().map(|e| &e.key)));
        let mut more = false;
        for key in asked {
            if self.narrow.contains(key) || self.wide.contains(key) {
                continue;
            }
            if is_wide(key, nodes) {
                self.wide.insert(Arc::clone(key));
            } else {
                self.narrow.insert(Arc::clone(key));
                // What no node has tells none apart.
                more |= nodes.iter().any(|node| node.node.labels.contains_key(key));
            }
        }
        more
    }
}

fn is_wide(key: &Arc<str>, nodes: &[Arc<NodeCapacity>]) -> bool {
    let values: BTreeSet<&Arc<str>> = nodes
        .iter()
        .filter_map(|capacity| capacity.node.labels.get(key))
        .collect();
    values.len() > (nodes.len() / NODES_PER_VALUE).max(VALUES_MIN)
}

/// Kinds by number. A number that no node has any more is given to the next kind.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    all: Vec<Kind>,
    /// Typical shapes that each admits, as the demand has them.
    admits: Vec<u64>,
    nodes: Vec<usize>,
    numbers: BTreeMap<Kind, u32>,
    unused: Vec<u32>,
}

impl Kinds {
    /// One more node of a kind. Its number.
    pub(super) fn add(&mut self, kind: Kind, demand: &Demand, keys: &Keys) -> u32 {
        let number = match self.numbers.get(&kind) {
            Some(number) => *number,
            None => {
                let admits = admits(&kind, demand, keys);
                self.number(kind, admits)
            }
        };
        if let Some(nodes) = self.nodes.get_mut(at(number)) {
            *nodes = nodes.saturating_add(1);
        }
        number
    }

    /// Typical shapes that the nodes of a kind admit.
    pub(super) fn admits(&self, number: u32) -> u64 {
        self.admits.get(at(number)).copied().unwrap_or(0)
    }

    pub(super) fn set_demand(&mut self, demand: &Demand, keys: &Keys) {
        for (kind, place) in self.all.iter().zip(&mut self.admits) {
            *place = admits(kind, demand, keys);
        }
    }

    /// Forgets every kind.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    fn number(&mut self, kind: Kind, admits: u64) -> u32 {
        let reused = self.unused.pop();
        let number = match reused.and_then(|number| Some((number, self.all.get_mut(at(number))?))) {
            Some((number, place)) => {
                *place = kind.clone();
                if let Some(place) = self.admits.get_mut(at(number)) {
                    *place = admits;
                }
                number
            }
            None => {
                self.all.push(kind.clone());
                self.admits.push(admits);
                self.nodes.push(0);
                u32::try_from(self.all.len().saturating_sub(1)).unwrap_or(u32::MAX)
            }
        };
        self.numbers.insert(kind, number);
        number
    }

    /// One node less of a kind.
    pub(super) fn drop_one(&mut self, number: u32) {
        let Some(nodes) = self.nodes.get_mut(at(number)) else {
            return;
        };
        *nodes = nodes.saturating_sub(1);
        if *nodes == 0
            && let Some(kind) = self.all.get(at(number))
        {
            self.numbers.remove(kind);
            self.unused.push(number);
        }
    }

    /// Kinds that some node has.
    pub(super) fn live(&self) -> impl Iterator<Item = &Kind> {
        self.numbers.keys()
    }

    pub(super) fn get(&self, number: u32) -> Option<&Kind> {
        self.all.get(at(number))
    }
}

/// Typical shapes that the kind admits, or may admit.
fn admits(kind: &Kind, demand: &Demand, keys: &Keys) -> u64 {
    demand.which(|shape| matches!(kind.fit(shape, keys), Fit::All | Fit::Each))
}

fn at(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
