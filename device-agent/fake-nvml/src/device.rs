//! Facts and state of GPUs and MIG slices.

use std::os::raw::{c_char, c_int, c_uint, c_ulonglong};

use muster_agent::profile::parse_pci;
use nvml_wrapper_sys::bindings as sys;

use crate::topology::fill;
use crate::world::{
    Code, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, VERSION_MISMATCH, World,
    gpu_handle, on_gpu, on_slice, slice_handle, slice_of,
};
use crate::{put, write_text};

const MIB: u64 = 1 << 20;
const LEAK_PID: c_uint = 424_242;
const LEAK_BYTES: u64 = 4 << 30;
/// Field id of the recovery action.
const FIELD_RECOVERY_ACTION: c_uint = 230;

/// A function that writes one value about a GPU.
macro_rules! getters {
    ($($name:ident: $kind:ty = |$device:ident, $world:ident, $gpu:ident, $index:ident| $value:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($device: sys::nvmlDevice_t, value: *mut $kind) -> Code {
            on_gpu(stringify!($name), $device, |$world, $gpu, $index| {
                let found: Result<$kind, Code> = $value;
                // SAFETY: writable by the caller's promise, or null.
                unsafe { put(value, found?) }
            })
        }
    )*};
}

fn number(index: usize) -> Result<c_uint, Code> {
    c_uint::try_from(index).map_err(|_| INVALID_ARGUMENT)
}

getters! {
    nvmlDeviceGetIndex: c_uint = |device, _w, _g, index| number(index);
    nvmlDeviceGetMinorNumber: c_uint = |device, _w, _g, index| number(index);
    nvmlDeviceGetBrand: sys::nvmlBrandType_t = |device, _w, _g, _i| Ok(14);
    nvmlDeviceGetComputeMode: sys::nvmlComputeMode_t = |device, _w, _g, _i| Ok(0);
    nvmlDeviceGetPersistenceMode: sys::nvmlEnableState_t = |device, _w, _g, _i| Ok(1);
    nvmlDeviceGetPowerUsage: c_uint = |device, world, _g, _i| Ok(world.node.shape.gpu.power_limit_w * 100);
    nvmlDeviceGetEnforcedPowerLimit: c_uint = |device, world, _g, _i| Ok(world.node.shape.gpu.power_limit_w * 1000);
    nvmlDeviceGetPowerManagementDefaultLimit: c_uint = |device, world, _g, _i| Ok(world.node.shape.gpu.power_limit_w * 1000);
    nvmlDeviceGetMaxPcieLinkGeneration: c_uint = |device, world, _g, _i| Ok(world.node.shape.gpu.pcie_generation);
    nvmlDeviceGetCurrPcieLinkGeneration: c_uint = |device, world, _g, _i| Ok(world.node.shape.gpu.pcie_generation);
    nvmlDeviceGetMaxPcieLinkWidth: c_uint = |device, _w, _g, _i| Ok(16);
    nvmlDeviceGetCurrPcieLinkWidth: c_uint = |device, _w, _g, _i| Ok(16);
    nvmlDeviceGetCurrentClocksThrottleReasons: c_ulonglong = |device, _w, _g, _i| Ok(0);
    nvmlDeviceGetRetiredPagesPendingStatus: sys::nvmlEnableState_t = |device, _w, _g, _i| Err(NOT_SUPPORTED);
    nvmlDeviceGetMaxMigDeviceCount: c_uint = |device, world, _g, _i| if world.node.shape.gpu.mig_capable { Ok(7) } else { Err(NOT_SUPPORTED) };
    nvmlDeviceIsMigDeviceHandle: c_uint = |device, _w, gpu, _i| Ok(c_uint::from(slice_of(gpu, device).is_some()));
    nvmlDeviceGetArchitecture: sys::nvmlDeviceArchitecture_t = |device, world, _g, _i| Ok(match world.node.shape.gpu.compute {
        (7, 5) => 6, (7, _) => 5, (8, 9) => 8, (8, _) => 7, (9, _) => 9, (10, _) => 10, _ => c_uint::MAX,
    });
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle: sys::nvmlDevice_t = |device, _w, gpu, index| {
        slice_of(gpu, device).map(|_| gpu_handle(index)).ok_or(INVALID_ARGUMENT)
    };
    nvmlDeviceGetUtilizationRates: sys::nvmlUtilization_t = |device, _w, gpu, _i| {
        // Not available with MIG on.
        if gpu.slices.is_empty() { Ok(sys::nvmlUtilization_t { gpu: 0, memory: 0 }) } else { Err(NOT_SUPPORTED) }
    };
    nvmlDeviceGetBAR1MemoryInfo: sys::nvmlBAR1Memory_t = |device, world, _g, _i| {
        let total = world.node.shape.gpu.memory_total_mib.next_power_of_two() * MIB;
        Ok(sys::nvmlBAR1Memory_t { bar1Total: total, bar1Free: total, bar1Used: 0 })
    };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: sys::nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetUUID", device, |_, gpu, _| {
        let text = slice_of(gpu, device).map_or(&gpu.uuid, |slice| &slice.uuid);
        unsafe { write_text(text, uuid, length) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: sys::nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetName", device, |world, gpu, _| {
        let product = &world.node.shape.gpu.product;
        match slice_of(gpu, device) {
            Some(slice) => unsafe {
                write_text(&format!("{product} MIG {}", slice.profile), name, length)
            },
            None => unsafe { write_text(product, name, length) },
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSerial(
    device: sys::nvmlDevice_t,
    serial: *mut c_char,
    length: c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetSerial", device, |_, gpu, _| unsafe {
        write_text(&gpu.serial, serial, length)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: sys::nvmlDevice_t,
    pci: *mut sys::nvmlPciInfo_t,
) -> Code {
    on_gpu("nvmlDeviceGetPciInfo_v3", device, |world, _, index| {
        let shape = &world.node.shape;
        let address = shape.pci_addresses.get(index).ok_or(INVALID_ARGUMENT)?;
        let (domain, bus, slot, _) = parse_pci(address).ok_or(INVALID_ARGUMENT)?;
        let id = u32::from_str_radix(&shape.gpu.pci_device_id, 16).map_err(|_| INVALID_ARGUMENT)?;
        // SAFETY: plain integers, for which zero is a value.
        let mut info: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        (info.domain, info.bus, info.device) = (domain, bus, slot);
        info.pciDeviceId = (id << 16) | 0x10de;
        info.pciSubSystemId = 0x16c1_10de;
        fill(
            &format!("{domain:04X}:{bus:02X}:{slot:02X}.0"),
            &mut info.busIdLegacy,
        );
        fill(
            &format!("{domain:08X}:{bus:02X}:{slot:02X}.0"),
            &mut info.busId,
        );
        unsafe { put(pci, info) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: sys::nvmlDevice_t,
    memory: *mut sys::nvmlMemory_v2_t,
) -> Code {
    on_gpu("nvmlDeviceGetMemoryInfo_v2", device, |world, gpu, _| {
        if memory.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null.
        let version = unsafe { (*memory).version };
        if version != u32::try_from(size_of::<sys::nvmlMemory_v2_t>()).unwrap_or(0) | (2 << 24) {
            return Err(VERSION_MISMATCH);
        }
        let model = &world.node.shape.gpu;
        let first = gpu.slices.first().map(|slice| &slice.uuid);
        let (total, reserved, leaking) = match slice_of(gpu, device) {
            Some(slice) => (
                u64::from(slice.size.memory_gb) * 1_000_000_000,
                0,
                gpu.leaking && first == Some(&slice.uuid),
            ),
            None => (
                model.memory_total_mib * MIB,
                model.memory_reserved_mib * MIB,
                gpu.leaking,
            ),
        };
        let used = if leaking { LEAK_BYTES } else { 0 };
        let free = total.saturating_sub(reserved).saturating_sub(used);
        unsafe {
            put(
                memory,
                sys::nvmlMemory_v2_t {
                    version,
                    total,
                    reserved,
                    free,
                    used,
                },
            )
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: sys::nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> Code {
    on_gpu(
        "nvmlDeviceGetCudaComputeCapability",
        device,
        |world, _, _| {
            let (high, low) = world.node.shape.gpu.compute;
            unsafe {
                put(major, c_int::try_from(high).unwrap_or(0))?;
                put(minor, c_int::try_from(low).unwrap_or(0))
            }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: sys::nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetMigMode", device, |world, gpu, _| {
        if !world.node.shape.gpu.mig_capable {
            return Err(NOT_SUPPORTED);
        }
        let on = c_uint::from(!gpu.slices.is_empty());
        unsafe {
            put(current, on)?;
            put(pending, on)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: sys::nvmlDevice_t,
    position: c_uint,
    slice: *mut sys::nvmlDevice_t,
) -> Code {
    on_gpu(
        "nvmlDeviceGetMigDeviceHandleByIndex",
        device,
        |_, gpu, index| {
            gpu.slices.get(position as usize).ok_or(NOT_FOUND)?;
            unsafe { put(slice, slice_handle(index, position as usize)) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(
    device: sys::nvmlDevice_t,
    id: *mut c_uint,
) -> Code {
    on_slice("nvmlDeviceGetGpuInstanceId", device, |_, slice| unsafe {
        put(id, slice.gpu_instance)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(
    device: sys::nvmlDevice_t,
    id: *mut c_uint,
) -> Code {
    on_slice(
        "nvmlDeviceGetComputeInstanceId",
        device,
        |_, slice| unsafe { put(id, slice.compute_instance) },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: sys::nvmlDevice_t,
    attributes: *mut sys::nvmlDeviceAttributes_t,
) -> Code {
    on_slice("nvmlDeviceGetAttributes_v2", device, |_, slice| {
        let value = sys::nvmlDeviceAttributes_t {
            multiprocessorCount: slice.size.slices * 14,
            sharedCopyEngineCount: slice.size.slices,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: slice.size.slices,
            computeInstanceSliceCount: slice.size.slices,
            memorySizeMB: u64::from(slice.size.memory_gb) * 1000,
        };
        unsafe { put(attributes, value) }
    })
}

/// Slice counts of the GPU instance profiles 0 to 4 (1, 2, 3, 4, 7 slices).
fn profile_slices(world: &World, profile: c_uint) -> Result<u32, Code> {
    if !world.node.shape.gpu.mig_capable {
        return Err(NOT_SUPPORTED);
    }
    [1, 2, 3, 4, 7]
        .get(profile as usize)
        .copied()
        .ok_or(NOT_SUPPORTED)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: sys::nvmlDevice_t,
    profile: c_uint,
    info: *mut sys::nvmlGpuInstanceProfileInfo_t,
) -> Code {
    on_gpu(
        "nvmlDeviceGetGpuInstanceProfileInfo",
        device,
        |world, _, _| {
            let slices = profile_slices(world, profile)?;
            let value = sys::nvmlGpuInstanceProfileInfo_t {
                id: profile,
                isP2pSupported: 0,
                sliceCount: slices,
                instanceCount: 7 / slices,
                multiprocessorCount: slices * 14,
                copyEngineCount: slices,
                decoderCount: 0,
                encoderCount: 0,
                jpegCount: 0,
                ofaCount: 0,
                memorySizeMB: world.node.shape.gpu.memory_total_mib * u64::from(slices) / 8,
            };
            unsafe { put(info, value) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
    device: sys::nvmlDevice_t,
    profile: c_uint,
    placements: *mut sys::nvmlGpuInstancePlacement_t,
    count: *mut c_uint,
) -> Code {
    on_gpu(
        "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
        device,
        |world, _, _| {
            let size = profile_slices(world, profile)?;
            let starts: Vec<u32> = (0..=(7 - size)).step_by(size as usize).collect();
            if count.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            if !placements.is_null() {
                // SAFETY: the caller says how many entries there are.
                if (unsafe { *count } as usize) < starts.len() {
                    return Err(INSUFFICIENT_SIZE);
                }
                for (position, start) in starts.iter().enumerate() {
                    // SAFETY: within the caller's array, just checked.
                    unsafe {
                        placements
                            .add(position)
                            .write(sys::nvmlGpuInstancePlacement_t {
                                start: *start,
                                size,
                            })
                    };
                }
            }
            unsafe { put(count, number(starts.len())?) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceRemainingCapacity(
    device: sys::nvmlDevice_t,
    profile: c_uint,
    count: *mut c_uint,
) -> Code {
    on_gpu(
        "nvmlDeviceGetGpuInstanceRemainingCapacity",
        device,
        |world, gpu, _| {
            let size = profile_slices(world, profile)?;
            let used: u32 = gpu.slices.iter().map(|slice| slice.size.slices).sum();
            unsafe { put(count, 7_u32.saturating_sub(used) / size) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEccMode(
    device: sys::nvmlDevice_t,
    current: *mut sys::nvmlEnableState_t,
    pending: *mut sys::nvmlEnableState_t,
) -> Code {
    on_gpu("nvmlDeviceGetEccMode", device, |world, _, _| {
        let on = sys::nvmlEnableState_t::from(world.node.shape.gpu.ecc);
        unsafe {
            put(current, on)?;
            put(pending, on)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: sys::nvmlDevice_t,
    _error: sys::nvmlMemoryErrorType_t,
    _counter: sys::nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> Code {
    on_gpu("nvmlDeviceGetTotalEccErrors", device, |_, _, _| unsafe {
        put(count, 0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetRemappedRows(
    device: sys::nvmlDevice_t,
    corrected: *mut c_uint,
    uncorrected: *mut c_uint,
    pending: *mut c_uint,
    failure: *mut c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetRemappedRows", device, |world, gpu, _| {
        world
            .node
            .shape
            .gpu
            .row_remapper_banks
            .ok_or(NOT_SUPPORTED)?;
        if !gpu.slices.is_empty() {
            // Hardware does not tell while there are GPU instances.
            return Err(NOT_SUPPORTED);
        }
        unsafe {
            put(corrected, 0)?;
            put(uncorrected, c_uint::from(gpu.remap_pending))?;
            put(pending, c_uint::from(gpu.remap_pending))?;
            put(failure, c_uint::from(gpu.remap_failure))
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRetiredPages(
    device: sys::nvmlDevice_t,
    _cause: sys::nvmlPageRetirementCause_t,
    _count: *mut c_uint,
    _addresses: *mut c_ulonglong,
) -> Code {
    // Replaced by row remapping on every product of the profiles.
    on_gpu("nvmlDeviceGetRetiredPages", device, |_, _, _| {
        Err(NOT_SUPPORTED)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRetiredPages_v2(
    device: sys::nvmlDevice_t,
    _cause: sys::nvmlPageRetirementCause_t,
    _count: *mut c_uint,
    _addresses: *mut c_ulonglong,
    _times: *mut c_ulonglong,
) -> Code {
    on_gpu("nvmlDeviceGetRetiredPages_v2", device, |_, _, _| {
        Err(NOT_SUPPORTED)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSramEccErrorStatus(
    device: sys::nvmlDevice_t,
    status: *mut sys::nvmlEccSramErrorStatus_t,
) -> Code {
    on_gpu("nvmlDeviceGetSramEccErrorStatus", device, |_, gpu, _| {
        if status.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        if !gpu.slices.is_empty() {
            return Err(NOT_SUPPORTED);
        }
        // SAFETY: not null, plain integers.
        let version = unsafe { (*status).version };
        if version
            != u32::try_from(size_of::<sys::nvmlEccSramErrorStatus_t>()).unwrap_or(0) | (1 << 24)
        {
            return Err(VERSION_MISMATCH);
        }
        // SAFETY: plain integers, for which zero is a value.
        let mut value: sys::nvmlEccSramErrorStatus_t = unsafe { std::mem::zeroed() };
        value.version = version;
        unsafe { put(status, value) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: sys::nvmlDevice_t,
    count: c_int,
    values: *mut sys::nvmlFieldValue_t,
) -> Code {
    on_gpu("nvmlDeviceGetFieldValues", device, |_, gpu, _| {
        if values.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        for position in 0..usize::try_from(count).map_err(|_| INVALID_ARGUMENT)? {
            // SAFETY: the caller gives `count` structures.
            let field = unsafe { &mut *values.add(position) };
            field.timestamp = 0;
            if field.fieldId == FIELD_RECOVERY_ACTION {
                let action = i32::from(gpu.action).saturating_sub(1);
                field.nvmlReturn = 0;
                field.valueType = 1;
                field.value.uiVal = u32::try_from(action).unwrap_or(0);
            } else {
                field.nvmlReturn = NOT_SUPPORTED;
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: sys::nvmlDevice_t,
    _sensor: sys::nvmlTemperatureSensors_t,
    value: *mut c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetTemperature", device, |_, _, _| unsafe {
        put(value, 34)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: sys::nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut sys::nvmlProcessInfo_t,
) -> Code {
    on_gpu(
        "nvmlDeviceGetComputeRunningProcesses_v3",
        device,
        |_, gpu, _| {
            if count.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            if !gpu.leaking {
                return unsafe { put(count, 0) };
            }
            // SAFETY: not null.
            let room = unsafe { *count };
            unsafe { put(count, 1)? };
            if room == 0 || infos.is_null() {
                return Err(INSUFFICIENT_SIZE);
            }
            let slice = gpu.slices.first();
            let info = sys::nvmlProcessInfo_t {
                pid: LEAK_PID,
                usedGpuMemory: LEAK_BYTES,
                gpuInstanceId: slice.map_or(c_uint::MAX, |slice| slice.gpu_instance),
                computeInstanceId: slice.map_or(c_uint::MAX, |slice| slice.compute_instance),
            };
            unsafe { put(infos, info) }
        },
    )
}
