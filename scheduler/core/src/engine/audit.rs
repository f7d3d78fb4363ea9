//! Checks of what must always hold, on the engine's own state. Cheap enough for tests after every
//! step, and for production now and then.
//!
//! Each check counts for itself, from pods, nodes and reports, and does not ask the code that it
//! judges. What only a history or two engines could tell is not here but in tests that carry its
//! name (`lead_1_...`, `que_1_...`, `det_1_...`, `text_1_...`).

mod rebuild;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::gang::{Gang, Record, Slot};
use super::{AGE_CHECK, Engine};
use crate::config::NodesWithoutAgent;
use crate::ids::{DeviceUuid, GangKey, NodeName, PodUid};
use crate::ledger::{SlotKey, part_of};
use crate::node::untolerated;
use crate::pod::{DEVICE_MILLI, Pod, PodPhase};
use crate::time::Millis;

/// The invariants that [`Engine::audit`] checks.
pub const AUDITED: [&str; 7] = [
    "GANG-1", "GANG-2", "DEV-1", "RES-1", "INV-1", "PLACE-1", "LEDGER-1",
];

/// A broken invariant, and the gang that breaks it: of two the later one; none where a node's own account is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The gang.
    pub gang: Option<GangKey>,
    /// What is broken.
    pub what: Broken,
}

/// What is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// GANG-1: a gang bound in part whose time for repair is over, or was never set.
    Partial {
        /// The gang.
        gang: String,
        /// Members bound.
        bound: u32,
        /// Members that must be.
        minimum: u32,
    },
    /// GANG-2: a member bound under a plan that does not cover the gang's minimum.
    BelowMinimum(String),
    /// DEV-1: a device that is promised twice.
    DeviceTwice(DeviceUuid),
    /// DEV-1: a member that is not bound yet has a place on a node where what is used and promised comes
    /// to more than can be used.
    Overcommitted {
        /// Where.
        node: NodeName,
        /// Whose it is.
        slot: String,
    },
    /// RES-1: a reservation that no live plan has.
    Orphan {
        /// Where.
        node: NodeName,
        /// Whose it says it is.
        slot: String,
    },
    /// RES-1: a place in a plan that is not bound, without a reservation.
    Unreserved {
        /// Where.
        node: NodeName,
        /// Whose it is.
        slot: String,
    },
    /// INV-1: a member that is not bound yet has a place on a node whose GPUs nobody vouches for.
    Unreported {
        /// Where.
        node: NodeName,
        /// Whose it is.
        slot: String,
    },
    /// PLACE-1: a member that is not bound yet has a place on a node that it may not run on.
    Unfit {
        /// Where.
        node: NodeName,
        /// Whose it is.
        slot: String,
        /// What is wrong with the node.
        what: &'static str,
    },
    /// LEDGER-1: what is kept of a node is not what it comes to when it is added up afresh.
    Ledger {
        /// Where.
        node: NodeName,
        /// What differs.
        what: &'static str,
    },
}

impl Broken {
    /// The node that it is about, if it is about one.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Partial { .. } | Self::BelowMinimum(_) | Self::DeviceTwice(_) => None,
            Self::Overcommitted { node, .. }
            | Self::Orphan { node, .. }
            | Self::Unreserved { node, .. }
            | Self::Unreported { node, .. }
            | Self::Unfit { node, .. }
            | Self::Ledger { node, .. } => Some(node),
        }
    }

    /// The node whose room cannot be trusted because of it, whoever asks for some.
    pub(super) fn wrong_books_of(&self) -> Option<&NodeName> {
        match self {
            Self::Unreported { .. } | Self::Unfit { .. } => None,
            _ => self.node(),
        }
    }
}

impl Violation {
    /// The invariant, one of [`AUDITED`].
    pub fn id(&self) -> &'static str {
        match self.what {
            Broken::Partial { .. } => "GANG-1",
            Broken::BelowMinimum(_) => "GANG-2",
            Broken::DeviceTwice(_) | Broken::Overcommitted { .. } => "DEV-1",
            Broken::Orphan { .. } | Broken::Unreserved { .. } => "RES-1",
            Broken::Unreported { .. } => "INV-1",
            Broken::Unfit { .. } => "PLACE-1",
            Broken::Ledger { .. } => "LEDGER-1",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.id())?;
        match &self.what {
            Broken::Partial {
                gang,
                bound,
                minimum,
            } => write!(
                f,
                "{gang} has {bound} of {minimum} bound and no time left for it"
            ),
            Broken::BelowMinimum(gang) => {
                write!(f, "the plan of {gang} does not cover its minimum")
            }
            Broken::DeviceTwice(uuid) => write!(f, "device {uuid} is promised twice"),
            Broken::Overcommitted { node, slot } => {
                write!(
                    f,
                    "{slot} is planned on {node}, which has not the room for it"
                )
            }
            Broken::Orphan { node, slot } => {
                write!(f, "reservation of {slot} on {node} belongs to no plan")
            }
            Broken::Unreserved { node, slot } => write!(f, "{slot} has no reservation on {node}"),
            Broken::Unreported { node, slot } => {
                write!(f, "{slot} is planned on {node}, which nobody reports")
            }
            Broken::Unfit { node, slot, what } => {
                write!(f, "{slot} is planned on {node}, which {what}")
            }
            Broken::Ledger { node, what } => {
                write!(f, "{what} of {node} differs from what it comes to afresh")
            }
        }
    }
}

impl Engine {
    /// Every invariant that was broken when [`Engine::decide`] had run last.
    pub fn audit(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        self.audit_reservations(&mut violations);
        // A replica that does not lead promises nothing, and what is dirty is looked at at once.
        if self.may_act() {
            for gang in self.gangs.values() {
                if !self.dirty.contains(&gang.key) && !matches!(gang.record, Record::Unreadable(_))
                {
                    violations.extend(self.partial(gang));
                    self.audit_places(gang, &mut violations);
                }
            }
        }
        violations
    }

    fn audit_reservations(&self, violations: &mut Vec<Violation>) {
        let mut wanted: BTreeMap<SlotKey, NodeName> = BTreeMap::new();
        let mut devices: BTreeMap<&DeviceUuid, u32> = BTreeMap::new();
        for gang in self.gangs.values() {
            let Some(plan) = &gang.plan else { continue };
            // A plan that has begun may have lost members; one that has not may not.
            if !plan.open && plan.planned() < plan.minimum {
                let what = Broken::BelowMinimum(gang.name.to_string());
                violations.push(broken(&gang.key, what));
            }
            for (seat, slot) in &plan.slots {
                let seen_bound = slot
                    .pod
                    .as_ref()
                    .and_then(|uid| self.pods.get(uid))
                    .is_some_and(|pod| pod.node.is_some());
                if slot.done || seen_bound || slot.predecessor.is_some() {
                    continue;
                }
                if let Some(node) = &slot.node {
                    wanted.insert(gang.slot_key(seat), node.clone());
                    for device in &slot.devices {
                        let promised = devices.entry(device).or_default();
                        *promised = promised.saturating_add(part_of(&slot.shape));
                        if *promised > DEVICE_MILLI {
                            violations.push(broken(&gang.key, Broken::DeviceTwice(device.clone())));
                        }
                    }
                }
            }
        }
        for doubt in self.doubts.values().flatten() {
            if let Some(node) = self.ledger.reserved_on(&doubt.slot) {
                wanted.insert(doubt.slot.clone(), node.clone());
            }
        }
        for loose in self.loose.values() {
            if let Some(node) = self.ledger.reserved_on(&loose.slot) {
                wanted.insert(loose.slot.clone(), node.clone());
            }
        }
        for (slot, node) in self.ledger.reservations() {
            if wanted.remove(slot).as_ref() != Some(node) {
                let what = Broken::Orphan {
                    node: node.clone(),
                    slot: name(slot),
                };
                violations.push(broken(&slot.gang, what));
            }
        }
        violations.extend(wanted.into_iter().map(|(slot, node)| {
            let what = Broken::Unreserved {
                node,
                slot: name(&slot),
            };
            broken(&slot.gang, what)
        }));
    }

    /// GANG-1 for one gang, by its pods. A member that has ended well counts as bound.
    fn partial(&self, gang: &Gang) -> Option<Violation> {
        if self.is_halted() || self.has_ended(gang) {
            return None;
        }
        let slots = || gang.plan.iter().flat_map(|plan| plan.slots.values());
        let pods = || gang.pods.iter().filter_map(|uid| self.pods.get(uid));
        // A Binding that was confirmed counts before the watch has brought the pod.
        let confirmed: BTreeSet<&PodUid> = slots()
            .filter(|slot| slot.bound)
            .filter_map(|slot| slot.pod.as_ref())
            .collect();
        let bound: Vec<&Pod> = pods()
            .filter(|pod| pod.is_alive())
            .filter(|pod| pod.node.is_some() || confirmed.contains(&pod.uid))
            .collect();
        let run = |pod: &Pod| pod.record.as_ref().map(|record| record.plan.clone());
        let (ended, minimum, since) = match &gang.plan {
            Some(plan) => (
                slots().filter(|slot| slot.done).count(),
                Some(plan.minimum),
                plan.partial_since,
            ),
            None => (
                pods()
                    .filter(|pod| pod.phase == PodPhase::Succeeded)
                    .filter(|pod| run(pod).is_some())
                    .filter(|pod| bound.iter().any(|other| run(other) == run(pod)))
                    .count(),
                self.minimum_of(gang),
                gang.partial_since,
            ),
        };
        let settled = u32::try_from(bound.len().saturating_add(ended)).unwrap_or(u32::MAX);
        let minimum = minimum?;
        if bound.is_empty() || settled >= minimum {
            return None;
        }
        let in_time = if gang.releasing {
            // Its controller has a while to take its pods away; then each is being deleted.
            let is_going = |pod: &&Pod| self.deleting.contains_key(&pod.uid);
            self.decided_at < gang.releasing_since + self.held_pods_go_in()
                || self.decided_at < gang.blocked_until
                || bound.iter().all(is_going)
        } else {
            since.is_some_and(|since| {
                self.decided_at < since + self.config.repair_max && since <= self.decided_at
            })
        };
        (!in_time).then(|| {
            let what = Broken::Partial {
                gang: gang.name.to_string(),
                bound: settled,
                minimum,
            };
            broken(&gang.key, what)
        })
    }

    /// Whether the gang is not to run any more, by its job or its user.
    fn has_ended(&self, gang: &Gang) -> bool {
        use crate::workload::Hold;
        gang.ended.is_some()
            || match &gang.workload {
                None => gang.is_job(),
                Some(workload) => {
                    workload.finished.is_some()
                        || (workload.invalid.is_some() && gang.plan.is_none())
                        || workload.hold == Hold::SuspendedByUser
                }
            }
    }

    /// INV-1 and PLACE-1 for the members of one gang that are not bound, nor about to be.
    fn audit_places(&self, gang: &Gang, violations: &mut Vec<Violation>) {
        let Some(plan) = &gang.plan else { return };
        for (seat, slot) in &plan.slots {
            let Some(node) = &slot.node else { continue };
            // Room that a terminating predecessor still holds is nobody's place yet.
            if slot.is_settled() || slot.binding.is_some() || slot.predecessor.is_some() {
                continue;
            }
            let key = || name(&gang.slot_key(seat));
            if let Some(what) = self.unfit_for(slot, node) {
                let what = Broken::Unfit {
                    node: node.clone(),
                    slot: key(),
                    what,
                };
                violations.push(broken(&gang.key, what));
            }
            let (inventory, config) = (&self.inventory, &self.config);
            let now = self.decided_at;
            let has_place = self.ledger.node(node).is_some()
                && self.ledger.reserved_on(&gang.slot_key(seat)) == Some(node);
            if has_place
                && (self.ledger).is_overcommitted(node, &slot.shape, inventory, config, now)
            {
                let what = Broken::Overcommitted {
                    node: node.clone(),
                    slot: key(),
                };
                violations.push(broken(&gang.key, what));
            }
            if !self.is_vouched_for(slot, node) {
                let what = Broken::Unreported {
                    node: node.clone(),
                    slot: key(),
                };
                violations.push(broken(&gang.key, what));
            }
        }
    }

    fn unfit_for(&self, slot: &Slot, name: &NodeName) -> Option<&'static str> {
        let Some(node) = self.ledger.node(name) else {
            return Some("does not exist");
        };
        let tolerated = untolerated(&node.taints, &slot.shape.tolerations).is_none();
        [
            (node.terminating, "is being deleted"),
            (node.unschedulable, "is cordoned"),
            (!node.is_available(), "is not ready"),
            (node.is_under_pressure(), "is under pressure"),
            (!tolerated, "has a taint that is not tolerated"),
            (
                slot.shape.mismatch(node).is_some(),
                "is not among those selected",
            ),
        ]
        .into_iter()
        .find_map(|(wrong, what)| wrong.then_some(what))
    }

    /// Whether there is a report of the node that a place with devices may rest on. The age of
    /// reports is looked at once in [`AGE_CHECK`].
    fn is_vouched_for(&self, slot: &Slot, node: &NodeName) -> bool {
        if slot.shape.devices(&self.config) == 0 {
            return true;
        }
        let limit = self.config.report_age_max;
        let age = Millis(limit.0.saturating_add(AGE_CHECK.0));
        match self.inventory.get(node) {
            Some(_) => self
                .inventory
                .trusted(node, self.decided_at, age)
                .is_some_and(|belief| belief.report.sampler_ok),
            // Nothing was heard of it in this leadership yet: what was planned before is carried on.
            None => {
                self.config.nodes_without_agent == NodesWithoutAgent::UseAllocatable
                    || self.decided_at < self.led_at + limit
            }
        }
    }
}

fn broken(gang: &GangKey, what: Broken) -> Violation {
    let gang = Some(gang.clone());
    Violation { gang, what }
}

fn name(slot: &SlotKey) -> String {
    format!("{}/{}-{}", slot.gang, slot.role, slot.index)
}

#[cfg(test)]
mod tests;
