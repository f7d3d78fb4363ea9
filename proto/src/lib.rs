//! What the device agent and the scheduler say to each other.
//!
//! [`inventory`] is the report stream. The generated types stay behind this crate: the scheduler
//! turns them into core values at its door, the agent builds them at its own.

/// The report stream between a device agent and a scheduler replica (`muster.inventory.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod inventory {
    tonic::include_proto!("muster.inventory.v1");
}

mod digest;

pub use digest::digest;

/// Version of the protocol this crate speaks. A server accepts this one and the one before.
pub const PROTOCOL: u32 = 1;
