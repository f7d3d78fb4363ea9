//! The cluster in parts, for explanations: nodes that are alike for a role are counted together.

use super::{GangRequest, RoleRequest};
use crate::pod::Mismatch;
use crate::snapshot::{Fit, NodeCapacity, Snapshot};

/// Nodes of which one speaks for all.
pub(super) struct Part<'s> {
    /// One of them.
    pub node: &'s NodeCapacity,
    /// How many there are.
    pub count: u32,
    /// A taint or a selector keeps the role away.
    pub kept_off: Option<KeptOff>,
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
pub(super) fn parts<'s>(
    snapshot: &'s Snapshot,
    gang: &GangRequest,
    role: &RoleRequest,
) -> Vec<Part<'s>> {
    let index = snapshot.index();
    let ask = index.ask(&role.shape);
    let needed = u64::try_from(role.indices.len()).unwrap_or(u64::MAX);
    let mut parts = Vec::new();
    let mut last = None;
    for (key, group) in index.groups() {
        let fit = match last {
            Some((kind, fit)) if kind == key.kind => fit,
            _ => index.fit(key, &role.shape),
        };
        last = Some((key.kind, fit));
        let kind = index.kind(key);
        let alike = kind.is_some_and(|kind| kind.offers.is_even(&ask, needed))
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
            parts.push(Part {
                node,
                count,
                kept_off,
            });
            continue;
        }
        parts.extend(group.nodes.values().map(|node| Part {
            node,
            count: 1,
            kept_off: kept_off(node, role),
        }));
    }
    parts
}
