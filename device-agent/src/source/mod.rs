//! Where readings come from: NVML, in a process of its own ([`reader`], [`nvml`]), or a fake node ([`fake`]).
//!
//! A source is pulled by one owner, the node's loop.

pub mod fake;
pub mod nvml;
pub mod reader;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use muster_proto::inventory::Sampler;

use crate::model::{DeviceEvent, Reading};

/// Silence of a reader after which calls into the driver count as hanging: three times the slowest reading seen on
/// loaded machines, and short enough for it to be reported within 45 s.
pub const WATCHDOG: Duration = Duration::from_secs(40);

/// What a source has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// A full reading; replaces the one before and implies a working sampler.
    Reading(Arc<Reading>),
    /// Something that happened to a device.
    Event(DeviceEvent),
    /// The sampler itself is in another state: hung, crashed, or without a driver.
    Sampler(Sampler),
    /// A fault of the agent, not of a device. Only fakes produce it.
    AgentFault(AgentFault),
    /// The source cannot go on in this process, for example since the driver was replaced under it.
    Ended(String),
}

/// Ways in which a fake node misreports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentFault {
    /// Streams stay open and nothing is sent.
    Silent,
    /// Ends `Silent`.
    Resume,
    /// The first report is sent once more.
    Replay,
}

/// A reader of devices.
pub trait DeviceSource: Send + 'static {
    /// The next update. Waits as long as there is none; may be dropped and called again without losing anything.
    /// The first update comes without delay: a reading, or the state that prevents one.
    fn next(&mut self) -> impl Future<Output = Update> + Send;
}
