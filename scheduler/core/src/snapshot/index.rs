//! Groups of nodes that are alike.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::demand::{Counts, Demand, State, Usual};
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
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    base: [u64; BASE],
    extended: Vec<(usize, u64)>,
    /// A part of one device: column, thousandths.
    share: Option<(usize, u32)>,
    /// It asks for a resource that no node has ever offered.
    unknown: bool,
}

/// What is enough for so many members: compared with, where most nodes have plenty of most things.
#[derive(Clone, Debug)]
pub struct Enough {
    extended: Vec<(usize, u64)>,
    grains: [u64; BASE],
}

impl Amounts {
    /// Whether there is enough, on each node with these amounts. Where not, it may be all the same.
    pub fn is_enough(&self, enough: &Enough) -> bool {
        let grains = self.grains.iter().zip(&enough.grains);
        let mut extended = enough.extended.iter();
        grains.fold(true, |all, (mine, other)| all & (mine >= other))
            && extended.all(|(column, amount)| self.column(*column) >= *amount)
    }

    /// Amount of the extended resource in a column.
    pub fn column(&self, column: usize) -> u64 {
        self.extended.get(column).copied().unwrap_or(0)
    }

    /// How often what is asked for is there, up to a limit: at least, and at most.
    pub fn times(&self, ask: &Ask, limit: u64) -> (u64, u64) {
        if ask.unknown {
            return (0, 0);
        }
        let mut devices = limit;
        for (column, each) in &ask.extended {
            devices = devices.min(up_to(limit, self.column(*column), *each));
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
            let floor = grains.saturating_mul(grain);
            let times = up_to(limit, floor, each);
            if times < limit {
                least = least.min(times);
                let ceiling = floor.saturating_add(grain.saturating_sub(1));
                most = most.min(up_to(limit, ceiling, each));
            }
        }
        (least, most)
    }

    /// Thousandths of a core, at least.
    pub fn cpu(&self) -> u64 {
        let [cpu, ..] = self.grains;
        let [grain, ..] = GRAIN;
        cpu.saturating_mul(grain)
    }

    /// Bytes of memory, at least.
    pub fn memory(&self) -> u64 {
        let [_, memory, ..] = self.grains;
        let [_, grain, ..] = GRAIN;
        memory.saturating_mul(grain)
    }

    /// Devices of which a part is left: column and what is left, in thousandths.
    pub fn parts(&self) -> &[(usize, u32)] {
        &self.shared
    }

    /// What is left of devices in part when `count` members have come that ask for this, and how many whole
    /// devices they have opened: each takes its part of the device with the least left that has enough.
    pub fn parted(&self, column: usize, milli: u32, count: u64) -> (Vec<(usize, u32)>, u64) {
        let mut shared = self.shared.to_vec();
        let (whole, mut opened) = (self.column(column), 0u64);
        for _ in 0..count {
            let parts = shared.iter_mut();
            let enough = parts.filter(|(other, left)| *other == column && *left >= milli);
            if let Some((_, left)) = enough.min_by_key(|(_, left)| *left) {
                *left = left.saturating_sub(milli);
            } else if opened < whole {
                opened = opened.saturating_add(1);
                shared.push((column, DEVICE_MILLI.saturating_sub(milli)));
            } else {
                break;
            }
        }
        (shared, opened)
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
            let times = up_to(needed, floor, each);
            let ceiling = floor.saturating_add(grain.saturating_sub(1));
            times == needed || times == up_to(needed, ceiling, each)
        })
    }
}

/// How often `each` is in an amount, up to a limit: mostly it is, and a product tells that without a division.
fn up_to(limit: u64, amount: u64, each: u64) -> u64 {
    let is_there = each.checked_mul(limit).is_some_and(|all| all <= amount);
    if is_there {
        return limit;
    }
    amount.checked_div(each).unwrap_or(limit).min(limit)
}

impl Ask {
    /// What is enough for so many of them; `None` where that cannot be told by one look at each amount.
    pub fn enough(&self, count: u64) -> Option<Enough> {
        if self.unknown || self.share.is_some() {
            return None;
        }
        let mut grains = [0; BASE];
        for ((grains, grain), each) in grains.iter_mut().zip(GRAIN).zip(self.base) {
            *grains = each.checked_mul(count)?.div_ceil(grain);
        }
        let extended = self.extended.iter();
        let extended = extended.map(|(column, each)| Some((*column, each.checked_mul(count)?)));
        Some(Enough {
            extended: extended.collect::<Option<_>>()?,
            grains,
        })
    }

    /// Thousandths of a core.
    pub fn cpu(&self) -> u64 {
        let [cpu, ..] = self.base;
        cpu
    }

    /// Bytes of memory.
    pub fn memory(&self) -> u64 {
        let [_, memory, ..] = self.base;
        memory
    }

    /// How much of the resource in a column.
    pub fn column(&self, column: usize) -> u64 {
        let asked = self.extended.iter().find(|(other, _)| *other == column);
        asked.map_or(0, |(_, amount)| *amount)
    }

    /// Whether it asks for what no node has ever offered.
    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// The part of a device that it asks for: column, thousandths.
    pub fn part(&self) -> Option<(usize, u32)> {
        self.share
    }

    /// Of the columns for which this holds that of which it asks for most, with how much.
    pub fn most(&self, wanted: impl Fn(usize) -> bool) -> Option<(usize, u64)> {
        let asked = self.extended.iter().copied();
        let asked = asked.filter(|(column, _)| wanted(*column));
        asked.max_by_key(|(column, amount)| (*amount, std::cmp::Reverse(*column)))
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

impl Key {
    /// Whether some devices are free and not well.
    pub fn has_sick(&self) -> bool {
        !self.sick.is_empty()
    }
}

/// Nodes that are alike.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// In order of name.
    pub nodes: BTreeMap<NodeName, Arc<NodeCapacity>>,
    /// What it costs to place members here, as far as it was asked for.
    costs: Costs,
}

/// Costs that were worked out, by what was asked: the last few of them. A cost follows from the group and
/// the demand alone, so that it makes no difference who has asked before.
#[derive(Debug, Default)]
struct Costs([AtomicU64; 4]);

impl Clone for Costs {
    fn clone(&self) -> Self {
        Self(
            self.0
                .each_ref()
                .map(|cost| AtomicU64::new(cost.load(Ordering::Relaxed))),
        )
    }
}

impl Costs {
    /// The cost that is kept under this number, or else what it is worked out to be.
    fn get(&self, number: NonZeroU32, work_out: impl FnOnce() -> i64) -> i64 {
        let number = number.get();
        let at = usize::try_from(number).unwrap_or(0) % self.0.len();
        let Some(place) = self.0.get(at) else {
            return work_out();
        };
        let kept = place.load(Ordering::Relaxed);
        let [high, low] = [kept >> 32, kept & u64::from(u32::MAX)];
        if high == u64::from(number) {
            return i64::from(u32::try_from(low).unwrap_or(0).cast_signed());
        }
        let cost = work_out();
        if let Ok(small) = i32::try_from(cost) {
            let kept = (u64::from(number) << 32) | u64::from(small.cast_unsigned());
            place.store(kept, Ordering::Relaxed);
        }
        cost
    }

    fn forget(&self) {
        for cost in &self.0 {
            cost.store(0, Ordering::Relaxed);
        }
    }
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
    demand: Demand,
    /// Numbers of what is asked for, under which costs are kept.
    asks: BTreeMap<Ask, u32>,
}

/// Most kinds of wishes whose costs are kept at a time.
const ASKS_MAX: usize = 4_096;
/// Members that come to a node together, of one wish, whose costs are kept.
const TOGETHER_MAX: u64 = 255;

impl Index {
    /// Where a node belongs. Its kind is counted: an `insert` has to follow.
    pub fn key(&mut self, capacity: &NodeCapacity) -> Key {
        let offers = self.amounts(&capacity.node.allocatable);
        let mut free = self.amounts(&capacity.free);
        free.shared = self.shared(&capacity.shared);
        let well = self.amounts(&capacity.well);
        let kind = Kind::of(capacity, &self.keys, offers);
        let kind = self.kinds.add(kind, &self.demand, &self.keys);
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
        Amounts {
            extended: trimmed(extended),
            shared: Box::default(),
            grains: grains(resources),
        }
    }

    /// The same, of resources that have columns.
    fn known_amounts(&self, resources: &Resources) -> Amounts {
        let columns = self.columns.iter();
        let extended = columns.map(|name| resources.extended(name.as_str()));
        Amounts {
            extended: trimmed(extended.collect()),
            shared: Box::default(),
            grains: grains(resources),
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

    /// From now on nodes are worth what they are to members with these shapes. `is_device` tells the columns of
    /// devices.
    pub fn set_demand(
        &mut self,
        counts: &Counts,
        most: impl Fn(&PodShape) -> u64,
        is_device: impl Fn(usize) -> bool,
    ) {
        self.take_demand(Demand::of(counts, self, most, is_device));
    }

    /// How many members of this shape all nodes have room for, at least; beside ports and rules.
    pub fn room(&self, shape: &PodShape) -> u64 {
        let ask = self.ask(shape);
        self.groups().fold(0u64, |sum, (key, group)| {
            if !matches!(self.fit(key, shape), Fit::All | Fit::Each) {
                return sum;
            }
            let (each, _) = key.free.times(&ask, u64::MAX);
            let nodes = u64::try_from(group.nodes.len()).unwrap_or(u64::MAX);
            sum.saturating_add(each.saturating_mul(nodes))
        })
    }

    /// The same as it was found before.
    pub fn restore_demand(&mut self, usual: Vec<Usual>, is_device: impl Fn(usize) -> bool) {
        self.take_demand(Demand::as_weighed(usual, self, is_device));
    }

    fn take_demand(&mut self, demand: Demand) {
        self.demand = demand;
        self.kinds.set_demand(&self.demand, &self.keys);
        self.forget_costs();
    }

    /// What the demand goes by.
    pub fn usual(&self) -> &[Usual] {
        self.demand.usual()
    }

    fn forget_costs(&mut self) {
        let places = self.places.values().flat_map(BTreeMap::values);
        for group in self.groups.values().chain(places) {
            group.costs.forget();
        }
        self.asks.clear();
    }

    /// Under which number costs of what is asked for are kept, where they are.
    pub fn number(&self, ask: &Ask) -> Option<u32> {
        self.asks.get(ask).copied()
    }

    /// What it costs to place `count` members that ask for this, which has this number, on a node of the group; the same for all
    /// where nothing is known of the demand.
    pub fn cost(
        &self,
        key: &Key,
        group: &Group,
        (ask, number): (&Ask, Option<u32>),
        count: u64,
    ) -> i64 {
        if self.demand.is_empty() {
            return 0;
        }
        let work_out = || {
            let admits = self.kinds.admits(key.kind);
            self.demand.cost(State::of(&key.free, admits), ask, count)
        };
        let number = number.filter(|_| count <= TOGETHER_MAX);
        let number = number.and_then(|number| {
            let count = u32::try_from(count).ok()?;
            NonZeroU32::new((number << 8) | count)
        });
        match number {
            Some(number) => group.costs.get(number, work_out),
            None => work_out(),
        }
    }

    /// The same for a node of a kind on which so much is left.
    pub fn cost_at(
        &self,
        kind: u32,
        (free, shared): (&Resources, &[SharedDevice]),
        ask: &Ask,
        count: u64,
    ) -> i64 {
        if self.demand.is_empty() {
            return 0;
        }
        let mut left = self.known_amounts(free);
        left.shared = self.shared(shared);
        let state = State::of(&left, self.kinds.admits(kind));
        self.demand.cost(state, ask, count)
    }

    /// Whether nodes have to be sorted anew, because they are told apart by more than before.
    pub fn learn(&mut self, shape: &PodShape, nodes: &[Arc<NodeCapacity>]) -> bool {
        let ask = self.ask(shape);
        if !self.asks.contains_key(&ask) {
            if self.asks.len() >= ASKS_MAX {
                self.forget_costs();
            }
            let number = u32::try_from(self.asks.len())
                .unwrap_or(0)
                .saturating_add(1);
            self.asks.insert(ask, number);
        }
        self.keys.learn(shape, nodes)
    }

    /// The same, because there are many more nodes now.
    pub fn review(&mut self, nodes: &[Arc<NodeCapacity>]) -> bool {
        self.keys.review(nodes)
    }

    /// Forgets every node.
    pub fn forget(&mut self) {
        self.kinds.forget();
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

fn grains(resources: &Resources) -> [u64; BASE] {
    let mut grains = base(resources);
    for (amount, grain) in grains.iter_mut().zip(GRAIN) {
        *amount = amount.checked_div(grain).unwrap_or(0);
    }
    grains
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
