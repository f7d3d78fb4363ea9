//! A Kubernetes cluster in memory, for tests and for people with a laptop.
//!
//! ```text
//!   scheduler under test ── kube::Client ──┐                        ┌─ standins: kube-scheduler, training-operator,
//!   kubectl ── HTTP, TLS, kubeconfig ──────┼──► api: store, watch ◄─┤            kubelet, agents
//!   tests ── EmbeddedCluster ──────────────┘     admission, faults  └─ garbage collector
//! ```
//! It runs on real time, served over loopback, or on tokio's paused clock in one thread, where equal seeds give equal
//! event logs.

pub mod api;
pub mod clock;
pub mod cluster;
pub mod quantity;
pub mod serve;
pub mod signal;
pub mod standins;
pub mod value;
pub mod yaml;

pub use cluster::{EmbeddedCluster, NodePool};
