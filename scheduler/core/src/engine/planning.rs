//! Planning: waiting gangs, one after the other, in order of the queue. A gang that does not fit
//! blocks nobody; it is tried again when capacity has grown or it was changed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Plan, Seat, Slot};
use super::keeping::{Limits, Moment};
use super::needs::{Needs, free_seat};
use crate::ids::{GangKey, NodeName, RoleName};
use crate::interpod::Labels;
use crate::plan::{GangRequest, Placed, Placement, RoleRequest, STEPS_MAX, Standing, plan_part};
use crate::pod::PodShape;
use crate::reason::{Reason, Unplaceable};
use crate::time::Timestamp;
use crate::topology::TopologyRequest;
use crate::workload::MemberSource;

/// Place in the queue; the larger goes first. Total: no two gangs have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) priority: i32,
    pub(super) created_seconds: Reverse<i64>,
    sequence: Reverse<u64>,
}

/// What the planner is asked for a whole gang, for the gangs of one pass that ask the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    roles: Vec<AskedRole>,
    placed: Vec<Standing>,
    avoid: BTreeSet<NodeName>,
    fixed: u32,
    minimum: u32,
    topology: TopologyRequest,
}

impl Question {
    /// The question as the planner is asked it, with these nodes left out too.
    pub(super) fn request(&self, avoid: &BTreeSet<NodeName>) -> GangRequest {
        let role = |asked: &AskedRole| RoleRequest {
            role: asked.role.clone(),
            indices: (0..u32::try_from(asked.members).unwrap_or(u32::MAX)).collect(),
            shape: Arc::clone(&asked.shape),
            labels: Arc::clone(&asked.labels),
            segments: asked.segments.clone(),
        };
        GangRequest {
            roles: self.roles.iter().map(role).collect(),
            placed: self.placed.clone(),
            avoid: self.avoid.union(avoid).cloned().collect(),
            topology: self.topology.clone(),
        }
    }

    /// Members that may stay behind.
    pub(super) fn spare(&self) -> u32 {
        let members = self.roles.iter().fold(self.fixed, |sum, role| {
            sum.saturating_add(u32::try_from(role.members).unwrap_or(u32::MAX))
        });
        members.saturating_sub(self.minimum)
    }

    pub(super) fn shapes(&self) -> impl Iterator<Item = &Arc<PodShape>> {
        self.roles.iter().map(|role| &role.shape)
    }

    /// Nodes that are left out.
    pub(super) fn avoided(&self) -> &BTreeSet<NodeName> {
        &self.avoid
    }

    /// Whether the same is asked, whatever nodes are left out.
    pub(super) fn asks_as(&self, other: &Self) -> bool {
        let asked = |question: &Self| (question.fixed, question.minimum);
        asked(self) == asked(other)
            && self.roles == other.roles
            && self.placed == other.placed
            && self.topology == other.topology
    }
}

/// What was looked for in vain: on capacity that has not grown it would be again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    /// Places for the whole gang.
    Whole(Arc<Question>),
    /// Places for some members of a gang that has a plan.
    Members(Vec<Vacancy>),
}

/// One role of a question: which members they are makes no difference but for their segments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct AskedRole {
    role: RoleName,
    shape: Arc<PodShape>,
    labels: Arc<Labels>,
    members: usize,
    segments: Vec<u32>,
}

/// A seat that needs a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vacancy {
    seat: Seat,
    shape: Arc<PodShape>,
    labels: Arc<Labels>,
}

/// What came of looking for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// All that was looked for, whether it was taken or not.
    Enough,
    TooLittle,
    /// Something else is missing, or it was too much work.
    NotLookedFor,
}

impl Engine {
    /// Puts the gang into the queue, or takes it out.
    pub(super) fn queue_up(&mut self, gang: &mut Gang, now: Timestamp) {
        let longest = self.config.refused_node_for;
        if gang.refused_nodes.take_ended(now, longest) {
            gang.tried_at = None;
        }
        gang.unready = false;
        let plan = gang.plan.as_ref();
        let missing = plan.map(|plan| self.missing_seats(gang, plan));
        if missing.as_ref().is_some_and(Vec::is_empty) {
            self.queue.remove(&gang.key);
            return;
        }
        if gang.tried_at == Some(self.revision) && self.seeks_anew(gang, missing, now) {
            gang.tried_at = None;
        }
        let rank = self.rank(gang);
        // Nodes may be kept for one that it is before now.
        if !self.keeping.is_idle() && self.queue.get_priority(&gang.key) != Some(&rank) {
            gang.tried_at = None;
        }
        self.queue.push(gang.key.clone(), rank);
    }

    /// Whether the gang looks for something else than what it has looked for in vain. Its members may
    /// have come, gone or changed; with a plan, those beyond its minimum count once that is bound.
    fn seeks_anew(&self, gang: &Gang, missing: Option<Vec<Vacancy>>, now: Timestamp) -> bool {
        match (missing, &gang.sought) {
            (Some(missing), Some(Sought::Members(sought))) => missing != *sought,
            (None, Some(Sought::Whole(sought))) => match self.needs(gang, now) {
                Ok(Some(needs)) => {
                    let question = self.question(gang, &needs, now);
                    // It may have been looked for in nodes of the second choice, too.
                    let avoided = sought.avoided();
                    let is_same =
                        *avoided == question.avoid || *avoided == self.avoided_strictly(gang, now);
                    !(is_same && question.asks_as(sought))
                }
                Ok(None) | Err(_) => true,
            },
            _ => true,
        }
    }

    pub(super) fn rank(&self, gang: &Gang) -> Rank {
        let pods = || gang.pods.iter().filter_map(|uid| self.pods.get(uid));
        let workload = gang.workload.as_ref();
        let priorities = workload.map(|workload| workload.priority).into_iter();
        let priorities = priorities.chain(pods().map(|pod| pod.priority));
        let created = workload
            .map(|workload| workload.created_seconds)
            .or_else(|| pods().map(|pod| pod.created_seconds).min())
            .unwrap_or(i64::MAX);
        Rank {
            priority: priorities.max().unwrap_or(0),
            created_seconds: Reverse(created),
            sequence: Reverse(gang.sequence),
        }
    }

    /// One pass over the queue, in its order. Returns the gangs that were looked at. While agents are awaited,
    /// only members of gangs that have begun get a place, and gangs that ask for no devices.
    pub(super) fn plan_waiting(&mut self, now: Timestamp) -> Vec<GangKey> {
        let awaits = self.awaits_agents(now);
        self.review_kept(now);
        let at = Moment {
            now,
            revision: self.revision,
            limits: Limits::of(&self.config),
        };
        let keeping = &mut self.keeping;
        let mut is_ready = |gang: &Gang, rank: &Rank| {
            gang.not_before <= now
                && !gang.unready
                && gang.recovered.is_none()
                && (gang.tried_at != Some(at.revision) || keeping.is_due(gang, rank, at))
        };
        let waiting = self.queue.iter();
        let known = waiting.filter_map(|(key, rank)| Some((rank, self.gangs.get(key)?)));
        let mut ready: Vec<(Rank, GangKey)> = known
            .filter(|(rank, gang)| is_ready(gang, rank))
            .map(|(rank, gang)| (rank.clone(), gang.key.clone()))
            .collect();
        ready.sort_by(|a, b| b.cmp(a));
        self.unplaceable.clear();
        if !ready.is_empty() && !awaits {
            self.review_demand();
        }
        let mut looked_at = Vec::with_capacity(ready.len());
        for (rank, key) in ready {
            let still_waits = self
                .with_gang(&key, |engine, gang| {
                    gang.tried_at = Some(engine.revision);
                    engine.try_gang(gang, awaits, now);
                    engine.tend_kept(gang, &rank, now);
                    gang.plan
                        .as_ref()
                        .is_none_or(|plan| !engine.missing_seats(gang, plan).is_empty())
                })
                .unwrap_or(false);
            if !still_waits {
                self.queue.remove(&key);
            }
            looked_at.push(key);
            self.refresh_capacity(now);
        }
        self.end_of_pass();
        looked_at
    }

    fn try_gang(&mut self, gang: &mut Gang, awaits: bool, now: Timestamp) {
        let found = self.try_once(gang, awaits, now);
        if found == Found::TooLittle && gang.refused_nodes.has_second_choices(now) {
            // Rather where it was refused a while ago than nowhere.
            gang.refused_nodes.no_others = true;
            self.try_once(gang, awaits, now);
            gang.refused_nodes.no_others = false;
        }
    }

    fn try_once(&mut self, gang: &mut Gang, awaits: bool, now: Timestamp) -> Found {
        if gang.plan.is_some() {
            // What it looks for is looked for when it goes on.
            return match self.why_frozen(gang) {
                None => self.place_missing(gang, now),
                Some(_) => Found::NotLookedFor,
            };
        }
        match self.needs(gang, now) {
            // No placement was looked for: what is missing is not capacity.
            Err(reason) => {
                gang.reason = Some(reason);
                gang.tried_at = None;
                gang.unready = true;
                Found::NotLookedFor
            }
            Ok(None) => {
                gang.tried_at = None;
                gang.unready = true;
                Found::NotLookedFor
            }
            // One that is bound in part has its deadline.
            Ok(Some(needs))
                if awaits && gang.partial_since.is_none() && self.wants_devices(&needs) =>
            {
                gang.reason = Some(Reason::AgentsAwaited);
                Found::NotLookedFor
            }
            Ok(Some(needs)) => self.plan_whole(gang, needs, now),
        }
    }

    fn question(&self, gang: &Gang, needs: &Needs, now: Timestamp) -> Question {
        let role = |role: &RoleRequest| AskedRole {
            role: role.role.clone(),
            shape: Arc::clone(&role.shape),
            labels: Arc::clone(&role.labels),
            members: role.indices.len(),
            segments: role.segments.clone(),
        };
        Question {
            roles: needs.roles.iter().map(role).collect(),
            placed: self.standing(gang, &needs.fixed, &needs.topology),
            avoid: self.avoided(gang, now),
            fixed: u32::try_from(needs.fixed.len()).unwrap_or(u32::MAX),
            minimum: needs.minimum,
            topology: needs.topology.clone(),
        }
    }

    /// Nodes that were left out when it was last looked for room, if that was in vain; or will be next time.
    pub(super) fn avoided_at_last(&self, gang: &Gang, now: Timestamp) -> BTreeSet<NodeName> {
        let in_vain = match &gang.sought {
            Some(Sought::Members(missing)) => !missing.is_empty(),
            Some(Sought::Whole(_)) => gang.plan.is_none(),
            None => false,
        };
        match in_vain {
            true => self.avoided_strictly(gang, now),
            false => self.avoided(gang, now),
        }
    }

    /// Nodes that are left out even where there are no others.
    fn avoided_strictly(&self, gang: &Gang, now: Timestamp) -> BTreeSet<NodeName> {
        let refused = gang.refused_nodes.strictly_at(now);
        refused.chain(self.frozen_nodes()).cloned().collect()
    }

    /// Nodes that are left out.
    pub(super) fn avoided(&self, gang: &Gang, now: Timestamp) -> BTreeSet<NodeName> {
        let refused = gang.refused_nodes.at(now);
        refused.chain(self.frozen_nodes()).cloned().collect()
    }

    fn wants_devices(&self, needs: &Needs) -> bool {
        let mut roles = needs.roles.iter();
        roles.any(|role| role.shape.devices(&self.config) > 0)
    }

    fn plan_whole(&mut self, gang: &mut Gang, needs: Needs, now: Timestamp) -> Found {
        let question = self.question(gang, &needs, now);
        // Within one pass room only shrinks: what found no place a moment ago finds none now.
        if let Some((question, why)) = self.unplaceable.get_key_value(&question) {
            gang.sought = Some(Sought::Whole(Arc::clone(question)));
            gang.reason = Some(Reason::Unplaceable(why.clone()));
            return Found::TooLittle;
        }
        if let Some((question, why)) = self.held_back(&question) {
            gang.sought = Some(Sought::Whole(question));
            gang.reason = Some(why);
            return Found::NotLookedFor;
        }
        for role in &needs.roles {
            self.snapshot.learn(&role.shape);
        }
        let question = Arc::new(question);
        let found = self.plan_elastic(&needs, &question, &question.avoid);
        match found {
            Ok(placement) => {
                let again = |engine: &Self, avoid: &BTreeSet<NodeName>| {
                    engine.plan_elastic(&needs, &question, avoid).ok()
                };
                let placement = match self.clear_of_kept(gang, placement, &question, again) {
                    Ok(placement) => placement,
                    Err(why) => {
                        gang.sought = Some(Sought::Whole(question));
                        gang.reason = Some(why);
                        return Found::Enough;
                    }
                };
                if let Some(why) = self.why_frozen(gang) {
                    gang.sought = Some(Sought::Whole(question));
                    gang.reason = Some(why);
                    return Found::Enough;
                }
                let plan = self.new_plan(gang, needs, placement, now);
                gang.reason = Some(Reason::Gathering {
                    planned: plan.planned(),
                    said: None,
                });
                gang.plan = Some(plan);
                gang.sought = None;
                Found::Enough
            }
            Err(why) => {
                let mut found = Found::TooLittle;
                if matches!(why, Unplaceable::TooComplex { .. }) {
                    // All that work is not done again in a hurry.
                    gang.not_before = gang.not_before.max(now + self.config.retry_after);
                    found = Found::NotLookedFor;
                }
                gang.sought = Some(Sought::Whole(Arc::clone(&question)));
                self.unplaceable.insert(question, why.clone());
                gang.reason = Some(Reason::Unplaceable(why));
                found
            }
        }
    }

    /// The largest part of the gang that fits, at least its minimum.
    fn plan_elastic(
        &self,
        needs: &Needs,
        question: &Question,
        avoid: &BTreeSet<NodeName>,
    ) -> Result<Placement, Unplaceable> {
        let request = GangRequest {
            roles: needs.roles.clone(),
            placed: question.placed.clone(),
            avoid: avoid.clone(),
            topology: question.topology.clone(),
        };
        plan_part(&self.snapshot, &request, question.spare(), &self.config).placement
    }

    fn new_plan(
        &mut self,
        gang: &Gang,
        needs: Needs,
        placement: Placement,
        now: Timestamp,
    ) -> Plan {
        let mut slots = needs.fixed;
        // Members that have ended open no barrier: those that come are to start together.
        let resumed = slots.values().any(|slot| slot.bound && !slot.done);
        for member in placement.members {
            let seat = (member.role, member.index);
            let mut slot = Slot::new(Some(member.node.clone()), member.devices, member.shape);
            slot.pod = needs.pods.get(&seat).cloned();
            slot.said_before = slot
                .pod
                .as_ref()
                .and_then(|uid| self.pods.get(uid))
                .and_then(|pod| pod.unschedulable.clone());
            self.ledger.reserve(
                gang.slot_key(&seat),
                member.node.clone(),
                Arc::clone(&slot.shape),
                slot.devices.clone(),
            );
            self.dirty_nodes.insert(member.node);
            slots.insert(seat, slot);
        }
        let mut plan = Plan {
            id: self.new_plan_id(),
            epoch: self.epoch,
            slots,
            minimum: needs.minimum,
            open: resumed,
            was_durable: false,
            complete: false,
            progress_at: now,
            first_held_at: None,
            // What was bound in part before goes on being so.
            partial_since: gang.partial_since.filter(|_| resumed),
            said: None,
            took_back: false,
        };
        plan.complete = resumed && plan.bound() >= plan.minimum;
        plan
    }

    /// Seats that have no place: members that lost theirs, and members that the gang has grown by.
    pub(super) fn missing_seats(&self, gang: &Gang, plan: &Plan) -> Vec<Vacancy> {
        let mut missing: Vec<Vacancy> = plan
            .slots
            .iter()
            .filter(|(_, slot)| {
                slot.node.is_none() && slot.predecessor.is_none() && !slot.is_settled()
            })
            .map(|(seat, slot)| Vacancy {
                seat: seat.clone(),
                shape: Arc::clone(&slot.shape),
                labels: self.labels_at(gang, seat, slot),
            })
            .collect();
        // A gang that can be made whole by its own slots is made whole first.
        if !plan.open || (plan.bound() < plan.minimum && plan.planned() >= plan.minimum) {
            return missing;
        }
        match gang.workload.as_ref().map(|workload| &workload.members) {
            Some(MemberSource::Roles(roles)) => {
                for role in roles {
                    for index in 0..role.count {
                        let seat = (role.name.clone(), index);
                        if !plan.slots.contains_key(&seat) {
                            missing.push(Vacancy {
                                seat,
                                shape: Arc::clone(&role.shape),
                                labels: Arc::clone(&role.labels),
                            });
                        }
                    }
                }
            }
            _ => missing.extend(self.unseated(gang, plan)),
        }
        missing
    }

    /// Pods of a gang known by its pods that came after the plan.
    fn unseated(&self, gang: &Gang, plan: &Plan) -> Vec<Vacancy> {
        let seated: BTreeSet<_> = plan
            .slots
            .values()
            .filter_map(|slot| slot.pod.as_ref())
            .collect();
        let mut next: BTreeMap<RoleName, u32> = BTreeMap::new();
        let mut taken: BTreeSet<Seat> = BTreeSet::new();
        self.alive(gang)
            .filter(|pod| pod.node.is_none() && !seated.contains(&pod.uid))
            .map(|pod| {
                let seat = free_seat(pod, &mut next, |seat| {
                    plan.slots.contains_key(seat) || taken.contains(seat)
                });
                taken.insert(seat.clone());
                Vacancy {
                    seat,
                    shape: Arc::clone(&pod.shape),
                    labels: Arc::clone(&pod.labels),
                }
            })
            .collect()
    }

    /// Finds places for members of a gang that runs, each on its own: every one that comes back
    /// helps. Those of one segment, or of a gang that asks something else of the topology, are looked for
    /// together. What is too much work for one pass is left to the next.
    fn place_missing(&mut self, gang: &mut Gang, now: Timestamp) -> Found {
        let Some(mut plan_of) = gang.plan.take() else {
            return Found::NotLookedFor;
        };
        let avoid = self.avoided(gang, now);
        let kept = self.kept_ahead_of(gang);
        let (mut steps, mut found_any) = (0u64, false);
        let mut found = Found::Enough;
        // What found no place since a member last did finds none now.
        let mut failed: BTreeSet<(Arc<PodShape>, Arc<Labels>)> = BTreeSet::new();
        // What cannot be read any more binds nobody who runs already.
        let topology = self.topology_of(gang).unwrap_or_default();
        for batch in self.batches(gang, &plan_of, &topology) {
            let alone = batch.alone();
            if alone.as_ref().is_some_and(|asked| failed.contains(asked)) {
                continue;
            }
            if steps > STEPS_MAX {
                gang.tried_at = gang.tried_at.filter(|_| !found_any);
                break;
            }
            // A member that was lost is replaced wherever there is room; one that the gang has grown by is not.
            let is_held_back = !kept.is_empty() && batch.has_grown(&plan_of);
            let mut avoid = avoid.clone();
            avoid.extend(kept.iter().filter(|_| is_held_back).cloned());
            let request = GangRequest {
                roles: batch.roles,
                placed: self.standing(gang, &plan_of.slots, &topology),
                avoid,
                topology: topology.clone(),
            };
            for role in &request.roles {
                self.snapshot.learn(&role.shape);
            }
            let answer = plan_part(&self.snapshot, &request, batch.spare, &self.config);
            let standing = u64::try_from(request.placed.len()).unwrap_or(u64::MAX);
            steps = steps.saturating_add(answer.steps).saturating_add(standing);
            let Ok(placement) = answer.placement else {
                failed.extend(alone.filter(|_| !is_held_back));
                found = Found::TooLittle;
                continue;
            };
            found_any = true;
            failed.clear();
            for member in placement.members {
                self.seat_missing(gang, &mut plan_of, member);
            }
            plan_of.epoch = self.epoch;
            plan_of.progress_at = now;
            self.refresh_capacity(now);
        }
        gang.sought = Some(Sought::Members(self.missing_seats(gang, &plan_of)));
        gang.plan = Some(plan_of);
        found
    }

    fn seat_missing(&mut self, gang: &Gang, plan: &mut Plan, member: Placed) {
        let seat = (member.role, member.index);
        let slot = plan
            .slots
            .entry(seat.clone())
            .or_insert_with(|| Slot::new(None, Vec::new(), Arc::clone(&member.shape)));
        slot.node = Some(member.node.clone());
        slot.devices.clone_from(&member.devices);
        slot.refused_since = None;
        let pod = slot.pod.as_ref().and_then(|uid| self.pods.get(uid));
        slot.said_before = pod.and_then(|pod| pod.unschedulable.clone());
        let key = gang.slot_key(&seat);
        self.ledger
            .reserve(key, member.node.clone(), member.shape, member.devices);
        self.dirty_nodes.insert(member.node);
    }

    /// The vacancies of a gang, those together that are looked for together.
    pub(super) fn batches(
        &self,
        gang: &Gang,
        plan: &Plan,
        topology: &TopologyRequest,
    ) -> Vec<Batch> {
        let missing = self.missing_seats(gang, plan);
        if topology.is_empty() {
            let each = missing.into_iter();
            return each
                .map(|vacancy| Batch::of([(vacancy, None)], 0))
                .collect();
        }
        let segments = self.segments_of(gang, topology);
        let mut by_segment: BTreeMap<Option<u32>, Vec<(Vacancy, Option<u32>)>> = BTreeMap::new();
        for vacancy in missing {
            let segment = segments.of(&vacancy.seat);
            let batch = by_segment.entry(segment).or_default();
            batch.push((vacancy, segment));
        }
        let placed = plan.slots.iter().filter(|(_, slot)| slot.node.is_some());
        let standing: BTreeSet<u32> = placed.filter_map(|(seat, _)| segments.of(seat)).collect();
        by_segment
            .into_iter()
            .map(|(segment, vacancies)| {
                // A segment of which nobody stands comes whole: a part of it could end up where the rest
                // has no room.
                let whole = segment.is_some_and(|segment| !standing.contains(&segment));
                let spare = if whole {
                    0
                } else {
                    vacancies.len().saturating_sub(1)
                };
                Batch::of(vacancies, u32::try_from(spare).unwrap_or(u32::MAX))
            })
            .collect()
    }
}

/// Vacancies that are looked for together.
pub(super) struct Batch {
    pub(super) roles: Vec<RoleRequest>,
    /// How many may stay without a place.
    pub(super) spare: u32,
}

impl Batch {
    fn of(vacancies: impl IntoIterator<Item = (Vacancy, Option<u32>)>, spare: u32) -> Self {
        let mut roles: Vec<RoleRequest> = Vec::new();
        for (vacancy, segment) in vacancies {
            let (name, index) = vacancy.seat;
            let alike = roles.iter_mut().find(|role| {
                role.role == name && role.shape == vacancy.shape && role.labels == vacancy.labels
            });
            match alike {
                Some(role) => {
                    role.indices.push(index);
                    role.segments.extend(segment);
                }
                None => roles.push(RoleRequest {
                    role: name,
                    indices: vec![index],
                    shape: vacancy.shape,
                    labels: vacancy.labels,
                    segments: segment.into_iter().collect(),
                }),
            }
        }
        Self { roles, spare }
    }

    /// Whether a member has no place in the plan yet, and has lost none.
    fn has_grown(&self, plan: &Plan) -> bool {
        let mut roles = self.roles.iter();
        roles.any(|role| {
            let mut seats = role.indices.iter();
            seats.any(|index| !plan.slots.contains_key(&(role.role.clone(), *index)))
        })
    }

    /// What is asked, where it is asked for one member of no segment.
    fn alone(&self) -> Option<(Arc<PodShape>, Arc<Labels>)> {
        let [role] = self.roles.as_slice() else {
            return None;
        };
        let is_one = role.indices.len() == 1 && role.segments.is_empty();
        is_one.then(|| (Arc::clone(&role.shape), Arc::clone(&role.labels)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, gpus};
    use crate::workload::Hold;

    #[test]
    fn gang_that_is_bound_wakes_none_that_waits() {
        let mut world = World::new(4, 8);
        world.scheduler = false;
        let runs = world.submit("runs", &[("Worker", 3, gpus(8))], Hold::Held);
        let waits = world.submit("waits", &[("Worker", 2, gpus(8))], Hold::Held);
        world.settle();
        assert_eq!(world.phase(&waits), "Waiting NotEnoughFree 0/2");
        let revision = world.engine.revision;
        world.scheduler = true;
        world.settle();
        assert_eq!(world.phase(&runs), "Running AllBound 3/3");
        assert_eq!(world.engine.revision, revision);
    }
}
