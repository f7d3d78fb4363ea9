//! Members that run on a GPU that has failed: told at once, and after a while repaired or released by the gang's
//! policy.
//!
//! ```text
//!   agent: unhealthy, lost ──> Failure of the pod that holds it ──told──> condition GpuFailed, one Event
//!                                   │ for gpu_failure_grace, while all of this holds: the agent is heard, the
//!                                   │ breaker is closed, few nodes have such members
//!                                   └──> Ignore: nothing   Repair: its pod is deleted, the next one goes elsewhere
//!                                        Evict: the gang is released whole
//! ```
//! Who holds a device is what the kubelet says, never a prediction. What hangs together with the node's reader of
//! devices, and not with a device, is no failure: what runs may well go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use super::gang::{Gang, Seat};
use crate::failure::OnGpuFailure;
use crate::ids::{DeviceUuid, NodeName, PodUid};
use crate::inventory::DeviceHealth;
use crate::reason::Reason;
use crate::time::{Millis, Timestamp};

/// How long a pod that was deleted for repair may terminate before the gang counts as bound in part because of it:
/// the usual grace of Kubernetes is 30 s.
const LEAVING_MAX: Millis = Millis::from_secs(60);

/// How often a failure is looked at that was to be acted upon and could not be: it was one of too many, say.
const LOOK_EVERY: Millis = Millis::from_secs(10);

/// A pod on a failed device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Since when it is known.
    since: Timestamp,
    node: NodeName,
    device: DeviceUuid,
    /// The agent's word for the cause.
    what: Arc<str>,
    /// The agent cannot read devices any more: whether it has lasted is not known.
    unread: bool,
}

/// A member on a failed device.
#[derive(Clone, Debug)]
struct Member {
    seat: Seat,
    pod: PodUid,
    /// Somebody makes its pod again.
    is_made_again: bool,
    failure: Failure,
}

impl Member {
    /// What is said of it; `None` for a member that cannot be repaired.
    fn told(&self, policy: Option<OnGpuFailure>) -> Arc<str> {
        let ((role, index), failure) = (&self.seat, &self.failure);
        let (device, node, what) = (&failure.device, &failure.node, &failure.what);
        let follows = match policy {
            None => {
                "nothing follows from it, because nobody would make its pods again, or some have done their work"
            }
            Some(OnGpuFailure::Ignore) => {
                "nothing follows from it (muster.dev/on-gpu-failure: Ignore)"
            }
            Some(OnGpuFailure::Repair) => {
                "it is to be replaced (muster.dev/on-gpu-failure: Repair)"
            }
            Some(OnGpuFailure::Evict) => {
                "the gang is to be released whole (muster.dev/on-gpu-failure: Evict)"
            }
        };
        Arc::from(format!(
            "member {role}-{index} runs on {device} of node {node}, which has failed: {what}; {follows}"
        ))
    }

    fn reason(&self) -> Reason {
        let ((role, index), failure) = (&self.seat, &self.failure);
        Reason::GpuFailed {
            role: role.clone(),
            index: *index,
            device: failure.device.clone(),
            node: failure.node.clone(),
            what: Arc::clone(&failure.what),
        }
    }
}

/// What is told of a gang with such members: of the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failing {
    /// Since when.
    pub since: Timestamp,
    /// As one constant text.
    pub text: Arc<str>,
    /// Something is to be done about it in the end.
    pub acts: bool,
}

impl Failing {
    /// When it is looked at again: when the first has failed for long enough, and from then on now and then.
    pub fn due_at(&self, grace: Millis, now: Timestamp) -> Option<Timestamp> {
        let due = self.since + grace;
        self.acts
            .then_some(if due > now { due } else { now + LOOK_EVERY })
    }
}

impl Engine {
    /// How many members run on devices that have failed.
    pub fn members_on_failed_devices(&self) -> usize {
        self.failures.len()
    }

    /// Compares who holds which devices of a node with how those are.
    pub(super) fn note_failures(&mut self, node: &NodeName, now: Timestamp) {
        let belief = self.inventory.get(node);
        if belief.is_some_and(|belief| !belief.report.sampler_ok) {
            // Nothing new is known; the time for which it has lasted begins anew with the next reading.
            let failures = self.failures.values_mut();
            for failure in failures.filter(|failure| failure.node == *node) {
                failure.unread = true;
            }
            return;
        }
        let failed = self.failed_on(node);
        let here = self
            .failures
            .iter()
            .filter(|(_, failure)| failure.node == *node);
        let over: Vec<PodUid> = here
            .map(|(uid, _)| uid.clone())
            .filter(|uid| !failed.contains_key(uid))
            .collect();
        for uid in over {
            self.failures.remove(&uid);
            self.dirty.extend(self.gang_key_of(&uid));
        }
        for (uid, (device, what)) in failed {
            let known = self.failures.get(&uid);
            let same = |known: &Failure| known.device == device && known.what == what;
            if known.is_some_and(|known| same(known) && !known.unread) {
                continue;
            }
            let since = known
                .filter(|known| !known.unread)
                .map_or(now, |known| known.since);
            let node = node.clone();
            let failure = Failure {
                since,
                node,
                device,
                what,
                unread: false,
            };
            self.dirty.extend(self.gang_key_of(&uid));
            self.failures.insert(uid, failure);
        }
    }

    /// Members on a node with the first failed device that each of them holds.
    fn failed_on(&self, node: &NodeName) -> BTreeMap<PodUid, (DeviceUuid, Arc<str>)> {
        let mut found = BTreeMap::new();
        let Some(belief) = self.inventory.get(node) else {
            return found;
        };
        let devices = belief.report.devices.iter();
        let bad = devices.filter_map(|device| match &device.health {
            DeviceHealth::Unhealthy(what) | DeviceHealth::Lost(what) => Some((device, what)),
            _ => None,
        });
        if !belief.report.holders_known {
            // Held by whom they were, but no worse than they are.
            let bad: BTreeMap<_, _> = bad.map(|(device, what)| (&device.uuid, what)).collect();
            let before = self.failures.iter();
            return before
                .filter(|(_, failure)| failure.node == *node)
                .filter_map(|(uid, failure)| {
                    let what = bad.get(&failure.device)?;
                    Some((uid.clone(), (failure.device.clone(), Arc::clone(what))))
                })
                .collect();
        }
        let mut by_holder = BTreeMap::new();
        for (device, what) in bad {
            for holder in &device.holders {
                by_holder.entry(holder).or_insert((&device.uuid, what));
            }
        }
        if by_holder.is_empty() {
            return found;
        }
        for uid in self.ledger.pods_on(node) {
            let Some(pod) = self.pods.get(uid).filter(|pod| pod.membership.is_some()) else {
                continue;
            };
            let name = (pod.namespace.clone(), Arc::clone(&pod.name));
            if let Some((device, what)) = by_holder.get(&name) {
                found.insert(uid.clone(), ((*device).clone(), Arc::clone(what)));
            }
        }
        found
    }

    /// What the gang asks for, else what is configured. What cannot be read keeps a gang from starting; it is told
    /// then, and changes nothing for one that runs.
    pub(super) fn on_gpu_failure(&self, gang: &Gang) -> OnGpuFailure {
        let asked = self.settings_of(gang).map(OnGpuFailure::of);
        asked
            .and_then(Result::ok)
            .flatten()
            .unwrap_or(self.config.on_gpu_failure)
    }

    /// Members of the gang that run on a failed device, in order.
    fn failing(&self, gang: &Gang) -> Vec<Member> {
        let Some(plan) = gang.plan.as_ref().filter(|plan| plan.open) else {
            return Vec::new();
        };
        let failing = plan.slots.iter().filter_map(|(seat, slot)| {
            let uid = slot.pod.as_ref().filter(|_| slot.bound && !slot.done)?;
            let failure = self.failures.get(uid)?;
            let pod = self.pods.get(uid).filter(|pod| pod.is_alive())?;
            Some(Member {
                seat: seat.clone(),
                pod: pod.uid.clone(),
                is_made_again: gang.is_job() || pod.controlled,
                failure: failure.clone(),
            })
        });
        failing.collect()
    }

    /// Tells of members on failed devices, and does about them what the gang's policy says.
    pub(super) fn tend_failures(&mut self, gang: &mut Gang, now: Timestamp) {
        gang.failing = None;
        if self.failures.is_empty() {
            return;
        }
        let failing = self.failing(gang);
        // Told of one that can be helped, if there is one.
        let helped = failing.iter().find(|member| member.is_made_again);
        let Some(first) = helped.or(failing.first()) else {
            return;
        };
        let policy = match self.on_gpu_failure(gang) {
            OnGpuFailure::Repair if helped.is_none() => None,
            OnGpuFailure::Evict if !self.may_evict(gang) => None,
            policy => Some(policy),
        };
        let since = failing.iter().map(|member| member.failure.since).min();
        gang.failing = Some(Failing {
            since: since.unwrap_or(now),
            text: first.told(policy),
            acts: !matches!(policy, None | Some(OnGpuFailure::Ignore)),
        });
        let grace = self.config.gpu_failure_grace;
        let is_due = |member: &&Member| {
            now >= member.failure.since + grace && self.is_certain(&member.failure, now)
        };
        let due: Vec<&Member> = failing.iter().filter(is_due).collect();
        if due.is_empty() || self.is_halted() {
            return;
        }
        match policy {
            None | Some(OnGpuFailure::Ignore) => {}
            Some(OnGpuFailure::Repair) => {
                for member in due.into_iter().filter(|member| member.is_made_again) {
                    self.replace(gang, member, now);
                }
            }
            Some(OnGpuFailure::Evict) => {
                gang.failing = None;
                self.release_whole(gang, first.reason(), now);
            }
        }
    }

    /// Whether a gang comes again once it was released: somebody makes each of its pods anew, and none has done its
    /// work already.
    fn may_evict(&self, gang: &Gang) -> bool {
        let slots = || gang.plan.iter().flat_map(|plan| plan.slots.values());
        let is_made_again = |uid| self.pods.get(uid).is_none_or(|pod| pod.controlled);
        let mut pods = slots().filter_map(|slot| slot.pod.as_ref());
        !slots().any(|slot| slot.done) && (gang.is_job() || pods.all(is_made_again))
    }

    /// Whether a failure is one to act upon: its agent is heard, and it is one of few. Of many at once the agents,
    /// or their driver, are the likelier cause; a leader that has just begun cannot tell how they came about.
    fn is_certain(&self, failure: &Failure, now: Timestamp) -> bool {
        let is_fresh = || {
            let limit = self.config.report_age_max;
            let belief = self.inventory.trusted(&failure.node, now, limit);
            belief.is_some_and(|belief| belief.report.sampler_ok)
        };
        // Those of about the same time: what others have lived with for days says nothing of this one.
        let window = self.config.breaker.window;
        let near = |one: &&Failure| {
            one.since + window > failure.since && failure.since + window > one.since
        };
        let near = self.failures.values().filter(near);
        let nodes: BTreeSet<&NodeName> = near.map(|one| &one.node).collect();
        let most = self.config.breaker.most(self.inventory.len());
        let is_off = self.config.breaker.percent_max >= 100;
        !failure.unread && !self.breaker.is_open() && (is_off || nodes.len() <= most) && is_fresh()
    }

    /// Deletes a member's pod, whose successor is to go to another node.
    fn replace(&mut self, gang: &mut Gang, member: &Member, now: Timestamp) {
        let until = now + self.config.refused_node_for;
        gang.refused_nodes.avoid(&member.failure.node, until, now);
        let Some(plan) = &mut gang.plan else { return };
        if let Some(slot) = plan.slots.get_mut(&member.seat) {
            // Asked again as long as it does not terminate: from then on its time counts.
            slot.leaving = Some((member.pod.clone(), now));
        }
        let plan = plan.id.clone();
        self.delete_pod(&gang.key, &member.pod, Some(plan), now);
    }

    /// Whether a member that was deleted for repair still terminates, in a time that is granted for it: the gang is
    /// bound in part on purpose.
    pub(super) fn is_leaving(&self, gang: &Gang, now: Timestamp) -> bool {
        let mut slots = gang.plan.iter().flat_map(|plan| plan.slots.values());
        slots.any(|slot| {
            slot.leaving.as_ref().is_some_and(|(uid, since)| {
                self.pods.contains_key(uid) && now < *since + LEAVING_MAX
            })
        })
    }

    /// When that time is over.
    pub(super) fn leaves_until(&self, gang: &Gang) -> Option<Timestamp> {
        let slots = gang.plan.iter().flat_map(|plan| plan.slots.values());
        let leaving = slots.filter_map(|slot| slot.leaving.as_ref());
        leaving.map(|(_, since)| *since + LEAVING_MAX).min()
    }
}
