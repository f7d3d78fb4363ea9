//! A gang that asks nothing of the topology, on more than one node: it is kept together as if it had said that it
//! would like to be.
//!
//! Whether it fits is decided without: no gang waits, and none is said to be too complex, because of what it never
//! asked for. A gang that one node takes stays where scores put it, and none is spread over more nodes for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::build::offers_devices;
use super::domains::place_in_domains;
use super::effort::Effort;
use super::rules::Rules;
use super::{GangRequest, Placed, Placement, RoleRequest, Terms, devices_of};
use crate::config::Config;
use crate::ids::NodeName;
use crate::snapshot::Snapshot;
use crate::topology::TopologyRequest;

/// The same members in as few domains as can be, where levels are known, the gang asks nothing of them, and it needs
/// several nodes or joins others of it. `None`: it stays as it is.
pub(super) fn drawn_together(
    snapshot: &Snapshot,
    gang: &GangRequest,
    rules: &Rules,
    anywhere: &Placement,
    config: &Config,
    effort: &mut Effort,
) -> Option<Placement> {
    let preferred = config.together.filter(|_| gang.topology.is_empty())?;
    let nodes = nodes_for_devices(anywhere, config);
    if nodes == 0 || nodes == 1 && gang.placed.is_empty() {
        return None;
    }
    let roles = roles_of(gang, anywhere);
    let stays = roles_elsewhere(snapshot, &roles, anywhere, config);
    // A rule may bind those that stay to those that move, and room that stays taken is not seen as taken.
    let is_bare = |role: &RoleRequest| devices_of(&role.shape, config) == 0;
    let mut moving = roles.iter().zip(&stays).filter(|(_, stays)| !**stays);
    if stays.contains(&true) && (!rules.is_empty() || moving.any(|(role, _)| is_bare(role))) {
        return None;
    }
    let roles = roles.into_iter().zip(&stays);
    let wish = GangRequest {
        roles: roles
            .filter(|(_, stays)| !**stays)
            .map(|(role, _)| role)
            .collect(),
        placed: gang.placed.clone(),
        avoid: gang.avoid.clone(),
        topology: TopologyRequest {
            preferred: Some(preferred),
            ..TopologyRequest::default()
        },
    };
    let terms = Terms::of(snapshot, &wish, config);
    let together = place_in_domains(terms, &wish, rules, effort).ok()?;
    let is_better = nodes_for_devices(&together, config) <= nodes;
    let together = merged(gang, anywhere, &together).filter(|_| is_better)?;
    let domains = |placement: &Placement| domains_of(snapshot, gang, placement, preferred);
    (domains(&together) <= domains(anywhere)).then_some(together)
}

/// The roles with those of their members that were placed; without the ones that have none.
fn roles_of(gang: &GangRequest, anywhere: &Placement) -> Vec<RoleRequest> {
    let placed: BTreeSet<(&str, u32)> = anywhere
        .members
        .iter()
        .map(|member| (member.role.as_str(), member.index))
        .collect();
    let of_role = |role: &RoleRequest| {
        let mut role = role.clone();
        let name = role.role.clone();
        role.indices
            .retain(|index| placed.contains(&(name.as_str(), *index)));
        (!role.indices.is_empty()).then_some(role)
    };
    gang.roles.iter().filter_map(of_role).collect()
}

/// Nodes of the members that ask for devices.
fn nodes_for_devices(placement: &Placement, config: &Config) -> usize {
    let members = placement.members.iter();
    let nodes: BTreeSet<&NodeName> = members
        .filter(|member| devices_of(&member.shape, config) > 0)
        .map(|member| &member.node)
        .collect();
    nodes.len()
}

/// Domains of a level, and of those that are in none, of the wider ones; those of members that stand already, too.
fn domains_of(
    snapshot: &Snapshot,
    gang: &GangRequest,
    placement: &Placement,
    level: usize,
) -> usize {
    let placed = placement.members.iter().map(|member| &member.node);
    let nodes = placed.chain(gang.placed.iter().map(|standing| &standing.node));
    let domains: BTreeSet<&[Arc<str>]> = nodes
        .filter_map(|node| Some(snapshot.get(node)?.place()))
        .map(|place| place.get(..=level).unwrap_or(place))
        .collect();
    domains.len()
}

/// For each role, whether it asks for no device and is on nodes without any: where it is costs nobody a domain.
fn roles_elsewhere(
    snapshot: &Snapshot,
    roles: &[RoleRequest],
    anywhere: &Placement,
    config: &Config,
) -> Vec<bool> {
    let is_elsewhere = |member: &Placed| {
        let capacity = snapshot.get(&member.node);
        capacity.is_some_and(|capacity| !offers_devices(capacity, config))
    };
    let is_whole = |role: &RoleRequest| {
        let mut members = anywhere.members.iter();
        devices_of(&role.shape, config) == 0
            && members.all(|member| member.role != role.role || is_elsewhere(member))
    };
    roles.iter().map(is_whole).collect()
}

/// In the order of the request: those that moved, and the others where they were.
fn merged(gang: &GangRequest, anywhere: &Placement, together: &Placement) -> Option<Placement> {
    let mut places: BTreeMap<(&str, u32), &Placed> = BTreeMap::new();
    for member in anywhere.members.iter().chain(&together.members) {
        places.insert((member.role.as_str(), member.index), member);
    }
    let indices = gang.roles.iter().flat_map(|role| {
        let indices = role.indices.iter();
        indices.map(|index| (role.role.as_str(), *index))
    });
    let members: Vec<Placed> = indices
        .filter_map(|key| places.get(&key).map(|placed| (*placed).clone()))
        .collect();
    (members.len() == anywhere.members.len()).then_some(Placement { members })
}
