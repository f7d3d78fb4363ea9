//! Choosing: `plan` takes a snapshot and a gang and returns a place for every member, or why there
//! is none. It is a pure function and can't be given a client.
//!
//! Properties:
//! - All or nothing: an answer has every member that was asked for.
//! - Deterministic: nodes are in order of name, ties go to the smaller name.
//! - A role is put on as few nodes as it needs; of nodes that would do, the fullest is taken, so
//!   that empty nodes stay whole for gangs that need them.
//! - Roles without devices keep away from nodes with devices while others have room.
//! - Members keep the rules between them: anti-affinity, affinity, topology spread. See [`rules`].
//! - One gang costs at most so much work; beyond that the search gives up and says so. See
//!   [`effort`].

mod allot;
mod effort;
mod explain;
mod fill;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::allot::{Cell, allot};
pub use self::effort::STEPS_MAX;
use self::effort::{Effort, Miss};
use self::explain::{explain, explain_rules, missing_resource};
use self::fill::{Candidate, fill, rank, room_of};
use self::rules::Rules;
use crate::config::Config;
use crate::ids::{DeviceUuid, NodeName, ResourceName, RoleName};
use crate::interpod::Labels;
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
    /// Labels of each, as far as a rule between members looks at them.
    pub labels: Arc<Labels>,
}

/// A member that has its place already.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// Where.
    pub node: NodeName,
    /// What it asks for.
    pub shape: Arc<PodShape>,
    /// Its labels, as far as a rule between members looks at them.
    pub labels: Arc<Labels>,
}

/// A gang, or the part of one that needs a place.
#[derive(Clone, Debug, Default)]
pub struct GangRequest {
    /// Its roles.
    pub roles: Vec<RoleRequest>,
    /// Members that have a place and keep it; needed only where members have rules between them.
    pub placed: Vec<Standing>,
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

struct Builder<'a, 'e> {
    snapshot: &'a Snapshot,
    config: &'a Config,
    avoid: &'a BTreeSet<NodeName>,
    touched: BTreeMap<usize, Remaining>,
    rules: Rules,
    home: Home,
    effort: &'e mut Effort,
}

/// The domain in which members come together, where affinity asks for that and leaves it open which:
/// the first of the domains with room, then the next, when the rest of the gang does not fit there.
#[derive(Default)]
struct Home {
    /// Which of the domains is tried.
    number: usize,
    /// How many there are, once somebody has had the choice.
    of: Option<usize>,
}

/// Most domains that are tried as the home of one gang. Reached only where more domains have room
/// for one role and none for the whole gang.
const HOMES_MAX: usize = 64;

/// What was found for a gang, and what it took.
#[derive(Clone, Debug)]
pub struct Answer {
    /// A place for each member but those that stay behind, or why there is none.
    pub placement: Result<Placement, Unplaceable>,
    /// Work that it was; see [`STEPS_MAX`].
    pub steps: u64,
}

/// Finds a place for every member of `gang`.
pub fn plan(
    snapshot: &Snapshot,
    gang: &GangRequest,
    config: &Config,
) -> Result<Placement, Unplaceable> {
    plan_part(snapshot, gang, 0, config).placement
}

/// Finds a place for the largest part of `gang` that fits: at most `spare` members stay behind. Why
/// there is none is worked out once, at the end, for the whole gang.
pub fn plan_part(snapshot: &Snapshot, gang: &GangRequest, spare: u32, config: &Config) -> Answer {
    if let Some(missing) = missing_resource(snapshot, gang) {
        return Answer {
            placement: Err(missing),
            steps: 0,
        };
    }
    let rules = Rules::of(snapshot, gang);
    let mut effort = Effort::default();
    let found = effort
        .gather(snapshot, gang, &rules)
        .map_err(|_| Failure::Limit)
        .and_then(|()| place_part(snapshot, gang, &rules, spare, config, &mut effort));
    let mut steps = effort.steps();
    let placement = found.map_err(|failure| {
        // Work of its own: a search that took nearly all there is can still be explained.
        let mut effort = Effort::default();
        let why = match failure {
            Failure::Room(missed) if rules.is_empty() => {
                explain(snapshot, gang, missed, config, &mut effort)
            }
            Failure::Room(missed) => {
                explain_rules(snapshot, gang, &rules, missed, config, &mut effort)
            }
            Failure::Limit => Unplaceable::TooComplex {
                members: members_of(&gang.roles),
                rules: u32::try_from(rules.len()).unwrap_or(u32::MAX),
            },
        };
        steps = steps.saturating_add(effort.steps());
        why
    });
    Answer { placement, steps }
}

fn members_of(roles: &[RoleRequest]) -> u32 {
    roles.iter().fold(0u32, |sum, role| {
        sum.saturating_add(u32::try_from(role.indices.len()).unwrap_or(u32::MAX))
    })
}

/// The whole gang, or the largest part of it. A failure is that of the whole gang.
fn place_part<'a>(
    snapshot: &Snapshot,
    gang: &'a GangRequest,
    rules: &Rules,
    spare: u32,
    config: &Config,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    let whole = match place(snapshot, gang, rules, config, effort) {
        Ok(placement) => return Ok(placement),
        Err(failure) => failure,
    };
    // The fewest members that must stay behind, by halving: with a member less, what fitted still
    // fits.
    let (mut too_few, mut enough) = (0, spare);
    let mut best = None;
    let mut gave_up = matches!(whole, Failure::Limit);
    while too_few < enough && !gave_up {
        let dropped = too_few.midpoint(enough).max(too_few.saturating_add(1));
        let part = GangRequest {
            roles: without(&gang.roles, dropped),
            placed: Vec::new(),
            avoid: gang.avoid.clone(),
        };
        match place(snapshot, &part, rules, config, effort) {
            Ok(placement) => {
                best = Some(placement);
                if dropped == enough {
                    break;
                }
                enough = dropped;
            }
            Err(Failure::Limit) => gave_up = true,
            Err(_) if dropped == enough => break,
            Err(_) => too_few = dropped,
        }
    }
    match best {
        Some(placement) => Ok(placement),
        None if gave_up => Err(Failure::Limit),
        None => Err(whole),
    }
}

/// The roles with `dropped` members fewer: always the highest index of the role with most members,
/// so that the master stays. A role of which nobody is left keeps its position.
fn without(roles: &[RoleRequest], dropped: u32) -> Vec<RoleRequest> {
    let mut roles = roles.to_vec();
    for _ in 0..dropped {
        if let Some(role) = roles.iter_mut().max_by_key(|role| role.indices.len()) {
            role.indices.pop();
        }
    }
    roles
}

/// Largest roles first, and if that does not work out, smallest first.
fn place<'a>(
    snapshot: &Snapshot,
    gang: &'a GangRequest,
    rules: &Rules,
    config: &Config,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    let all = gang.roles.iter().enumerate();
    let mut order: Vec<(usize, &RoleRequest)> =
        all.filter(|(_, role)| !role.indices.is_empty()).collect();
    order.sort_by_key(|(_, role)| std::cmp::Reverse(weight(&role.shape, config)));
    match place_all(snapshot, &gang.avoid, &order, rules, config, effort) {
        Err(Failure::Room(missed)) if order.len() > 1 => {
            order.reverse();
            let again = place_all(snapshot, &gang.avoid, &order, rules, config, effort);
            again.map_err(|failure| match failure {
                Failure::Room(_) => Failure::Room(missed),
                Failure::Limit => Failure::Limit,
            })
        }
        answer => answer,
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

/// A role of which only some found a place.
#[derive(Clone, Copy)]
struct Missed<'a> {
    role: &'a RoleRequest,
    placed: u32,
}

/// Why there is no placement.
enum Failure<'a> {
    Room(Missed<'a>),
    /// The search gave up.
    Limit,
}

/// Places the roles in this order, each in as many ways as there are homes for the gang.
fn place_all<'a>(
    snapshot: &Snapshot,
    avoid: &BTreeSet<NodeName>,
    order: &[(usize, &'a RoleRequest)],
    rules: &Rules,
    config: &Config,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    let mut first = None;
    let mut number = 0usize;
    loop {
        let mut builder = Builder {
            snapshot,
            config,
            avoid,
            touched: BTreeMap::new(),
            rules: rules.clone(),
            home: Home { number, of: None },
            effort,
        };
        let missed = match builder.place_roles(order) {
            Ok(placement) => return Ok(placement),
            Err(Failure::Limit) => return Err(Failure::Limit),
            Err(Failure::Room(missed)) => first.unwrap_or(missed),
        };
        number = number.saturating_add(1);
        if number >= builder.home.of.unwrap_or(0).min(HOMES_MAX) {
            return Err(Failure::Room(missed));
        }
        first = Some(missed);
    }
}

impl Builder<'_, '_> {
    fn place_roles<'r>(
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
    fn place_role(&mut self, position: usize, role: &RoleRequest) -> Result<Vec<Placed>, Miss> {
        let (nodes, rules) = (self.snapshot.nodes.len(), self.rules.len());
        self.effort.nodes(nodes, rules)?;
        self.effort.nodes(role.indices.len(), rules)?;
        let total = role.indices.len();
        let wants_devices = devices_of(&role.shape, self.config) > 0;
        let rooms = self.candidates(position, role, wants_devices);
        let rooms = self.at_home(position, rooms, total, wants_devices)?;
        let by = self.rules.counting(position);
        let nodes = if by.is_empty() {
            fill(rooms, total, wants_devices)?
        } else {
            self.share(&by, rooms, total, wants_devices)?
        };
        let places = role.indices.iter().zip(nodes);
        Ok(places
            .filter_map(|(index, at)| self.take(position, at, role, *index))
            .collect())
    }

    /// The nodes that have room for members of the role, beside those that have a place.
    fn candidates(
        &self,
        position: usize,
        role: &RoleRequest,
        wants_devices: bool,
    ) -> Vec<Candidate> {
        let total = u32::try_from(role.indices.len()).unwrap_or(u32::MAX);
        let mut rooms = Vec::new();
        for (at, capacity) in self.snapshot.nodes.iter().enumerate() {
            if !self.may_stand(capacity, &role.shape, wants_devices)
                || !self.rules.admit(position, at)
            {
                continue;
            }
            let mut room = self.room(at, capacity, &role.shape, total);
            if room > 1 && self.rules.one_on_node(position, at) {
                room = 1;
            }
            if room > 0 {
                rooms.push(Candidate {
                    at,
                    room,
                    spare: self.spare_devices(at, capacity),
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
            nodes.push(fill(rooms, taken, wants_devices)?.into_iter());
        }
        Ok(order
            .into_iter()
            .filter_map(|cell| nodes.get_mut(cell)?.next())
            .collect())
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

    fn take(
        &mut self,
        position: usize,
        at: usize,
        role: &RoleRequest,
        index: u32,
    ) -> Option<Placed> {
        self.rules.add(position, at);
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

fn offers_devices(capacity: &NodeCapacity, config: &Config) -> bool {
    capacity
        .node
        .allocatable
        .extended
        .keys()
        .any(|name| config.is_device(name))
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
