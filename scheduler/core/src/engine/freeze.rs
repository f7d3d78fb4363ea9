//! Standing still on purpose. An operator, or a cluster that was restored, freezes all of it; what the auditor
//! finds broken freezes the gang or node that it is about, until it is found right again.
//!
//! Frozen, nothing that is new is begun and nothing that runs is touched: no plan is made or released, no
//! Binding is sent, no pod deleted, no job changed. What waits is still told why, a gang that would fit that
//! it is frozen. Two things go on: a gang whose barrier has passed is bound whole, since half of a gang is
//! what nobody may leave behind; and held Binds are answered in time, with an error that makes kube-scheduler
//! try again. Deadlines that would take something away stand still, as while the API server is away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use super::audit::{Broken, Violation};
use super::gang::{Gang, Slot};
use crate::ids::{GangKey, Namespace, NodeName};
use crate::reason::Reason;
use crate::time::Timestamp;
use crate::view::FROZEN;

/// Text for a Bind to a node whose books the auditor has found wrong. Constant.
pub(super) const NODE_FROZEN: &str = "muster: nothing is bound to this node for now";

/// The one finding that keeps even a gang whose barrier has passed from being bound.
const DEVICE_TWICE: &str = "DEV-1";

/// Nodes whose accounts one look of the auditor adds up afresh, at most: some milliseconds of work.
const REBUILT_MAX: usize = 500;

/// What stands still.
#[derive(Clone, Debug, Default)]
pub(super) struct Freeze {
    /// Why all of it does.
    all: Option<Arc<str>>,
    /// Gangs and nodes that broke an invariant when it was looked at last, and which.
    gangs: BTreeMap<GangKey, &'static str>,
    nodes: BTreeMap<NodeName, &'static str>,
    /// Last node whose account was added up afresh.
    rebuilt: Option<NodeName>,
    /// Looks in a row that found nothing.
    clean: u32,
}

/// What stands still, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// All of it.
    pub all: bool,
    /// Gangs, by the auditor.
    pub gangs: usize,
    /// Nodes, by the auditor.
    pub nodes: usize,
}

impl Engine {
    /// What stands still.
    pub fn frozen(&self) -> Frozen {
        Frozen {
            all: self.is_frozen(),
            gangs: self.freeze.gangs.len(),
            nodes: self.freeze.nodes.len(),
        }
    }

    /// Whether this leadership knows what there is to know: it may act, waits for no agent any more, and two
    /// looks of the auditor in a row found its books right.
    pub fn is_rebuilt(&self) -> bool {
        self.may_act() && !self.may_await_agents() && self.freeze.clean >= 2
    }

    /// GPUs that are with pods which the API server does not know, by reports that count. After a cluster was restored
    /// these still run; the kubelet ends them, and gives their GPUs to nobody before.
    pub fn devices_of_strangers(&self) -> usize {
        let (now, limit) = (self.decided_at, self.config.report_age_max);
        let nodes = self.inventory.each_fresh(now, limit);
        let fresh = nodes.filter_map(|(name, fresh)| fresh.then_some(name));
        fresh.map(|name| self.devices_of_strangers_on(name)).sum()
    }

    fn devices_of_strangers_on(&self, node: &NodeName) -> usize {
        let Some(belief) = self.inventory.get(node) else {
            return 0;
        };
        let mut held = (belief.report.devices.iter())
            .filter(|device| !device.holders.is_empty())
            .peekable();
        if held.peek().is_none() {
            return 0;
        }
        let known = self.ledger.pods_by_name_on(node);
        let is_known = |pod: &(Namespace, Arc<str>)| known.contains(pod);
        held.filter(|device| !device.holders.iter().any(is_known))
            .count()
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.freeze.all.is_some()
    }

    /// Freezes all of it, or lets it go on.
    pub(super) fn set_frozen(&mut self, why: Option<Arc<str>>, now: Timestamp) {
        let (was, is) = (self.is_frozen(), why.is_some());
        if self.freeze.all == why {
            return;
        }
        self.freeze.all = why;
        match (was, is) {
            (false, true) => self.halt(now),
            (true, false) => {
                self.go_on(now);
                // Whoever would have fitted is tried now.
                self.revision = self.revision.saturating_add(1);
            }
            _ => {}
        }
        self.dirty_all();
    }

    /// Nothing is known of what was broken: a new leadership looks for itself.
    pub(super) fn forget_findings(&mut self) {
        self.freeze.gangs.clear();
        self.freeze.nodes.clear();
        self.freeze.clean = 0;
    }

    /// Looks whether the invariants hold and the ledger is what it is when it is added up afresh; freezes what
    /// breaks them, and lets go on what does no longer. Costs a walk over all gangs, and over a part of the nodes:
    /// each is looked at in turn.
    pub fn inspect(&mut self) -> Vec<Violation> {
        let mut found = self.audit();
        let suspects = self.freeze.nodes.keys().cloned().collect();
        let (names, last) = self.nodes_to_rebuild(suspects);
        let differing = self.audit_ledger(&names);
        self.freeze.rebuilt = last;
        // What is planned on is brought up to date: the next look tells whether that has helped.
        let stale = differing.iter().filter_map(|found| found.what.node());
        self.dirty_nodes.extend(stale.cloned());
        found.extend(differing);
        if self.may_act() {
            let clean = self.freeze.clean.saturating_add(1);
            self.freeze.clean = if found.is_empty() { clean } else { 0 };
        }
        self.freeze_broken(&found);
        found
    }

    /// The next nodes in turn, and those that are frozen.
    fn nodes_to_rebuild(
        &self,
        mut names: BTreeSet<NodeName>,
    ) -> (BTreeSet<NodeName>, Option<NodeName>) {
        let after = self.freeze.rebuilt.as_ref();
        let all = self.ledger.accounted();
        let next = all.filter(|name| after.is_none_or(|after| *name > after));
        let next: Vec<NodeName> = next.take(REBUILT_MAX).cloned().collect();
        // Fewer than that: the end is reached, and the next look begins anew.
        let last = next.last().filter(|_| next.len() == REBUILT_MAX).cloned();
        names.extend(next);
        (names, last)
    }

    fn freeze_broken(&mut self, found: &[Violation]) {
        let mut gangs = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for violation in found {
            // A gang that is bound in part is to be completed or released, not to be kept so.
            if matches!(violation.what, Broken::Partial { .. }) {
                continue;
            }
            if let Some(gang) = &violation.gang {
                let id = gangs.entry(gang.clone()).or_insert(violation.id());
                // The gravest counts.
                if violation.id() == DEVICE_TWICE {
                    *id = DEVICE_TWICE;
                }
            }
            if let Some(node) = violation.what.wrong_books_of() {
                nodes.entry(node.clone()).or_insert(violation.id());
            }
        }
        if gangs == self.freeze.gangs && nodes == self.freeze.nodes {
            return;
        }
        let let_go = self.freeze.gangs.keys().any(|key| !gangs.contains_key(key))
            || self
                .freeze
                .nodes
                .keys()
                .any(|node| !nodes.contains_key(node));
        let touched = self.freeze.gangs.keys().chain(gangs.keys()).cloned();
        self.dirty.extend(touched);
        let on_nodes = self.freeze.nodes.keys().chain(nodes.keys());
        let slots = on_nodes.flat_map(|node| self.ledger.slots_on(node));
        self.dirty.extend(slots.map(|slot| slot.gang.clone()));
        self.freeze.gangs = gangs;
        self.freeze.nodes = nodes;
        if let_go {
            self.revision = self.revision.saturating_add(1);
            self.dirty_all();
        }
    }

    /// Nodes that nothing new comes to.
    pub(super) fn frozen_nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.freeze.nodes.keys()
    }

    pub(super) fn is_node_frozen(&self, node: &NodeName) -> bool {
        self.freeze.nodes.contains_key(node)
    }

    /// Whether a place may not be bound to, by what the auditor has found.
    pub(super) fn is_slot_frozen(&self, slot: &Slot) -> bool {
        let node = slot.node.as_ref();
        node.is_some_and(|node| self.is_node_frozen(node))
    }

    /// Whether the auditor has found something about the gang itself that keeps it from going on.
    pub(super) fn is_suspect(&self, gang: &Gang) -> bool {
        self.finding(gang).is_some()
    }

    /// What it has found. A gang whose barrier has passed goes on all the same: kept from replacing a member it would be
    /// released whole when its time for repair is over, for a wrong book. But no device is given twice.
    fn finding(&self, gang: &Gang) -> Option<&'static str> {
        let open = gang.plan.as_ref().is_some_and(|plan| plan.open);
        let id = self.freeze.gangs.get(&gang.key).copied();
        id.filter(|id| !open || *id == DEVICE_TWICE)
    }

    /// Whether a member of a gang whose barrier has passed, and that is not bound yet, is to look for another place,
    /// by what the auditor has found: it would wait for as long as no look mends that, and the others have their deadline.
    pub(super) fn is_place_suspect(&self, gang: &Gang, node: &NodeName) -> bool {
        self.is_node_frozen(node) || self.is_suspect(gang)
    }

    /// Whether nothing new may be begun for the gang, and why. A barrier that has passed is no beginning: its
    /// gang is bound whole. But for a device that the auditor has found promised twice.
    pub(super) fn why_frozen(&self, gang: &Gang) -> Option<Reason> {
        let begun = match &gang.plan {
            Some(plan) => plan.open && !plan.complete,
            None => gang.partial_since.is_some(),
        };
        let all = self.freeze.all.as_ref().filter(|_| !begun);
        let own = self.finding(gang);
        all.map(|why| Reason::Frozen(Arc::clone(why))).or_else(|| {
            own.map(|id| {
                Reason::Frozen(Arc::from(format!(
                    "the scheduler's own books about it were found wrong ({id}), and are looked at again every 15 s"
                )))
            })
        })
    }

    /// A held Bind is about to be given up by its caller: it is told to come again.
    pub(super) fn turn_away_frozen(&mut self, gang: &mut Gang) {
        self.turn_away(gang, &Arc::from(FROZEN));
        if let Some(plan) = &mut gang.plan {
            plan.first_held_at = None;
        }
    }
}

#[cfg(test)]
mod tests;
