//! Reads in a process of its own: a call into the driver that never returns, or a crash in its library, costs that
//! process and not the agent.
//!
//! ```text
//!   agent                                              muster-agent read-nvml
//!   node loop <--next()-- ReaderProcess  --stdin: Start-->  child: NVML, one thread
//!                           Keeper      <--stdout: Word---  readings, events, a sign of life every few seconds
//! ```
//! The process is killed when it says nothing for the watchdog's time, and replaced ([`keeper`]). It dies with the
//! thread of the agent that has started it, by the kernel's hand, and has nobody to talk to then anyway. What it
//! cannot pass on because the agent is slow waits in the pipe, and then in the driver. It writes its own log lines
//! to the agent's standard error.

pub mod child;
mod keeper;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use muster_proto::inventory::Sampler;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

use super::nvml::NvmlConfig;
use super::{DeviceSource, Update};
use crate::model::Reading;
use keeper::{Keeper, Step};
use wire::{Garbled, Start, Word};

/// Time a process whose pipe has ended has to end as well, before it is killed: a kernel that writes its memory to
/// disk takes a while.
const END_MAX: Duration = Duration::from_secs(2);

/// A timer that comes so much too late says that this process was held up: stopped, or without a CPU.
const LATE: Duration = Duration::from_secs(2);

/// How to start readers.
#[derive(Debug, Clone)]
pub struct ReaderConfig {
    /// What is started; by default this very program, also after its file was replaced.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How to read.
    pub nvml: NvmlConfig,
    /// Silence after which a reader hangs.
    pub watchdog: Duration,
}

impl ReaderConfig {
    /// Starts this program with `arguments`.
    pub fn new(arguments: Vec<OsString>, nvml: NvmlConfig, watchdog: Duration) -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments,
            nvml,
            watchdog,
        }
    }
}

/// A reader that runs.
#[derive(Debug)]
struct Running {
    child: Child,
    stdout: ChildStdout,
    buffer: BytesMut,
    /// What it has to be told yet.
    start: Option<(ChildStdin, Vec<u8>)>,
    /// Its pipe has ended: it has this long to end itself.
    ends_by: Option<Instant>,
}

/// What came from a reader.
enum Heard {
    Word(Word),
    /// It is gone, or speaks in tongues.
    Gone(String),
}

/// Reads through processes.
#[derive(Debug)]
pub struct ReaderProcess {
    config: ReaderConfig,
    start: Instant,
    keeper: Keeper,
    running: Option<Running>,
    /// Killed, and not gone yet.
    killed: Vec<Child>,
    /// The last reading, for the next reader.
    known: Option<Arc<Reading>>,
}

impl ReaderProcess {
    /// A source that starts its first reader when it is first asked. To be asked on a thread that lives as long
    /// as the agent: the kernel kills the process when the thread that has started it ends.
    pub fn new(config: ReaderConfig) -> Self {
        Self {
            keeper: Keeper::new(config.watchdog),
            config,
            start: Instant::now(),
            running: None,
            killed: Vec::new(),
            known: None,
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Starts a reader. Returns what to tell if that fails.
    fn launch(&mut self) -> Option<Update> {
        match self.try_launch() {
            Ok(running) => {
                tracing::debug!(process = running.child.id(), "a reader was started");
                self.running = Some(running);
                self.keeper.started(self.now());
                None
            }
            Err(error) => {
                tracing::error!(%error, program = %self.config.program.display(), "cannot start a reader of GPUs");
                let told = self.keeper.failed(self.now(), Sampler::Crashed);
                told.map(Update::Sampler)
            }
        }
    }

    fn try_launch(&self) -> std::io::Result<Running> {
        let mut child = Command::new(&self.config.program)
            .arg0("muster-agent")
            .args(&self.config.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What ends the agent at a terminal must not reach the reader first.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or(std::io::ErrorKind::BrokenPipe)?;
        let start = Start {
            config: self.config.nvml.clone(),
            parent: rustix::process::getpid().as_raw_nonzero().get(),
            sign_interval: sign_interval(self.config.watchdog),
            known: self.known.as_deref().cloned(),
        };
        Ok(Running {
            child,
            stdout,
            buffer: BytesMut::new(),
            start: Some((stdin, start.encode())),
            ends_by: None,
        })
    }

    /// Kills the reader that runs. It is not waited for: one that hangs in the kernel does not go.
    fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            if let Err(error) = running.child.start_kill() {
                tracing::warn!(%error, "a reader cannot be killed");
            }
            self.killed.push(running.child);
        }
    }

    /// Forgets killed ones that are gone.
    fn bury(&mut self) {
        self.killed
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    fn give_up(&mut self) -> Option<Update> {
        let process = self.running.as_ref().and_then(|running| running.child.id());
        tracing::error!(
            process,
            seconds = self.config.watchdog.as_secs(),
            "calls into the driver do not return: the reader is killed, another one is started"
        );
        self.kill();
        let told = self.keeper.failed(self.now(), Sampler::Hung);
        told.map(Update::Sampler)
    }

    /// Takes in what a reader has said. Returns what to tell of it.
    fn take(&mut self, heard: Heard) -> Option<Update> {
        let now = self.now();
        let update = match heard {
            Heard::Gone(how) => {
                tracing::error!(
                    how,
                    "the reader of GPUs has crashed, another one is started"
                );
                self.kill();
                let told = self.keeper.failed(now, Sampler::Crashed);
                return told.map(Update::Sampler);
            }
            Heard::Word(Word::Alive) => {
                self.keeper.heard(now, None);
                return None;
            }
            Heard::Word(Word::Update(update)) => update,
        };
        match &update {
            Update::Reading(reading) => {
                self.known = Some(Arc::clone(reading));
                self.keeper.heard(now, Some(Sampler::Ok));
            }
            Update::Sampler(sampler) => self.keeper.heard(now, Some(*sampler)),
            // It had a driver that was replaced under it. A new one may find the new library; if that finds the
            // old one again, only a new container has the new one.
            Update::Ended(why) if self.keeper.has_read() => {
                tracing::warn!(why, "the reader cannot go on, another one is started");
                self.kill();
                let told = self.keeper.failed(now, Sampler::NoDriver);
                return told.map(Update::Sampler);
            }
            Update::Event(_) | Update::AgentFault(_) | Update::Ended(_) => {
                self.keeper.heard(now, None);
            }
        }
        Some(update)
    }
}

/// Time between two signs of life: a fraction of the watchdog's, so that one that is late costs nothing.
fn sign_interval(watchdog: Duration) -> Duration {
    (watchdog / 16).max(Duration::from_millis(50))
}

impl Running {
    /// The next thing that it says. May be dropped and called again.
    async fn hear(&mut self) -> Heard {
        loop {
            if let Some(end) = self.ends_by {
                let status = tokio::time::timeout_at(end, self.child.wait()).await;
                return Heard::Gone(match status {
                    Ok(Ok(status)) => status.to_string(),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "its pipe has ended, and it has not".into(),
                });
            }
            match Word::take(&mut self.buffer) {
                Ok(Some(word)) => return Heard::Word(word),
                Ok(None) => {}
                Err(error) => return self.garbled(&error),
            }
            tokio::select! {
                biased;
                told = tell(&mut self.start) => {
                    // A reader that does not listen says so by its end.
                    if let Err(error) = told {
                        tracing::debug!(%error, "a reader does not listen");
                    }
                }
                read = self.stdout.read_buf(&mut self.buffer) => {
                    if !matches!(read, Ok(1..)) {
                        self.ends_by = Some(Instant::now() + END_MAX);
                    }
                }
            }
        }
    }

    fn garbled(&self, error: &Garbled) -> Heard {
        Heard::Gone(format!("it is not understood: {error}"))
    }
}

/// Goes on telling a reader what it is started with; waits for ever once it is told. May be dropped and called again.
async fn tell(start: &mut Option<(ChildStdin, Vec<u8>)>) -> std::io::Result<()> {
    let Some((stdin, rest)) = start else {
        return std::future::pending().await;
    };
    let written = stdin.write(rest).await;
    match written {
        Ok(written) => {
            rest.drain(..written.min(rest.len()));
        }
        Err(_) => rest.clear(),
    }
    if rest.is_empty() {
        // The end of the pipe is the end of what it is told.
        *start = None;
    }
    written.map(drop)
}

async fn hear(running: &mut Option<Running>) -> Heard {
    match running {
        Some(running) => running.hear().await,
        None => std::future::pending().await,
    }
}

impl DeviceSource for ReaderProcess {
    async fn next(&mut self) -> Update {
        loop {
            self.bury();
            let told = match self.keeper.step(self.now(), self.killed.len()) {
                Step::Start => self.launch(),
                Step::GiveUp => {
                    // What it has said meanwhile counts, in case that it is this process that was held up.
                    match futures::FutureExt::now_or_never(hear(&mut self.running)) {
                        Some(heard) => self.take(heard),
                        None => self.give_up(),
                    }
                }
                Step::Wait(until) => {
                    let at = self.start + until;
                    tokio::select! {
                        biased;
                        heard = hear(&mut self.running) => self.take(heard),
                        () = tokio::time::sleep_until(at) => {
                            if self.now() > until + LATE {
                                self.keeper.excuse(self.now());
                            }
                            None
                        }
                    }
                }
            };
            if let Some(update) = told {
                return update;
            }
        }
    }
}
