//! Instructions that the hot paths take, by callgrind: the same on a busy machine and a quiet one. The
//! counts of a good run stand beside each; one that is more than a tenth above it fails the bench.
//!
//! `benches/counts` runs it, with the runner that it needs.

// A bench that finds no plan stops with the place.
#![allow(clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use muster_bench_clusters::{GPU, engine, fault, gang, job, network, shape, snapshot, uneven};
use muster_core::config::Config;
use muster_core::engine::Engine;
use muster_core::event::Event;
use muster_core::plan::{GangRequest, Placement, plan};
use muster_core::reason::Unplaceable;
use muster_core::resources::Resources;
use muster_core::snapshot::{Counts, NodeCapacity, Snapshot};
use muster_core::time::Timestamp;
use muster_core::view::View;

type Case = (Snapshot, GangRequest, Config);

/// What was given is given back: dropping a cluster is not what is counted.
type Planned = (Result<Placement, Unplaceable>, Case);

fn planned((snapshot, gang, config): Case) -> Planned {
    let answer = black_box(plan(&snapshot, &gang, &config));
    (answer, (snapshot, gang, config))
}

/// Fails above a tenth more than was recorded.
fn recorded(instructions: u64) -> LibraryBenchmarkConfig {
    let limit = instructions.saturating_add(instructions / 10);
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, limit)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn asserted(case: Case, members: usize) -> Case {
    let (snapshot, gang, config) = case;
    match plan(&snapshot, &gang, &config) {
        Ok(placement) => {
            assert_eq!(fault(&snapshot, &gang, &placement), None);
            assert_eq!(placement.members.len(), members);
        }
        Err(why) => assert_eq!((why.code(), members), ("NotEnoughFree", 0), "{why}"),
    }
    (snapshot, gang, config)
}

/// A gang of workers alone.
fn workers(count: u32, gpus: u64) -> GangRequest {
    let mut gang = gang(count.saturating_add(1), gpus);
    gang.roles.remove(0);
    gang
}

fn three_pods(nodes: usize) -> Case {
    asserted((uneven(nodes, 9), workers(3, 1), Config::default()), 3)
}

/// The same where members of several sizes are about: nodes are scored by what those miss.
fn three_pods_by_demand(nodes: usize) -> Case {
    let (mut snapshot, gang, config) = three_pods(nodes);
    snapshot.set_demand(&usual(), &config);
    // Costs are worked out once, and kept with each group of nodes.
    asserted((learned(snapshot, &gang), gang, config), 3)
}

fn usual() -> Counts {
    let sizes = [(1, 900), (2, 300), (3, 20), (4, 150), (8, 400)];
    sizes.map(|(gpus, count)| (shape(gpus), count)).into()
}

fn learned(mut snapshot: Snapshot, gang: &GangRequest) -> Snapshot {
    for role in &gang.roles {
        snapshot.learn(&role.shape);
    }
    snapshot
}

fn many_workers(nodes: usize) -> Case {
    let case = (snapshot(nodes, "half"), workers(512, 1), Config::default());
    asserted(case, 512)
}

fn too_many(nodes: usize) -> Case {
    asserted((uneven(nodes, 8), workers(10, 8), Config::default()), 0)
}

fn block_and_racks(nodes: usize) -> Case {
    let (snapshot, config) = network(nodes);
    let mut gang = workers(512, 8);
    gang.topology.required = Some(0);
    gang.topology.preferred = Some(1);
    asserted((snapshot, gang, config), 512)
}

#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = three_pods, config = recorded(308_951))]
#[bench::of_20000(args = (20_000), setup = three_pods, config = recorded(311_224))]
fn plan_three_pods(case: Case) -> Planned {
    planned(case)
}

#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = three_pods_by_demand, config = recorded(407_534))]
#[bench::of_20000(args = (20_000), setup = three_pods_by_demand, config = recorded(412_512))]
fn plan_three_pods_by_demand(case: Case) -> Planned {
    planned(case)
}

// The demand is set anew, and every node is scored for the first time.
#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = three_pods, config = recorded(2_419_255))]
fn set_the_demand_and_plan((mut snapshot, gang, config): Case) -> Planned {
    snapshot.set_demand(&usual(), &config);
    planned((learned(snapshot, &gang), gang, config))
}

#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = many_workers, config = recorded(1_499_507))]
fn plan_512_workers(case: Case) -> Planned {
    planned(case)
}

#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = block_and_racks, config = recorded(7_055_736))]
#[bench::of_20000(args = (20_000), setup = block_and_racks, config = recorded(13_511_383))]
fn plan_512_workers_in_a_block_and_few_racks(case: Case) -> Planned {
    planned(case)
}

#[library_benchmark]
#[bench::of_500(args = (500), setup = too_many, config = recorded(283_528))]
#[bench::of_5000(args = (5_000), setup = too_many, config = recorded(603_293))]
fn verdict_with_numbers(case: Case) -> Planned {
    planned(case)
}

/// An engine that has looked at the demand: it does so when there are as many gangs again, for example.
fn busy_engine(nodes: usize) -> Engine {
    let mut engine = engine(nodes);
    engine.handle(Event::WorkloadApplied(job(1)), Timestamp(1_000));
    engine.decide(Timestamp(1_000));
    while engine.poll_action().is_some() {}
    engine
}

fn changed_node(nodes: usize) -> (Snapshot, Arc<NodeCapacity>) {
    let snapshot = uneven(nodes, 9);
    let mut nodes = snapshot.nodes().iter();
    let found = nodes.find(|node| node.free.extended(GPU) == 4);
    let mut capacity = found.map(|node| (**node).clone());
    if let Some(capacity) = &mut capacity {
        capacity.free.milli_cpu = capacity.free.milli_cpu.saturating_add(9_000);
    }
    (snapshot, Arc::new(capacity.expect("a node")))
}

#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = changed_node, config = recorded(6_788))]
fn snapshot_takes_a_changed_node((mut snapshot, node): (Snapshot, Arc<NodeCapacity>)) -> Snapshot {
    snapshot.set(black_box(node));
    snapshot
}

#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = busy_engine, config = recorded(78_805))]
fn engine_takes_a_job_of_three(mut engine: Engine) -> (Engine, usize) {
    engine.handle(Event::WorkloadApplied(job(2)), Timestamp(1_000));
    engine.decide(Timestamp(1_000));
    let mut actions = 0usize;
    while engine.poll_action().is_some() {
        actions = actions.saturating_add(1);
    }
    assert!(actions > 0, "the job is taken up");
    (engine, actions)
}

fn published(nodes: usize) -> Arc<View> {
    engine(nodes).view()
}

#[library_benchmark]
#[bench::of_5000(args = (5_000), setup = published, config = recorded(3_153_965))]
fn view_tells_of_each_node_whether_a_pod_has_room(view: Arc<View>) -> (usize, Arc<View>) {
    let asked = Resources::default();
    let nodes = view.free.keys();
    let count = nodes
        .filter(|name| view.has_room(black_box(name.as_str()), &asked))
        .count();
    assert_eq!(count, 5_000);
    (count, view)
}

library_benchmark_group!(
    name = hot_paths,
    benchmarks = [
        plan_three_pods,
        plan_three_pods_by_demand,
        set_the_demand_and_plan,
        plan_512_workers,
        plan_512_workers_in_a_block_and_few_racks,
        verdict_with_numbers,
        snapshot_takes_a_changed_node,
        engine_takes_a_job_of_three,
        view_tells_of_each_node_whether_a_pod_has_room,
    ]
);

main!(library_benchmark_groups = hot_paths);
