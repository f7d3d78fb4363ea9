//! A state that breaks an invariant is planted: what it is about stands still until it is found right again.

use std::sync::Arc;

use super::super::world::{World, gpus};
use super::*;
use crate::ids::RoleName;
use crate::ledger::SlotKey;
use crate::time::Millis;
use crate::workload::Hold;

fn ids(found: &[Violation]) -> Vec<&'static str> {
    found.iter().map(Violation::id).collect()
}

/// A reservation of nobody on a node.
fn orphan(world: &mut World, node: &str) -> SlotKey {
    let slot = SlotKey {
        gang: GangKey::new("default", "nobody"),
        role: RoleName::from("Worker"),
        index: 0,
    };
    let (node, shape) = (NodeName::from(node), gpus(1));
    let ledger = &mut world.engine.ledger;
    ledger.reserve(slot.clone(), node, shape, Vec::new());
    world.broken = true;
    slot
}

#[test]
fn node_with_wrong_books_gets_no_gang_until_they_are_right_again() {
    let mut world = World::new(1, 8);
    let slot = orphan(&mut world, "n0");
    assert_eq!(ids(&world.engine.inspect()), ["RES-1", "LEDGER-1"]);
    assert_eq!(world.engine.frozen().nodes, 1);
    let key = world.submit("train", &[("Worker", 1, gpus(4))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Waiting NotEnoughFree 0/1");
    world.engine.ledger.release(&slot);
    world.engine.dirty_nodes.insert("n0".into());
    world.settle();
    assert_eq!(world.bound(&key), 0, "nobody has looked at it again yet");
    assert_eq!(world.engine.inspect(), Vec::new());
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
}

#[test]
fn gang_with_a_wrong_plan_is_not_bound_until_it_is_right_again() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    let other = world.submit("other", &[("Worker", 1, gpus(1))], Hold::Held);
    world.settle();
    let minimum = |world: &mut World, least: u32| {
        let gang = world.engine.gangs.get_mut(&key).unwrap();
        gang.plan.as_mut().unwrap().minimum = least;
    };
    // The plan says that three are needed, and has two.
    minimum(&mut world, 3);
    world.broken = true;
    assert_eq!(ids(&world.engine.inspect()), ["GANG-2"]);
    assert_eq!(world.engine.frozen().gangs, 1);
    minimum(&mut world, 2);
    world.scheduler = true;
    world.settle();
    assert_eq!((world.bound(&key), world.bound(&other)), (0, 0));
    assert_eq!(world.phase(&key), "Starting Frozen 0/2");
    assert_eq!(world.engine.inspect(), Vec::new());
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

#[test]
fn ledger_1_sees_what_drifts_and_the_next_look_finds_it_right() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.bound(&key), 2);
    assert_eq!(world.engine.inspect(), Vec::new());
    world.broken = true;
    world.engine.snapshot.remove(&"n2".into());
    let found = world.engine.inspect();
    assert_eq!(found.len(), 1);
    let said = "LEDGER-1: whether it is planned on of n2 differs from what it comes to afresh";
    assert_eq!(found[0].to_string(), said);
    assert_eq!(world.engine.frozen().nodes, 1);
    world.settle();
    assert_eq!(
        world.engine.inspect(),
        Vec::new(),
        "it was brought up to date"
    );
    assert_eq!(world.engine.frozen(), Frozen::default());
    // A pod that holds a node's GPUs is not charged any more.
    let uid = world.member("train-Worker-0");
    world.engine.ledger.remove_pod(&uid);
    assert_eq!(ids(&world.engine.inspect()), ["LEDGER-1"]);
    world.engine.decide(world.now);
    assert_eq!(
        ids(&world.engine.inspect()),
        ["LEDGER-1"],
        "no look mends it"
    );
}

#[test]
fn every_node_of_a_large_cluster_has_its_turn() {
    let mut world = World::new(REBUILT_MAX + 10, 1);
    let last = world.nodes.keys().next_back().cloned().unwrap();
    world.broken = true;
    world.engine.snapshot.remove(&NodeName::from(last.as_str()));
    assert_eq!(world.engine.inspect(), Vec::new());
    assert_eq!(ids(&world.engine.inspect()), ["LEDGER-1"]);
    assert!(!world.engine.is_rebuilt());
    world.settle();
    for _ in 0..2 {
        assert_eq!(world.engine.inspect(), Vec::new());
    }
    assert!(world.engine.is_rebuilt());
}

#[test]
fn whoever_asks_to_bind_to_such_a_node_is_told_to_come_again() {
    let mut world = World::new(1, 8);
    orphan(&mut world, "n0");
    world.engine.inspect();
    world.scheduler = false;
    let uid = world.pod("alone", None, Arc::new(crate::pod::PodShape::default()));
    world.settle();
    let ticket = world.bind(&uid, &"n0".into());
    world.settle();
    assert_eq!(world.answers[&ticket], Err(Arc::from(NODE_FROZEN)));
}

/// A member that comes back would wait for its node as long as no look mends that, and its gang end after 30 s.
#[test]
fn member_of_a_running_gang_leaves_a_node_with_wrong_books_and_the_others_run_on() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let (stays, lost) = (
        world.member("train-Worker-0"),
        world.member("train-Worker-1"),
    );
    let node = world.pods[&lost].node.clone().unwrap();
    orphan(&mut world, node.as_str());
    world.engine.inspect();
    assert!(world.engine.is_node_frozen(&node));
    world.delete_pod(&lost);
    for _ in 0..4 {
        world.pass(Millis::from_secs(15));
        world.engine.inspect();
    }
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    assert!(world.pods.contains_key(&stays));
    let second = world.member("train-Worker-1");
    assert_ne!(world.pods[&second].node, Some(node));
}

#[test]
fn running_gang_about_which_something_is_found_replaces_its_member_all_the_same() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let stays = world.member("train-Worker-0");
    world.scheduler = false;
    world.delete_pod(&world.member("train-Worker-1"));
    world.settle();
    // Its place has no reservation.
    let seat = (RoleName::from("Worker"), 1);
    let slot = world.engine.gangs[&key].slot_key(&seat);
    world.engine.ledger.release(&slot);
    world.broken = true;
    assert!(ids(&world.engine.inspect()).contains(&"RES-1"));
    assert_eq!(world.engine.frozen().gangs, 1);
    world.scheduler = true;
    world.pass(Millis::from_secs(14));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    assert!(world.pods.contains_key(&stays));
    assert_eq!(world.engine.inspect(), Vec::new());
}

/// Of all findings this one keeps a member from being bound: it gives its place up, and has another at the next look.
#[test]
fn member_of_a_running_gang_whose_device_is_promised_twice_is_placed_anew() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 3, gpus(4))], Hold::Held);
    world.settle();
    let stays = world.member("train-Worker-0");
    world.scheduler = false;
    for name in ["train-Worker-1", "train-Worker-2"] {
        world.delete_pod(&world.member(name));
    }
    world.settle();
    let slots = &mut (world.engine.gangs.get_mut(&key).unwrap().plan.as_mut())
        .unwrap()
        .slots;
    let devices = slots[&(RoleName::from("Worker"), 1)].devices.clone();
    let other = slots.get_mut(&(RoleName::from("Worker"), 2)).unwrap();
    assert_ne!(other.devices, devices);
    other.devices = devices;
    world.broken = true;
    let found = world.engine.inspect();
    assert!(ids(&found).contains(&"DEV-1"), "{found:?}");
    let gang = &world.engine.gangs[&key];
    assert!(world.engine.is_suspect(gang));
    world.scheduler = true;
    world.settle();
    assert_eq!(world.bound(&key), 1);
    for _ in 0..2 {
        world.engine.inspect();
        world.pass(Millis::from_secs(5));
    }
    assert_eq!(world.engine.inspect(), Vec::new());
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert!(world.pods.contains_key(&stays));
}
