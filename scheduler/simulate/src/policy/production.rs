//! The production engine in a cluster that does not exist: writes are carried out on a small store,
//! and a job controller, a kube-scheduler and kubelets are played as far as the engine sees them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_core::action::{Action, Write};
use muster_core::engine::Engine;
use muster_core::event::{BindAsked, Event, Listing, Ticket};
use muster_core::ids::{Epoch, NodeName, PodUid};
use muster_core::state::State;
use muster_core::time::{Millis, Timestamp};
use muster_core::view::FilterAnswer;

use super::store::{Change, Store};
use super::{Fact, Policy, START, config, timestamp};
use crate::cluster::{Cluster, Holders};
use crate::error::Error;
use crate::scene::{GPU, GangSpec, Scene};

/// Rounds of decisions at one time after which something is wrong. Each round carries out a write of
/// every gang.
const ROUNDS_MAX: u32 = 10_000;

/// The engine, and the world around it.
#[derive(Debug)]
pub struct Production<'a> {
    scene: &'a Scene,
    engine: Engine,
    store: Store<'a>,
    /// How long a write takes.
    delay: Millis,
    /// Writes on their way, by when they are carried out.
    pending: BTreeMap<(Timestamp, u64), Write>,
    next: u64,
    /// Binds that are held.
    held: BTreeMap<Ticket, PodUid>,
    held_pods: BTreeSet<PodUid>,
    /// Pods that kube-scheduler looks at: those without a node.
    unbound: BTreeSet<PodUid>,
    /// Nodes whose agents have something new to say.
    unreported: BTreeSet<NodeName>,
    /// What is told before the next round.
    events: VecDeque<Event>,
    holders: Holders,
    /// Gangs of which pods were bound or lost since the last decision.
    moved: BTreeSet<usize>,
    running: BTreeSet<usize>,
    facts: Vec<Fact>,
    started: bool,
}

impl<'a> Production<'a> {
    /// An engine for these gangs that knows no node yet. Writes take `delay`.
    pub fn new(scene: &'a Scene, delay: Millis) -> Self {
        let mut policy = Self {
            scene,
            engine: Engine::new(config(scene)),
            store: Store::new(scene),
            delay,
            pending: BTreeMap::new(),
            next: 1,
            held: BTreeMap::new(),
            held_pods: BTreeSet::new(),
            unbound: BTreeSet::new(),
            unreported: BTreeSet::new(),
            events: VecDeque::new(),
            holders: Holders::new(),
            moved: BTreeSet::new(),
            running: BTreeSet::new(),
            facts: Vec::new(),
            started: false,
        };
        policy.engine.handle(
            Event::LeadershipGained {
                epoch: Epoch(1),
                first: true,
            },
            START,
        );
        policy
    }

    /// Lets everything happen that can happen without time passing.
    fn settle(&mut self, cluster: &mut Cluster, now_ms: u64) -> Result<(), Error> {
        let now = timestamp(now_ms);
        for _ in 0..ROUNDS_MAX {
            let mut moved = self.tell(cluster, now);
            self.engine.decide(now);
            while let Some(action) = self.engine.poll_action() {
                moved = true;
                self.carry_out(action, now);
            }
            moved |= self.carry_out_pending(now);
            moved |= self.schedule(now);
            let rest = self.engine.next_deadline_if_heard();
            if !moved && rest.is_none_or(|at| at > now) {
                return Ok(());
            }
        }
        Err(Error::Restless {
            seconds: now_ms.checked_div(1000).unwrap_or(0),
            rounds: ROUNDS_MAX,
        })
    }

    /// Tells what the watches and the agents bring.
    fn tell(&mut self, cluster: &mut Cluster, now: Timestamp) -> bool {
        let mut told = false;
        while let Some(event) = self.events.pop_front() {
            self.engine.handle(event, now);
            told = true;
        }
        for name in std::mem::take(&mut self.unreported) {
            let report = cluster
                .position(&name)
                .and_then(|node| cluster.report(node, &self.holders));
            if let Some(report) = report {
                self.engine.handle(Event::Report(report), now);
                told = true;
            }
        }
        if !self.started {
            self.started = true;
            self.engine.handle(Event::Synced, now);
        }
        told
    }

    fn carry_out(&mut self, action: Action, now: Timestamp) {
        match action {
            Action::AnswerBind { ticket, .. } => {
                // Refused or done: kube-scheduler tries it again if it is not bound.
                if let Some(pod) = self.held.remove(&ticket) {
                    self.held_pods.remove(&pod);
                }
            }
            Action::Announce(_) => {}
            Action::Relist => {
                let pods: Vec<Event> = self.store.pods().cloned().map(Event::PodApplied).collect();
                for event in pods {
                    self.engine.handle(event, now);
                }
                for listing in [Listing::Pods, Listing::Gangs] {
                    self.engine.handle(Event::Relisted(listing), now);
                }
            }
            Action::Write(write) if self.delay == Millis(0) => self.write(write, now),
            Action::Write(write) => {
                let number = self.number();
                self.pending.insert((now + self.delay, number), write);
            }
        }
    }

    fn carry_out_pending(&mut self, now: Timestamp) -> bool {
        let mut moved = false;
        while let Some(entry) = self.pending.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let write = entry.remove();
            self.write(write, now);
            moved = true;
        }
        moved
    }

    fn write(&mut self, write: Write, now: Timestamp) {
        let id = write.id;
        let outcome = self.store.perform(write);
        self.engine.handle(Event::WriteDone { id, outcome }, now);
        self.take_changes(now);
    }

    /// What a change of the store means for nodes, kube-scheduler and gangs.
    fn take_changes(&mut self, now: Timestamp) {
        while let Some(change) = self.store.poll_change() {
            match change {
                Change::Told(event) => self.events.push_back(event),
                Change::Born(uid) => {
                    self.unbound.insert(uid);
                }
                Change::Bound(uid, gang) => {
                    self.unbound.remove(&uid);
                    self.moved.insert(gang);
                    if let Some(pod) = self.store.pod(&uid)
                        && let Some(node) = pod.node.clone()
                    {
                        for device in pod.record.iter().flat_map(|record| &record.devices) {
                            let holder = (pod.namespace.clone(), pod.name.clone());
                            self.holders.insert(device.clone(), holder);
                        }
                        self.unreported.insert(node.clone());
                        let gpus = pod.shape.requests.extended(GPU);
                        self.facts.push(Fact::Takes { gang, node, gpus });
                    }
                }
                Change::Left(pod, gang) => {
                    self.unbound.remove(&pod.uid);
                    // A replacement may be bound before any time has passed: what was done is lost.
                    if self.lacks_members(gang) && self.running.remove(&gang) {
                        self.facts.push(Fact::Halts { gang });
                    }
                    self.moved.insert(gang);
                    if self.held_pods.remove(&pod.uid) {
                        self.drop_bind(&pod.uid, now);
                    }
                    let Some(node) = pod.node.clone() else {
                        continue;
                    };
                    for device in pod.record.iter().flat_map(|record| &record.devices) {
                        self.holders.remove(device);
                    }
                    self.unreported.insert(node.clone());
                    let gpus = pod.shape.requests.extended(GPU);
                    self.facts.push(Fact::Frees { gang, node, gpus });
                }
            }
        }
    }

    fn drop_bind(&mut self, pod: &PodUid, now: Timestamp) {
        let dropped: Vec<Ticket> = self
            .held
            .iter()
            .filter(|(_, held)| *held == pod)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in dropped {
            self.held.remove(&ticket);
            self.engine.handle(Event::BindDropped(ticket), now);
        }
    }

    /// kube-scheduler: asks Filter for every pod without a node, and to bind where it may go.
    fn schedule(&mut self, now: Timestamp) -> bool {
        if self.unbound.len() == self.held_pods.len() {
            return false;
        }
        let view = self.engine.view();
        let asked: Vec<(PodUid, NodeName)> = self
            .unbound
            .iter()
            .filter(|uid| !self.held_pods.contains(*uid))
            .filter_map(|uid| {
                let pod = self.store.pod(uid)?;
                match view.filter(uid, pod.membership.as_ref()) {
                    FilterAnswer::Only(node) => Some((uid.clone(), node)),
                    _ => None,
                }
            })
            .collect();
        let moved = !asked.is_empty();
        for (uid, node) in asked {
            let ticket = Ticket(self.number());
            let Some(pod) = self.store.pod(&uid) else {
                continue;
            };
            let asked = BindAsked {
                ticket,
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                pod: uid.clone(),
                node,
            };
            self.held.insert(ticket, uid.clone());
            self.held_pods.insert(uid);
            self.engine.handle(Event::BindAsked(asked), now);
        }
        moved
    }

    fn number(&mut self) -> u64 {
        self.next = self.next.saturating_add(1);
        self.next
    }

    fn lacks_members(&self, gang: usize) -> bool {
        let minimum = self.scene.gangs.get(gang).map_or(0, GangSpec::minimum);
        self.store.bound(gang) < minimum
    }

    /// Which gangs have begun to run.
    fn note_runs(&mut self) {
        for gang in std::mem::take(&mut self.moved) {
            let bound = self.store.bound(gang) > 0;
            if bound && !self.lacks_members(gang) && self.running.insert(gang) {
                self.facts.push(Fact::Runs { gang });
            }
        }
    }
}

impl Policy for Production<'_> {
    fn node_changed(&mut self, cluster: &mut Cluster, node: usize, now_ms: u64) {
        let Some(name) = cluster.name(node).cloned() else {
            return;
        };
        match cluster.object(node) {
            Some(object) => {
                self.unreported.insert(name);
                self.events.push_back(Event::NodeApplied(object));
            }
            None => {
                self.events.push_back(Event::NodeRemoved(name.clone()));
                self.store.lose_pods(&name);
                self.take_changes(timestamp(now_ms));
            }
        }
    }

    fn arrived(&mut self, gang: usize, now_ms: u64) {
        self.store.submit(gang, timestamp(now_ms));
        self.take_changes(timestamp(now_ms));
    }

    fn ended(&mut self, gang: usize, now_ms: u64) {
        self.running.remove(&gang);
        self.store.end(gang);
        self.take_changes(timestamp(now_ms));
    }

    fn decide(
        &mut self,
        cluster: &mut Cluster,
        now_ms: u64,
        facts: &mut Vec<Fact>,
    ) -> Result<(), Error> {
        self.settle(cluster, now_ms)?;
        // A job that has ended is taken away at once, with its pods and its Gang object.
        if self.store.clear_ended() {
            self.take_changes(timestamp(now_ms));
            self.settle(cluster, now_ms)?;
        }
        self.note_runs();
        facts.append(&mut self.facts);
        Ok(())
    }

    fn deadline_ms(&self) -> Option<u64> {
        let pending = self.pending.first_key_value().map(|((at, _), _)| *at);
        [pending, self.engine.next_deadline_if_heard()]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.since(START).0)
    }

    fn reason(&self, gang: usize) -> Option<String> {
        self.store.reason(gang)
    }

    fn state(&self, now_ms: u64) -> Option<State> {
        Some(self.engine.state(timestamp(now_ms)))
    }

    fn audit(&mut self) -> u64 {
        u64::try_from(self.engine.audit().len()).unwrap_or(u64::MAX)
    }
}
