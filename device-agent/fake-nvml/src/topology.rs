//! NVLink, PCIe distance, CPU affinity, fabric, and the place in the rack.

use std::os::raw::{c_char, c_uint, c_ulong};

use muster_agent::profile::FabricStateName;
use muster_proto::inventory::PcieAncestor;
use nvml_wrapper_sys::bindings as sys;

use crate::put;
use crate::world::{Code, INVALID_ARGUMENT, NOT_SUPPORTED, VERSION_MISMATCH, World, call, on_gpu};

fn links(world: &World, link: c_uint) -> Result<&muster_agent::profile::NvLink, Code> {
    let nvlink = world.node.shape.nvlink.as_ref().ok_or(NOT_SUPPORTED)?;
    if link < nvlink.links {
        Ok(nvlink)
    } else {
        Err(INVALID_ARGUMENT)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device: sys::nvmlDevice_t,
    link: c_uint,
    active: *mut sys::nvmlEnableState_t,
) -> Code {
    on_gpu("nvmlDeviceGetNvLinkState", device, |world, _, _| {
        links(world, link)?;
        unsafe { put(active, 1) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkVersion(
    device: sys::nvmlDevice_t,
    link: c_uint,
    version: *mut c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetNvLinkVersion", device, |world, _, _| unsafe {
        put(version, links(world, link)?.version_code)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkCapability(
    device: sys::nvmlDevice_t,
    link: c_uint,
    _capability: sys::nvmlNvLinkCapability_t,
    result: *mut c_uint,
) -> Code {
    on_gpu("nvmlDeviceGetNvLinkCapability", device, |world, _, _| {
        links(world, link)?;
        unsafe { put(result, 1) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemoteDeviceType(
    device: sys::nvmlDevice_t,
    link: c_uint,
    kind: *mut sys::nvmlIntNvLinkDeviceType_t,
) -> Code {
    on_gpu(
        "nvmlDeviceGetNvLinkRemoteDeviceType",
        device,
        |world, _, _| {
            links(world, link)?;
            unsafe {
                put(
                    kind,
                    sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH,
                )
            }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: sys::nvmlDevice_t,
    link: c_uint,
    pci: *mut sys::nvmlPciInfo_t,
) -> Code {
    on_gpu(
        "nvmlDeviceGetNvLinkRemotePciInfo_v2",
        device,
        |world, _, _| {
            links(world, link)?;
            // SAFETY: plain integers, for which zero is a value.
            let mut info: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
            // The switches sit on buses of their own.
            info.bus = 0xf0 + link % 4;
            info.pciDeviceId = 0x22a3_10de;
            unsafe { put(pci, info) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    left: sys::nvmlDevice_t,
    right: sys::nvmlDevice_t,
    level: *mut sys::nvmlGpuTopologyLevel_t,
) -> Code {
    let name = "nvmlDeviceGetTopologyCommonAncestor";
    let mut indexes = [0_u32; 2];
    for (device, slot) in [left, right].into_iter().zip(&mut indexes) {
        let code = on_gpu(name, device, |_, _, index| {
            *slot = u32::try_from(index).map_err(|_| INVALID_ARGUMENT)?;
            Ok(())
        });
        if code != 0 {
            return code;
        }
    }
    call(name, |world| {
        let code = match world.node.ancestor(indexes[0], indexes[1]) {
            PcieAncestor::Unspecified => return Err(NOT_SUPPORTED),
            PcieAncestor::Internal => 0,
            PcieAncestor::SingleSwitch => 10,
            PcieAncestor::MultipleSwitches => 20,
            PcieAncestor::HostBridge => 30,
            PcieAncestor::NumaNode => 40,
            PcieAncestor::System => 50,
        };
        unsafe { put(level, code) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetP2PStatus(
    left: sys::nvmlDevice_t,
    right: sys::nvmlDevice_t,
    _capability: sys::nvmlGpuP2PCapsIndex_t,
    status: *mut sys::nvmlGpuP2PStatus_t,
) -> Code {
    let name = "nvmlDeviceGetP2PStatus";
    let code = on_gpu(name, left, |_, _, _| Ok(()));
    if code != 0 {
        return code;
    }
    on_gpu(name, right, |_, _, _| unsafe { put(status, 0) })
}

fn numa(world: &World, index: usize) -> Result<u32, Code> {
    let node = world
        .node
        .shape
        .numa_nodes
        .get(index)
        .ok_or(INVALID_ARGUMENT)?;
    u32::try_from(*node).map_err(|_| NOT_SUPPORTED)
}

/// Sixteen CPUs per NUMA node, in words of the machine.
unsafe fn mask(words: c_uint, set: *mut c_ulong, bits: impl Fn(usize) -> bool) -> Result<(), Code> {
    for word in 0..words as usize {
        let value =
            (0..c_ulong::BITS as usize).filter(|bit| bits(word * c_ulong::BITS as usize + bit));
        let value = value.fold(0, |sum: c_ulong, bit| sum | (1 << bit));
        if set.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: the caller gives `words` words.
        unsafe { set.add(word).write(value) };
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCpuAffinity(
    device: sys::nvmlDevice_t,
    words: c_uint,
    set: *mut c_ulong,
) -> Code {
    on_gpu("nvmlDeviceGetCpuAffinity", device, |world, _, index| {
        let node = numa(world, index)? as usize;
        unsafe { mask(words, set, |bit| bit / 16 == node) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryAffinity(
    device: sys::nvmlDevice_t,
    words: c_uint,
    set: *mut c_ulong,
    _scope: sys::nvmlAffinityScope_t,
) -> Code {
    on_gpu("nvmlDeviceGetMemoryAffinity", device, |world, _, index| {
        let node = numa(world, index)? as usize;
        unsafe { mask(words, set, |bit| bit == node) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNumaNodeId(
    device: sys::nvmlDevice_t,
    _node: *mut c_uint,
) -> Code {
    // Only GPUs that are NUMA nodes themselves have one.
    on_gpu("nvmlDeviceGetNumaNodeId", device, |_, _, _| {
        Err(NOT_SUPPORTED)
    })
}

fn state(world: &World) -> Result<(u32, u8), Code> {
    let fabric = world.node.shape.fabric.as_ref().ok_or(NOT_SUPPORTED)?;
    let state = match fabric.state {
        FabricStateName::NotStarted => sys::NVML_GPU_FABRIC_STATE_NOT_STARTED,
        FabricStateName::InProgress => sys::NVML_GPU_FABRIC_STATE_IN_PROGRESS,
        FabricStateName::Completed => sys::NVML_GPU_FABRIC_STATE_COMPLETED,
    };
    Ok((fabric.clique_id, u8::try_from(state).unwrap_or(0)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuFabricInfo(
    device: sys::nvmlDevice_t,
    info: *mut sys::nvmlGpuFabricInfo_t,
) -> Code {
    on_gpu("nvmlDeviceGetGpuFabricInfo", device, |world, _, _| {
        let (clique, state) = state(world)?;
        let value = sys::nvmlGpuFabricInfo_t {
            clusterUuid: world.node.cluster,
            status: 0,
            cliqueId: clique,
            state,
        };
        unsafe { put(info, value) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuFabricInfoV(
    device: sys::nvmlDevice_t,
    info: *mut sys::nvmlGpuFabricInfoV_t,
) -> Code {
    on_gpu("nvmlDeviceGetGpuFabricInfoV", device, |world, _, _| {
        let (clique, state) = state(world)?;
        if info.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null; the version, which both structures begin with, says which one it is.
        let version = unsafe { (*info).version };
        let size = |size: usize, number: u32| u32::try_from(size).unwrap_or(0) | (number << 24);
        if version == size(size_of::<sys::nvmlGpuFabricInfo_v3_t>(), 3) {
            let value = sys::nvmlGpuFabricInfo_v3_t {
                version,
                clusterUuid: world.node.cluster,
                status: 0,
                cliqueId: clique,
                state,
                healthMask: 0,
                healthSummary: u8::try_from(sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY)
                    .unwrap_or(0),
            };
            return unsafe { put(info, value) };
        }
        if version == size(size_of::<sys::nvmlGpuFabricInfo_v2_t>(), 2) {
            let value = sys::nvmlGpuFabricInfo_v2_t {
                version,
                clusterUuid: world.node.cluster,
                status: 0,
                cliqueId: clique,
                state,
                healthMask: 0,
            };
            return unsafe { put(info.cast(), value) };
        }
        Err(VERSION_MISMATCH)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetModuleId(device: sys::nvmlDevice_t, id: *mut c_uint) -> Code {
    on_gpu("nvmlDeviceGetModuleId", device, |_, _, index| {
        let number = c_uint::try_from(index + 1).map_err(|_| INVALID_ARGUMENT)?;
        unsafe { put(id, number) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPlatformInfo(
    device: sys::nvmlDevice_t,
    info: *mut sys::nvmlPlatformInfo_t,
) -> Code {
    on_gpu("nvmlDeviceGetPlatformInfo", device, |world, _, index| {
        // As driver 580 answers on an H200 that is in no rack: host and module, and a blank chassis.
        let fabric = world.node.shape.fabric.as_ref();
        let in_rack = fabric.is_some_and(|fabric| fabric.platform);
        if info.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and plain integers.
        let mut value = unsafe { *info };
        let wanted =
            u32::try_from(size_of::<sys::nvmlPlatformInfo_v2_t>()).unwrap_or(0) | (2 << 24);
        if value.version != wanted {
            return Err(VERSION_MISMATCH);
        }
        let serial = if in_rack {
            world.node.chassis_serial()
        } else {
            ""
        };
        let serial = serial.bytes().chain(std::iter::repeat(0));
        value
            .chassisSerialNumber
            .iter_mut()
            .zip(serial)
            .for_each(|(slot, byte)| *slot = byte);
        let byte = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
        if in_rack {
            value.slotNumber = byte(world.node.slot());
            value.trayIndex = byte(world.node.tray);
        }
        value.hostId = 1;
        value.moduleId = u8::try_from(index + 1).unwrap_or(u8::MAX);
        unsafe { put(info, value) }
    })
}

/// A C string in a fixed array of a structure.
pub fn fill(text: &str, target: &mut [c_char]) {
    let bytes = text
        .bytes()
        .take(target.len().saturating_sub(1))
        .chain(std::iter::repeat(0));
    target
        .iter_mut()
        .zip(bytes)
        .for_each(|(slot, byte)| *slot = byte as c_char);
}
