//! The one task that owns the engine.
//!
//! ```text
//!   Outbox ──batch──> handle ... handle, decide ──> view, published for the extender
//!                                              └──> actions ──> writer   (Write)
//!                                                          ├──> Binds    (AnswerBind)
//!                                                          └──> announcer (Announce)
//! ```
//!
//! A burst of events leads to one decision: after each, the cycle rests for a few times as long as it
//! took, so that a gang of hundreds whose members come one by one is looked at a few hundred times a
//! second, and a gang that comes alone at once. The cycle never waits for an action to be carried out:
//! writes that the writer has no room for are kept here, and the engine bounds how many there can
//! be. It sleeps until an event comes or the engine's next deadline passes, and stirs every few seconds
//! even then: `/healthz` fails when it has not for long.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use muster_core::action::{Action, Write, WriteKind};
use muster_core::breaker::BreakerState;
use muster_core::engine::Engine;
use muster_core::event::Event;
use muster_core::ids::GangKey;
use muster_core::record::{GangRecord, Phase};
use muster_core::state::State;
use muster_core::time::{Millis, Timestamp};
use muster_core::view::View;
use tokio::sync::{mpsc, oneshot, watch as signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::announce::Notice;
use crate::binds::Binds;
use crate::clock::Clock;
use crate::inbox::Outbox;
use crate::metrics::Metrics;
use crate::unbelieved::Unbelieving;
use crate::writer::Remembered;

/// Events taken in before the engine decides. Bounds how long a decision waits in a burst; large
/// enough that the first LIST of a big cluster takes few decisions.
const BATCH_MAX: usize = 1024;
/// Rest after a decision, in times of what it took: deciding takes at most a tenth of a processor.
const REST: u32 = 9;
/// Longest rest.
const REST_MAX: Duration = Duration::from_millis(20);
/// Longest sleep. The cycle never waits for anything else, so one that has not turned for much longer
/// hangs.
const STIR_EVERY: Duration = Duration::from_secs(5);
/// How often it is counted how many nodes are reported.
const COUNT_EVERY: Millis = Millis::from_secs(1);
/// How often the engine's invariants are checked: a walk over all gangs and nodes.
const AUDIT_EVERY: Millis = Millis::from_secs(15);

/// Everything the cycle works with.
#[derive(Debug)]
pub struct Cycle {
    /// The engine.
    pub engine: Engine,
    /// The clock that the engine is told.
    pub clock: Clock,
    /// Where events come from.
    pub outbox: Outbox,
    /// Where writes go.
    pub writes: mpsc::Sender<Write>,
    /// Where announcements go; a full queue drops them.
    pub announcements: mpsc::Sender<Notice>,
    /// Binds that wait for answers.
    pub binds: Arc<Binds>,
    /// The published picture.
    pub view: Arc<ArcSwap<View>>,
    /// When the picture was published, milliseconds on `clock`.
    pub published: Arc<AtomicU64>,
    /// When the cycle turned last.
    pub pulse: Pulse,
    /// Whether Filter is answered here: this replica leads, and is ready to.
    pub leads: signal::Sender<bool>,
    /// Counts the fresh LISTs that were asked for, of pods and of Gang objects. One channel for both would wake
    /// the two in any order, and no seed of the simulation would repeat itself.
    pub relist: [signal::Sender<u64>; 2],
    /// Whether all that there is to know was heard, and found to be right.
    pub rebuilt: signal::Sender<bool>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What the writer knows of Gang objects.
    pub remembered: Arc<Remembered>,
    /// When the invariants were checked last.
    pub audited: Timestamp,
    /// Who wants to see what the planner sees.
    pub looks: mpsc::Receiver<Look>,
    /// When the nodes that are reported were counted last.
    pub counted: Timestamp,
    /// How the breaker against mass quarantine stood when it was looked at last.
    pub breaker: BreakerState,
    /// What was told of devices that agents report and nobody believes.
    pub unbelieved: Unbelieving,
}

/// Where a copy of what the planner sees is awaited.
pub type Look = oneshot::Sender<State>;

/// When the cycle turned last. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Pulse {
    clock: Clock,
    turned: Arc<AtomicU64>,
}

impl Pulse {
    /// Longest time between two turns of a cycle that is well. A decision on a large cluster takes
    /// milliseconds.
    pub const MAX: Duration = Duration::from_secs(30);

    /// A cycle that turns now for the first time.
    pub fn new(clock: Clock) -> Self {
        let pulse = Self {
            clock,
            turned: Arc::default(),
        };
        pulse.beat();
        pulse
    }

    /// It turns, or is not needed any more.
    pub(crate) fn beat(&self) {
        self.turned.store(self.clock.now().0, Ordering::Relaxed);
    }

    /// Time since the last turn.
    pub fn age(&self) -> Duration {
        let turned = Timestamp(self.turned.load(Ordering::Relaxed));
        Duration::from_millis(self.clock.now().since(turned).0)
    }

    /// What is wrong with the cycle; `None` while it turns.
    pub fn problem(&self) -> Option<String> {
        let age = self.age();
        (age > Self::MAX).then(|| {
            format!(
                "the scheduling cycle hangs: its last turn was {} s ago",
                age.as_secs()
            )
        })
    }
}

/// Why the cycle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CycleEnd {
    /// It was asked to.
    Stopped,
    /// The leadership is lost; starting again is the way to forget what this leader believed.
    LeadershipLost,
    /// The writer is gone.
    WriterGone,
}

impl Cycle {
    /// Runs until stopped, or until the leadership is lost.
    pub async fn run(mut self, stop: CancellationToken) -> CycleEnd {
        let mut backlog: VecDeque<Write> = VecDeque::new();
        let mut gangs = GangStates::default();
        let mut rested = self.settle(&mut backlog, &mut gangs);
        loop {
            self.pulse.beat();
            // Where nothing happens, too: what is frozen waits for it, and what it lets go on is looked at now.
            self.audit();
            let deadline = self.engine.next_deadline();
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => return CycleEnd::Stopped,
                permit = self.writes.reserve(), if !backlog.is_empty() => {
                    let Ok(permit) = permit else { return CycleEnd::WriterGone };
                    if let Some(write) = backlog.pop_front() {
                        permit.send(write);
                    }
                    continue;
                }
                Some(look) = self.looks.recv() => {
                    // Whoever asked may have left.
                    let _ = look.send(self.engine.state(self.clock.now()));
                    continue;
                }
                () = tokio::time::sleep_until(rested), if Instant::now() < rested => continue,
                event = self.outbox.wait(), if Instant::now() >= rested => event,
                () = sleep_until(self.clock, deadline), if Instant::now() >= rested => {
                    Some(Event::Tick)
                }
                () = tokio::time::sleep(STIR_EVERY) => continue,
            };
            let Some(first) = first else {
                return CycleEnd::Stopped;
            };
            let lost = self.take_batch(first, &mut gangs);
            rested = self.settle(&mut backlog, &mut gangs);
            if lost {
                return CycleEnd::LeadershipLost;
            }
        }
    }

    /// Hands a batch to the engine; returns whether the leadership was lost in it.
    fn take_batch(&mut self, first: Event, gangs: &mut GangStates) -> bool {
        let now = self.clock.now();
        let mut lost = false;
        let mut next = Some(first);
        let mut taken: usize = 0;
        while let Some(event) = next {
            lost |= event == Event::LeadershipLost;
            self.hand_over(event, gangs, now);
            taken = taken.saturating_add(1);
            next = if taken < BATCH_MAX {
                self.outbox.take()
            } else {
                None
            };
        }
        for event in self.outbox.collect() {
            self.hand_over(event, gangs, now);
            taken = taken.saturating_add(1);
        }
        self.metrics.batch(taken);
        lost
    }

    fn hand_over(&mut self, event: Event, gangs: &mut GangStates, now: Timestamp) {
        match &event {
            // Its caller left while the event waited: the word of that may have come first.
            Event::BindAsked(asked) if !self.binds.is_held(asked.ticket) => return,
            Event::RecordApplied(record) => {
                gangs.find(record, &self.metrics);
                self.remembered.is_there(&record.key);
            }
            Event::RecordRemoved(key) => {
                gangs.forget(key, &self.metrics);
                self.remembered.gone(key);
            }
            _ => {}
        }
        self.engine.handle(event, now);
    }

    /// Lets the engine decide, sends its actions on their way and publishes its picture. Returns when
    /// the next decision may be made.
    fn settle(&mut self, backlog: &mut VecDeque<Write>, gangs: &mut GangStates) -> Instant {
        let started = Instant::now();
        self.engine.decide(self.clock.now());
        let view = self.engine.view();
        let leads = view.leading && view.synced;
        self.view.store(view);
        self.leads
            .send_if_modified(|told| std::mem::replace(told, leads) != leads);
        self.published.store(self.clock.now().0, Ordering::Relaxed);
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Write(write) => {
                    gangs.note(&write, &self.metrics);
                    match self.writes.try_send(write) {
                        Ok(()) => {}
                        Err(
                            mpsc::error::TrySendError::Full(write)
                            | mpsc::error::TrySendError::Closed(write),
                        ) => backlog.push_back(write),
                    }
                }
                Action::AnswerBind { ticket, answer } => {
                    self.metrics.bind_answered(answer.is_ok());
                    if !self.binds.answer(ticket, answer) {
                        self.metrics.bind_unheard();
                    }
                }
                Action::Relist => {
                    for relist in &self.relist {
                        relist.send_modify(|asked| *asked = asked.wrapping_add(1));
                    }
                }
                Action::Announce(announcement) => {
                    let gang = self.engine.view().gangs.get(&announcement.gang).cloned();
                    let plan = gang.and_then(|gang| gang.plan.clone());
                    self.announce(Notice::of_gang(announcement, plan));
                }
            }
        }
        let took = started.elapsed();
        self.metrics.decided(took, backlog.len());
        self.metrics.devices_predicted(self.engine.predictions());
        self.tell_breaker();
        let now = self.clock.now();
        if now.since(self.counted) >= COUNT_EVERY {
            self.counted = now;
            self.metrics.nodes_reported(self.engine.nodes_reported());
            let failed = self.engine.members_on_failed_devices();
            self.metrics.members_on_failed_gpus(failed);
            self.tell_unbelieved(now);
        }
        self.metrics.frozen(self.engine.frozen());
        self.metrics.kept(self.engine.kept_nodes());
        Instant::now() + took.saturating_mul(REST).min(REST_MAX)
    }
}

impl Cycle {
    fn announce(&self, notice: Notice) {
        if self.announcements.try_send(notice).is_err() {
            self.metrics.announcement_dropped();
        }
    }

    /// Counts the devices that agents report and nobody believes; who leads tells of them by Events.
    fn tell_unbelieved(&mut self, now: Timestamp) {
        let found = self.engine.unbelieved();
        let beyond = found.values().map(|found| found.beyond_allocatable);
        let beyond = beyond.fold(0, u64::saturating_add);
        self.metrics
            .unbelieved(self.engine.devices_cloned(), beyond);
        let leads = self.leads_now();
        let notices = self.unbelieved.look(&self.engine, leads, now);
        for notice in notices {
            self.announce(notice);
        }
    }

    fn leads_now(&self) -> bool {
        let view = self.engine.view();
        view.leading && view.synced
    }

    /// Raises the alarm when quarantine is stopped, and calls it off.
    fn tell_breaker(&mut self) {
        let state = self.engine.breaker();
        if state == self.breaker {
            return;
        }
        self.metrics.breaker(state);
        let BreakerState {
            open, turned, most, ..
        } = state;
        match (self.breaker.open, open) {
            (false, true) => tracing::error!(
                nodes = turned,
                most,
                "GPUs have turned bad on too many nodes at once: a fault of agents or drivers is likely. What turns bad on \
                 further nodes is planned all the same, until that has passed"
            ),
            (true, false) => tracing::warn!(
                nodes = turned,
                most,
                "what agents say of GPUs counts again on every node"
            ),
            _ => {}
        }
        self.breaker = state;
    }

    /// Checks the engine's invariants and its ledger now and then; what is broken is counted, logged and frozen
    /// until it is found right again.
    fn audit(&mut self) {
        let now = self.clock.now();
        if now.since(self.audited) < AUDIT_EVERY {
            return;
        }
        self.audited = now;
        let view = self.engine.view();
        for violation in self.engine.inspect() {
            self.metrics.invariant_violated(violation.id());
            let key = violation.gang.as_ref();
            let gang = key.and_then(|key| view.gangs.get(key));
            let plan = gang.and_then(|gang| gang.plan.as_ref());
            let plan = plan.map_or("", |plan| plan.as_str());
            let gang = key.map(ToString::to_string).unwrap_or_default();
            tracing::error!(%gang, plan, %violation, "an invariant is broken, what it is about is frozen");
        }
        self.metrics.frozen(self.engine.frozen());
        self.report_rebuilt();
    }

    /// Says whether this leadership knows what there is to know. While a restored cluster waits for that, what it waits
    /// for is told each time.
    fn report_rebuilt(&mut self) {
        let strangers = self.engine.devices_of_strangers();
        let rebuilt = self.engine.is_rebuilt() && strangers == 0;
        let changed = self
            .rebuilt
            .send_if_modified(|told| std::mem::replace(told, rebuilt) != rebuilt);
        if changed || (self.engine.frozen().all && !rebuilt) {
            let view = self.engine.view();
            tracing::info!(
                rebuilt,
                nodes = view.free.size(),
                nodes_reported = self.engine.nodes_reported(),
                gangs = view.gangs.size(),
                gpus_of_unknown_pods = strangers,
                "what is known was compared with what is reported"
            );
        }
    }
}

async fn sleep_until(clock: Clock, deadline: Option<Timestamp>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(clock.instant(at)).await,
        None => std::future::pending().await,
    }
}

/// Stands for the reason of a gang whose status this process has not written yet.
const FOUND: &str = "FoundAtStart";

/// Phase and reason of each gang as last written, for the gauges.
#[derive(Debug, Default)]
struct GangStates {
    states: BTreeMap<GangKey, (Phase, &'static str)>,
}

impl GangStates {
    fn note(&mut self, write: &Write, metrics: &Metrics) {
        let WriteKind::PutStatus { status, .. } = &write.what else {
            return;
        };
        let state = (
            status.phase,
            status
                .reason
                .as_ref()
                .map_or("None", |reason| reason.code()),
        );
        let before = self.states.insert(write.gang.clone(), state);
        if before != Some(state) {
            let plan = status.plan.as_ref().map_or("", |plan| plan.id.as_str());
            let (phase, reason) = (state.0.as_str(), state.1);
            tracing::info!(gang = %write.gang, plan, phase, reason, "gang");
            if let Some((phase, code)) = before {
                metrics.gangs(phase, code, -1);
            }
            metrics.gangs(state.0, state.1, 1);
        }
    }

    /// Notes a gang that an earlier process has written about.
    fn find(&mut self, record: &GangRecord, metrics: &Metrics) {
        if !self.states.contains_key(&record.key) {
            let state = (record.phase, FOUND);
            self.states.insert(record.key.clone(), state);
            metrics.gangs(state.0, state.1, 1);
        }
    }

    fn forget(&mut self, key: &GangKey, metrics: &Metrics) {
        if let Some((phase, code)) = self.states.remove(key) {
            metrics.gangs(phase, code, -1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox;

    #[tokio::test(start_paused = true)]
    async fn a_cycle_that_nothing_happens_to_turns_all_the_same() {
        let clock = Clock::start();
        let (_inbox, outbox) = inbox::inbox();
        let (writes, _written) = mpsc::channel(1);
        let (announcements, _announced) = mpsc::channel(1);
        let pulse = Pulse::new(clock);
        let cycle = Cycle {
            engine: Engine::new(muster_core::config::Config::default()),
            clock,
            outbox,
            writes,
            announcements,
            binds: Arc::new(Binds::new(1)),
            view: Arc::default(),
            published: Arc::default(),
            pulse: pulse.clone(),
            leads: signal::channel(false).0,
            relist: [signal::channel(0).0, signal::channel(0).0],
            rebuilt: signal::channel(false).0,
            metrics: Arc::default(),
            remembered: Arc::default(),
            audited: Timestamp(0),
            looks: mpsc::channel(1).1,
            counted: Timestamp(0),
            breaker: BreakerState::default(),
            unbelieved: Unbelieving::default(),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(cycle.run(stop.clone()));
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(61)).await;
            let age = pulse.age();
            assert!(age <= STIR_EVERY + Duration::from_secs(1), "{age:?}");
            assert_eq!(pulse.problem(), None);
        }
        stop.cancel();
        assert_eq!(running.await.unwrap(), CycleEnd::Stopped);
        tokio::time::sleep(Pulse::MAX).await;
        tokio::time::sleep(STIR_EVERY).await;
        assert!(
            pulse.problem().is_some(),
            "it turned last when it was stopped"
        );
    }
}
