//! Planning: waiting gangs, one after the other, in order of the queue. A gang that does not fit
//! blocks nobody; it is tried again when capacity has grown or it was changed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Plan, Seat, Slot};
use super::members::default_role;
use crate::ids::{GangKey, RoleName};
use crate::plan::{GangRequest, Placement, RoleRequest, plan};
use crate::pod::{MembershipSource, Pod, PodShape};
use crate::reason::{Reason, Unplaceable};
use crate::time::Timestamp;
use crate::workload::{Hold, MemberSource, Workload};

/// Place in the queue; the larger goes first. Total: no two gangs have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: i32,
    created_seconds: Reverse<i64>,
    sequence: Reverse<u64>,
}

/// What a gang without a plan needs.
struct Needs {
    fixed: BTreeMap<Seat, Slot>,
    roles: Vec<RoleRequest>,
    /// Pod of each seat, where the pods say who the members are.
    pods: BTreeMap<Seat, crate::ids::PodUid>,
    minimum: u32,
}

impl Engine {
    /// Puts the gang into the queue, or takes it out.
    pub(super) fn queue_up(&mut self, gang: &mut Gang, now: Timestamp) {
        let refused = gang.refused_nodes.len();
        gang.refused_nodes.retain(|_, until| *until > now);
        if gang.refused_nodes.len() < refused {
            gang.tried_at = None;
        }
        gang.unready = false;
        let waits = match &gang.plan {
            None => true,
            Some(plan) => !self.missing_seats(gang, plan).is_empty(),
        };
        if waits {
            self.queue.push(gang.key.clone(), self.rank(gang));
        } else {
            self.queue.remove(&gang.key);
        }
    }

    fn rank(&self, gang: &Gang) -> Rank {
        let pods = || gang.pods.iter().filter_map(|uid| self.pods.get(uid));
        let workload = gang.workload.as_ref();
        let of_pods = pods().map(|pod| pod.priority).max().unwrap_or(0);
        let created = workload
            .map(|workload| workload.created_seconds)
            .or_else(|| pods().map(|pod| pod.created_seconds).min())
            .unwrap_or(i64::MAX);
        Rank {
            priority: workload.map_or(of_pods, |workload| workload.priority.max(of_pods)),
            created_seconds: Reverse(created),
            sequence: Reverse(gang.sequence),
        }
    }

    /// One pass over the queue. Returns the gangs that were looked at.
    pub(super) fn plan_waiting(&mut self, now: Timestamp) -> Vec<GangKey> {
        let mut looked_at = Vec::new();
        let mut later: Vec<(GangKey, Rank)> = Vec::new();
        while let Some((key, rank)) = self.queue.pop() {
            let revision = self.revision;
            let ready = self.gangs.get(&key).is_some_and(|gang| {
                gang.not_before <= now
                    && gang.tried_at != Some(revision)
                    && !gang.unready
                    && gang.recovered.is_none()
            });
            if !ready {
                if self.gangs.contains_key(&key) {
                    later.push((key, rank));
                }
                continue;
            }
            let still_waits = self
                .with_gang(&key, |engine, gang| {
                    gang.tried_at = Some(revision);
                    engine.try_gang(gang, now);
                    gang.plan
                        .as_ref()
                        .is_none_or(|plan| !engine.missing_seats(gang, plan).is_empty())
                })
                .unwrap_or(false);
            if still_waits {
                later.push((key.clone(), rank));
            }
            looked_at.push(key);
            self.refresh_capacity(now);
        }
        for (key, rank) in later {
            self.queue.push(key, rank);
        }
        looked_at
    }

    fn try_gang(&mut self, gang: &mut Gang, now: Timestamp) {
        gang.refused_nodes.retain(|_, until| *until > now);
        if gang.plan.is_some() {
            self.place_missing(gang, now);
            return;
        }
        match self.needs(gang, now) {
            // No placement was looked for: what is missing is not capacity.
            Err(reason) => {
                gang.reason = Some(reason);
                gang.tried_at = None;
                gang.unready = true;
            }
            Ok(None) => {
                gang.tried_at = None;
                gang.unready = true;
            }
            Ok(Some(needs)) => self.plan_whole(gang, needs, now),
        }
    }

    /// What is to be planned; a reason when it cannot be planned at all; `None` when it must wait
    /// without a reason of its own.
    fn needs(&self, gang: &Gang, now: Timestamp) -> Result<Option<Needs>, Reason> {
        let bound: Vec<&Pod> = self.bound_alive(gang).collect();
        if gang.releasing {
            return Ok(None);
        }
        if gang.is_job() {
            let Some(workload) = &gang.workload else {
                return Ok(None);
            };
            if matches!(workload.hold, Hold::Released(_)) && bound.is_empty() {
                // Released by a plan that is no more: it is held again first.
                return Ok(None);
            }
            if workload.hold == Hold::Held && !bound.is_empty() {
                // Suspended: its controller is about to delete them.
                return Ok(None);
            }
            return self.needs_of_job(gang, workload, &bound).map(Some);
        }
        self.needs_of_pods(gang, &bound, now)
    }

    pub(super) fn alive<'a>(&'a self, gang: &'a Gang) -> impl Iterator<Item = &'a Pod> {
        gang.pods
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .filter(|pod| pod.is_alive())
    }

    fn needs_of_job(
        &self,
        gang: &Gang,
        workload: &Workload,
        bound: &[&Pod],
    ) -> Result<Needs, Reason> {
        if let Some(pod) = self.alive(gang).find(|pod| pod.gated_by_others) {
            return Err(Reason::GatedByOthers {
                pod: Arc::clone(&pod.name),
            });
        }
        let total = workload.total().unwrap_or(0);
        let minimum = workload
            .minimum
            .filter(|minimum| *minimum > 0)
            .unwrap_or(total);
        if minimum > total {
            return Err(Reason::MinimumTooLarge { minimum, total });
        }
        let mut fixed = BTreeMap::new();
        for pod in bound {
            let membership = pod.membership.as_ref();
            if let Some((role, index)) =
                membership.and_then(|membership| membership.role.clone().zip(membership.index))
            {
                fixed.insert((role, index), fixed_slot(pod));
            }
        }
        let MemberSource::Roles(specs) = &workload.members else {
            return Ok(Needs {
                fixed,
                roles: Vec::new(),
                pods: BTreeMap::new(),
                minimum,
            });
        };
        let roles = specs
            .iter()
            .map(|spec| RoleRequest {
                role: spec.name.clone(),
                indices: (0..spec.count)
                    .filter(|index| !fixed.contains_key(&(spec.name.clone(), *index)))
                    .collect(),
                shape: Arc::clone(&spec.shape),
            })
            .filter(|role| !role.indices.is_empty())
            .collect();
        Ok(Needs {
            fixed,
            roles,
            pods: BTreeMap::new(),
            minimum,
        })
    }

    fn needs_of_pods(
        &self,
        gang: &Gang,
        bound: &[&Pod],
        now: Timestamp,
    ) -> Result<Option<Needs>, Reason> {
        let mut alive: Vec<&Pod> = self.alive(gang).collect();
        alive.sort_by(|a, b| {
            (a.created_seconds, &a.name, &a.uid).cmp(&(b.created_seconds, &b.name, &b.uid))
        });
        if let Some(pod) = alive.iter().find(|pod| pod.gated_by_others) {
            return Err(Reason::GatedByOthers {
                pod: Arc::clone(&pod.name),
            });
        }
        let present = u32::try_from(alive.len()).unwrap_or(u32::MAX);
        let minimum = match self.stated_minimum(gang, &alive)? {
            Some(minimum) => minimum,
            None if now.since(gang.last_pod_at) < self.config.settle => return Ok(None),
            None => present,
        };
        if present < minimum || present == 0 {
            return Err(Reason::MembersMissing {
                present,
                needed: minimum.max(1),
            });
        }
        if bound.len() == alive.len() && gang.acked.is_none() {
            // Everything of it runs already, and was never ours to promise.
            return Ok(None);
        }
        let mut needs = Needs {
            fixed: BTreeMap::new(),
            roles: Vec::new(),
            pods: BTreeMap::new(),
            minimum,
        };
        let mut next: BTreeMap<RoleName, u32> = BTreeMap::new();
        let mut shapes: Vec<(RoleName, Arc<PodShape>, Vec<u32>)> = Vec::new();
        for pod in alive {
            let role = role_of(pod);
            let seat = free_seat(pod, &mut next, |seat| needs.pods.contains_key(seat));
            let (_, index) = seat;
            needs.pods.insert(seat.clone(), pod.uid.clone());
            if pod.node.is_some() {
                needs.fixed.insert(seat, fixed_slot(pod));
            } else if let Some((_, _, indices)) = shapes
                .iter_mut()
                .find(|(name, shape, _)| *name == role && **shape == *pod.shape)
            {
                indices.push(index);
            } else {
                shapes.push((role, Arc::clone(&pod.shape), vec![index]));
            }
        }
        needs.roles = shapes
            .into_iter()
            .map(|(role, shape, indices)| RoleRequest {
                role,
                indices,
                shape,
            })
            .collect();
        Ok(Some(needs))
    }

    /// The minimum that a PodGroup or a label states; `None` when nothing states one.
    pub(super) fn stated_minimum(
        &self,
        gang: &Gang,
        alive: &[&Pod],
    ) -> Result<Option<u32>, Reason> {
        if let Some(workload) = &gang.workload {
            return Ok(workload.minimum.filter(|minimum| *minimum > 0));
        }
        let mut stated = None;
        for pod in alive {
            match pod.membership.as_ref().map(|membership| &membership.source) {
                Some(MembershipSource::Alone) => stated = Some(1),
                Some(MembershipSource::Label { size: Ok(size), .. }) => {
                    stated = Some(stated.unwrap_or(0).max(*size));
                }
                Some(MembershipSource::Label { size: Err(why), .. }) => {
                    return Err(Reason::Invalid(crate::workload::InvalidWorkload {
                        field: Arc::from("metadata.annotations[muster.dev/gang-size]"),
                        value: Arc::from(pod.name.as_ref()),
                        limit: Arc::clone(why),
                    }));
                }
                _ => {}
            }
        }
        Ok(stated)
    }

    fn plan_whole(&mut self, gang: &mut Gang, needs: Needs, now: Timestamp) {
        let avoid: BTreeSet<_> = gang.refused_nodes.keys().cloned().collect();
        let fixed = u32::try_from(needs.fixed.len()).unwrap_or(u32::MAX);
        match self.plan_elastic(&needs, fixed, &avoid) {
            Ok(placement) => {
                let plan = self.new_plan(gang, needs, placement, now);
                gang.reason = Some(Reason::Gathering {
                    arrived: plan.bound(),
                    planned: plan.planned(),
                });
                gang.plan = Some(plan);
            }
            Err(why) => gang.reason = Some(Reason::Unplaceable(why)),
        }
    }

    /// The largest part of the gang that fits, at least its minimum.
    fn plan_elastic(
        &self,
        needs: &Needs,
        fixed: u32,
        avoid: &BTreeSet<crate::ids::NodeName>,
    ) -> Result<Placement, Unplaceable> {
        let mut request = GangRequest {
            roles: needs.roles.clone(),
            avoid: avoid.clone(),
        };
        let first = match plan(&self.snapshot, &request, &self.config) {
            Ok(placement) => return Ok(placement),
            Err(why) => why,
        };
        let total = needs.roles.iter().fold(fixed, |sum, role| {
            sum.saturating_add(u32::try_from(role.indices.len()).unwrap_or(u32::MAX))
        });
        // The fewest members that must stay behind, by halving: with a member less, what fitted
        // still fits.
        let (mut too_few, mut enough) = (0, total.saturating_sub(needs.minimum));
        let mut best = None;
        while too_few < enough {
            let dropped = too_few.midpoint(enough).max(too_few.saturating_add(1));
            request.roles = without(&needs.roles, dropped);
            match plan(&self.snapshot, &request, &self.config) {
                Ok(placement) => {
                    best = Some(placement);
                    if dropped == enough {
                        break;
                    }
                    enough = dropped;
                }
                Err(_) if dropped == enough => break,
                Err(_) => too_few = dropped,
            }
        }
        best.ok_or(first)
    }

    fn new_plan(
        &mut self,
        gang: &Gang,
        needs: Needs,
        placement: Placement,
        now: Timestamp,
    ) -> Plan {
        let mut slots = needs.fixed;
        let resumed = !slots.is_empty();
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
            complete: false,
            progress_at: now,
            first_held_at: None,
            partial_since: None,
            said: None,
        };
        plan.complete = resumed && plan.bound() >= plan.minimum;
        plan
    }

    /// Seats that have no place: members that lost theirs, and members that the gang has grown by.
    pub(super) fn missing_seats(&self, gang: &Gang, plan: &Plan) -> Vec<(Seat, Arc<PodShape>)> {
        let mut missing: Vec<(Seat, Arc<PodShape>)> = plan
            .slots
            .iter()
            .filter(|(_, slot)| {
                slot.node.is_none() && slot.predecessor.is_none() && !slot.is_settled()
            })
            .map(|(seat, slot)| (seat.clone(), Arc::clone(&slot.shape)))
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
                            missing.push((seat, Arc::clone(&role.shape)));
                        }
                    }
                }
            }
            _ => missing.extend(self.unseated(gang, plan)),
        }
        missing
    }

    /// Pods of a gang known by its pods that came after the plan.
    fn unseated(&self, gang: &Gang, plan: &Plan) -> Vec<(Seat, Arc<PodShape>)> {
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
                (seat, Arc::clone(&pod.shape))
            })
            .collect()
    }

    /// Finds places for members of a gang that runs, each on its own: every one that comes back
    /// helps.
    fn place_missing(&mut self, gang: &mut Gang, now: Timestamp) {
        let Some(mut plan_of) = gang.plan.take() else {
            return;
        };
        let avoid: BTreeSet<_> = gang.refused_nodes.keys().cloned().collect();
        for (seat, shape) in self.missing_seats(gang, &plan_of) {
            let request = GangRequest {
                roles: vec![RoleRequest {
                    role: seat.0.clone(),
                    indices: vec![seat.1],
                    shape,
                }],
                avoid: avoid.clone(),
            };
            let Ok(placement) = plan(&self.snapshot, &request, &self.config) else {
                continue;
            };
            for member in placement.members {
                let slot = plan_of
                    .slots
                    .entry(seat.clone())
                    .or_insert_with(|| Slot::new(None, Vec::new(), Arc::clone(&member.shape)));
                slot.node = Some(member.node.clone());
                slot.devices.clone_from(&member.devices);
                slot.refused_since = None;
                self.ledger.reserve(
                    gang.slot_key(&seat),
                    member.node.clone(),
                    member.shape,
                    member.devices,
                );
                self.dirty_nodes.insert(member.node);
            }
            plan_of.epoch = self.epoch;
            plan_of.progress_at = now;
            self.refresh_capacity(now);
        }
        gang.plan = Some(plan_of);
    }
}

fn role_of(pod: &Pod) -> RoleName {
    pod.membership
        .as_ref()
        .and_then(|membership| membership.role.clone())
        .unwrap_or_else(default_role)
}

/// A seat for a pod that says its own place, or not: the place it says unless another one has it,
/// else the next that is free in its role. Two pods may well say the same, for example the first
/// pods of two Jobs in one group.
fn free_seat(
    pod: &Pod,
    next: &mut BTreeMap<RoleName, u32>,
    is_taken: impl Fn(&Seat) -> bool,
) -> Seat {
    let role = role_of(pod);
    let said = pod
        .membership
        .as_ref()
        .and_then(|membership| membership.index)
        .map(|index| (role.clone(), index))
        .filter(|seat| !is_taken(seat));
    if let Some(seat) = said {
        return seat;
    }
    let counter = next.entry(role.clone()).or_insert(0);
    loop {
        let seat = (role.clone(), *counter);
        *counter = counter.saturating_add(1);
        if !is_taken(&seat) || *counter == u32::MAX {
            return seat;
        }
    }
}

/// The roles with `dropped` members fewer: always the highest index of the role with most members,
/// so that the master stays.
fn without(roles: &[RoleRequest], dropped: u32) -> Vec<RoleRequest> {
    let mut roles = roles.to_vec();
    for _ in 0..dropped {
        if let Some(role) = roles.iter_mut().max_by_key(|role| role.indices.len()) {
            role.indices.pop();
        }
    }
    roles.retain(|role| !role.indices.is_empty());
    roles
}

fn fixed_slot(pod: &Pod) -> Slot {
    let devices = pod
        .record
        .as_ref()
        .map(|record| record.devices.clone())
        .unwrap_or_default();
    let mut slot = Slot::new(pod.node.clone(), devices, Arc::clone(&pod.shape));
    slot.pod = Some(pod.uid.clone());
    slot.bound = true;
    slot
}
