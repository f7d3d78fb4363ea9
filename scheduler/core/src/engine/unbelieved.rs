//! What agents report and is not believed, for those who run the cluster: kept node by node as nodes change, so that
//! to look at it costs by what is wrong.

use std::collections::BTreeMap;

use super::Engine;
use crate::ids::NodeName;
use crate::ledger::Unbelieved;
use crate::node::Node;

impl Engine {
    /// Nodes whose agents report devices that do not count, and how many.
    pub fn unbelieved(&self) -> &BTreeMap<NodeName, Unbelieved> {
        &self.unbelieved
    }

    /// UUIDs that several nodes report: nobody gets these devices.
    pub fn devices_cloned(&self) -> usize {
        self.inventory.cloned()
    }

    /// Other nodes that report a UUID that this one reports as well, in order.
    pub fn nodes_sharing(&self, node: &NodeName) -> Vec<NodeName> {
        let mut others = self.inventory.sharing(node);
        others.retain(|other| other != node);
        others.sort();
        others.dedup();
        others
    }

    /// A node that exists.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.ledger.node(name).map(AsRef::as_ref)
    }

    /// Notes it of a node that has changed.
    pub(super) fn note_unbelieved(&mut self, name: &NodeName) {
        let found = self.ledger.unbelieved(name, &self.inventory, &self.config);
        if found == Unbelieved::default() {
            self.unbelieved.remove(name);
        } else {
            self.unbelieved.insert(name.clone(), found);
        }
    }
}
