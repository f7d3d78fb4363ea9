//! Groups of nodes that are alike.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::kind::{Fit, Keys, Kind, Kinds};
use super::{NodeCapacity, SharedDevice};
use crate::ids::{NodeName, ResourceName};
use crate::pod::{DEVICE_MILLI, PodShape};
use crate::resources::Resources;
use crate::topology::Path;

/// Milli-CPU, bytes of memory, bytes of ephemeral storage, pods.
const BASE: usize = 4;

/// Amounts of these are alike within one grain: nodes of one make differ by some megabytes.
const GRAIN: [u64; BASE] = [1_000, 1 << 32, 1 << 34, 8];

/// Amounts: extended resources exactly, by column; the others in grains.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amounts {
    /// By column; what is missing at the end is none.
    extended: Box<[u64]>,
    /// Devices of which a part is left: column and what is left, in order.
    shared: Box<[(usize, u32)]>,
    grains: [u64; BASE],
}

/// What a shape asks for, in columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    base: [u64; BASE],
    extended: Vec<(usize, u64)>,
    /// A part of one device: column, thousandths.
    share: Option<(usize, u32)>,
    /// It asks for a resource that no node has ever offered.
    unknown: bool,
}

impl Amounts {
    /// Amount of the extended resource in a column.
    pub fn column(&self, column: usize) -> u64 {
        self.extended.get(column).copied().unwrap_or(0)
    }

    /// How often what is asked for is there: at least, and at most.
    pub fn times(&self, ask: &Ask) -> (u64, u64) {
        if ask.unknown {
            return (0, 0);
        }
        let mut devices = u64::MAX;
        for (column, each) in &ask.extended {
            devices = devices.min(self.column(*column).checked_div(*each).unwrap_or(u64::MAX));
            if devices == 0 {
                return (0, 0);
            }
        }
        if let Some((column, milli)) = ask.share {
            devices = devices.min(self.shares(ask, column, milli));
            if devices == 0 {
                return (0, 0);
            }
        }
        let (mut least, mut most) = (devices, devices);
        for ((grains, grain), each) in self.grains.iter().zip(GRAIN).zip(ask.base) {
            if each == 0 {
                continue;
            }
            let floor = grains.saturating_mul(grain);
            let ceiling = floor.saturating_add(grain.saturating_sub(1));
            least = least.min(floor.checked_div(each).unwrap_or(u64::MAX));
            most = most.min(ceiling.checked_div(each).unwrap_or(u64::MAX));
        }
        (least, most)
    }

    /// How many parts of devices of this size there are.
    fn shares(&self, ask: &Ask, column: usize, milli: u32) -> u64 {
        let whole = ask.extended.iter().find(|(other, _)| *other == column);
        if let Some((_, whole)) = whole {
            // Each has its part of a device of its own then.
            let each = whole.saturating_add(1);
            return self.column(column).checked_div(each).unwrap_or(0);
        }
        let per = |left: u32| u64::from(left.checked_div(milli).unwrap_or(0));
        let shared = self.shared.iter().filter(|(other, _)| *other == column);
        let whole = self.column(column).saturating_mul(per(DEVICE_MILLI));
        shared.fold(whole, |sum, (_, left)| sum.saturating_add(per(*left)))
    }

    /// Whether each resource is there equally often, up to `needed`, on every node with these amounts.
    pub fn is_even(&self, ask: &Ask, needed: u64) -> bool {
        let base = self.grains.iter().zip(GRAIN).zip(ask.base);
        base.into_iter().all(|((grains, grain), each)| {
            let floor = grains.saturating_mul(grain);
            let ceiling = floor.saturating_add(grain.saturating_sub(1));
            let times = |amount: u64| amount.checked_div(each).unwrap_or(needed).min(needed);
            times(floor) == times(ceiling)
        })
    }
}

/// By what nodes are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Number of the kind.
    pub kind: u32,
    /// Free.
    pub free: Amounts,
    /// Free and not well, by column.
    sick: Box<[u64]>,
    /// Some port of the node is taken.
    pub ports: bool,
}

/// Nodes that are alike.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// In order of name.
    pub nodes: BTreeMap<NodeName, Arc<NodeCapacity>>,
}

/// Every group, and the terms in which they are told apart.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Extended resources by column.
    columns: Vec<ResourceName>,
    keys: Keys,
    kinds: Kinds,
    groups: BTreeMap<Arc<Key>, Group>,
    /// The same by where nodes lie; empty where no topology is configured.
    places: BTreeMap<Path, BTreeMap<Arc<Key>, Group>>,
}

impl Index {
    /// Where a node belongs. Its kind is counted: an `insert` has to follow.
    pub fn key(&mut self, capacity: &NodeCapacity) -> Key {
        let offers = self.amounts(&capacity.node.allocatable);
        let mut free = self.amounts(&capacity.free);
        free.shared = self.shared(&capacity.shared);
        let well = self.amounts(&capacity.well);
        let kind = self.kinds.add(Kind::of(capacity, &self.keys, offers));
        let sick = well.extended.iter().enumerate();
        let sick = sick.map(|(column, well)| well.saturating_sub(free.column(column)));
        Key {
            kind,
            sick: trimmed(sick.collect()),
            free,
            ports: !capacity.ports.is_empty(),
        }
    }

    fn amounts(&mut self, resources: &Resources) -> Amounts {
        let mut extended = vec![0; self.columns.len()];
        for (name, amount) in &resources.extended {
            match self.columns.iter().position(|column| column == name) {
                Some(column) => {
                    if let Some(place) = extended.get_mut(column) {
                        *place = *amount;
                    }
                }
                None if *amount > 0 => {
                    self.columns.push(name.clone());
                    extended.push(*amount);
                }
                None => {}
            }
        }
        let mut grains = base(resources);
        for (amount, grain) in grains.iter_mut().zip(GRAIN) {
            *amount = amount.checked_div(grain).unwrap_or(0);
        }
        Amounts {
            extended: trimmed(extended),
            shared: Box::default(),
            grains,
        }
    }

    fn shared(&self, devices: &[SharedDevice]) -> Box<[(usize, u32)]> {
        let column = |name| self.columns.iter().position(|column| column == name);
        let devices = devices.iter();
        let mut shared: Vec<(usize, u32)> = devices
            .filter_map(|shared| Some((column(&shared.device.resource)?, shared.left)))
            .collect();
        shared.sort_unstable();
        shared.into_boxed_slice()
    }

    pub fn insert(&mut self, key: &Arc<Key>, capacity: &Arc<NodeCapacity>) {
        let group = self.groups.entry(Arc::clone(key)).or_default();
        let name = capacity.node.name.clone();
        group.nodes.insert(name.clone(), Arc::clone(capacity));
        if let Some(path) = &capacity.path {
            let place = self.places.entry(Arc::clone(path)).or_default();
            let group = place.entry(Arc::clone(key)).or_default();
            group.nodes.insert(name, Arc::clone(capacity));
        }
    }

    pub fn remove(&mut self, key: &Key, capacity: &NodeCapacity) {
        self.kinds.drop_one(key.kind);
        drop_from(&mut self.groups, key, &capacity.node.name);
        if let Some(path) = &capacity.path
            && let Some(place) = self.places.get_mut(path)
        {
            drop_from(place, key, &capacity.node.name);
            if place.is_empty() {
                self.places.remove(path);
            }
        }
    }

    /// Whether nodes have to be sorted anew, because they are told apart by more than before.
    pub fn learn(&mut self, shape: &PodShape, nodes: &[Arc<NodeCapacity>]) -> bool {
        self.keys.learn(shape, nodes)
    }

    /// The same, because there are many more nodes now.
    pub fn review(&mut self, nodes: &[Arc<NodeCapacity>]) -> bool {
        self.keys.review(nodes)
    }

    /// Forgets every node.
    pub fn forget(&mut self) {
        self.kinds = Kinds::default();
        self.groups.clear();
        self.places.clear();
    }

    /// Columns of the resources for which this holds.
    pub fn columns(&self, wanted: impl Fn(&ResourceName) -> bool) -> Vec<usize> {
        let all = self.columns.iter().enumerate();
        all.filter(|(_, name)| wanted(name))
            .map(|(column, _)| column)
            .collect()
    }

    /// Whether some node offers the resource, when it is empty.
    pub fn is_offered(&self, resource: &ResourceName) -> bool {
        let column = self.columns.iter().position(|column| column == resource);
        column.is_some_and(|column| self.kinds.live().any(|kind| kind.offers.column(column) > 0))
    }

    pub fn ask(&self, shape: &PodShape) -> Ask {
        let mut ask = Ask {
            base: base(&shape.requests),
            ..Ask::default()
        };
        for (name, amount) in shape
            .requests
            .extended
            .iter()
            .filter(|(_, each)| **each > 0)
        {
            match self.columns.iter().position(|column| column == name) {
                Some(column) => ask.extended.push((column, *amount)),
                None => ask.unknown = true,
            }
        }
        if let Some(share) = &shape.share {
            let mut columns = self.columns.iter();
            match columns.position(|column| *column == share.resource) {
                Some(column) => ask.share = Some((column, share.milli())),
                None => ask.unknown = true,
            }
        }
        ask
    }

    pub fn groups(&self) -> impl Iterator<Item = (&Key, &Group)> {
        self.groups.iter().map(|(key, group)| (&**key, group))
    }

    /// Groups by where their nodes lie, of those within a domain.
    pub fn places(
        &self,
        domain: &[Arc<str>],
    ) -> impl Iterator<Item = (&Path, impl Iterator<Item = (&Key, &Group)>)> {
        let from = (Bound::Included(domain), Bound::Unbounded);
        self.places
            .range::<[Arc<str>], _>(from)
            .take_while(move |(path, _)| path.starts_with(domain))
            .map(|(path, groups)| (path, groups.iter().map(|(key, group)| (&**key, group))))
    }

    pub fn kind(&self, key: &Key) -> Option<&Kind> {
        self.kinds.get(key.kind)
    }

    pub fn fit(&self, key: &Key, shape: &PodShape) -> Fit {
        self.kind(key)
            .map_or(Fit::Each, |kind| kind.fit(shape, &self.keys))
    }
}

fn drop_from(groups: &mut BTreeMap<Arc<Key>, Group>, key: &Key, name: &NodeName) {
    let Some(group) = groups.get_mut(key) else {
        return;
    };
    group.nodes.remove(name);
    if group.nodes.is_empty() {
        groups.remove(key);
    }
}

fn base(resources: &Resources) -> [u64; BASE] {
    [
        resources.milli_cpu,
        resources.memory_bytes,
        resources.ephemeral_bytes,
        resources.pods,
    ]
}

/// Without zeros at the end, so that the same amounts are always written the same.
fn trimmed(mut amounts: Vec<u64>) -> Box<[u64]> {
    while amounts.last() == Some(&0) {
        amounts.pop();
    }
    amounts.into_boxed_slice()
}
