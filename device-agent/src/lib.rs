//! The node agent: reads NVIDIA GPUs and reports them to the scheduler.
//!
//! ```text
//! source (NVML in a child process, or fake) --Update--> node (health, holders, leaks) --NodeView--> stream --gRPC--> each replica
//!                                     ^ kubelet: PodResources
//! profile, scenario --> fake --> source::fake (in process: fleet)
//!                           \--> the fake libnvidia-ml (C ABI): source::nvml reads it as the real one
//! ```
//! The parts that decide are pure, with time as an argument ([`health`], [`assemble`], [`report`]);
//! waiting is in [`node`] and [`stream`]. The one place that calls into a C library is [`source::nvml`].

pub mod assemble;
pub mod clock;
pub mod connector;
pub mod fake;
pub mod fleet;
pub mod hash;
pub mod health;
pub mod kubelet;
pub mod model;
pub mod node;
pub mod podresources;
pub mod profile;
pub mod report;
pub mod scenario;
pub mod source;
pub mod stream;
