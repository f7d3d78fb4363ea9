//! Carries out writes, and finds out what became of them.
//!
//! ```text
//!   cycle ──Write──> queue ──one at a time per object──> attempt ──> WriteDone
//!                      (at most N objects at once)         │ ▲
//!                                  429, not sent, unknown ─┴─┘ read back, try again until the deadline
//! ```
//!
//! Every write ends with exactly one `WriteDone`. A write whose answer was lost is read back before
//! anything is said about it; what cannot be found out by the deadline ends as `Unknown`. Right
//! before each attempt the fence is passed, so that nothing is sent for a leadership that is over.

mod bind;
mod job;
mod pod;
mod record;
mod remembered;
mod step;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use muster_core::action::{Write, WriteKind};
use muster_core::event::{Event, WriteOutcome};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Caller;
use crate::binds::Binds;
use crate::clock::Wall;
use crate::fence::Fence;
use crate::hold::Hold;
use crate::inbox::Inbox;
use crate::metrics::Metrics;

pub use self::remembered::Remembered;

/// Of so many writes one is no binding, where one waits.
const OTHERS_EVERY: u32 = 8;

/// Name of an object: its kind's path segment, its namespace and its name.
type Target = (&'static str, String, String);

/// What every write works with.
#[derive(Debug)]
pub struct Writer {
    /// How the API is called.
    pub caller: Caller,
    /// Checked before every attempt.
    pub fence: Arc<Fence>,
    /// Checked before every attempt to bind: whether anybody still waits for it.
    pub binds: Arc<Binds>,
    /// Written into conditions.
    pub wall: Wall,
    /// Most writes at once.
    pub in_flight_max: usize,
    /// Longest time of a write.
    pub deadline: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Holds the tasks of single writes too.
    pub hold: Hold,
    /// Statuses as last written.
    pub remembered: Arc<Remembered>,
}

impl Writer {
    /// A writer that remembers nothing yet.
    pub fn new(
        caller: Caller,
        fence: Arc<Fence>,
        binds: Arc<Binds>,
        wall: Wall,
        settings: &crate::config::Writes,
        metrics: Arc<Metrics>,
        remembered: Arc<Remembered>,
        hold: Hold,
    ) -> Self {
        Self {
            caller,
            fence,
            binds,
            wall,
            in_flight_max: settings.in_flight_max,
            deadline: settings.deadline.0,
            metrics,
            hold,
            remembered,
        }
    }

    /// Carries out writes until stopped or the cycle has ended; then waits for those on their way.
    pub async fn run(
        self,
        mut queue: mpsc::Receiver<Write>,
        inbox: Inbox,
        stop: CancellationToken,
    ) {
        let writer = Arc::new(self);
        let mut line = Line::default();
        let mut tasks: JoinSet<Target> = JoinSet::new();
        loop {
            while tasks.len() < writer.in_flight_max
                && let Some((target, write)) = line.next()
            {
                let (hold, writer, inbox) =
                    (writer.hold.clone(), Arc::clone(&writer), inbox.clone());
                tasks.spawn(hold.wrap(async move {
                    let id = write.id;
                    let outcome = writer.carry_out(write).await;
                    // A cycle that has ended needs no answer.
                    let _ = inbox.send(Event::WriteDone { id, outcome }).await;
                    target
                }));
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = tasks.join_next() => match done {
                    Ok(target) => line.done(&target),
                    // The object stays blocked and the process ends: see the scheduler.
                    Err(error) => {
                        tracing::error!(%error, "a write failed unexpectedly");
                        return;
                    }
                },
                write = queue.recv(), if line.len() < LINE_MAX => match write {
                    Some(write) => line.push(target(&write), write),
                    None => break,
                },
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn carry_out(&self, write: Write) -> WriteOutcome {
        let started = Instant::now();
        let deadline = started + self.deadline;
        let kind = kind(&write.what);
        let outcome = match &write.what {
            WriteKind::CreateRecord { object, kind, name } => {
                self.create_record(&write, object, *kind, name, deadline)
                    .await
            }
            WriteKind::DeleteRecord {
                object,
                object_uid,
                resource_version,
            } => {
                self.delete_record(&write, object, object_uid, resource_version, deadline)
                    .await
            }
            WriteKind::PutStatus {
                object,
                resource_version,
                status,
            } => {
                self.put_status(&write, object, resource_version, status, deadline)
                    .await
            }
            WriteKind::ChangeJob { job, change } => {
                self.change_job(&write, job, change, deadline).await
            }
            WriteKind::ReleasePod { pod, pin, plain } => {
                self.release_pod(&write, pod, pin.as_ref(), *plain, deadline)
                    .await
            }
            WriteKind::WakePod { pod, plan } => self.wake_pod(&write, pod, plan, deadline).await,
            WriteKind::Bind {
                pod,
                node,
                plan,
                devices,
            } => self.bind(&write, pod, node, plan, devices, deadline).await,
            WriteKind::DeletePod { pod } => self.delete_pod(&write, pod, deadline).await,
            WriteKind::StampPod { pod } => self.stamp_pod(&write, pod, deadline).await,
            WriteKind::StampRecord {
                object,
                uid,
                resource_version,
            } => {
                self.stamp_record(&write, object, uid, resource_version, deadline)
                    .await
            }
        };
        let word = word(&outcome);
        self.metrics.written(kind, word, started.elapsed());
        let plan = write.plan.as_ref().map_or("", |plan| plan.as_str());
        match &outcome {
            WriteOutcome::Refused(said)
            | WriteOutcome::Unknown(said)
            | WriteOutcome::BindingUnknown { said, .. } => {
                tracing::warn!(gang = %write.gang, plan, kind, outcome = word, said = %said, "write");
            }
            _ => tracing::debug!(gang = %write.gang, plan, kind, outcome = word, "write"),
        }
        outcome
    }
}

/// Writes taken from the cycle and not begun yet. Beyond that they wait in the cycle.
const LINE_MAX: usize = 4096;

/// Writes in order, one at a time per object. Bindings go before all others: a gang that has been
/// accepted is to run before the pods of the next ones are released.
#[derive(Debug, Default)]
struct Line {
    bindings: VecDeque<(Target, Write)>,
    others: VecDeque<(Target, Write)>,
    busy: BTreeSet<Target>,
    behind: BTreeMap<Target, VecDeque<Write>>,
    waiting: usize,
    /// How many were taken.
    turn: u32,
}

impl Line {
    fn push(&mut self, target: Target, write: Write) {
        self.waiting = self.waiting.saturating_add(1);
        if self.busy.insert(target.clone()) {
            self.make_ready(target, write);
        } else {
            self.behind.entry(target).or_default().push_back(write);
        }
    }

    fn make_ready(&mut self, target: Target, write: Write) {
        let ready = match write.what {
            WriteKind::Bind { .. } => &mut self.bindings,
            _ => &mut self.others,
        };
        ready.push_back((target, write));
    }

    fn next(&mut self) -> Option<(Target, Write)> {
        self.turn = self.turn.wrapping_add(1);
        // A gang that is to be released has 30 s, however many are bound meanwhile.
        let next = if self.turn.is_multiple_of(OTHERS_EVERY) {
            self.others
                .pop_front()
                .or_else(|| self.bindings.pop_front())
        } else {
            self.bindings
                .pop_front()
                .or_else(|| self.others.pop_front())
        }?;
        self.waiting = self.waiting.saturating_sub(1);
        Some(next)
    }

    fn done(&mut self, target: &Target) {
        let Some(mut behind) = self.behind.remove(target) else {
            self.busy.remove(target);
            return;
        };
        if let Some(write) = behind.pop_front() {
            self.make_ready(target.clone(), write);
        }
        if !behind.is_empty() {
            self.behind.insert(target.clone(), behind);
        }
    }

    fn len(&self) -> usize {
        self.waiting
    }
}

fn target(write: &Write) -> Target {
    let namespace = write.gang.namespace.as_str().to_owned();
    match &write.what {
        WriteKind::CreateRecord { object, .. }
        | WriteKind::DeleteRecord { object, .. }
        | WriteKind::PutStatus { object, .. }
        | WriteKind::StampRecord { object, .. } => ("gangs", namespace, object.to_string()),
        WriteKind::ChangeJob { job, .. } => (
            "jobs",
            job.namespace.as_str().to_owned(),
            job.name.to_string(),
        ),
        WriteKind::ReleasePod { pod, .. }
        | WriteKind::WakePod { pod, .. }
        | WriteKind::Bind { pod, .. }
        | WriteKind::DeletePod { pod }
        | WriteKind::StampPod { pod } => (
            "pods",
            pod.namespace.as_str().to_owned(),
            pod.name.to_string(),
        ),
    }
}

fn kind(what: &WriteKind) -> &'static str {
    match what {
        WriteKind::CreateRecord { .. } => "CreateRecord",
        WriteKind::DeleteRecord { .. } => "DeleteRecord",
        WriteKind::PutStatus { .. } => "PutStatus",
        WriteKind::ChangeJob { .. } => "ChangeJob",
        WriteKind::ReleasePod { .. } => "ReleasePod",
        WriteKind::WakePod { .. } => "WakePod",
        WriteKind::Bind { .. } => "Bind",
        WriteKind::DeletePod { .. } => "DeletePod",
        WriteKind::StampPod { .. } => "StampPod",
        WriteKind::StampRecord { .. } => "StampRecord",
    }
}

fn word(outcome: &WriteOutcome) -> &'static str {
    match outcome {
        WriteOutcome::Done(_) => "Done",
        WriteOutcome::Conflict(_) => "Conflict",
        WriteOutcome::Gone => "Gone",
        WriteOutcome::Refused(_) => "Refused",
        WriteOutcome::Unknown(_) | WriteOutcome::BindingUnknown { .. } => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_core::action::PodTarget;
    use muster_core::event::WriteId;
    use muster_core::ids::{Epoch, GangKey};

    fn write(id: u64, what: WriteKind) -> Write {
        Write {
            id: WriteId(id),
            gang: GangKey::new("ns", "u"),
            plan: None,
            epoch: Epoch(1),
            what,
        }
    }

    fn pod(name: &str) -> PodTarget {
        PodTarget {
            namespace: "ns".into(),
            name: name.into(),
            uid: "u".into(),
            resource_version: "1".into(),
        }
    }

    fn delete(id: u64, name: &str) -> Write {
        write(id, WriteKind::DeletePod { pod: pod(name) })
    }

    fn release(id: u64, name: &str) -> Write {
        let what = WriteKind::ReleasePod {
            pod: pod(name),
            pin: None,
            plain: true,
        };
        write(id, what)
    }

    fn bind(id: u64, name: &str) -> Write {
        let what = WriteKind::Bind {
            pod: pod(name),
            node: "n".into(),
            plan: "e1-1".into(),
            devices: Vec::new(),
        };
        write(id, what)
    }

    /// With all gangs of a burst released first, all of them were bound at the end of it, and half of
    /// them had no member running for as long.
    #[test]
    fn a_gang_that_is_accepted_is_bound_before_the_others_of_a_burst_are_released() {
        let mut line = Line::default();
        for write in [
            release(1, "a"),
            release(2, "b"),
            release(3, "c"),
            bind(4, "a"),
            bind(5, "z"),
        ] {
            line.push(target(&write), write);
        }
        let order = |line: &mut Line| line.next().map(|(_, write)| write.id.0);
        // The bind of a pod whose release is not over waits for that.
        assert_eq!(order(&mut line), Some(5));
        let first = line.next().unwrap();
        assert_eq!(first.1.id, WriteId(1));
        line.done(&first.0);
        assert_eq!(order(&mut line), Some(4));
        assert_eq!(order(&mut line), Some(2));
        assert_eq!(order(&mut line), Some(3));
        assert_eq!(line.len(), 0);
    }

    #[test]
    fn one_object_is_written_in_order_and_others_pass() {
        let mut line = Line::default();
        for (id, name) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
            let write = delete(id, name);
            line.push(target(&write), write);
        }
        let first = line.next().unwrap();
        assert_eq!(first.1.id, WriteId(1));
        assert_eq!(line.next().unwrap().1.id, WriteId(3));
        assert!(line.next().is_none());
        line.done(&first.0);
        assert_eq!(line.next().unwrap().1.id, WriteId(2));
        line.done(&first.0);
        assert_eq!(line.next().unwrap().1.id, WriteId(4));
        line.done(&first.0);
        assert_eq!(line.len(), 0);
        assert!(!line.busy.contains(&first.0));
    }
}
