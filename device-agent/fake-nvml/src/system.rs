//! Init, versions, and handles.

use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_uint};

use muster_agent::profile::parse_pci;
use nvml_wrapper_sys::bindings as sys;

use crate::world::{
    Code, INVALID_ARGUMENT, NOT_FOUND, World, call, gpu_handle, init, shutdown, slice_handle,
};
use crate::{put, write_text};

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Code {
    init()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    init()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Code {
    shutdown()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: Code) -> *const c_char {
    let text = match result {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        6 => c"Not Found",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        15 => c"GPU is lost",
        18 => c"Driver/library version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetDriverVersion", |world| unsafe {
        write_text(&world.node.driver_version, version, length)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetNVMLVersion", |world| unsafe {
        write_text(&world.node.shape.nvml_version, version, length)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> Code {
    call("nvmlSystemGetCudaDriverVersion_v2", |world| {
        let number =
            c_int::try_from(world.node.shape.cuda_version).map_err(|_| INVALID_ARGUMENT)?;
        unsafe { put(version, number) }
    })
}

/// The GPUs that the driver counts, in order: their places among all.
fn counted(world: &World) -> impl Iterator<Item = usize> {
    let gpus = world.node.gpus.iter().enumerate();
    gpus.filter(|(_, gpu)| !gpu.uncounted)
        .map(|(place, _)| place)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Code {
    call("nvmlDeviceGetCount_v2", |world| {
        let counted = c_uint::try_from(counted(world).count()).map_err(|_| INVALID_ARGUMENT)?;
        unsafe { put(count, counted) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut sys::nvmlDevice_t,
) -> Code {
    call("nvmlDeviceGetHandleByIndex_v2", |world| {
        let gpu = counted(world).nth(index as usize).ok_or(INVALID_ARGUMENT)?;
        unsafe { put(device, gpu_handle(gpu)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut sys::nvmlDevice_t,
) -> Code {
    if uuid.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: a C string by the caller's promise.
    let wanted = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    call("nvmlDeviceGetHandleByUUID", |world| {
        let found = world.node.gpus.iter().enumerate().find_map(|(index, gpu)| {
            let slice = gpu.slices.iter().position(|slice| slice.uuid == wanted);
            let slice = slice.map(|slice| slice_handle(index, slice));
            slice.or_else(|| (gpu.uuid == wanted).then(|| gpu_handle(index)))
        });
        unsafe { put(device, found.ok_or(NOT_FOUND)?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    bus_id: *const c_char,
    device: *mut sys::nvmlDevice_t,
) -> Code {
    if bus_id.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: a C string by the caller's promise.
    let wanted = parse_pci(&unsafe { CStr::from_ptr(bus_id) }.to_string_lossy());
    call("nvmlDeviceGetHandleByPciBusId_v2", |world| {
        let wanted = wanted.ok_or(INVALID_ARGUMENT)?;
        let found = world
            .node
            .shape
            .pci_addresses
            .iter()
            .position(|address| parse_pci(address) == Some(wanted));
        unsafe { put(device, gpu_handle(found.ok_or(NOT_FOUND)?)) }
    })
}
