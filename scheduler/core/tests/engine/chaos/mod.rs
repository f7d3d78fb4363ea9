//! A world in which everything that may go wrong does, by the numbers of one seed: writes whose
//! outcome is not known, events that come late or twice, restarts with writes still on their way,
//! nodes, devices and agents that come and go, members that fail, jobs that are edited.
//!
//! ```text
//!   truth (World) ──watch──> five lanes, each in order, each late by its own count ──> engine
//!        ^                                                                              │
//!        └── applied, lost, refused, or applied with the answer lost <── writes <───────┘
//! ```

mod calm;
mod mischief;
mod players;
mod ruled;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use muster_core::action::{Action, Write, WriteKind};
use muster_core::event::{Event, Ticket, WriteOutcome};
use muster_core::ids::{GangKey, NodeName, PodUid, ResourceVersion};
use muster_core::pod::{Membership, PodPhase, PodShape};
use muster_core::time::Millis;

use crate::world::{GPU, World};

const NODES: u64 = 4;
const GPUS: u64 = 4;

/// A small generator (splitmix64): the same seed gives the same numbers everywhere.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True in `percent` of a hundred cases.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Pods that some controller of no interest makes: those of PodGroups, labels, and single ones.
struct Set {
    names: Vec<(String, Membership)>,
    shape: Arc<PodShape>,
    gated: bool,
    controlled: bool,
    born: bool,
}

pub struct Storm {
    pub world: World,
    pub rng: Rng,
    lanes: [VecDeque<Event>; 5],
    pending: VecDeque<Write>,
    zombies: VecDeque<Write>,
    relists: u32,
    asked: BTreeMap<Ticket, (PodUid, NodeName)>,
    /// Pods that Filter turned down, in the version in which they were.
    asleep: BTreeMap<PodUid, ResourceVersion>,
    silent: BTreeSet<String>,
    sets: Vec<Set>,
    epoch: u64,
    made: u64,
    /// Gang and name of every pod that was ever a member.
    members: BTreeMap<PodUid, (GangKey, Arc<str>)>,
    /// Turns for which the API server is still away.
    away: u64,
    /// An operator has frozen all.
    frozen: bool,
    /// Nothing goes wrong any more.
    calm: bool,
    /// What happened, when it is to be kept.
    pub trace: Option<Vec<String>>,
}

impl Storm {
    pub fn new(seed: u64) -> Self {
        let mut world = World::new(NODES as usize, GPUS);
        // Nodes are kept for whoever waits a little, or for some minutes.
        let limit = if seed.is_multiple_of(2) { 20 } else { 200 };
        world.config.reserve_after = Millis::from_secs(limit);
        world.restart(1);
        world.queued = true;
        world.graceful = true;
        for index in 0..NODES {
            let name = format!("n{index}");
            world.change_node(&name, |node| ruled::label(node, index));
        }
        world.add_node("cpu", 0);
        let node = world.nodes["cpu"].clone();
        world.tell(Event::NodeApplied(node));
        Self {
            world,
            rng: Rng(seed),
            lanes: Default::default(),
            pending: VecDeque::new(),
            zombies: VecDeque::new(),
            relists: 0,
            asked: BTreeMap::new(),
            asleep: BTreeMap::new(),
            silent: BTreeSet::new(),
            sets: Vec::new(),
            epoch: 1,
            made: 0,
            members: BTreeMap::new(),
            away: 0,
            frozen: false,
            calm: false,
            trace: None,
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {}", self.world.now.0, what()));
        }
    }

    /// One turn of everything.
    pub fn turn(&mut self) {
        if self.away > 0 {
            self.turn_without_api();
            return;
        }
        if !self.calm {
            self.mischief();
        }
        self.play_sets();
        self.world.play_operator();
        self.collect_garbage();
        self.play_kubelet();
        self.sort_watch();
        self.deliver();
        self.decide();
        self.play_scheduler();
        self.decide();
        self.carry_out();
        self.decide();
        self.check_truth();
    }

    /// Nothing changes in the API, nothing is heard of it, and no write is answered.
    fn turn_without_api(&mut self) {
        self.away -= 1;
        self.world.now = self.world.now + Millis(self.rng.below(3000));
        self.agents_report();
        self.sort_watch();
        self.deliver_lane(4);
        self.decide();
        for write in std::mem::take(&mut self.pending) {
            let outcome = WriteOutcome::Unknown(Arc::from("no answer"));
            self.note(|| format!("done {:?} api is away", write.id));
            self.world.engine.handle(
                Event::WriteDone {
                    id: write.id,
                    outcome,
                },
                self.world.now,
            );
        }
        self.decide();
        if self.away == 0 {
            self.note(|| "api is back".to_owned());
            self.world.engine.handle(Event::ApiBack, self.world.now);
            self.decide();
        }
        self.check_truth();
    }

    fn sort_watch(&mut self) {
        while let Some(event) = self.world.watch.pop_front() {
            let lane = match &event {
                Event::PodApplied(_) | Event::PodRemoved(_) => 0,
                Event::NodeApplied(_) | Event::NodeRemoved(_) => 1,
                Event::WorkloadApplied(_) | Event::WorkloadRemoved(_) => 2,
                Event::RecordApplied(_) | Event::RecordRemoved(_) => 3,
                _ => 4,
            };
            self.lanes[lane].push_back(event);
        }
    }

    fn deliver(&mut self) {
        for lane in 0..self.lanes.len() {
            self.deliver_lane(lane);
        }
    }

    fn deliver_lane(&mut self, lane: usize) {
        let count = if self.calm {
            usize::MAX
        } else if self.rng.chance(30) {
            0
        } else {
            self.rng.below(6) as usize
        };
        for _ in 0..count {
            let Some(event) = self.lanes[lane].pop_front() else {
                break;
            };
            let twice = !self.calm && self.rng.chance(10);
            self.note(|| format!("event {}", short(&event)));
            if twice {
                self.world.engine.handle(event.clone(), self.world.now);
            }
            self.world.engine.handle(event, self.world.now);
        }
    }

    fn decide(&mut self) {
        for round in 0.. {
            self.world.engine.decide(self.world.now);
            let mut violations = self.world.engine.audit();
            violations.extend(self.world.engine.audit_nodes());
            assert!(violations.is_empty(), "{violations:?}");
            let due = self.world.engine.next_deadline();
            if due.is_none_or(|due| due > self.world.now) {
                break;
            }
            assert!(
                round < 20,
                "the engine wants to be called for ever: {due:?}"
            );
        }
        while let Some(action) = self.world.engine.poll_action() {
            self.take(action);
        }
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::AnswerBind { ticket, answer } => {
                self.note(|| format!("answer {ticket:?} {answer:?}"));
                self.world.held.remove(&ticket);
                let Some((uid, node)) = self.asked.remove(&ticket) else {
                    return;
                };
                if answer.is_ok() {
                    let bound = self.world.pods.get(&uid).map(|pod| pod.node.clone());
                    assert!(
                        bound.is_none_or(|bound| bound == Some(node)),
                        "OK for {uid} without its binding"
                    );
                } else if self
                    .world
                    .pods
                    .get(&uid)
                    .is_some_and(|pod| pod.node.is_none())
                {
                    self.world.change_pod(&uid, |_| {});
                }
            }
            Action::Announce(_) => {}
            Action::Relist => self.relists += 1,
            Action::Write(write) => {
                self.note(|| format!("write {:?} {} {:?}", write.id, write.gang, write.what));
                let touches = matches!(
                    write.what,
                    WriteKind::DeletePod { .. } | WriteKind::ChangeJob { .. }
                );
                assert!(!(self.frozen && touches), "frozen: {:?}", write.what);
                self.check_durable(&write);
                self.world.writes.push(write.clone());
                self.pending.push_back(write);
            }
        }
    }

    /// GANG-2: what is bound for a gang is in the stored plan, place for place.
    fn check_durable(&self, write: &Write) {
        let WriteKind::Bind {
            pod, node, plan, ..
        } = &write.what
        else {
            return;
        };
        let member = self
            .world
            .pods
            .get(&pod.uid)
            .is_some_and(|pod| pod.membership.is_some());
        if !member {
            return;
        }
        let Some(stored) = self.world.gangs.get(&write.gang) else {
            // Deleted behind its back an instant ago.
            return;
        };
        let stored = stored.record.plan.as_ref().ok().and_then(Option::as_ref);
        let known = stored.is_some_and(|stored| {
            stored.id == *plan && stored.slots.iter().any(|slot| slot.node == *node)
        });
        assert!(
            known,
            "{} is bound to {node} by {plan}, stored is {stored:?}",
            pod.name
        );
    }

    fn carry_out(&mut self) {
        let mut left = if self.calm {
            u64::MAX
        } else {
            self.rng.below(5)
        };
        while left > 0 && !self.pending.is_empty() {
            left -= 1;
            let at = self.rng.below(self.pending.len() as u64) as usize;
            let at = self.first_of_its_object(at);
            let write = self.pending.remove(at).unwrap();
            let id = write.id;
            let outcome = self.outcome(write);
            self.note(|| format!("done {id:?} {}", kind_of(&outcome)));
            self.world
                .engine
                .handle(Event::WriteDone { id, outcome }, self.world.now);
        }
        if self.relists > 0 && (self.calm || self.rng.chance(50)) {
            self.relists = 0;
            self.world.relist();
        }
        if !self.zombies.is_empty() && (self.calm || self.rng.chance(30)) {
            let write = self.zombies.pop_front().unwrap();
            self.note(|| format!("late {:?}", write.what));
            self.apply(write);
        }
    }

    /// The writer writes to one Gang object in order.
    fn first_of_its_object(&self, at: usize) -> usize {
        let of_gang = |write: &Write| {
            matches!(
                write.what,
                WriteKind::CreateRecord { .. }
                    | WriteKind::PutStatus { .. }
                    | WriteKind::StampRecord { .. }
                    | WriteKind::DeleteRecord { .. }
            )
        };
        let chosen = &self.pending[at];
        let mut all = self.pending.iter();
        let first = all.position(|write| of_gang(write) && write.gang == chosen.gang);
        first.filter(|_| of_gang(chosen)).unwrap_or(at)
    }

    fn outcome(&mut self, write: Write) -> WriteOutcome {
        let lost = || WriteOutcome::Unknown(Arc::from("no answer"));
        let stamp = matches!(
            write.what,
            WriteKind::StampPod { .. } | WriteKind::StampRecord { .. }
        );
        match if self.calm { 0 } else { self.rng.below(100) } {
            0..72 => self.apply(write),
            72..80 => {
                self.apply(write);
                lost()
            }
            80..88 => self.lose(write),
            88..94 => match &write.what {
                WriteKind::PutStatus { .. } => WriteOutcome::Conflict(
                    self.world
                        .gangs
                        .get(&write.gang)
                        .map(|stored| stored.record.clone()),
                ),
                WriteKind::CreateRecord { .. } => self.apply(write),
                _ => WriteOutcome::Conflict(None),
            },
            _ if stamp => lost(),
            _ => WriteOutcome::Refused(Arc::from("admission says no")),
        }
    }

    /// The answer does not come. Some Bindings are still on their way, and cite the pod as it was when
    /// the writer read it last.
    fn lose(&mut self, mut write: Write) -> WriteOutcome {
        let said = Arc::from("no answer");
        let late = write.id.0 % 2 == 0;
        if let WriteKind::Bind { pod, .. } = &mut write.what
            && late
            && let Some(known) = self.world.pods.get(&pod.uid)
        {
            let cited = known.resource_version.clone();
            pod.resource_version = cited.clone();
            self.zombies.push_back(write);
            return WriteOutcome::BindingUnknown { cited, said };
        }
        WriteOutcome::Unknown(said)
    }

    /// Carries a write out, and lets the kubelet turn away what it has no room for.
    fn apply(&mut self, write: Write) -> WriteOutcome {
        let bind = match &write.what {
            WriteKind::Bind { pod, node, .. } => Some((pod.uid.clone(), node.clone())),
            WriteKind::ChangeJob { job, .. } => {
                if !self.world.jobs.contains_key(&write.gang) {
                    return WriteOutcome::Gone;
                }
                let _ = job;
                None
            }
            _ => None,
        };
        let fresh = bind
            .as_ref()
            .and_then(|(uid, _)| self.world.pods.get(uid))
            .is_some_and(|pod| pod.node.is_none());
        let outcome = self.world.perform(write);
        if let Some((uid, node)) = bind
            && fresh
            && outcome == WriteOutcome::Done(None)
        {
            let offered = self
                .world
                .nodes
                .get(node.as_str())
                .map(|node| node.allocatable.extended(GPU));
            let Some(offered) = offered else {
                self.world.end_pod(&uid);
                return outcome;
            };
            let (ours, all) = self.used(&node);
            assert!(ours <= offered, "{node} carries {ours} of {offered}");
            if all > offered {
                self.world.change_pod(&uid, |pod| {
                    pod.phase = PodPhase::Failed;
                    pod.status_reason = Some(Arc::from("UnexpectedAdmissionError"));
                });
            }
        }
        outcome
    }

    fn used(&self, node: &NodeName) -> (u64, u64) {
        let on = self
            .world
            .pods
            .values()
            .filter(|pod| pod.holds_room() && pod.node.as_ref() == Some(node));
        on.fold((0, 0), |(ours, all), pod| {
            let each = pod.shape.requests.extended(GPU);
            (ours + if pod.ours { each } else { 0 }, all + each)
        })
    }

    /// DEV-1, by what the API says.
    fn check_truth(&mut self) {
        for pod in self.world.pods.values() {
            if let Some(member) = &pod.membership {
                let known = (member.gang.clone(), Arc::clone(&pod.name));
                self.members.entry(pod.uid.clone()).or_insert(known);
            }
        }
        for (name, node) in &self.world.nodes {
            let (ours, _) = self.used(&name.as_str().into());
            let offered = node.allocatable.extended(GPU);
            assert!(ours <= offered, "{name} carries {ours} of {offered}");
        }
        self.check_apart();
    }
}

fn kind_of(outcome: &WriteOutcome) -> String {
    match outcome {
        WriteOutcome::Done(_) => "done".to_owned(),
        WriteOutcome::Conflict(record) => format!("conflict {}", record.is_some()),
        other => format!("{other:?}"),
    }
}

fn short(event: &Event) -> String {
    match event {
        Event::PodApplied(pod) => format!(
            "pod {} {} v{} node {:?} {:?} terminating {} gated {} said {:?}",
            pod.name,
            pod.uid,
            pod.resource_version,
            pod.node,
            pod.phase,
            pod.terminating,
            pod.gated,
            pod.unschedulable
        ),
        Event::Report(report) => format!("report {}", report.node),
        Event::RecordApplied(record) => {
            format!("record {} v{}", record.object, record.resource_version)
        }
        other => format!("{other:?}"),
    }
}
