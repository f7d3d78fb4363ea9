//! The nodes of the experiment as the published policies see them. Nodes in the same state are told apart
//! by their names only, so that a policy looks at each state once.

use std::collections::{BTreeMap, BTreeSet};

use super::trace::{Machine, Request};
use super::{GPUS_MAX, MILLI, PODS_MAX};

/// What is left of a node, and its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State {
    /// Position of its model.
    pub model: usize,
    /// CPU that is left, thousandths of a core.
    pub cpu_milli: u32,
    /// Memory that is left, MiB.
    pub memory_mib: u32,
    /// Its GPUs.
    pub gpus: usize,
    /// Thousandths that are left of each.
    milli: [u32; GPUS_MAX],
}

/// Positions of GPUs on a node, in ascending order.
pub(super) type Devices = Vec<usize>;

impl State {
    /// A node with nothing on it.
    pub(super) fn empty(node: &Machine) -> Self {
        let mut milli = [0; GPUS_MAX];
        milli
            .iter_mut()
            .take(node.gpus)
            .for_each(|left| *left = MILLI);
        Self {
            model: node.model,
            cpu_milli: node.cpu_milli,
            memory_mib: node.memory_mib,
            gpus: node.gpus,
            milli,
        }
    }

    /// Thousandths that are left of each of its GPUs.
    pub(super) fn left(&self) -> &[u32] {
        self.milli.get(..self.gpus).unwrap_or_default()
    }

    /// Thousandths that are left of all of them.
    pub(super) fn idle_milli(&self) -> u32 {
        self.milli
            .iter()
            .fold(0, |sum: u32, left| sum.saturating_add(*left))
    }

    /// Whether a pod's GPUs are there, of whatever model.
    pub(super) fn has_gpus(&self, request: &Request) -> bool {
        let enough = self
            .left()
            .iter()
            .filter(|left| **left >= request.gpu_milli);
        enough.count() >= request.gpus
    }

    /// Whether a pod finds room. `NodeResourcesFit` and the filter of `open_gpu_share.go`.
    pub(super) fn fits(&self, request: &Request) -> bool {
        self.cpu_milli >= request.cpu_milli
            && self.memory_mib >= request.memory_mib
            && (request.gpus == 0 || (request.accepts(self.model) && self.has_gpus(request)))
    }

    /// The GPUs with the lowest positions that have room. `AllocateExclusiveGpuId`.
    pub(super) fn lowest(&self, request: &Request) -> Devices {
        self.with_room(request).take(request.gpus).collect()
    }

    /// For a share the GPU with the least left, of several the lowest: `allocateGpuIdBasedOnBestFit`.
    /// Whole GPUs: the lowest.
    pub(super) fn best_fit(&self, request: &Request) -> Devices {
        if !request.is_share() {
            return self.lowest(request);
        }
        let left = |device: &usize| self.milli.get(*device).copied().unwrap_or_default();
        self.with_room(request)
            .min_by_key(left)
            .into_iter()
            .collect()
    }

    /// Positions of GPUs with room for one of the pod's.
    pub(super) fn with_room(&self, request: &Request) -> impl Iterator<Item = usize> {
        let enough = |(device, left): (usize, &u32)| (*left >= request.gpu_milli).then_some(device);
        self.left().iter().enumerate().filter_map(enough)
    }

    /// What is left when a pod stands there. `None` where it has no room there.
    pub(super) fn after(&self, request: &Request, devices: &[usize]) -> Option<Self> {
        let mut after = *self;
        after.cpu_milli = self.cpu_milli.checked_sub(request.cpu_milli)?;
        after.memory_mib = self.memory_mib.checked_sub(request.memory_mib)?;
        for device in devices {
            let left = after.milli.get_mut(*device)?;
            *left = left.checked_sub(request.gpu_milli)?;
        }
        Some(after)
    }
}

/// Number of a state that some node is in, or was.
pub(super) type StateId = usize;

/// All nodes. A node is known by its position in order of name.
#[derive(Debug, Default)]
pub(super) struct Board {
    known: BTreeMap<State, StateId>,
    states: Vec<State>,
    /// Nodes in each state; those that have [`PODS_MAX`] pods are in none.
    nodes: Vec<BTreeSet<usize>>,
    /// States that nodes are in.
    live: BTreeSet<StateId>,
    /// Pods on each node.
    pods: Vec<u32>,
}

impl Board {
    /// Nodes with nothing on them.
    pub(super) fn new(nodes: &[Machine]) -> Self {
        let mut board = Self {
            pods: vec![0; nodes.len()],
            ..Self::default()
        };
        for (position, node) in nodes.iter().enumerate() {
            board.put(position, State::empty(node));
        }
        board
    }

    fn put(&mut self, node: usize, state: State) {
        let next = self.states.len();
        let id = *self.known.entry(state).or_insert(next);
        if id == next {
            self.states.push(state);
            self.nodes.push(BTreeSet::new());
        }
        if let Some(nodes) = self.nodes.get_mut(id) {
            nodes.insert(node);
            self.live.insert(id);
        }
    }

    /// The states that nodes are in, each with its number and its nodes.
    pub(super) fn live(&self) -> impl Iterator<Item = (StateId, &State, &BTreeSet<usize>)> {
        self.live
            .iter()
            .filter_map(|id| Some((*id, self.states.get(*id)?, self.nodes.get(*id)?)))
    }

    /// A state by its number.
    pub(super) fn state(&self, id: StateId) -> Option<&State> {
        self.states.get(id)
    }

    /// Puts a pod on a node that is in a state. `None`, and nothing changes, where it has no room there.
    pub(super) fn take(
        &mut self,
        node: usize,
        id: StateId,
        request: &Request,
        devices: &[usize],
    ) -> Option<()> {
        let after = self.states.get(id)?.after(request, devices)?;
        let nodes = self.nodes.get_mut(id)?;
        if !nodes.remove(&node) {
            return None;
        }
        if nodes.is_empty() {
            self.live.remove(&id);
        }
        let pods = self.pods.get_mut(node)?;
        *pods = pods.saturating_add(1);
        if *pods < PODS_MAX {
            self.put(node, after);
        }
        Some(())
    }
}
