//! Trying everything where members have rules between them: for gangs that neither order of roles finds a
//! place for. What it says is certain: a placement, or that there is none.
//!
//! One member after the other is put on a node on which kube-scheduler would take it next, until all have
//! a place. What leads nowhere is remembered. Nodes that no rule and no role can tell apart are of one kind: of those
//! with the same members only the first is tried, and partial placements that differ by such nodes are the
//! same. So what it costs follows how many kinds of nodes there are, and how many members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::allot::{Cell, allot};
use super::build::{Left, room};
use super::effort::{Effort, Miss};
use super::rules::{Mark, Rules};
use super::{RoleRequest, Terms, conflicts, times};
use crate::node::HostPort;
use crate::resources::Resources;
use crate::snapshot::NodeCapacity;

/// Most members that are searched for: the search is as deep on the stack.
const MEMBERS_MAX: usize = 256;
/// Most ways to share one node among the smaller roles by which it is told from others. Beyond, it is told
/// from them by all that is free on it.
const SHARES_MAX: u64 = 64;

/// Members of each role on a node.
type Load = Vec<u32>;

/// A node with room for somebody.
struct Spot<'s> {
    /// Its position in the snapshot.
    at: usize,
    capacity: &'s Arc<NodeCapacity>,
    kind: usize,
}

/// Spots of one kind: the first, and the one after the last.
struct Alike {
    first: usize,
    end: usize,
    /// Members of each role that each of them takes when nobody else comes.
    alone: Load,
}

/// What tells nodes apart.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    marks: Vec<Mark>,
    takes: Takes,
}

/// What a node takes.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Takes {
    /// Members of the last role, for each number of members of the others.
    Shares(Vec<(Load, u32)>),
    /// So much is free there, for roles that may come.
    Free(Box<FreeOf>),
}

/// All of a node that decides what it takes.
type FreeOf = (Load, Resources, BTreeSet<HostPort>);

/// Members with their nodes, in the order in which kube-scheduler takes them: position of the role, node.
pub(super) type Found<'s> = Vec<(usize, &'s Arc<NodeCapacity>)>;

struct Search<'s, 'r, 'e> {
    roles: &'r [(usize, &'r RoleRequest)],
    rules: Rules,
    /// In order of kind.
    spots: Vec<Spot<'s>>,
    kinds: Vec<Alike>,
    /// Members of each spot, by position; of each kind the first ones have some.
    loads: BTreeMap<usize, Load>,
    left: Load,
    chosen: Vec<(usize, usize)>,
    /// Whether a node of the kind carries that.
    fits: BTreeMap<(usize, Load), bool>,
    numbers: BTreeMap<(usize, Load), usize>,
    dead: BTreeSet<Vec<usize>>,
    in_order: bool,
    effort: &'e mut Effort,
}

/// A placement that keeps the rules; `None` when there is none.
pub(super) fn search<'s>(
    terms: Terms<'s>,
    roles: &[(usize, &RoleRequest)],
    rules: &Rules,
    effort: &mut Effort,
) -> Result<Option<Found<'s>>, Miss> {
    effort.state(0)?;
    if is_hopeless(terms, roles, rules, effort)? {
        return Ok(None);
    }
    let members = roles.iter().map(|(_, role)| role.indices.len());
    let has_share = roles.iter().any(|(_, role)| role.shape.share.is_some());
    // What parts of devices leave of a node depends on their order.
    if members.sum::<usize>() > MEMBERS_MAX || has_share && roles.len() > 1 {
        return Err(Miss::Limit);
    }
    let left: Load = roles
        .iter()
        .map(|(_, role)| u32::try_from(role.indices.len()).unwrap_or(u32::MAX))
        .collect();
    let (spots, kinds) = spots(terms, roles, rules, &left, effort)?;
    let mut search = Search {
        roles,
        rules: rules.clone(),
        spots,
        kinds,
        loads: BTreeMap::new(),
        left,
        chosen: Vec::new(),
        fits: BTreeMap::new(),
        numbers: BTreeMap::new(),
        dead: BTreeSet::new(),
        in_order: rules.asks_for_order(),
        effort,
    };
    if !search.fill()? {
        return Ok(None);
    }
    let spot = |(role, spot): &(usize, usize)| Some((*role, search.spots.get(*spot)?.capacity));
    Ok(Some(search.chosen.iter().filter_map(spot).collect()))
}

/// Whether one rule alone, by which all members are counted, leaves no place for as many members as there are, each of
/// them as small as the smallest in everything and welcome wherever one of them is. That is found out by sharing out.
fn is_hopeless(
    terms: Terms<'_>,
    roles: &[(usize, &RoleRequest)],
    rules: &Rules,
    effort: &mut Effort,
) -> Result<bool, Miss> {
    let mut positions = roles.iter().map(|(position, _)| *position);
    let Some(first) = positions.next() else {
        return Ok(false);
    };
    let mut by = rules.counting(first);
    for position in positions {
        let counting = rules.counting(position);
        by.retain(|rule| counting.contains(rule));
    }
    if by.is_empty() {
        return Ok(false);
    }
    let mut shapes = roles.iter().map(|(_, role)| &role.shape.requests);
    let mut smallest = shapes.next().cloned().unwrap_or_default();
    shapes.for_each(|requests| smallest.lower_to(requests));
    let total = roles.iter().fold(0usize, |sum, (_, role)| {
        sum.saturating_add(role.indices.len())
    });
    let most = u64::try_from(total).unwrap_or(u64::MAX);
    let nodes = terms.nodes();
    effort.nodes(nodes.len(), roles.len().saturating_mul(rules.len()))?;
    let mut rooms: Vec<(usize, u64)> = Vec::new();
    for (at, capacity) in nodes {
        let may_come = |(_, role): &&(usize, &RoleRequest)| terms.admits(capacity, &role.shape);
        let welcome: Vec<usize> = roles.iter().filter(may_come).map(|(at, _)| *at).collect();
        if welcome.is_empty() {
            continue;
        }
        let is_one = |position: &usize| rules.one_on_node(*position, at);
        let most = match welcome.iter().all(is_one) {
            true => u64::try_from(welcome.len()).unwrap_or(u64::MAX).min(most),
            false => most,
        };
        rooms.push((at, times(&capacity.free, &smallest).min(most)));
    }
    for rule in by {
        let mut cells: BTreeMap<Vec<Option<u32>>, Cell> = BTreeMap::new();
        for (at, room) in &rooms {
            let domains = rules.domains(&[rule], *at);
            let cell = cells.entry(domains).or_insert_with_key(|domains| Cell {
                domains: domains.clone(),
                room: 0,
                rank: (false, 0, *at),
                taken: 0,
            });
            cell.room = cell.room.saturating_add(*room);
        }
        let mut cells: Vec<Cell> = cells.into_values().collect();
        match allot(&rules.at(&[rule]), &mut cells, total, effort) {
            Ok(_) => {}
            Err(Miss::Room(_)) => return Ok(true),
            Err(miss) => return Err(miss),
        }
    }
    Ok(false)
}

/// The nodes with room for somebody, by kind.
fn spots<'s>(
    terms: Terms<'s>,
    roles: &[(usize, &RoleRequest)],
    rules: &Rules,
    needed: &Load,
    effort: &mut Effort,
) -> Result<(Vec<Spot<'s>>, Vec<Alike>), Miss> {
    let nodes = terms.nodes();
    let looks = roles.len().saturating_add(rules.len());
    effort.nodes(nodes.len(), looks.saturating_mul(2))?;
    let sizes = rules.sizes();
    let mut by_kind: BTreeMap<Kind, (Load, Vec<(usize, &Arc<NodeCapacity>)>)> = BTreeMap::new();
    for (at, capacity) in nodes {
        let alone: Load = roles
            .iter()
            .zip(needed)
            .map(|((position, role), needed)| {
                if !terms.admits(capacity, &role.shape) {
                    return 0;
                }
                let room = room(Left::of(capacity), &role.shape, *needed);
                let most = match rules.one_on_node(*position, at) {
                    true => 1,
                    false => u32::MAX,
                };
                room.min(most)
            })
            .collect();
        if alone.iter().all(|room| *room == 0) {
            continue;
        }
        let kind = Kind {
            marks: rules.marks(&sizes, at),
            takes: takes(capacity, roles, &alone, effort)?,
        };
        let (_, nodes) = by_kind.entry(kind).or_insert((alone, Vec::new()));
        nodes.push((at, capacity));
    }
    let (mut spots, mut kinds) = (Vec::new(), Vec::new());
    for (kind, (alone, nodes)) in by_kind.into_values().enumerate() {
        let first = spots.len();
        let of_kind = |(at, capacity)| Spot { at, capacity, kind };
        spots.extend(nodes.into_iter().map(of_kind));
        let end = spots.len();
        kinds.push(Alike { first, end, alone });
    }
    Ok((spots, kinds))
}

/// What a node takes, when it takes so many of each role alone.
fn takes(
    capacity: &NodeCapacity,
    roles: &[(usize, &RoleRequest)],
    alone: &Load,
    effort: &mut Effort,
) -> Result<Takes, Miss> {
    let Some((most, others)) = alone.split_last() else {
        return Ok(Takes::Shares(Vec::new()));
    };
    let ways =
        |product: u64, room: &u32| product.saturating_mul(u64::from(*room).saturating_add(1));
    if others.iter().fold(1, ways) > SHARES_MAX {
        let (free, ports) = (capacity.free.clone(), capacity.ports.clone());
        return Ok(Takes::Free(Box::new((alone.clone(), free, ports))));
    }
    let mut loads: Vec<Load> = vec![Vec::new()];
    for room in others {
        loads = loads
            .iter()
            .flat_map(|load| (0..=*room).map(|count| [load.as_slice(), &[count]].concat()))
            .collect();
    }
    effort.nodes(loads.len(), roles.len())?;
    let mut shares = Vec::with_capacity(loads.len());
    for load in loads {
        // How many of the last role there are beside, by halving: less fits where more does.
        let (mut fits, mut too_many) = (None, most.saturating_add(1));
        while fits.map_or(0, |fits: u32| fits.saturating_add(1)) < too_many {
            let tried = fits.map_or(0, |fits: u32| {
                fits.saturating_add(1).midpoint(too_many.saturating_sub(1))
            });
            let load = [load.as_slice(), &[tried]].concat();
            if carries(capacity, roles, &load) {
                fits = Some(tried);
            } else {
                too_many = tried;
            }
        }
        if let Some(fits) = fits {
            shares.push((load, fits));
        }
    }
    Ok(Takes::Shares(shares))
}

/// Whether a node has room for so many members of each role together.
fn carries(capacity: &NodeCapacity, roles: &[(usize, &RoleRequest)], load: &[u32]) -> bool {
    let mut asked = Resources::default();
    let mut ports = capacity.ports.clone();
    for ((_, role), count) in roles.iter().zip(load).filter(|(_, count)| **count > 0) {
        let shape = &role.shape;
        if shape.share.is_some() && room(Left::of(capacity), shape, *count) < *count {
            return false;
        }
        if !shape.host_ports.is_empty() && (*count > 1 || conflicts(shape, &ports)) {
            return false;
        }
        ports.extend(shape.host_ports.iter().cloned());
        asked.add(&shape.requests.times(*count));
    }
    capacity.free.shortage(&asked).is_none()
}

impl Search<'_, '_, '_> {
    /// Whether the members that are left find a place.
    fn fill(&mut self) -> Result<bool, Miss> {
        if self.left.iter().all(|left| *left == 0) {
            return Ok(self.is_kept());
        }
        let state = self.state();
        if self.dead.contains(&state) {
            return Ok(false);
        }
        let choices = self.choices()?;
        for (role, spot) in choices {
            self.put(role, spot);
            if self.fill()? {
                return Ok(true);
            }
            self.take_back(role, spot);
        }
        self.dead.insert(state);
        Ok(false)
    }

    /// What is placed so far, nodes of one kind not told apart.
    fn state(&mut self) -> Vec<usize> {
        let mut state = Vec::with_capacity(self.loads.len());
        for (spot, load) in &self.loads {
            let kind = self.spots.get(*spot).map_or(0, |spot| spot.kind);
            let next = self.numbers.len();
            state.push(*self.numbers.entry((kind, load.clone())).or_insert(next));
        }
        state.sort_unstable();
        state
    }

    /// Which member may come next, and where: where the fewest are first.
    fn choices(&mut self) -> Result<Vec<(usize, usize)>, Miss> {
        let mut choices = Vec::new();
        let mut looks = 0usize;
        let open: Vec<usize> = (0..self.roles.len())
            .filter(|role| self.left.get(*role).is_some_and(|left| *left > 0))
            .collect();
        // Where it does not matter who comes first, one role after the other.
        let open = match self.in_order {
            true => open.as_slice(),
            false => open.get(..1).unwrap_or_default(),
        };
        for kind in 0..self.kinds.len() {
            for spot in self.distinct(kind) {
                let Some(at) = self.spots.get(spot).map(|spot| spot.at) else {
                    continue;
                };
                for role in open {
                    looks = looks.saturating_add(self.rules.len()).saturating_add(1);
                    let position = self.roles.get(*role).map_or(0, |(position, _)| *position);
                    if self.has_room(kind, spot, *role) && self.rules.accept(position, at) {
                        choices.push((self.rules.level(at), *role, spot));
                    }
                }
            }
        }
        self.effort.state(looks.saturating_mul(8))?;
        choices.sort_by_key(|(level, role, _)| (*level, *role));
        Ok(choices
            .into_iter()
            .map(|(_, role, spot)| (role, spot))
            .collect())
    }

    /// One spot of the kind for each load, and one that is empty.
    fn distinct(&self, kind: usize) -> Vec<usize> {
        let Some(Alike { first, end, .. }) = self.kinds.get(kind) else {
            return Vec::new();
        };
        let mut seen = BTreeSet::new();
        let mut next = *first;
        let mut spots: Vec<usize> = Vec::new();
        for (spot, load) in self.loads.range(*first..*end) {
            if seen.insert(load) {
                spots.push(*spot);
            }
            next = spot.saturating_add(1);
        }
        if next < *end {
            spots.push(next);
        }
        spots
    }

    fn has_room(&mut self, kind: usize, spot: usize, role: usize) -> bool {
        let mut load = match self.loads.get(&spot) {
            Some(load) => load.clone(),
            None => vec![0; self.roles.len()],
        };
        let most = self.kinds.get(kind).and_then(|kind| kind.alone.get(role));
        let most = most.copied().unwrap_or(0);
        match load.get_mut(role) {
            Some(count) if *count < most => *count = count.saturating_add(1),
            _ => return false,
        }
        let Some(capacity) = self.spots.get(spot).map(|spot| spot.capacity) else {
            return false;
        };
        let roles = self.roles;
        let known = self.fits.entry((kind, load));
        *known.or_insert_with_key(|(_, load)| carries(capacity, roles, load))
    }

    fn put(&mut self, role: usize, spot: usize) {
        let roles = self.roles.len();
        let load = self.loads.entry(spot).or_insert_with(|| vec![0; roles]);
        if let Some(count) = load.get_mut(role) {
            *count = count.saturating_add(1);
        }
        if let Some(left) = self.left.get_mut(role) {
            *left = left.saturating_sub(1);
        }
        if let Some((position, at)) = self.place_of(role, spot) {
            self.rules.add(position, at);
        }
        self.chosen.push((role, spot));
    }

    fn take_back(&mut self, role: usize, spot: usize) {
        self.chosen.pop();
        if let Some((position, at)) = self.place_of(role, spot) {
            self.rules.remove(position, at);
        }
        if let Some(left) = self.left.get_mut(role) {
            *left = left.saturating_add(1);
        }
        if let Some(load) = self.loads.get_mut(&spot) {
            if let Some(count) = load.get_mut(role) {
                *count = count.saturating_sub(1);
            }
            if load.iter().all(|count| *count == 0) {
                self.loads.remove(&spot);
            }
        }
    }

    /// Positions in the request and in the snapshot.
    fn place_of(&self, role: usize, spot: usize) -> Option<(usize, usize)> {
        let (position, _) = self.roles.get(role)?;
        Some((*position, self.spots.get(spot)?.at))
    }

    /// Whether each member has what it asks for, whoever came after it.
    fn is_kept(&self) -> bool {
        let places = self.chosen.iter();
        let places: Vec<(usize, usize)> = places
            .filter_map(|(role, spot)| self.place_of(*role, *spot))
            .collect();
        self.rules.keep(&places)
    }
}
