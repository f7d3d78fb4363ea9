//! The engine: events in, actions out. The only owner of what is believed and promised.
//!
//! ```text
//!   handle(event)   takes it in: ledger, inventory, gangs; marks what it touches
//!   decide()        for each gang that was touched:
//!                     members   pods claim their slots
//!                     repair    slots whose node no longer qualifies lose it
//!                     release   job unsuspended, gates taken off, pods woken
//!                     barrier   Binds are held until all are there, then all bind
//!                   then planning, in order of the queue: whole gangs, one after the other
//!                   then status and events, then the published view
//!   poll_action()   what is to be done outside
//! ```
//!
//! Nothing acts inside `handle`: a burst of a thousand events leads to one round of decisions.

mod audit;
mod awaited;
mod away;
mod barrier;
mod capacity;
mod confined;
mod demand;
mod doubt;
mod failures;
mod fencing;
mod freeze;
mod gang;
mod intake;
mod keeping;
mod leftover;
mod members;
mod needs;
mod places;
mod planning;
mod predictions;
mod publish;
mod quarantine;
mod refused;
mod release;
mod repair;
mod state;
mod status;
mod topology;
mod unbelieved;
#[cfg(test)]
#[path = "../../tests/engine/world/mod.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use priority_queue::PriorityQueue;

use crate::action::{Action, PodTarget, Write, WriteKind};
use crate::breaker::Breaker;
use crate::config::Config;
use crate::event::{BindAsked, Event, Listing, Ticket, WriteId};
use crate::ids::{Epoch, GangKey, NodeName, PlanId, PodUid, ResourceVersion};
use crate::inventory::Inventory;
use crate::ledger::{Ledger, Unbelieved};
use crate::planted::{self, Bug};
use crate::pod::Pod;
use crate::snapshot::Snapshot;
use crate::time::{Millis, Timestamp};
use crate::view::View;
use crate::workload::Workload;

pub use audit::{AUDITED, Broken, Violation};
pub use freeze::Frozen;
use gang::{Gang, Seat};
pub use keeping::KeptNodes;
use planning::Rank;
pub use predictions::Predictions;

/// Waiting gangs. The hasher has fixed keys: two runs over the same events walk it in one order,
/// whatever the crate makes of its hashes.
type Queue = PriorityQueue<GangKey, Rank, BuildHasherDefault<DefaultHasher>>;

/// How often the age of reports is looked at.
const AGE_CHECK: Millis = Millis(1000);

/// Silence after which the devices of a node that does not exist any more are forgotten.
const FORGET_NODE: Millis = Millis::from_secs(600);

/// Plans that one scheduler makes at most: more than a thousand a second for a hundred years.
const PLANS_MAX: u64 = 1 << 42;

/// Rounds of consequences within one decision.
const ROUNDS_MAX: usize = 4;

/// What a write on its way is for.
#[derive(Clone, Debug)]
enum Purpose {
    CreateRecord(GangKey),
    PutStatus(GangKey),
    DeleteRecord(GangKey),
    ChangeJob(GangKey),
    ShowJob(GangKey),
    ReleasePod(GangKey, Seat),
    Bind(Box<BindPurpose>),
    BindLoose(PodUid, NodeName, ResourceVersion),
    DeletePod(PodUid),
    Stamp(Stamped),
}

/// What a new leader stamps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stamped {
    Pod(PodUid),
    /// By the UID of its Gang object too: one that is made again is another one.
    Gang(GangKey, Arc<str>),
}

/// What a Binding that is on its way binds.
#[derive(Clone, Debug)]
struct BindPurpose {
    gang: GangKey,
    seat: Seat,
    pod: PodUid,
    /// The pod as it was when the Binding was sent.
    version: ResourceVersion,
    node: NodeName,
    record: crate::pod::BindRecord,
}

/// A Bind of a pod that belongs to no gang.
#[derive(Clone, Debug)]
struct LooseBind {
    ticket: Option<Ticket>,
    slot: crate::ledger::SlotKey,
    node: NodeName,
    /// The Binding that is on its way; `None` when no outcome is awaited.
    write: Option<WriteId>,
    /// Newest resourceVersion of the pod that a Binding has cited whose outcome is not known.
    doubtful: Option<ResourceVersion>,
}

/// A pod that is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deleting {
    /// Asked for, or done and not seen yet: nothing is repeated.
    Sent,
    /// It failed: not again before this.
    NotBefore(Timestamp),
}

/// Whether this replica may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    /// It does not lead.
    No,
    /// It leads; the pods that are not bound are being stamped.
    Fencing,
    /// It leads; pods were stamped, and the LIST after that is awaited.
    Relisting,
    /// It leads and may plan.
    Yes,
}

/// Owns everything that is believed and promised. One task calls it; nobody else sees inside.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    ledger: Ledger,
    inventory: Inventory,
    /// Stops mass quarantine.
    breaker: Breaker,
    /// Pods of our scheduler. Others are in the ledger only.
    pods: BTreeMap<PodUid, Pod>,
    /// Boxed: one that is looked at is taken out for the time, and is large.
    gangs: BTreeMap<GangKey, Box<Gang>>,
    /// Jobs that do not say that they are ours. A pod of theirs that names our scheduler says it.
    foreign: BTreeMap<GangKey, Workload>,
    queue: Queue,
    tickets: BTreeMap<Ticket, BindAsked>,
    /// Binds of pods that have not been seen yet.
    strays: BTreeMap<Ticket, Timestamp>,
    loose: BTreeMap<PodUid, LooseBind>,
    deleting: BTreeMap<PodUid, Deleting>,
    /// Room that a Binding may still take up, by pod.
    doubts: BTreeMap<PodUid, Vec<doubt::Doubt>>,
    next_doubt: u32,
    in_flight: BTreeMap<WriteId, Purpose>,
    /// Gang objects of gangs that are gone, to be deleted.
    leftovers: BTreeMap<GangKey, leftover::Leftover>,
    dirty: BTreeSet<GangKey>,
    dirty_nodes: BTreeSet<NodeName>,
    /// Nodes of whose devices something was heard, to be compared with predictions.
    heard_nodes: BTreeSet<NodeName>,
    predictions: Predictions,
    /// What agents report and does not count, by node.
    unbelieved: BTreeMap<NodeName, Unbelieved>,
    /// Members on devices that have failed.
    failures: BTreeMap<PodUid, failures::Failure>,
    timers: BTreeSet<(Timestamp, GangKey)>,
    fresh: BTreeMap<NodeName, bool>,
    awaited: awaited::Awaited,
    age_checked_at: Timestamp,
    /// Grows whenever capacity may have grown.
    revision: u64,
    snapshot: Snapshot,
    lead: Lead,
    /// When the present leadership began.
    led_at: Timestamp,
    /// Since when the API server has not answered.
    away_since: Option<Timestamp>,
    /// What stands still on purpose.
    freeze: freeze::Freeze,
    /// Since when deadlines stand still, for either.
    halted_since: Option<Timestamp>,
    /// When the last decision was taken.
    decided_at: Timestamp,
    epoch: Epoch,
    /// Nobody led before this leadership.
    leads_first: bool,
    synced: bool,
    /// Stamps on their way, by write; what is to be stamped again after a pause; whose stamp was
    /// answered, which the watch may show late, or refused for good.
    stamps: BTreeSet<WriteId>,
    restamp: BTreeSet<Stamped>,
    /// When a pod of a job was last seen for the first time, unbound.
    job_pod_born_at: Timestamp,
    fenced: BTreeSet<Stamped>,
    /// The LISTs after the stamps that are in.
    relisted: BTreeSet<Listing>,
    /// What the first LIST of this leadership has shown is stamped too.
    fenced_again: bool,
    /// When the fence is looked at again: a stamp is repeated, or the LIST asked for again.
    fence_at: Timestamp,
    next_write: u64,
    next_plan: u64,
    next_sequence: u64,
    actions: VecDeque<Action>,
    view: Arc<View>,
    /// Nodes that are kept for gangs that have waited for long.
    keeping: keeping::Keeping,
    /// What found no place in the pass that is going on.
    unplaceable: BTreeMap<Arc<planning::Question>, crate::reason::Unplaceable>,
    view_dirty: BTreeSet<GangKey>,
    /// Members that are gone since the view was published.
    view_gone: Vec<PodUid>,
}

/// What is to be done for a gang in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stock {
    Gone,
    /// Nothing more.
    Still,
    Taken,
}

impl Engine {
    /// An engine that knows nothing and does not lead.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            ledger: Ledger::default(),
            inventory: Inventory::default(),
            breaker: Breaker::default(),
            pods: BTreeMap::new(),
            gangs: BTreeMap::new(),
            foreign: BTreeMap::new(),
            queue: Queue::with_default_hasher(),
            tickets: BTreeMap::new(),
            strays: BTreeMap::new(),
            loose: BTreeMap::new(),
            deleting: BTreeMap::new(),
            doubts: BTreeMap::new(),
            next_doubt: 0,
            in_flight: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            dirty: BTreeSet::new(),
            dirty_nodes: BTreeSet::new(),
            heard_nodes: BTreeSet::new(),
            predictions: Predictions::default(),
            unbelieved: BTreeMap::new(),
            failures: BTreeMap::new(),
            timers: BTreeSet::new(),
            fresh: BTreeMap::new(),
            awaited: awaited::Awaited::default(),
            age_checked_at: Timestamp(0),
            led_at: Timestamp(0),
            away_since: None,
            freeze: freeze::Freeze::default(),
            halted_since: None,
            decided_at: Timestamp(0),
            revision: 1,
            snapshot: Snapshot::default(),
            lead: Lead::No,
            leads_first: false,
            epoch: Epoch(0),
            synced: false,
            stamps: BTreeSet::new(),
            restamp: BTreeSet::new(),
            job_pod_born_at: Timestamp(0),
            fenced: BTreeSet::new(),
            relisted: BTreeSet::new(),
            fenced_again: false,
            fence_at: Timestamp(0),
            next_write: 1,
            next_plan: 1,
            next_sequence: 1,
            actions: VecDeque::new(),
            view: Arc::default(),
            keeping: keeping::Keeping::default(),
            unplaceable: BTreeMap::new(),
            view_dirty: BTreeSet::new(),
            view_gone: Vec::new(),
        }
    }

    /// Takes one event in. Decides nothing yet: see [`Engine::decide`].
    pub fn handle(&mut self, event: Event, now: Timestamp) {
        self.take_in(event, now);
    }

    /// Decides on everything taken in so far: plans, commits, releases, answers. Called once after
    /// each batch of events, and when the deadline passes.
    pub fn decide(&mut self, now: Timestamp) {
        self.decided_at = now;
        self.check_ages(now);
        self.tend_breaker(now);
        self.wake_expired(now);
        self.compare_predictions(now);
        self.tend_fence(now);
        if self.may_act() {
            self.tend_leftovers(now);
            if !self.strays.is_empty() {
                // Before it is asked whether there is room for a pod of no gang.
                for key in self.dirty.clone() {
                    self.take_stock(&key, now);
                }
            }
            let mut touched = self.settle_strays(now);
            // Giving room back on a node touches the other gangs with slots there. What is still
            // dirty after the last round is looked at in the next decision, at once.
            for _ in 0..ROUNDS_MAX {
                let round = std::mem::take(&mut self.dirty);
                if round.is_empty() {
                    break;
                }
                // A pod that is bound is charged, and its place is reserved until its gang has been told: until all have,
                // there seems to be less room on a node than there is.
                let ready: Vec<&GangKey> = round
                    .iter()
                    .filter(|key| self.take_stock(key, now))
                    .collect();
                for key in ready {
                    self.advance(key, now);
                }
                touched.extend(round);
            }
            // Not before that: between the charge of a pod that is bound and the end of its
            // reservation there is less room for a moment, and then it seems to grow.
            self.refresh_capacity(now);
            touched.extend(self.plan_waiting(now));
            for key in &touched {
                self.finish_round(key, now);
            }
        }
        self.refresh_capacity(now);
        self.publish();
    }

    /// The next thing to do outside.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Engine::decide`] wants to be called even if nothing happens.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let age = (!self.fresh.is_empty()).then(|| self.age_checked_at + AGE_CHECK);
        [age, self.next_deadline_if_heard()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The same for an owner that knows every agent to be heard all the time, so that nobody needs to
    /// look at the age of reports: a replay of months jumps from one event to the next.
    pub fn next_deadline_if_heard(&self) -> Option<Timestamp> {
        let gang = self.timers.first().map(|(at, _)| *at);
        let stray = self
            .strays
            .values()
            .min()
            .copied()
            .filter(|_| self.may_act());
        let fencing = matches!(self.lead, Lead::Fencing | Lead::Relisting) && self.synced;
        let fence = (fencing && (self.lead == Lead::Relisting || !self.restamp.is_empty()))
            .then_some(self.fence_at);
        let rest = (self.may_act() && !self.dirty.is_empty()).then_some(Timestamp(0));
        let leftover = self.next_leftover().filter(|_| self.may_act());
        let planning = self.may_act() && !self.queue.is_empty() && self.may_await_agents();
        let awaited = planning.then(|| self.agents_awaited_until());
        let breaker = self.breaker_closes_at();
        let kept = self.keeping.next_deadline(self.config.reserve_after);
        let kept = kept.filter(|_| self.may_act());
        [gang, stray, fence, rest, leftover, awaited, breaker, kept]
            .into_iter()
            .flatten()
            .min()
    }

    /// The picture for readers, as of the last [`Engine::decide`].
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// Nodes whose agent has been heard not longer ago than a report counts.
    pub fn nodes_reported(&self) -> usize {
        self.fresh.values().filter(|fresh| **fresh).count()
    }

    /// Limits and choices.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn may_act(&self) -> bool {
        self.lead == Lead::Yes && self.synced
    }

    fn write(
        &mut self,
        gang: &GangKey,
        plan: Option<PlanId>,
        purpose: Purpose,
        what: WriteKind,
    ) -> WriteId {
        let id = WriteId(self.next_write);
        self.next_write = self.next_write.saturating_add(1);
        self.in_flight.insert(id, purpose);
        self.actions.push_back(Action::Write(Write {
            id,
            gang: gang.clone(),
            plan,
            epoch: self.epoch,
            what,
        }));
        id
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<(), Arc<str>>) {
        self.strays.remove(&ticket);
        if self.tickets.remove(&ticket).is_some() {
            self.actions
                .push_back(Action::AnswerBind { ticket, answer });
        }
    }

    fn new_plan_id(&mut self) -> PlanId {
        let id = PlanId::from(format!("e{}-{}", self.epoch, self.next_plan));
        self.next_plan = self.next_plan.saturating_add(1);
        id
    }

    /// Keeps clear of a plan id that was seen: a process that starts again in the epoch of an
    /// earlier one counts on from there.
    fn note_plan_id(&mut self, id: &PlanId) {
        let number = id
            .as_str()
            .strip_prefix('e')
            .and_then(|rest| rest.split_once('-'))
            .filter(|(epoch, _)| epoch.parse() == Ok(self.epoch.0) || self.lead == Lead::No)
            .and_then(|(_, number)| number.parse::<u64>().ok());
        if let Some(number) = number {
            self.next_plan = self.next_plan.max(number.saturating_add(1));
        }
    }

    /// The same for an id that a pod shows. Its user may have written it: a number that no scheduler
    /// comes to would leave none for the plans that follow.
    fn note_plan_id_of_pod(&mut self, id: &PlanId) {
        let number = id.as_str().rsplit_once('-').map(|(_, number)| number);
        let sane = |number: &str| number.parse::<u64>().is_ok_and(|number| number < PLANS_MAX);
        if number.is_some_and(sane) {
            self.note_plan_id(id);
        }
    }

    /// Answers a Bind of a pod that is bound to `node`, or gone.
    fn answer_bound(&mut self, ticket: Ticket, node: Option<&NodeName>) {
        let asked = self.tickets.get(&ticket).map(|asked| asked.node.clone());
        let answer = match (node, asked) {
            (Some(node), Some(asked)) if *node == asked && !planted::is(Bug::BoundIsRefused) => {
                Ok(())
            }
            (Some(_), _) => Err(Arc::from(barrier::BOUND_ELSEWHERE)),
            (None, _) => Err(Arc::from(members::LOST_SLOT)),
        };
        self.answer(ticket, answer);
    }

    /// Deletes a pod, once; again only when that failed, and after a pause. Not while all is frozen.
    fn delete_pod(&mut self, gang: &GangKey, uid: &PodUid, plan: Option<PlanId>, now: Timestamp) {
        if self.is_frozen() {
            return;
        }
        match self.deleting.get(uid) {
            Some(Deleting::Sent) => return,
            Some(Deleting::NotBefore(at)) if now < *at => return,
            _ => {}
        }
        let Some(pod) = self.pods.get(uid).filter(|pod| !pod.terminating) else {
            return;
        };
        let pod = Self::target(pod);
        self.deleting.insert(uid.clone(), Deleting::Sent);
        let purpose = Purpose::DeletePod(uid.clone());
        self.write(gang, plan, purpose, WriteKind::DeletePod { pod });
    }

    fn target(pod: &Pod) -> PodTarget {
        PodTarget {
            namespace: pod.namespace.clone(),
            name: Arc::clone(&pod.name),
            uid: pod.uid.clone(),
            resource_version: pod.resource_version.clone(),
        }
    }

    /// Marks the gangs with unbound slots on a node.
    fn touch_node(&mut self, node: &NodeName) {
        self.dirty_nodes.insert(node.clone());
        self.dirty
            .extend(self.ledger.slots_on(node).map(|slot| slot.gang.clone()));
    }

    /// Looks at the age of every report, at most once a second.
    fn check_ages(&mut self, now: Timestamp) {
        if now.since(self.age_checked_at) < AGE_CHECK {
            return;
        }
        self.age_checked_at = now;
        let limit = self.config.report_age_max;
        let mut changed = Vec::new();
        let mut forgotten = Vec::new();
        let mut believed = self.inventory.each_fresh(now, limit).peekable();
        for (node, fresh) in &mut self.fresh {
            while believed.next_if(|(name, _)| *name < node).is_some() {}
            let found = believed.next_if(|(name, _)| *name == node);
            let is = found.is_some_and(|(_, is)| is);
            if is != *fresh {
                *fresh = is;
                changed.push(node.clone());
            }
            if !is
                && self.ledger.node(node).is_none()
                && !self.inventory.is_fresh(node, now, FORGET_NODE)
            {
                forgotten.push(node.clone());
            }
        }
        drop(believed);
        for node in forgotten {
            changed.extend(self.inventory.sharing(&node));
            self.fresh.remove(&node);
            self.inventory.remove(&node);
        }
        for node in changed {
            self.touch_node(&node);
        }
    }

    fn wake_expired(&mut self, now: Timestamp) {
        while let Some((at, key)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, key.clone()));
            if let Some(gang) = self.gangs.get_mut(&key) {
                gang.deadline = None;
            }
            self.dirty.insert(key);
        }
    }

    /// Runs `f` on a gang that is taken out of the map, so that it may use the rest of the engine.
    fn with_gang<T>(
        &mut self,
        key: &GangKey,
        f: impl FnOnce(&mut Self, &mut Gang) -> T,
    ) -> Option<T> {
        let mut gang = self.gangs.remove(key)?;
        let result = f(self, &mut gang);
        self.gangs.insert(key.clone(), gang);
        Some(result)
    }

    /// Who is in a gang that something happened to, and what they hold. Whether it is to go on in this round.
    fn take_stock(&mut self, key: &GangKey, now: Timestamp) -> bool {
        let stock = self.with_gang(key, |engine, gang| {
            if engine.is_gone(gang) {
                engine.dissolve(gang);
                return Stock::Gone;
            }
            if let gang::Record::Unreadable(why) = &gang.record {
                let why = Arc::clone(why);
                engine.stand_still(gang, why, now);
                return Stock::Still;
            }
            engine.adopt(gang, now);
            if engine.stop_if_unwanted(gang, now) {
                return Stock::Still;
            }
            engine.claim_members(gang, now);
            engine.note_leaving(gang, now);
            Stock::Taken
        });
        if stock == Some(Stock::Gone) {
            self.gangs.remove(key);
            self.queue.remove(key);
            self.view_dirty.insert(key.clone());
        }
        stock == Some(Stock::Taken)
    }

    /// One round for one gang whose stock was taken.
    fn advance(&mut self, key: &GangKey, now: Timestamp) {
        self.with_gang(key, |engine, gang| {
            if gang.plan.is_none() {
                engine.delete_confined(gang, now);
            }
            engine.check_slots(gang, now);
            engine.tend_failures(gang, now);
            engine.release(gang, now);
            engine.pass_barrier(gang, now);
            engine.enforce_deadlines(gang, now);
            engine.queue_up(gang, now);
        });
    }

    /// Commit, status, events, timers: after planning has had its turn.
    fn finish_round(&mut self, key: &GangKey, now: Timestamp) {
        self.with_gang(key, |engine, gang| {
            engine.show_hold(gang, now);
            engine.write_status(gang, now);
            engine.set_timer(gang, now);
        });
        self.view_dirty.insert(key.clone());
    }
}
