//! An unchanging picture of what every node can take, for planning. The planner sees this and
//! nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::inventory::Device;
use crate::node::{HostPort, Node};
use crate::resources::Resources;

/// Whether new pods may come to a node at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// Yes.
    Eligible,
    /// It is cordoned or being deleted.
    Cordoned,
    /// It is not ready.
    NotReady,
}

/// What one node can take.
#[derive(Clone, Debug)]
pub struct NodeCapacity {
    /// The node.
    pub node: Arc<Node>,
    /// Whether new pods may come at all.
    pub eligibility: Eligibility,
    /// Free: offered, lowered by devices that are not well, less what pods hold, less what is
    /// promised.
    pub free: Resources,
    /// The same, if every device were well.
    pub well: Resources,
    /// An agent vouches for its devices (or none is asked for).
    pub reported: bool,
    /// Ports of the node that are taken.
    pub ports: BTreeSet<HostPort>,
    /// Devices that are free and well, in order of NUMA node and index; empty without an agent.
    pub devices: Vec<Device>,
}

/// Every node, in order of name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The nodes.
    pub nodes: Vec<Arc<NodeCapacity>>,
}
