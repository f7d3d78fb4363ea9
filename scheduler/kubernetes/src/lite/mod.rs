//! Trimmed Kubernetes objects: the fields that Muster reads, and no more.
//!
//! A full Pod takes 66 KB of memory and 34 us to parse, of which placement looks at a twentieth.
//! These types implement [`kube::Resource`], so `Api<LitePod>` and `watcher` work with them, and
//! everything else in the JSON is skipped while it is read. `managedFields` and annotations that
//! are not Muster's are dropped on the way in.
//!
//! Pods and Nodes are typed by the API server itself, so their fields have the types written here.
//! Custom resources are only as typed as their CRD is strict: of PyTorchJobs and PodGroups `spec`
//! and `status` are kept as they came, and translation looks at them with care. One malformed
//! object therefore never makes a LIST fail.

mod job;
mod meta;
mod node;
mod pod;

pub use job::{LitePodGroup, LitePyTorchJob};
pub use node::{LiteNode, LiteNodeCondition, LiteNodeSpec, LiteNodeStatus, LiteTaint};
pub use pod::{
    LiteAffinity, LiteCondition, LiteContainer, LiteGate, LiteLabelSelector, LiteNodeAffinity,
    LitePod, LitePodAffinity, LitePodSpec, LitePodStatus, LitePodTerm, LitePort, LiteRequirement,
    LiteResources, LiteSelector, LiteSpread, LiteTerm, LiteToleration, RawQuantity,
};

use serde::{Deserialize, Deserializer};

/// Reads `null` as the default, as Go writes it for empty lists and maps.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Implements [`kube::Resource`] for a type with a `metadata` field.
macro_rules! resource {
    ($type:ty, $scope:ty, $kind:literal, $group:expr, $version:literal, $plural:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &kube::core::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut kube::core::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
use resource;
