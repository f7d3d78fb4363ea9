//! Thousands of fake nodes in one process, each with its own streams, over real gRPC.
//!
//! ```text
//! Fleet --per node--> FakeSource (profile, scenario, injected faults) --> NodeAgent --> streams
//!   ^ inject, set_holders, add_node, remove_node          KubeletState (watch) --^
//! ```
//! Everything but the device source and the kubelet is what `muster-agent run` uses. Connections and
//! tokens are given by the caller, so a fleet also runs over in-memory pipes on a paused clock; with
//! the same seed it then behaves the same in every run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_proto::inventory::{ByeReason, Holder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::WallClock;
use crate::connector::{Connector, TokenProvider, resolve_forever};
use crate::fake::{FakeDevice, FakeNode, devices};
use crate::hash::{hash64, uuid_text};
use crate::health::table::Table;
use crate::kubelet::{DeviceId, KubeletState};
use crate::node::{NodeAgent, NodeIdentity};
use crate::profile::{FileError, Profile};
use crate::report::NodeView;
use crate::scenario::{FaultEvent, Scenario};
use crate::source::fake::FakeSource;
use crate::stream::Uplink;

/// Most nodes of one fleet: what one scheduler was measured with leaves room above it.
pub const NODES_MAX: usize = 50_000;

/// One fake node.
#[derive(Debug, Clone)]
pub struct FleetNode {
    /// Name of the Kubernetes node.
    pub name: String,
    /// UID of the Kubernetes node; empty when not known.
    pub uid: String,
    /// What devices it has; a profile with several shapes decides by the name.
    pub profile: Arc<Profile>,
    /// What goes wrong, and when, from the node's start.
    pub scenario: Option<Arc<Scenario>>,
}

/// How the fleet's kubelets answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FleetKubelet {
    /// Every device can be handed out; holders are those of [`Fleet::set_holders`], at first none.
    #[default]
    Simulated,
    /// The kubelet cannot be asked until [`Fleet::set_holders`] is called.
    Unknown,
}

/// What a fleet needs.
pub struct FleetConfig {
    /// Finds and connects to the scheduler's replicas.
    pub connector: Arc<dyn Connector>,
    /// Gives each node's token.
    pub tokens: Arc<dyn TokenProvider>,
    /// Nodes to start with.
    pub nodes: Vec<FleetNode>,
    /// Nodes start at random times within this span, as real ones do.
    pub start_spread: Duration,
    /// Seed of start times and reconnect jitter.
    pub seed: u64,
    /// How kubelets answer.
    pub kubelet: FleetKubelet,
    /// Wall clock of the nodes, and the source of their instance numbers.
    pub clock: WallClock,
    /// How long a hanging driver goes unnoticed.
    pub watchdog: Duration,
}

impl FleetConfig {
    /// A fleet without nodes: no start spread, seed 1, simulated kubelets, the system's clock, the agent's own watchdog.
    pub fn new(connector: Arc<dyn Connector>, tokens: Arc<dyn TokenProvider>) -> Self {
        Self {
            connector,
            tokens,
            nodes: Vec::new(),
            start_spread: Duration::ZERO,
            seed: 1,
            kubelet: FleetKubelet::Simulated,
            clock: WallClock::system(),
            watchdog: crate::source::WATCHDOG,
        }
    }
}

/// Why a fleet refuses something.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// No node of that name.
    #[error("no node {0} in the fleet")]
    NoNode(String),
    /// A node of that name is there already.
    #[error("node {0} is in the fleet already")]
    Exists(String),
    /// Too many nodes.
    #[error("fleet has {0} nodes, at most {NODES_MAX}")]
    Full(usize),
    /// The node has not taken in the faults before this one.
    #[error("node {node} has {limit} faults waiting, at most {limit}")]
    Busy {
        /// Node.
        node: String,
        /// Length of the queue.
        limit: usize,
    },
    /// The built-in health table is broken.
    #[error(transparent)]
    Table(#[from] FileError),
}

struct Member {
    uid: String,
    agent: NodeAgent,
    faults: mpsc::Sender<FaultEvent>,
    kubelet: watch::Sender<KubeletState>,
    devices: Vec<FakeDevice>,
}

/// A running fleet. Dropping it ends every node without a Bye.
pub struct Fleet {
    members: BTreeMap<String, Member>,
    uplink: Uplink,
    resolver: JoinHandle<()>,
    table: Table,
    rng: StdRng,
    start_spread: Duration,
    kubelet: FleetKubelet,
    clock: WallClock,
    watchdog: Duration,
    last_instance: u64,
}

impl Fleet {
    /// Starts the nodes. Must be called within a tokio runtime.
    pub fn start(config: FleetConfig) -> Result<Self, FleetError> {
        let (found, replicas) = watch::channel(Vec::new());
        let missed = Arc::new(Notify::new());
        let resolver = tokio::spawn(resolve_forever(
            Arc::clone(&config.connector),
            found,
            Arc::clone(&missed),
            config.seed,
        ));
        let uplink = Uplink {
            connector: config.connector,
            replicas,
            missed,
            tokens: config.tokens,
            seed: config.seed,
            streams_up: Arc::default(),
        };
        let mut fleet = Self {
            members: BTreeMap::new(),
            uplink,
            resolver,
            table: Table::embedded()?,
            rng: StdRng::seed_from_u64(config.seed),
            start_spread: config.start_spread,
            kubelet: config.kubelet,
            clock: config.clock,
            watchdog: config.watchdog,
            last_instance: 0,
        };
        for node in config.nodes {
            fleet.add_node(node)?;
        }
        Ok(fleet)
    }

    /// Starts one more node, at a random time within the start spread.
    pub fn add_node(&mut self, node: FleetNode) -> Result<(), FleetError> {
        if self.members.contains_key(&node.name) {
            return Err(FleetError::Exists(node.name));
        }
        if self.members.len() >= NODES_MAX {
            return Err(FleetError::Full(self.members.len()));
        }
        let shape = node.profile.shape_for(&node.name);
        let devices = devices(shape, &node.name);
        let (kubelet, seen) = watch::channel(match self.kubelet {
            FleetKubelet::Simulated => simulated(&devices, BTreeMap::new()),
            FleetKubelet::Unknown => KubeletState::default(),
        });
        let timeline = node
            .scenario
            .as_ref()
            .map(|scenario| scenario.for_node(&node.name))
            .unwrap_or_default();
        let fake = FakeNode::new(shape, &node.name);
        let (source, faults) = FakeSource::new(fake, timeline, self.watchdog).with_injection();
        let delay = self.start_spread.mul_f64(self.rng.random::<f64>());
        let identity = NodeIdentity {
            boot_id: uuid_text(&format!("boot/{}/{}", node.name, node.uid)),
            instance: self.next_instance(),
            name: node.name.clone(),
            uid: node.uid.clone(),
        };
        let uplink = Uplink {
            seed: hash64(self.uplink.seed, node.name.as_bytes()),
            ..self.uplink.clone()
        };
        let agent = NodeAgent::spawn(
            identity,
            self.table.clone(),
            self.clock,
            source,
            seen,
            uplink,
            delay,
        );
        self.members.insert(
            node.name,
            Member {
                uid: node.uid,
                agent,
                faults,
                kubelet,
                devices,
            },
        );
        Ok(())
    }

    /// Instances grow even when a node is removed and added within one microsecond.
    fn next_instance(&mut self) -> u64 {
        let now_us = u64::try_from(self.clock.now_ms())
            .unwrap_or(0)
            .saturating_mul(1000);
        self.last_instance = now_us.max(self.last_instance.saturating_add(1));
        self.last_instance
    }

    /// Ends a node: Bye on its streams, then wait for its tasks.
    pub async fn remove_node(&mut self, name: &str) -> Result<(), FleetError> {
        let member = self
            .members
            .remove(name)
            .ok_or_else(|| FleetError::NoNode(name.into()))?;
        member.agent.stop(ByeReason::Shutdown).await;
        Ok(())
    }

    /// Has a fault happen on a node now. `Silent` and `Resume` stop and restart its reports.
    pub fn inject(&self, node: &str, fault: FaultEvent) -> Result<(), FleetError> {
        let limit = crate::source::fake::INJECT_QUEUE;
        self.member(node)?
            .faults
            .try_send(fault)
            .map_err(|_| FleetError::Busy {
                node: node.into(),
                limit,
            })
    }

    /// Says who holds which device of a node, by UUID; replaces what was said before.
    pub fn set_holders(
        &self,
        node: &str,
        holders: BTreeMap<String, Vec<Holder>>,
    ) -> Result<(), FleetError> {
        let member = self.member(node)?;
        member
            .kubelet
            .send_replace(simulated(&member.devices, holders));
        Ok(())
    }

    /// Replaces a node's kubelet view as a whole.
    pub fn set_kubelet(&self, node: &str, state: KubeletState) -> Result<(), FleetError> {
        self.member(node)?.kubelet.send_replace(state);
        Ok(())
    }

    /// The schedulable devices of a node, as its kubelet offers them.
    pub fn devices(&self, node: &str) -> Result<&[FakeDevice], FleetError> {
        Ok(&self.member(node)?.devices)
    }

    /// UID a node was added with.
    pub fn uid(&self, node: &str) -> Result<&str, FleetError> {
        Ok(&self.member(node)?.uid)
    }

    /// What a node reports, as it changes.
    pub fn view(&self, node: &str) -> Result<watch::Receiver<Arc<NodeView>>, FleetError> {
        Ok(self.member(node)?.agent.view())
    }

    /// Names of the nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Streams that a scheduler replica has answered on, at this moment.
    pub fn streams_up(&self) -> usize {
        self.uplink.streams_up.load(Ordering::Relaxed)
    }

    /// Ends all nodes: Bye on every stream, then wait for all tasks.
    pub async fn stop(mut self) {
        let members = std::mem::take(&mut self.members);
        let mut ending = JoinSet::new();
        for member in members.into_values() {
            ending.spawn(member.agent.stop(ByeReason::Shutdown));
        }
        while ending.join_next().await.is_some() {}
    }

    fn member(&self, node: &str) -> Result<&Member, FleetError> {
        self.members
            .get(node)
            .ok_or_else(|| FleetError::NoNode(node.into()))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.resolver.abort();
    }
}

/// A kubelet that can hand out every device.
fn simulated(devices: &[FakeDevice], holders: BTreeMap<String, Vec<Holder>>) -> KubeletState {
    let mut allocatable: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for device in devices {
        allocatable
            .entry(device.resource_name.clone())
            .or_default()
            .push(device.uuid.clone());
    }
    allocatable.values_mut().for_each(|ids| ids.sort());
    let holders = holders.into_iter().filter(|(_, pods)| !pods.is_empty());
    KubeletState {
        known: true,
        claims_unmatched: false,
        allocatable,
        holders: holders
            .map(|(uuid, pods)| (DeviceId::Uuid(uuid), pods))
            .collect(),
    }
}
