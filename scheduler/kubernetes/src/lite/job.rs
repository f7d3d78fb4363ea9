//! PyTorchJobs and PodGroups, with `spec` and `status` as they came.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{meta, resource};
use crate::names;

/// A `kubeflow.org/v1` PyTorchJob. Serialised again it has everything that
/// [`crate::write::job_patch`] reads.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct LitePyTorchJob {
    /// Name, UID, resourceVersion, labels, Muster's annotations.
    #[serde(default, deserialize_with = "meta::of_object")]
    pub metadata: ObjectMeta,
    /// `spec` as it came.
    #[serde(default)]
    pub spec: Value,
    /// `status` as it came.
    #[serde(default)]
    pub status: Value,
}
resource!(
    LitePyTorchJob,
    NamespaceResourceScope,
    "PyTorchJob",
    names::KUBEFLOW_GROUP,
    "v1",
    "pytorchjobs"
);

/// A `scheduling.x-k8s.io/v1alpha1` PodGroup.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct LitePodGroup {
    /// Name, UID, resourceVersion, labels, Muster's annotations.
    #[serde(default, deserialize_with = "meta::of_object")]
    pub metadata: ObjectMeta,
    /// `spec` as it came.
    #[serde(default)]
    pub spec: Value,
}
resource!(
    LitePodGroup,
    NamespaceResourceScope,
    "PodGroup",
    names::POD_GROUP_GROUP,
    "v1alpha1",
    "podgroups"
);
