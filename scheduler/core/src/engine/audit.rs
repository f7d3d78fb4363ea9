//! Checks of what must always hold, on the engine's own state. Cheap enough for tests after every
//! step, and for production now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::Engine;
use crate::ids::{DeviceUuid, NodeName};
use crate::ledger::SlotKey;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
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
    /// DEV-1: a device that is promised twice.
    DeviceTwice(DeviceUuid),
    /// GANG-2: a member bound under a plan that does not cover the gang's minimum.
    BelowMinimum(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orphan { node, slot } => write!(
                f,
                "RES-1: reservation of {slot} on {node} belongs to no plan"
            ),
            Self::Unreserved { node, slot } => {
                write!(f, "RES-1: {slot} has no reservation on {node}")
            }
            Self::DeviceTwice(uuid) => write!(f, "DEV-1: device {uuid} is promised twice"),
            Self::BelowMinimum(gang) => {
                write!(f, "GANG-2: the plan of {gang} does not cover its minimum")
            }
        }
    }
}

impl Engine {
    /// Every invariant that is broken now.
    pub fn audit(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut wanted: BTreeMap<SlotKey, NodeName> = BTreeMap::new();
        let mut devices: BTreeSet<&DeviceUuid> = BTreeSet::new();
        for gang in self.gangs.values() {
            let Some(plan) = &gang.plan else { continue };
            // A plan that has begun may have lost members; one that has not may not.
            if !plan.open && plan.planned() < plan.minimum {
                violations.push(Violation::BelowMinimum(gang.name.to_string()));
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
                        if !devices.insert(device) {
                            violations.push(Violation::DeviceTwice(device.clone()));
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
                violations.push(Violation::Orphan {
                    node: node.clone(),
                    slot: name(slot),
                });
            }
        }
        violations.extend(
            wanted
                .into_iter()
                .map(|(slot, node)| Violation::Unreserved {
                    node,
                    slot: name(&slot),
                }),
        );
        violations
    }
}

fn name(slot: &SlotKey) -> String {
    format!("{}/{}-{}", slot.gang, slot.role, slot.index)
}
