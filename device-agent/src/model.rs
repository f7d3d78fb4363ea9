//! What a device source reads, before anybody judges it.
//!
//! ```text
//! DeviceSource --Update--> node loop: Reading --health--> verdicts --+--> report
//!                                     PodResources --holders--------+
//! ```
//! A reading keeps facts in the wire type [`Device`], with health, holders and `leaked` left empty:
//! the agent adds nothing to the facts, so there is no second set of forty fields. Every fact is
//! optional; a GPU that cannot be reached stays in the reading, marked as lost.

use muster_proto::inventory::{Device, Fabric, NodeFacts};

/// Everything a source could read at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// Facts of the node.
    pub node: NodeFacts,
    /// GPUs, by index.
    pub gpus: Vec<GpuReading>,
}

/// One physical GPU.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuReading {
    /// Facts, under the GPU's UUID. `resource_name` is that of the device plugin's default; the kubelet's view corrects it.
    pub facts: Device,
    /// The driver no longer reaches it. The facts are then those of the last good reading, as far as there was one.
    pub lost: bool,
    /// The driver has it and does not let it be read for now, or does not tell whether it is cut into slices. The
    /// facts are then those of the last good reading.
    pub unreadable: bool,
    /// Health of the fabric registration.
    pub fabric: FabricReading,
    /// Whether the SRAM error threshold is exceeded; absent where not supported.
    pub sram_threshold_exceeded: Option<bool>,
    /// Host process ids of compute processes; absent when they cannot be read. In MIG mode those of all slices.
    pub compute_pids: Option<Vec<u32>>,
    /// MIG slices; empty when the GPU is not cut.
    pub slices: Vec<SliceReading>,
}

/// One MIG slice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SliceReading {
    /// Facts, under the slice's UUID.
    pub facts: Device,
    /// Compute processes in the slice; absent when they cannot be read.
    pub compute_pids: Option<Vec<u32>>,
}

/// How far a GPU is registered with the NVLink fabric.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum FabricReading {
    /// The platform has no fabric, or it cannot be read.
    #[default]
    None,
    /// Registration has not ended yet, so jobs over NVLink between nodes would fail.
    Pending(Fabric),
    /// Registered.
    Completed {
        /// Identity of the fabric.
        fabric: Fabric,
        /// What the driver says of it.
        health: FabricHealth,
    },
    /// Registration has ended with an error, an NVML return code.
    Failed {
        /// Identity of the fabric.
        fabric: Fabric,
        /// NVML return code.
        status: u32,
    },
}

/// The driver's summary of the fabric's health (structure version 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FabricHealth {
    /// Not told.
    #[default]
    Unknown,
    /// Healthy.
    Healthy,
    /// Not usable.
    Unhealthy,
    /// Usable with less bandwidth.
    LimitedCapacity,
}

/// Something the driver told of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvent {
    /// UUID of the GPU; `None` when the driver's handle could not be named, then it concerns the whole node.
    pub gpu_uuid: Option<String>,
    /// GPU instance and compute instance of a MIG slice, where the driver attributes the event to one.
    pub instance: Option<(u32, u32)>,
    /// What happened.
    pub kind: DeviceEventKind,
}

/// Kinds of events that the agent acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEventKind {
    /// An XID, by number; 999 is "unknown".
    Xid(u64),
    /// A double bit ECC error.
    DoubleBitEcc,
    /// The GPU cannot be used any more.
    Unavailable,
    /// The driver's recovery action changed: read it again.
    RecoveryActionChanged,
}

/// Product architecture by compute capability; `None` for one this version does not know.
pub fn architecture(major: u32, minor: u32) -> Option<&'static str> {
    Some(match (major, minor) {
        (5, _) => "maxwell",
        (6, _) => "pascal",
        (7, 0 | 2) => "volta",
        (7, _) => "turing",
        (8, 9) => "ada",
        (8, _) => "ampere",
        (9, _) => "hopper",
        (10..=12, _) => "blackwell",
        _ => return None,
    })
}
