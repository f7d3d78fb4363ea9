//! Verdicts of agents, and whether they count: while many nodes turn bad at once, new ones are held back.
//!
//! Cordoned nodes, and those that are not available, are neither counted nor held back: somebody looks after them,
//! or nothing is planned there in any case. What an agent says first of a node is taken as it is: nothing is known
//! of the time before.

use super::Engine;
use crate::breaker::BreakerState;
use crate::ids::NodeName;
use crate::inventory::{NodeReport, ReportOrder};
use crate::time::Timestamp;

impl Engine {
    /// How the breaker against mass quarantine stands.
    pub fn breaker(&self) -> BreakerState {
        let open = self.breaker.is_open();
        BreakerState {
            open,
            turned: self.breaker.turned(),
            most: self.config.breaker.most(self.inventory.len()),
            held_back: if open {
                self.inventory.held_back().count()
            } else {
                0
            },
        }
    }

    /// Takes a report into the inventory. Returns whether something changed; `None` if it is not taken.
    pub(super) fn apply_report(&mut self, report: NodeReport, now: Timestamp) -> Option<bool> {
        self.inventory.admit(&report, now).ok()?;
        if self.is_to_count(&report, now) {
            self.inventory.apply(report, now).ok()
        } else {
            self.inventory.apply_held_back(report, now).ok()
        }
    }

    /// Takes a sign of life into the inventory. Returns whether the agent is where it is believed to be.
    pub(super) fn apply_heartbeat(
        &mut self,
        node: &NodeName,
        order: &ReportOrder,
        sampler_ok: bool,
        now: Timestamp,
    ) -> bool {
        let Some(belief) = self.inventory.get(node) else {
            return false;
        };
        let told = belief.told();
        if told.order != *order || told.sampler_ok == sampler_ok {
            return self.inventory.hear(node, order, sampler_ok, now);
        }
        let mut report = told.clone();
        report.sampler_ok = sampler_ok;
        if self.is_to_count(&report, now) {
            self.believe_told(node);
            self.inventory.hear(node, order, sampler_ok, now)
        } else {
            self.inventory.hear_held_back(node, order, sampler_ok, now)
        }
    }

    /// Whether what a report says of devices is to count.
    fn is_to_count(&mut self, report: &NodeReport, now: Timestamp) -> bool {
        self.breaker.hear(report);
        let devices = self.inventory.turned_bad(report);
        if devices.is_empty() || !self.is_watched(&report.node) {
            return true;
        }
        let nodes = self.inventory.len();
        let limits = self.config.breaker;
        self.breaker
            .turns_bad(&report.node, devices, nodes, &limits, now)
    }

    fn is_watched(&self, name: &NodeName) -> bool {
        let node = self.ledger.node(name);
        node.is_some_and(|node| !node.unschedulable && !node.terminating && node.is_available())
    }

    /// A node has changed: nobody looks after one that is in use.
    pub(super) fn look_after(&mut self, node: &NodeName) {
        if !self.is_watched(node) {
            self.breaker.forget(node);
            self.believe_told(node);
        }
    }

    /// Lets what was held back of a node count, for planning and for those that run there. Devices that other nodes
    /// claim too may count there from now on, or no longer.
    fn believe_told(&mut self, node: &NodeName) {
        let mut touched = self.inventory.sharing(node);
        if !self.inventory.believe_told(node) {
            return;
        }
        touched.extend(self.inventory.sharing(node));
        touched.push(node.clone());
        self.heard_nodes.insert(node.clone());
        for node in touched {
            self.touch_node(&node);
        }
    }

    /// Closes the breaker when it is time: what was held back counts from then on.
    pub(super) fn tend_breaker(&mut self, now: Timestamp) {
        let nodes = self.inventory.len();
        let limits = self.config.breaker;
        if !self.breaker.close(nodes, &limits, now) {
            return;
        }
        let held_back: Vec<NodeName> = self.inventory.held_back().cloned().collect();
        for node in held_back {
            self.believe_told(&node);
        }
    }

    /// When that may be.
    pub(super) fn breaker_closes_at(&self) -> Option<Timestamp> {
        let nodes = self.inventory.len();
        self.breaker.closes_at(nodes, &self.config.breaker)
    }
}
