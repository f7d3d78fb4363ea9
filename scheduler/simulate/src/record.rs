//! What is written down during a replay: the life of each gang, and the state of the cluster at each
//! time at which it changed.

use std::collections::BTreeMap;

use muster_core::ids::NodeName;

use crate::cluster::{Cluster, Totals};
use crate::policy::Fact;
use crate::scene::{GangSpec, Scene};

/// The life of a gang.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// It could not run on the empty cluster, and was not submitted: why.
    pub impossible: Option<String>,
    /// It has arrived.
    pub arrived: bool,
    /// When it first ran, milliseconds.
    pub started_ms: Option<u64>,
    /// When it had run for its duration, milliseconds.
    pub ended_ms: Option<u64>,
    /// How often it lost what it had done.
    pub halts: u32,
    /// It runs.
    pub running: bool,
    /// Nodes that its pods were on when it first ran.
    pub nodes: u32,
}

/// The cluster at one time, until the next sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Time, milliseconds from the beginning of the replay.
    pub at_ms: u64,
    /// GPUs of the nodes.
    pub nodes: Totals,
    /// Gangs that run.
    pub running: u32,
    /// Gangs that wait.
    pub waiting: u32,
    /// GPUs that they wait for.
    pub wanted: u64,
    /// GPUs of the smallest gang that waits; zero when none does.
    pub smallest: u64,
}

impl Sample {
    /// Whether a gang waits although as many GPUs as it wants are free: they are in the wrong places.
    pub fn is_blocked(&self) -> bool {
        self.waiting > 0 && self.smallest <= self.nodes.free
    }

    /// Share of the free GPUs that are on nodes with something on them; zero when none are free.
    pub fn fragmentation(&self) -> f64 {
        if self.nodes.free == 0 {
            return 0.0;
        }
        1.0 - as_f64(self.nodes.free_whole) / as_f64(self.nodes.free)
    }
}

/// A change of a node: GPUs in use from then on, `None` while it is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeChange {
    /// Time, milliseconds.
    pub at_ms: u64,
    /// Position of the node.
    pub node: usize,
    /// GPUs in use.
    pub used: Option<u64>,
}

/// What is written down during a replay.
#[derive(Debug, Default)]
pub struct Record {
    /// By position of the gang.
    pub lives: Vec<Life>,
    /// In order of time; no two have the same.
    pub samples: Vec<Sample>,
    /// In order of time.
    pub nodes: Vec<NodeChange>,
    /// When the replay ended, milliseconds.
    pub end_ms: u64,
    /// Gangs that wait, by GPUs.
    waiting: BTreeMap<u64, u32>,
    /// Pods of each gang by node, those of gangs that have none left out.
    standing: BTreeMap<usize, BTreeMap<NodeName, u32>>,
    now: Sample,
}

/// A number for a ratio. Exact up to 2^53, far above what is counted here.
#[allow(clippy::cast_precision_loss)]
pub fn as_f64(number: u64) -> f64 {
    number as f64
}

impl Record {
    /// Nothing has happened yet.
    pub fn new(scene: &Scene) -> Self {
        Self {
            lives: vec![Life::default(); scene.gangs.len()],
            ..Self::default()
        }
    }

    /// The life of a gang so far.
    pub fn life(&self, gang: usize) -> Option<&Life> {
        self.lives.get(gang)
    }

    /// A gang cannot run even on the empty cluster.
    pub fn impossible(&mut self, gang: usize, why: String) {
        if let Some(life) = self.lives.get_mut(gang) {
            life.impossible = Some(why);
        }
    }

    /// A gang has arrived, and waits.
    pub fn arrived(&mut self, gang: usize, spec: &GangSpec) {
        if let Some(life) = self.lives.get_mut(gang) {
            life.arrived = true;
        }
        self.waits(spec);
    }

    fn waits(&mut self, spec: &GangSpec) {
        let gpus = spec.gpus();
        self.now.waiting = self.now.waiting.saturating_add(1);
        self.now.wanted = self.now.wanted.saturating_add(gpus);
        let count = self.waiting.entry(gpus).or_default();
        *count = count.saturating_add(1);
    }

    /// A gang runs from now on.
    pub fn runs(&mut self, gang: usize, spec: &GangSpec, now_ms: u64) {
        let Some(life) = self.lives.get_mut(gang).filter(|life| !life.running) else {
            return;
        };
        life.running = true;
        if life.started_ms.is_none() {
            life.started_ms = Some(now_ms);
            let nodes = self.standing.get(&gang).map_or(0, BTreeMap::len);
            life.nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        }
        let gpus = spec.gpus();
        self.now.running = self.now.running.saturating_add(1);
        self.now.waiting = self.now.waiting.saturating_sub(1);
        self.now.wanted = self.now.wanted.saturating_sub(gpus);
        if let Some(count) = self.waiting.get_mut(&gpus) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.waiting.remove(&gpus);
            }
        }
    }

    /// A gang has lost what it had done, and waits again.
    pub fn halts(&mut self, gang: usize, spec: &GangSpec) {
        let Some(life) = self.lives.get_mut(gang).filter(|life| life.running) else {
            return;
        };
        life.running = false;
        life.halts = life.halts.saturating_add(1);
        self.now.running = self.now.running.saturating_sub(1);
        self.waits(spec);
    }

    /// A gang has run for its duration.
    pub fn ended(&mut self, gang: usize, now_ms: u64) {
        if let Some(life) = self.lives.get_mut(gang) {
            life.running = false;
            life.ended_ms = Some(now_ms);
            self.now.running = self.now.running.saturating_sub(1);
        }
    }

    /// Notes how much of a node is in use.
    pub fn node(&mut self, cluster: &Cluster, node: usize, now_ms: u64) {
        self.nodes.push(NodeChange {
            at_ms: now_ms,
            node,
            used: cluster.used(node),
        });
    }

    /// Applies what a pod does to its node.
    pub fn pod(&mut self, cluster: &mut Cluster, fact: &Fact, now_ms: u64) {
        let (gang, name, gpus, takes) = match fact {
            Fact::Takes { gang, node, gpus } => (*gang, node, *gpus, true),
            Fact::Frees { gang, node, gpus } => (*gang, node, *gpus, false),
            _ => return,
        };
        self.stands(gang, name, takes);
        let Some(node) = cluster.position(name).filter(|_| gpus > 0) else {
            return;
        };
        if takes {
            cluster.take(node, gpus);
        } else {
            cluster.free(node, gpus);
        }
        self.node(cluster, node, now_ms);
    }

    /// A pod of a gang comes to a node, or leaves it.
    fn stands(&mut self, gang: usize, node: &NodeName, comes: bool) {
        let pods = self.standing.entry(gang).or_default();
        let count = pods.entry(node.clone()).or_default();
        *count = match comes {
            true => count.saturating_add(1),
            false => count.saturating_sub(1),
        };
        if *count == 0 {
            pods.remove(node);
        }
        if pods.is_empty() {
            self.standing.remove(&gang);
        }
    }

    /// Writes down how things are now, if that is new.
    pub fn sample(&mut self, totals: Totals, now_ms: u64) {
        self.now.at_ms = now_ms;
        self.now.nodes = totals;
        self.now.smallest = self.waiting.first_key_value().map_or(0, |(gpus, _)| *gpus);
        self.end_ms = now_ms;
        match self.samples.last_mut() {
            Some(last) if last.at_ms == now_ms => *last = self.now,
            Some(last)
                if (Sample {
                    at_ms: now_ms,
                    ..*last
                }) == self.now => {}
            _ => self.samples.push(self.now),
        }
    }

    /// Samples with the time that each holds, milliseconds, up to `until_ms`.
    pub fn spans(&self, until_ms: u64) -> impl Iterator<Item = (&Sample, u64)> {
        let ends = self
            .samples
            .iter()
            .skip(1)
            .map(|sample| sample.at_ms)
            .chain([self.end_ms.max(until_ms)]);
        self.samples.iter().zip(ends).map(move |(sample, end)| {
            let end = end.min(until_ms);
            (sample, end.saturating_sub(sample.at_ms))
        })
    }
}
