//! Many nodes turn bad at once: the breaker against mass quarantine.

#![allow(clippy::unwrap_used)]

use crate::world::{World, gpus};
#[allow(dead_code)]
use muster_core::breaker::BreakerState;
use muster_core::time::Millis;
use muster_core::workload::Hold;

const NODES: usize = 20;

fn turn_bad(world: &mut World, nodes: std::ops::Range<usize>) {
    for node in nodes {
        world.unhealthy.insert(format!("GPU-n{node}-0"));
        world.pass(Millis::from_secs(1));
    }
}

fn stands(world: &World) -> (bool, usize, usize) {
    let BreakerState {
        open,
        turned,
        held_back,
        ..
    } = world.engine.breaker();
    (open, turned, held_back)
}

/// Whole nodes that are free by what the planner sees.
fn whole_nodes(world: &World) -> usize {
    let view = world.engine.view();
    let free = view.free.iter();
    free.filter(|(_, free)| free.extended(crate::world::GPU) == 8)
        .count()
}

#[test]
fn a_bad_rollout_takes_a_fifth_of_the_nodes_out_and_no_more() {
    let mut world = World::new(NODES, 8);
    turn_bad(&mut world, 0..4);
    assert_eq!((stands(&world), whole_nodes(&world)), ((false, 4, 0), 16));
    turn_bad(&mut world, 4..NODES);
    assert_eq!((stands(&world), whole_nodes(&world)), ((true, 20, 16), 16));
    let key = world.submit("train", &[("Worker", 16, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 16/16");
    let more = world.submit("more", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    assert!(world.phase(&more).starts_with("Waiting NotEnoughFree"));
}

#[test]
fn time_alone_quarantines_nobody_else() {
    let mut world = World::new(NODES, 8);
    turn_bad(&mut world, 0..10);
    for _ in 0..2 {
        world.pass(Millis::from_secs(600));
    }
    assert_eq!((stands(&world), whole_nodes(&world)), ((true, 10, 6), 16));
}

#[test]
fn verdicts_count_again_once_few_nodes_are_bad_and_five_minutes_are_over() {
    let mut world = World::new(NODES, 8);
    turn_bad(&mut world, 0..10);
    // The rollout is taken back; on three nodes, of which one was held back, something is wrong indeed.
    world
        .unhealthy
        .retain(|gpu| gpu.contains("n0-") || gpu.contains("n1-") || gpu.contains("n9-"));
    world.pass(Millis::from_secs(200));
    assert_eq!((stands(&world), whole_nodes(&world)), ((true, 3, 1), 18));
    world.pass(Millis::from_secs(100));
    assert_eq!((stands(&world).0, whole_nodes(&world)), (false, 17));
    assert_eq!(stands(&world).2, 0);
    // And it trips again like the first time.
    world.pass(Millis::from_secs(300));
    turn_bad(&mut world, 10..19);
    assert_eq!(stands(&world), (true, 9, 5));
}

#[test]
fn agents_without_a_driver_are_held_back_with_what_they_knew() {
    let mut world = World::new(NODES, 8);
    for node in 0..NODES {
        world.driverless.insert(format!("n{node}"));
        world.pass(Millis::from_secs(1));
    }
    assert_eq!((stands(&world), whole_nodes(&world)), ((true, 20, 16), 16));
    world.driverless.clear();
    world.pass(Millis::from_secs(400));
    assert_eq!((stands(&world), whole_nodes(&world)), ((false, 0, 0), 20));
}

#[test]
fn nodes_that_somebody_looks_after_are_not_counted() {
    let mut world = World::new(NODES, 8);
    // A driver is exchanged on one half: those nodes are cordoned first.
    for node in 0..10 {
        world.change_node(&format!("n{node}"), |node| node.unschedulable = true);
    }
    turn_bad(&mut world, 0..10);
    assert_eq!(stands(&world), (false, 0, 0));
    turn_bad(&mut world, 10..16);
    assert_eq!(
        (stands(&world), whole_nodes(&world)),
        ((true, 6, 2), 16 - 10)
    );
    // Whoever cordons a node takes its agent at its word.
    world.change_node("n15", |node| node.unschedulable = true);
    world.settle();
    assert_eq!((stands(&world), whole_nodes(&world)), ((true, 5, 1), 5));
}

#[test]
fn what_a_new_leader_finds_broken_is_broken() {
    let mut world = World::new(NODES, 8);
    turn_bad(&mut world, 0..10);
    assert_eq!(stands(&world), (true, 10, 6));
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert_eq!((stands(&world), whole_nodes(&world)), ((false, 0, 0), 10));
}

#[test]
fn a_gpu_that_fails_while_verdicts_are_held_back_does_not_end_what_runs() {
    let mut world = World::new(NODES, 8);
    let key = world.submit("train", &[("Worker", 20, gpus(8))], Hold::Held);
    world.settle();
    turn_bad(&mut world, 0..NODES);
    world.pass(Millis::from_secs(600));
    assert_eq!(world.phase(&key), "Running AllBound 20/20");
}
