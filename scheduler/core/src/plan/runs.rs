//! Which nodes have room for members of a role, found group by group.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::build::{Builder, Left, Remaining, offers_devices, room, spare_of};
use super::fill::Run;
use super::{RoleRequest, devices_of};
use crate::ids::NodeName;
use crate::pod::PodShape;
use crate::snapshot::{Ask, Eligibility, Enough, Fit, Group, Key, NodeCapacity};

/// Members that look for a place, all of the role's shape.
pub(super) struct Wanted<'r> {
    pub role: &'r RoleRequest,
    pub total: usize,
}

/// Which nodes are looked at.
#[derive(Clone, Copy)]
pub(super) enum Area<'d> {
    /// All, wherever they lie.
    Anywhere,
    /// Those of a domain, with where they lie.
    Within(&'d [Arc<str>]),
    /// Those that lie exactly there: in none of the domains within.
    At(&'d [Arc<str>]),
}

impl Area<'_> {
    fn contains(self, place: &[Arc<str>]) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Within(domain) => place.starts_with(domain),
            Self::At(domain) => place == domain,
        }
    }
}

/// What the nodes of a kind are to a role.
#[derive(Clone, Copy)]
struct OfKind {
    fit: Fit,
    /// They offer devices at all.
    has_devices: bool,
}

/// Where the nodes of a run are.
#[derive(Clone, Copy)]
pub(super) enum Nodes<'a> {
    /// Those of a group that are not apart.
    Group(&'a Key, &'a Group),
    /// One of a group.
    One(&'a Key, &'a Arc<NodeCapacity>),
    /// One that was touched already.
    Touched(&'a Arc<NodeCapacity>),
}

/// A wish, in the terms of the index.
struct Asked<'r> {
    role: &'r RoleRequest,
    ask: Ask,
    /// Under which costs are kept.
    number: Option<u32>,
    /// What is enough for as many as count on one node.
    enough: Option<Enough>,
    /// Most members that count on one node.
    total: u32,
    wants_devices: bool,
    /// What was found of the kind last looked at.
    last: Option<(u32, Option<OfKind>)>,
}

impl<'a> Builder<'a, '_> {
    /// Every run of nodes with room for the role, each with where it lies. The number of groups and nodes
    /// that were looked at.
    pub fn find_runs(
        &self,
        area: Area<'_>,
        wanted: &Wanted,
        mut found: impl FnMut(&'a [Arc<str>], Run, Nodes<'a>),
    ) -> usize {
        let index = self.terms.snapshot.index();
        let ask = index.ask(&wanted.role.shape);
        let total = u32::try_from(wanted.total).unwrap_or(u32::MAX);
        let mut asked = Asked {
            role: wanted.role,
            enough: ask.enough(u64::from(total)),
            number: index.number(&ask),
            ask,
            total,
            wants_devices: devices_of(&wanted.role.shape, self.terms.config) > 0,
            last: None,
        };
        let mut looks = 0usize;
        match area {
            Area::Anywhere => {
                for (key, group) in index.groups() {
                    looks = looks.saturating_add(1);
                    self.runs_in(&mut asked, (&[], key), group, &mut found);
                }
            }
            Area::Within(domain) | Area::At(domain) => {
                let places = index.places(domain);
                for (path, groups) in places.filter(|(path, _)| area.contains(path)) {
                    for (key, group) in groups {
                        looks = looks.saturating_add(1);
                        self.runs_in(&mut asked, (path, key), group, &mut found);
                    }
                }
            }
        }
        for (name, remaining) in self.touched_in(area) {
            looks = looks.saturating_add(1);
            let capacity = &remaining.capacity;
            if !self.terms.admits(capacity, &asked.role.shape) {
                continue;
            }
            let shape = &asked.role.shape;
            let room = room(Left::of_remaining(remaining), shape, asked.total);
            if room > 0 {
                let left = Left::of_remaining(remaining);
                let run = Run {
                    room,
                    count: 1,
                    cost: self.cost_at(capacity, left, &asked.ask, room),
                    spare: spare_of(&remaining.free, self.terms.config),
                    has_devices: offers_devices(capacity, self.terms.config),
                };
                if let Some(capacity) = self.terms.snapshot.get(name) {
                    let place: &[Arc<str>] = match area {
                        Area::Anywhere => &[],
                        Area::Within(_) | Area::At(_) => capacity.place(),
                    };
                    found(place, run, Nodes::Touched(capacity));
                }
            }
        }
        looks
    }

    /// Nodes of an area that members were placed on.
    fn touched_in<'s>(
        &'s self,
        area: Area<'s>,
    ) -> Box<dyn Iterator<Item = (&'s NodeName, &'s Remaining)> + 's> {
        let (Area::Within(domain) | Area::At(domain)) = area else {
            return Box::new(self.touched.iter());
        };
        let from = (Bound::Included(domain), Bound::Unbounded);
        let places = self.touched_at.range::<[Arc<str>], _>(from);
        let places = places.take_while(move |(path, _)| path.starts_with(domain));
        let names = places.filter(move |(path, _)| area.contains(path));
        let names = names.flat_map(|(_, names)| names);
        Box::new(names.filter_map(|name| self.touched.get_key_value(name)))
    }

    /// The runs of one group.
    fn runs_in(
        &self,
        asked: &mut Asked,
        (place, key): (&'a [Arc<str>], &'a Key),
        group: &'a Group,
        found: &mut impl FnMut(&'a [Arc<str>], Run, Nodes<'a>),
    ) {
        let of_kind = match asked.last {
            Some((kind, known)) if kind == key.kind => known,
            _ => {
                let of_kind = self.of_kind(key, &asked.role.shape, asked.wants_devices);
                asked.last = Some((key.kind, of_kind));
                of_kind
            }
        };
        let Some(OfKind { fit, has_devices }) = of_kind else {
            return;
        };
        let total = asked.total;
        let is_enough = |enough| key.free.is_enough(enough);
        let (least, most) = match asked.enough.as_ref().is_some_and(is_enough) {
            true => (u64::from(total), u64::from(total)),
            false => key.free.times(&asked.ask, u64::from(total)),
        };
        if most == 0 {
            return;
        }
        let spare = self.spare_in(key);
        let limit = |room: u64| u32::try_from(room).unwrap_or(total).min(total);
        let ports = &asked.role.shape.host_ports;
        let alike =
            fit == Fit::All && limit(least) == limit(most) && (ports.is_empty() || !key.ports);
        if alike {
            let apart = match self.apart.is_empty() {
                true => 0,
                false => self.apart.get(&(place, key)).copied().unwrap_or(0),
            };
            let nodes = u32::try_from(group.nodes.len()).unwrap_or(u32::MAX);
            let count = nodes.saturating_sub(apart);
            let room = limit(least).min(if ports.is_empty() { total } else { 1 });
            if count > 0 {
                let run = Run {
                    room,
                    count,
                    cost: self.cost_in(key, group, asked, room),
                    spare,
                    has_devices,
                };
                found(place, run, Nodes::Group(key, group));
            }
            return;
        }
        for (name, capacity) in &group.nodes {
            if self.is_apart(name) || asked.role.shape.mismatch(&capacity.node).is_some() {
                continue;
            }
            let room = room(Left::of(capacity), &asked.role.shape, total);
            if room > 0 {
                let run = Run {
                    room,
                    count: 1,
                    cost: self.cost_in(key, group, asked, room),
                    spare,
                    has_devices,
                };
                found(place, run, Nodes::One(key, capacity));
            }
        }
    }

    /// The node of this name, with its group when it was not touched before.
    pub fn named(&self, name: &NodeName) -> Option<(&'a Arc<NodeCapacity>, Option<&'a Key>)> {
        let snapshot = self.terms.snapshot;
        let capacity = snapshot.get(name)?;
        let key = snapshot.key_of(name).map(|key| &**key);
        Some((capacity, key.filter(|_| !self.touched.contains_key(name))))
    }

    /// The first node of a run, in order of name.
    pub fn first_of(&self, places: &[Nodes<'a>]) -> Option<&'a NodeName> {
        let none_apart = self.touched.is_empty() && self.terms.avoid.is_empty();
        let firsts = places.iter().filter_map(|place| match place {
            Nodes::Group(_, group) => {
                let mut names = group.nodes.keys();
                names.find(|name| none_apart || !self.is_apart(name))
            }
            Nodes::One(_, capacity) | Nodes::Touched(capacity) => Some(&capacity.node.name),
        });
        firsts.min()
    }

    /// The next nodes of a run after the one named, in order of name; with the group of those that
    /// were not touched before.
    pub fn next_of(
        &self,
        places: &[Nodes<'a>],
        after: Option<&NodeName>,
        wanted: u32,
    ) -> Vec<(&'a Arc<NodeCapacity>, Option<&'a Key>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut heads = BTreeMap::new();
        for place in places {
            let (mut rest, key): (Box<dyn Iterator<Item = &'a Arc<NodeCapacity>>>, _) = match place
            {
                Nodes::Group(key, group) => {
                    let rest = group.nodes.range::<NodeName, _>((from, Bound::Unbounded));
                    let rest = rest.filter(|(name, _)| !self.is_apart(name));
                    (Box::new(rest.map(|(_, capacity)| capacity)), Some(*key))
                }
                Nodes::One(key, capacity) => (Box::new(std::iter::once(*capacity)), Some(*key)),
                Nodes::Touched(capacity) => (Box::new(std::iter::once(*capacity)), None),
            };
            let next = rest.find(|capacity| after.is_none_or(|after| capacity.node.name > *after));
            if let Some(next) = next {
                heads.insert(&next.node.name, (next, rest, key));
            }
        }
        let mut found = Vec::new();
        for _ in 0..wanted {
            let Some((_, (capacity, mut rest, key))) = heads.pop_first() else {
                break;
            };
            found.push((capacity, key));
            if let Some(next) = rest.next() {
                heads.insert(&next.node.name, (next, rest, key));
            }
        }
        found
    }

    fn is_apart(&self, name: &NodeName) -> bool {
        self.touched.contains_key(name) || self.terms.avoid.contains(name)
    }

    /// What it costs to place so many of the members that are asked for on one node of the group.
    fn cost_in(&self, key: &Key, group: &Group, asked: &Asked, count: u32) -> i64 {
        let index = self.terms.snapshot.index();
        index.cost(key, group, (&asked.ask, asked.number), u64::from(count))
    }

    /// Free devices of every kind on each node of the group.
    fn spare_in(&self, key: &Key) -> u64 {
        let columns = self.devices.iter();
        columns.fold(0, |sum, column| {
            sum.saturating_add(key.free.column(*column))
        })
    }

    /// What there is to know about the kind of a group; nothing when the shape may not go there.
    fn of_kind(&self, key: &Key, shape: &PodShape, wants_devices: bool) -> Option<OfKind> {
        let index = self.terms.snapshot.index();
        let kind = index.kind(key)?;
        let usable = kind.eligibility == Eligibility::Eligible && (!wants_devices || kind.reported);
        let fit = index.fit(key, shape);
        (usable && !matches!(fit, Fit::Taint | Fit::Selector)).then(|| OfKind {
            fit,
            has_devices: self.devices.iter().any(|c| kind.offers.column(*c) > 0),
        })
    }
}
