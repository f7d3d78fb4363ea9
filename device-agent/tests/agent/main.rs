//! The agent as it runs: over the C library of the fake driver, with its reader, and by the thousand.

mod common;

mod fleet;
mod nvml;
mod reader;
