//! Core actions to objects and patches.
//!
//! ```text
//!   CreateRecord ─> gang_object      PutStatus ─> status
//!   ChangeJob ────> job_patch        ReleasePod ─> release_pod_patch, release_plain_pod_patch
//!   WakePod ──────> wake_pod_patch   Bind ──────> binding
//!   StampPod, StampRecord ─────────> stamp_patch
//! ```
//!
//! Every patch is a JSON merge patch (RFC 7386) that carries `metadata.uid`, and `resourceVersion`
//! where the write depends on what was read: the API server refuses it with 409 when either differs.

mod gang;
mod job;
mod pod;

pub use gang::{gang_object, own, status};
pub use job::job_patch;
pub use pod::{binding, release_plain_pod_patch, release_pod_patch, stamp_patch, wake_pod_patch};

#[cfg(test)]
mod tests;
