//! The NVML source: one dedicated thread that calls into the driver's library, and a watchdog outside of it.
//!
//! ```text
//! thread "nvml": init -> [read everything -> wait for events up to the next read] -> Mailbox --next()--> node loop
//!                                                              watchdog: no sign of life for 45 s -> Sampler HUNG
//! ```
//! A call that hangs in the driver can neither be ended nor joined: the thread is left alone, and the
//! agent goes on saying so. The library is opened with `NO_GPUS`, so a node that lost every GPU still
//! reports. All calls that nvml-wrapper lacks go through optional symbols ([`raw`]); this module and
//! the fake library are the only places with `unsafe`.

mod pci;
mod raw;
mod read;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_proto::inventory::Sampler;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::InitFlags;
use nvml_wrapper::error::NvmlError;

use super::mailbox::Mailbox;
use super::{DeviceSource, Update};
use read::Reader;

/// A call that has not returned for this long hangs: three times the slowest reading seen on loaded machines.
pub const WATCHDOG: Duration = Duration::from_secs(45);
/// Time between two full readings.
pub const READ_INTERVAL: Duration = Duration::from_secs(5);
/// Longest single wait for events; also how soon the thread notices that it should end.
const EVENT_WAIT: Duration = Duration::from_millis(500);
/// Time before the library is opened again after it could not be used.
const RETRY: Duration = Duration::from_secs(10);

/// How to read.
#[derive(Debug, Clone)]
pub struct NvmlConfig {
    /// Library to open; `libnvidia-ml.so.1` by the loader's search when absent.
    pub library: Option<OsString>,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Time between two readings.
    pub interval: Duration,
    /// Time after which a call counts as hanging.
    pub watchdog: Duration,
    /// GPUs the node should have, where that is another number than the PCI bus tells.
    pub devices_expected: Option<u32>,
}

impl Default for NvmlConfig {
    fn default() -> Self {
        Self {
            library: None,
            sysfs: "/sys".into(),
            interval: READ_INTERVAL,
            watchdog: WATCHDOG,
            devices_expected: None,
        }
    }
}

/// Reads through NVML.
#[derive(Debug)]
pub struct NvmlSource {
    mailbox: Arc<Mailbox>,
    stop: Arc<AtomicBool>,
    watchdog: Duration,
    hung: bool,
}

impl NvmlSource {
    /// Starts the thread.
    pub fn start(config: NvmlConfig) -> std::io::Result<Self> {
        let mailbox = Arc::new(Mailbox::default());
        let stop = Arc::new(AtomicBool::new(false));
        let watchdog = config.watchdog;
        let (of_thread, stop_thread) = (Arc::clone(&mailbox), Arc::clone(&stop));
        // Never joined: a call into the driver may not return.
        std::thread::Builder::new()
            .name("nvml".into())
            .spawn(move || run(&config, &of_thread, &stop_thread))?;
        Ok(Self {
            mailbox,
            stop,
            watchdog,
            hung: false,
        })
    }
}

impl Drop for NvmlSource {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl DeviceSource for NvmlSource {
    async fn next(&mut self) -> Update {
        let look = (self.watchdog / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            if let Some(update) = self.mailbox.take() {
                self.hung = false;
                return update;
            }
            if !self.hung && self.mailbox.silence() >= self.watchdog {
                self.hung = true;
                return Update::Sampler(Sampler::Hung);
            }
            tokio::select! {
                biased;
                () = self.mailbox.woken() => {}
                () = tokio::time::sleep(look) => {}
            }
        }
    }
}

/// Opens the library and reads once, on the calling thread; for `inspect`.
pub fn read_once(config: &NvmlConfig) -> Result<crate::model::Reading, NvmlError> {
    let nvml = open(config)?;
    Reader::new(config).read(&nvml, &|| {})
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

fn run(config: &NvmlConfig, mailbox: &Mailbox, stop: &AtomicBool) {
    let mut reader = Reader::new(config);
    let mut told: Option<String> = None;
    while !stop.load(Ordering::Relaxed) {
        mailbox.alive();
        let ended = match open(config) {
            Ok(nvml) => {
                told = None;
                session(&nvml, config, mailbox, stop, &mut reader)
            }
            Err(error) => Some(error),
        };
        let Some(error) = ended else { return };
        if needs_new_process(&error) {
            mailbox.end(error.to_string());
            return;
        }
        let text = error.to_string();
        if told.as_ref() != Some(&text) {
            tracing::error!(error = text, "cannot use NVML");
            told = Some(text);
        }
        mailbox.put_sampler(Sampler::NoDriver);
        pause(RETRY, mailbox, stop);
    }
}

fn pause(time: Duration, mailbox: &Mailbox, stop: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(EVENT_WAIT.min(end.saturating_duration_since(Instant::now())));
        mailbox.alive();
    }
}

/// Reads and waits for events until told to stop (`None`) or until the library cannot be used any more.
fn session(
    nvml: &Nvml,
    config: &NvmlConfig,
    mailbox: &Mailbox,
    stop: &AtomicBool,
    reader: &mut Reader,
) -> Option<NvmlError> {
    let mut events = raw::Events::new(nvml);
    while !stop.load(Ordering::Relaxed) {
        match reader.read(nvml, &|| mailbox.alive()) {
            Ok(reading) => mailbox.put_reading(reading),
            Err(error) => return Some(error),
        }
        // GPUs that came back have to be registered again.
        events.register(nvml, reader.reachable());
        let next = Instant::now() + config.interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() || stop.load(Ordering::Relaxed) {
                break;
            }
            let seen = events.wait(left.min(EVENT_WAIT));
            mailbox.alive();
            if let Some(event) = seen {
                mailbox.put_event(event);
                // The state after the event is wanted at once; more events of a burst are taken after it.
                break;
            }
        }
    }
    None
}
