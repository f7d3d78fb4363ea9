//! Clusters and gangs that are measured: nodes with 8 GPUs each, by number and by how full they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::config::Config;
use muster_core::engine::Engine;
use muster_core::event::Event;
use muster_core::ids::{Epoch, GangKey};
use muster_core::inventory::{Device, DeviceHealth, NodeReport, ReportOrder};
use muster_core::node::{Node, Taint, TaintEffect, Toleration, TolerationOperator};
use muster_core::plan::{GangRequest, RoleRequest};
use muster_core::pod::PodShape;
use muster_core::resources::Resources;
use muster_core::snapshot::{Eligibility, NodeCapacity, Snapshot};
use muster_core::time::Timestamp;
use muster_core::topology::{Level, Source, path_of};
use muster_core::workload::{Hold, MemberSource, RoleSpec, Shown, Workload, WorkloadKind};

mod one_by_one;
mod valid;

pub use one_by_one::pod_by_pod;
pub use valid::fault;

/// The resource whose units are GPUs.
pub const GPU: &str = "nvidia.com/gpu";

fn resources(gpus: u64, cpu: u64, memory: u64, pods: u64) -> Resources {
    let mut resources = Resources {
        milli_cpu: cpu,
        memory_bytes: memory,
        pods,
        ..Resources::default()
    };
    if gpus > 0 {
        resources.extended.insert(GPU.into(), gpus);
    }
    resources
}

/// What a member with so many GPUs asks for.
pub fn shape(gpus: u64) -> Arc<PodShape> {
    Arc::new(PodShape {
        requests: resources(gpus, 8_000, 64 << 30, 1),
        tolerations: vec![Toleration {
            key: Some(Arc::from(GPU)),
            operator: TolerationOperator::Exists,
            effect: None,
        }],
        ..PodShape::default()
    })
}

fn node(index: usize) -> Node {
    let name = format!("node-{index:05}");
    Node {
        name: name.as_str().into(),
        uid: Arc::from(name.as_str()),
        labels: BTreeMap::from([(
            Arc::from("kubernetes.io/hostname"),
            Arc::from(name.as_str()),
        )]),
        taints: vec![Taint {
            key: Arc::from(GPU),
            value: Arc::from(""),
            effect: TaintEffect::NoSchedule,
        }],
        unschedulable: false,
        ready: true,
        terminating: false,
        boot_id: None,
        allocatable: resources(8, 192_000, 2 << 40, 110),
    }
}

fn devices(index: usize, free: u64) -> Vec<Device> {
    (0..free)
        .map(|gpu| Device {
            uuid: format!("GPU-{index}-{gpu}").into(),
            resource: GPU.into(),
            health: DeviceHealth::Healthy,
            leaked: false,
            holders: Vec::new(),
            model: None,
            index: u32::try_from(gpu).unwrap_or(0),
            numa: Some(u32::try_from(gpu / 4).unwrap_or(0)),
            parent: None,
            memory_bytes: None,
        })
        .collect()
}

/// How many GPUs of node `index` are free.
pub fn free_gpus(fill: &str, index: usize) -> u64 {
    match fill {
        "empty" => 8,
        "half" => {
            if index.is_multiple_of(2) {
                8
            } else {
                0
            }
        }
        "fragmented" => u64::try_from(index % 8).unwrap_or(0),
        _ => {
            if index.is_multiple_of(16) {
                8
            } else {
                1
            }
        }
    }
}

/// So many nodes: `empty`, `half`, `fragmented` or `nearly full`.
pub fn snapshot(nodes: usize, fill: &str) -> Snapshot {
    snapshot_of(nodes, |index| free_gpus(fill, index))
}

fn snapshot_of(nodes: usize, free: impl Fn(usize) -> u64) -> Snapshot {
    let nodes: Vec<_> = (0..nodes)
        .map(|index| {
            let free = free(index);
            Arc::new(NodeCapacity {
                node: Arc::new(node(index)),
                eligibility: Eligibility::Eligible,
                free: resources(free, 24_000 * free, (256 << 30) * free, 100),
                well: resources(free, 24_000 * free, (256 << 30) * free, 100),
                reported: true,
                ports: BTreeSet::new(),
                devices: devices(index, free),
                links: None,
                shared: Vec::new(),
                path: None,
            })
        })
        .collect();
    Snapshot::of(nodes)
}

/// A CPU-only master, and workers with so many GPUs each: `members` in all.
pub fn gang(members: u32, gpus: u64) -> GangRequest {
    GangRequest {
        roles: vec![
            RoleRequest {
                role: "Master".into(),
                indices: vec![0],
                shape: shape(0),
                labels: Arc::default(),
                segments: Vec::new(),
            },
            RoleRequest {
                role: "Worker".into(),
                indices: (0..members.saturating_sub(1)).collect(),
                shape: shape(gpus),
                labels: Arc::default(),
                segments: Vec::new(),
            },
        ],
        ..GangRequest::default()
    }
}

/// A cluster in which no two nodes are alike: less than `gpus` GPUs free, and CPU and memory at random.
pub fn uneven(nodes: usize, gpus: u64) -> Snapshot {
    let mut seed = 1u64;
    let mut below = move |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % limit
    };
    let alike = snapshot(nodes, "half");
    let uneven = alike.nodes().iter().enumerate().map(|(index, capacity)| {
        let gpus = below(gpus);
        let (cpu, memory) = (below(96_000), below(1 << 40));
        let mut capacity = (**capacity).clone();
        capacity.free = resources(gpus, 8_000 * gpus + cpu, (64 << 30) * gpus + memory, 100);
        capacity.well = capacity.free.clone();
        capacity.devices = devices(index, gpus);
        Arc::new(capacity)
    });
    Snapshot::of(uneven)
}

/// Blocks of 64 racks of 16 nodes; of every three nodes one is taken in part, each differently.
pub fn network(nodes: usize) -> (Snapshot, Config) {
    let level = |name: &str| Level {
        name: Arc::from(name),
        source: Source::Label(Arc::from(name)),
    };
    let config = Config {
        topology: vec![level("block"), level("rack")],
        ..Config::default()
    };
    let plain = snapshot_of(nodes, |index| match index % 3 {
        0 => (index / 3 % 8) as u64,
        _ => 8,
    });
    let placed = plain.nodes().iter().enumerate().map(|(index, capacity)| {
        let mut capacity = (**capacity).clone();
        let mut node = (*capacity.node).clone();
        let mut set = |key: &str, value: usize| {
            let value = Arc::from(value.to_string());
            node.labels.insert(Arc::from(key), value);
        };
        set("block", index / 1024);
        set("rack", index / 16);
        capacity.path = Some(path_of(&node, None, &config.topology));
        capacity.node = Arc::new(node);
        Arc::new(capacity)
    });
    (Snapshot::of(placed), config)
}

/// An engine that leads so many empty nodes, each with its report.
pub fn engine(nodes: usize) -> Engine {
    let now = Timestamp(1000);
    let mut engine = Engine::new(Config::default());
    for index in 0..nodes {
        let node = node(index);
        let report = NodeReport {
            node: node.name.clone(),
            order: ReportOrder {
                boot: Arc::from("boot"),
                instance: 1,
                generation: 1,
            },
            sampler_ok: true,
            holders_known: true,
            fabric_clique: None,
            links: None,
            devices: devices(index, 8),
        };
        engine.handle(Event::NodeApplied(node), now);
        engine.handle(Event::Report(report), now);
    }
    engine.handle(
        Event::LeadershipGained {
            epoch: Epoch(1),
            first: true,
        },
        now,
    );
    engine.handle(Event::Synced, now);
    engine.decide(now);
    engine
}

/// A held job: a CPU-only master and two workers of one GPU.
pub fn job(number: u64) -> Workload {
    let role = |name: &str, count, gpus| RoleSpec {
        name: name.into(),
        count,
        shape: shape(gpus),
        labels: Arc::default(),
        pinned: None,
    };
    Workload {
        key: GangKey::new("default", &format!("job-{number}")),
        kind: WorkloadKind::PyTorchJob,
        name: Arc::from(format!("job-{number}")),
        uid: Arc::from(format!("job-{number}")),
        resource_version: "1".into(),
        generation: 1,
        created_seconds: 0,
        priority: 0,
        ours: true,
        members: MemberSource::Roles(vec![role("Master", 1, 0), role("Worker", 2, 1)]),
        minimum: None,
        hold: Hold::Held,
        shown: Shown::Nothing,
        finished: None,
        invalid: None,
        settings: BTreeMap::new(),
    }
}
