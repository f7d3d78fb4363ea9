//! One node's agent: the loop that turns updates into the reported state, and the streams that carry it.
//!
//! ```text
//! DeviceSource --Update--+
//!                        +--> NodeLoop: Judge, LeakWatch, Publisher --watch<Arc<NodeView>>--> streams
//! KubeletState (watch) --+        ^ deadlines of judge and leak watch
//! ```
//! `muster-agent run` has one of these, a fleet has thousands in one process. The loop owns all
//! state; whatever it waits for has a timer or a wake-up.

use std::sync::Arc;
use std::time::Duration;

use muster_proto::inventory::{ByeReason, Hello, Sampler};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::assemble::{LeakWatch, assemble};
use crate::clock::WallClock;
use crate::health::table::Table;
use crate::health::{Judge, Note};
use crate::kubelet::KubeletState;
use crate::model::Reading;
use crate::report::{NodeView, Publisher};
use crate::source::{AgentFault, DeviceSource, Update};
use crate::stream::{Uplink, streams};

/// A device used by nobody's pod for this long is reported as leaked. Pods that terminate keep memory
/// for some seconds; three polls of the kubelet fit in.
pub const LEAK_AFTER: Duration = Duration::from_secs(15);

/// Who the node is.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    /// Name of the Kubernetes node.
    pub name: String,
    /// UID of the Kubernetes node; empty when not known.
    pub uid: String,
    /// Kernel boot id.
    pub boot_id: String,
    /// Grows with every start of an agent: microseconds since the Unix epoch.
    pub instance: u64,
}

impl NodeIdentity {
    fn hello(&self) -> Hello {
        Hello {
            protocol: muster_proto::PROTOCOL,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            node_name: self.name.clone(),
            node_uid: self.uid.clone(),
            boot_id: self.boot_id.clone(),
            instance: self.instance,
        }
    }
}

/// The state machine of one node, without its waiting.
pub struct NodeState {
    start: Instant,
    clock: WallClock,
    judge: Judge,
    leaks: LeakWatch,
    publisher: Publisher,
    reading: Option<Arc<Reading>>,
    sampler: Sampler,
}

impl NodeState {
    /// A node of which nothing was read yet.
    pub fn new(table: Table, clock: WallClock) -> Self {
        Self {
            start: Instant::now(),
            clock,
            judge: Judge::new(table),
            leaks: LeakWatch::new(LEAK_AFTER),
            publisher: Publisher::default(),
            reading: None,
            sampler: Sampler::Unspecified,
        }
    }

    /// Takes in an update. An `Ended` one changes nothing.
    pub fn update(&mut self, update: Update) {
        let now = self.start.elapsed();
        match update {
            Update::Reading(reading) => {
                for note in self.judge.reading(now, &reading) {
                    self.tell(note);
                }
                self.reading = Some(reading);
                self.sampler(now, Sampler::Ok);
            }
            Update::Event(event) => {
                if let Some(note) = self.judge.event(now, &event) {
                    self.tell(note);
                }
            }
            Update::Sampler(sampler) => {
                // A node whose driver never answered still reports: no devices, and why.
                self.reading.get_or_insert_default();
                self.sampler(now, sampler);
            }
            Update::AgentFault(AgentFault::Silent) => self.publisher.silent(true),
            Update::AgentFault(AgentFault::Resume) => self.publisher.silent(false),
            Update::AgentFault(AgentFault::Replay) => self.publisher.replay(),
            Update::Ended(_) => {}
        }
    }

    fn sampler(&mut self, now: Duration, sampler: Sampler) {
        self.sampler = sampler;
        if let Some(note) = self.judge.sampler(now, sampler) {
            self.tell(note);
        }
    }

    /// To the schedulers, and to whoever reads this node's log.
    fn tell(&mut self, note: Note) {
        // Of a driver that does not answer, no device is named.
        if note.device_uuid.is_empty() {
            tracing::info!(
                source = note.source.as_str_name(),
                code = note.code,
                verdict = ?note.state,
                "what is known of all GPUs has changed"
            );
        } else {
            tracing::info!(
                device = note.device_uuid,
                source = note.source.as_str_name(),
                code = note.code,
                verdict = ?note.state,
                "the driver reports a fault"
            );
        }
        self.publisher.event(self.clock.now_ms(), note);
    }

    /// Judges again and gives the state to report.
    pub fn publish(&mut self, kubelet: &KubeletState) -> Arc<NodeView> {
        let now = self.start.elapsed();
        self.publisher.sampler(self.sampler);
        if let Some(reading) = &self.reading {
            let devices = assemble(now, reading, kubelet, &mut self.judge, &mut self.leaks);
            self.publisher.update(
                self.clock.now_ms(),
                reading.node.clone(),
                devices,
                kubelet.to_view(),
            );
        }
        Arc::new(self.publisher.view().clone())
    }

    /// When to publish again although nothing came in.
    pub fn next_deadline(&self) -> Option<Instant> {
        let now = self.start.elapsed();
        let next = self
            .judge
            .next_deadline()
            .into_iter()
            .chain(self.leaks.next_deadline(now))
            .min();
        next.and_then(|at| self.start.checked_add(at))
    }
}

/// Why a node's agent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeExit {
    /// It was told to stop.
    Stopped,
    /// Its source cannot go on in this process.
    SourceEnded(String),
}

/// A running node agent. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct NodeAgent {
    view: watch::Receiver<Arc<NodeView>>,
    stop: watch::Sender<Option<ByeReason>>,
    task: JoinHandle<NodeExit>,
}

impl NodeAgent {
    /// Starts the loop and the streams of one node, after `delay`.
    pub fn spawn<S: DeviceSource>(
        identity: NodeIdentity,
        table: Table,
        clock: WallClock,
        source: S,
        kubelet: watch::Receiver<KubeletState>,
        uplink: Uplink,
        delay: Duration,
    ) -> Self {
        let (publish, view) = watch::channel(Arc::new(NodeView::default()));
        let (stop, stopping) = watch::channel(None);
        let hello = identity.hello();
        let (view_of_streams, stop_of_streams) = (view.clone(), stopping.clone());
        let give_up = stop.clone();
        let task = tokio::spawn(async move {
            let mut early = stopping.clone();
            tokio::select! {
                biased;
                _ = early.wait_for(Option::is_some) => return NodeExit::Stopped,
                () = tokio::time::sleep(delay) => {}
            }
            let state = NodeState::new(table, clock);
            let outgoing = streams(uplink, hello, view_of_streams, stop_of_streams, clock);
            let loop_then_stop = async {
                let exit = run_loop(state, source, kubelet, publish, stopping).await;
                if matches!(exit, NodeExit::SourceEnded(_)) {
                    give_up.send_replace(Some(ByeReason::Upgrade));
                }
                exit
            };
            tokio::join!(loop_then_stop, outgoing).0
        });
        Self { view, stop, task }
    }

    /// The state that is reported, as it changes.
    pub fn view(&self) -> watch::Receiver<Arc<NodeView>> {
        self.view.clone()
    }

    /// Says Bye to each replica, and waits until the node's tasks have ended.
    pub async fn stop(self, reason: ByeReason) -> NodeExit {
        self.stop.send_replace(Some(reason));
        self.finished().await
    }

    /// Asks it to say Bye and end, without waiting.
    pub fn ask_to_stop(&self, reason: ByeReason) {
        self.stop.send_replace(Some(reason));
    }

    /// Waits until the node's tasks have ended by themselves.
    pub async fn finished(mut self) -> NodeExit {
        match (&mut self.task).await {
            Ok(exit) => exit,
            Err(error) => NodeExit::SourceEnded(format!("the node's task failed: {error}")),
        }
    }

    /// Waits like [`NodeAgent::finished`], and may be dropped and called again.
    pub async fn wait(&mut self) -> NodeExit {
        match (&mut self.task).await {
            Ok(exit) => exit,
            Err(error) => NodeExit::SourceEnded(format!("the node's task failed: {error}")),
        }
    }
}

impl Drop for NodeAgent {
    fn drop(&mut self) {
        if self.stop.borrow().is_none() {
            self.task.abort();
        }
    }
}

async fn run_loop<S: DeviceSource>(
    mut state: NodeState,
    mut source: S,
    mut kubelet: watch::Receiver<KubeletState>,
    publish: watch::Sender<Arc<NodeView>>,
    mut stopping: watch::Receiver<Option<ByeReason>>,
) -> NodeExit {
    let mut kubelet_alive = true;
    loop {
        let deadline = state.next_deadline();
        tokio::select! {
            biased;
            _ = stopping.wait_for(Option::is_some) => return NodeExit::Stopped,
            update = source.next() => {
                if let Update::Ended(reason) = update {
                    return NodeExit::SourceEnded(reason);
                }
                state.update(update);
            }
            changed = kubelet.changed(), if kubelet_alive => kubelet_alive = changed.is_ok(),
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
        }
        // The first state waits for the first word of the source, so that no half-empty report goes out.
        let seen = kubelet.borrow_and_update().clone();
        publish.send_replace(state.publish(&seen));
    }
}
