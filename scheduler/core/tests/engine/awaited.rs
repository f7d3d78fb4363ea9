//! A new leader waits for agents before it plans.

use crate::world::{World, gpus};
#[allow(dead_code)]
use muster_core::event::Event;
use muster_core::ids::GangKey;
use muster_core::time::Millis;
use muster_core::workload::Hold;

/// A world whose scheduler has just been started again, and in which no agent has been heard.
fn restarted(nodes: usize) -> World {
    let mut world = World::new(nodes, 8);
    world.silent = true;
    world.restart(2);
    world
}

fn hear(world: &mut World, nodes: std::ops::Range<usize>) {
    world.next_generation();
    for node in nodes {
        let report = world.report_of(&format!("n{node}")).unwrap();
        world.engine.handle(Event::Report(report), world.now);
    }
    world.settle();
}

fn submit(world: &mut World, name: &str, workers: u32) -> GangKey {
    world.submit(name, &[("Worker", workers, gpus(8))], Hold::Held)
}

/// Agents come back in any order: the large gang at the head of the queue found no room on those that had, and
/// small ones behind it took the nodes that it needed.
#[test]
fn small_gang_does_not_take_the_first_nodes_that_come_back_from_a_large_one_before_it() {
    let mut world = restarted(4);
    let large = submit(&mut world, "large", 4);
    let small = submit(&mut world, "small", 1);
    hear(&mut world, 0..2);
    world.pass(Millis::from_secs(10));
    assert_eq!((world.bound(&large), world.bound(&small)), (0, 0));
    hear(&mut world, 0..4);
    assert_eq!((world.bound(&large), world.bound(&small)), (4, 0));
    world.assert_not_overcommitted();
}

#[test]
fn agent_that_does_not_come_back_holds_nobody_up_for_longer_than_a_report_counts() {
    let mut world = restarted(2);
    let gang = submit(&mut world, "train", 1);
    for _ in 0..29 {
        hear(&mut world, 0..1);
        world.pass(Millis::from_secs(1));
    }
    assert_eq!(world.bound(&gang), 0);
    hear(&mut world, 0..1);
    world.pass(Millis::from_secs(1));
    assert_eq!(world.bound(&gang), 1);
}

/// 15,000 agents needed two minutes on a loaded machine: after 30 s new gangs were planned on the quarter that was back.
#[test]
fn agents_that_still_come_are_waited_for_although_a_report_counts_no_longer() {
    let mut world = restarted(60);
    let large = submit(&mut world, "large", 40);
    let small = submit(&mut world, "small", 1);
    for heard in 1..=40 {
        hear(&mut world, 0..heard);
        world.pass(Millis::from_secs(2));
        assert_eq!(
            (world.bound(&large), world.bound(&small)),
            (0, 0),
            "{heard}"
        );
    }
    // Nobody else comes: a third of them is broken.
    world.pass(Millis::from_secs(2));
    assert_eq!(world.bound(&large), 0);
    hear(&mut world, 0..40);
    world.pass(Millis::from_secs(1));
    assert_eq!((world.bound(&large), world.bound(&small)), (40, 0));
}

#[test]
fn agents_that_come_one_by_one_for_ever_hold_nobody_up_for_longer_than_five_minutes() {
    let mut world = restarted(100);
    let gang = submit(&mut world, "train", 1);
    for heard in 1..=74 {
        hear(&mut world, 0..heard);
        world.pass(Millis::from_secs(4));
    }
    assert_eq!(world.bound(&gang), 0);
    hear(&mut world, 0..75);
    world.pass(Millis::from_secs(4));
    assert_eq!(world.bound(&gang), 1);
}

/// An autoscaler that made one node after the other held a gang up that asked for none of them.
#[test]
fn nodes_that_are_made_meanwhile_are_not_waited_for() {
    let mut world = restarted(4);
    let gang = submit(&mut world, "train", 1);
    for made in 4..34_usize {
        assert_eq!(world.bound(&gang), 0, "{made}");
        let name = format!("n{made}");
        world.add_node(&name, 8);
        world.change_node(&name, |_| {});
        hear(&mut world, 0..1);
        hear(&mut world, made.saturating_sub(1).max(4)..made);
        world.pass(Millis::from_secs(1));
    }
    hear(&mut world, 0..1);
    world.pass(Millis::from_secs(1));
    assert_eq!(world.bound(&gang), 1);
}

#[test]
fn node_that_goes_and_comes_again_is_not_waited_for() {
    let mut world = restarted(3);
    let gang = submit(&mut world, "train", 1);
    hear(&mut world, 0..1);
    let now = world.now;
    world.engine.handle(Event::NodeRemoved("n1".into()), now);
    world.change_node("n1", |_| {});
    assert_eq!(world.bound(&gang), 0);
    hear(&mut world, 2..3);
    world.pass(Millis::from_secs(1));
    assert_eq!(world.bound(&gang), 1);
}

/// Ten times as long as a report counts was more than an hour and a half where it counts for ten minutes.
#[test]
fn however_long_a_report_counts_nobody_is_waited_for_longer_than_five_minutes() {
    let mut world = World::new(2, 8);
    world.config.report_age_max = Millis::from_secs(600);
    world.silent = true;
    world.restart(2);
    let gang = submit(&mut world, "train", 1);
    hear(&mut world, 0..1);
    world.pass(Millis::from_secs(290));
    assert_eq!(world.bound(&gang), 0);
    world.pass(Millis::from_secs(11));
    assert_eq!(world.bound(&gang), 1);
}

#[test]
fn few_broken_agents_among_many_are_waited_for_a_few_seconds_only() {
    let mut world = restarted(40);
    let gang = submit(&mut world, "train", 38);
    hear(&mut world, 0..20);
    world.pass(Millis::from_secs(4));
    hear(&mut world, 0..38);
    world.pass(Millis::from_secs(4));
    assert_eq!(world.bound(&gang), 0);
    world.pass(Millis::from_secs(1));
    assert_eq!(world.bound(&gang), 38);
}

#[test]
fn node_that_can_take_nobody_is_not_waited_for() {
    let mut world = restarted(3);
    let gang = submit(&mut world, "train", 1);
    world.change_node("n1", |node| node.ready = false);
    world.change_node("n2", |node| node.unschedulable = true);
    hear(&mut world, 0..1);
    assert_eq!(world.bound(&gang), 1);
}

#[test]
fn member_that_is_lost_meanwhile_gets_another_place_at_once() {
    let mut world = World::new(4, 8);
    let gang = submit(&mut world, "train", 2);
    world.settle();
    assert_eq!(world.bound(&gang), 2);
    let lost = world.member("train-Worker-0");
    world.silent = true;
    world.restart(2);
    hear(&mut world, 0..3);
    world.delete_pod(&lost);
    world.settle();
    assert_eq!(world.bound(&gang), 2);
}

/// What keeps a gang is said, and a gang that asks for no device has nothing to wait for.
#[test]
fn waiting_for_agents_is_said_and_is_for_those_who_ask_for_devices() {
    let mut world = restarted(2);
    let train = submit(&mut world, "train", 1);
    let plain = world.submit("plain", &[("Worker", 2, gpus(0))], Hold::Held);
    hear(&mut world, 0..1);
    world.pass(Millis::from_secs(3));
    assert_eq!(world.bound(&plain), 2, "{}", world.reason(&plain));
    assert_eq!(world.bound(&train), 0);
    let reason = world.reason(&train);
    assert!(reason.contains("waits for the nodes' agents"), "{reason}");
}

/// What was written of a waiting gang stays until it is looked at again: the wait costs no write.
#[test]
fn waiting_for_agents_takes_nothing_back_of_what_was_said() {
    let mut world = World::new(2, 8);
    let large = submit(&mut world, "large", 3);
    world.settle();
    let before = world.reason(&large);
    assert!(before.contains("needs 3 Worker"), "{before}");
    world.silent = true;
    world.restart(2);
    hear(&mut world, 0..1);
    world.pass(Millis::from_secs(3));
    assert_eq!(world.reason(&large), before);
    hear(&mut world, 0..2);
    world.pass(Millis::from_secs(3));
    assert_eq!(world.reason(&large), before);
}
