//! Nodes that are kept for gangs that have waited for long. A gang that fits only while small ones leave it room waits
//! for as long as others come: each of them is placed as soon as it fits, and takes what has just become free.
//!
//! ```text
//!   waits longer than queue.reserveAfter,        the planner, on nodes without
//!   short of room only for now            ──>    what runs there: a place        ──>  its nodes are kept
//!                                                                                       │
//!   gangs behind it in the queue: not on these nodes  <─────────────────────────────────┤
//!   it starts, goes, is edited; a node is lost: let go, and all who wait are tried again <┘
//! ```
//!
//! Who is kept nodes for follows from the queue and from when objects were made, nothing of it is written: another
//! leader comes to the same. Which nodes, from what has to end there: those that have become empty for it meanwhile are
//! chosen first. Nobody is evicted, and whoever runs is repaired on kept nodes, too.
//!
//! What runs on kept nodes may never end, and then they would stand idle for ever. So once nothing has ended there for
//! `queue.keepFor` they are let go, and are kept for nobody for as long again, in which whoever waits gets what is free. The
//! gang may have others kept meanwhile. A leader does not know what was kept before it led: of a gang that was due then
//! it takes it that times with kept nodes and without have followed each other, so that none has more by a change of leaders.
//!
//! How long a gang has waited is told by the API server's clock: that is, at the least, the latest time at which an
//! object was made, and what has passed here since it was seen. While nothing is made, nothing passes a gang.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use super::gang::Gang;
use super::planning::{Question, Rank, Sought};
use crate::config::Config;
use crate::ids::{GangKey, NodeName};
use crate::ledger::Ending;
use crate::plan::{Burden, Placement, place_later};
use crate::reason::Reason;
use crate::resources::Resources;
use crate::snapshot::{Eligibility, NodeCapacity, Snapshot};
use crate::time::{Millis, Timestamp};

/// Most gangs that nodes are kept for at a time: those of several pools need not wait for each other, and yet one
/// long queue does not idle a cluster.
const KEPT_MAX: usize = 8;

/// What is kept, and for whom.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    gangs: BTreeMap<GangKey, Kept>,
    /// The same by node: each is kept for one gang.
    nodes: BTreeMap<NodeName, GangKey>,
    /// When each of them is let go if nothing ends on those of its gang before, whoever it has been kept for.
    ends: BTreeMap<NodeName, Timestamp>,
    /// Nodes that were, and when they may be kept again.
    resting: BTreeMap<NodeName, Timestamp>,
    /// When the next gang may have nodes kept again that may not now.
    next_turn: Option<Timestamp>,
    /// The first pass of this leadership.
    began: Option<Timestamp>,
    /// Every node as it will be once members of gangs have ended. It is there while a gang is short that has waited
    /// for long.
    later: Option<Snapshot>,
    /// The API server's clock less the engine's, milliseconds, at the least.
    clock_ahead_ms: Option<i64>,
    /// When the next gang was made that will have waited for long, seconds.
    next_created: Option<i64>,
    /// Gangs with a kept node that has changed.
    doubtful: BTreeSet<GangKey>,
    /// Nodes were let go while the queue was gone through: those looked at before are to be tried again.
    stirred: bool,
    found: Found,
}

/// What was found in the pass that is going on. Those that come later in it have a lower rank, and find no more.
#[derive(Debug, Default)]
struct Found {
    /// No nodes can be kept for these.
    hopeless: BTreeSet<Arc<Question>>,
    /// These would fit, but for kept nodes.
    held_back: BTreeMap<Arc<Question>, Reason>,
    /// A gang is short that has waited for long.
    any_due: bool,
}

/// When a pass over the queue goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub now: Timestamp,
    pub revision: u64,
    pub limits: Limits,
}

/// What the configuration says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// See [`crate::config::Config::reserve_after`].
    pub after: Millis,
    /// See [`crate::config::Config::keep_for`].
    pub keep_for: Millis,
}

impl Limits {
    pub fn of(config: &Config) -> Self {
        Self {
            after: config.reserve_after,
            keep_for: config.keep_for,
        }
    }
}

#[derive(Debug)]
struct Kept {
    rank: Rank,
    question: Arc<Question>,
    nodes: BTreeMap<NodeName, KeptNode>,
    /// The least that has had to end on them so far.
    left: Burden,
}

/// A kept node.
#[derive(Debug)]
struct KeptNode {
    /// As it was to be when it was chosen.
    was: Arc<NodeCapacity>,
    /// What the members ask for that are to stand there.
    needs: Resources,
    wants_devices: bool,
}

/// What is kept, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptNodes {
    /// Gangs that nodes are kept for.
    pub gangs: usize,
    /// These nodes.
    pub nodes: usize,
}

impl Keeping {
    /// Whether nothing is kept for anybody.
    pub fn is_idle(&self) -> bool {
        self.gangs.is_empty()
    }

    /// Notes when an object was made that is seen now.
    pub fn note_created(&mut self, created_seconds: i64, now: Timestamp) {
        if created_seconds <= 0 || created_seconds == i64::MAX {
            return;
        }
        let now = i64::try_from(now.0).unwrap_or(i64::MAX);
        let ahead = created_seconds.saturating_mul(1000).saturating_sub(now);
        self.clock_ahead_ms = self.clock_ahead_ms.max(Some(ahead));
    }

    /// When whoever was made then will have waited so long.
    fn due_at(&self, created_seconds: i64, after: Millis) -> Option<Timestamp> {
        let ahead = self.clock_ahead_ms?;
        let made = created_seconds.saturating_mul(1000).saturating_sub(ahead);
        let after = i64::try_from(after.0).unwrap_or(i64::MAX);
        let due = made.saturating_add(after).max(0);
        u64::try_from(due).ok().map(Timestamp)
    }

    /// When a pass over the queue is wanted though nothing has happened.
    pub fn next_deadline(&self, after: Millis) -> Option<Timestamp> {
        let next = self.next_created;
        let next = next.and_then(|created| self.due_at(created, after));
        if self.stirred {
            return Some(Timestamp(0));
        }
        let ends = self.ends.values().chain(self.resting.values()).copied();
        ends.chain(next).chain(self.next_turn).min()
    }

    /// Whether a gang that was due before this leadership began has nodes kept, as far as that is told by how long
    /// it has waited, and until when that is so.
    fn turn_before(&self, created_seconds: i64, limits: Limits) -> Option<(bool, Timestamp)> {
        let due = self.due_at(created_seconds, limits.after)?;
        let began = self.began.filter(|began| due < *began)?;
        let keep_for = limits.keep_for.0;
        let passed = began.since(due).0;
        let passed = passed.checked_rem(keep_for.saturating_mul(2))?;
        let (is_turn, end) = match passed < keep_for {
            true => (true, keep_for),
            false => (false, keep_for.saturating_mul(2)),
        };
        Some((is_turn, began + Millis(end.saturating_sub(passed))))
    }

    /// When nodes may be kept for the gang, where that is not so yet.
    fn rests_until(&self, created: i64, limits: Limits, now: Timestamp) -> Option<Timestamp> {
        match self.turn_before(created, limits) {
            Some((false, until)) if until > now => Some(until),
            _ => None,
        }
    }

    /// When nodes are let go that are kept for the gang from now on.
    fn turn_ends(&self, created: i64, limits: Limits, now: Timestamp) -> Timestamp {
        match self.turn_before(created, limits) {
            Some((true, until)) if until > now => until,
            _ => now + limits.keep_for,
        }
    }

    fn looks_again_at(&mut self, moment: Timestamp) {
        self.next_turn = self.next_turn.into_iter().chain([moment]).min();
    }

    /// Whether a gang that would not be tried in this pass is tried to have nodes kept for it.
    pub fn is_due(&mut self, gang: &Gang, rank: &Rank, at: Moment) -> bool {
        let after = at.limits.after;
        if after == Millis(0) || !is_short(gang) {
            return false;
        }
        if self.gangs.contains_key(&gang.key) {
            self.found.any_due = true;
            return false;
        }
        let created = rank.created_seconds.0;
        if !self.has_waited(created, after, at.now) {
            self.waits_until(created);
            return false;
        }
        if let Some(next) = self.rests_until(created, at.limits, at.now) {
            self.looks_again_at(next);
            return false;
        }
        self.found.any_due = true;
        gang.sought_kept_at != Some(at.revision)
    }

    fn has_waited(&self, created_seconds: i64, after: Millis, now: Timestamp) -> bool {
        let due = self.due_at(created_seconds, after);
        due.is_some_and(|due| due <= now)
    }

    /// Nodes kept for others that go before a gang of this rank.
    fn ahead_of(&self, key: &GangKey, rank: &Rank) -> BTreeSet<NodeName> {
        let others = self.gangs.iter();
        let ahead = others.filter(|(other, kept)| *other != key && kept.rank > *rank);
        ahead
            .flat_map(|(_, kept)| kept.nodes.keys().cloned())
            .collect()
    }

    /// The first of those that go before the gang on whose nodes this would be.
    fn holder_before(&self, key: &GangKey, rank: &Rank, placement: &Placement) -> Option<GangKey> {
        let members = placement.members.iter();
        let holders = members.filter_map(|member| self.nodes.get(&member.node));
        let others = holders.filter(|other| *other != key);
        let ranked = others.filter_map(|other| Some((&self.gangs.get(other)?.rank, other)));
        let before = ranked.filter(|(other, _)| *other > rank);
        before.max().map(|(_, holder)| holder.clone())
    }

    fn waits_until(&mut self, created_seconds: i64) {
        let next = self.next_created.unwrap_or(i64::MAX);
        self.next_created = Some(next.min(created_seconds));
    }
}

impl Engine {
    /// Nodes that are kept, in numbers.
    pub fn kept_nodes(&self) -> KeptNodes {
        KeptNodes {
            gangs: self.keeping.gangs.len(),
            nodes: self.keeping.nodes.len(),
        }
    }

    /// Forgets what is kept: another leader comes to its own.
    pub(super) fn forget_kept(&mut self) {
        let clock_ahead_ms = self.keeping.clock_ahead_ms;
        self.keeping = Keeping {
            clock_ahead_ms,
            ..Keeping::default()
        };
    }

    /// Before the queue is gone through: lets go what is kept for nobody who waits any more, what can't be had, and
    /// what has been kept for as long as may be.
    pub(super) fn review_kept(&mut self, now: Timestamp) {
        self.keeping.found = Found::default();
        self.keeping.next_created = None;
        self.keeping.next_turn = None;
        self.keeping.began.get_or_insert(now);
        let resting = self.keeping.resting.len();
        self.keeping.resting.retain(|_, until| *until > now);
        if self.keeping.resting.len() < resting {
            self.revision = self.revision.saturating_add(1);
        }
        let doubtful = std::mem::take(&mut self.keeping.doubtful);
        if self.keeping.is_idle() {
            self.keeping.stirred = false;
            return;
        }
        let mut over = Vec::new();
        let mut moved = false;
        for (key, kept) in &mut self.keeping.gangs {
            let gang = self.gangs.get(key);
            match self.queue.get_priority(key) {
                Some(rank) if gang.is_some_and(|gang| gang.plan.is_none()) => {
                    moved |= kept.rank != *rank;
                    kept.rank = rank.clone();
                    if !doubtful.contains(key) {
                        continue;
                    }
                    let later = self.keeping.later.as_ref();
                    if !kept.can_be_had(later) {
                        over.push(key.clone());
                    }
                    let left = kept.left(&self.snapshot, later, &self.config);
                    if left < kept.left {
                        kept.left = left;
                        for node in kept.nodes.keys() {
                            if let Some(end) = self.keeping.ends.get_mut(node) {
                                *end = now + self.config.keep_for;
                            }
                        }
                    }
                }
                _ => over.push(key.clone()),
            }
        }
        for key in over {
            self.let_nodes_go(&key);
        }
        self.end_turns(now);
        if moved {
            self.revision = self.revision.saturating_add(1);
        }
        // Whoever waits is tried in this pass.
        self.keeping.stirred = false;
    }

    /// Lets go nodes on which nothing has ended for long.
    fn end_turns(&mut self, now: Timestamp) {
        let ended = self.keeping.ends.iter().filter(|(_, end)| **end <= now);
        let gangs = ended.filter_map(|(node, _)| self.keeping.nodes.get(node).cloned());
        for key in gangs.collect::<BTreeSet<_>>() {
            let nodes = self.keeping.gangs.get(&key).map(|kept| kept.nodes.keys());
            let nodes: Vec<NodeName> = nodes.into_iter().flatten().cloned().collect();
            self.let_nodes_go(&key);
            let until = now + self.config.keep_for;
            for node in nodes {
                self.keeping.ends.remove(&node);
                self.keeping.resting.insert(node, until);
            }
        }
    }

    /// After a gang was tried: keeps nodes for it if it is short and has waited for long, lets them go otherwise.
    pub(super) fn tend_kept(&mut self, gang: &mut Gang, rank: &Rank, now: Timestamp) {
        let limits = Limits::of(&self.config);
        if limits.after == Millis(0) {
            return;
        }
        let created = rank.created_seconds.0;
        let question = match &gang.sought {
            Some(Sought::Whole(question)) if is_short(gang) => Arc::clone(question),
            _ => {
                self.let_nodes_go(&gang.key);
                return;
            }
        };
        if !self.keeping.has_waited(created, limits.after, now) {
            self.let_nodes_go(&gang.key);
            self.keeping.waits_until(created);
            return;
        }
        if let Some(next) = self.keeping.rests_until(created, limits, now) {
            self.keeping.looks_again_at(next);
            self.let_nodes_go(&gang.key);
            return;
        }
        self.keeping.found.any_due = true;
        gang.sought_kept_at = Some(self.revision);
        let kept = self.keeping.gangs.get(&gang.key);
        if !kept.is_some_and(|kept| kept.is_for(&question)) {
            self.keep_nodes(&gang.key, rank, &question, now);
        }
        if let Some(kept) = self.keeping.gangs.get(&gang.key) {
            let nodes = u32::try_from(kept.nodes.len()).unwrap_or(u32::MAX);
            let why = gang.reason.take().map(Box::new);
            gang.reason = why.map(|why| Reason::NodesKept { nodes, why });
        }
    }

    /// After the queue was gone through.
    pub(super) fn end_of_pass(&mut self) {
        let keeping = &mut self.keeping;
        if keeping.is_idle() && !keeping.found.any_due {
            keeping.later = None;
        }
        // One that went from one gang to another in this pass has been kept all the time.
        let nodes = &keeping.nodes;
        keeping.ends.retain(|node, _| nodes.contains_key(node));
        keeping.found = Found::default();
    }

    /// A place for the whole gang that is clear of nodes kept for those before it, if `placement` is not.
    pub(super) fn clear_of_kept(
        &mut self,
        gang: &Gang,
        placement: Placement,
        question: &Arc<Question>,
        plan: impl FnOnce(&Self, &BTreeSet<NodeName>) -> Option<Placement>,
    ) -> Result<Placement, Reason> {
        // A gang of which something runs is made whole.
        if self.keeping.is_idle() || gang.partial_since.is_some() {
            return Ok(placement);
        }
        let rank = self.rank(gang);
        let Some(holder) = self.keeping.holder_before(&gang.key, &rank, &placement) else {
            return Ok(placement);
        };
        let mut ahead = self.keeping.ahead_of(&gang.key, &rank);
        ahead.extend(question.avoided().iter().cloned());
        if let Some(placement) = plan(self, &ahead) {
            return Ok(placement);
        }
        let name = self.gangs.get(&holder).map(|gang| Arc::clone(&gang.name));
        let name = name.unwrap_or_else(|| Arc::clone(&holder.uid));
        let why = Reason::KeptForAnother {
            namespace: holder.namespace,
            name,
        };
        let held_back = &mut self.keeping.found.held_back;
        held_back.insert(Arc::clone(question), why.clone());
        Err(why)
    }

    /// Why a gang that asks the same was held back a moment ago.
    pub(super) fn held_back(&self, question: &Question) -> Option<(Arc<Question>, Reason)> {
        let (question, why) = self.keeping.found.held_back.get_key_value(question)?;
        Some((Arc::clone(question), why.clone()))
    }

    /// Nodes that members by which a gang has grown may not take.
    pub(super) fn kept_ahead_of(&self, gang: &Gang) -> BTreeSet<NodeName> {
        if self.keeping.is_idle() {
            return BTreeSet::new();
        }
        self.keeping.ahead_of(&gang.key, &self.rank(gang))
    }

    /// Notes what a node that has changed will be later.
    pub(super) fn look_ahead(&mut self, name: &NodeName, now: Timestamp) {
        if self.keeping.later.is_none() {
            return;
        }
        let capacity = self.capacity_later(name, now);
        let Some(later) = &mut self.keeping.later else {
            return;
        };
        match capacity {
            Some(capacity) => later.set(Arc::new(capacity)),
            None => {
                later.remove(name);
            }
        }
        let doubtful = self.keeping.nodes.get(name).cloned();
        self.keeping.doubtful.extend(doubtful);
    }

    /// What a node can take once members of gangs have ended. Others do not end, as far as is known: services and
    /// what belongs to the node itself.
    fn capacity_later(&self, name: &NodeName, now: Timestamp) -> Option<NodeCapacity> {
        let ends = |who: Ending<'_>| match who {
            Ending::Pod(uid) => {
                let pod = self.pods.get(uid);
                pod.is_some_and(|pod| pod.membership.is_some())
            }
            // The place of a pod of no gang is under its own name.
            Ending::Slot(slot) => !self.loose.contains_key(&*slot.gang.uid),
        };
        let (ledger, inventory) = (&self.ledger, &self.inventory);
        ledger.capacity_later(name, inventory, &self.config, now, ends)
    }

    /// Chooses nodes for a gang and keeps them: none that are kept for others, or else such as are kept for those behind it.
    fn keep_nodes(&mut self, key: &GangKey, rank: &Rank, question: &Arc<Question>, now: Timestamp) {
        let is_full =
            self.is_full(key) && self.last_kept(key).is_some_and(|(_, last)| last > *rank);
        let chosen = if is_full || self.keeping.found.hopeless.contains(question) {
            None
        } else {
            self.choose(key, rank, question, now)
        };
        let Some(nodes) = chosen else {
            self.let_nodes_go(key);
            let hopeless = &mut self.keeping.found.hopeless;
            hopeless.insert(Arc::clone(question));
            return;
        };
        let before = self.keeping.gangs.get(key);
        let is_moved = before.is_some_and(|kept| kept.nodes.keys().any(|n| !nodes.contains_key(n)));
        if is_moved {
            self.let_nodes_go(key);
        }
        let displaced = nodes.keys().filter_map(|node| self.keeping.nodes.get(node));
        let displaced: BTreeSet<GangKey> =
            displaced.filter(|other| *other != key).cloned().collect();
        for other in displaced {
            self.let_nodes_go(&other);
        }
        if self.is_full(key)
            && let Some((last, _)) = self.last_kept(key)
        {
            self.let_nodes_go(&last);
        }
        let names = nodes.keys().map(|node| (node.clone(), key.clone()));
        self.keeping.nodes.extend(names);
        let limits = Limits::of(&self.config);
        if limits.keep_for > Millis(0) {
            let end = self.keeping.turn_ends(rank.created_seconds.0, limits, now);
            for node in nodes.keys() {
                self.keeping.ends.entry(node.clone()).or_insert(end);
            }
        }
        let mut kept = Kept {
            rank: rank.clone(),
            question: Arc::clone(question),
            nodes,
            left: Burden::default(),
        };
        kept.left = kept.left(&self.snapshot, self.keeping.later.as_ref(), &self.config);
        self.keeping.gangs.insert(key.clone(), kept);
    }

    /// Whether there are as many others as there may be.
    fn is_full(&self, key: &GangKey) -> bool {
        let gangs = &self.keeping.gangs;
        let own = usize::from(gangs.contains_key(key));
        gangs.len().saturating_sub(own) >= KEPT_MAX
    }

    /// Of the others the last in the queue.
    fn last_kept(&self, key: &GangKey) -> Option<(GangKey, Rank)> {
        let others = self.keeping.gangs.iter().filter(|(other, _)| *other != key);
        let last = others.min_by(|(_, a), (_, b)| a.rank.cmp(&b.rank));
        last.map(|(key, kept)| (key.clone(), kept.rank.clone()))
    }

    fn choose(
        &mut self,
        key: &GangKey,
        rank: &Rank,
        question: &Question,
        now: Timestamp,
    ) -> Option<BTreeMap<NodeName, KeptNode>> {
        let mut later = self.keeping.later.take();
        let later = later.get_or_insert_with(|| self.all_later(now));
        for shape in question.shapes() {
            later.learn(shape);
        }
        let kept = self.keeping.nodes.iter();
        let mut all: BTreeSet<NodeName> = kept
            .filter(|(_, other)| *other != key)
            .map(|(node, _)| node.clone())
            .collect();
        let mut ahead = self.keeping.ahead_of(key, rank);
        for avoided in [&mut all, &mut ahead] {
            avoided.extend(self.keeping.resting.keys().cloned());
        }
        let place = |avoid: &BTreeSet<NodeName>| {
            let request = question.request(avoid);
            place_later(
                &self.snapshot,
                later,
                &request,
                question.spare(),
                &self.config,
            )
        };
        let placement = place(&all).or_else(|| (ahead != all).then(|| place(&ahead)).flatten());
        let mut nodes: BTreeMap<NodeName, KeptNode> = BTreeMap::new();
        for member in placement.iter().flat_map(|placement| &placement.members) {
            let Some(was) = later.get(&member.node) else {
                continue;
            };
            let node = nodes
                .entry(member.node.clone())
                .or_insert_with(|| KeptNode {
                    was: Arc::clone(was),
                    needs: Resources::default(),
                    wants_devices: false,
                });
            node.needs.add(&member.shape.requests);
            node.wants_devices |= member.shape.devices(&self.config) > 0;
        }
        self.keeping.later = Some(std::mem::take(later));
        placement.is_some().then_some(nodes)
    }

    /// Every node as it will be later.
    fn all_later(&self, now: Timestamp) -> Snapshot {
        let mut later = Snapshot::bare();
        for node in self.snapshot.nodes() {
            if let Some(capacity) = self.capacity_later(&node.node.name, now) {
                later.set(Arc::new(capacity));
            }
        }
        later
    }

    /// Keeps nothing for this gang any more, and has all who wait tried again.
    fn let_nodes_go(&mut self, key: &GangKey) {
        let Some(kept) = self.keeping.gangs.remove(key) else {
            return;
        };
        for node in kept.nodes.keys() {
            self.keeping.nodes.remove(node);
        }
        self.keeping.found.hopeless.clear();
        self.keeping.found.held_back.clear();
        self.keeping.stirred = true;
        self.revision = self.revision.saturating_add(1);
    }
}

impl Kept {
    /// Whether the nodes are kept for what the gang asks for now.
    fn is_for(&self, question: &Question) -> bool {
        let mut nodes = self.nodes.keys();
        self.question.asks_as(question) && !nodes.any(|node| question.avoided().contains(node))
    }

    /// What has to end on the nodes still.
    fn left(&self, now: &Snapshot, later: Option<&Snapshot>, config: &Config) -> Burden {
        let nodes = self.nodes.keys();
        let later = nodes.filter_map(|name| later?.get(name));
        later.map(|node| Burden::of(now, node, config)).sum()
    }

    /// Whether the members find room on the nodes later.
    fn can_be_had(&self, later: Option<&Snapshot>) -> bool {
        let Some(later) = later else { return false };
        let mut nodes = self.nodes.iter();
        nodes.all(|(name, kept)| later.get(name).is_some_and(|node| kept.is_good(node)))
    }
}

impl KeptNode {
    fn is_good(&self, later: &NodeCapacity) -> bool {
        later.eligibility == Eligibility::Eligible
            && (later.reported || !self.wants_devices)
            && later.node.labels == self.was.node.labels
            && later.node.taints == self.was.node.taints
            && later.path == self.was.path
            && later.ports.is_subset(&self.was.ports)
            && later.free.shortage(&self.needs).is_none()
    }
}

/// Whether the gang waits for nothing but room, and there would be some at another time.
fn is_short(gang: &Gang) -> bool {
    let reason = gang.reason.as_ref();
    gang.plan.is_none() && !gang.unready && reason.is_some_and(Reason::is_short_of_room)
}
