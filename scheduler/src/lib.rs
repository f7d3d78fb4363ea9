//! The scheduler's edges: everything that touches the network, the clock or the file system.
//!
//! ```text
//!   API server ──watch──> watch ─────┐                        ┌──> writer ──> API server
//!   agents ────gRPC─────> agents ────┼──> inbox ──> cycle ────┼──> binds ───> extender (held Binds)
//!   kube-scheduler ─────> extender ──┘      (owns Engine)     ├──> announce ─> API server (Events)
//!   Lease ──────────────> lease ─────┘                        └──> view ────> extender (Filter, Preempt)
//!   Lease of kube-scheduler <── gate <── who leads
//! ```
//!
//! Each edge is one module, and none decides anything about gangs: they turn what they see into
//! `muster_core::event::Event`s and carry out `muster_core::action::Action`s. [`scheduler`] puts
//! them together, as a library too: with any `kube::Client`, on any tokio runtime, a paused clock
//! included, without sockets.

pub mod agents;
pub mod announce;
pub mod api;
pub mod binds;
pub mod certificates;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod cycle;
#[cfg(feature = "demo")]
pub mod demo;
pub mod dump;
pub mod extender;
pub mod fence;
pub mod frozen;
pub mod gate;
pub mod hold;
pub mod http;
pub mod inbox;
pub mod lease;
pub mod logs;
pub mod metrics;
pub mod plan;
pub mod scheduler;
pub mod server;
pub mod simulate;
pub mod span;
pub mod tls;
pub mod unbelieved;
pub mod watch;
pub mod writer;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data stay whole whatever happened while it was held.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
