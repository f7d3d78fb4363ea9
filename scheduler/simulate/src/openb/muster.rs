//! The policy `muster`: each pod is a gang of one, placed by the production planner on a snapshot that the
//! production ledger keeps up. Nothing is planned here; this file says what the planner is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::config::Config;
use muster_core::ids::{DeviceUuid, GangKey, NodeName, RoleName};
use muster_core::interpod::Labels;
use muster_core::inventory::Inventory;
use muster_core::ledger::{Ledger, SlotKey};
use muster_core::node::{Requirement, SelectorOperator, SelectorTerm};
use muster_core::plan::{GangRequest, Placed, RoleRequest, plan};
use muster_core::pod::{PodShape, Share};
use muster_core::snapshot::{Counts, Snapshot};
use muster_core::time::Timestamp;

use super::PODS_MAX;
use super::run::{Placement, Policy};
use super::trace::{Machine, Request, Trace};
use crate::cluster::{Cluster, Holders};
use crate::error::Error;
use crate::policy::config;
use crate::scene::{GPU, NodeSpec, Scene, shape};

/// Label with the model of a node's GPUs, as GPU feature discovery sets it.
const PRODUCT: &str = "nvidia.com/gpu.product";

/// Nothing ends and no report grows old: all of it happens at one time.
const NOW: Timestamp = Timestamp(1_000_000);

/// The production planner.
#[derive(Debug)]
pub(super) struct Muster {
    config: Config,
    ledger: Ledger,
    inventory: Inventory,
    snapshot: Snapshot,
    /// What each request is to the planner.
    shapes: Vec<Arc<PodShape>>,
    /// Nodes and GPUs by their names in the planner.
    nodes: BTreeMap<NodeName, usize>,
    devices: BTreeMap<DeviceUuid, usize>,
    /// What the pods that are there ask for. Those that were dropped have gone elsewhere.
    counts: Counts,
    /// Pods that were placed.
    placed: usize,
}

impl Muster {
    pub(super) fn new(trace: &Trace, nodes: &[Machine]) -> Self {
        let mut muster = Self {
            config: config(&Scene::default()),
            ledger: Ledger::default(),
            inventory: Inventory::default(),
            snapshot: Snapshot::default(),
            shapes: trace.requests.iter().map(shape_of).collect(),
            nodes: BTreeMap::new(),
            devices: BTreeMap::new(),
            counts: Counts::new(),
            placed: 0,
        };
        let specs: Vec<NodeSpec> = nodes.iter().map(|node| spec_of(trace, node)).collect();
        let mut cluster = Cluster::new(&specs);
        for position in 0..cluster.len() {
            muster.add(&mut cluster, position);
        }
        for shape in &muster.shapes {
            muster.snapshot.learn(shape);
        }
        muster
    }

    fn add(&mut self, cluster: &mut Cluster, position: usize) {
        let Some(mut node) = cluster.object(position) else {
            return;
        };
        node.allocatable.pods = u64::from(PODS_MAX);
        let name = node.name.clone();
        self.ledger.set_node(node);
        if let Some(report) = cluster.report(position, &Holders::new()) {
            for (index, device) in report.devices.iter().enumerate() {
                self.devices.insert(device.uuid.clone(), index);
            }
            // The first report of a node is never an old one.
            let _ = self.inventory.apply(report, NOW);
        }
        self.refresh(&name);
        self.nodes.insert(name, position);
    }

    fn refresh(&mut self, node: &NodeName) {
        let capacity = self
            .ledger
            .capacity(node, &self.inventory, &self.config, NOW);
        if let Some(capacity) = capacity {
            self.snapshot.set(Arc::new(capacity));
        }
    }

    /// Keeps the room of a pod for good.
    fn keep(&mut self, member: Placed) -> Option<Placement> {
        let placement = Placement {
            node: self.nodes.get(&member.node).copied()?,
            devices: member
                .devices
                .iter()
                .map(|device| self.devices.get(device).copied())
                .collect::<Option<_>>()?,
        };
        let slot = SlotKey {
            gang: GangKey::new("default", &self.placed.to_string()),
            role: member.role,
            index: member.index,
        };
        self.placed = self.placed.saturating_add(1);
        let count = self.counts.entry(Arc::clone(&member.shape)).or_default();
        *count = count.saturating_add(1);
        let node = member.node;
        self.ledger
            .reserve(slot, node.clone(), member.shape, member.devices);
        self.refresh(&node);
        Some(placement)
    }
}

impl Policy for Muster {
    fn place(&mut self, position: usize) -> Result<Option<Placement>, Error> {
        let Some(shape) = self.shapes.get(position) else {
            return Ok(None);
        };
        self.snapshot.learn(shape);
        if self.snapshot.is_demand_due(self.placed) {
            self.snapshot.set_demand(&self.counts, &self.config);
        }
        let gang = GangRequest {
            roles: vec![RoleRequest {
                role: RoleName::from("Pod"),
                indices: vec![0],
                shape: Arc::clone(shape),
                labels: Arc::new(Labels::new()),
                segments: Vec::new(),
            }],
            ..GangRequest::default()
        };
        match plan(&self.snapshot, &gang, &self.config) {
            Ok(placement) => Ok(placement
                .members
                .into_iter()
                .next()
                .and_then(|member| self.keep(member))),
            Err(_) => Ok(None),
        }
    }
}

fn spec_of(trace: &Trace, node: &Machine) -> NodeSpec {
    let model = trace.models.get(node.model).filter(|_| node.gpus > 0);
    let label = model.map(|model| (PRODUCT.to_owned(), model.to_string()));
    NodeSpec {
        name: node.name.to_string(),
        gpus: u32::try_from(node.gpus).unwrap_or(u32::MAX),
        milli_cpu: u64::from(node.cpu_milli),
        memory_bytes: u64::from(node.memory_mib) << 20,
        labels: label.into_iter().collect(),
        absent: false,
    }
}

/// A request as a user would write it: `gpu_spec` as required node affinity.
fn shape_of(request: &Request) -> Arc<PodShape> {
    let gpus = u32::try_from(request.gpus).unwrap_or(u32::MAX);
    let memory_bytes = u64::from(request.memory_mib) << 20;
    let cpu = u64::from(request.cpu_milli);
    let whole = if request.is_share() { 0 } else { gpus };
    let plain = shape(whole, cpu, memory_bytes, &BTreeMap::new());
    let share = match request.is_share() {
        true => Share::new(GPU.into(), request.gpu_milli),
        false => None,
    };
    if request.spec.is_empty() {
        return Arc::new(PodShape {
            share,
            ..(*plain).clone()
        });
    }
    let models: BTreeSet<Arc<str>> = request.spec.split('|').map(Arc::from).collect();
    let term = SelectorTerm {
        expressions: vec![Requirement {
            key: Arc::from(PRODUCT),
            operator: SelectorOperator::In(models),
        }],
        fields: Vec::new(),
    };
    Arc::new(PodShape {
        share,
        required_affinity: Some(vec![term]),
        ..(*plain).clone()
    })
}
