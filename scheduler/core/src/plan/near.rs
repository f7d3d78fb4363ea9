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

/// The same members in as few domains as can be, where levels are known and the gang needs several nodes.
/// `None`: it stays as it is.
pub(super) fn drawn_together(
    snapshot: &Snapshot,
    gang: &GangRequest,
    rules: &Rules,
    anywhere: &Placement,
    config: &Config,
    effort: &mut Effort,
) -> Option<Placement> {
    let preferred = config.together?;
    let nodes = nodes_for_devices(anywhere, config);
    if nodes < 2 {
        return None;
    }
    let stays = roles_elsewhere(snapshot, gang, anywhere, config);
    // A rule may bind those that stay to those that move.
    if !rules.is_empty() && stays.contains(&true) {
        return None;
    }
    let roles = gang.roles.iter().zip(&stays).map(|(role, stays)| {
        let mut role = role.clone();
        if *stays {
            role.indices.clear();
        }
        role
    });
    let wish = GangRequest {
        roles: roles.collect(),
        placed: gang.placed.clone(),
        avoid: gang.avoid.clone(),
        topology: TopologyRequest {
            preferred: Some(preferred),
            ..TopologyRequest::default()
        },
    };
    let terms = Terms::of(snapshot, &wish, config);
    let together = place_in_domains(terms, &wish, rules, effort).ok()?;
    let domains = |placement| domains_of(snapshot, placement, preferred);
    let is_better = nodes_for_devices(&together, config) <= nodes;
    let together = merged(gang, anywhere, &together).filter(|_| is_better)?;
    (domains(&together) <= domains(anywhere)).then_some(together)
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

/// Domains of a level, and of those that are in none, of the wider ones.
fn domains_of(snapshot: &Snapshot, placement: &Placement, level: usize) -> usize {
    let members = placement.members.iter();
    let domains: BTreeSet<&[Arc<str>]> = members
        .filter_map(|member| Some(snapshot.get(&member.node)?.place()))
        .map(|place| place.get(..=level).unwrap_or(place))
        .collect();
    domains.len()
}

/// For each role, whether it asks for no device and is on nodes without any: where it is costs nobody a domain.
fn roles_elsewhere(
    snapshot: &Snapshot,
    gang: &GangRequest,
    anywhere: &Placement,
    config: &Config,
) -> Vec<bool> {
    let is_elsewhere = |member: &Placed| {
        let capacity = snapshot.get(&member.node);
        devices_of(&member.shape, config) == 0
            && capacity.is_some_and(|capacity| !offers_devices(capacity, config))
    };
    let is_whole = |role: &RoleRequest| {
        let mut members = anywhere.members.iter();
        !role.indices.is_empty()
            && members.all(|member| member.role != role.role || is_elsewhere(member))
    };
    gang.roles.iter().map(is_whole).collect()
}

/// In the order of the request: those that moved, and the others where they were.
fn merged(gang: &GangRequest, anywhere: &Placement, together: &Placement) -> Option<Placement> {
    let mut places: BTreeMap<(&str, u32), &Placed> = BTreeMap::new();
    for member in anywhere.members.iter().chain(&together.members) {
        places.insert((member.role.as_str(), member.index), member);
    }
    let wanted = gang.roles.iter().flat_map(|role| {
        let indices = role.indices.iter();
        indices.map(|index| (role.role.as_str(), *index))
    });
    let members: Option<Vec<Placed>> = wanted
        .map(|key| places.get(&key).map(|placed| (*placed).clone()))
        .collect();
    members.map(|members| Placement { members })
}
