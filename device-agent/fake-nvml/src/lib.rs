//! A C-ABI `libnvidia-ml.so.1` without GPUs.
//!
//! ```text
//! MUSTER_FAKE_NVML_PROFILE, _SCENARIO --> World { FakeNode, timeline } <-- nvml* functions <-- any NVML client
//! ```
//! It is loaded by the unchanged NVML path of the agent, so that what runs in tests is what runs on
//! GPUs. Environment, read at the first init:
//!
//! | variable | meaning |
//! |---|---|
//! | `MUSTER_FAKE_NVML_PROFILE` | profile, by name or path; `h100-8` when absent |
//! | `MUSTER_FAKE_NVML_SCENARIO` | scenario, by name or path; its time starts at the first init. A `crash` in it ends the process that it finds running |
//! | `MUSTER_FAKE_NVML_NODE` | node name, which decides UUIDs; `node-0` when absent |
//! | `MUSTER_FAKE_NVML_NOT_SUPPORTED` | names of functions that answer "not supported", by comma |
//! | `MUSTER_FAKE_NVML_MISSING` | names of functions that answer "function not found", by comma |
//! | `MUSTER_FAKE_NVML_FAILING_FILE` | file with functions that fail, one a line: name and NVML code; read at each call, so it can change |
//! | `MUSTER_FAKE_NVML_STARTED_FILE` | file with the beginning of the scenario's time, ms since the Unix epoch; written where there is none, so that later processes go on in the same time |
//! | `MUSTER_FAKE_NVML_INIT_ERROR` | NVML code that init answers, e.g. 9 (driver not loaded) or 18 (version mismatch) |
//!
//! A GPU handle is its index at the beginning plus one; a slice's handle carries the GPU and the slice's position.
//! Pointers of callers are trusted as NVML trusts them, null pointers are refused.
#![allow(
    unsafe_code,
    non_snake_case,
    clippy::missing_safety_doc,
    clippy::not_unsafe_ptr_arg_deref
)]

mod device;
mod events;
mod system;
mod topology;
mod world;

use std::os::raw::c_char;

/// Writes `text` as a C string into a buffer of `length` bytes.
///
/// # Safety
/// `buffer` points to at least `length` writable bytes, or is null.
pub(crate) unsafe fn write_text(
    text: &str,
    buffer: *mut c_char,
    length: u32,
) -> Result<(), world::Code> {
    let length = length as usize;
    if buffer.is_null() {
        return Err(world::INVALID_ARGUMENT);
    }
    if text.len() >= length {
        return Err(world::INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller gives `length` bytes, and the text with its zero is not longer.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, text.len());
        *buffer.add(text.len()) = 0;
    }
    Ok(())
}

/// Writes through a caller's pointer.
///
/// # Safety
/// `target` points to a writable `T`, or is null.
pub(crate) unsafe fn put<T>(target: *mut T, value: T) -> Result<(), world::Code> {
    if target.is_null() {
        return Err(world::INVALID_ARGUMENT);
    }
    // SAFETY: not null, and writable by the caller's promise.
    unsafe { target.write(value) };
    Ok(())
}
