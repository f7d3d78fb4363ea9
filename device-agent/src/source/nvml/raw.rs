//! Calls that nvml-wrapper lacks or gets wrong, through the raw bindings.
//!
//! Every symbol is looked up through its field and may be missing: then the call is
//! `FailedToLoadSymbol`, never a panic. (The bindings' methods would panic.)
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::mem::size_of;
use std::os::raw::c_uint;
use std::time::Duration;

use muster_proto::inventory::{Fabric, Platform};
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;

use crate::hash::format_uuid;
use crate::model::{DeviceEvent, DeviceEventKind, FabricHealth, FabricReading};

/// Field id of the GPU recovery action.
const FIELD_RECOVERY_ACTION: c_uint = 230;
/// "No instance" in an event.
const NO_INSTANCE: c_uint = u32::MAX;

fn versioned<T>(version: u32) -> c_uint {
    u32::try_from(size_of::<T>()).unwrap_or(0) | (version << 24)
}

fn handle(device: &Device<'_>) -> sys::nvmlDevice_t {
    // SAFETY: the handle is used only while `device`, and so the library, lives.
    unsafe { device.handle() }
}

/// GPU instance and compute instance of a MIG slice.
pub fn instance_ids(nvml: &Nvml, slice: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let gpu = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let compute = nvml_sym(nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref())?;
    let (mut gpu_id, mut compute_id) = (0, 0);
    // SAFETY: a live handle, and pointers to two integers that outlive the calls.
    unsafe {
        nvml_try(gpu(handle(slice), &mut gpu_id))?;
        nvml_try(compute(handle(slice), &mut compute_id))?;
    }
    Ok((gpu_id, compute_id))
}

/// Remapped rows: corrected, uncorrected, pending, failure.
pub fn remapped_rows(
    nvml: &Nvml,
    device: &Device<'_>,
) -> Result<(u32, u32, bool, bool), NvmlError> {
    let symbol = nvml_sym(nvml.lib().nvmlDeviceGetRemappedRows.as_ref())?;
    let (mut corrected, mut uncorrected, mut pending, mut failure) = (0, 0, 0, 0);
    // SAFETY: a live handle, and pointers to four integers that outlive the call.
    unsafe {
        nvml_try(symbol(
            handle(device),
            &mut corrected,
            &mut uncorrected,
            &mut pending,
            &mut failure,
        ))?
    };
    Ok((corrected, uncorrected, pending != 0, failure != 0))
}

/// Whether SRAM errors are over the threshold.
pub fn sram_threshold_exceeded(nvml: &Nvml, device: &Device<'_>) -> Result<bool, NvmlError> {
    let symbol = nvml_sym(nvml.lib().nvmlDeviceGetSramEccErrorStatus.as_ref())?;
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut status: sys::nvmlEccSramErrorStatus_t = unsafe { std::mem::zeroed() };
    status.version = versioned::<sys::nvmlEccSramErrorStatus_t>(1);
    // SAFETY: a live handle, and a structure whose size and version are written in it.
    unsafe { nvml_try(symbol(handle(device), &mut status))? };
    Ok(status.bThresholdExceeded != 0)
}

/// The recovery action as the wire's enum value: the driver's number plus one, unknown ones included.
pub fn recovery_action(nvml: &Nvml, device: &Device<'_>) -> Result<i32, NvmlError> {
    let symbol = nvml_sym(nvml.lib().nvmlDeviceGetFieldValues.as_ref())?;
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut field: sys::nvmlFieldValue_t = unsafe { std::mem::zeroed() };
    field.fieldId = FIELD_RECOVERY_ACTION;
    // SAFETY: a live handle, and an array of one structure.
    unsafe { nvml_try(symbol(handle(device), 1, &mut field))? };
    nvml_try(field.nvmlReturn)?;
    // SAFETY: every bit pattern is a valid unsigned integer.
    let action = unsafe { field.value.uiVal };
    Ok(i32::try_from(action).unwrap_or(i32::MAX).saturating_add(1))
}

/// Module number on the baseboard.
pub fn module_id(nvml: &Nvml, device: &Device<'_>) -> Result<u32, NvmlError> {
    let symbol = nvml_sym(nvml.lib().nvmlDeviceGetModuleId.as_ref())?;
    let mut id = 0;
    // SAFETY: a live handle, and a pointer to an integer that outlives the call.
    unsafe { nvml_try(symbol(handle(device), &mut id))? };
    Ok(id)
}

/// Place in the rack. Boards that are in none answer, too, with a blank chassis: that is no place.
pub fn platform(nvml: &Nvml, device: &Device<'_>) -> Result<Platform, NvmlError> {
    let symbol = nvml_sym(nvml.lib().nvmlDeviceGetPlatformInfo.as_ref())?;
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut info: sys::nvmlPlatformInfo_t = unsafe { std::mem::zeroed() };
    info.version = versioned::<sys::nvmlPlatformInfo_t>(2);
    // SAFETY: a live handle, and a structure whose size and version are written in it.
    unsafe { nvml_try(symbol(handle(device), &mut info))? };
    let is_blank = info.chassisSerialNumber.iter().all(|byte| *byte == 0);
    if is_blank && info.slotNumber == 0 && info.trayIndex == 0 {
        return Err(NvmlError::NotSupported);
    }
    let serial = info
        .chassisSerialNumber
        .iter()
        .take_while(|byte| **byte != 0);
    Ok(Platform {
        chassis_serial: serial
            .map(|byte| char::from(*byte))
            .filter(|c| !c.is_control())
            .collect(),
        slot: info.slotNumber.into(),
        tray: info.trayIndex.into(),
        host_id: info.hostId.into(),
        module_id: info.moduleId.into(),
    })
}

/// Registration with the NVLink fabric: structure version 3, else 2, else the first call.
pub fn fabric(nvml: &Nvml, device: &Device<'_>) -> Result<FabricReading, NvmlError> {
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut info: sys::nvmlGpuFabricInfoV_t = unsafe { std::mem::zeroed() };
    let newest = match nvml_sym(nvml.lib().nvmlDeviceGetGpuFabricInfoV.as_ref()) {
        Ok(symbol) => {
            let mut call = |version| {
                info.version = version;
                // SAFETY: a live handle. Version 2 is a prefix of version 3, so the structure is large
                // enough for the size that is written in it.
                nvml_try(unsafe { symbol(handle(device), &mut info) })
            };
            call(versioned::<sys::nvmlGpuFabricInfo_v3_t>(3)).or_else(|error| match error {
                NvmlError::NotSupported | NvmlError::GpuLost => Err(error),
                _ => call(versioned::<sys::nvmlGpuFabricInfo_v2_t>(2)),
            })
        }
        Err(error) => Err(error),
    };
    match newest {
        Ok(()) => Ok(judge_fabric(
            info.clusterUuid,
            info.status,
            info.cliqueId,
            info.state,
            info.healthSummary,
        )),
        Err(error @ (NvmlError::NotSupported | NvmlError::GpuLost)) => Err(error),
        Err(_) => {
            let symbol = nvml_sym(nvml.lib().nvmlDeviceGetGpuFabricInfo.as_ref())?;
            // SAFETY: the structure is plain integers, for which zero is a value.
            let mut info: sys::nvmlGpuFabricInfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: a live handle, and the structure this call takes.
            unsafe { nvml_try(symbol(handle(device), &mut info))? };
            Ok(judge_fabric(
                info.clusterUuid,
                info.status,
                info.cliqueId,
                info.state,
                0,
            ))
        }
    }
}

fn judge_fabric(
    cluster: [u8; 16],
    status: u32,
    clique_id: u32,
    state: u8,
    summary: u8,
) -> FabricReading {
    let completed = u32::from(state) == sys::NVML_GPU_FABRIC_STATE_COMPLETED;
    let fabric = Fabric {
        cluster_uuid: format_uuid(&cluster),
        clique_id,
        completed: completed && status == 0,
    };
    match u32::from(state) {
        sys::NVML_GPU_FABRIC_STATE_NOT_SUPPORTED => FabricReading::None,
        _ if completed && status == 0 => {
            let health = match u32::from(summary) {
                sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY => FabricHealth::Healthy,
                sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY => FabricHealth::Unhealthy,
                sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_LIMITED_CAPACITY => {
                    FabricHealth::LimitedCapacity
                }
                _ => FabricHealth::Unknown,
            };
            FabricReading::Completed { fabric, health }
        }
        _ if completed => FabricReading::Failed { fabric, status },
        _ => FabricReading::Pending(fabric),
    }
}

/// What is at the other end of an NVLink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEnd {
    /// The link is down.
    Down,
    /// A switch: the link reaches every GPU behind it.
    Switch,
    /// A device with this PCI address, `domain, bus, device`.
    Device(u32, u32, u32),
}

/// The other end of link number `link`. `InvalidArg` or `NotSupported` when there is no such link.
pub fn link(nvml: &Nvml, device: &Device<'_>, link: u32) -> Result<LinkEnd, NvmlError> {
    let state = nvml_sym(nvml.lib().nvmlDeviceGetNvLinkState.as_ref())?;
    let mut active = 0;
    // SAFETY: a live handle, and a pointer to an integer that outlives the call.
    unsafe { nvml_try(state(handle(device), link, &mut active))? };
    if active != sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED {
        // Off, or asleep (2).
        return Ok(LinkEnd::Down);
    }
    if let Ok(kind) = nvml_sym(nvml.lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref()) {
        let mut found = 0;
        // SAFETY: as above.
        let told = nvml_try(unsafe { kind(handle(device), link, &mut found) });
        if told.is_ok() && found == sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH
        {
            return Ok(LinkEnd::Switch);
        }
    }
    let remote = nvml_sym(nvml.lib().nvmlDeviceGetNvLinkRemotePciInfo_v2.as_ref())?;
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live handle, and the structure this call takes.
    unsafe { nvml_try(remote(handle(device), link, &mut pci))? };
    Ok(LinkEnd::Device(pci.domain, pci.bus, pci.device))
}

/// An event set for all GPUs of the node. Registration of one GPU may fail without harming the others.
pub struct Events<'nvml> {
    nvml: &'nvml Nvml,
    set: Option<sys::nvmlEventSet_t>,
    /// UUIDs by index.
    registered: BTreeMap<u32, String>,
    /// UUIDs by handle: a GPU that has just fallen off the bus cannot be asked for its name any more.
    names: BTreeMap<usize, String>,
}

impl<'nvml> Events<'nvml> {
    /// An empty set. Where the library has no events, waiting is plain sleeping.
    pub fn new(nvml: &'nvml Nvml) -> Self {
        let set = nvml_sym(nvml.lib().nvmlEventSetCreate.as_ref()).and_then(|symbol| {
            let mut set: sys::nvmlEventSet_t = std::ptr::null_mut();
            // SAFETY: a pointer to a handle that outlives the call.
            unsafe { nvml_try(symbol(&mut set))? };
            Ok(set)
        });
        if let Err(error) = &set {
            tracing::warn!(%error, "no device events: faults are seen at the next reading only");
        }
        Self {
            nvml,
            set: set.ok(),
            registered: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    /// Registers the GPUs of these indexes and UUIDs that are not registered yet, and forgets the others.
    pub fn register(&mut self, nvml: &Nvml, reachable: &BTreeMap<u32, String>) {
        self.registered
            .retain(|index, uuid| reachable.get(index) == Some(uuid));
        let Some(set) = self.set else { return };
        for (index, uuid) in reachable {
            if self.registered.contains_key(index) {
                continue;
            }
            let Ok(device) = nvml.device_by_index(*index) else {
                continue;
            };
            self.names.insert(handle(&device).addr(), uuid.clone());
            if let Err(error) = register(nvml, &device, set) {
                tracing::warn!(index, %error, "the driver sends no events for this GPU");
            }
            // Tried once per appearance: what is not supported stays so.
            self.registered.insert(*index, uuid.clone());
        }
    }

    /// Waits for the next event the agent acts on.
    pub fn wait(&self, timeout: Duration) -> Option<DeviceEvent> {
        let symbol = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref());
        let (Some(set), Ok(symbol), false) = (self.set, symbol, self.registered.is_empty()) else {
            std::thread::sleep(timeout);
            return None;
        };
        // SAFETY: the structure is a pointer and integers, for which zero is a value.
        let mut data: sys::nvmlEventData_t = unsafe { std::mem::zeroed() };
        let timeout_ms = u32::try_from(timeout.as_millis())
            .unwrap_or(u32::MAX)
            .max(1);
        // SAFETY: the set lives until drop, and the structure outlives the call.
        match nvml_try(unsafe { symbol(set, &mut data, timeout_ms) }) {
            Ok(()) => self.event(&data),
            Err(NvmlError::Timeout) => None,
            Err(error) => {
                tracing::debug!(%error, "waiting for events failed");
                // A failing wait returns at once: do not spin.
                std::thread::sleep(timeout);
                None
            }
        }
    }

    fn event(&self, data: &sys::nvmlEventData_t) -> Option<DeviceEvent> {
        let kind = u32::try_from(data.eventType).unwrap_or(0);
        let kind = match kind {
            sys::nvmlEventTypeXidCriticalError => DeviceEventKind::Xid(data.eventData),
            sys::nvmlEventTypeDoubleBitEccError => DeviceEventKind::DoubleBitEcc,
            sys::nvmlEventTypeGpuUnavailableError => DeviceEventKind::Unavailable,
            sys::nvmlEventTypeGpuRecoveryAction => DeviceEventKind::RecoveryActionChanged,
            _ => return None,
        };
        let gpu_uuid = if data.device.is_null() {
            None
        } else {
            self.names.get(&data.device.addr()).cloned().or_else(|| {
                // SAFETY: the handle was just given by the library that `self.nvml` keeps open.
                unsafe { Device::new(data.device, self.nvml) }.uuid().ok()
            })
        };
        let instance = (data.gpuInstanceId != NO_INSTANCE && data.computeInstanceId != NO_INSTANCE)
            .then_some((data.gpuInstanceId, data.computeInstanceId));
        Some(DeviceEvent {
            gpu_uuid,
            instance,
            kind,
        })
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        if let (Some(set), Ok(symbol)) = (
            self.set,
            nvml_sym(self.nvml.lib().nvmlEventSetFree.as_ref()),
        ) {
            // SAFETY: the set was made by this library and is not used afterwards.
            let freed = nvml_try(unsafe { symbol(set) });
            if let Err(error) = freed {
                tracing::debug!(%error, "an event set could not be freed");
            }
        }
    }
}

fn register(nvml: &Nvml, device: &Device<'_>, set: sys::nvmlEventSet_t) -> Result<(), NvmlError> {
    let wanted = u64::from(
        sys::nvmlEventTypeXidCriticalError
            | sys::nvmlEventTypeDoubleBitEccError
            | sys::nvmlEventTypeGpuUnavailableError
            | sys::nvmlEventTypeGpuRecoveryAction,
    );
    let supported_types = nvml_sym(nvml.lib().nvmlDeviceGetSupportedEventTypes.as_ref())?;
    let mut supported = 0;
    // SAFETY: a live handle, and a pointer to an integer that outlives the call.
    unsafe { nvml_try(supported_types(handle(device), &mut supported))? };
    let symbol = nvml_sym(nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
    // SAFETY: a live handle and a live set.
    unsafe { nvml_try(symbol(handle(device), wanted & supported, set)) }
}
