//! Nodes.

use std::sync::Arc;

use muster_core::ids::NodeName;
use muster_core::node::{Node, Taint};

use super::{requests, shape, text};
use crate::lite::LiteNode;

/// A Node. A taint with an effect that is not known is left out; an allocatable amount that cannot
/// be read counts as nothing.
pub fn node(node: &LiteNode) -> Node {
    let meta = &node.metadata;
    Node {
        name: NodeName::from(text(meta.name.as_ref())),
        uid: Arc::from(text(meta.uid.as_ref())),
        boot_id: Some(node.status.node_info.boot_id.as_str())
            .filter(|id| !id.is_empty())
            .map(Arc::from),
        labels: meta
            .labels
            .iter()
            .flatten()
            .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
            .collect(),
        taints: node
            .spec
            .taints
            .iter()
            .filter_map(|taint| {
                Some(Taint {
                    key: Arc::from(taint.key.as_str()),
                    value: Arc::from(taint.value.as_str()),
                    effect: shape::effect(&taint.effect)?,
                })
            })
            .collect(),
        unschedulable: node.spec.unschedulable,
        ready: node
            .status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        terminating: meta.deletion_timestamp.is_some(),
        allocatable: requests::offered(&node.status.allocatable),
    }
}
