//! Findings of a review.

use std::sync::Arc;

use muster_core::config::Config;
use muster_core::node::Node;
use muster_core::plan::{plan, plan_part};
use muster_core::resources::Resources;
use muster_core::snapshot::{NodeCapacity, Snapshot};

use super::{check_plan, describe, read};

/// The same node with other amounts, all of them free.
fn amended(node: &NodeCapacity, amend: impl Fn(&mut Resources)) -> Arc<NodeCapacity> {
    let mut capacity = node.clone();
    let mut node = Node::clone(&capacity.node);
    amend(&mut node.allocatable);
    amend(&mut capacity.free);
    amend(&mut capacity.well);
    capacity.node = Arc::new(node);
    Arc::new(capacity)
}

#[test]
fn labels_that_other_gangs_asked_for_do_not_change_a_plan() {
    let nodes = "node a gpu=8 label=zone:x
                 node b gpu=8 label=zone:y
                 node c gpu=8 label=zone:x
                 node d gpu=8 label=zone:y\n";
    let (fresh, gang) = read(&format!("{nodes} role worker 2x8"));
    let (_, other) = read("role other 1x1 select=zone:y");
    let mut older = fresh.clone();
    older.learn(&other.roles[0].shape);
    let config = Config::default();
    assert_eq!(
        describe(&plan(&older, &gang, &config), false),
        describe(&plan(&fresh, &gang, &config), false),
    );
}

#[test]
fn gang_that_would_fit_into_the_empty_cluster_is_not_said_never_to_fit() {
    // Each node takes 4 + 3 + 3, and neither order of roles finds that.
    let roles = "role x 2x4\n role y 4x3\n";
    let (empty, gang) = read(&format!("node a gpu=10\nnode b gpu=10\n{roles}"));
    assert!(plan(&empty, &gang, &Config::default()).is_ok());
    let (busy, gang) = read(&format!("node a gpu=10 used=10\nnode b gpu=10\n{roles}"));
    let answer = describe(&plan(&busy, &gang, &Config::default()), false);
    assert!(answer.starts_with("NotEnoughFree"), "{answer}");
}

#[test]
fn role_without_members_takes_no_node_of_the_empty_cluster() {
    check_plan(
        "node a gpu=8 used=8
         role master 0x8
         role worker 1x8",
        "NotEnoughFree: needs room for 1 worker with 8 nvidia.com/gpu each; found room for 0, 0 \
         free in all. Nodes 1: too few free 1",
    );
}

/// Every node has room for a worker and for the master, and none for both.
fn master_and_workers(nodes: u32, workers: u32) -> (Snapshot, muster_core::plan::GangRequest) {
    let nodes: String = (0..nodes)
        .map(|at| format!("node n{at:04} gpu=8\n"))
        .collect();
    read(&format!(
        "{nodes} role worker {workers}x8 cpu=8\n role master 1x0 cpu=60 tolerate=gpu\n"
    ))
}

#[test]
fn smaller_part_is_tried_when_the_search_for_the_whole_was_given_up() {
    let (snapshot, gang) = master_and_workers(300, 300);
    let answer = plan_part(&snapshot, &gang, 1, &Config::default());
    let members = answer.placement.map(|placement| placement.members.len());
    assert_eq!(members.map_err(|why| why.to_string()), Ok(300));
}

#[test]
fn master_beside_a_worker_on_each_node_does_not_fit_in_a_large_cluster_either() {
    let (snapshot, gang) = master_and_workers(1000, 1000);
    let answer = describe(&plan(&snapshot, &gang, &Config::default()), false);
    assert!(!answer.starts_with("SearchLimit"), "{answer}");
}

#[test]
fn largest_node_is_the_largest_of_those_that_are_nearly_alike() {
    let (snapshot, gang) = read("node a cpu=4\nnode b cpu=4\nrole worker 1x0 cpu=8");
    let mut snapshot = snapshot;
    let larger = amended(snapshot.get(&"b".into()).unwrap(), |r| r.milli_cpu = 4_900);
    snapshot.set(larger);
    assert_eq!(
        describe(&plan(&snapshot, &gang, &Config::default()), false),
        "NeverFits: needs 1 worker with 8000 milli-CPU each; even when empty the cluster has room \
         for 0, the largest node offers 4900. Nodes 2: too small 2. With at most 4900 milli-CPU \
         each, members find a node",
    );
}

#[test]
fn nodes_short_of_different_things_do_not_speak_for_each_other() {
    let (mut snapshot, mut gang) = read("node a\nnode b\nnode c\nrole worker 1x0");
    let mut shape = (*gang.roles[0].shape).clone();
    (shape.requests.milli_cpu, shape.requests.memory_bytes) = (1_800, 1 << 41);
    gang.roles[0].shape = Arc::new(shape);
    for (name, cpu) in [("a", 1_500), ("b", 1_900), ("c", 1_900)] {
        let node = amended(snapshot.get(&name.into()).unwrap(), |r| r.milli_cpu = cpu);
        snapshot.set(node);
    }
    // Two of three have enough CPU, and none enough memory.
    let answer = describe(&plan(&snapshot, &gang, &Config::default()), false);
    assert!(answer.contains("bytes of memory"), "{answer}");
}

#[test]
fn node_that_is_short_of_cpu_too_does_not_speak_for_one_that_is_not() {
    let (mut snapshot, mut gang) =
        read("node a gpu=8 sick=1\nnode b gpu=8 sick=1\nrole worker 1x8");
    let mut shape = (*gang.roles[0].shape).clone();
    shape.requests.milli_cpu = 1_800;
    gang.roles[0].shape = Arc::new(shape);
    for (name, cpu) in [("a", 1_500), ("b", 1_900)] {
        let mut node = (**snapshot.get(&name.into()).unwrap()).clone();
        (node.free.milli_cpu, node.well.milli_cpu) = (cpu, cpu);
        snapshot.set(Arc::new(node));
    }
    let answer = describe(&plan(&snapshot, &gang, &Config::default()), false);
    assert!(
        answer.contains("Nodes 2: unhealthy GPU 1, too few free 1. "),
        "{answer}"
    );
}

#[test]
fn search_on_nodes_that_take_very_many_members_is_bounded() {
    let (mut snapshot, mut gang) = read(
        "node a gpu=1\nnode b gpu=1\nrole x 8000x0 tolerate=gpu\nrole y 8000x0 tolerate=gpu\n role z 2x1",
    );
    for (role, memory) in gang.roles.iter_mut().zip([4u64, 3, 1]) {
        let mut shape = (*role.shape).clone();
        (shape.requests.milli_cpu, shape.requests.memory_bytes) = (5 - memory, memory);
        role.shape = Arc::new(shape);
    }
    for name in ["a", "b"] {
        let node = amended(snapshot.get(&name.into()).unwrap(), |r| {
            (r.milli_cpu, r.memory_bytes, r.pods) = (12_010, 32_000, 100_000);
        });
        snapshot.set(node);
    }
    // Without a bound this takes very long, with one it is either found or given up.
    let answer = plan_part(&snapshot, &gang, 0, &Config::default());
    let given_up = matches!(&answer.placement, Err(why) if why.code() == "SearchLimit");
    assert!(answer.placement.is_ok() || given_up, "{answer:?}");
}

#[test]
fn nodes_that_were_taken_already_are_looked_at_and_counted() {
    let mut text = String::new();
    for at in 0..2000 {
        text += &format!("node n{at:04} gpu=1\n");
    }
    for at in 0..2000 {
        text += &format!("role r{at:04} 1x1\n");
    }
    let (snapshot, gang) = read(&text);
    let answer = plan_part(&snapshot, &gang, 0, &Config::default());
    assert!(answer.placement.is_ok());
    // For each role each node that was taken before.
    assert!(answer.steps > 2000 * 1999 / 2, "{} steps", answer.steps);
}

#[test]
fn search_over_as_many_nodes_as_there_may_be_has_stack_enough() {
    let (snapshot, gang) = master_and_workers(2_048, 2_047);
    assert!(plan(&snapshot, &gang, &Config::default()).is_ok());
    let (snapshot, mut gang) = master_and_workers(2_048, 2_047);
    gang.roles[1].indices.push(1);
    let answer = describe(&plan(&snapshot, &gang, &Config::default()), false);
    assert!(answer.starts_with("N"), "{answer}");
}

#[test]
fn nodes_that_only_the_launcher_may_use_are_no_reason_to_give_up() {
    let nodes: String = (0..3_000).map(|at| format!("node n{at:04}\n")).collect();
    let (snapshot, gang) = read(&format!(
        "{nodes} node a gpu=10\n node b gpu=10\n role x 2x4\n role y 4x3\n role launcher 1x0"
    ));
    let answer = describe(&plan(&snapshot, &gang, &Config::default()), false);
    assert!(answer.starts_with("launcher n"), "{answer}");
}

#[test]
fn labels_that_no_node_has_do_not_slow_down_what_comes_after() {
    let nodes: String = (0..200).map(|at| format!("node n{at:03}\n")).collect();
    let (mut snapshot, _) = read(&nodes);
    // Hundreds of times slower when each of them sorts all nodes anew.
    let begun = std::time::Instant::now();
    for at in 0..500 {
        let (_, gang) = read(&format!("role r 1x0 select=key{at}:x"));
        snapshot.learn(&gang.roles[0].shape);
    }
    let took = begun.elapsed();
    assert!(took.as_millis() < 2_000, "{took:?}");
}
