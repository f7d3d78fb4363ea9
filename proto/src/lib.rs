//! What the device agent and the scheduler say to each other.
//!
//! [`inventory`] is the report stream, [`podresources`] the kubelet's public API. The generated types stay behind this crate: the scheduler
//! turns them into core values at its door, the agent builds them at its own.

/// The report stream between a device agent and a scheduler replica (`muster.inventory.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod inventory {
    tonic::include_proto!("muster.inventory.v1");
}

/// The kubelet's PodResources API (`v1.PodResourcesLister`): which pod holds which device.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod podresources {
    tonic::include_proto!("v1");
}

mod codec;
mod digest;

pub use codec::LeanCodec;
pub use digest::digest;

/// Version of the protocol this crate speaks. A server accepts this one and the one before.
pub const PROTOCOL: u32 = 1;
