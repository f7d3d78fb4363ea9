//! Where a gang would stand if some of what runs had ended: by the same planner, on a snapshot in which so many nodes
//! are empty of it. Of all places that with the least to end on the node where most has to.
//!
//! ```text
//!   nodes in order of what would have to end there     n3  n7  n1 | n2  n9 ...
//!                                                       emptied   | as they are
//! ```
//!
//! The fewest nodes from the beginning of that order that have to be emptied are looked for by halving, so that
//! it costs some calls of the planner, and the more so the more nodes there are only by their logarithm.

use std::sync::Arc;

use super::effort::Effort;
use super::explain::missing_resource;
use super::rules::Rules;
use super::{GangRequest, Placement, STEPS_MAX, place_part};
use crate::config::Config;
use crate::snapshot::{Eligibility, NodeCapacity, Snapshot};

/// A place for all of `gang` but `spare` members, with nodes as they are `now` or, where need be, as they will be
/// `later`. `None`: there is none even then, or it is too much work to look for it.
pub(crate) fn place_later(
    now: &Snapshot,
    later: &Snapshot,
    gang: &GangRequest,
    spare: u32,
    config: &Config,
) -> Option<Placement> {
    let mut search = Search {
        gang,
        spare,
        config,
        steps: 0,
        effort: Effort::default(),
    };
    let mut best = search.place(later)?;
    let mut order: Vec<(Burden, &Arc<NodeCapacity>)> = later
        .nodes()
        .iter()
        .filter(|node| search.may_take(node))
        .map(|node| (Burden::of(now, node, config), node))
        .collect();
    order.sort_by(|(a, x), (b, y)| (a, &x.node.name).cmp(&(b, &y.node.name)));
    let mut half = now.without_emptied();
    let (mut emptied, mut too_few, mut enough) = (0, 0, order.len());
    while enough.saturating_sub(too_few) > 1 && search.steps <= STEPS_MAX {
        let tried = too_few.midpoint(enough);
        let changed = emptied.min(tried)..emptied.max(tried);
        for (_, node) in order.get(changed).into_iter().flatten() {
            let before = now.get(&node.node.name).filter(|_| tried < emptied);
            half.set(Arc::clone(before.unwrap_or(*node)));
        }
        emptied = tried;
        match search.place(&half) {
            Some(placement) => (best, enough) = (placement, tried),
            None => too_few = tried,
        }
    }
    Some(best)
}

/// What has to end on a node, or on some: devices that are held, then pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Burden {
    devices: u64,
    pods: u64,
}

impl Burden {
    pub(crate) fn of(now: &Snapshot, later: &NodeCapacity, config: &Config) -> Self {
        let now = now.get(&later.node.name).map(|node| &node.free);
        let devices = later.free.extended.iter();
        let held = devices
            .filter(|(name, _)| config.is_device(name))
            .map(|(name, amount)| {
                let free = now.map_or(0, |free| free.extended(name.as_str()));
                amount.saturating_sub(free)
            });
        Self {
            devices: held.fold(0, u64::saturating_add),
            pods: later
                .free
                .pods
                .saturating_sub(now.map_or(0, |free| free.pods)),
        }
    }
}

impl std::iter::Sum for Burden {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            devices: sum.devices.saturating_add(one.devices),
            pods: sum.pods.saturating_add(one.pods),
        })
    }
}

struct Search<'a> {
    gang: &'a GangRequest,
    spare: u32,
    config: &'a Config,
    /// Work so far.
    steps: u64,
    /// What is left of what has a limit for all of it.
    effort: Effort,
}

impl Search<'_> {
    /// The largest part of the gang that fits, without a word on why none does.
    fn place(&mut self, snapshot: &Snapshot) -> Option<Placement> {
        if missing_resource(snapshot, self.gang).is_some() {
            return None;
        }
        let rules = Rules::of(snapshot, self.gang);
        let mut effort = self.effort.more();
        effort.gather(snapshot, self.gang, &rules).ok()?;
        let (spare, config) = (self.spare, self.config);
        let found = place_part(snapshot, self.gang, &rules, spare, config, &mut effort);
        self.steps = self.steps.saturating_add(effort.steps());
        self.effort = effort;
        found.ok()
    }

    /// Whether a member may come to the node at all.
    fn may_take(&self, node: &NodeCapacity) -> bool {
        let mut roles = self.gang.roles.iter();
        node.eligibility == Eligibility::Eligible
            && !self.gang.avoid.contains(&node.node.name)
            && roles.any(|role| role.shape.mismatch(&node.node).is_none())
    }
}
