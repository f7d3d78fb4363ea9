//! Building a placement, role by role: which nodes have room, and what is left of those that were
//! taken.

use std::cell::OnceCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::allot::{Cell, allot};
use super::domains::{Member, blocks};
use super::effort::{Effort, Miss};
use super::exact::Ways;
use super::fill::{Candidate, Run, fill, fill_nodes, rank, room_of};
use super::rules::Rules;
use super::runs::{Area, Nodes, Wanted};
use super::{Failure, Missed, Placed, Placement, RoleRequest, Terms};
use super::{conflicts, devices_of, times};
use crate::config::Config;
use crate::ids::{DeviceUuid, NodeName, ResourceName};
use crate::inventory::Device;
use crate::links::{GPUS_MAX, Links};
use crate::node::HostPort;
use crate::pod::{DEVICE_MILLI, PodShape, Share};
use crate::resources::Resources;
use crate::snapshot::{Ask, Key, NodeCapacity, SharedDevice};
use crate::topology::Path;

/// What is left of a node while a placement is being built.
pub(super) struct Remaining {
    pub capacity: Arc<NodeCapacity>,
    pub free: Resources,
    pub ports: BTreeSet<HostPort>,
    /// Devices of which a part is left.
    pub shared: Vec<SharedDevice>,
    /// Positions of its devices that are left.
    devices: Vec<usize>,
}

impl Remaining {
    /// Takes a part of a device: of the one that has the least left of those that have enough, or of a whole one.
    fn take_share(&mut self, share: &Share) -> Option<DeviceUuid> {
        let parted = self.shared.iter_mut();
        let enough = parted.filter(|shared| {
            shared.device.resource == share.resource && shared.left >= share.milli()
        });
        if let Some(shared) = enough.min_by_key(|shared| shared.left) {
            shared.left = shared.left.saturating_sub(share.milli());
            return Some(shared.device.uuid.clone());
        }
        let mut one = Resources::default();
        one.extended.insert(share.resource.clone(), 1);
        self.free.subtract(&one);
        let listed = &self.capacity.devices;
        let links = self.capacity.links.as_ref();
        let uuid = predict(listed, links, &mut self.devices, &share.resource, 1).pop()?;
        let device = listed.iter().find(|device| device.uuid == uuid)?.clone();
        let left = DEVICE_MILLI.saturating_sub(share.milli());
        self.shared.push(SharedDevice { device, left });
        Some(uuid)
    }
}

/// What is left of a node, as far as it decides how many members it takes.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub free: &'a Resources,
    pub ports: &'a BTreeSet<HostPort>,
    pub shared: &'a [SharedDevice],
}

impl<'a> Left<'a> {
    pub fn of(capacity: &'a NodeCapacity) -> Self {
        Self {
            free: &capacity.free,
            ports: &capacity.ports,
            shared: &capacity.shared,
        }
    }

    pub fn of_remaining(remaining: &'a Remaining) -> Self {
        Self {
            free: &remaining.free,
            ports: &remaining.ports,
            shared: &remaining.shared,
        }
    }
}

/// A placement on its way.
pub(super) struct Builder<'a, 'e> {
    pub terms: Terms<'a>,
    /// Columns of devices.
    pub devices: Vec<usize>,
    pub touched: BTreeMap<NodeName, Remaining>,
    /// Those by where they lie, as far as it matters.
    pub touched_at: BTreeMap<Path, BTreeSet<NodeName>>,
    /// Nodes of each group that are avoided or touched; of each place, where it matters where nodes lie.
    pub apart: BTreeMap<(&'a [Arc<str>], &'a Key), u32>,
    /// Where members stand, as far as it matters.
    pub used: BTreeSet<Path>,
    /// Domain of each segment of which a member was placed.
    pub settled: BTreeMap<u32, &'a [Arc<str>]>,
    rules: Rules,
    /// Members that have their place: position of the role, and of the node; where there are rules.
    stood: Vec<(usize, usize)>,
    pub home: Home,
    pub effort: &'e mut Effort,
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

impl<'a, 'e> Builder<'a, 'e> {
    pub fn new(terms: Terms<'a>, rules: Rules, number: usize, effort: &'e mut Effort) -> Self {
        let snapshot = terms.snapshot;
        let config = terms.config;
        let mut builder = Self {
            terms,
            devices: snapshot.index().columns(|name| config.is_device(name)),
            touched: BTreeMap::new(),
            touched_at: BTreeMap::new(),
            apart: BTreeMap::new(),
            used: BTreeSet::new(),
            settled: BTreeMap::new(),
            rules,
            stood: Vec::new(),
            home: Home { number, of: None },
            effort,
        };
        for name in terms.avoid {
            if let (Some(capacity), Some(key)) = (snapshot.get(name), snapshot.key_of(name)) {
                builder.set_apart(capacity, key);
            }
        }
        if terms.domain.is_some() {
            let standing = terms.placed.iter();
            let standing = standing.filter_map(|standing| snapshot.get(&standing.node));
            builder.used = standing.filter_map(|node| node.path.clone()).collect();
        }
        builder
    }

    /// One more node of its group is avoided or touched.
    fn set_apart(&mut self, capacity: &'a NodeCapacity, key: &'a Key) {
        let place: &[Arc<str>] = match self.terms.domain {
            Some(_) => capacity.place(),
            None => &[],
        };
        let count = self.apart.entry((place, key)).or_default();
        *count = count.saturating_add(1);
    }

    pub fn place_roles<'r>(
        &mut self,
        order: &[(usize, &'r RoleRequest)],
    ) -> Result<Placement, Failure<'r>> {
        let mut members = Vec::new();
        let missed = |role, miss| match miss {
            Miss::Room(placed) => Failure::Room(Missed { role, placed }),
            Miss::Limit => Failure::Limit,
        };
        if self.terms.domain.is_some() && self.rules.is_empty() {
            for block in blocks(order) {
                let placed = self.place_block(&block);
                members.extend(placed.map_err(|miss| missed(block.role, miss))?);
            }
        } else {
            for (position, role) in order {
                let placed = self.place_role(*position, role);
                members.extend(placed.map_err(|miss| missed(role, miss))?);
            }
            if let Some((role, placed)) = self.broken(order) {
                return Err(Failure::Room(Missed { role, placed }));
            }
        }
        members.sort_by(|a, b| (&a.role, a.index).cmp(&(&b.role, b.index)));
        Ok(Placement { members })
    }

    /// The first role of which members ask for a spread that others of the gang have spoilt, and how many of it
    /// have what they ask for.
    fn broken<'r>(&self, order: &[(usize, &'r RoleRequest)]) -> Option<(&'r RoleRequest, u32)> {
        let one_sided = |(position, _): &(usize, &RoleRequest)| self.rules.is_one_sided(*position);
        if !order.iter().any(one_sided) {
            return None;
        }
        order.iter().find_map(|(position, role)| {
            let stood = self.stood.iter().filter(|(other, _)| other == position);
            let kept = stood.filter(|member| self.rules.keep(std::slice::from_ref(*member)));
            let kept = kept.count();
            let is_broken = kept < role.indices.len();
            is_broken.then(|| (*role, u32::try_from(kept).unwrap_or(u32::MAX)))
        })
    }

    /// Places the members as a search has found them: position in `order`, and node, one after the other.
    pub fn place_found(
        &mut self,
        order: &[(usize, &RoleRequest)],
        found: &[(usize, &Arc<NodeCapacity>)],
    ) -> Placement {
        let mut indices: Vec<_> = order.iter().map(|(_, role)| role.indices.iter()).collect();
        let mut members = Vec::with_capacity(found.len());
        for (at, capacity) in found {
            if let (Some((_, role)), Some(indices)) = (order.get(*at), indices.get_mut(*at))
                && let Some(index) = indices.next()
            {
                members.push(self.take(capacity, role, *index));
            }
        }
        members.sort_by(|a, b| (&a.role, a.index).cmp(&(&b.role, b.index)));
        Placement { members }
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
        let wants_devices = devices_of(&role.shape, self.terms.config) > 0;
        if self.rules.is_empty() {
            let members: Vec<Member> = Member::all(role).collect();
            return self.place_by_groups(Area::Anywhere, role, &members);
        }
        if self.terms.topology.segment.is_some() {
            // Segments of members with rules between them are not looked for.
            return Err(Miss::Limit);
        }
        let nodes = self.terms.nodes();
        let rules = self.rules.len();
        self.effort.nodes(nodes.len(), rules)?;
        self.effort.nodes(role.indices.len(), rules)?;
        let total = role.indices.len();
        let rooms = self.candidates(position, role, nodes);
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
            self.stood.push((position, at));
            if let Some(capacity) = self.terms.snapshot.nodes().get(at) {
                placed.push(self.take(capacity, role, *index));
            }
        }
        Ok(placed)
    }

    /// The same where members have no rules between them: then nodes that are alike are looked at
    /// together. All members have the shape of the role.
    pub(super) fn place_by_groups(
        &mut self,
        area: Area<'_>,
        role: &RoleRequest,
        members: &[Member],
    ) -> Result<Vec<Placed>, Miss> {
        let wants_devices = devices_of(&role.shape, self.terms.config) > 0;
        let total = members.len();
        // Nodes that are as good as each other are one run, whatever groups they are in: which groups
        // there are depends on what was asked for before, and the plan must not.
        let mut known: BTreeMap<(u32, i64, u64, bool), usize> = BTreeMap::new();
        let mut found: Vec<(Run, Vec<Nodes>)> = Vec::new();
        let wanted = Wanted { role, total };
        // Groups come in order of what is free: the next is mostly as good as the last.
        let mut last = None;
        let looks = self.find_runs(area, &wanted, |_, run, place| {
            let alike = (run.room, run.cost, run.spare, run.has_devices);
            let at = match last {
                Some((same, at)) if same == alike => at,
                _ => *known.entry(alike).or_insert(found.len()),
            };
            last = Some((alike, at));
            match found.get_mut(at) {
                Some((same, places)) => {
                    same.count = same.count.saturating_add(run.count);
                    places.push(place);
                }
                None => found.push((run, vec![place])),
            }
        });
        let (runs, nodes): (Vec<Run>, Vec<Vec<Nodes>>) = found.into_iter().unzip();
        // By name where nothing else decides, as among the nodes of a run. It is looked for once in each.
        let firsts: Vec<OnceCell<Option<&NodeName>>> = vec![OnceCell::new(); nodes.len()];
        let first = |run: usize| {
            let (places, first) = nodes.get(run).zip(firsts.get(run))?;
            *first.get_or_init(|| self.first_of(places))
        };
        let takes = fill(&runs, first, total, wants_devices)?;
        // Counted afterwards: what it will be is known by then only.
        self.effort.nodes(looks.saturating_add(total), 0)?;
        let mut members = members.iter();
        let mut placed = Vec::with_capacity(total);
        let mut seen: BTreeMap<usize, NodeName> = BTreeMap::new();
        for take in takes {
            let (run, each) = (take.run, take.each);
            let Some(places) = nodes.get(run) else {
                continue;
            };
            // The first of a run is found with less work than those after it.
            let is_first = take.nodes == 1 && !seen.contains_key(&run);
            let known = firsts.get(run).filter(|_| is_first);
            let alone = known.and_then(|known| *known.get_or_init(|| self.first_of(places)));
            let chosen = match alone.and_then(|name| self.named(name)) {
                Some(one) => vec![one],
                None => self.next_of(places, seen.get(&run), take.nodes),
            };
            for (capacity, key) in chosen {
                seen.insert(run, capacity.node.name.clone());
                for member in members.by_ref().take(usize::try_from(each).unwrap_or(0)) {
                    placed.push(self.take(capacity, member.role, member.index));
                }
                if let Some(key) = key {
                    self.set_apart(capacity, key);
                }
            }
        }
        Ok(placed)
    }

    /// The nodes that have room for members of the role, beside those that have a place.
    fn candidates(
        &self,
        position: usize,
        role: &RoleRequest,
        nodes: Vec<(usize, &Arc<NodeCapacity>)>,
    ) -> Vec<Candidate> {
        let total = u32::try_from(role.indices.len()).unwrap_or(u32::MAX);
        let mut rooms = Vec::new();
        for (at, capacity) in nodes {
            if !self.terms.admits(capacity, &role.shape) || !self.rules.admit(position, at) {
                continue;
            }
            let left = match self.touched.get(&capacity.node.name) {
                Some(remaining) => Left::of_remaining(remaining),
                None => Left::of(capacity),
            };
            let mut room = room(left, &role.shape, total);
            if room > 1 && self.rules.one_on_node(position, at) {
                room = 1;
            }
            if room > 0 {
                rooms.push(Candidate {
                    at,
                    room,
                    // Node by node it would be the most of the work.
                    cost: 0,
                    spare: spare_of(left.free, self.terms.config),
                    has_devices: offers_devices(capacity, self.terms.config),
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

    /// What it costs to place so many members on a node of which so much is left.
    pub fn cost_at(&self, capacity: &NodeCapacity, left: Left<'_>, ask: &Ask, count: u32) -> i64 {
        let snapshot = self.terms.snapshot;
        let left = (left.free, left.shared);
        snapshot.key_of(&capacity.node.name).map_or(0, |key| {
            snapshot
                .index()
                .cost_at(key.kind, left, ask, u64::from(count))
        })
    }

    /// Puts one member on the node.
    fn take(&mut self, capacity: &Arc<NodeCapacity>, role: &RoleRequest, index: u32) -> Placed {
        let name = &capacity.node.name;
        let remaining = match self.touched.entry(name.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                if self.terms.domain.is_some()
                    && let Some(path) = &capacity.path
                {
                    let here = self.touched_at.entry(Arc::clone(path));
                    here.or_insert_with(|| {
                        self.used.insert(Arc::clone(path));
                        BTreeSet::new()
                    })
                    .insert(name.clone());
                }
                new.insert(Remaining {
                    free: capacity.free.clone(),
                    ports: capacity.ports.clone(),
                    shared: capacity.shared.clone(),
                    devices: (0..capacity.devices.len()).collect(),
                    capacity: Arc::clone(capacity),
                })
            }
        };
        let mut devices = Vec::new();
        remaining.free.subtract(&role.shape.requests);
        remaining
            .ports
            .extend(role.shape.host_ports.iter().cloned());
        for (resource, amount) in &role.shape.requests.extended {
            if self.terms.config.is_device(resource) {
                let free = &mut remaining.devices;
                let (listed, links) = (&capacity.devices, capacity.links.as_ref());
                devices.extend(predict(listed, links, free, resource, *amount));
            }
        }
        if let Some(share) = &role.shape.share {
            devices.extend(remaining.take_share(share));
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

/// How many more members of this shape a node with this much left can take, at most `limit`.
pub(super) fn room(left: Left<'_>, shape: &PodShape, limit: u32) -> u32 {
    let mut count = times(left.free, &shape.requests).min(u64::from(limit));
    if let Some(share) = &shape.share {
        let whole = shape.requests.extended(share.resource.as_str());
        count = count.min(match whole {
            0 => shares_left(left.free, left.shared, share),
            // Each has its part of a device of its own then.
            _ => {
                let each = whole.saturating_add(1);
                let free = left.free.extended(share.resource.as_str());
                free.checked_div(each).unwrap_or(0)
            }
        });
    }
    let count = u32::try_from(count).unwrap_or(limit);
    if shape.host_ports.is_empty() {
        return count;
    }
    if conflicts(shape, left.ports) {
        0
    } else {
        count.min(1)
    }
}

/// How many such shares of devices there are.
pub(super) fn shares_left(free: &Resources, shared: &[SharedDevice], share: &Share) -> u64 {
    let per = |left: u32| u64::from(left.checked_div(share.milli()).unwrap_or(0));
    let whole = free.extended(share.resource.as_str());
    let of_resource = shared
        .iter()
        .filter(|shared| shared.device.resource == share.resource);
    of_resource.fold(whole.saturating_mul(per(DEVICE_MILLI)), |sum, shared| {
        sum.saturating_add(per(shared.left))
    })
}

/// Free devices of every kind.
pub(super) fn spare_of(free: &Resources, config: &Config) -> u64 {
    free.extended
        .iter()
        .filter(|(name, _)| config.is_device(name))
        .fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
}

pub(super) fn offers_devices(capacity: &NodeCapacity, config: &Config) -> bool {
    let mut offered = capacity.node.allocatable.extended.keys();
    offered.any(|name| config.is_device(name))
}

/// Takes `amount` devices of a resource out of `free`: those nearest to each other where that is known; else from one
/// NUMA node where one has enough, the fullest of those; otherwise in order. Fewer where the agent lists fewer: kubelet
/// decides anyway.
fn predict(
    devices: &[Device],
    links: Option<&Links>,
    free: &mut Vec<usize>,
    resource: &ResourceName,
    amount: u64,
) -> Vec<DeviceUuid> {
    let amount = usize::try_from(amount).unwrap_or(usize::MAX);
    let of_resource = |at: &usize| {
        let device = devices.get(*at)?;
        (device.resource == *resource).then_some(device)
    };
    let more = amount.saturating_add(1);
    let left = free.iter().filter_map(of_resource).take(more).count();
    if left <= amount {
        // There is no choice.
        let mut taken = Vec::with_capacity(left);
        free.retain(|position| match of_resource(position) {
            Some(device) => {
                taken.push(device.uuid.clone());
                false
            }
            None => true,
        });
        return taken;
    }
    // Slices may be many more than GPUs.
    if let Some(links) = links.filter(|_| free.len() <= GPUS_MAX) {
        let indices: Vec<u32> = free
            .iter()
            .filter_map(of_resource)
            .map(|device| device.index)
            .collect();
        let nearest = links.nearest(&indices, amount);
        let (mut at, mut taken) = (0usize, Vec::with_capacity(nearest.len()));
        free.retain(|position| {
            let Some(device) = of_resource(position) else {
                return true;
            };
            let is_taken = nearest.binary_search(&at).is_ok();
            if is_taken {
                taken.push(device.uuid.clone());
            }
            at = at.saturating_add(1);
            !is_taken
        });
        return taken;
    }
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
