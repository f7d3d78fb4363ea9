//! The state behind the functions: one node, its timeline, and the event sets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use muster_agent::fake::{FakeGpu, FakeNode, FakeSlice};
use muster_agent::model::DeviceEventKind;
use muster_agent::profile::Profile;
use muster_agent::scenario::{FaultEvent, Scenario};
use nvml_wrapper_sys::bindings as sys;

/// An NVML return code.
pub type Code = sys::nvmlReturn_t;

pub const UNINITIALIZED: Code = sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;
pub const INVALID_ARGUMENT: Code = sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
pub const NOT_SUPPORTED: Code = sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
pub const NOT_FOUND: Code = sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
pub const INSUFFICIENT_SIZE: Code = sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
pub const TIMEOUT: Code = sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT;
pub const FUNCTION_NOT_FOUND: Code = sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND;
pub const GPU_IS_LOST: Code = sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;
pub const VERSION_MISMATCH: Code = sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
pub const UNKNOWN: Code = sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN;

/// Slices a handle can tell apart per GPU.
const SLICES: usize = 64;
const SLICE_BIT: usize = 1 << 20;
/// Events a set keeps; the oldest goes first.
const EVENTS_MAX: usize = 1024;

/// An event as a set keeps it: GPU index, event type, data.
pub type Queued = (usize, u64, u64);

#[derive(Default)]
pub struct EventSet {
    pub gpus: BTreeSet<usize>,
    pub queue: VecDeque<Queued>,
}

pub struct World {
    pub node: FakeNode,
    start: Instant,
    /// How much of the scenario's time was over when this process began.
    passed: Duration,
    timeline: VecDeque<(Duration, FaultEvent)>,
    not_supported: BTreeSet<String>,
    missing: BTreeSet<String>,
    failing: Option<PathBuf>,
    pub sets: BTreeMap<usize, EventSet>,
    pub next_set: usize,
}

static WORLD: Mutex<(u32, Option<World>)> = Mutex::new((0, None));

fn lock() -> MutexGuard<'static, (u32, Option<World>)> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn names(variable_name: &str) -> BTreeSet<String> {
    variable(variable_name)
        .unwrap_or_default()
        .split(',')
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Makes the world at the first call; counts the others, as NVML does.
pub fn init() -> Code {
    if let Some(code) = variable("MUSTER_FAKE_NVML_INIT_ERROR").and_then(|text| text.parse().ok()) {
        return code;
    }
    let mut guard = lock();
    if guard.1.is_none() {
        match World::from_environment() {
            Ok(world) => guard.1 = Some(world),
            Err(error) => {
                eprintln!("fake nvml: {error}");
                return UNKNOWN;
            }
        }
    }
    guard.0 = guard.0.saturating_add(1);
    0
}

/// Undoes one init. The world stays, so that its time does.
pub fn shutdown() -> Code {
    let mut guard = lock();
    match guard.0.checked_sub(1) {
        Some(count) => {
            guard.0 = count;
            0
        }
        None => UNINITIALIZED,
    }
}

/// Runs `body` for the function `name` on the present state. Does not return while the driver "hangs".
pub fn call(name: &str, body: impl FnOnce(&mut World) -> Result<(), Code>) -> Code {
    loop {
        let mut guard = lock();
        if guard.0 == 0 {
            return UNINITIALIZED;
        }
        let Some(world) = guard.1.as_mut() else {
            return UNINITIALIZED;
        };
        world.advance();
        if world.node.hung {
            drop(guard);
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        if world.missing.contains(name) {
            return FUNCTION_NOT_FOUND;
        }
        if world.not_supported.contains(name) {
            return NOT_SUPPORTED;
        }
        if let Some(code) = world.fails(name) {
            return code;
        }
        return body(world).err().unwrap_or(0);
    }
}

/// Like [`call`], for functions of a GPU; a lost one answers so. A slice's handle means its GPU.
pub fn on_gpu(
    name: &str,
    device: sys::nvmlDevice_t,
    body: impl FnOnce(&World, &FakeGpu, usize) -> Result<(), Code>,
) -> Code {
    call(name, |world| {
        let (index, _) = place(device)?;
        let gpu = world.node.gpus.get(index).ok_or(INVALID_ARGUMENT)?;
        if gpu.lost {
            return Err(GPU_IS_LOST);
        }
        body(world, gpu, index)
    })
}

/// Like [`on_gpu`], for functions of a MIG slice; other handles are refused.
pub fn on_slice(
    name: &str,
    device: sys::nvmlDevice_t,
    body: impl FnOnce(&World, &FakeSlice) -> Result<(), Code>,
) -> Code {
    on_gpu(name, device, |world, gpu, _| {
        body(world, slice_of(gpu, device).ok_or(INVALID_ARGUMENT)?)
    })
}

/// The slice that a handle means, if it means one.
pub fn slice_of(gpu: &FakeGpu, device: sys::nvmlDevice_t) -> Option<&FakeSlice> {
    gpu.slices.get(place(device).ok()?.1?)
}

/// Handle of a GPU.
pub fn gpu_handle(index: usize) -> sys::nvmlDevice_t {
    std::ptr::without_provenance_mut(index + 1)
}

/// Handle of a slice.
pub fn slice_handle(gpu: usize, slice: usize) -> sys::nvmlDevice_t {
    std::ptr::without_provenance_mut(SLICE_BIT + gpu * SLICES + slice + 1)
}

/// GPU index, and position of the slice, of a handle.
fn place(device: sys::nvmlDevice_t) -> Result<(usize, Option<usize>), Code> {
    let value = device.addr().checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    match value.checked_sub(SLICE_BIT) {
        None => Ok((value, None)),
        Some(slice) => Ok((slice / SLICES, Some(slice % SLICES))),
    }
}

/// How long ago the scenario began by what `file` says; it begins now where there is none.
fn passed_since(file: &str) -> Result<Duration, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(|error| error.to_string())?;
    let Ok(text) = std::fs::read_to_string(file) else {
        let text = now.as_millis().to_string();
        std::fs::write(file, text).map_err(|error| format!("{file}: {error}"))?;
        return Ok(Duration::ZERO);
    };
    let began: u64 = text
        .parse()
        .map_err(|error| format!("{file}: {text:?}: {error}"))?;
    Ok(now.saturating_sub(Duration::from_millis(began)))
}

/// Ends the process as a fault in the library would.
fn crash() {
    // SAFETY: none is wanted. A write to the first page is a segmentation fault on every Linux.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
}

impl World {
    fn from_environment() -> Result<Self, String> {
        let profile = variable("MUSTER_FAKE_NVML_PROFILE").unwrap_or_else(|| "h100-8".into());
        let name = variable("MUSTER_FAKE_NVML_NODE").unwrap_or_else(|| "node-0".into());
        let profile = Profile::load(&profile).map_err(|error| error.to_string())?;
        let timeline = match variable("MUSTER_FAKE_NVML_SCENARIO") {
            Some(scenario) => Scenario::load(&scenario)
                .map_err(|error| error.to_string())?
                .for_node(&name),
            None => Vec::new(),
        };
        let passed = match variable("MUSTER_FAKE_NVML_STARTED_FILE") {
            Some(file) => passed_since(&file)?,
            None => Duration::ZERO,
        };
        Ok(Self {
            node: FakeNode::new(profile.shape_for(&name), &name),
            start: Instant::now(),
            passed,
            timeline: timeline.into(),
            not_supported: names("MUSTER_FAKE_NVML_NOT_SUPPORTED"),
            missing: names("MUSTER_FAKE_NVML_MISSING"),
            failing: variable("MUSTER_FAKE_NVML_FAILING_FILE").map(PathBuf::from),
            sets: BTreeMap::new(),
            next_set: 1,
        })
    }

    /// The code with which the file of failing functions has this one fail, at this moment.
    fn fails(&self, name: &str) -> Option<Code> {
        let text = std::fs::read_to_string(self.failing.as_ref()?).ok()?;
        text.lines().find_map(|line| {
            let (function, code) = line.split_once(' ')?;
            (function == name).then_some(code.trim().parse().ok()?)
        })
    }

    /// Applies what is due by now. Events reach the sets that the GPU was registered in before.
    fn advance(&mut self) {
        let elapsed = self.passed + self.start.elapsed();
        while self.timeline.front().is_some_and(|(at, _)| *at <= elapsed) {
            let Some((at, fault)) = self.timeline.pop_front() else {
                break;
            };
            if fault == FaultEvent::Crash && at >= self.passed {
                crash();
            }
            let Some(event) = self.node.apply(&fault) else {
                continue;
            };
            let uuid = event.gpu_uuid.unwrap_or_default();
            let Some(index) = self.node.gpus.iter().position(|gpu| gpu.uuid == uuid) else {
                continue;
            };
            let (kind, data) = match event.kind {
                DeviceEventKind::Xid(code) => (sys::nvmlEventTypeXidCriticalError, code),
                DeviceEventKind::DoubleBitEcc => (sys::nvmlEventTypeDoubleBitEccError, 0),
                DeviceEventKind::Unavailable => (sys::nvmlEventTypeGpuUnavailableError, 0),
                DeviceEventKind::RecoveryActionChanged => (sys::nvmlEventTypeGpuRecoveryAction, 0),
            };
            for set in self
                .sets
                .values_mut()
                .filter(|set| set.gpus.contains(&index))
            {
                if set.queue.len() >= EVENTS_MAX {
                    set.queue.pop_front();
                }
                set.queue.push_back((index, u64::from(kind), data));
            }
        }
    }
}
