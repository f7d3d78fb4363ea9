//! Choosing: `plan` takes a snapshot and a gang and returns a place for every member, or why there
//! is none. It is a pure function and can't be given a client.
//!
//! Properties:
//! - All or nothing: an answer has every member that was asked for.
//! - Deterministic: nodes are in order of name, ties go to the smaller name.
//! - A role is put on as few nodes as it needs; of nodes that would do, the fullest is taken, so
//!   that empty nodes stay whole for gangs that need them.
//! - Roles without devices keep away from nodes with devices while others have room.

mod explain;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::explain::{explain, missing_resource};
use crate::config::Config;
use crate::ids::{DeviceUuid, NodeName, ResourceName, RoleName};
use crate::inventory::Device;
use crate::node::HostPort;
use crate::pod::PodShape;
use crate::reason::Unplaceable;
use crate::resources::Resources;
use crate::snapshot::{Eligibility, NodeCapacity, Snapshot};

/// Members of one role that need a place.
#[derive(Clone, Debug)]
pub struct RoleRequest {
    /// The role.
    pub role: RoleName,
    /// Indices of the members.
    pub indices: Vec<u32>,
    /// What each asks for.
    pub shape: Arc<PodShape>,
}

/// A gang, or the part of one that needs a place.
#[derive(Clone, Debug, Default)]
pub struct GangRequest {
    /// Its roles.
    pub roles: Vec<RoleRequest>,
    /// Nodes that are out of the question for this gang, for a while.
    pub avoid: BTreeSet<NodeName>,
}

/// One member's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Role.
    pub role: RoleName,
    /// Index within the role.
    pub index: u32,
    /// Node.
    pub node: NodeName,
    /// Devices it is predicted to get.
    pub devices: Vec<DeviceUuid>,
    /// What it asks for.
    pub shape: Arc<PodShape>,
}

/// A place for every member, in order of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The places.
    pub members: Vec<Placed>,
}

/// What is left of a node while a placement is being built.
struct Remaining {
    free: Resources,
    ports: BTreeSet<HostPort>,
    devices: Vec<Device>,
}

struct Builder<'a> {
    snapshot: &'a Snapshot,
    config: &'a Config,
    avoid: &'a BTreeSet<NodeName>,
    touched: BTreeMap<usize, Remaining>,
}

/// Finds a place for every member of `gang`.
pub fn plan(
    snapshot: &Snapshot,
    gang: &GangRequest,
    config: &Config,
) -> Result<Placement, Unplaceable> {
    if let Some(missing) = missing_resource(snapshot, gang) {
        return Err(missing);
    }
    let mut order: Vec<&RoleRequest> = gang.roles.iter().collect();
    order.sort_by_key(|role| std::cmp::Reverse(weight(&role.shape, config)));
    match place_all(snapshot, gang, &order, config) {
        Ok(placement) => Ok(placement),
        Err(failure) => {
            order.reverse();
            place_all(snapshot, gang, &order, config)
                .map_err(|_| explain(snapshot, gang, failure.role, failure.placed, config))
        }
    }
}

/// Largest demands first: devices, then memory, then CPU.
fn weight(shape: &PodShape, config: &Config) -> (u64, u64, u64) {
    (
        devices_of(shape, config),
        shape.requests.memory_bytes,
        shape.requests.milli_cpu,
    )
}

fn devices_of(shape: &PodShape, config: &Config) -> u64 {
    shape
        .requests
        .extended
        .iter()
        .filter(|(name, _)| config.is_device(name))
        .fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
}

struct Failure<'a> {
    role: &'a RoleRequest,
    placed: u32,
}

fn place_all<'a>(
    snapshot: &Snapshot,
    gang: &GangRequest,
    order: &[&'a RoleRequest],
    config: &Config,
) -> Result<Placement, Failure<'a>> {
    let mut builder = Builder {
        snapshot,
        config,
        avoid: &gang.avoid,
        touched: BTreeMap::new(),
    };
    let mut members = Vec::new();
    for role in order {
        members.extend(
            builder
                .place_role(role)
                .map_err(|placed| Failure { role, placed })?,
        );
    }
    members.sort_by(|a, b| (&a.role, a.index).cmp(&(&b.role, b.index)));
    Ok(Placement { members })
}

impl Builder<'_> {
    fn may_stand(&self, capacity: &NodeCapacity, shape: &PodShape, devices: bool) -> bool {
        capacity.eligibility == Eligibility::Eligible
            && (!devices || capacity.reported)
            && !self.avoid.contains(&capacity.node.name)
            && shape.mismatch(&capacity.node).is_none()
    }

    /// How many more members of this shape the node can take, at most `limit`.
    fn room(&self, at: usize, capacity: &NodeCapacity, shape: &PodShape, limit: u32) -> u32 {
        let (free, ports) = match self.touched.get(&at) {
            Some(remaining) => (&remaining.free, &remaining.ports),
            None => (&capacity.free, &capacity.ports),
        };
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

    /// Places every member of the role; the number that found a place otherwise.
    fn place_role(&mut self, role: &RoleRequest) -> Result<Vec<Placed>, u32> {
        let total = u32::try_from(role.indices.len()).unwrap_or(u32::MAX);
        let wants_devices = devices_of(&role.shape, self.config) > 0;
        let mut rooms: Vec<Candidate> = Vec::new();
        for (at, capacity) in self.snapshot.nodes.iter().enumerate() {
            if !self.may_stand(capacity, &role.shape, wants_devices) {
                continue;
            }
            let room = self.room(at, capacity, &role.shape, total);
            if room > 0 {
                rooms.push(Candidate {
                    at,
                    room,
                    spare: self.spare_devices(at, capacity),
                    has_devices: offers_devices(capacity, self.config),
                });
            }
        }
        let sum = rooms.iter().fold(0u64, |sum, candidate| {
            sum.saturating_add(u64::from(candidate.room))
        });
        if sum < u64::from(total) {
            return Err(u32::try_from(sum).unwrap_or(u32::MAX));
        }
        let mut left = role.indices.as_slice();
        let mut placed = Vec::with_capacity(role.indices.len());
        while !left.is_empty() {
            let need = u32::try_from(left.len()).unwrap_or(u32::MAX);
            let Some(position) = choose(&rooms, need, wants_devices) else {
                return Err(total.saturating_sub(need));
            };
            let Candidate { at, room, .. } = rooms.swap_remove(position);
            let take = usize::try_from(room.min(need))
                .unwrap_or(left.len())
                .min(left.len());
            let (now, later) = left.split_at(take);
            for index in now {
                placed.push(self.take(at, role, *index));
            }
            left = later;
        }
        Ok(placed.into_iter().flatten().collect())
    }

    /// Free devices on the node, of every kind.
    fn spare_devices(&self, at: usize, capacity: &NodeCapacity) -> u64 {
        let free = self
            .touched
            .get(&at)
            .map_or(&capacity.free, |remaining| &remaining.free);
        free.extended
            .iter()
            .filter(|(name, _)| self.config.is_device(name))
            .fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
    }

    fn take(&mut self, at: usize, role: &RoleRequest, index: u32) -> Option<Placed> {
        let capacity = self.snapshot.nodes.get(at)?;
        let remaining = self.touched.entry(at).or_insert_with(|| Remaining {
            free: capacity.free.clone(),
            ports: capacity.ports.clone(),
            devices: capacity.devices.clone(),
        });
        remaining.free.subtract(&role.shape.requests);
        remaining
            .ports
            .extend(role.shape.host_ports.iter().cloned());
        let mut devices = Vec::new();
        for (resource, amount) in role
            .shape
            .requests
            .extended
            .iter()
            .filter(|(name, _)| self.config.is_device(name))
        {
            devices.extend(predict(&mut remaining.devices, resource, *amount));
        }
        Some(Placed {
            role: role.role.clone(),
            index,
            node: capacity.node.name.clone(),
            devices,
            shape: Arc::clone(&role.shape),
        })
    }
}

fn conflicts(shape: &PodShape, taken: &BTreeSet<HostPort>) -> bool {
    shape
        .host_ports
        .iter()
        .any(|port| taken.iter().any(|other| port.conflicts(other)))
}

fn ports_taken(capacity: &NodeCapacity, shape: &PodShape) -> bool {
    conflicts(shape, &capacity.ports)
}

/// How often `request` fits into `free`; `u64::MAX` for a request of nothing.
fn times(free: &Resources, request: &Resources) -> u64 {
    let per = |have: u64, each: u64| have.checked_div(each).unwrap_or(u64::MAX);
    let mut count = per(free.milli_cpu, request.milli_cpu)
        .min(per(free.memory_bytes, request.memory_bytes))
        .min(per(free.ephemeral_bytes, request.ephemeral_bytes))
        .min(per(free.pods, request.pods));
    for (name, each) in &request.extended {
        count = count.min(per(free.extended(name.as_str()), *each));
    }
    count
}

/// A node that has room for members of a role.
struct Candidate {
    at: usize,
    /// Members that it has room for.
    room: u32,
    /// Free devices of every kind.
    spare: u64,
    /// It offers devices at all, free or not.
    has_devices: bool,
}

fn offers_devices(capacity: &NodeCapacity, config: &Config) -> bool {
    capacity
        .node
        .allocatable
        .extended
        .keys()
        .any(|name| config.is_device(name))
}

/// The next node to fill, as a position in `rooms`.
///
/// While some node can be filled by what is still needed, the one that takes most; then, for the
/// rest, the one with the fewest spare devices. A role without devices looks for nodes that offer
/// none first, then for those with the fewest to spare.
fn choose(rooms: &[Candidate], need: u32, wants_devices: bool) -> Option<usize> {
    let candidates = rooms.iter().enumerate();
    let last = |a: &Candidate| (a.spare, a.at);
    let chosen = if !wants_devices {
        candidates.min_by_key(|(_, a)| {
            let filled = std::cmp::Reverse(a.room.min(need));
            (a.has_devices, a.spare, filled, a.at)
        })
    } else if rooms.iter().any(|a| a.room >= need) {
        candidates
            .filter(|(_, a)| a.room >= need)
            .min_by_key(|(_, a)| last(a))
    } else {
        candidates.min_by_key(|(_, a)| (std::cmp::Reverse(a.room), last(a)))
    };
    chosen.map(|(position, _)| position)
}

/// Takes `amount` devices of a resource out of `free`: from one NUMA node where one has enough, the
/// fullest of those; otherwise in order. Fewer where the agent lists fewer: kubelet decides anyway.
fn predict(free: &mut Vec<Device>, resource: &ResourceName, amount: u64) -> Vec<DeviceUuid> {
    let amount = usize::try_from(amount).unwrap_or(usize::MAX);
    let mut by_numa: BTreeMap<Option<u32>, usize> = BTreeMap::new();
    for device in free.iter().filter(|device| device.resource == *resource) {
        *by_numa.entry(device.numa).or_insert(0) += 1;
    }
    let home = by_numa
        .iter()
        .filter(|(_, count)| **count >= amount)
        .min_by_key(|(_, count)| **count)
        .map(|(numa, _)| *numa);
    let mut taken = Vec::new();
    free.retain(|device| {
        let wanted = taken.len() < amount
            && device.resource == *resource
            && home.is_none_or(|numa| device.numa == numa);
        if wanted {
            taken.push(device.uuid.clone());
        }
        !wanted
    });
    taken
}
