//! Speed of planning: one gang on a cluster of nodes with 8 GPUs each, by size of the cluster, of
//! the gang, and by how full the cluster is. Each case asserts a real plan before it is timed.
//!
//! `cargo bench -p muster-benches --bench plan`

use std::collections::BTreeSet;
use std::sync::Arc;

use divan::Bencher;
use muster_bench_clusters::{
    engine, fault, free_gpus, gang, job, network, pod_by_pod, snapshot, uneven,
};
use muster_core::config::Config;
use muster_core::event::Event;
use muster_core::ids::GangKey;
use muster_core::interpod::{HOSTNAME, InterPodKind, InterPodRule, Spread};
use muster_core::plan::{GangRequest, Placement, plan};
use muster_core::snapshot::{NodeCapacity, Snapshot};
use muster_core::time::Timestamp;

fn main() {
    divan::main();
}

/// The plan, which has to be real.
fn planned(snapshot: &Snapshot, gang: &GangRequest, config: &Config) -> Placement {
    let placement = plan(snapshot, gang, config).expect("the gang fits");
    assert_eq!(fault(snapshot, gang, &placement), None);
    placement
}

/// Clusters of these sizes, so full, with gangs of these sizes, where the gang fits.
fn grid() -> Vec<(usize, u32, &'static str)> {
    let mut grid = Vec::new();
    for nodes in [100, 1_000, 5_000, 20_000] {
        for fill in ["empty", "half", "fragmented", "nearly full"] {
            let free: u64 = (0..nodes).map(|index| free_gpus(fill, index)).sum();
            for members in [1, 8, 64, 512] {
                if u64::from(members) <= free {
                    grid.push((nodes, members, fill));
                }
            }
        }
    }
    grid
}

/// One gang: a CPU-only master, and workers of one GPU each; a worker alone where it is one of one.
#[divan::bench(args = grid())]
fn plan_one_gang(bencher: Bencher, case: &(usize, u32, &str)) {
    let (nodes, members, fill) = *case;
    let (snapshot, config) = (snapshot(nodes, fill), Config::default());
    let mut gang = gang(members.max(2), 1);
    if members == 1 {
        gang.roles.remove(0);
    }
    planned(&snapshot, &gang, &config);
    bencher.bench(|| plan(&snapshot, &gang, &config).map(|placement| placement.members.len()));
}

/// Three pods of one GPU each on a half full cluster: the whole gang against pod by pod.
#[divan::bench(args = [1000, 5000, 20_000])]
fn three_pods_planned_as_a_gang(bencher: Bencher, nodes: usize) {
    three_pods(bencher, nodes, |snapshot, gang| {
        plan(snapshot, gang, &Config::default()).map_or(0, |placement| placement.members.len())
    });
}

/// The same, the straightforward way.
#[divan::bench(args = [1000, 5000, 20_000])]
fn three_pods_planned_one_by_one(bencher: Bencher, nodes: usize) {
    three_pods(bencher, nodes, |snapshot, gang| {
        pod_by_pod(snapshot, gang).map_or(0, |places| places.len())
    });
}

/// What it takes to take in that a node has changed.
#[divan::bench(args = [1000, 5000, 20_000])]
fn snapshot_takes_a_changed_node(bencher: Bencher, nodes: usize) {
    let mut snapshot = uneven(nodes, 9);
    let changed: Vec<Arc<NodeCapacity>> = snapshot.nodes().to_vec();
    let mut at = 0;
    bencher.bench_local(|| {
        at = (at + 7) % changed.len();
        let mut capacity = (*changed[at]).clone();
        capacity.free.milli_cpu += 1_000 * (at as u64 % 3);
        snapshot.set(Arc::new(capacity));
    });
    assert_eq!(snapshot.nodes().len(), nodes);
}

fn three_pods(
    bencher: Bencher,
    nodes: usize,
    planned: impl Fn(&Snapshot, &GangRequest) -> usize + Sync,
) {
    let (snapshot, mut gang) = (uneven(nodes, 9), gang(4, 1));
    gang.roles.remove(0);
    self::planned(&snapshot, &gang, &Config::default());
    assert_eq!(planned(&snapshot, &gang), 3);
    bencher.bench(|| planned(&snapshot, &gang));
}

/// Rules between workers, as text for the report.
fn ruled(rules: &str) -> BTreeSet<InterPodRule> {
    let spread = |skew_max| {
        InterPodKind::Spread(Spread {
            skew_max,
            domains_min: 1,
            ignores_affinity: false,
            honors_taints: false,
        })
    };
    let kinds: Vec<InterPodKind> = match rules {
        "one per host" => vec![InterPodKind::AntiAffinity],
        _ => (1..=30).map(spread).collect(),
    };
    let rule = |kind| InterPodRule {
        kind,
        topology: HOSTNAME.into(),
        selector: BTreeSet::new(),
    };
    kinds.into_iter().map(rule).collect()
}

/// 512 workers with rules between them, by host, on 5,000 nodes.
#[divan::bench(args = ["one per host", "30 spreads"])]
fn plan_one_gang_with_rules(bencher: Bencher, rules: &str) {
    let (snapshot, mut gang, config) = (snapshot(5000, "empty"), gang(513, 1), Config::default());
    gang.roles.remove(0);
    for role in &mut gang.roles {
        let mut shape = (*role.shape).clone();
        shape.between_pods = ruled(rules);
        role.shape = Arc::new(shape);
    }
    let placement = planned(&snapshot, &gang, &config);
    let hosts: BTreeSet<_> = placement.members.iter().map(|m| &m.node).collect();
    assert_eq!(hosts.len(), 512);
    bencher.bench(|| plan(&snapshot, &gang, &config).map(|placement| placement.members.len()));
}

/// 512 workers of 8 GPUs each: all in one block, in as few racks as can be.
#[divan::bench(args = [1000, 5000, 20_000])]
fn plan_one_gang_in_a_block_and_few_racks(bencher: Bencher, nodes: usize) {
    let ((snapshot, config), mut gang) = (network(nodes), gang(513, 8));
    gang.roles.remove(0);
    gang.topology.required = Some(0);
    gang.topology.preferred = Some(1);
    let placement = planned(&snapshot, &gang, &config);
    let places = |levels: usize| -> BTreeSet<Vec<Arc<str>>> {
        let members = placement.members.iter();
        let nodes = members.filter_map(|member| snapshot.get(&member.node));
        nodes.map(|node| node.place()[..levels].to_vec()).collect()
    };
    // A rack has 10 or 11 nodes that are free.
    assert_eq!((places(1).len(), places(2).len()), (1, 47));
    bencher.bench(|| plan(&snapshot, &gang, &config).map(|placement| placement.members.len()));
}

/// The answer that no rack has room, with its numbers.
#[divan::bench(args = [1000, 5000, 20_000])]
fn verdict_no_rack_has_room(bencher: Bencher, nodes: usize) {
    let ((snapshot, config), mut gang) = (network(nodes), gang(13, 8));
    gang.roles.remove(0);
    gang.topology.required = Some(1);
    let why = plan(&snapshot, &gang, &config).expect_err("no rack has 12 free nodes");
    assert_eq!(why.code(), "TopologyNotMet", "{why}");
    bencher.bench(|| plan(&snapshot, &gang, &config).is_err());
}

/// The answer that a gang of 10 x 8 GPUs cannot fit, with its numbers.
#[divan::bench(args = [500, 5000])]
fn verdict_cannot_fit(bencher: Bencher, nodes: usize) {
    let snapshot = uneven(nodes, 8);
    let (gang, config) = (gang(11, 8), Config::default());
    let why = plan(&snapshot, &gang, &config).expect_err("no node has 8 free GPUs");
    assert_eq!(why.code(), "NotEnoughFree", "{why}");
    bencher.bench(|| plan(&snapshot, &gang, &config).is_err());
}

/// From the job's event to the first actions, through the whole engine: reservation, status and
/// published view included.
#[divan::bench(args = [500, 5000])]
fn engine_takes_a_job_of_three(bencher: Bencher, nodes: usize) {
    let now = Timestamp(1000);
    let mut engine = engine(nodes);
    let mut number = 0;
    bencher.bench_local(|| {
        number += 1;
        engine.handle(Event::WorkloadApplied(job(number)), now);
        engine.decide(now);
        let mut actions = 0;
        while engine.poll_action().is_some() {
            actions += 1;
        }
        assert!(actions > 0);
        engine.handle(
            Event::WorkloadRemoved(GangKey::new("default", &format!("job-{number}"))),
            now,
        );
        engine.decide(now);
    });
}
