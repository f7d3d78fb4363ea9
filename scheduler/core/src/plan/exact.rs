//! Trying everything, within limits: for gangs of several roles of which neither order of roles finds
//! a place. What it says is certain: a placement, or that there is none.
//!
//! One node after the other gets as many members as it takes, in every way in which no further member
//! would find room on it. That misses nothing: from any placement members can be moved to an earlier
//! node with room for them, and the rest still fits. What was found to lead nowhere is remembered by
//! node and by the members that are left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::build::{Left, room};
use super::effort::{Effort, Miss};
use super::{RoleRequest, Terms};
use crate::node::HostPort;
use crate::resources::Resources;
use crate::snapshot::NodeCapacity;

/// Most nodes with room for somebody that are searched: the search is as deep on the stack.
const NODES_MAX: usize = 2_048;
/// Most ways to fill a node that are looked at, over all nodes: some tens of milliseconds.
const WAYS_MAX: usize = 200_000;

/// A node with room for somebody.
struct Bin<'s> {
    capacity: &'s Arc<NodeCapacity>,
    /// Members of each role that it takes when nobody else comes.
    alone: Vec<u32>,
}

/// Members of each role on a node.
type Way = Vec<u32>;

/// Nodes with the members of each role that they get.
pub(super) type Ways<'s> = Vec<(&'s Arc<NodeCapacity>, Way)>;

struct Search<'s, 'r> {
    roles: &'r [(usize, &'r RoleRequest)],
    bins: Vec<Bin<'s>>,
    /// Members of each role that this bin and those after it take at most.
    after: Vec<Vec<u64>>,
    dead: BTreeSet<(usize, Way)>,
    ways: usize,
}

/// A placement, by position in `roles`; `None` when there is none.
pub(super) fn search<'s>(
    terms: Terms<'s>,
    roles: &[(usize, &RoleRequest)],
    effort: &mut Effort,
) -> Result<Option<Ways<'s>>, Miss> {
    if roles.iter().any(|(_, role)| role.shape.share.is_some()) {
        // What parts of devices leave of a node depends on their order.
        return Err(Miss::Limit);
    }
    let nodes = terms.nodes();
    effort.nodes(nodes.len(), roles.len())?;
    let needed: Way = roles
        .iter()
        .map(|(_, role)| u32::try_from(role.indices.len()).unwrap_or(u32::MAX))
        .collect();
    let mut bins = Vec::new();
    for (_, capacity) in nodes {
        let alone: Vec<u32> = roles
            .iter()
            .zip(&needed)
            .map(|((_, role), needed)| {
                if terms.admits(capacity, &role.shape) {
                    room(Left::of(capacity), &role.shape, *needed)
                } else {
                    0
                }
            })
            .collect();
        if alone.iter().any(|room| *room > 0) {
            bins.push(Bin { capacity, alone });
        }
    }
    if !may_fit(&bins, roles, &needed) {
        return Ok(None);
    }
    // A node that only one role may use is filled with that role: it takes room from nobody.
    let mut left = needed.clone();
    let mut settled: Ways = Vec::new();
    bins.retain(|bin| {
        if bin.alone.iter().filter(|room| **room > 0).count() > 1 {
            return true;
        }
        let mut way = bin.alone.clone();
        for (here, left) in way.iter_mut().zip(&mut left) {
            *here = (*here).min(*left);
            *left = left.saturating_sub(*here);
        }
        if way.iter().any(|here| *here > 0) {
            settled.push((bin.capacity, way));
        }
        false
    });
    if bins.len() > NODES_MAX {
        return Err(Miss::Limit);
    }
    // Nodes that take little first: they leave little choice. Those that are alike side by side.
    bins.sort_by(|a, b| {
        let sum = |bin: &Bin| {
            bin.alone
                .iter()
                .fold(0u64, |sum, room| sum + u64::from(*room))
        };
        (sum(a), &a.alone, &a.capacity.free).cmp(&(sum(b), &b.alone, &b.capacity.free))
    });
    let mut search = Search {
        roles,
        after: after(&bins, roles.len()),
        bins,
        dead: BTreeSet::new(),
        ways: 0,
    };
    let mut chosen = Vec::new();
    let found = search.fill(0, &left, &mut chosen);
    effort.spend(search.ways)?;
    if !found? {
        return Ok(None);
    }
    let nodes = search.bins.iter().map(|bin| bin.capacity);
    settled.extend(nodes.zip(chosen));
    Ok(Some(settled))
}

/// Whether each role alone would fit, and all together by each resource.
fn may_fit(bins: &[Bin], roles: &[(usize, &RoleRequest)], needed: &[u32]) -> bool {
    let first = after(bins, roles.len())
        .into_iter()
        .next()
        .unwrap_or_default();
    if needed
        .iter()
        .enumerate()
        .any(|(role, needed)| u64::from(*needed) > first.get(role).copied().unwrap_or(0))
    {
        return false;
    }
    let mut asked: BTreeMap<&str, u64> = BTreeMap::new();
    for ((_, role), needed) in roles.iter().zip(needed) {
        for (name, each) in &role.shape.requests.extended {
            let sum = asked.entry(name.as_str()).or_default();
            *sum = sum.saturating_add(each.saturating_mul(u64::from(*needed)));
        }
    }
    asked.into_iter().all(|(name, asked)| {
        let takes = |bin: &&Bin| {
            let mut each = roles.iter().zip(&bin.alone);
            each.any(|((_, role), room)| *room > 0 && role.shape.requests.extended(name) > 0)
        };
        let free = bins.iter().filter(takes).fold(0u64, |sum, bin| {
            sum.saturating_add(bin.capacity.free.extended(name))
        });
        free >= asked
    })
}

fn after(bins: &[Bin], roles: usize) -> Vec<Vec<u64>> {
    let mut sums = vec![0u64; roles];
    let mut after = vec![sums.clone()];
    for bin in bins.iter().rev() {
        for (sum, room) in sums.iter_mut().zip(&bin.alone) {
            *sum = sum.saturating_add(u64::from(*room));
        }
        after.push(sums.clone());
    }
    after.reverse();
    after
}

impl Search<'_, '_> {
    /// Whether the members that are left fit onto the bins from `at` on.
    fn fill(&mut self, at: usize, left: &Way, chosen: &mut Vec<Way>) -> Result<bool, Miss> {
        if left.iter().all(|left| *left == 0) {
            return Ok(true);
        }
        let enough = self.after.get(at).is_some_and(|after| {
            let mut each = left.iter().zip(after);
            each.all(|(left, most)| u64::from(*left) <= *most)
        });
        if !enough || self.dead.contains(&(at, left.clone())) {
            return Ok(false);
        }
        for way in self.ways_at(at, left)? {
            let rest = left.iter().zip(&way);
            let rest: Way = rest
                .map(|(left, here)| left.saturating_sub(*here))
                .collect();
            chosen.push(way);
            if self.fill(at.saturating_add(1), &rest, chosen)? {
                return Ok(true);
            }
            chosen.pop();
        }
        self.dead.insert((at, left.clone()));
        Ok(false)
    }

    /// Every way to fill a bin to which nobody can be added.
    fn ways_at(&mut self, at: usize, left: &Way) -> Result<Vec<Way>, Miss> {
        let Some(bin) = self.bins.get(at) else {
            return Ok(Vec::new());
        };
        let mut ways = Vec::new();
        let mut open = vec![(
            Way::new(),
            bin.capacity.free.clone(),
            bin.capacity.ports.clone(),
        )];
        while let Some((way, free, ports)) = open.pop() {
            self.ways = self.ways.saturating_add(1);
            if self.ways > WAYS_MAX {
                return Err(Miss::Limit);
            }
            let role = way.len();
            if role == self.roles.len() {
                if self.is_full(&way, left, bin, &free, &ports) {
                    ways.push(way);
                }
                continue;
            }
            let most = self.room_for(role, bin, &free, &ports, left.get(role).copied());
            // The last that is pushed is looked at first: the one with most members of the first role.
            let (mut free, mut ports) = (free, ports);
            for count in 0..=most {
                let mut next = way.clone();
                next.push(count);
                open.push((next, free.clone(), ports.clone()));
                if let Some((_, request)) = self.roles.get(role) {
                    free.subtract(&request.shape.requests);
                    ports.extend(request.shape.host_ports.iter().cloned());
                }
            }
        }
        Ok(ways)
    }

    fn room_for(
        &self,
        role: usize,
        bin: &Bin,
        free: &Resources,
        ports: &BTreeSet<HostPort>,
        left: Option<u32>,
    ) -> u32 {
        let alone = bin.alone.get(role).copied().unwrap_or(0);
        let limit = alone.min(left.unwrap_or(0));
        match self.roles.get(role) {
            Some((_, request)) if limit > 0 => {
                let left = Left {
                    free,
                    ports,
                    shared: &[],
                };
                room(left, &request.shape, limit)
            }
            _ => 0,
        }
    }

    fn is_full(
        &self,
        way: &Way,
        left: &Way,
        bin: &Bin,
        free: &Resources,
        ports: &BTreeSet<HostPort>,
    ) -> bool {
        let mut each = way.iter().zip(left).enumerate();
        each.all(|(role, (here, left))| {
            let left = left.saturating_sub(*here);
            self.room_for(role, bin, free, ports, Some(left)) == 0
        })
    }
}
