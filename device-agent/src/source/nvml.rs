//! NVML.
/// placeholder
pub const WATCHDOG: std::time::Duration = std::time::Duration::from_secs(45);
