//! Agents that a new leader has not heard yet. New plans wait for them, a little.
//!
//! After a restart the agents of thousands of nodes come back within seconds, in any order. A plan that is made
//! meanwhile sees a part of the cluster: small gangs take the nodes that have been heard, a large one finds no
//! room that is there, and a gang that prefers one rack is spread over those that happen to be known.

use std::collections::BTreeSet;

use super::Engine;
use crate::config::NodesWithoutAgent;
use crate::ids::NodeName;
use crate::node::Node;
use crate::time::{Millis, Timestamp};

/// Of so many agents one may be missing without being waited for to the end: some are always broken.
const ONE_OF: usize = 20;
/// Time without another agent after which those few count as broken. Agents that look for a scheduler again
/// come at most 5 s apart each, and in thousands all the time.
const QUIET: Millis = Millis::from_secs(5);
/// While more than a few are missing and others come all the time, they are waited for this long after the leadership
/// was gained: thousands need longer than the usual 30 s for their TLS handshakes and the reviews of their
/// tokens. Nobody is waited for longer, however long a report counts.
const LONGEST: Millis = Millis::from_secs(300);

/// Who is awaited in this leadership.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    /// Nodes that were there when it began, and whose agent has not been heard since. Nobody else is awaited:
    /// nodes that come all the time, or come and go, would hold up everybody.
    known: BTreeSet<NodeName>,
    /// Nodes that could take members with devices, and whose agent has not been heard.
    nodes: BTreeSet<NodeName>,
    /// Nodes of which that was true until their agent was heard, and those heard before.
    heard: usize,
    /// When the last of them was heard for the first time.
    last_at: Timestamp,
    /// Nobody is waited for any more.
    over: bool,
}

impl Engine {
    /// Waits anew, for every node that nothing is known of.
    pub(super) fn await_agents(&mut self, now: Timestamp) {
        let nodes: Vec<_> = self.ledger.nodes().cloned().collect();
        self.awaited = Awaited {
            known: nodes.iter().map(|node| node.name.clone()).collect(),
            last_at: now,
            ..Awaited::default()
        };
        for node in nodes {
            if self.await_agent(&node) == Some(false) {
                self.awaited.heard = self.awaited.heard.saturating_add(1);
            }
        }
    }

    /// Waits for the agent of this node, if it has anything to tell that is not known. Returns whether it is waited
    /// for; `None` where the agent has nothing to tell, or nobody is waited for.
    pub(super) fn await_agent(&mut self, node: &Node) -> Option<bool> {
        let mut offered = node.allocatable.extended.iter();
        let tells = !self.awaited.over
            && !node.unschedulable
            && !node.terminating
            && node.is_available()
            && offered.any(|(name, amount)| *amount > 0 && self.config.is_device(name));
        let is_awaited = tells
            && self.awaited.known.contains(&node.name)
            && self.inventory.get(&node.name).is_none();
        if is_awaited {
            self.awaited.nodes.insert(node.name.clone());
        } else {
            self.awaited.nodes.remove(&node.name);
        }
        tells.then_some(is_awaited)
    }

    /// Waits for the agent of this node no longer.
    pub(super) fn heard_of(&mut self, node: &NodeName, now: Timestamp) {
        self.awaited.known.remove(node);
        if self.awaited.nodes.remove(node) {
            self.awaited.heard = self.awaited.heard.saturating_add(1);
            self.awaited.last_at = now;
        }
    }

    /// The node is gone, and with it whoever would report it: one that is made anew under its name is new.
    pub(super) fn await_no_more(&mut self, node: &NodeName) {
        self.awaited.known.remove(node);
        self.awaited.nodes.remove(node);
    }

    /// Whether new plans wait until more agents have been heard: all of them, or all but a few of which
    /// nothing comes any more; longer than a report counts only while others still come.
    pub(super) fn awaits_agents(&mut self, now: Timestamp) -> bool {
        if !self.awaited.over && now >= self.agents_awaited_until() {
            self.awaited.over = true;
            self.awaited.known.clear();
            self.awaited.nodes.clear();
            // Whoever has waited for it is tried now.
            self.revision = self.revision.saturating_add(1);
        }
        !self.awaited.over
    }

    /// When they wait no longer, if nobody else is heard.
    pub(super) fn agents_awaited_until(&self) -> Timestamp {
        let all = self.led_at + self.config.report_age_max;
        let missing = self.awaited.nodes.len();
        if missing == 0 || self.config.nodes_without_agent == NodesWithoutAgent::UseAllocatable {
            return self.led_at;
        }
        let everybody = self.awaited.heard.saturating_add(missing);
        let quiet = self.awaited.last_at + QUIET;
        let until = if missing.saturating_mul(ONE_OF) <= everybody {
            all.min(quiet)
        } else {
            all.max(quiet)
        };
        until.min(self.led_at + LONGEST)
    }

    /// Whether somebody may be waited for.
    pub(super) fn may_await_agents(&self) -> bool {
        !self.awaited.over
    }
}
