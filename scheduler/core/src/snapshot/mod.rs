//! What every node can take, for planning. The planner sees this and nothing else.
//!
//! ```text
//!   set(node), remove(node)  ──>  nodes, in order of name
//!                            └──> index: groups of nodes that are alike
//! ```
//!
//! Nodes are kept in groups of nodes that are alike to everything that is looked at: taints, labels
//! that somebody asks for, readiness, free devices exactly, and free CPU and memory up to a grain. So
//! the cost of planning follows the number of kinds of nodes and how unevenly they are filled, not the
//! number of nodes. A change of one node costs as much as finding its place in two ordered maps; a node
//! that comes or goes moves those after it in the list by name.

mod demand;
mod index;
mod kind;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::Config;
use crate::ids::NodeName;
use crate::inventory::Device;
use crate::links::Links;
use crate::node::{HostPort, Node};
use crate::pod::PodShape;
use crate::resources::Resources;
use crate::topology::Path;

pub use self::demand::{Counts, Usual};
pub(crate) use self::index::{Ask, Enough, Group, Index, Key};
pub(crate) use self::kind::Fit;

/// Changes of nodes after which the demand is looked at anew, at least.
const CHANGES_MIN: u64 = 64;

/// Whether new pods may come to a node at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Eligibility {
    /// Yes.
    Eligible,
    /// It is cordoned or being deleted.
    Cordoned,
    /// It is not ready, or not available.
    NotReady,
    /// It is short of disk or process numbers.
    UnderPressure,
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
    /// How near its GPUs are to each other, where that is known.
    pub links: Option<Links>,
    /// Devices of which a part is taken and a part is left, in the same order.
    pub shared: Vec<SharedDevice>,
    /// Where it lies in the network; `None` where no topology is configured.
    pub path: Option<Path>,
}

/// A device that several may have parts of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDevice {
    /// The device; it is well.
    pub device: Device,
    /// What is left of it, in thousandths.
    pub left: u32,
}

impl NodeCapacity {
    /// Where it lies in the network, as far as that is known.
    pub fn place(&self) -> &[Arc<str>] {
        self.path.as_deref().unwrap_or_default()
    }

    /// The node with nothing on it, ready and vouched for.
    pub fn emptied(&self) -> Self {
        let node = self.node.without_pressure().map(Arc::new);
        Self {
            node: node.unwrap_or_else(|| Arc::clone(&self.node)),
            eligibility: Eligibility::Eligible,
            free: self.node.allocatable.clone(),
            well: self.node.allocatable.clone(),
            reported: true,
            ports: BTreeSet::new(),
            devices: Vec::new(),
            links: None,
            shared: Vec::new(),
            path: self.path.clone(),
        }
    }
}

/// Every node, and how they are alike.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// In order of name.
    nodes: Vec<Arc<NodeCapacity>>,
    /// Group of each node, by the same position.
    keys: Vec<Arc<Key>>,
    index: Index,
    /// Nodes that were taken in or forgotten since the demand was set.
    changes: u64,
    /// How many there were to ask for something when it was last said to be due.
    known: usize,
    /// The same nodes with nothing on them; none for a snapshot that is this of another.
    emptied: Option<Box<Snapshot>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::of([])
    }
}

impl Snapshot {
    /// A snapshot of these nodes. Of two with the same name the later counts.
    pub fn of(nodes: impl IntoIterator<Item = Arc<NodeCapacity>>) -> Self {
        let mut snapshot = Self {
            emptied: Some(Box::new(Self::bare())),
            ..Self::bare()
        };
        for node in nodes {
            snapshot.set(node);
        }
        snapshot
    }

    /// One of no nodes that does not know what they are when they are empty: see [`Snapshot::emptied`].
    pub(crate) fn bare() -> Self {
        Self {
            nodes: Vec::new(),
            keys: Vec::new(),
            index: Index::default(),
            changes: 0,
            known: 0,
            emptied: None,
        }
    }

    /// A copy that does not know what its nodes are when they are empty.
    pub(crate) fn without_emptied(&self) -> Self {
        Self {
            nodes: self.nodes.clone(),
            keys: self.keys.clone(),
            index: self.index.clone(),
            emptied: None,
            ..*self
        }
    }

    /// Every node, in order of name.
    pub fn nodes(&self) -> &[Arc<NodeCapacity>] {
        &self.nodes
    }

    /// The node of this name.
    pub fn get(&self, name: &NodeName) -> Option<&Arc<NodeCapacity>> {
        self.nodes.get(self.find(name).ok()?)
    }

    /// The same nodes with nothing on them, ready and vouched for.
    pub(crate) fn emptied(&self) -> &Self {
        self.emptied.as_deref().unwrap_or(self)
    }

    /// Position of the node of this name.
    pub(crate) fn position(&self, name: &NodeName) -> Option<usize> {
        self.find(name).ok()
    }

    fn find(&self, name: &NodeName) -> Result<usize, usize> {
        self.nodes
            .binary_search_by(|other| other.node.name.cmp(name))
    }

    /// Takes in a node, in place of what was known of it.
    pub fn set(&mut self, capacity: Arc<NodeCapacity>) {
        if let Some(emptied) = &mut self.emptied {
            let known = emptied.get(&capacity.node.name);
            let is_same = |known: &Arc<NodeCapacity>| {
                Arc::ptr_eq(&known.node, &capacity.node) && known.path == capacity.path
            };
            if !known.is_some_and(is_same) {
                emptied.set(Arc::new(capacity.emptied()));
            }
        }
        self.changes = self.changes.saturating_add(1);
        let key = Arc::new(self.index.key(&capacity));
        match self.find(&capacity.node.name) {
            Ok(at) => {
                let (Some(place), Some(before)) = (self.nodes.get_mut(at), self.keys.get_mut(at))
                else {
                    return;
                };
                self.index.remove(before, place);
                self.index.insert(&key, &capacity);
                (*place, *before) = (capacity, key);
            }
            Err(at) => {
                self.index.insert(&key, &capacity);
                self.nodes.insert(at, capacity);
                self.keys.insert(at, key);
                if self.nodes.len().is_power_of_two() && self.index.review(&self.nodes) {
                    self.sort_anew();
                }
            }
        }
    }

    /// Forgets a node. Whether there was one.
    pub fn remove(&mut self, name: &NodeName) -> bool {
        if let Some(emptied) = &mut self.emptied {
            emptied.remove(name);
        }
        let Ok(at) = self.find(name) else {
            return false;
        };
        self.changes = self.changes.saturating_add(1);
        let capacity = self.nodes.remove(at);
        let key = self.keys.remove(at);
        self.index.remove(&key, &capacity);
        true
    }

    /// From now on nodes that differ by a label that this shape asks for are not alike. Planning is
    /// right without it, and faster with it. Costs a look at every node when a label is asked for the
    /// first time.
    pub fn learn(&mut self, shape: &PodShape) {
        if let Some(emptied) = &mut self.emptied {
            emptied.learn(shape);
        }
        if self.index.learn(shape, &self.nodes) {
            self.sort_anew();
        }
    }

    /// From now on, of several nodes with room, that one is taken which members with these shapes miss least:
    /// as many of each as there are. Without it the fullest is taken. Costs a look at every group of
    /// nodes for each shape that is frequent; what has been worked out is good until the next time.
    pub fn set_demand(&mut self, counts: &Counts, config: &Config) {
        self.changes = 0;
        let devices = self.index.columns(|name| config.is_device(name));
        let emptied = self.emptied.as_ref();
        let most = |shape: &PodShape| emptied.map_or(u64::MAX, |nodes| nodes.index.room(shape));
        self.index
            .set_demand(counts, most, |column| devices.contains(&column));
    }

    /// The demand as it was found when it was last set.
    pub fn demand(&self) -> &[Usual] {
        self.index.usual()
    }

    /// Sets the demand as it was found before, elsewhere: [`Snapshot::demand`].
    pub fn restore_demand(&mut self, usual: Vec<Usual>, config: &Config) {
        self.changes = 0;
        let devices = self.index.columns(|name| config.is_device(name));
        self.index
            .restore_demand(usual, |column| devices.contains(&column));
    }

    fn sort_anew(&mut self) {
        self.index.forget();
        for (capacity, place) in self.nodes.iter().zip(&mut self.keys) {
            let key = Arc::new(self.index.key(capacity));
            self.index.insert(&key, capacity);
            *place = key;
        }
    }

    /// Whether the demand is to be set anew, with so many gangs and pods there are: half of the nodes have
    /// changed since, or there are as many of them again. So that a look at all of them costs each change
    /// next to nothing.
    pub fn is_demand_due(&mut self, known: usize) -> bool {
        let nodes = u64::try_from(self.nodes.len()).unwrap_or(u64::MAX);
        let is_moved = self.changes >= CHANGES_MIN.max(nodes / 2);
        let is_due = is_moved || known > self.known.saturating_mul(2);
        if is_due {
            self.known = known;
        }
        is_due
    }

    /// How nodes are alike.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Group of a node.
    pub(crate) fn key_of(&self, name: &NodeName) -> Option<&Arc<Key>> {
        self.keys.get(self.find(name).ok()?)
    }
}
