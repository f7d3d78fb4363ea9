//! The state of a fake node, shared by the in-process source and the fake NVML library, so that
//! both behave alike. Nothing here knows a clock: faults are applied by whoever owns the time.

mod state;

pub(crate) use state::slice_resource;
pub use state::{FakeDevice, FakeGpu, FakeNode, FakeSlice, devices};
