//! The nodes as they are: who is there, which GPUs are well, and how many of them are in use. Policies
//! are told of it the way the scheduler is told in production: by Node objects and agents' reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::ids::{DeviceUuid, Namespace, NodeName, ResourceName};
use muster_core::interpod::HOSTNAME;
use muster_core::inventory::{Device, DeviceHealth, NodeReport, ReportOrder};
use muster_core::node::Node;
use muster_core::resources::Resources;

use crate::scene::{GPU, Happening, NodeSpec};

/// GPUs of a node that share a NUMA node.
const GPUS_PER_NUMA: u32 = 4;

/// Pods that a kubelet takes.
const PODS_PER_NODE: u64 = 110;

/// Pods by the GPU that they hold: namespace and name.
pub type Holders = BTreeMap<DeviceUuid, (Namespace, Arc<str>)>;

#[derive(Debug)]
struct Place {
    spec: NodeSpec,
    name: NodeName,
    uuids: Vec<DeviceUuid>,
    present: bool,
    cordoned: bool,
    sick: BTreeSet<u32>,
    used: u64,
    /// How often it was added: another node each time.
    births: u64,
    reports: u64,
}

/// Sums over all nodes that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// GPUs, those that are broken or cordoned too.
    pub gpus: u64,
    /// GPUs in use.
    pub used: u64,
    /// GPUs that are free and well, on nodes that take new pods.
    pub free: u64,
    /// Those of them that are on nodes with nothing on them.
    pub free_whole: u64,
    /// Nodes with GPUs that take new pods and have all their GPUs free and well.
    pub whole_nodes: u64,
}

/// The nodes as they are.
#[derive(Debug)]
pub struct Cluster {
    places: Vec<Place>,
    positions: BTreeMap<NodeName, usize>,
    totals: Totals,
}

impl Place {
    fn totals(&self) -> Totals {
        if !self.present {
            return Totals::default();
        }
        let gpus = u64::from(self.spec.gpus);
        let well = gpus.saturating_sub(u64::try_from(self.sick.len()).unwrap_or(u64::MAX));
        let free = if self.cordoned {
            0
        } else {
            well.saturating_sub(self.used)
        };
        let whole = gpus > 0 && free == gpus;
        Totals {
            gpus,
            used: self.used,
            free,
            free_whole: if whole { free } else { 0 },
            whole_nodes: u64::from(whole),
        }
    }
}

impl Totals {
    fn change(&mut self, before: Self, after: Self) {
        let step = |sum: &mut u64, before: u64, after: u64| {
            *sum = sum.saturating_sub(before).saturating_add(after);
        };
        step(&mut self.gpus, before.gpus, after.gpus);
        step(&mut self.used, before.used, after.used);
        step(&mut self.free, before.free, after.free);
        step(&mut self.free_whole, before.free_whole, after.free_whole);
        step(&mut self.whole_nodes, before.whole_nodes, after.whole_nodes);
    }
}

impl Cluster {
    /// The nodes at the beginning, with nothing on them.
    pub fn new(nodes: &[NodeSpec]) -> Self {
        let mut cluster = Self {
            places: Vec::new(),
            positions: BTreeMap::new(),
            totals: Totals::default(),
        };
        for (position, spec) in nodes.iter().enumerate() {
            let name = NodeName::from(spec.name.as_str());
            cluster.positions.insert(name.clone(), position);
            let place = Place {
                uuids: (0..spec.gpus)
                    .map(|index| DeviceUuid::from(format!("GPU-{name}-{index}")))
                    .collect(),
                name,
                present: !spec.absent,
                spec: spec.clone(),
                cordoned: false,
                sick: BTreeSet::new(),
                used: 0,
                births: 1,
                reports: 0,
            };
            cluster.totals.change(Totals::default(), place.totals());
            cluster.places.push(place);
        }
        cluster
    }

    /// Number of nodes, those that are not there included.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are no nodes at all.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Position of a node.
    pub fn position(&self, name: &NodeName) -> Option<usize> {
        self.positions.get(name).copied()
    }

    /// Name of a node.
    pub fn name(&self, node: usize) -> Option<&NodeName> {
        self.places.get(node).map(|place| &place.name)
    }

    /// GPUs in use on a node; `None` while it is not there.
    pub fn used(&self, node: usize) -> Option<u64> {
        self.places
            .get(node)
            .filter(|place| place.present)
            .map(|place| place.used)
    }

    /// Sums over all nodes that are there.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn change(&mut self, node: usize, change: impl FnOnce(&mut Place)) {
        if let Some(place) = self.places.get_mut(node) {
            let before = place.totals();
            change(place);
            self.totals.change(before, place.totals());
        }
    }

    /// Something happens to a node.
    pub fn happen(&mut self, node: usize, what: Happening) {
        self.change(node, |place| match what {
            Happening::Cordon => place.cordoned = true,
            Happening::Uncordon => place.cordoned = false,
            Happening::Remove => place.present = false,
            Happening::Add => {
                if !place.present {
                    place.births = place.births.saturating_add(1);
                }
                (place.present, place.cordoned) = (true, false);
                place.sick.clear();
            }
            Happening::GpuUnhealthy(gpu) => {
                place.sick.insert(gpu);
            }
            Happening::GpuBack(gpu) => {
                place.sick.remove(&gpu);
            }
        });
    }

    /// A pod takes GPUs of a node.
    pub fn take(&mut self, node: usize, gpus: u64) {
        self.change(node, |place| place.used = place.used.saturating_add(gpus));
    }

    /// A pod leaves GPUs of a node.
    pub fn free(&mut self, node: usize, gpus: u64) {
        self.change(node, |place| place.used = place.used.saturating_sub(gpus));
    }

    /// The Node object; `None` while it is not there.
    pub fn object(&self, node: usize) -> Option<Node> {
        let place = self.places.get(node).filter(|place| place.present)?;
        let spec = &place.spec;
        let mut allocatable = Resources {
            milli_cpu: spec.milli_cpu,
            memory_bytes: spec.memory_bytes,
            ephemeral_bytes: 1 << 40,
            pods: PODS_PER_NODE,
            ..Resources::default()
        };
        if spec.gpus > 0 {
            allocatable
                .extended
                .insert(ResourceName::from(GPU), u64::from(spec.gpus));
        }
        let mut labels: BTreeMap<Arc<str>, Arc<str>> = spec
            .labels
            .iter()
            .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
            .collect();
        labels.insert(Arc::from(HOSTNAME), Arc::from(spec.name.as_str()));
        Some(Node {
            name: place.name.clone(),
            uid: Arc::from(format!("{}-{}", spec.name, place.births)),
            boot_id: None,
            labels,
            taints: Vec::new(),
            unschedulable: place.cordoned,
            ready: true,
            terminating: false,
            allocatable,
        })
    }

    /// What the node's agent says now; `None` while it is not there, or when it has no GPUs.
    pub fn report(&mut self, node: usize, holders: &Holders) -> Option<NodeReport> {
        let place = self
            .places
            .get_mut(node)
            .filter(|place| place.present && place.spec.gpus > 0)?;
        place.reports = place.reports.saturating_add(1);
        let resource = ResourceName::from(GPU);
        let devices = (0u32..)
            .zip(&place.uuids)
            .map(|(index, uuid)| Device {
                uuid: uuid.clone(),
                resource: resource.clone(),
                health: if place.sick.contains(&index) {
                    DeviceHealth::Unhealthy(Arc::from("xid-79"))
                } else {
                    DeviceHealth::Healthy
                },
                leaked: false,
                holders: holders.get(uuid).cloned().into_iter().collect(),
                model: None,
                index,
                numa: index.checked_div(GPUS_PER_NUMA),
                parent: None,
                memory_bytes: None,
            })
            .collect();
        Some(NodeReport {
            node: place.name.clone(),
            order: ReportOrder {
                boot: Arc::from(format!("boot-{}", place.births)),
                instance: place.births,
                generation: place.reports,
            },
            sampler_ok: true,
            holders_known: true,
            fabric_clique: None,
            links: None,
            devices,
        })
    }
}
