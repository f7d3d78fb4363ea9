//! The cluster in parts, for explanations: nodes that are alike for a role are counted together.

use super::build::shares_left;
use super::{GangRequest, RoleRequest};
use crate::pod::Mismatch;
use crate::resources::{Lack, Resources};
use crate::snapshot::{Fit, Key, NodeCapacity, SharedDevice, Snapshot};

/// Nodes of which one speaks for all.
pub(super) struct Part<'s, 'r> {
    /// One of them.
    pub node: &'s NodeCapacity,
    /// How many there are.
    pub count: u32,
    /// A taint or a selector keeps the role away.
    pub kept_off: Option<KeptOff>,
    /// What there is not enough of on them when they are empty.
    pub small: Option<Lack<'r>>,
    /// What there is not enough of that is free; asked only of nodes that the role is not kept off.
    pub short: Option<Lack<'r>>,
    /// Some of their devices are free and not well.
    pub sick: bool,
}

/// What there is too little of for one member of a role.
pub(super) fn lack<'r>(
    resources: &Resources,
    shared: &[SharedDevice],
    role: &'r RoleRequest,
) -> Option<Lack<'r>> {
    let whole = resources.lack(&role.shape.requests);
    whole.or_else(|| {
        let share = role.shape.share.as_ref()?;
        let is_left = shares_left(resources, shared, share) > 0;
        (!is_left).then_some(Lack::Extended(&share.resource))
    })
}

/// What keeps a role away, whatever room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeptOff {
    Taint,
    Selector,
}

fn kept_off(node: &NodeCapacity, role: &RoleRequest) -> Option<KeptOff> {
    role.shape
        .mismatch(&node.node)
        .map(|mismatch| match mismatch {
            Mismatch::Taint(_) => KeptOff::Taint,
            Mismatch::Selector => KeptOff::Selector,
        })
}

/// Every node of the snapshot, as far as the role can tell them apart.
pub(super) fn parts<'s, 'r>(
    snapshot: &'s Snapshot,
    gang: &GangRequest,
    role: &'r RoleRequest,
) -> Vec<Part<'s, 'r>> {
    let index = snapshot.index();
    let ask = index.ask(&role.shape);
    let needed = u64::try_from(role.indices.len()).unwrap_or(u64::MAX);
    let part = |key: &Key, node: &'s NodeCapacity, count, kept_off: Option<KeptOff>, small| Part {
        node,
        count,
        kept_off,
        small,
        short: match kept_off {
            None => lack(&node.free, &node.shared, role),
            Some(_) => None,
        },
        sick: key.has_sick(),
    };
    let mut parts = Vec::new();
    // Kind, whether the role may come to it, whether its nodes are alike, and what is too small about them.
    let mut last = None;
    for (key, group) in index.groups() {
        let (fit, is_even, small) = match last {
            Some((kind, known)) if kind == key.kind => known,
            _ => {
                let kind = index.kind(key);
                let is_even = kind.is_some_and(|kind| kind.offers.is_even(&ask, needed));
                let one = group.nodes.values().next();
                let small = one.and_then(|node| lack(&node.node.allocatable, &[], role));
                (index.fit(key, &role.shape), is_even, small)
            }
        };
        last = Some((key.kind, (fit, is_even, small)));
        let alike = is_even
            && key.free.is_even(&ask, needed)
            && fit != Fit::Each
            && (role.shape.host_ports.is_empty() || !key.ports)
            && !gang.avoid.iter().any(|name| group.nodes.contains_key(name));
        let mut nodes = group.nodes.values();
        if alike && let Some(node) = nodes.next() {
            let count = u32::try_from(group.nodes.len()).unwrap_or(u32::MAX);
            let kept_off = match fit {
                Fit::Taint => Some(KeptOff::Taint),
                Fit::Selector => Some(KeptOff::Selector),
                Fit::All | Fit::Each => None,
            };
            parts.push(part(key, node, count, kept_off, small));
            continue;
        }
        parts.extend(group.nodes.values().map(|node| {
            let small = match is_even {
                true => small,
                false => lack(&node.node.allocatable, &[], role),
            };
            part(key, node, 1, kept_off(node, role), small)
        }));
    }
    parts
}
