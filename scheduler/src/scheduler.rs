//! The edges put together.
//!
//! [`Scheduler::start`] needs a client and a configuration, nothing else: no sockets, no files, any
//! tokio runtime, a paused clock included. Its doors are routers, to be served on sockets by
//! [`Scheduler::serve`] or called in process by a test.
//!
//! Every task is owned here. One that ends unasked ends the scheduler with an error: a process that
//! is half alive answers with beliefs that nobody keeps true.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use kube::Client;
use muster_core::breaker::BreakerState;
use muster_core::engine::Engine;
use muster_core::time::Timestamp;
use muster_core::view::View;
use muster_kubernetes::translate::PodRules;
use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agents::{Agents, Identities};
use crate::announce::{self, Announcer};
use crate::api::Caller;
use crate::binds::{Binds, STOPPING};
use crate::clock::{Clock, Dice, Wall};
use crate::config::Config;
use crate::cycle::{Cycle, CycleEnd, Pulse};
use crate::extender::Extender;
use crate::fence::Fence;
use crate::gate::{self, Gate, GateEnd, PairLease};
use crate::hold::Hold;
use crate::http::{self, Pages};
use crate::inbox::{self, Inbox};
use crate::lease::{ElectionEnd, Elector, Memory};
use crate::metrics::Metrics;
use crate::server::Door;
use crate::unbelieved::Unbelieving;
use crate::watch::{self, Health, Kinds, WatchEnd};
use crate::writer::{Remembered, Writer};

/// Clients for the API server. None of them may retry by itself.
#[derive(Clone)]
pub struct Clients {
    /// For lists and watches.
    pub watch: Client,
    /// For writes, Events and TokenReviews.
    pub write: Client,
    /// For the Lease.
    pub lease: Client,
}

impl From<Client> for Clients {
    fn from(client: Client) -> Self {
        Self {
            watch: client.clone(),
            write: client.clone(),
            lease: client,
        }
    }
}

/// What a run of the scheduler is told besides its configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this replica, unique over all replicas and restarts.
    pub identity: String,
    /// Seed of all jitter.
    pub seed: u64,
    /// The wall clock that is written into objects.
    pub wall: Wall,
    /// Agents are believed without a token.
    pub agents_believed: bool,
}

/// Why the scheduler ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It was asked to.
    #[error("stopped")]
    Stopped,
    /// The leadership is lost; start again.
    #[error("the leadership is lost")]
    LeadershipLost,
    /// The cluster was restored from a backup; start again, and read it afresh.
    #[error("the cluster's state went back, as after a restore from a backup: it is read afresh")]
    WentBack,
    /// It leads, and no kube-scheduler is there that could ask it; start again.
    #[error("no kube-scheduler has held its lease for as long as a minute")]
    Deserted,
    /// The watches cannot go on.
    #[error("{0}")]
    Watch(WatchEnd),
    /// A task ended that should not.
    #[error("the {task} ended unexpectedly{detail}")]
    Dead {
        /// Which one.
        task: &'static str,
        /// What is known about it.
        detail: String,
    },
}

/// How long a replica that gives the leadership away stays out of the election. Others look at the Lease
/// every second.
const MAKE_WAY: Duration = Duration::from_secs(5);

/// What a task says when it ends.
enum TaskEnd {
    Cycle(CycleEnd),
    Watch(WatchEnd),
    Election(ElectionEnd),
    Gate(GateEnd),
    Other(&'static str),
}

/// A running scheduler.
pub struct Scheduler {
    extender: Router,
    agents: Agents,
    pages: Router,
    inbox: Inbox,
    view: Arc<ArcSwap<View>>,
    metrics: Arc<Metrics>,
    remembered: Arc<Remembered>,
    fence: Arc<Fence>,
    binds: Arc<Binds>,
    /// Whether Filter is answered here.
    leads: signal::Receiver<bool>,
    /// What keeps the kube-scheduler beside this replica from its work.
    gate_problem: gate::Problem,
    tasks: JoinSet<TaskEnd>,
    hold: Hold,
    /// What is known of the Lease, also after its election has ended.
    memory: Arc<Memory>,
    pulse: Pulse,
    /// The door of the pages, which is open to the end.
    pages_door: JoinSet<TaskEnd>,
    stop_pages: CancellationToken,
    /// Ends doors, watches, cycle and announcer.
    stop: CancellationToken,
    /// Ends the writer, once its last answers are of no more use.
    stop_writer: CancellationToken,
    /// The writer has ended: nothing of this leadership is on its way any more.
    written: CancellationToken,
    /// Ends the election, when nothing can be written any more.
    stop_lease: CancellationToken,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("epoch", &self.fence.led())
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Starts every task. The configuration must have been checked.
    pub fn start(clients: &Clients, config: &Config, options: &Options) -> Self {
        Self::start_held(clients, config, options, Hold::default())
    }

    /// The same with tasks that a simulation can make stand still. Whoever calls the doors holds them
    /// too.
    pub fn start_held(clients: &Clients, config: &Config, options: &Options, hold: Hold) -> Self {
        let clock = Clock::start();
        let metrics = Arc::new(Metrics::default());
        let remembered = Arc::new(Remembered::default());
        let fence = Arc::new(Fence::default());
        let dice = Arc::new(Dice::new(options.seed));
        let (inbox, outbox) = inbox::inbox();
        let view: Arc<ArcSwap<View>> = Arc::new(ArcSwap::from_pointee(View::default()));
        let binds = Arc::new(Binds::new(config.extender.binds_held_max));
        let core = config.core();
        let rules = Arc::new(ArcSwap::from_pointee(PodRules {
            unnamed_jobs_are_ours: config.unnamed_jobs_are_ours,
            ..PodRules::new(&config.scheduler_name, &core)
        }));
        let health = Arc::new(Health::new(
            &Kinds::ALL,
            config.watch.unhealthy_after.millis(),
        ));
        let published = Arc::new(AtomicU64::new(0));
        let pulse = Pulse::new(clock);
        let (looks, looked_for) = http::looks();
        let (leads, led) = signal::channel(false);
        let memory = Arc::new(Memory::new(clients.lease.clone(), config.lease.clone()));
        let gate_problem = gate::Problem::default();
        let caller = Caller::new(clients.write.clone(), config.writes.attempt_timeout.0)
            .telling(inbox.clone());
        let mut scheduler = Self {
            extender: Extender::new(
                Arc::clone(&view),
                Arc::clone(&rules),
                inbox.clone(),
                Arc::clone(&binds),
                Arc::clone(&metrics),
                &config.extender,
            )
            .router(config.extender.body_bytes_max),
            agents: Agents::new(
                identities(clients, config, options, &metrics),
                inbox.clone(),
                Arc::clone(&fence),
                Arc::clone(&metrics),
                Arc::clone(&dice),
                config,
                options.identity.clone(),
            ),
            pages: http::router(Pages {
                metrics: Arc::clone(&metrics),
                health: Arc::clone(&health),
                inbox: inbox.clone(),
                fence: Arc::clone(&fence),
                clock,
                published: Arc::clone(&published),
                pulse: pulse.clone(),
                gate: gate_problem.clone(),
                looks,
            }),
            inbox: inbox.clone(),
            view: Arc::clone(&view),
            metrics: Arc::clone(&metrics),
            remembered: Arc::clone(&remembered),
            fence: Arc::clone(&fence),
            binds: Arc::clone(&binds),
            leads: led,
            gate_problem,
            tasks: JoinSet::new(),
            hold: hold.clone(),
            memory: Arc::clone(&memory),
            pulse: pulse.clone(),
            pages_door: JoinSet::new(),
            stop_pages: CancellationToken::new(),
            stop: CancellationToken::new(),
            stop_writer: CancellationToken::new(),
            written: CancellationToken::new(),
            stop_lease: CancellationToken::new(),
        };
        let (writes, write_queue) = mpsc::channel(core.writes_in_flight_max.max(1));
        let (announcements, announce_queue) = mpsc::channel(announce::QUEUE_MAX);
        let (synced, synced_seen) = signal::channel(false);
        let (relist_pods, pods_asked) = signal::channel(0);
        let (relist_gangs, gangs_asked) = signal::channel(0);
        let (rebuilt, rebuilt_seen) = signal::channel(false);
        scheduler.spawn_cycle(Cycle {
            engine: Engine::new(core),
            clock,
            outbox,
            writes,
            announcements,
            binds: Arc::clone(&binds),
            view,
            published,
            pulse,
            leads,
            relist: [relist_pods, relist_gangs],
            rebuilt,
            metrics: Arc::clone(&metrics),
            remembered: Arc::clone(&remembered),
            audited: Timestamp(0),
            looks: looked_for,
            counted: Timestamp(0),
            breaker: BreakerState::default(),
            unbelieved: Unbelieving::default(),
        });
        scheduler.spawn_writer(
            Writer::new(
                caller.clone(),
                Arc::clone(&fence),
                binds,
                options.wall,
                &config.writes,
                Arc::clone(&metrics),
                remembered,
                hold.clone(),
            ),
            write_queue,
        );
        scheduler.spawn_announcer(Announcer {
            caller,
            queue: announce_queue,
            wall: options.wall,
            component: config.scheduler_name.clone(),
            identity: options.identity.clone(),
            metrics: Arc::clone(&metrics),
        });
        scheduler.spawn_watches(
            watch::Shared {
                client: clients.watch.clone(),
                settings: config.watch.clone(),
                inbox: inbox.clone(),
                fence: Arc::clone(&fence),
                relist_pods: pods_asked,
                relist_gangs: gangs_asked,
                rules,
                texts: Arc::default(),
                health,
                clock,
                dice,
                metrics,
                hold,
            },
            synced,
        );
        scheduler.spawn_election(Elector {
            client: clients.lease.clone(),
            settings: config.lease.clone(),
            identity: options.identity.clone(),
            inbox,
            fence,
            synced: synced_seen,
            wall: options.wall,
            rebuilt: rebuilt_seen,
            memory,
        });
        scheduler
    }

    fn spawn(&mut self, task: impl Future<Output = TaskEnd> + Send + 'static) {
        self.tasks.spawn(self.hold.wrap(task));
    }

    fn spawn_cycle(&mut self, cycle: Cycle) {
        let stop = self.stop.clone();
        self.spawn(async move { TaskEnd::Cycle(cycle.run(stop).await) });
    }

    fn spawn_writer(&mut self, writer: Writer, queue: mpsc::Receiver<muster_core::action::Write>) {
        let (inbox, stop) = (self.inbox.clone(), self.stop_writer.clone());
        let written = self.written.clone().drop_guard();
        self.spawn(async move {
            let _written = written;
            writer.run(queue, inbox, stop).await;
            TaskEnd::Other("writer")
        });
    }

    fn spawn_announcer(&mut self, announcer: Announcer) {
        let stop = self.stop.clone();
        self.spawn(async move {
            announcer.run(stop).await;
            TaskEnd::Other("announcer")
        });
    }

    fn spawn_watches(&mut self, shared: watch::Shared, synced: signal::Sender<bool>) {
        let stop = self.stop.clone();
        self.spawn(async move { TaskEnd::Watch(watch::run(shared, synced, stop).await) });
    }

    fn spawn_election(&mut self, elector: Elector) {
        let stop = self.stop_lease.clone();
        self.spawn(async move { TaskEnd::Election(elector.run(stop).await) });
    }

    /// Keeps the Lease of the kube-scheduler beside this replica, so that it leads when this replica
    /// does; `muster` is the name of Muster's own. Without this any kube-scheduler may ask, and a replica that
    /// does not lead refuses.
    pub fn keep_gate(&mut self, lease: PairLease, muster: &str) {
        let gate = Gate {
            lease,
            muster: muster.to_owned(),
            leads: self.leads.clone(),
            problem: self.gate_problem.clone(),
        };
        let kept = gate.run(self.stop.clone());
        self.spawn(async move { TaskEnd::Gate(kept.await) });
    }

    /// The extender's verbs, to be called in process.
    pub fn extender(&self) -> Router {
        self.extender.clone()
    }

    /// The agents' door, to be called in process.
    pub fn agents(&self) -> &Agents {
        &self.agents
    }

    /// `/metrics`, `/healthz`, `/readyz`, to be called in process.
    pub fn pages(&self) -> Router {
        self.pages.clone()
    }

    /// The published picture.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Statuses of Gang objects that were written.
    pub fn remembered(&self) -> &Arc<Remembered> {
        &self.remembered
    }

    /// Under which epoch this replica may write.
    pub fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// Whether this replica leads.
    pub fn leads(&self) -> bool {
        self.fence.led().0 != 0
    }

    /// Serves a router on a socket until the scheduler stops.
    pub fn serve(&mut self, door: Door, router: Router) {
        let stop = self.stop.clone();
        serve(&mut self.tasks, door, router, stop);
    }

    /// Serves the pages on a socket to the end, when nothing else is served any more: whoever ends processes that do not
    /// answer is to have an answer.
    pub fn serve_pages(&mut self, door: Door) {
        let (pages, stop) = (self.pages(), self.stop_pages.clone());
        serve(&mut self.pages_door, door, pages, stop);
    }

    /// Waits until something ends that should not, then ends the rest.
    pub async fn ended(&mut self) -> Ended {
        let first = tokio::select! {
            biased;
            first = self.tasks.join_next() => first,
            Some(first) = self.pages_door.join_next() => Some(first),
        };
        let mut ended = match first {
            None => Ended::Stopped,
            Some(Ok(end)) => verdict(end),
            Some(Err(error)) => Ended::Dead {
                task: "scheduler",
                detail: format!(": {error}"),
            },
        };
        self.fence.close();
        self.end_all().await;
        if ended == Ended::LeadershipLost {
            self.gate_problem.set(Some(ended.to_string()));
            let look = self.memory.look_back(|| self.pulse.beat());
            if self.hold.wrap(look).await {
                ended = Ended::WentBack;
            }
        }
        if ended == Ended::Deserted {
            // Started again at once it would take the Lease that it has just given back.
            tokio::time::sleep(MAKE_WAY).await;
        }
        self.end_pages().await;
        ended
    }

    /// Stops in order: no more Binds, no more writes, and at last the Lease is given back.
    pub async fn stop(&mut self) {
        self.binds.close(STOPPING);
        self.fence.close();
        self.end_all().await;
        self.end_pages().await;
    }

    /// The pages go last.
    async fn end_pages(&mut self) {
        self.stop_pages.cancel();
        while self.pages_door.join_next().await.is_some() {}
    }

    async fn end_all(&mut self) {
        /// Time for writes on their way and open connections.
        const REST_MAX: Duration = Duration::from_secs(10);
        self.binds.close(STOPPING);
        self.stop.cancel();
        self.stop_writer.cancel();
        // The Lease goes when nothing of this epoch is on its way any more. It does not wait for doors:
        // streams of agents take as long to end as they may.
        if tokio::time::timeout(REST_MAX, self.written.cancelled())
            .await
            .is_err()
        {
            tracing::warn!("some writes did not end in time");
        }
        self.stop_lease.cancel();
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(REST_MAX, rest).await.is_err() {
            tracing::warn!("some tasks did not end in time");
            self.tasks.shutdown().await;
        }
    }

    /// Ends at once, as a killed process does: nothing is given back. For tests.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
        self.pages_door.shutdown().await;
    }
}

/// Serves a door, and reads its certificates again when they change.
fn serve(tasks: &mut JoinSet<TaskEnd>, door: Door, router: Router, stop: CancellationToken) {
    if let Some(certificates) = door.certificates.clone() {
        let stop = stop.clone();
        tasks.spawn(async move {
            certificates.follow(stop).await;
            TaskEnd::Other("certificate reader")
        });
    }
    let name = door.name;
    tasks.spawn(async move {
        door.serve(router, stop).await;
        TaskEnd::Other(name)
    });
}

fn identities(
    clients: &Clients,
    config: &Config,
    options: &Options,
    metrics: &Arc<Metrics>,
) -> Identities {
    if options.agents_believed {
        return Identities::believed();
    }
    Identities::reviewed(
        clients.write.clone(),
        &config.agents,
        options.wall,
        Arc::clone(metrics),
    )
}

fn verdict(end: TaskEnd) -> Ended {
    match end {
        TaskEnd::Cycle(CycleEnd::LeadershipLost) | TaskEnd::Election(ElectionEnd::Lost) => {
            Ended::LeadershipLost
        }
        TaskEnd::Election(ElectionEnd::WentBack) => Ended::WentBack,
        TaskEnd::Gate(GateEnd::Deserted) => Ended::Deserted,
        TaskEnd::Gate(GateEnd::Stopped) => Ended::Dead {
            task: "gate",
            detail: String::new(),
        },
        TaskEnd::Watch(end) => Ended::Watch(end),
        TaskEnd::Cycle(end) => Ended::Dead {
            task: "cycle",
            detail: format!(" ({end:?})"),
        },
        TaskEnd::Election(end) => Ended::Dead {
            task: "election",
            detail: format!(" ({end:?})"),
        },
        TaskEnd::Other(task) => Ended::Dead {
            task,
            detail: String::new(),
        },
    }
}
