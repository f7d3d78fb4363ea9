//! Stand-ins for the programs around the scheduler under test.
//!
//! ```text
//! PyTorchJob ─► operator ─► pods ─► scheduler ── extender over HTTP ──► scheduler under test
//!                                       └─ binding ─► kubelet ─► Running, Succeeded, device ids
//! ```
//! Each is one task that owns its state and reads through informers, so a cluster on the paused clock in one thread
//! does the same things in the same order for the same seed.

pub mod agents;
pub mod extender;
pub mod fit;
mod fit_between;
pub mod kubelet;
pub mod operator;
mod operator_pod;
mod operator_status;
pub mod scheduler;
mod scheduler_cache;
mod scheduler_preempt;
mod scheduler_queue;

/// Group and plural of the resources that stand-ins use.
pub(crate) mod kinds {
    pub(crate) const PODS: (&str, &str) = ("", "pods");
    pub(crate) const NODES: (&str, &str) = ("", "nodes");
    pub(crate) const SERVICES: (&str, &str) = ("", "services");
    pub(crate) const JOBS: (&str, &str) = ("kubeflow.org", "pytorchjobs");
    pub(crate) const PODGROUPS: (&str, &str) = ("scheduling.x-k8s.io", "podgroups");
}
