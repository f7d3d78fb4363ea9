//! Child processes that never outlive this process.
//!
//! ```text
//!   Cluster -- Command --> spawner thread (lives until the process ends) -- fork/exec --> child
//!                                                                    its own process group, PDEATHSIG = KILL
//! ```
//! The kernel's parent-death signal follows the thread that forked, and test threads come and go, so a single thread does all the
//! spawning. Each child leads a process group: a Ctrl-C on the terminal reaches the parent only, and a kill reaches grandchildren.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Result};
use crate::pdeathsig::kill_with_parent;

/// Lines of a log quoted in an error.
const LOG_TAIL_LINES: usize = 30;
/// How long SIGTERM may take before SIGKILL follows.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at a child that is to end.
const EXIT_POLL: Duration = Duration::from_millis(10);

/// What to run: kept so that a killed program can be started again in the same way.
#[derive(Clone, Debug)]
pub(crate) struct ProgramSpec {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) log: PathBuf,
}

/// A running (or ended, not yet collected) child.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Option<Pid>,
}

struct Request {
    command: Command,
    reply: mpsc::SyncSender<io::Result<Child>>,
}

/// Spawns through the process-wide spawner thread.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Option<mpsc::SyncSender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        // Callers wait for their reply, so the queue never holds more than the number of calling threads.
        let (sender, receiver) = mpsc::sync_channel::<Request>(16);
        std::thread::Builder::new()
            .name("child-spawner".into())
            .spawn(move || {
                while let Ok(mut request) = receiver.recv() {
                    let answer = request.command.spawn();
                    // A caller that is gone can't own its child.
                    if let Err(mpsc::SendError(Ok(mut orphan))) = request.reply.send(answer) {
                        let _ = orphan.kill();
                        let _ = orphan.wait();
                    }
                }
            })
            .ok()
            .map(|_| sender)
    });
    let gone = || io::Error::other("the spawner thread is gone");
    kill_with_parent(&mut command);
    let (reply, answer) = mpsc::sync_channel(1);
    let spawner = spawner.as_ref().ok_or_else(gone)?;
    spawner
        .send(Request { command, reply })
        .map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

impl ProgramSpec {
    /// Arguments and changed environment variables of `command`.
    pub(crate) fn of(command: &Command, log: &Path) -> Self {
        let lossy = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let set = command
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?)));
        Self {
            path: command.get_program().into(),
            args: command.get_args().map(lossy).collect(),
            env: set.map(|(key, value)| (lossy(key), lossy(value))).collect(),
            log: log.to_path_buf(),
        }
    }

    /// Starts the program; its output is appended to its log.
    pub(crate) fn start(&self) -> Result<Running> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(Error::io(format!("open log {}", self.log.display())))?;
        let log_err = log
            .try_clone()
            .map_err(Error::io(format!("open log {}", self.log.display())))?;
        let mut command = Command::new(&self.path);
        command
            .args(&self.args)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_err);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = spawn(command).map_err(Error::io(format!("start {}", self.path.display())))?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Running { child, group })
    }

    /// The last lines of the program's log.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log, LOG_TAIL_LINES)
    }
}

/// The last `lines` lines of a file, or a sentence saying why they can't be read.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all.iter()
                .skip(all.len().saturating_sub(lines))
                .copied()
                .collect::<Vec<_>>()
                .join("\n")
        }
        Err(error) => format!("(log {} can't be read: {error})", path.display()),
    }
}

impl Running {
    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once the child has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to the child's process group; a group that is gone is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal);
        }
    }

    /// Kills the group and collects the child.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Asks the child to end, and kills it when it has not within 10 s. Blocks: call it outside of async code.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
        // A stopped process acts on SIGTERM only when it goes on.
        self.signal(Signal::CONT);
        let since = Instant::now();
        while self.exited().is_none() && since.elapsed() < TERMINATE_TIMEOUT {
            std::thread::sleep(EXIT_POLL);
        }
        self.kill();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
