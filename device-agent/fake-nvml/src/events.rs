//! Event sets.

use std::os::raw::{c_uint, c_ulonglong};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings as sys;

use crate::put;
use crate::world::{Code, EventSet, INVALID_ARGUMENT, Queued, TIMEOUT, call, gpu_handle, on_gpu};

/// Time between two looks for an event. The driver's library sleeps until there is one; looking more often than this shows
/// in what an agent is measured to cost.
const LOOK: Duration = Duration::from_millis(20);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut sys::nvmlEventSet_t) -> Code {
    call("nvmlEventSetCreate", |world| {
        let id = world.next_set;
        world.next_set += 1;
        world.sets.insert(id, EventSet::default());
        unsafe { put(set, std::ptr::without_provenance_mut(id)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: sys::nvmlEventSet_t) -> Code {
    call("nvmlEventSetFree", |world| {
        world
            .sets
            .remove(&set.addr())
            .map(drop)
            .ok_or(INVALID_ARGUMENT)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: sys::nvmlDevice_t,
    types: *mut c_ulonglong,
) -> Code {
    on_gpu(
        "nvmlDeviceGetSupportedEventTypes",
        device,
        |_, _, _| unsafe { put(types, c_ulonglong::from(sys::nvmlEventTypeAll)) },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: sys::nvmlDevice_t,
    _types: c_ulonglong,
    set: sys::nvmlEventSet_t,
) -> Code {
    let mut index = None;
    let found = on_gpu("nvmlDeviceRegisterEvents", device, |_, _, at| {
        index = Some(at);
        Ok(())
    });
    if found != 0 {
        return found;
    }
    call("nvmlDeviceRegisterEvents", |world| {
        let set = world.sets.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?;
        set.gpus.extend(index);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: sys::nvmlEventSet_t,
    data: *mut sys::nvmlEventData_t,
    timeout_ms: c_uint,
) -> Code {
    let end = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    loop {
        let mut found: Option<Queued> = None;
        let code = call("nvmlEventSetWait_v2", |world| {
            found = world
                .sets
                .get_mut(&set.addr())
                .ok_or(INVALID_ARGUMENT)?
                .queue
                .pop_front();
            Ok(())
        });
        if code != 0 {
            return code;
        }
        if let Some((index, kind, value)) = found {
            let event = sys::nvmlEventData_t {
                device: gpu_handle(index),
                eventType: kind,
                eventData: value,
                gpuInstanceId: c_uint::MAX,
                computeInstanceId: c_uint::MAX,
            };
            // SAFETY: writable by the caller's promise, or null.
            return unsafe { put(data, event) }.err().unwrap_or(0);
        }
        if Instant::now() >= end {
            return TIMEOUT;
        }
        std::thread::sleep(LOOK);
    }
}
