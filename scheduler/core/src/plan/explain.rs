//! Why there is no place: the dominant cause with numbers.

use super::build::{Left, room};
use super::domains::{Member, best_domain, blocks};
use super::effort::Effort;
use super::parts::{KeptOff, Part, lack, parts};
use super::rules::Rules;
use super::{Failure, GangRequest, Missed, RoleRequest, Terms};
use super::{devices_of, place, ports_taken};
use crate::config::Config;
use crate::ids::ResourceName;
use crate::node::{Taint, untolerated};
use crate::pod::PodShape;
use crate::reason::{NodeTally, Selected, Unplaceable};
use crate::resources::{Lack, Resources, Shortage};
use crate::snapshot::{Eligibility, NodeCapacity, Snapshot};
use crate::topology::TopologyRequest;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A resource that somebody asks for and no node offers.
pub(super) fn missing_resource(snapshot: &Snapshot, gang: &GangRequest) -> Option<Unplaceable> {
    for role in &gang.roles {
        let whole = role.shape.requests.extended.iter();
        let whole = whole.filter(|(_, amount)| **amount > 0);
        let share = role.shape.share.iter().map(|share| &share.resource);
        for resource in whole.map(|(resource, _)| resource).chain(share) {
            if !snapshot.index().is_offered(resource) {
                return Some(Unplaceable::NoSuchResource {
                    role: role.role.clone(),
                    resource: resource.clone(),
                    similar: similar(snapshot, resource),
                });
            }
        }
    }
    None
}

/// An offered resource whose name differs from `wanted` by at most two letters at its end, or of
/// the same vendor.
fn similar(snapshot: &Snapshot, wanted: &ResourceName) -> Option<ResourceName> {
    let vendor = |name: &str| name.split('/').next().map(str::to_owned);
    let offered: BTreeSet<&ResourceName> = snapshot
        .nodes()
        .iter()
        .flat_map(|capacity| capacity.node.allocatable.extended.keys())
        .collect();
    offered
        .into_iter()
        .filter(|name| vendor(name.as_str()) == vendor(wanted.as_str()))
        .max_by_key(|name| {
            name.as_str()
                .chars()
                .zip(wanted.as_str().chars())
                .take_while(|(a, b)| a == b)
                .count()
        })
        .cloned()
}

/// Says why: the dominant cause with numbers, for the role that failed.
pub(super) fn explain(
    snapshot: &Snapshot,
    gang: &GangRequest,
    missed: Missed,
    config: &Config,
    effort: &mut Effort,
) -> Unplaceable {
    let Missed { role, placed } = missed;
    let needed = u32::try_from(role.indices.len()).unwrap_or(u32::MAX);
    let mut candidates = parts(snapshot, gang, role);
    let tally = tally(&candidates, gang, role, config);
    candidates.retain(|part| part.kept_off.is_none());
    if candidates.is_empty() {
        return Unplaceable::NoNode {
            role: role.role.clone(),
            selector: selected(snapshot, role).filter(|_| tally.selector > 0),
            tally,
        };
    }
    // A part of a device is told as one.
    let each_of =
        |what: &Shortage| amount(&role.shape.requests, what).max(u64::from(is_shared(role, what)));
    if let Some(possible) = too_large(snapshot, gang, role, config, effort) {
        // Nodes without the devices say nothing of what is too small about those that have them.
        let has_devices = |small: Option<Lack>| !matches!(small, Some(Lack::Extended(_)));
        let some_have = candidates.iter().any(|part| has_devices(part.small));
        candidates.retain(|part| !some_have || has_devices(part.small));
        // Not what is scarce now: what of a node is too small when it is empty.
        let what = scarce(&candidates, role, config, |part| {
            (part.small, &part.node.node.allocatable)
        });
        let each = each_of(&what);
        // Of each node: those of a part differ by less than what counts for room.
        let nodes = snapshot.nodes().iter();
        let largest = nodes
            .filter(|node| role.shape.mismatch(&node.node).is_none())
            .filter(|node| !some_have || has_devices(lack(&node.node.allocatable, &[], role)))
            .map(|node| amount(&node.node.allocatable, &what))
            .max()
            .unwrap_or(0);
        return Unplaceable::NeverFits {
            role: role.role.clone(),
            needed,
            possible,
            what,
            each,
            largest,
            tally,
        };
    }
    let what = scarce(&candidates, role, config, |part| {
        (part.short, &part.node.free)
    });
    let each = each_of(&what);
    let free = free_in_all(&candidates, snapshot, role, &what);
    Unplaceable::NotEnoughFree {
        role: role.role.clone(),
        needed,
        placed,
        what,
        each,
        free,
        tally,
    }
}

/// Most labels of a selector that are looked at for an explanation: each costs a look at every node.
const SELECTED_MAX: usize = 8;

/// Of the labels that a role selects its nodes by, the first without which it may use most of them.
fn selected(snapshot: &Snapshot, role: &RoleRequest) -> Option<Selected> {
    let mut best: Option<Selected> = None;
    for (key, value) in role.shape.node_selector.iter().take(SELECTED_MAX) {
        let mut shape = PodShape::clone(&role.shape);
        shape.node_selector.remove(key);
        let nodes = snapshot.nodes().iter();
        let without = nodes.filter(|node| shape.mismatch(&node.node).is_none());
        let without = u32::try_from(without.count()).unwrap_or(u32::MAX);
        if best.as_ref().is_none_or(|best| without > best.without) {
            let (key, value) = (Arc::clone(key), Arc::clone(value));
            best = Some(Selected {
                key,
                value,
                without,
            });
        }
    }
    best
}

/// Free on all nodes that the role may use.
fn free_in_all(
    candidates: &[Part],
    snapshot: &Snapshot,
    role: &RoleRequest,
    what: &Shortage,
) -> u64 {
    let is_eligible = |node: &NodeCapacity| node.eligibility == Eligibility::Eligible;
    if let Shortage::Extended(_) = what {
        // To the unit the same on each node of a part.
        let eligible = candidates.iter().filter(|part| is_eligible(part.node));
        return eligible.fold(0u64, |sum, part| {
            let each = amount(&part.node.free, what);
            sum.saturating_add(each.saturating_mul(u64::from(part.count)))
        });
    }
    let nodes = snapshot.nodes().iter();
    nodes
        .filter(|node| is_eligible(node) && role.shape.mismatch(&node.node).is_none())
        .fold(0u64, |sum, node| {
            sum.saturating_add(amount(&node.free, what))
        })
}

fn amount(resources: &Resources, what: &Shortage) -> u64 {
    match what {
        Shortage::Cpu => resources.milli_cpu,
        Shortage::Memory => resources.memory_bytes,
        Shortage::EphemeralStorage => resources.ephemeral_bytes,
        Shortage::Pods => resources.pods,
        Shortage::Extended(name) => resources.extended(name.as_str()),
    }
}

/// Whether the role asks for a part of this.
fn is_shared(role: &RoleRequest, what: &Shortage) -> bool {
    let share = role.shape.share.as_ref();
    matches!((what, share), (Shortage::Extended(name), Some(share)) if *name == share.resource)
}

/// The resource that keeps the role out of most of its nodes; devices where it is even. `of`: what of a node there is not enough
/// of, and how much there is.
fn scarce<'p, 'r>(
    candidates: &'p [Part<'p, 'r>],
    role: &RoleRequest,
    config: &Config,
    of: impl Fn(&'p Part<'p, 'r>) -> (Option<Lack<'r>>, &'p Resources),
) -> Shortage {
    let mut counts: BTreeMap<Lack, u32> = BTreeMap::new();
    for part in candidates {
        if let (Some(short), _) = of(part) {
            let count = counts.entry(short).or_default();
            *count = count.saturating_add(part.count);
        }
    }
    if let Some((short, _)) = counts.into_iter().max_by_key(|(_, count)| *count) {
        return short.into();
    }
    // Each node has room for one: what there is the fewest times of, devices where it is even.
    let device = |name: &ResourceName| config.is_device(name);
    let mut asked: Vec<(bool, Shortage)> = role
        .shape
        .requests
        .extended
        .keys()
        .chain(role.shape.share.iter().map(|share| &share.resource))
        .map(|name| (!device(name), Shortage::Extended(name.clone())))
        .chain([(true, Shortage::Cpu), (true, Shortage::Memory)])
        .filter(|(_, what)| amount(&role.shape.requests, what) > 0 || is_shared(role, what))
        .collect();
    asked.sort_by_key(|(last, what)| {
        let each = amount(&role.shape.requests, what).max(1);
        let sum = candidates.iter().fold(0u64, |sum, part| {
            let (_, there) = of(part);
            let times = amount(there, what).checked_div(each).unwrap_or(0);
            sum.saturating_add(times.saturating_mul(u64::from(part.count)))
        });
        (sum, *last)
    });
    asked
        .into_iter()
        .next()
        .map_or(Shortage::Cpu, |(_, what)| what)
}

/// Says why a gang with rules between its members has no place: which rule it is, where there would
/// be a place without it.
pub(super) fn explain_rules(
    snapshot: &Snapshot,
    gang: &GangRequest,
    rules: &Rules,
    missed: Missed,
    config: &Config,
    effort: &mut Effort,
) -> Unplaceable {
    let free_of_rules = place(snapshot, gang, &Rules::default(), config, effort);
    if let Err(Failure::Room(missed)) = free_of_rules {
        return explain(snapshot, gang, missed, config, effort);
    }
    // The first without which there is a place; any where it takes several to be without, or where
    // to find out is too much work.
    let one = rules
        .each_left_out()
        .find(|(_, others)| {
            effort.briefly(|effort| place(snapshot, gang, others, config, effort).is_ok())
        })
        .or_else(|| rules.each_left_out().next())
        .map(|(rule, _)| rule.clone());
    let Some(rule) = one else {
        return explain(snapshot, gang, missed, config, effort);
    };
    let Missed { role, placed } = missed;
    let empty = snapshot.emptied();
    let unavoided = GangRequest {
        avoid: BTreeSet::new(),
        ..gang.clone()
    };
    // Domains count there that are kept out now, by a cordon's taint.
    let ever = Rules::of(empty, &unavoided);
    let possible = match place(empty, &unavoided, &ever, config, effort) {
        Err(Failure::Room(never)) if never.role.role == role.role => Some(never.placed),
        _ => None,
    };
    Unplaceable::RuleBetweenMembers {
        role: role.role.clone(),
        needed: u32::try_from(role.indices.len()).unwrap_or(u32::MAX),
        placed,
        possible,
        kind: rule.kind,
        topology: rule.topology,
        tally: tally(&parts(snapshot, gang, role), gang, role, config),
    }
}

/// Says why a gang that asks something of the topology has no place: what would be so without it, or
/// which domains are too small. `spare`: so many of its members may stay behind.
pub(super) fn explain_domains(
    snapshot: &Snapshot,
    gang: &GangRequest,
    spare: u32,
    rules: &Rules,
    missed: Missed,
    config: &Config,
    effort: &mut Effort,
) -> Unplaceable {
    let anyhow = GangRequest {
        topology: TopologyRequest::default(),
        ..gang.clone()
    };
    let lacks_room = match place(snapshot, &anyhow, rules, config, effort) {
        Err(Failure::Room(missed)) => Some(missed),
        _ => None,
    };
    // What is never in one domain as a whole may have a place for as many as it needs.
    let is_never =
        lacks_room.is_some() && spare == 0 && is_never_in_one(snapshot, gang, config, effort);
    if let Some(missed) = lacks_room.filter(|_| !is_never) {
        return if rules.is_empty() {
            explain(snapshot, &anyhow, missed, config, effort)
        } else {
            explain_rules(snapshot, &anyhow, rules, missed, config, effort)
        };
    }
    let asked = &gang.topology;
    let unsegmented = GangRequest {
        topology: TopologyRequest {
            segment: None,
            ..asked.clone()
        },
        ..gang.clone()
    };
    let segment = asked.segment.filter(|_| {
        if asked.required.is_none() {
            return true;
        }
        if !is_never {
            return place(snapshot, &unsegmented, rules, config, effort).is_ok();
        }
        let empty = snapshot.emptied();
        let unavoided = GangRequest {
            avoid: BTreeSet::new(),
            ..unsegmented.clone()
        };
        let rules = Rules::of(empty, &unavoided);
        place(empty, &unavoided, &rules, config, effort).is_ok()
    });
    let level = segment.map_or(asked.required.unwrap_or(0), |segment| segment.level);
    let all: Vec<(usize, &RoleRequest)> = gang.roles.iter().enumerate().collect();
    let alike = |member: &Member| std::ptr::eq(member.role, missed.role);
    let block = blocks(&all)
        .into_iter()
        .find(|block| block.members.iter().any(alike));
    let (domains, best) = block.as_ref().map_or((0, None), |block| {
        let terms = Terms::of(snapshot, gang, config);
        best_domain(terms.anywhere(), block, level, missed.placed, effort)
    });
    let needed = block.map_or(missed.role.indices.len(), |block| block.members.len());
    let empty = snapshot.emptied();
    let unavoided = GangRequest {
        avoid: BTreeSet::new(),
        placed: Vec::new(),
        ..gang.clone()
    };
    let ever = Rules::of(empty, &unavoided);
    let possible = match place(empty, &unavoided, &ever, config, effort) {
        Err(Failure::Room(never)) if never.role.role == missed.role.role => Some(never.placed),
        Ok(_) | Err(_) => None,
    };
    Unplaceable::NotInOneDomain {
        role: missed.role.role.clone(),
        needed: u32::try_from(needed).unwrap_or(u32::MAX),
        placed: missed.placed,
        possible,
        level: config
            .topology
            .get(level)
            .map_or_else(|| Arc::from("domain"), |level| Arc::clone(&level.name)),
        segment: segment.map(|segment| segment.size),
        domains,
        // Who joins others has no choice.
        best: best.filter(|_| gang.placed.is_empty()),
        tally: tally(
            &parts(snapshot, gang, missed.role),
            gang,
            missed.role,
            config,
        ),
    }
}

/// Whether it is the topology that keeps the gang from a place even in the empty cluster: then that is what is said, whatever room
/// lacks now.
fn is_never_in_one(
    snapshot: &Snapshot,
    gang: &GangRequest,
    config: &Config,
    effort: &mut Effort,
) -> bool {
    // Who joins others has no choice.
    if !gang.placed.is_empty() {
        return false;
    }
    let empty = snapshot.emptied();
    let unavoided = GangRequest {
        avoid: BTreeSet::new(),
        ..gang.clone()
    };
    let rules = Rules::of(empty, &unavoided);
    let kept_out = place(empty, &unavoided, &rules, config, effort);
    if !matches!(kept_out, Err(Failure::Room(_))) {
        return false;
    }
    let anyhow = GangRequest {
        topology: TopologyRequest::default(),
        ..unavoided
    };
    place(empty, &anyhow, &rules, config, effort).is_ok()
}

/// Members of `role` that the empty cluster could take, when that or the whole gang is too much
/// for it. `None` when the gang would fit into the empty cluster.
fn too_large(
    snapshot: &Snapshot,
    gang: &GangRequest,
    role: &RoleRequest,
    config: &Config,
    effort: &mut Effort,
) -> Option<u32> {
    let needed = u64::try_from(role.indices.len()).unwrap_or(u64::MAX);
    let empty = snapshot.emptied();
    let parts = parts(empty, gang, role);
    let candidates = parts.iter().filter(|part| part.kept_off.is_none());
    let possible = candidates.fold(0u64, |sum, part| {
        let room = u64::from(room(Left::of(part.node), &role.shape, u32::MAX));
        sum.saturating_add(room.saturating_mul(u64::from(part.count)))
    });
    if possible < needed {
        return Some(u32::try_from(possible).unwrap_or(u32::MAX));
    }
    if gang.roles.len() < 2 {
        return None;
    }
    // Roles without devices are left out: what is said is true without them.
    let counts =
        |other: &&RoleRequest| devices_of(&other.shape, config) > 0 || other.role == role.role;
    let alone = GangRequest {
        roles: gang.roles.iter().filter(counts).cloned().collect(),
        ..GangRequest::default()
    };
    match place(empty, &alone, &Rules::default(), config, effort) {
        Err(Failure::Room(never)) if never.role.role == role.role => Some(never.placed),
        Ok(_) | Err(_) => None,
    }
}

/// What became of each node, by the first cause that applies.
fn tally(parts: &[Part], gang: &GangRequest, role: &RoleRequest, config: &Config) -> NodeTally {
    let mut tally = NodeTally::default();
    let devices = devices_of(&role.shape, config) > 0;
    let mut taints: BTreeMap<&Taint, u32> = BTreeMap::new();
    for part in parts {
        tally.nodes = tally.nodes.saturating_add(part.count);
        let count = match part.kept_off {
            Some(KeptOff::Taint) => &mut tally.taint,
            Some(KeptOff::Selector) => &mut tally.selector,
            None => cause(&mut tally, part, gang, role, devices),
        };
        *count = count.saturating_add(part.count);
        if part.kept_off == Some(KeptOff::Taint)
            && let Some(taint) = untolerated(part.node.node.own_taints(), &role.shape.tolerations)
        {
            let nodes = taints.entry(taint).or_default();
            *nodes = nodes.saturating_add(part.count);
        }
    }
    // Of two that are as frequent the first by name, so that the same nodes give the same text.
    let most = taints
        .into_iter()
        .max_by_key(|(taint, nodes)| (*nodes, Reverse(*taint)));
    tally.tainted_by = most.map(|(taint, _)| taint.clone());
    tally
}

fn cause<'a>(
    tally: &'a mut NodeTally,
    part: &Part,
    gang: &GangRequest,
    role: &RoleRequest,
    devices: bool,
) -> &'a mut u32 {
    let capacity = part.node;
    match capacity.eligibility {
        Eligibility::Cordoned => return &mut tally.cordoned,
        Eligibility::NotReady => return &mut tally.not_ready,
        Eligibility::UnderPressure => return &mut tally.pressure,
        Eligibility::Eligible => {}
    }
    if part.small.is_some() {
        return &mut tally.small;
    }
    if devices && !capacity.reported {
        return &mut tally.no_report;
    }
    if gang.avoid.contains(&capacity.node.name) {
        return &mut tally.refused;
    }
    let were_well = || part.sick && lack(&capacity.well, &capacity.shared, role).is_none();
    match part.short {
        None if ports_taken(capacity, &role.shape) => &mut tally.ports,
        None => &mut tally.fits,
        Some(Lack::Extended(_)) if were_well() => &mut tally.unhealthy,
        Some(Lack::Extended(_)) => &mut tally.busy,
        Some(_) => &mut tally.other,
    }
}
