//! The Gang object: `kubectl get gangs`.
//!
//! One object per gang, written rarely. `spec` names the workload and never changes; `status` holds
//! the durable plan and what people read. It belongs to its workload by owner reference and goes
//! with it.

// Each printer column has attributes of its own that look alike to the lint.
#![allow(clippy::duplicated_attributes)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of the status layout that this code writes. A higher one is not read.
pub const RECORD_VERSION: i64 = 1;

/// Whose gang it is.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "muster.dev",
    version = "v1alpha1",
    kind = "Gang",
    plural = "gangs",
    singular = "gang",
    shortname = "gg",
    namespaced,
    status = "GangStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Pods that run together or not at all, as Muster sees them. Written by Muster; deleting it gives the plan back.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Members", type_ = "string", json_path = ".status.membersBound"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.workload == oldSelf.workload").message("spec.workload is immutable"))]
pub struct GangSpec {
    /// The workload that asks for the gang.
    pub workload: WorkloadRef,
}

/// The workload that asks for a gang.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// PyTorchJob, PodGroup, Label or Pod.
    #[schemars(extend("enum" = ["PyTorchJob", "PodGroup", "Label", "Pod"]))]
    pub kind: String,
    /// Name of the object, or value of the label.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID of the object; podgroup/NAME for a PodGroup, label/NAME for a labelled gang.
    #[schemars(length(min = 1, max = 300))]
    pub uid: String,
}

/// The durable plan, and what people read.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.planId) || has(self.epoch)")
        .message("a plan has an epoch"),
    validation = Rule::new("!has(oldSelf.epoch) || (has(self.epoch) && self.epoch >= oldSelf.epoch)")
        .message("status.epoch never goes back: another leader has written since")
)]
pub struct GangStatus {
    /// Layout of this status.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub record_version: i64,
    /// Id of the durable plan; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub plan_id: Option<String>,
    /// Highest leadership that has made a plan for the gang. Never goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub epoch: Option<i64>,
    /// Waiting, Starting, Running, Repairing, Suspended, Succeeded or Failed.
    #[schemars(extend("enum" = ["", "Waiting", "Starting", "Running", "Repairing", "Suspended", "Succeeded", "Failed"]))]
    #[serde(default)]
    pub phase: String,
    /// Why it is in this phase, as one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// Why it is in this phase, with numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// Members bound.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub bound: i64,
    /// Members of the whole gang; 0 while not known.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub total: i64,
    /// Members that run together or not at all.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub minimum: i64,
    /// Members bound of members in all, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub members_bound: Option<String>,
    /// One place per planned member.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16384))]
    pub members: Vec<Member>,
    /// Placed: a durable plan exists. Running: enough members are bound. KeysIgnored: there are keys that look like Muster's and are not. GpuFailed: a member runs on a GPU that has failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Generation of the workload that this status speaks about.
    #[serde(default)]
    pub observed_generation: i64,
}

/// A member's place in the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Member {
    /// Role, for example Worker.
    #[schemars(length(max = 63))]
    pub role: String,
    /// Index within the role.
    #[schemars(range(min = 0))]
    pub index: i64,
    /// Planned node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// UUIDs of the devices that kubelet gave it, where known at the last write, else of those predicted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 128)))]
    pub devices: Vec<String>,
    /// Name of the pod that has the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// UID of the pod that has the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// The pod is bound to the node.
    pub bound: bool,
    /// The member has ended well; its pod may be gone since.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
}

/// One side of a gang's state, as Kubernetes writes conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Placed, Running, KeysIgnored or GpuFailed.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_: String,
    /// True, False or Unknown.
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// Generation of the workload that it speaks about.
    #[serde(default)]
    pub observed_generation: i64,
    /// When the status last changed, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// One word.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// Text for people.
    #[schemars(length(max = 4096))]
    pub message: String,
}
