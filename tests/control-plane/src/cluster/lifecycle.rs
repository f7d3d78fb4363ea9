//! Starting, killing, pausing and watching the programs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;

use crate::error::{Error, Result};
use crate::ports::free_port;
use crate::probe::Probe;
use crate::process::ProgramSpec;
use crate::usage::Usage;

use super::flags::{self, Layout};
use super::{Cluster, Program, Slot, access, log_file};

/// Longest wait for a program to become ready. A loaded two-core machine needs tens of seconds for what takes three alone.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// First pause between two probes; it doubles up to [`PROBE_PAUSE_MAX`], because some programs log each probe.
const PROBE_PAUSE: Duration = Duration::from_millis(25);
/// Longest pause between two probes.
const PROBE_PAUSE_MAX: Duration = Duration::from_millis(200);

/// A time in which the API server was down or paused on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When it was stopped.
    pub from: Timestamp,
    /// When it was ready again; nothing while it is down.
    pub until: Option<Timestamp>,
}

impl Cluster {
    /// Starts a program that was killed or stopped, with the same command line, and waits until it is ready.
    ///
    /// # Errors
    /// [`Error::NotStarted`] for a program this cluster never had; [`Error::Exited`] and [`Error::NotReady`] with the log's end.
    pub async fn start(&self, program: &Program) -> Result<()> {
        {
            let mut programs = self.programs();
            let slot = programs.get_mut(program).ok_or_else(|| unknown(program))?;
            if let Some(running) = &mut slot.running
                && running.exited().is_none()
            {
                return Err(Error::AlreadyRunning {
                    program: program.to_string(),
                    pid: running.pid(),
                });
            }
            slot.running = Some(slot.spec.start()?);
        }
        self.wait_ready(program).await?;
        self.after_return(program).await
    }

    /// Waits until a program answers its probe.
    pub async fn wait_ready(&self, program: &Program) -> Result<()> {
        let since = Instant::now();
        let mut pause = PROBE_PAUSE;
        loop {
            let probe = self.with_slot(program, |slot| slot.probe.clone())?;
            let detail = match probe.check().await {
                Ok(()) => {
                    self.check_running(program)?;
                    return Ok(());
                }
                Err(detail) => detail,
            };
            self.check_running(program)?;
            if since.elapsed() > READY_TIMEOUT {
                return self.with_slot(program, |slot| {
                    Err(Error::NotReady {
                        program: program.to_string(),
                        waited: READY_TIMEOUT,
                        detail,
                        log: slot.spec.log.clone(),
                        tail: slot.spec.log_tail(),
                    })
                })?;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PROBE_PAUSE_MAX);
        }
    }

    /// Fails when a program that is meant to run has ended by itself.
    pub fn check_running(&self, program: &Program) -> Result<()> {
        self.with_slot(program, |slot| exited(program, slot))?
    }

    /// Fails when any program that is meant to run has ended by itself.
    pub fn check_all_running(&self) -> Result<()> {
        self.programs()
            .iter_mut()
            .try_for_each(|(program, slot)| exited(program, slot))
    }

    /// Whether the program's process exists.
    pub fn is_running(&self, program: &Program) -> bool {
        self.with_slot(program, |slot| {
            slot.running
                .as_mut()
                .is_some_and(|running| running.exited().is_none())
        })
        .unwrap_or(false)
    }

    /// The program's process id while it runs.
    pub fn pid(&self, program: &Program) -> Option<u32> {
        self.with_slot(program, |slot| {
            slot.running.as_ref().map(crate::process::Running::pid)
        })
        .ok()
        .flatten()
    }

    /// Kills a program with SIGKILL, as a crash does, and collects it.
    pub fn kill(&self, program: &Program) -> Result<()> {
        self.outage_begins(program);
        self.with_slot(program, |slot| slot.running = None)
    }

    /// Ends a program with SIGTERM (SIGKILL after 10 s).
    pub async fn stop(&self, program: &Program) -> Result<()> {
        self.outage_begins(program);
        let running = self.with_slot(program, |slot| slot.running.take())?;
        if let Some(mut running) = running {
            tokio::task::spawn_blocking(move || running.terminate())
                .await
                .map_err(|error| Error::Io {
                    what: format!("stop {program}"),
                    source: std::io::Error::other(error),
                })?;
        }
        Ok(())
    }

    /// Halts a program (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self, program: &Program) -> Result<()> {
        self.outage_begins(program);
        self.with_slot(program, |slot| {
            if let Some(running) = &slot.running {
                running.signal(Signal::STOP);
            }
        })
    }

    /// Lets a paused program go on, and waits until it is ready.
    pub async fn resume(&self, program: &Program) -> Result<()> {
        self.with_slot(program, |slot| {
            if let Some(running) = &slot.running {
                running.signal(Signal::CONT);
            }
        })?;
        self.wait_ready(program).await?;
        self.after_return(program).await
    }

    /// Kills the API server, keeps it down for this long, and starts it again on the same port.
    pub async fn stop_api_server_for(&self, down: Duration) -> Result<()> {
        self.kill(&Program::KubeApiserver)?;
        tokio::time::sleep(down).await;
        self.start(&Program::KubeApiserver).await
    }

    /// The times in which the API server was down or paused on purpose, oldest first: no deadline runs in them.
    pub fn outages(&self) -> Vec<Outage> {
        self.outages
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Processor time and memory of a running program; nothing when it is not running.
    pub fn usage(&self, program: &Program) -> Option<Usage> {
        Usage::of(self.pid(program)?)
    }

    /// Processor time and memory of all running programs.
    pub fn usages(&self) -> Vec<(Program, Usage)> {
        let pids: Vec<(Program, u32)> = self
            .programs()
            .iter()
            .filter_map(|(program, slot)| Some((program.clone(), slot.running.as_ref()?.pid())))
            .collect();
        pids.into_iter()
            .filter_map(|(program, pid)| Some((program, Usage::of(pid)?)))
            .collect()
    }

    /// Starts kube-scheduler with a KubeSchedulerConfiguration file.
    pub async fn start_kube_scheduler(&self, config: &Path) -> Result<()> {
        self.start_scheduler_as(
            Program::KubeScheduler,
            &self.binaries.kube_scheduler,
            config,
            &[],
        )
        .await
    }

    /// Starts one more kube-scheduler, such as the cluster's default one beside a dedicated one, with further arguments.
    pub async fn start_extra_kube_scheduler(
        &self,
        name: &str,
        config: &Path,
        further: &[String],
    ) -> Result<()> {
        let program = Program::Other(name.to_owned());
        self.start_scheduler_as(program, &self.binaries.kube_scheduler, config, further)
            .await
    }

    /// Starts a program that takes kube-scheduler's command line, such as kube-scheduler with further plugins compiled in.
    pub async fn start_scheduler(&self, name: &str, path: &Path, config: &Path) -> Result<()> {
        self.start_scheduler_as(Program::Other(name.to_owned()), path, config, &[])
            .await
    }

    async fn start_scheduler_as(
        &self,
        program: Program,
        path: &Path,
        config: &Path,
        further: &[String],
    ) -> Result<()> {
        let port = free_port()?;
        let mut args = flags::kube_scheduler(self.folder(), config, port, &self.feature_gates);
        args.extend_from_slice(further);
        let probe = self.https_probe(port, "/healthz")?;
        self.insert(&program, path, args, probe)?;
        self.start(&program).await
    }

    /// Starts a program of the caller's under the cluster's care: killed with it, its output in [`Cluster::log`].
    ///
    /// Arguments and changed environment variables of `command` are kept for a later [`Cluster::start`]; its standard streams and
    /// working folder are not. There is no probe: wait for the program's own signs of readiness.
    pub async fn spawn(&self, name: &str, command: &Command) -> Result<()> {
        let program = Program::Other(name.to_owned());
        let lossy = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let args = command.get_args().map(lossy).collect();
        self.insert(
            &program,
            Path::new(command.get_program()),
            args,
            Probe::Running,
        )?;
        self.with_slot(&program, |slot| {
            for (key, value) in command.get_envs() {
                if let Some(value) = value {
                    slot.spec.env.insert(lossy(key), lossy(value));
                }
            }
        })?;
        self.start(&program).await
    }

    pub(crate) fn set_env(&self, program: &Program, key: &str, value: &str) -> Result<()> {
        self.with_slot(program, |slot| {
            slot.spec.env.insert(key.to_owned(), value.to_owned());
        })
    }

    pub(crate) fn insert(
        &self,
        program: &Program,
        path: &Path,
        args: Vec<String>,
        probe: Probe,
    ) -> Result<()> {
        let mut programs = self.programs();
        if let Some(running) = programs
            .get_mut(program)
            .and_then(|slot| slot.running.as_mut())
            && running.exited().is_none()
        {
            return Err(Error::AlreadyRunning {
                program: program.to_string(),
                pid: running.pid(),
            });
        }
        let spec = ProgramSpec {
            path: path.to_path_buf(),
            args,
            env: std::collections::BTreeMap::new(),
            log: log_file(self.folder.path(), program),
        };
        let slot = Slot {
            spec,
            probe,
            running: None,
        };
        programs.insert(program.clone(), slot);
        Ok(())
    }

    pub(super) fn add_controller_manager(&self, extra: &[String]) -> Result<()> {
        let port = free_port()?;
        let args = self.layout().kube_controller_manager(port, extra);
        let probe = self.https_probe(port, "/healthz")?;
        self.insert(
            &Program::KubeControllerManager,
            &self.binaries.kube_controller_manager,
            args,
            probe,
        )
    }

    pub(super) fn add_kwok(&self) -> Result<()> {
        let port = free_port()?;
        let probe = Probe::Http {
            port,
            path: "/healthz",
        };
        self.insert(
            &Program::Kwok,
            &self.binaries.kwok,
            self.layout().kwok(port),
            probe,
        )
    }

    pub(super) async fn start_if(&self, yes: bool, program: &Program) -> Result<()> {
        if yes {
            self.start(program).await
        } else {
            Ok(())
        }
    }

    pub(super) fn layout(&self) -> Layout<'_> {
        Layout {
            folder: self.folder.path(),
            feature_gates: &self.feature_gates,
            etcd_port: self.etcd_port,
            etcd_peer_port: self.etcd_peer_port,
            api_port: self.api_port,
        }
    }

    fn https_probe(&self, port: u16, path: &'static str) -> Result<Probe> {
        let client = access::loopback_client(&self.authority, port)?;
        Ok(Probe::Https { client, path })
    }

    fn with_slot<T>(&self, program: &Program, act: impl FnOnce(&mut Slot) -> T) -> Result<T> {
        self.programs()
            .get_mut(program)
            .map(act)
            .ok_or_else(|| unknown(program))
    }

    /// An outage ends when the API server is ready; after etcd came back that takes the server a moment.
    async fn after_return(&self, program: &Program) -> Result<()> {
        match program {
            Program::KubeApiserver => self.outage_ends(),
            Program::Etcd if self.is_running(&Program::KubeApiserver) => {
                self.wait_ready(&Program::KubeApiserver).await?;
                self.outage_ends();
            }
            _ => {}
        }
        Ok(())
    }

    fn outage_begins(&self, program: &Program) {
        if *program == Program::KubeApiserver || *program == Program::Etcd {
            let mut outages = self
                .outages
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if outages.last().is_none_or(|outage| outage.until.is_some()) {
                outages.push(Outage {
                    from: Timestamp::now(),
                    until: None,
                });
            }
        }
    }

    fn outage_ends(&self) {
        let mut outages = self
            .outages
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(outage) = outages.last_mut() {
            outage.until.get_or_insert_with(Timestamp::now);
        }
    }
}

fn unknown(program: &Program) -> Error {
    Error::NotStarted {
        program: program.to_string(),
    }
}

fn exited(program: &Program, slot: &mut Slot) -> Result<()> {
    match slot
        .running
        .as_mut()
        .and_then(crate::process::Running::exited)
    {
        None => Ok(()),
        Some(status) => Err(Error::Exited {
            program: program.to_string(),
            status: status.to_string(),
            log: slot.spec.log.clone(),
            tail: slot.spec.log_tail(),
        }),
    }
}
