//! Reads through NVML, on the calling thread: init, then everything every few seconds, and events in between.
//!
//! ```text
//! init -> [read everything -> wait for events up to the next read] -> Outlet
//! ```
//! A call that hangs in the driver can neither be ended nor joined, so the agent has this done by a process of its
//! own ([`super::reader`]). The library is opened with `NO_GPUS`, so a node that lost every GPU still
//! reports. All calls that nvml-wrapper lacks go through optional symbols ([`raw`]); this module and
//! the fake library are the only places with `unsafe`.

mod links;
mod numa;
mod pci;
mod raw;
mod read;
mod slices;

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_proto::inventory::Sampler;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::InitFlags;
use nvml_wrapper::error::NvmlError;

use super::Update;
use crate::model::Reading;
use read::Reader;

/// Time between two full readings.
pub const READ_INTERVAL: Duration = Duration::from_secs(5);
/// Longest single wait for events, and so the longest time without a sign of life while all is well.
const EVENT_WAIT: Duration = Duration::from_millis(500);
/// Time between two signs of life while much is asked.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Time before the library is opened again after it could not be used.
const RETRY: Duration = Duration::from_secs(10);

/// How to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmlConfig {
    /// Library to open; `libnvidia-ml.so.1` by the loader's search when absent.
    pub library: Option<OsString>,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Time between two readings.
    pub interval: Duration,
    /// GPUs the node should have, where that is another number than the PCI bus tells.
    pub devices_expected: Option<u32>,
}

impl Default for NvmlConfig {
    fn default() -> Self {
        Self {
            library: None,
            sysfs: "/sys".into(),
            interval: READ_INTERVAL,
            devices_expected: None,
        }
    }
}

/// Where a reader puts what it has read. An error says that nobody listens: then there is nothing to read for.
pub trait Outlet {
    /// Something to tell.
    fn tell(&self, update: Update) -> io::Result<()>;
    /// A call into the library has returned.
    fn alive(&self) -> io::Result<()>;
}

/// Opens the library and reads once, on the calling thread; for `inspect`.
pub fn read_once(config: &NvmlConfig) -> Result<Reading, NvmlError> {
    let nvml = open(config)?;
    Reader::new(config, None).read(&nvml, &|| {})
}

fn open(config: &NvmlConfig) -> Result<Nvml, NvmlError> {
    let mut builder = Nvml::builder();
    if let Some(path) = &config.library {
        builder.lib_path(path);
    }
    builder.flags(InitFlags::NO_GPUS).init()
}

/// True when only a new process can help: the driver was replaced under the library that is loaded.
fn needs_new_process(error: &NvmlError) -> bool {
    matches!(error, NvmlError::LibRmVersionMismatch)
}

/// Reads until only a new process can go on. `known` is what an earlier one has read last, so that a GPU which
/// the driver does not reach any more is still called by its name.
pub fn run(config: &NvmlConfig, known: Option<Reading>, outlet: &impl Outlet) -> io::Result<()> {
    let mut reader = Reader::new(config, known);
    let mut told: Option<String> = None;
    loop {
        outlet.alive()?;
        let error = match open(config) {
            Ok(nvml) => {
                told = None;
                session(&nvml, config, outlet, &mut reader)?
            }
            Err(error) => error,
        };
        if needs_new_process(&error) {
            return outlet.tell(Update::Ended(error.to_string()));
        }
        let text = error.to_string();
        if told.as_ref() != Some(&text) {
            tracing::error!(error = text, "cannot use NVML");
            told = Some(text);
        }
        outlet.tell(Update::Sampler(Sampler::NoDriver))?;
        pause(RETRY, outlet)?;
    }
}

fn pause(time: Duration, outlet: &impl Outlet) -> io::Result<()> {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(EVENT_WAIT.min(left));
        outlet.alive()?;
    }
}

/// Reads and waits for events until the library cannot be used any more.
fn session(
    nvml: &Nvml,
    config: &NvmlConfig,
    outlet: &impl Outlet,
    reader: &mut Reader,
) -> io::Result<NvmlError> {
    let mut events = raw::Events::new(nvml);
    loop {
        // Whoever does not listen to a sign of life does not listen to the reading either.
        let said = Cell::new(Instant::now());
        let alive = || {
            if said.get().elapsed() >= ALIVE_EVERY {
                said.set(Instant::now());
                drop(outlet.alive());
            }
        };
        match reader.read(nvml, &alive) {
            Ok(reading) => outlet.tell(Update::Reading(Arc::new(reading)))?,
            Err(error) => return Ok(error),
        }
        // GPUs that came back have to be registered again.
        events.register(nvml, reader.reachable());
        let next = Instant::now() + config.interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let seen = events.wait(left.min(EVENT_WAIT));
            outlet.alive()?;
            if let Some(event) = seen {
                outlet.tell(Update::Event(event))?;
                // The state after the event is wanted at once; more events of a burst are taken after it.
                break;
            }
        }
    }
}
