//! What is replayed: nodes, gangs that arrive, and what happens to nodes. Where it was read from
//! makes no difference from here on.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_core::config::Config;
use muster_core::ids::{ResourceName, RoleName};
use muster_core::interpod::Labels;
use muster_core::plan::{GangRequest, RoleRequest};
use muster_core::pod::PodShape;
use muster_core::resources::Resources;
use muster_core::time::Millis;
use muster_core::topology::{Level, Segments, TopologyRequest};

/// Resource of the GPUs.
pub const GPU: &str = "nvidia.com/gpu";

/// Most nodes of a cluster.
pub const NODES_MAX: usize = 20_000;

/// Most GPUs of one node.
pub const GPUS_PER_NODE_MAX: u32 = 64;

/// Most gangs of one replay.
pub const GANGS_MAX: usize = 1_000_000;

/// Longest time that a gang may run, and latest arrival, milliseconds: a hundred years.
pub const TIME_MAX_MS: u64 = 100 * 365 * 24 * 3_600_000;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Name.
    pub name: String,
    /// Its GPUs.
    pub gpus: u32,
    /// Its CPU, thousandths of a core.
    pub milli_cpu: u64,
    /// Its memory, bytes.
    pub memory_bytes: u64,
    /// Its labels, beside its host name.
    pub labels: BTreeMap<String, String>,
    /// It is not there until an event adds it.
    pub absent: bool,
}

/// Pods of one kind within a gang.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Role {
    /// Name.
    pub name: RoleName,
    /// Number of pods.
    pub count: u32,
    /// What each asks for.
    pub shape: Arc<PodShape>,
}

impl Role {
    /// GPUs that one pod asks for.
    pub fn gpus_each(&self) -> u64 {
        self.shape.requests.extended(GPU)
    }
}

/// A gang: it arrives, waits, runs for its duration, and ends.
#[derive(Clone, Debug)]
pub struct GangSpec {
    /// Name.
    pub name: Arc<str>,
    /// When it arrives, milliseconds from the beginning of the replay.
    pub arrival_ms: u64,
    /// How long it runs once it has started, milliseconds, whatever number of members it has.
    pub duration_ms: u64,
    /// Priority; the larger goes first. The baselines do not look at it.
    pub priority: i32,
    /// Members that must run together; `None`: all of them.
    pub minimum: Option<u32>,
    /// Its roles.
    pub roles: Arc<[Role]>,
    /// Annotations by which it asks something of the topology; see [`muster_core::topology::KEYS`].
    pub settings: Arc<Settings>,
    /// The same, read.
    pub topology: TopologyRequest,
    /// The same number for gangs that ask for the same.
    pub class: usize,
}

/// Annotations.
pub type Settings = BTreeMap<Arc<str>, Arc<str>>;

impl GangSpec {
    /// GPUs of the whole gang.
    pub fn gpus(&self) -> u64 {
        self.roles.iter().fold(0, |sum: u64, role| {
            sum.saturating_add(role.gpus_each().saturating_mul(u64::from(role.count)))
        })
    }

    /// Pods of the whole gang.
    pub fn members(&self) -> u32 {
        self.roles
            .iter()
            .fold(0, |sum: u32, role| sum.saturating_add(role.count))
    }

    /// Members that must run together.
    pub fn minimum(&self) -> u32 {
        self.minimum.unwrap_or_else(|| self.members())
    }

    /// The gang as the planner is asked for it.
    pub fn request(&self, config: &Config) -> GangRequest {
        let roles = self.roles.iter();
        let counts = roles.map(|role| (role.name.clone(), Arc::clone(&role.shape), role.count));
        let segments = self
            .topology
            .segment
            .map(|segment| Segments::of_roles(counts, segment, config));
        let segments_of = |role: &Role| -> Vec<u32> {
            let numbers = |segments: &Segments| {
                let seats = (0..role.count).map(|index| (role.name.clone(), index));
                seats.map_while(|seat| segments.of(&seat)).collect()
            };
            segments.as_ref().map(numbers).unwrap_or_default()
        };
        GangRequest {
            roles: self
                .roles
                .iter()
                .map(|role| RoleRequest {
                    role: role.name.clone(),
                    indices: (0..role.count).collect(),
                    shape: Arc::clone(&role.shape),
                    labels: Arc::new(Labels::new()),
                    segments: segments_of(role),
                })
                .collect(),
            topology: self.topology.clone(),
            ..GangRequest::default()
        }
    }
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It takes no new pods.
    Cordon,
    /// It takes new pods again.
    Uncordon,
    /// It is gone, and every pod on it.
    Remove,
    /// It is there, for the first time or again: empty, and with every GPU well.
    Add,
    /// A GPU is broken: what runs on it goes on, nothing new comes to it.
    GpuUnhealthy(u32),
    /// A GPU is well again.
    GpuBack(u32),
}

/// Something that happens to a node at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// When, milliseconds from the beginning of the replay.
    pub at_ms: u64,
    /// Position of the node in [`Scene::nodes`].
    pub node: usize,
    /// What.
    pub what: Happening,
}

/// Everything that is replayed.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// Name of the file that it was read from.
    pub source: String,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// The gangs, in order of arrival.
    pub gangs: Vec<GangSpec>,
    /// What happens, in order of time.
    pub occurrences: Vec<Occurrence>,
    /// Levels of the network, the widest first.
    pub levels: Vec<Level>,
    /// Position of the level in whose domains gangs are kept together that ask for none.
    pub together: Option<usize>,
    /// How long a gang waits before nodes are kept for it, under the production engine; zero: none ever are. `None`:
    /// as long as by default.
    pub reserve_after: Option<Millis>,
    /// How long they are kept while nothing ends on them; zero: until it starts. `None`: as long as by default.
    pub keep_for: Option<Millis>,
    /// Things that a reader of the results should know.
    pub notes: Vec<String>,
}

impl Scene {
    /// GPUs of all nodes that are there at the beginning.
    pub fn gpus(&self) -> u64 {
        self.nodes
            .iter()
            .filter(|node| !node.absent)
            .fold(0, |sum: u64, node| sum.saturating_add(u64::from(node.gpus)))
    }
}

/// Makes roles, the same ones shared, and numbers what gangs ask for.
#[derive(Debug, Default)]
pub struct Roles {
    known: BTreeMap<Vec<Role>, Arc<[Role]>>,
    classes: BTreeMap<(Arc<[Role]>, TopologyRequest), usize>,
}

impl Roles {
    /// These roles, shared with every gang that has the same, and the number of those that ask the same of the
    /// topology, too.
    pub fn share(&mut self, roles: Vec<Role>, topology: &TopologyRequest) -> (usize, Arc<[Role]>) {
        let shared = self
            .known
            .entry(roles)
            .or_insert_with_key(|roles| Arc::from(roles.as_slice()));
        let next = self.classes.len();
        let class = self
            .classes
            .entry((Arc::clone(shared), topology.clone()))
            .or_insert(next);
        (*class, Arc::clone(shared))
    }
}

/// What one pod asks for.
pub fn shape(
    gpus: u32,
    milli_cpu: u64,
    memory_bytes: u64,
    selector: &BTreeMap<String, String>,
) -> Arc<PodShape> {
    let mut requests = Resources {
        milli_cpu,
        memory_bytes,
        pods: 1,
        ..Resources::default()
    };
    if gpus > 0 {
        requests
            .extended
            .insert(ResourceName::from(GPU), u64::from(gpus));
    }
    Arc::new(PodShape {
        requests,
        node_selector: selector
            .iter()
            .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
            .collect(),
        ..PodShape::default()
    })
}
