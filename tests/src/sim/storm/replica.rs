//! A scheduler of a storm: started, stopped, killed, and started again as a kubelet does.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use muster_embedded::EmbeddedCluster;
use muster_scheduler::clock::Wall;
use muster_scheduler::config::Config;
use muster_scheduler::fence::Fence;
use muster_scheduler::hold::Hold;
use muster_scheduler::metrics::Metrics;
use muster_scheduler::scheduler::{Clients, Ended, Options, Scheduler};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::judge;
use super::log::Log;
use crate::sim::doors::Doors;

/// A running process.
struct Process {
    hold: Hold,
    fence: Arc<Fence>,
    metrics: Arc<Metrics>,
    kill: CancellationToken,
    /// Ends with the process; `None` when it was killed.
    end: JoinHandle<Option<Ended>>,
    thaw_at: Option<Instant>,
}

/// A place where a scheduler runs, again and again.
pub struct Replica {
    /// Its name for the agents.
    pub door: &'static str,
    /// Its name for the API server.
    pub client: &'static str,
    process: Option<Process>,
    start_at: Instant,
    starts: u32,
}

/// What all replicas share.
pub struct Surroundings<'a> {
    /// The cluster.
    pub cluster: &'a EmbeddedCluster,
    /// Ways in.
    pub(super) doors: &'a Arc<Doors>,
    /// How they are configured.
    pub config: &'a Config,
    /// Seed of their jitter.
    pub seed: u64,
    /// The story.
    pub log: &'a Log,
    /// Who has to know what each process has been shown.
    pub judge: &'a judge::Shared,
}

/// Lets a scheduler run until it ends, is killed, or is stopped at a poll for good.
async fn live(
    mut scheduler: Scheduler,
    doors: Arc<Doors>,
    door: &'static str,
    hold: Hold,
    kill: CancellationToken,
) -> Option<Ended> {
    let ended = tokio::select! {
        biased;
        () = kill.cancelled() => None,
        () = hold.stopped() => None,
        ended = scheduler.ended() => Some(ended),
    };
    doors.close(door);
    if ended.is_none() {
        scheduler.kill().await;
    }
    ended
}

impl Replica {
    /// A place where nothing runs yet.
    pub fn new(door: &'static str, client: &'static str) -> Self {
        Self {
            door,
            client,
            process: None,
            start_at: Instant::now(),
            starts: 0,
        }
    }

    fn start(&mut self, around: &Surroundings<'_>) {
        self.starts = self.starts.saturating_add(1);
        let client = || around.cluster.client(self.client);
        let clients = Clients {
            watch: client(),
            write: client(),
            lease: client(),
        };
        // Each machine has a clock of its own: by an hour off, set while the scheduler was down, and while it runs.
        let skew = match around.seed.wrapping_add(u64::from(self.starts)) % 3 {
            0 => 0,
            1 => 3600,
            _ => -3600,
        };
        let now = around.cluster.api().clock().now();
        let options = Options {
            identity: format!("{}-{}", self.client, self.starts),
            seed: around.seed.wrapping_add(u64::from(self.starts)),
            wall: Wall::set_after_each(
                Duration::from_secs(40 + around.seed % 97),
                now.saturating_add(SignedDuration::from_secs(skew))
                    .unwrap_or(now),
            ),
            agents_believed: false,
        };
        let hold = Hold::able();
        judge::locked(around.judge).begins(self.client);
        let scheduler = Scheduler::start_held(&clients, around.config, &options, hold.clone());
        around.doors.open(self.door, &scheduler, hold.clone());
        let (fence, metrics) = (
            Arc::clone(scheduler.fence()),
            Arc::clone(scheduler.metrics()),
        );
        let kill = CancellationToken::new();
        let doors = Arc::clone(around.doors);
        let life = live(scheduler, doors, self.door, hold.clone(), kill.clone());
        self.process = Some(Process {
            hold,
            fence,
            metrics,
            kill,
            end: tokio::spawn(life),
            thaw_at: None,
        });
        around.log.note(format!("{} starts", options.identity));
    }

    /// Starts what is to be started, lets go on what was stopped for a time. An error says how it
    /// ended where it should not have.
    pub async fn tend(&mut self, around: &Surroundings<'_>) -> Result<(), String> {
        if let Some(process) = &mut self.process {
            if process.thaw_at.is_some_and(|at| at <= Instant::now()) {
                process.thaw_at = None;
                around.log.note(format!("{} goes on", self.client));
                judge::locked(around.judge).wakes(self.client);
                process.hold.release();
            }
            if process.end.is_finished() {
                self.bury(around).await?;
            }
        }
        if self.process.is_none() && self.start_at <= Instant::now() {
            self.start(around);
        }
        Ok(())
    }

    async fn bury(&mut self, around: &Surroundings<'_>) -> Result<(), String> {
        let Some(process) = self.process.take() else {
            return Ok(());
        };
        let client = self.client;
        let ended = process.end.await;
        audited(&process.metrics)?;
        self.start_at = self.start_at.max(Instant::now() + Duration::from_secs(1));
        match ended {
            Ok(None) => around.log.note(format!("{client} is killed")),
            Ok(Some(Ended::LeadershipLost)) => {
                around
                    .log
                    .note(format!("{client} ends: the leadership is lost"));
            }
            Ok(Some(other)) => return Err(format!("{client} ended by itself: {other}")),
            Err(error) => return Err(format!("{client} panicked: {error}")),
        }
        Ok(())
    }

    /// Kills it as SIGKILL does. Another is started after `rest`.
    pub async fn kill(&mut self, rest: Duration, around: &Surroundings<'_>) -> Result<(), String> {
        if let Some(process) = &self.process {
            process.kill.cancel();
            self.start_at = Instant::now() + rest;
            self.bury(around).await?;
        }
        Ok(())
    }

    /// Kills it at the poll after so many more. Another is started after `rest`, counted from now.
    pub fn kill_after(&mut self, polls: u64, rest: Duration) {
        if let Some(process) = &self.process {
            process.hold.set_after(polls);
            self.start_at = Instant::now() + rest;
        }
    }

    /// Stops it for a time, as SIGSTOP does.
    pub fn stop_for(&mut self, time: Duration) {
        if let Some(process) = &mut self.process {
            process.hold.set();
            process.thaw_at = Some(Instant::now() + time);
        }
    }

    /// Lets it go on at once if it is stopped, and live if it was to be killed. Returns whether it was stopped.
    pub fn thaw(&mut self) -> bool {
        let Some(process) = &mut self.process else {
            return false;
        };
        process.hold.spare();
        process.hold.release();
        process.thaw_at.take().is_some()
    }

    /// What holds it, while it runs.
    pub fn hold(&self) -> Option<Hold> {
        self.process.as_ref().map(|process| process.hold.clone())
    }

    /// Whether it runs and leads.
    pub fn leads(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.fence.led().0 != 0)
    }

    /// Whether it runs and is not stopped.
    pub fn is_up(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.thaw_at.is_none() && !process.end.is_finished())
    }

    /// What its own audit has found; an error where something is broken.
    pub fn audit(&self) -> Result<(), String> {
        self.process
            .as_ref()
            .map_or(Ok(()), |process| audited(&process.metrics))
    }

    /// Ends it for good.
    pub async fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill.cancel();
            // What it said at its end was asked before.
            let _ = process.end.await;
        }
    }
}

/// What a scheduler's own audit has counted.
fn audited(metrics: &Metrics) -> Result<(), String> {
    match metrics.broken_invariant() {
        Some((id, count)) => Err(format!(
            "the scheduler's own audit found {id} broken, {count} times"
        )),
        None => Ok(()),
    }
}
