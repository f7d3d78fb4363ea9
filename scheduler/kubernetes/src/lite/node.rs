//! Nodes.

use std::collections::BTreeMap;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};

use super::{RawQuantity, meta, nullable, resource};

/// A Node: labels, taints, readiness, allocatable, boot.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct LiteNode {
    /// Name, UID, resourceVersion, labels.
    #[serde(default, deserialize_with = "meta::of_object")]
    pub metadata: ObjectMeta,
    /// Taints and cordon.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: LiteNodeSpec,
    /// Allocatable and readiness.
    #[serde(default, deserialize_with = "nullable")]
    pub status: LiteNodeStatus,
}
resource!(LiteNode, ClusterResourceScope, "Node", "", "v1", "nodes");

/// `spec` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiteNodeSpec {
    /// Taints.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<LiteTaint>,
    /// Cordoned.
    #[serde(deserialize_with = "nullable")]
    pub unschedulable: bool,
}

/// A taint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteTaint {
    /// Key.
    pub key: String,
    /// Value; empty when absent.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteNodeStatus {
    /// What the kubelet offers to pods.
    #[serde(deserialize_with = "nullable")]
    pub allocatable: BTreeMap<String, RawQuantity>,
    /// Condition `Ready`; the others are dropped.
    #[serde(deserialize_with = "ready_only", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<LiteNodeCondition>,
    /// Which boot of the machine it is.
    #[serde(rename = "nodeInfo", deserialize_with = "nullable")]
    pub node_info: LiteNodeInfo,
}

/// `status.nodeInfo` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteNodeInfo {
    /// The kernel's boot id; empty when not told.
    #[serde(
        rename = "bootID",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub boot_id: String,
}

/// A condition of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteNodeCondition {
    /// Type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

fn ready_only<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<LiteNodeCondition>, D::Error> {
    let mut all: Vec<LiteNodeCondition> = nullable(deserializer)?;
    all.retain(|condition| condition.type_ == "Ready");
    Ok(all)
}
