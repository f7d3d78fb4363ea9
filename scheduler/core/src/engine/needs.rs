//! What a gang without a plan needs: which members, of what shape, and how many of them at least.
//! The job says it, or the pods do; what is bound already keeps its place.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Seat, Slot};
use super::members::{default_role, wished_shape};
use crate::failure::OnGpuFailure;
use crate::ids::{DeviceUuid, PodUid, RoleName};
use crate::interpod::{InterPodRule, Labels, looked_at};
use crate::node::{TaintEffect, Toleration};
use crate::plan::{RoleRequest, Standing};
use crate::pod::{MembershipSource, Pod, PodPhase, PodShape};
use crate::reason::Reason;
use crate::time::Timestamp;
use crate::topology::TopologyRequest;
use crate::workload::{Hold, InvalidWorkload, MemberSource, RoleSpec, Workload, WorkloadKind};

/// What a gang without a plan needs.
pub(super) struct Needs {
    pub fixed: BTreeMap<Seat, Slot>,
    pub roles: Vec<RoleRequest>,
    /// Pod of each seat, where the pods say who the members are.
    pub pods: BTreeMap<Seat, PodUid>,
    pub minimum: u32,
    /// What it asks of the topology.
    pub topology: TopologyRequest,
}

impl Engine {
    /// What is to be planned; a reason when it cannot be planned at all; `None` when it must wait
    /// without a reason of its own.
    pub(super) fn needs(&self, gang: &Gang, now: Timestamp) -> Result<Option<Needs>, Reason> {
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
            if workload.hold == Hold::Held && (!bound.is_empty() || self.is_left(gang, now)) {
                // Suspended: its controller is about to delete them, those not bound too.
                return Ok(None);
            }
        }
        self.asked(gang, &bound, now)
    }

    /// Notes whether a job that we hold has pods still.
    pub(super) fn note_leaving(&self, gang: &mut Gang, now: Timestamp) {
        let is_held = gang.is_job() && gang.hold() == Some(&Hold::Held);
        let is_left = is_held && self.alive(gang).next().is_some();
        gang.leaving_since = is_left.then(|| gang.leaving_since.unwrap_or(now));
    }

    /// Whether a held job's controller is about to take its pods. One that is late would take what a new plan has bound by
    /// then; one that does not take them in time may never do so, and is waited for no longer.
    pub(super) fn is_left(&self, gang: &Gang, now: Timestamp) -> bool {
        let since = gang.leaving_since;
        since.is_some_and(|since| now < since + self.config.repair_max)
    }

    /// What is asked for the gang beside these bound members, whether it may be planned now or not.
    pub(super) fn asked(
        &self,
        gang: &Gang,
        bound: &[&Pod],
        now: Timestamp,
    ) -> Result<Option<Needs>, Reason> {
        let needs = match &gang.workload {
            Some(workload) if gang.is_job() => Some(self.needs_of_job(gang, workload, bound)?),
            None if gang.is_job() => None,
            _ => self.needs_of_pods(gang, bound, now)?,
        };
        needs
            .map(|needs| self.with_topology(gang, needs))
            .transpose()
    }

    /// The needs with what is asked of the topology.
    fn with_topology(&self, gang: &Gang, mut needs: Needs) -> Result<Needs, Reason> {
        needs.topology = self.topology_of(gang).map_err(Reason::Invalid)?;
        let settings = self.settings_of(gang);
        settings
            .map_or(Ok(None), OnGpuFailure::of)
            .map_err(Reason::Invalid)?;
        let segments = self.segments_of(gang, &needs.topology);
        for role in &mut needs.roles {
            let seats = role.indices.iter();
            let seats = seats.map(|index| (role.role.clone(), *index));
            role.segments = seats.map_while(|seat| segments.of(&seat)).collect();
        }
        Ok(needs)
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
        // A member that has ended well is not made again: nobody would come to its place.
        let ended = gang
            .pods
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .filter(|pod| pod.phase == PodPhase::Succeeded)
            // Suspended: those go too.
            .filter(|_| workload.hold != Hold::Held);
        for pod in bound.iter().copied().chain(ended) {
            let membership = pod.membership.as_ref();
            if let Some(seat) =
                membership.and_then(|membership| membership.role.clone().zip(membership.index))
            {
                let shape = wished_shape(gang, &seat, pod);
                fixed.insert(seat, fixed_slot(pod, self.devices_of(pod), shape));
            }
        }
        let MemberSource::Roles(specs) = &workload.members else {
            return Ok(Needs {
                fixed,
                roles: Vec::new(),
                pods: BTreeMap::new(),
                minimum,
                topology: TopologyRequest::default(),
            });
        };
        let roles = self.open_roles(gang, workload, specs, &fixed);
        Ok(Needs {
            fixed,
            roles,
            pods: BTreeMap::new(),
            minimum,
            topology: TopologyRequest::default(),
        })
    }

    /// Members of each role that have no place yet, alike ones together.
    fn open_roles(
        &self,
        gang: &Gang,
        workload: &Workload,
        specs: &[RoleSpec],
        fixed: &BTreeMap<Seat, Slot>,
    ) -> Vec<RoleRequest> {
        let own = if workload.hold == Hold::Held {
            // Suspended: its pods are about to be deleted, and born again from the template.
            BTreeMap::new()
        } else {
            self.own_shapes(gang, specs)
        };
        let mut roles = Vec::new();
        for spec in specs {
            let mut shapes: Vec<RoleRequest> = Vec::new();
            for index in 0..spec.count {
                let seat = (spec.name.clone(), index);
                if fixed.contains_key(&seat) {
                    continue;
                }
                let shape = own.get(&seat).unwrap_or(&spec.shape);
                match shapes.iter_mut().find(|other| other.shape == *shape) {
                    Some(other) => other.indices.push(index),
                    None => shapes.push(RoleRequest {
                        role: spec.name.clone(),
                        indices: vec![index],
                        shape: Arc::clone(shape),
                        labels: Arc::clone(&spec.labels),
                        segments: Vec::new(),
                    }),
                }
            }
            roles.extend(shapes);
        }
        roles
    }

    /// Shapes of members that exist and ask for something else than their template does: it was
    /// edited since, or something was put into the pod at its birth. Nobody makes them again for
    /// that. Nodes that we confined a pod to are not its own wish.
    fn own_shapes(&self, gang: &Gang, specs: &[RoleSpec]) -> BTreeMap<Seat, Arc<PodShape>> {
        let mut own = BTreeMap::new();
        for pod in self.alive(gang).filter(|pod| pod.node.is_none()) {
            let Some(membership) = &pod.membership else {
                continue;
            };
            let Some((role, index)) = membership.role.clone().zip(membership.index) else {
                continue;
            };
            let Some(spec) = specs.iter().find(|spec| spec.name == role) else {
                continue;
            };
            let seat = (role, index);
            let shape = wished_shape(gang, &seat, pod);
            if asks_otherwise(&shape, &spec.shape) {
                own.insert(seat, shape);
            }
        }
        own
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
        if gang.kind == WorkloadKind::PodGroup && gang.workload.is_none() {
            // How many belong together is not known: those that exist may be a part of it.
            return Err(Reason::PodGroupMissing {
                name: Arc::clone(&gang.name),
            });
        }
        let present = u32::try_from(alive.len()).unwrap_or(u32::MAX);
        let minimum = match self.stated_minimum(gang, &alive)? {
            Some(minimum) => minimum,
            None if now.since(gang.last_pod_at) < self.config.settle => return Ok(None),
            None => present,
        };
        let ended = u32::try_from(gang.ended_slots.len()).unwrap_or(u32::MAX);
        if present.saturating_add(ended) < minimum || present == 0 {
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
            fixed: gang.ended_slots.clone(),
            roles: Vec::new(),
            pods: BTreeMap::new(),
            minimum,
            topology: TopologyRequest::default(),
        };
        let rules: Vec<&InterPodRule> = alive
            .iter()
            .flat_map(|pod| &pod.shape.between_pods)
            .collect();
        let mut next: BTreeMap<RoleName, u32> = BTreeMap::new();
        for pod in alive {
            let role = role_of(pod);
            let seat = free_seat(pod, &mut next, |seat| {
                needs.pods.contains_key(seat) || gang.ended_slots.contains_key(seat)
            });
            let (_, index) = seat;
            needs.pods.insert(seat.clone(), pod.uid.clone());
            if pod.node.is_some() {
                let slot = fixed_slot(pod, self.devices_of(pod), Arc::clone(&pod.shape));
                needs.fixed.insert(seat, slot);
                continue;
            }
            let labels = if rules.is_empty() {
                Labels::new()
            } else {
                looked_at(&pod.labels, rules.iter().copied())
            };
            let alike = needs.roles.iter_mut().find(|other| {
                other.role == role && *other.shape == *pod.shape && *other.labels == labels
            });
            match alike {
                Some(other) => other.indices.push(index),
                None => needs.roles.push(RoleRequest {
                    role,
                    indices: vec![index],
                    shape: Arc::clone(&pod.shape),
                    labels: Arc::new(labels),
                    segments: Vec::new(),
                }),
            }
        }
        Ok(Some(needs))
    }

    /// The members that have a place, where members have rules between them, ask something of the
    /// topology or are kept together; nothing otherwise.
    pub(super) fn standing(
        &self,
        gang: &Gang,
        slots: &BTreeMap<Seat, Slot>,
        topology: &TopologyRequest,
    ) -> Vec<Standing> {
        let is_ruled = |shape: &PodShape| !shape.between_pods.is_empty();
        let by_template = match gang.workload.as_ref().map(|workload| &workload.members) {
            Some(MemberSource::Roles(roles)) => roles.iter().any(|role| is_ruled(&role.shape)),
            _ => self.alive(gang).any(|pod| is_ruled(&pod.shape)),
        };
        let is_ruled = by_template || slots.values().any(|slot| is_ruled(&slot.shape));
        if topology.is_empty() && !is_ruled && self.config.together.is_none() {
            return Vec::new();
        }
        let segments = self.segments_of(gang, topology);
        slots
            .iter()
            .filter(|(_, slot)| !slot.done)
            .filter_map(|(seat, slot)| {
                Some(Standing {
                    node: slot.node.clone()?,
                    shape: Arc::clone(&slot.shape),
                    labels: self.labels_at(gang, seat, slot),
                    segment: segments.of(seat),
                })
            })
            .collect()
    }

    /// Labels of the member at a seat: its template's, or its pod's. A seat that has lost its pod
    /// gets one like the others.
    pub(super) fn labels_at(&self, gang: &Gang, seat: &Seat, slot: &Slot) -> Arc<Labels> {
        if let Some(role) = gang.workload.as_ref().and_then(|job| job.role(&seat.0)) {
            return Arc::clone(&role.labels);
        }
        let own = slot.pod.as_ref().and_then(|uid| self.pods.get(uid));
        own.or_else(|| self.alive(gang).find(|pod| *pod.shape == *slot.shape))
            .map(|pod| Arc::clone(&pod.labels))
            .unwrap_or_default()
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
                    return Err(Reason::Invalid(wrong_size(pod, why)));
                }
                _ => {}
            }
        }
        Ok(stated)
    }
}

/// What is wrong with the size that a pod states: `muster.dev/gang-size is 0: must be ..`.
fn wrong_size(pod: &Pod, why: &Arc<str>) -> InvalidWorkload {
    let rest = why.split_once(" is ").map(|(_, rest)| rest);
    let (value, limit) = rest
        .and_then(|rest| rest.split_once(": "))
        .unwrap_or(("wrong", why));
    let field = format!(
        "metadata.annotations[muster.dev/gang-size] of pod {}",
        pod.name
    );
    InvalidWorkload {
        field: Arc::from(field),
        value: Arc::from(value),
        limit: Arc::from(limit),
    }
}

pub(super) fn role_of(pod: &Pod) -> RoleName {
    pod.membership
        .as_ref()
        .and_then(|membership| membership.role.clone())
        .unwrap_or_else(default_role)
}

/// A seat for a pod that says its own place, or not: the place it says unless another one has it,
/// else the next that is free in its role. Two pods may well say the same, for example the first
/// pods of two Jobs in one group.
pub(super) fn free_seat(
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

/// Whether a pod asks for something else than its template. Tolerations that the API server puts into every
/// pod at its birth are no difference: they let nobody onto a node that is not ready.
pub(super) fn asks_otherwise(pod: &PodShape, template: &PodShape) -> bool {
    const AT_BIRTH: [&str; 2] = [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ];
    let own = |toleration: &&Toleration| {
        let is_given = |key: &str| AT_BIRTH.contains(&key);
        toleration.effect != Some(TaintEffect::NoExecute)
            || !toleration.key.as_deref().is_some_and(is_given)
    };
    let (mut bare, mut given) = (template.clone(), pod.clone());
    bare.tolerations.retain(|toleration| own(&toleration));
    given.tolerations.retain(|toleration| own(&toleration));
    bare != given
}

fn fixed_slot(pod: &Pod, devices: Vec<DeviceUuid>, shape: Arc<PodShape>) -> Slot {
    let mut slot = Slot::new(pod.node.clone(), devices, shape);
    slot.pod = Some(pod.uid.clone());
    slot.bound = true;
    slot.done = pod.phase == PodPhase::Succeeded;
    slot
}
