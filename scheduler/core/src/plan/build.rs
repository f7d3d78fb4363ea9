//! Building a placement, role by role: which nodes have room, and what is left of those that were
//! taken.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::allot::{Cell, allot};
use super::effort::{Effort, Miss};
use super::exact::Ways;
use super::fill::{Candidate, Run, Take, fill, fill_nodes, rank, room_of};
use super::rules::Rules;
use super::{Failure, Missed, Placed, Placement, RoleRequest, conflicts, devices_of, times};
use crate::config::Config;
use crate::ids::{DeviceUuid, NodeName, ResourceName};
use crate::inventory::Device;
use crate::node::HostPort;
use crate::pod::PodShape;
use crate::resources::Resources;
use crate::snapshot::{Eligibility, Fit, Group, Key, NodeCapacity, Snapshot};

/// What is left of a node while a placement is being built.
struct Remaining {
    capacity: Arc<NodeCapacity>,
    free: Resources,
    ports: BTreeSet<HostPort>,
    /// Positions of its devices that are left.
    devices: Vec<usize>,
}

/// A placement on its way.
pub(super) struct Builder<'a, 'e> {
    snapshot: &'a Snapshot,
    config: &'a Config,
    /// Columns of devices.
    devices: Vec<usize>,
    avoid: &'a BTreeSet<NodeName>,
    touched: BTreeMap<NodeName, Remaining>,
    /// Nodes of each group that are avoided or touched.
    apart: BTreeMap<&'a Key, u32>,
    rules: Rules,
    pub home: Home,
    effort: &'e mut Effort,
}

/// The domain in which members come together, where affinity asks for that and leaves it open which:
/// the first of the domains with room, then the next, when the rest of the gang does not fit there.
#[derive(Default)]
pub(super) struct Home {
    /// Which of the domains is tried.
    pub number: usize,
    /// How many there are, once somebody has had the choice.
    pub of: Option<usize>,
}

/// What the nodes of a kind are to a role.
#[derive(Clone, Copy)]
struct OfKind {
    fit: Fit,
    /// They offer devices at all.
    has_devices: bool,
}

/// Where the nodes of a run are.
#[derive(Clone, Copy)]
enum Nodes<'a> {
    /// Those of a group that are not apart.
    Group(&'a Key, &'a Group),
    /// One of a group.
    One(&'a Key, &'a Arc<NodeCapacity>),
    /// One that was touched already.
    Touched(&'a Arc<NodeCapacity>),
}

impl<'a, 'e> Builder<'a, 'e> {
    pub fn new(
        snapshot: &'a Snapshot,
        avoid: &'a BTreeSet<NodeName>,
        rules: Rules,
        number: usize,
        config: &'a Config,
        effort: &'e mut Effort,
    ) -> Self {
        let mut apart: BTreeMap<&Key, u32> = BTreeMap::new();
        for key in avoid.iter().filter_map(|name| snapshot.key_of(name)) {
            let count = apart.entry(&**key).or_default();
            *count = count.saturating_add(1);
        }
        Self {
            snapshot,
            config,
            devices: snapshot.index().columns(|name| config.is_device(name)),
            avoid,
            touched: BTreeMap::new(),
            apart,
            rules,
            home: Home { number, of: None },
            effort,
        }
    }

    pub fn place_roles<'r>(
        &mut self,
        order: &[(usize, &'r RoleRequest)],
    ) -> Result<Placement, Failure<'r>> {
        let mut members = Vec::new();
        for (position, role) in order {
            let placed = self
                .place_role(*position, role)
                .map_err(|miss| match miss {
                    Miss::Room(placed) => Failure::Room(Missed { role, placed }),
                    Miss::Limit => Failure::Limit,
                })?;
            members.extend(placed);
        }
        members.sort_by(|a, b| (&a.role, a.index).cmp(&(&b.role, b.index)));
        Ok(Placement { members })
    }

    /// Places the members as they were shared out: nodes, with the number of members of each role.
    pub fn place_ways(&mut self, order: &[(usize, &RoleRequest)], ways: Ways) -> Placement {
        let mut indices: Vec<_> = order.iter().map(|(_, role)| role.indices.iter()).collect();
        let mut members = Vec::new();
        for (capacity, way) in ways {
            for (((_, role), indices), count) in order.iter().zip(&mut indices).zip(way) {
                let here = indices.by_ref().take(usize::try_from(count).unwrap_or(0));
                for index in here {
                    members.push(self.take(capacity, role, *index));
                }
            }
        }
        members.sort_by(|a, b| (&a.role, a.index).cmp(&(&b.role, b.index)));
        Placement { members }
    }

    /// Places every member of the role; the number that found a place otherwise.
    fn place_role(&mut self, position: usize, role: &RoleRequest) -> Result<Vec<Placed>, Miss> {
        let wants_devices = devices_of(&role.shape, self.config) > 0;
        if self.rules.is_empty() {
            return self.place_by_groups(role, wants_devices);
        }
        let (nodes, rules) = (self.snapshot.nodes().len(), self.rules.len());
        self.effort.nodes(nodes, rules)?;
        self.effort.nodes(role.indices.len(), rules)?;
        let total = role.indices.len();
        let rooms = self.candidates(position, role);
        let rooms = self.at_home(position, rooms, total, wants_devices)?;
        let by = self.rules.counting(position);
        let nodes = if by.is_empty() {
            fill_nodes(&rooms, total, wants_devices)?
        } else {
            self.share(&by, rooms, total, wants_devices)?
        };
        let mut placed = Vec::with_capacity(total);
        for (index, at) in role.indices.iter().zip(nodes) {
            self.rules.add(position, at);
            if let Some(capacity) = self.snapshot.nodes().get(at) {
                placed.push(self.take(capacity, role, *index));
            }
        }
        Ok(placed)
    }

    /// The same where members have no rules between them: then nodes that are alike are looked at
    /// together.
    fn place_by_groups(
        &mut self,
        role: &RoleRequest,
        wants_devices: bool,
    ) -> Result<Vec<Placed>, Miss> {
        let total = role.indices.len();
        let touched = self.touched.len();
        let looks = self.snapshot.index().len().saturating_add(touched);
        let looks = looks.saturating_add(total);
        self.effort.nodes(looks, 0)?;
        // Nodes that are as good as each other are one run, whatever groups they are in: which groups
        // there are depends on what was asked for before, and the plan must not.
        let mut known: BTreeMap<(u32, u64, bool), usize> = BTreeMap::new();
        let mut runs: Vec<Run<&NodeName>> = Vec::new();
        let mut nodes: Vec<Vec<Nodes>> = Vec::new();
        self.find_runs(role, wants_devices, |run, place| {
            let alike = (run.room, run.spare, run.has_devices);
            let at = *known.entry(alike).or_insert(runs.len());
            match (runs.get_mut(at), nodes.get_mut(at)) {
                (Some(same), Some(places)) => {
                    same.count = same.count.saturating_add(run.count);
                    same.order = same.order.min(run.order);
                    places.push(place);
                }
                _ => {
                    runs.push(run);
                    nodes.push(vec![place]);
                }
            }
        });
        let takes = fill(&runs, total, wants_devices)?;
        let first = |take: &Take| runs.get(take.run).map(|run| run.order.clone());
        let firsts: Vec<Option<NodeName>> = takes.iter().map(first).collect();
        drop(runs);
        let mut indices = role.indices.iter();
        let mut placed = Vec::with_capacity(total);
        let mut seen: BTreeMap<usize, NodeName> = BTreeMap::new();
        for (take, first) in takes.into_iter().zip(firsts) {
            let (run, each) = (take.run, take.each);
            let Some(places) = nodes.get(run) else {
                continue;
            };
            // The first of a run is known without a look at the others.
            let alone = first.filter(|_| take.nodes == 1 && !seen.contains_key(&run));
            let chosen = match alone.and_then(|name| self.named(&name)) {
                Some(one) => vec![one],
                None => self.next_of(places, seen.get(&run), take.nodes),
            };
            for (capacity, key) in chosen {
                seen.insert(run, capacity.node.name.clone());
                for index in indices.by_ref().take(usize::try_from(each).unwrap_or(0)) {
                    placed.push(self.take(&capacity, role, *index));
                }
                if let Some(key) = key {
                    let count = self.apart.entry(key).or_default();
                    *count = count.saturating_add(1);
                }
            }
        }
        Ok(placed)
    }

    /// The node of this name, with its group when it was not touched before.
    fn named(&self, name: &NodeName) -> Option<(Arc<NodeCapacity>, Option<&'a Key>)> {
        let snapshot: &'a Snapshot = self.snapshot;
        let capacity = Arc::clone(snapshot.get(name)?);
        let key = snapshot.key_of(name).map(|key| &**key);
        Some((capacity, key.filter(|_| !self.touched.contains_key(name))))
    }

    /// The next nodes of a run after the one named, in order of name; with the group of those that
    /// were not touched before.
    fn next_of(
        &self,
        places: &[Nodes<'a>],
        after: Option<&NodeName>,
        wanted: u32,
    ) -> Vec<(Arc<NodeCapacity>, Option<&'a Key>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut heads = BTreeMap::new();
        for place in places {
            let (mut rest, key): (Box<dyn Iterator<Item = &'a Arc<NodeCapacity>>>, _) = match place
            {
                Nodes::Group(key, group) => {
                    let rest = group.nodes.range::<NodeName, _>((from, Bound::Unbounded));
                    let rest = rest.filter(|(name, _)| !self.is_apart(name));
                    (Box::new(rest.map(|(_, capacity)| capacity)), Some(*key))
                }
                Nodes::One(key, capacity) => (Box::new(std::iter::once(*capacity)), Some(*key)),
                Nodes::Touched(capacity) => (Box::new(std::iter::once(*capacity)), None),
            };
            let next = rest.find(|capacity| after.is_none_or(|after| capacity.node.name > *after));
            if let Some(next) = next {
                heads.insert(&next.node.name, (next, rest, key));
            }
        }
        let mut found = Vec::new();
        for _ in 0..wanted {
            let Some((_, (capacity, mut rest, key))) = heads.pop_first() else {
                break;
            };
            found.push((Arc::clone(capacity), key));
            if let Some(next) = rest.next() {
                heads.insert(&next.node.name, (next, rest, key));
            }
        }
        found
    }

    fn is_apart(&self, name: &NodeName) -> bool {
        self.touched.contains_key(name) || self.avoid.contains(name)
    }

    /// Every run of nodes with room for the role.
    fn find_runs<'s>(
        &'s self,
        role: &RoleRequest,
        wants_devices: bool,
        mut found: impl FnMut(Run<&'s NodeName>, Nodes<'a>),
    ) where
        'a: 's,
    {
        let snapshot: &'a Snapshot = self.snapshot;
        let index = snapshot.index();
        let ask = index.ask(&role.shape);
        let total = u32::try_from(role.indices.len()).unwrap_or(u32::MAX);
        let mut last: Option<(u32, Option<OfKind>)> = None;
        for (key, group) in index.groups() {
            let of_kind = match last {
                Some((kind, known)) if kind == key.kind => known,
                _ => {
                    let found = self.of_kind(key, &role.shape, wants_devices);
                    last = Some((key.kind, found));
                    found
                }
            };
            let Some(OfKind { fit, has_devices }) = of_kind else {
                continue;
            };
            let (least, most) = key.free.times(&ask);
            if most == 0 {
                continue;
            }
            let spare = self.spare_in(key);
            let limit = |room: u64| u32::try_from(room).unwrap_or(total).min(total);
            let ports = &role.shape.host_ports;
            let alike =
                fit == Fit::All && limit(least) == limit(most) && (ports.is_empty() || !key.ports);
            if alike {
                let apart = self.apart.get(key).copied().unwrap_or(0);
                let nodes = u32::try_from(group.nodes.len()).unwrap_or(u32::MAX);
                let count = nodes.saturating_sub(apart);
                let mut names = group.nodes.keys();
                let order = match apart {
                    0 => names.next(),
                    _ => names.find(|name| !self.is_apart(name)),
                };
                let room = limit(least).min(if ports.is_empty() { total } else { 1 });
                if let Some(order) = order.filter(|_| count > 0) {
                    let run = Run {
                        room,
                        count,
                        spare,
                        has_devices,
                        order,
                    };
                    found(run, Nodes::Group(key, group));
                }
                continue;
            }
            for (name, capacity) in &group.nodes {
                if self.is_apart(name) || role.shape.mismatch(&capacity.node).is_some() {
                    continue;
                }
                let room = room(&capacity.free, &capacity.ports, &role.shape, total);
                if room > 0 {
                    let run = Run {
                        room,
                        count: 1,
                        spare,
                        has_devices,
                        order: name,
                    };
                    found(run, Nodes::One(key, capacity));
                }
            }
        }
        for (name, remaining) in &self.touched {
            let capacity = &remaining.capacity;
            if !may_stand(capacity, &role.shape, self.avoid, self.config) {
                continue;
            }
            let room = room(&remaining.free, &remaining.ports, &role.shape, total);
            if room > 0 {
                let run = Run {
                    room,
                    count: 1,
                    spare: spare_of(&remaining.free, self.config),
                    has_devices: offers_devices(capacity, self.config),
                    order: name,
                };
                if let Some(capacity) = snapshot.get(name) {
                    found(run, Nodes::Touched(capacity));
                }
            }
        }
    }

    /// Free devices of every kind on each node of the group.
    fn spare_in(&self, key: &Key) -> u64 {
        let columns = self.devices.iter();
        columns.fold(0, |sum, column| {
            sum.saturating_add(key.free.column(*column))
        })
    }

    /// What there is to know about the kind of a group; nothing when the shape may not go there.
    fn of_kind(&self, key: &Key, shape: &PodShape, wants_devices: bool) -> Option<OfKind> {
        let index = self.snapshot.index();
        let kind = index.kind(key)?;
        let usable = kind.eligibility == Eligibility::Eligible && (!wants_devices || kind.reported);
        let fit = index.fit(key, shape);
        (usable && !matches!(fit, Fit::Taint | Fit::Selector)).then(|| OfKind {
            fit,
            has_devices: self.devices.iter().any(|c| kind.offers.column(*c) > 0),
        })
    }

    /// The nodes that have room for members of the role, beside those that have a place.
    fn candidates(&self, position: usize, role: &RoleRequest) -> Vec<Candidate> {
        let total = u32::try_from(role.indices.len()).unwrap_or(u32::MAX);
        let mut rooms = Vec::new();
        for (at, capacity) in self.snapshot.nodes().iter().enumerate() {
            if !may_stand(capacity, &role.shape, self.avoid, self.config)
                || !self.rules.admit(position, at)
            {
                continue;
            }
            let (free, ports) = match self.touched.get(&capacity.node.name) {
                Some(remaining) => (&remaining.free, &remaining.ports),
                None => (&capacity.free, &capacity.ports),
            };
            let mut room = room(free, ports, &role.shape, total);
            if room > 1 && self.rules.one_on_node(position, at) {
                room = 1;
            }
            if room > 0 {
                rooms.push(Candidate {
                    at,
                    room,
                    spare: spare_of(free, self.config),
                    has_devices: offers_devices(capacity, self.config),
                });
            }
        }
        rooms
    }

    /// Of the candidates, those in the domain that is to be the home of the gang, where affinity
    /// between its members leaves that open. The most that one domain has room for, when none has
    /// room for all.
    fn at_home(
        &mut self,
        position: usize,
        rooms: Vec<Candidate>,
        total: usize,
        wants_devices: bool,
    ) -> Result<Vec<Candidate>, Miss> {
        let open = self.rules.open(position);
        if open.is_empty() {
            return Ok(rooms);
        }
        let mut domains: BTreeMap<Vec<Option<u32>>, Vec<Candidate>> = BTreeMap::new();
        for candidate in rooms {
            let domain = self.rules.domains(&open, candidate.at);
            domains.entry(domain).or_default().push(candidate);
        }
        let most = domains.values().map(|rooms| room_of(rooms)).max();
        let needed = u64::try_from(total).unwrap_or(u64::MAX);
        let mut enough: Vec<Vec<Candidate>> = domains
            .into_values()
            .filter(|rooms| room_of(rooms) >= needed)
            .collect();
        // The fullest domain that would do, as with nodes.
        enough.sort_by_key(|rooms| {
            let spare = |sum: u64, a: &Candidate| sum.saturating_add(a.spare);
            let (keeps_off, _, at) = rank(rooms, wants_devices);
            (keeps_off, rooms.iter().fold(0, spare), at)
        });
        let number = match self.home.of {
            None => self.home.number,
            Some(_) => 0,
        };
        self.home.of.get_or_insert(enough.len());
        enough
            .into_iter()
            .nth(number)
            .ok_or_else(|| Miss::Room(u32::try_from(most.unwrap_or(0)).unwrap_or(u32::MAX)))
    }

    /// The node of each of `total` members, shared out over domains as the rules at `by` ask for.
    fn share(
        &mut self,
        by: &[usize],
        rooms: Vec<Candidate>,
        total: usize,
        wants_devices: bool,
    ) -> Result<Vec<usize>, Miss> {
        let mut parts: BTreeMap<Vec<Option<u32>>, Vec<Candidate>> = BTreeMap::new();
        for candidate in rooms {
            let domains = self.rules.domains(by, candidate.at);
            parts.entry(domains).or_default().push(candidate);
        }
        let mut cells: Vec<Cell> = parts
            .iter()
            .map(|(domains, rooms)| Cell {
                domains: domains.clone(),
                room: room_of(rooms),
                rank: rank(rooms, wants_devices),
                taken: 0,
            })
            .collect();
        let rules = self.rules.at(by);
        let order = allot(&rules, &mut cells, total, self.effort)?;
        let mut nodes: Vec<std::vec::IntoIter<usize>> = Vec::with_capacity(cells.len());
        for (cell, rooms) in cells.iter().zip(parts.into_values()) {
            let taken = usize::try_from(cell.taken).unwrap_or(usize::MAX);
            nodes.push(fill_nodes(&rooms, taken, wants_devices)?.into_iter());
        }
        Ok(order
            .into_iter()
            .filter_map(|cell| nodes.get_mut(cell)?.next())
            .collect())
    }

    /// Puts one member on the node.
    fn take(&mut self, capacity: &Arc<NodeCapacity>, role: &RoleRequest, index: u32) -> Placed {
        let name = &capacity.node.name;
        if !self.touched.contains_key(name) {
            let remaining = Remaining {
                free: capacity.free.clone(),
                ports: capacity.ports.clone(),
                devices: (0..capacity.devices.len()).collect(),
                capacity: Arc::clone(capacity),
            };
            self.touched.insert(name.clone(), remaining);
        }
        let mut devices = Vec::new();
        if let Some(remaining) = self.touched.get_mut(name) {
            remaining.free.subtract(&role.shape.requests);
            remaining
                .ports
                .extend(role.shape.host_ports.iter().cloned());
            for (resource, amount) in &role.shape.requests.extended {
                if self.config.is_device(resource) {
                    let free = &mut remaining.devices;
                    devices.extend(predict(&capacity.devices, free, resource, *amount));
                }
            }
        }
        Placed {
            role: role.role.clone(),
            index,
            node: name.clone(),
            devices,
            shape: Arc::clone(&role.shape),
        }
    }
}

/// Whether members of this shape may come to the node at all.
pub(super) fn may_stand(
    capacity: &NodeCapacity,
    shape: &PodShape,
    avoid: &BTreeSet<NodeName>,
    config: &Config,
) -> bool {
    capacity.eligibility == Eligibility::Eligible
        && (capacity.reported || devices_of(shape, config) == 0)
        && !avoid.contains(&capacity.node.name)
        && shape.mismatch(&capacity.node).is_none()
}

/// How many more members of this shape a node with this much left can take, at most `limit`.
pub(super) fn room(
    free: &Resources,
    ports: &BTreeSet<HostPort>,
    shape: &PodShape,
    limit: u32,
) -> u32 {
    let count = times(free, &shape.requests).min(u64::from(limit));
    let count = u32::try_from(count).unwrap_or(limit);
    if shape.host_ports.is_empty() {
        return count;
    }
    if conflicts(shape, ports) {
        0
    } else {
        count.min(1)
    }
}

/// Free devices of every kind.
fn spare_of(free: &Resources, config: &Config) -> u64 {
    free.extended
        .iter()
        .filter(|(name, _)| config.is_device(name))
        .fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
}

fn offers_devices(capacity: &NodeCapacity, config: &Config) -> bool {
    let mut offered = capacity.node.allocatable.extended.keys();
    offered.any(|name| config.is_device(name))
}

/// Takes `amount` devices of a resource out of `free`: from one NUMA node where one has enough, the
/// fullest of those; otherwise in order. Fewer where the agent lists fewer: kubelet decides anyway.
fn predict(
    devices: &[Device],
    free: &mut Vec<usize>,
    resource: &ResourceName,
    amount: u64,
) -> Vec<DeviceUuid> {
    let amount = usize::try_from(amount).unwrap_or(usize::MAX);
    let of_resource = |at: &usize| {
        let device = devices.get(*at)?;
        (device.resource == *resource).then_some(device)
    };
    let mut by_numa: BTreeMap<Option<u32>, usize> = BTreeMap::new();
    for device in free.iter().filter_map(of_resource) {
        *by_numa.entry(device.numa).or_insert(0) += 1;
    }
    let home = by_numa
        .iter()
        .filter(|(_, count)| **count >= amount)
        .min_by_key(|(_, count)| **count)
        .map(|(numa, _)| *numa);
    let mut taken = Vec::new();
    free.retain(|at| {
        let wanted = of_resource(at)
            .filter(|device| taken.len() < amount && home.is_none_or(|numa| device.numa == numa));
        if let Some(device) = wanted {
            taken.push(device.uuid.clone());
        }
        wanted.is_none()
    });
    taken
}
