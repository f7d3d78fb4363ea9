//! A breaker against mass quarantine: one bad agent, driver or table that is rolled out everywhere must not take the
//! whole cluster out of use.
//!
//! ```text
//!   closed --more nodes than the limit turn bad within the window--> open: what else turns bad is held back
//!      ^                                                                |
//!      `-- no more than the limit of those nodes are bad still, and     |
//!          none has turned bad for a whole window  ---------------------'
//! ```
//! Up to the limit every verdict counts at once, also while it is on its way to trip: a share of the nodes is what
//! being wrong may cost. Nodes that were bad before are not looked at. It does not close by time alone: then the
//! next share would be quarantined, and the next, until nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{DeviceUuid, NodeName};
use crate::inventory::NodeReport;
use crate::time::{Millis, Timestamp};

/// When it trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Time within which nodes that turn bad are counted together.
    pub window: Millis,
    /// Share of the nodes that may turn bad within it, in percent; 100 never trips.
    pub percent_max: u32,
    /// So many may in any case, however few nodes there are.
    pub nodes_max: u32,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self {
            window: Millis::from_secs(300),
            percent_max: 20,
            nodes_max: 2,
        }
    }
}

impl BreakerLimits {
    /// Of `nodes` nodes, how many may turn bad.
    pub fn most(&self, nodes: usize) -> usize {
        let percent = usize::try_from(self.percent_max).unwrap_or(usize::MAX);
        let share = nodes.saturating_mul(percent) / 100;
        share.max(usize::try_from(self.nodes_max).unwrap_or(usize::MAX))
    }
}

/// A node that turned bad.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Turned {
    at: Timestamp,
    /// Its devices that did.
    devices: BTreeSet<DeviceUuid>,
}

/// How it stands, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BreakerState {
    /// New verdicts are held back.
    pub open: bool,
    /// Nodes that have turned bad in the window, or since it tripped.
    pub turned: usize,
    /// How many may.
    pub most: usize,
    /// Nodes on which a verdict is held back.
    pub held_back: usize,
}

/// Counts nodes that turn bad.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    turned: BTreeMap<NodeName, Turned>,
    open: bool,
    /// When a node has turned bad last.
    last: Timestamp,
}

impl Breaker {
    /// Whether new verdicts are held back.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Nodes that have turned bad in the window, or since it tripped.
    pub fn turned(&self) -> usize {
        self.turned.len()
    }

    /// These devices of a node, which counted as well, are said to be bad. Returns whether that is to count;
    /// else it is held back. `nodes` is how many nodes are reported.
    pub fn turns_bad(
        &mut self,
        node: &NodeName,
        devices: BTreeSet<DeviceUuid>,
        nodes: usize,
        limits: &BreakerLimits,
        now: Timestamp,
    ) -> bool {
        self.expire(limits, now);
        let known = self.turned.get_mut(node);
        match known {
            Some(turned) => {
                if !devices.is_subset(&turned.devices) {
                    turned.devices.extend(devices);
                    turned.at = now;
                    self.last = now;
                }
            }
            None => {
                self.turned
                    .insert(node.clone(), Turned { at: now, devices });
                self.last = now;
            }
        }
        self.open |= limits.percent_max < 100 && self.turned.len() > limits.most(nodes);
        !self.open
    }

    /// Takes in what a node says of itself: one whose devices are well again is not counted any more. While closed
    /// it stays counted for the window: what comes and goes everywhere is no better.
    pub fn hear(&mut self, report: &NodeReport) {
        if !self.open {
            return;
        }
        let is_well_again = |turned: &Turned| {
            report.sampler_ok
                && !report.devices.is_empty()
                && report
                    .devices
                    .iter()
                    .all(|device| device.is_well() || !turned.devices.contains(&device.uuid))
        };
        if self.turned.get(&report.node).is_some_and(is_well_again) {
            self.turned.remove(&report.node);
        }
    }

    /// The node is gone, or somebody has taken it out of use and looks after it.
    pub fn forget(&mut self, node: &NodeName) {
        self.turned.remove(node);
    }

    /// Closes it if it is time. Returns whether it has closed now.
    pub fn close(&mut self, nodes: usize, limits: &BreakerLimits, now: Timestamp) -> bool {
        self.expire(limits, now);
        if !self.open || self.closes_at(nodes, limits).is_none_or(|at| now < at) {
            return false;
        }
        self.open = false;
        true
    }

    /// When it closes if nothing else happens; `None` if it is not open, or too many nodes are bad.
    pub fn closes_at(&self, nodes: usize, limits: &BreakerLimits) -> Option<Timestamp> {
        let closes = self.open && self.turned.len() <= limits.most(nodes);
        closes.then(|| self.last + limits.window)
    }

    fn expire(&mut self, limits: &BreakerLimits, now: Timestamp) {
        if !self.open {
            self.turned
                .retain(|_, turned| now < turned.at + limits.window);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: usize = 10;

    fn limits() -> BreakerLimits {
        BreakerLimits::default()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    fn turn(breaker: &mut Breaker, node: &str, seconds: u64) -> bool {
        let devices = BTreeSet::from([DeviceUuid::from(format!("GPU-{node}"))]);
        breaker.turns_bad(&node.into(), devices, NODES, &limits(), at(seconds))
    }

    #[test]
    fn a_share_of_the_nodes_and_a_few_in_any_case_may_turn_bad() {
        let most = |nodes| limits().most(nodes);
        assert_eq!((most(0), most(4), most(14), most(15)), (2, 2, 2, 3));
        assert_eq!(most(5000), 1000);
    }

    #[test]
    fn it_trips_on_many_nodes_within_the_window_and_not_on_as_many_spread_out() {
        let mut breaker = Breaker::default();
        for (node, seconds) in [("a", 0), ("b", 100), ("c", 301), ("d", 402), ("e", 703)] {
            assert!(turn(&mut breaker, node, seconds), "{node}");
        }
        assert!(turn(&mut breaker, "f", 704));
        assert!(!turn(&mut breaker, "g", 705), "e, f and g");
        assert_eq!(breaker.turned(), 3);
    }

    #[test]
    fn one_node_that_turns_bad_again_and_again_is_one_node() {
        let mut breaker = Breaker::default();
        for seconds in 0..100 {
            assert!(turn(&mut breaker, "a", seconds));
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn it_stays_open_for_as_long_as_too_many_are_bad() {
        let mut breaker = Breaker::default();
        for node in ["a", "b", "c", "d"] {
            turn(&mut breaker, node, 10);
        }
        assert!(breaker.is_open());
        assert!(!breaker.close(NODES, &limits(), at(1_000_000)));
        breaker.forget(&"d".into());
        assert_eq!(breaker.closes_at(NODES, &limits()), None);
        breaker.forget(&"c".into());
        assert_eq!(breaker.closes_at(NODES, &limits()), Some(at(310)));
        assert!(!breaker.close(NODES, &limits(), at(309)));
        assert!(breaker.close(NODES, &limits(), at(310)));
        assert!(!breaker.is_open());
    }
}
