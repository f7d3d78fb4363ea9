//! Kubernetes objects to core values and back, without a client.
//!
//! ```text
//!   API server ──JSON──> lite::Lite*   ──translate──> core values ──> engine
//!              ──JSON──> gang::Gang    ──translate──> core::record
//!   kube-scheduler ────> extender::*Args ─┘
//!
//!   engine ──core actions──> write::* ──> patches, bindings, Gang objects ──> API server
//!                            extender::*Result ──> kube-scheduler
//!   operator <── manifests::*  (CRDs, RBAC, admission policies, kube-scheduler configuration)
//! ```
//!
//! Everything here is a pure function of its arguments. Nothing connects anywhere, nothing reads a
//! clock. All typed parsing of Kubernetes objects lives here behind concrete functions, so that no
//! other crate compiles it again.
//!
//! Translation does not fail for a bad object: what is wrong with a workload becomes a value with
//! field, value and limit, and a pod that cannot be understood becomes one that fits nowhere. One
//! bad object harms only itself.

pub mod extender;
pub mod gang;
pub mod lite;
pub mod manifests;
pub mod names;
mod pins;
pub mod quantity;
pub mod translate;
pub mod write;
