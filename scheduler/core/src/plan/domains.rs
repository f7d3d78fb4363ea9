//! Placing by topology: all in one domain where that is required, in as few as can be where it is
//! preferred, and segments whole.
//!
//! The narrowest domain that takes the whole gang is looked for first, of those that do the fullest, so
//! that wide ones stay whole. Where none does, members are shared out level by level: at each the
//! fewest domains, as with nodes. Members are then numbered through domain by domain, so that
//! neighbours in rank are neighbours in the network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::build::Builder;
use super::effort::{Effort, Miss};
use super::fill::{Run, fill};
use super::rules::Rules;
use super::runs::{Area, Wanted};
use super::{
    Failure, GangRequest, Missed, Placed, Placement, RoleRequest, Terms, place_roles, weight,
};
use crate::topology::{Domain, Segment};

/// A member without a place.
#[derive(Clone, Copy)]
pub(super) struct Member<'r> {
    pub role: &'r RoleRequest,
    pub index: u32,
    /// Number of its segment.
    segment: Option<u32>,
}

impl<'r> Member<'r> {
    /// Every member of a role.
    pub fn all(role: &'r RoleRequest) -> impl Iterator<Item = Self> {
        let segments = role.segments.iter().copied().map(Some);
        let segments = segments.chain(std::iter::repeat(None));
        role.indices
            .iter()
            .zip(segments)
            .map(move |(index, segment)| Self {
                role,
                index: *index,
                segment,
            })
    }
}

/// Members that are alike to the planner, of whatever role, in order of rank.
pub(super) struct Block<'r> {
    /// The first of their roles.
    pub role: &'r RoleRequest,
    pub members: Vec<Member<'r>>,
}

/// The roles with members of one shape together, in this order.
pub(super) fn blocks<'r>(order: &[(usize, &'r RoleRequest)]) -> Vec<Block<'r>> {
    let mut blocks: Vec<(Block<'r>, BTreeMap<usize, &'r RoleRequest>)> = Vec::new();
    for (position, role) in order {
        let alike = blocks.iter_mut().find(|(block, _)| {
            Arc::ptr_eq(&block.role.shape, &role.shape) || *block.role.shape == *role.shape
        });
        match alike {
            Some((_, roles)) => {
                roles.insert(*position, role);
            }
            None => {
                let block = Block {
                    role,
                    members: Vec::new(),
                };
                blocks.push((block, BTreeMap::from([(*position, *role)])));
            }
        }
    }
    blocks
        .into_iter()
        .map(|(mut block, roles)| {
            block.members = roles.into_values().flat_map(Member::all).collect();
            block
        })
        .collect()
}

/// What a domain has room for.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// Members.
    members: u64,
    /// Whole segments.
    segments: u64,
    /// Free devices on nodes with room.
    spare: u64,
    /// Members stand there already.
    used: bool,
}

impl Room {
    fn add(&mut self, other: &Self) {
        self.members = self.members.saturating_add(other.members);
        self.segments = self.segments.saturating_add(other.segments);
        self.spare = self.spare.saturating_add(other.spare);
        self.used |= other.used;
    }
}

/// Most domains of a level that are tried for a gang that would like to be in one of it.
const WISHES_MAX: usize = 16;

/// A domain, by the values of its levels.
type Name<'a> = &'a [Arc<str>];

/// A domain's values at the first `levels` levels, as far as it has them.
fn cut(path: Name<'_>, levels: usize) -> Name<'_> {
    path.get(..levels).unwrap_or(path)
}

impl<'a> Builder<'a, '_> {
    /// Places members of one shape in the domain of the search.
    pub fn place_block(&mut self, block: &Block) -> Result<Vec<Placed>, Miss> {
        let domain = self.terms.domain.unwrap_or_default();
        let mut placed = Vec::with_capacity(block.members.len());
        // Within one domain of theirs segments need not be kept apart.
        let segment = self.terms.topology.segment;
        let Some(segment) = segment.filter(|segment| segment.level >= domain.len()) else {
            self.share_out(domain, block, &block.members, &mut placed)?;
            return Ok(placed);
        };
        let mut segments: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
        let mut loose = Vec::new();
        for member in &block.members {
            match member.segment {
                Some(number) => segments.entry(number).or_default().push(*member),
                None => loose.push(*member),
            }
        }
        let homes = self.homes(segment);
        let size = usize::try_from(segment.size).unwrap_or(usize::MAX);
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        for (number, members) in segments {
            match homes.get(&number) {
                // Others of it stand already.
                Some(home) if home.starts_with(domain) => {
                    placed.extend(self.place_by_groups(
                        Area::Within(home),
                        block.role,
                        &members,
                    )?);
                }
                Some(_) => return Err(Miss::Room(0)),
                None if members.len() == size => whole.extend(members),
                None => parts.push(members),
            }
        }
        self.share_out(domain, block, &whole, &mut placed)?;
        for members in parts {
            let home = self.home_of_part(domain, block, segment, members.len())?;
            placed.extend(self.place_by_groups(Area::Within(home), block.role, &members)?);
        }
        if !loose.is_empty() {
            placed.extend(self.place_by_groups(Area::Within(domain), block.role, &loose)?);
        }
        self.settle(segment, block, &placed);
        Ok(placed)
    }

    /// Notes where segments are, for those of their members that are of another shape.
    fn settle(&mut self, segment: Segment, block: &Block, placed: &[Placed]) {
        let members = block.members.iter();
        let numbers: BTreeMap<(&str, u32), u32> = members
            .filter_map(|member| Some(((member.role.role.as_str(), member.index), member.segment?)))
            .collect();
        for place in placed {
            let number = numbers.get(&(place.role.as_str(), place.index));
            if let (Some(number), Some(node)) = (number, self.terms.snapshot.get(&place.node)) {
                let home = cut(node.place(), segment.level.saturating_add(1));
                self.settled.entry(*number).or_insert(home);
            }
        }
    }

    /// Domain of each segment of which a member stands.
    fn homes(&self, segment: Segment) -> BTreeMap<u32, Name<'a>> {
        let terms = self.terms;
        let levels = segment.level.saturating_add(1);
        let standing = terms.placed.iter().filter_map(|standing| {
            let place = terms.snapshot.get(&standing.node)?.place();
            Some((standing.segment?, cut(place, levels)))
        });
        // A node that has lost its label is nobody's home.
        let mut homes: BTreeMap<u32, Name<'a>> =
            standing.filter(|(_, home)| home.len() == levels).collect();
        homes.extend(self.settled.iter().map(|(number, home)| (*number, *home)));
        homes
    }

    /// The fullest domain that takes a segment of fewer members, one that is used where there is one.
    fn home_of_part(
        &mut self,
        domain: Name<'_>,
        block: &Block,
        segment: Segment,
        members: usize,
    ) -> Result<Name<'a>, Miss> {
        let rooms = self.rooms(domain, block, members, segment.level, None)?;
        let wanted = u64::try_from(members).unwrap_or(u64::MAX);
        let most = rooms.values().map(|room| room.members).max().unwrap_or(0);
        rooms
            .into_iter()
            .filter(|(name, room)| name.len() > segment.level && room.members >= wanted)
            .min_by_key(|(name, room)| (!room.used, room.spare, *name))
            .map(|(name, _)| name)
            .ok_or(Miss::Room(u32::try_from(most).unwrap_or(u32::MAX)))
    }

    /// Shares members out over the parts of a domain, down to the narrowest level that matters. Where the
    /// gang has segments these are whole ones.
    fn share_out(
        &mut self,
        domain: Name<'_>,
        block: &Block,
        members: &[Member],
        placed: &mut Vec<Placed>,
    ) -> Result<(), Miss> {
        if members.is_empty() {
            return Ok(());
        }
        let level = domain.len();
        let narrowest = self.terms.topology.narrowest();
        if narrowest.is_none_or(|narrowest| level > narrowest) {
            placed.extend(self.place_by_groups(Area::Within(domain), block.role, members)?);
            return Ok(());
        }
        // Within one domain of theirs segments need not be kept apart.
        let segment = self.terms.topology.segment;
        let segment = segment.filter(|segment| segment.level >= level);
        let unit = segment.map_or(1, |segment| usize::try_from(segment.size).unwrap_or(1));
        let rooms = self.rooms(domain, block, members.len(), level, segment)?;
        let units = members.len().checked_div(unit).unwrap_or(0);
        let shares = share(&rooms, level, units, segment.is_some())
            .map_err(|units| times_unit(units, unit))?;
        let mut rest = members;
        for (name, units) in shares {
            let here = units.saturating_mul(unit).min(rest.len());
            let (first, others) = rest.split_at(here);
            rest = others;
            if name.len() == level {
                // Nodes that lack the label of this level.
                placed.extend(self.place_by_groups(Area::At(name), block.role, first)?);
            } else {
                self.share_out(name, block, first, placed)?;
            }
        }
        Ok(())
    }

    /// What each part of a domain has room for: its domains of the level, and its nodes that are in none.
    fn rooms(
        &mut self,
        domain: Name<'_>,
        block: &Block,
        members: usize,
        level: usize,
        segment: Option<Segment>,
    ) -> Result<BTreeMap<Name<'a>, Room>, Miss> {
        let levels = level.saturating_add(1);
        let inner = segment.map_or(levels, |segment| segment.level.saturating_add(1));
        let mut inner_rooms: BTreeMap<Name<'a>, Room> = BTreeMap::new();
        let wanted = Wanted {
            role: block.role,
            total: members,
        };
        let mut last: Option<(Name<'a>, Room)> = None;
        let looks = self.find_runs(Area::Within(domain), &wanted, |path, run, _| {
            let name = cut(path, inner);
            let room = Room {
                members: run.room_of_all(),
                segments: 0,
                spare: run.spare.saturating_mul(u64::from(run.count)),
                used: false,
            };
            // Those of one place come one after the other.
            match &mut last {
                Some((same, sum)) if std::ptr::eq(*same, name) || *same == name => sum.add(&room),
                _ => {
                    if let Some((name, sum)) = last.replace((name, room)) {
                        inner_rooms.entry(name).or_default().add(&sum);
                    }
                }
            }
        });
        if let Some((name, sum)) = last {
            inner_rooms.entry(name).or_default().add(&sum);
        }
        self.effort.nodes(looks, 0)?;
        let mut rooms: BTreeMap<Name<'a>, Room> = BTreeMap::new();
        for (name, mut room) in inner_rooms {
            if let Some(segment) = segment.filter(|_| name.len() == inner) {
                let size = u64::from(segment.size.max(1));
                room.segments = room.members.checked_div(size).unwrap_or(0);
            }
            rooms.entry(cut(name, levels)).or_default().add(&room);
        }
        for path in &self.used {
            if let Some(room) = rooms.get_mut(cut(path, levels)) {
                room.used = true;
            }
        }
        Ok(rooms)
    }
}

fn times_unit(units: u32, unit: usize) -> Miss {
    Miss::Room(units.saturating_mul(u32::try_from(unit).unwrap_or(u32::MAX)))
}

/// How many members, or segments, each part gets: first those that are used, then as few others as can
/// be. In order of name. How many there is room for, when that is too few.
fn share<'a>(
    rooms: &BTreeMap<Name<'a>, Room>,
    level: usize,
    units: usize,
    segments: bool,
) -> Result<Vec<(Name<'a>, usize)>, u32> {
    let room_in = |room: &Room| {
        if segments {
            room.segments
        } else {
            room.members
        }
    };
    let mut shares: BTreeMap<Name<'a>, usize> = BTreeMap::new();
    let mut left = units;
    for used in [true, false] {
        let (names, runs): (Vec<Name<'a>>, Vec<Run>) = rooms
            .iter()
            .filter(|(name, room)| room.used == used && (name.len() > level || !segments))
            .map(|(name, room)| {
                let run = Run {
                    room: u32::try_from(room_in(room)).unwrap_or(u32::MAX),
                    count: 1,
                    cost: 0,
                    spare: room.spare,
                    has_devices: true,
                };
                (*name, run)
            })
            .filter(|(_, run)| run.room > 0)
            .unzip();
        let sum = runs
            .iter()
            .fold(0u64, |sum, run| sum.saturating_add(run.room_of_all()));
        let here = left.min(usize::try_from(sum).unwrap_or(usize::MAX));
        // In order of name.
        for take in fill(&runs, |run| run, here, true).unwrap_or_default() {
            if let Some(name) = names.get(take.run) {
                let share = shares.entry(*name).or_default();
                *share = share.saturating_add(usize::try_from(take.each).unwrap_or(0));
            }
        }
        left = left.saturating_sub(here);
    }
    if left > 0 {
        return Err(u32::try_from(units.saturating_sub(left)).unwrap_or(u32::MAX));
    }
    Ok(shares.into_iter().collect())
}

/// Places a gang that asks something of the topology.
pub(super) fn place_in_domains<'a>(
    terms: Terms<'a>,
    gang: &'a GangRequest,
    rules: &Rules,
    effort: &mut Effort,
) -> Result<Placement, Failure<'a>> {
    let topology = terms.topology;
    let anywhere = terms.anywhere();
    let (mut missed, mut gave_up): (Option<Missed<'a>>, bool) = (None, false);
    if let Some(narrowest) = topology.preferred.max(topology.required) {
        let widest = topology.required.unwrap_or(0);
        for level in (widest..=narrowest).rev() {
            // Whoever joins others goes where they are, as far as there is room.
            if !terms.placed.is_empty() && topology.required != Some(level) {
                continue;
            }
            let (domains, best) = candidates(anywhere, gang, level, effort)?;
            missed = best.or(missed);
            // What is wished for only is worth so many tries.
            let tries = match topology.required == Some(level) {
                true => usize::MAX,
                false => WISHES_MAX,
            };
            for domain in domains.into_iter().take(tries) {
                let within = Terms {
                    domain: Some(domain),
                    ..terms
                };
                let is_required = topology.required == Some(level);
                let found = match is_required {
                    true => place_roles(within, &gang.roles, rules, effort),
                    false => effort.briefly(|e| place_roles(within, &gang.roles, rules, e)),
                };
                match found {
                    Err(Failure::Room(other)) => missed = farther(missed, other),
                    Err(Failure::Limit) if effort.is_spent() => return Err(Failure::Limit),
                    // Another one may do.
                    Err(Failure::Limit) => gave_up |= is_required,
                    answer => return answer,
                }
            }
        }
    }
    match missed.filter(|_| topology.required.is_some()) {
        _ if gave_up => Err(Failure::Limit),
        Some(missed) => Err(Failure::Room(missed)),
        // Nothing is required, or there is nobody to be placed.
        None => place_roles(anywhere, &gang.roles, rules, effort),
    }
}

/// Of two failures that with more members placed.
fn farther<'a>(one: Option<Missed<'a>>, other: Missed<'a>) -> Option<Missed<'a>> {
    match one {
        Some(one) if one.placed >= other.placed => Some(one),
        _ => Some(other),
    }
}

/// Domains of a level that have room for each role alone, the fullest first; and, where there is none,
/// what is missing in the best.
fn candidates<'a>(
    anywhere: Terms<'a>,
    gang: &'a GangRequest,
    level: usize,
    effort: &mut Effort,
) -> Result<(Vec<Name<'a>>, Option<Missed<'a>>), Failure<'a>> {
    let mut order: Vec<(usize, &RoleRequest)> = gang
        .roles
        .iter()
        .enumerate()
        .filter(|(_, role)| !role.indices.is_empty())
        .collect();
    order.sort_by_key(|(_, role)| std::cmp::Reverse(weight(&role.shape, anywhere.config)));
    let mut builder = Builder::new(anywhere, Rules::default(), 0, effort);
    let mut fitting: Option<BTreeMap<Name<'a>, u64>> = None;
    for block in blocks(&order) {
        let total = block.members.len();
        let rooms = builder
            .rooms(&[], &block, total, level, None)
            .map_err(|_| Failure::Limit)?;
        let needed = u64::try_from(total).unwrap_or(u64::MAX);
        let domains = || rooms.iter().filter(|(name, _)| name.len() > level);
        let fits: BTreeMap<Name<'a>, u64> = domains()
            .filter(|(_, room)| room.members >= needed)
            .filter(|(name, _)| fitting.as_ref().is_none_or(|all| all.contains_key(*name)))
            .map(|(name, room)| (*name, room.spare))
            .collect();
        if fits.is_empty() {
            // Of those that take the roles before.
            let best = domains()
                .filter(|(name, _)| fitting.as_ref().is_none_or(|all| all.contains_key(*name)))
                .map(|(_, room)| room.members)
                .max()
                .unwrap_or(0);
            let missed = Missed {
                role: block.role,
                placed: u32::try_from(best.min(needed)).unwrap_or(u32::MAX),
            };
            return Ok((Vec::new(), Some(missed)));
        }
        // The first block is the largest: how full a domain is counts by what it needs.
        fitting
            .get_or_insert_with(|| fits.clone())
            .retain(|name, _| fits.contains_key(name));
    }
    let standing: BTreeSet<Name<'a>> = anywhere
        .placed
        .iter()
        .filter_map(|standing| anywhere.snapshot.get(&standing.node))
        .map(|node| cut(node.place(), level.saturating_add(1)))
        // A node that has lost its label is in none.
        .filter(|name| name.len() > level)
        .collect();
    let mut domains: Vec<(u64, Name<'a>)> = fitting
        .into_iter()
        .flatten()
        .filter(|(name, _)| standing.is_empty() || standing.contains(name))
        .map(|(name, spare)| (spare, name))
        .collect();
    domains.sort_unstable();
    let missed = order.first().filter(|_| domains.is_empty());
    // There is room, but not where the others are.
    let missed = missed.map(|(_, role)| Missed { role, placed: 0 });
    Ok((domains.into_iter().map(|(_, name)| name).collect(), missed))
}

/// For people: how many domains a level has, and which takes this many members of a shape, if that is
/// what keeps the gang from all of them.
pub(super) fn best_domain(
    anywhere: Terms<'_>,
    block: &Block,
    level: usize,
    placed: u32,
    effort: &mut Effort,
) -> (u32, Option<Arc<str>>) {
    let levels = level.saturating_add(1);
    let mut domains: Vec<Name> = anywhere
        .snapshot
        .index()
        .places(&[])
        .map(|(path, _)| cut(path, levels))
        .filter(|name| name.len() == levels)
        .collect();
    domains.dedup();
    let mut builder = Builder::new(anywhere, Rules::default(), 0, effort);
    let rooms = builder.rooms(&[], block, block.members.len(), level, None);
    let rooms = rooms.unwrap_or_default().into_iter();
    let best = rooms
        .filter(|(name, _)| name.len() == levels)
        .max_by(|(a, one), (b, other)| (one.members, b).cmp(&(other.members, a)))
        .filter(|(_, room)| room.members == u64::from(placed))
        .map(|(name, _)| Arc::from(Domain(name).to_string()));
    (u32::try_from(domains.len()).unwrap_or(u32::MAX), best)
}
