//! The cluster of the demo: embedded API server and stand-ins, fake agents, and the scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use muster_agent::connector::{NetConnector, NoToken};
use muster_agent::fleet::{Fleet, FleetConfig, FleetNode};
use muster_agent::profile::Profile;
use muster_agent::scenario::FaultEvent;
use muster_embedded::serve::Served;
use muster_embedded::standins::extender::{of_muster, tcp};
use muster_embedded::standins::kubelet::{Holder, KubeletConfig};
use muster_embedded::standins::scheduler::SchedulerConfig;
use muster_embedded::{EmbeddedCluster, NodePool};
use muster_kubernetes::manifests;
use serde_json::json;

use crate::clock::Wall;
use crate::config::{Config, Level, Topology};
use crate::scheduler::{Clients, Options, Scheduler};
use crate::server::Door;

/// Taint of the GPU pools.
const TAINT: &str = "nvidia.com/gpu";

/// Who holds which device, by node: what the fake kubelets last said.
pub type Held = Arc<Mutex<BTreeMap<String, Vec<Holder>>>>;

/// The running cluster.
pub struct Laptop {
    /// API server and stand-ins.
    pub cluster: EmbeddedCluster,
    /// The scheduler, as in production.
    pub scheduler: Scheduler,
    /// The fake agents.
    pub fleet: Arc<Fleet>,
    /// Who holds which device.
    pub held: Held,
    /// kubeconfig for kubectl.
    pub kubeconfig: PathBuf,
    /// Where `/metrics` and `/debug/dump` are.
    pub pages: std::net::SocketAddr,
    served: Option<Served>,
}

impl Laptop {
    /// Starts everything and waits until the scheduler leads and every agent has reported.
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        let held = Held::default();
        let fleet: Arc<OnceLock<Arc<Fleet>>> = Arc::default();
        let cluster = cluster(nodes, Arc::clone(&held), Arc::clone(&fleet))?;
        let served = cluster.serve(0, false).await?;
        let kubeconfig =
            std::env::temp_dir().join(format!("muster-demo-{}.kubeconfig", std::process::id()));
        served.write_kubeconfig(&kubeconfig)?;
        let options = Options {
            identity: "demo".into(),
            seed: 1,
            wall: Wall::System,
            agents_believed: true,
        };
        let config = Config {
            topology: levels(),
            ..Config::default()
        };
        let clients = Clients::from(cluster.client("muster-scheduler"));
        let mut scheduler = Scheduler::start(&clients, &config, &options);
        let loopback = ([127, 0, 0, 1], 0).into();
        let extender = Door::open("extender door", loopback, None, 1024)?;
        let agents = Door::open("agent door", loopback, None, 4096)?;
        let (extender_url, agents_url) = (
            format!("http://{}", extender.address()?),
            format!("http://{}", agents.address()?),
        );
        let pages = Door::open_pages("http door", loopback, 64)?;
        let pages_at = pages.address()?;
        let served_pages = scheduler.pages();
        scheduler.serve(pages, served_pages);
        let (verbs, reports) = (scheduler.extender(), scheduler.agents().router());
        scheduler.serve(extender, verbs);
        scheduler.serve(agents, reports);
        let running = start_fleet(&cluster, &agents_url)?;
        // Only here is it set, once.
        let _ = fleet.set(Arc::clone(&running));
        cluster.start_scheduler(SchedulerConfig::new(
            "muster",
            of_muster(&extender_url, &tcp()),
        ))?;
        let laptop = Self {
            cluster,
            scheduler,
            fleet: running,
            held,
            kubeconfig,
            pages: pages_at,
            served: Some(served),
        };
        laptop.wait_ready(nodes).await?;
        Ok(laptop)
    }

    async fn wait_ready(&self, nodes: usize) -> anyhow::Result<()> {
        let ready = async {
            while !self.scheduler.view().leading || self.fleet.streams_up() < nodes {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ready)
            .await
            .with_context(|| {
                let view = self.scheduler.view();
                format!(
                    "waited 30 s: the scheduler {}, {} of {nodes} agents report",
                    if view.leading {
                        "leads"
                    } else {
                        "does not lead"
                    },
                    self.fleet.streams_up()
                )
            })
    }

    /// A GPU falls off the bus: the agent reports XID 79, the kubelet takes the device out, and the
    /// process that used it dies.
    pub fn fail_gpu(&self, node: &str, gpu: u32) -> anyhow::Result<Option<String>> {
        let uuid = self
            .fleet
            .devices(node)?
            .iter()
            .find(|device| device.gpu == gpu)
            .map(|device| device.uuid.clone())
            .with_context(|| format!("node {node} has no GPU {gpu}"))?;
        self.fleet.inject(node, FaultEvent::Xid { gpu, code: 79 })?;
        self.cluster.kubelet().set_device_health(node, &uuid, false);
        let victim = self.holder_of(node, &uuid);
        if let Some((namespace, name)) = &victim {
            let status = json!({"status": {"phase": "Failed", "reason": "Error",
                "message": "the training process died: CUDA error, GPU has fallen off the bus"}});
            self.cluster
                .patch(("", "pods"), namespace, name, "status", &status)?;
        }
        Ok(victim.map(|(_, name)| name))
    }

    /// The GPU is back after a repair.
    pub fn repair_gpu(&self, node: &str, gpu: u32) -> anyhow::Result<()> {
        self.fleet
            .inject(node, FaultEvent::Back { gpu: Some(gpu) })?;
        for device in self
            .fleet
            .devices(node)?
            .iter()
            .filter(|device| device.gpu == gpu)
        {
            self.cluster
                .kubelet()
                .set_device_health(node, &device.uuid, true);
        }
        Ok(())
    }

    fn holder_of(&self, node: &str, uuid: &str) -> Option<(String, String)> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(node)?
            .iter()
            .find(|holder| holder.devices.iter().any(|device| device == uuid))
            .map(|holder| (holder.namespace.clone(), holder.name.clone()))
    }

    /// Ends everything.
    pub async fn stop(mut self) {
        self.scheduler.stop().await;
        if let Some(served) = self.served.take() {
            served.stop().await;
        }
        self.cluster.stop().await;
        // It may be gone already.
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

/// Labels of the block and the rack that a node is in.
const BLOCK: &str = "example.com/block";
const RACK: &str = "example.com/rack";
/// Nodes of a rack.
const PER_RACK: usize = 8;

/// The levels of the network: each pool is a block, and eight nodes of it are a rack.
fn levels() -> Topology {
    let level = |name: &str, label: &str| Level {
        name: name.to_owned(),
        label: Some(label.to_owned()),
        source: None,
    };
    Topology {
        levels: vec![level("block", BLOCK), level("rack", RACK)],
        ..Topology::default()
    }
}

/// The nodes of a pool, rack by rack.
fn label_racks(cluster: &EmbeddedCluster, pool: &str) -> anyhow::Result<()> {
    let prefix = format!("pool-{pool}-");
    for node in cluster.list(("", "nodes")) {
        let name = muster_embedded::value::name(&node);
        let number = name
            .strip_prefix(&prefix)
            .and_then(|rest| rest.parse().ok());
        let Some(number): Option<usize> = number else {
            continue;
        };
        let rack = number.checked_div(PER_RACK).unwrap_or(0);
        let labels = json!({BLOCK: pool, RACK: format!("{pool}{rack}")});
        let patch = json!({"metadata": {"labels": labels}});
        cluster.patch(("", "nodes"), "", name, "", &patch)?;
    }
    Ok(())
}

/// Devices that more than one container holds: DEV-1 is broken.
pub fn held_twice(held: &Held) -> Vec<String> {
    let held = held.lock().unwrap_or_else(PoisonError::into_inner);
    let mut seen = BTreeSet::new();
    held.values()
        .flatten()
        .flat_map(|holder| &holder.devices)
        .filter(|device| !seen.insert(device.as_str()))
        .cloned()
        .collect()
}

fn cluster(
    nodes: usize,
    held: Held,
    fleet: Arc<OnceLock<Arc<Fleet>>>,
) -> anyhow::Result<EmbeddedCluster> {
    let first = nodes / 2;
    let pool = |name: &str, count| {
        NodePool::new(&format!("pool-{name}"), count, 8)
            .label("pool", name)
            .label("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3")
            .taint(TAINT, "present", "NoSchedule")
    };
    let on_holders = move |node: &str, holders: &[Holder]| {
        held.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.to_owned(), holders.to_vec());
        let Some(fleet) = fleet.get() else { return };
        let mut by_device: BTreeMap<String, Vec<muster_proto::inventory::Holder>> = BTreeMap::new();
        for holder in holders {
            for device in &holder.devices {
                by_device.entry(device.clone()).or_default().push(
                    muster_proto::inventory::Holder {
                        namespace: holder.namespace.clone(),
                        pod: holder.name.clone(),
                        container: holder.container.clone(),
                    },
                );
            }
        }
        // Nodes without GPUs have no agent.
        let _ = fleet.set_holders(node, by_device);
    };
    let kubelet = KubeletConfig {
        on_holders: Some(Arc::new(on_holders)),
        ..KubeletConfig::default()
    };
    let cluster = EmbeddedCluster::builder()
        .wall_clock()
        .seed(1)
        .nodes(pool("a", first))
        .nodes(pool("b", nodes.saturating_sub(first)))
        .nodes(NodePool::new("cpu", 2, 0))
        .kubelet(Some(kubelet))
        .admission_policies()
        .start()?;
    for pool in ["a", "b"] {
        label_racks(&cluster, pool)?;
    }
    cluster.apply_yaml(&manifests::crds())?;
    cluster.apply_yaml(&manifests::rbac())?;
    Ok(cluster)
}

fn start_fleet(cluster: &EmbeddedCluster, url: &str) -> anyhow::Result<Arc<Fleet>> {
    let profile = Arc::new(Profile::load("h100-8")?);
    let mut config = FleetConfig::new(Arc::new(NetConnector::new(url, None)?), Arc::new(NoToken));
    config.start_spread = Duration::from_millis(500);
    for node in cluster.list(("", "nodes")) {
        let has_gpus = node.pointer("/status/capacity/nvidia.com~1gpu").is_some();
        let name = muster_embedded::value::name(&node).to_owned();
        if has_gpus {
            config.nodes.push(FleetNode {
                uid: muster_embedded::value::uid(&node).to_owned(),
                profile: Arc::clone(&profile),
                scenario: None,
                name,
            });
        }
    }
    let fleet = Arc::new(Fleet::start(config)?);
    for node in fleet.nodes() {
        let ids = fleet
            .devices(node)?
            .iter()
            .map(|device| device.uuid.clone())
            .collect();
        cluster.kubelet().set_device_ids(node, ids);
    }
    Ok(fleet)
}
