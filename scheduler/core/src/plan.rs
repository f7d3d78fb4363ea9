//! Choosing: `plan` takes a snapshot and a gang and returns a place for every member, or why there
//! is none. It is a pure function and can't be given a client.
//!
//! Properties:
//! - All or nothing: an answer has every member that was asked for.
//! - Deterministic: nodes are in order of name, ties go to the smaller name.
//! - A role is put on as few nodes as it needs; of nodes that would do, the fullest is taken, so
//!   that empty nodes stay whole for gangs that need them.
//! - Roles without devices keep away from nodes with devices while others have room.
//! - Where levels of the network are known, a gang on several nodes that asks for none is kept together all
//!   the same, as far as can be, so that wide domains stay whole. See [`near`].
//! - Members keep the rules between them: anti-affinity, affinity, topology spread. See [`rules`].
//! - One gang costs at most so much work; beyond that the search gives up and says so. See
//!   [`effort`].

mod allot;
mod build;
mod domains;
mod effort;
mod exact;
mod explain;
mod fill;
mod later;
mod near;
mod parts;
mod ruled;
mod rules;
mod runs;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::build::Builder;
use self::domains::place_in_domains;
use self::effort::Effort;
pub use self::effort::STEPS_MAX;
use self::exact::search;
use self::explain::{explain, explain_domains, explain_rules, missing_resource};
pub(crate) use self::later::{Burden, place_later};
use self::near::drawn_together;
use self::rules::Rules;
use crate::config::Config;
use crate::ids::{DeviceUuid, NodeName, RoleName};
use crate::interpod::Labels;
use crate::node::HostPort;
use crate::pod::PodShape;
use crate::reason::Unplaceable;
use crate::resources::Resources;
use crate::snapshot::{Eligibility, NodeCapacity, Snapshot};
use crate::topology::TopologyRequest;

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
    /// Number of the segment that each is in, in the order of `indices`; empty where the gang has none.
    pub segments: Vec<u32>,
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
    /// Number of the segment that it is in, where the gang has segments.
    pub segment: Option<u32>,
}

/// A gang, or the part of one that needs a place.
#[derive(Clone, Debug, Default)]
pub struct GangRequest {
    /// Its roles.
    pub roles: Vec<RoleRequest>,
    /// Members that have a place and keep it; needed only where members have rules between them, ask
    /// something of the topology, or are kept together.
    pub placed: Vec<Standing>,
    /// Nodes that are out of the question for this gang, for a while.
    pub avoid: BTreeSet<NodeName>,
    /// What it asks of the topology.
    pub topology: TopologyRequest,
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
    let found = found.map(|placement| {
        // Work of its own: how many members fit is settled.
        let mut effort = Effort::brief();
        let together = drawn_together(snapshot, gang, &rules, &placement, config, &mut effort);
        steps = steps.saturating_add(effort.steps());
        together.unwrap_or(placement)
    });
    let placement = found.map_err(|failure| {
        // Work of its own: a search that took nearly all there is can still be explained.
        let mut effort = Effort::default();
        let why = match failure {
            Failure::Room(missed) if !gang.topology.is_empty() => {
                explain_domains(snapshot, gang, spare, &rules, missed, config, &mut effort)
            }
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
    snapshot: &'a Snapshot,
    gang: &'a GangRequest,
    rules: &Rules,
    spare: u32,
    config: &'a Config,
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
    // Where a search is given up a smaller part may still be found, while there is work left.
    let mut gave_up = matches!(whole, Failure::Limit);
    while too_few < enough && !effort.is_spent() {
        let dropped = too_few.midpoint(enough).max(too_few.saturating_add(1));
        let part = GangRequest {
            roles: without(&gang.roles, dropped),
            ..gang.clone()
        };
        match place(snapshot, &part, rules, config, effort) {
            Ok(placement) => {
                best = Some(placement);
                if dropped == enough {
                    break;
                }
                enough = dropped;
            }
            Err(failure) => {
                gave_up |= matches!(failure, Failure::Limit);
                if dropped == enough {
                    break;
                }
                too_few = dropped;
            }
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
            role.segments.truncate(role.indices.len());
        }
    }
    roles
}

/// A place for the whole gang, where it asks for.
fn place<'a>(
    snapshot: &'a Snapshot,
    gang: &'a GangRequest,
    rules: &Rules,
    config: &'a Config,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    let terms = Terms::of(snapshot, gang, config);
    if gang.topology.is_empty() {
        return place_roles(terms, &gang.roles, rules, effort);
    }
    place_in_domains(terms, gang, rules, effort)
}

/// What a search goes by.
#[derive(Clone, Copy)]
struct Terms<'a> {
    snapshot: &'a Snapshot,
    avoid: &'a BTreeSet<NodeName>,
    /// Only nodes of this domain, where it matters at all where nodes lie.
    domain: Option<&'a [Arc<str>]>,
    topology: &'a TopologyRequest,
    /// Members that stand already.
    placed: &'a [Standing],
    config: &'a Config,
}

impl<'a> Terms<'a> {
    fn of(snapshot: &'a Snapshot, gang: &'a GangRequest, config: &'a Config) -> Self {
        Self {
            snapshot,
            avoid: &gang.avoid,
            domain: None,
            topology: &gang.topology,
            placed: &gang.placed,
            config,
        }
    }

    /// The same, with an eye to where nodes lie.
    fn anywhere(self) -> Self {
        Self {
            domain: Some(&[]),
            ..self
        }
    }

    /// Whether members of this shape may come to the node at all.
    fn admits(&self, capacity: &NodeCapacity, shape: &PodShape) -> bool {
        capacity.eligibility == Eligibility::Eligible
            && (capacity.reported || devices_of(shape, self.config) == 0)
            && !self.avoid.contains(&capacity.node.name)
            && shape.mismatch(&capacity.node).is_none()
            && self.lies_in(capacity)
    }

    /// Nodes of the domain with their positions, in order of name.
    fn nodes(&self) -> Vec<(usize, &'a Arc<NodeCapacity>)> {
        let snapshot = self.snapshot;
        let all = || snapshot.nodes().iter().enumerate();
        let Some(domain) = self.domain.filter(|domain| !domain.is_empty()) else {
            return all().collect();
        };
        let groups = snapshot
            .index()
            .places(domain)
            .flat_map(|(_, groups)| groups);
        let nodes = groups.flat_map(|(_, group)| group.nodes.iter());
        let mut found: Vec<(usize, &Arc<NodeCapacity>)> = nodes
            .filter_map(|(name, capacity)| Some((snapshot.position(name)?, capacity)))
            .collect();
        found.sort_unstable_by_key(|(at, _)| *at);
        found
    }

    fn lies_in(&self, capacity: &NodeCapacity) -> bool {
        self.domain
            .is_none_or(|domain| capacity.place().starts_with(domain))
    }
}

/// Largest roles first, and if that does not work out, smallest first; and if that does not either,
/// everything is tried, within limits.
fn place_roles<'a>(
    terms: Terms<'a>,
    roles: &'a [RoleRequest],
    rules: &Rules,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    let config = terms.config;
    let all = roles.iter().enumerate();
    let mut order: Vec<(usize, &RoleRequest)> =
        all.filter(|(_, role)| !role.indices.is_empty()).collect();
    order.sort_by_key(|(_, role)| std::cmp::Reverse(weight(&role.shape, config)));
    let stuck = rules.stuck(order.iter().map(|(position, _)| *position).collect());
    if let Some((_, role)) = order.iter().find(|(position, _)| stuck == Some(*position)) {
        return Err(Failure::Room(Missed { role, placed: 0 }));
    }
    // What finds no room even when it goes first finds none in any other way.
    let is_first = |missed: &Missed, order: &[(usize, &RoleRequest)]| {
        order
            .first()
            .is_some_and(|(_, role)| std::ptr::eq(*role, missed.role))
    };
    let missed = match place_all(terms, &order, rules, effort) {
        Err(Failure::Room(missed)) if order.len() > 1 => {
            if rules.is_empty() && is_first(&missed, &order) {
                return Err(Failure::Room(missed));
            }
            missed
        }
        Err(Failure::Room(missed)) if !rules.is_empty() => {
            return place_ruled(terms, roles, &order, rules, missed, effort);
        }
        answer => return answer,
    };
    order.reverse();
    match place_all(terms, &order, rules, effort) {
        Err(Failure::Room(again)) if rules.is_empty() && is_first(&again, &order) => {
            return Err(Failure::Room(missed));
        }
        Err(Failure::Room(_)) => {}
        answer => return answer,
    }
    order.reverse();
    if !rules.is_empty() {
        return place_ruled(terms, roles, &order, rules, missed, effort);
    }
    match search(terms, &order, effort) {
        // The search knows nothing of segments: there may be a place that keeps them.
        Ok(Some(_)) if terms.topology.segment.is_some() => Err(Failure::Limit),
        Ok(Some(ways)) => {
            let mut builder = Builder::new(terms, Rules::default(), 0, effort);
            Ok(builder.place_ways(&order, ways))
        }
        Ok(None) => Err(Failure::Room(missed)),
        Err(_) => Err(Failure::Limit),
    }
}

/// Where members have rules between them and one after the other finds no place: there is none for
/// certain, or everything is tried.
fn place_ruled<'a>(
    terms: Terms<'a>,
    roles: &'a [RoleRequest],
    order: &[(usize, &'a RoleRequest)],
    rules: &Rules,
    missed: Missed<'a>,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    if let [(position, _)] = order
        && rules.settles(*position, HOMES_MAX)
    {
        return Err(Failure::Room(missed));
    }
    // What has no room without the rules has none with them.
    if let Err(Failure::Room(_)) = place_roles(terms, roles, &Rules::default(), effort) {
        return Err(Failure::Room(missed));
    }
    match ruled::search(terms, order, rules, effort) {
        Ok(Some(found)) => {
            let mut builder = Builder::new(terms, Rules::default(), 0, effort);
            Ok(builder.place_found(order, &found))
        }
        Ok(None) => Err(Failure::Room(missed)),
        Err(_) => Err(Failure::Limit),
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
    shape.devices(config)
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
    terms: Terms<'_>,
    order: &[(usize, &'a RoleRequest)],
    rules: &Rules,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    let mut first = None;
    let mut number = 0usize;
    loop {
        let mut builder = Builder::new(terms, rules.clone(), number, effort);
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
