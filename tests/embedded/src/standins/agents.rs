//! Fake agents for the nodes of a cluster, over the real report service.
//!
//! ```text
//! nodes of the cluster ─► fleet: one agent each ── gRPC ──► scheduler under test
//!        ▲                   ▲ holders
//!        └ allocatable ── kubelet stand-in ◄── names of the devices
//! ```
//! Kubelets and agents speak of the same device UUIDs. A device that fails does so for both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_agent::clock::WallClock;
use muster_agent::connector::{Connector, TokenProvider};
use muster_agent::fleet::{Fleet, FleetConfig, FleetError, FleetNode};
use muster_agent::profile::Profile;
use muster_agent::scenario::FaultEvent;
use muster_proto::inventory::Holder;

use super::kinds::NODES;
use crate::cluster::EmbeddedCluster;
use crate::{quantity, value};

/// How the agents are run.
pub struct AgentsConfig {
    /// The way to the scheduler's replicas: TCP, or pipes in memory.
    pub connector: Arc<dyn Connector>,
    /// What devices the nodes have; it should agree with `nvidia.com/gpu` of the nodes.
    pub profile: Arc<Profile>,
    /// Agents start at random times within this span.
    pub start_spread: Duration,
    /// Seed of start times and jitter.
    pub seed: u64,
}

impl std::fmt::Debug for AgentsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentsConfig")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// The agents of a cluster.
pub struct Agents {
    fleet: Arc<Mutex<Option<Fleet>>>,
    kubelet: super::kubelet::KubeletControl,
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

impl Agents {
    /// Starts an agent for each node that has GPUs. Each presents a token that proves its node.
    ///
    /// # Errors
    /// What the fleet refuses, such as too many nodes.
    pub fn start(cluster: &EmbeddedCluster, config: AgentsConfig) -> Result<Self, FleetError> {
        let api = cluster.api().clone();
        let tokens: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
        let provider = move |node: &str| {
            let mut tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let token = tokens.entry(node.to_owned());
            Ok(Some(
                token.or_insert_with(|| api.mint_node_token(node)).clone(),
            ))
        };
        let tokens: Arc<dyn TokenProvider> = Arc::new(provider);
        let mut fleet = FleetConfig::new(config.connector, tokens);
        fleet.start_spread = config.start_spread;
        fleet.seed = config.seed;
        fleet.clock = WallClock::starting_at(cluster.api().clock().now().as_millisecond());
        for node in cluster.list(NODES) {
            let gpus = value::at(&node, &["status", "capacity", "nvidia.com/gpu"]);
            if gpus.and_then(quantity::of_value).is_none_or(|g| g == 0) {
                continue;
            }
            fleet.nodes.push(FleetNode {
                name: value::name(&node).into(),
                uid: value::uid(&node).into(),
                profile: config.profile.clone(),
                scenario: None,
            });
        }
        let fleet = Fleet::start(fleet)?;
        let kubelet = cluster.kubelet().clone();
        for node in fleet.nodes() {
            let devices = fleet.devices(node)?.iter();
            kubelet.set_device_ids(node, devices.map(|d| d.uuid.clone()).collect());
        }
        let fleet = Arc::new(Mutex::new(Some(fleet)));
        let told = fleet.clone();
        kubelet.set_on_holders(Arc::new(move |node, holders| tell(&told, node, holders)));
        Ok(Self { fleet, kubelet })
    }

    /// Runs `f` on the fleet; `None` after `stop`.
    pub fn with<T>(&self, f: impl FnOnce(&mut Fleet) -> T) -> Option<T> {
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.as_mut().map(f)
    }

    /// Has a fault happen on a node's agent now. The kubelet is told of XID, lost and repaired GPUs too, as its device
    /// plugin would.
    ///
    /// # Errors
    /// When the fleet has no such node, or too many faults wait there.
    pub fn inject(&self, node: &str, fault: FaultEvent) -> Result<(), FleetError> {
        let change = match &fault {
            FaultEvent::Xid { gpu, .. }
            | FaultEvent::Lost { gpu }
            | FaultEvent::Uncounted { gpu } => Some((Some(*gpu), false)),
            FaultEvent::Back { gpu } => Some((*gpu, true)),
            _ => None,
        };
        let devices = self.with(|fleet| {
            fleet.inject(node, fault)?;
            fleet.devices(node).map(<[_]>::to_vec)
        });
        let Some(devices) = devices.transpose()? else {
            return Ok(());
        };
        if let Some((gpu, healthy)) = change {
            for device in devices.iter().filter(|d| gpu.is_none_or(|g| g == d.gpu)) {
                self.kubelet.set_device_health(node, &device.uuid, healthy);
            }
        }
        Ok(())
    }

    /// Ends all agents and waits for them.
    pub async fn stop(self) {
        let fleet = self
            .fleet
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(fleet) = fleet {
            fleet.stop().await;
        }
    }
}

/// Passes on who holds what.
fn tell(fleet: &Mutex<Option<Fleet>>, node: &str, holders: &[super::kubelet::Holder]) {
    let mut by_device: BTreeMap<String, Vec<Holder>> = BTreeMap::new();
    for holder in holders {
        for device in &holder.devices {
            by_device.entry(device.clone()).or_default().push(Holder {
                namespace: holder.namespace.clone(),
                pod: holder.name.clone(),
                container: holder.container.clone(),
            });
        }
    }
    let fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fleet) = fleet.as_ref()
        && let Err(error) = fleet.set_holders(node, by_device)
    {
        tracing::debug!(%error, node, "holders not passed on");
    }
}
