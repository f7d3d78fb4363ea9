//! A state that breaks an invariant is planted, and the audit must see it. The world is the one of
//! the integration tests.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::ids::RoleName;
use crate::node::{Node, Taint, TaintEffect};
use crate::time::{Millis, Timestamp};
use crate::workload::Hold;

use super::super::world::{World, gpus};

/// A gang of a master and three workers, whose pods wait for kube-scheduler, or run.
fn a_gang(runs: bool) -> (World, GangKey) {
    let mut world = World::new(3, 2);
    world.scheduler = runs;
    let roles = [("Master", 1, gpus(1)), ("Worker", 3, gpus(1))];
    let key = world.submit("train", &roles, Hold::Held);
    world.settle();
    assert_eq!(world.engine.audit(), Vec::new());
    let plan = world.engine.gangs[&key].plan.as_ref().unwrap();
    assert_eq!(plan.bound(), if runs { 4 } else { 0 });
    (world, key)
}

fn broken(world: &World) -> BTreeSet<&'static str> {
    let violations = world.engine.audit();
    for violation in &violations {
        assert!(violation.to_string().starts_with(violation.id()));
        let gang = violation.gang.as_ref().unwrap();
        assert!(world.engine.gangs.contains_key(gang), "{violation}");
    }
    violations.iter().map(Violation::id).collect()
}

fn slot<'a>(world: &'a mut World, key: &GangKey, role: &str, index: u32) -> &'a mut Slot {
    let plan = world.engine.gangs.get_mut(key).unwrap().plan.as_mut();
    let seat = (RoleName::from(role), index);
    plan.unwrap().slots.get_mut(&seat).unwrap()
}

#[test]
fn gang_1_sees_a_gang_that_stays_partial() {
    let (mut world, key) = a_gang(true);
    let lost = slot(&mut world, &key, "Worker", 2).pod.clone().unwrap();
    world.engine.pods.remove(&lost);
    assert!(broken(&world).contains("GANG-1"), "no deadline was set");
    let now = world.now;
    let repair_max = world.engine.config.repair_max;
    let mut since = |since: Timestamp| {
        let gang = world.engine.gangs.get_mut(&key).unwrap();
        gang.plan.as_mut().unwrap().partial_since = Some(since);
        broken(&world).contains("GANG-1")
    };
    assert!(since(Timestamp(now.0 - repair_max.0)), "it has passed");
    assert!(since(now + Millis(1)), "it lies ahead of its beginning");
    assert!(!since(now), "there is time left");
}

#[test]
fn gang_1_sees_a_partial_gang_that_has_lost_its_plan() {
    let (mut world, key) = a_gang(true);
    let lost = slot(&mut world, &key, "Worker", 2).pod.clone().unwrap();
    world.engine.pods.remove(&lost);
    let gang = world.engine.gangs.get_mut(&key).unwrap();
    gang.plan = None;
    assert!(broken(&world).contains("GANG-1"));
    let now = world.now;
    let gang = world.engine.gangs.get_mut(&key).unwrap();
    (gang.releasing, gang.releasing_since) = (true, now);
    assert!(!broken(&world).contains("GANG-1"));
    let gang = world.engine.gangs.get_mut(&key).unwrap();
    gang.releasing_since = Timestamp(0);
    world.engine.decided_at = Timestamp(60_000);
    assert!(broken(&world).contains("GANG-1"), "its pods have not gone");
}

#[test]
fn gang_2_sees_a_plan_that_is_too_small() {
    let (mut world, key) = a_gang(false);
    let gang = world.engine.gangs.get_mut(&key).unwrap();
    gang.plan.as_mut().unwrap().minimum = 5;
    assert_eq!(broken(&world), BTreeSet::from(["GANG-2"]));
}

#[test]
fn dev_1_sees_a_device_that_two_members_are_promised() {
    let (mut world, key) = a_gang(false);
    let device = slot(&mut world, &key, "Master", 0).devices.clone();
    slot(&mut world, &key, "Worker", 0).devices = device;
    assert_eq!(broken(&world), BTreeSet::from(["DEV-1"]));
}

#[test]
fn res_1_sees_a_place_without_reservation_and_a_reservation_without_plan() {
    let (mut world, key) = a_gang(false);
    let seat = (RoleName::from("Worker"), 1);
    let mut of = world.engine.gangs[&key].slot_key(&seat);
    let node = world.engine.ledger.release(&of).unwrap();
    assert_eq!(broken(&world), BTreeSet::from(["RES-1"]));
    let reserve = |world: &mut World, of: &SlotKey| {
        let ledger = &mut world.engine.ledger;
        ledger.reserve(of.clone(), node.clone(), gpus(1), Vec::new());
    };
    reserve(&mut world, &of);
    assert_eq!(broken(&world), BTreeSet::new());
    of.index = 99;
    reserve(&mut world, &of);
    // It is one too many for the node as well.
    assert_eq!(broken(&world), BTreeSet::from(["DEV-1", "RES-1"]));
}

#[test]
fn inv_1_sees_a_place_on_a_node_that_nobody_reports() {
    let (mut world, key) = a_gang(false);
    let node = slot(&mut world, &key, "Worker", 0).node.clone().unwrap();
    let (now, limit) = (world.now, world.engine.config.report_age_max);
    world.engine.decided_at = now + limit + AGE_CHECK;
    assert_eq!(broken(&world), BTreeSet::new(), "just young enough");
    world.engine.decided_at = now + limit + AGE_CHECK + Millis(1);
    assert_eq!(broken(&world), BTreeSet::from(["INV-1"]), "too old");
    world.engine.decided_at = now;
    let order = world
        .engine
        .inventory
        .get(&node)
        .unwrap()
        .report
        .order
        .clone();
    assert!(world.engine.inventory.hear(&node, &order, false, now));
    assert_eq!(broken(&world), BTreeSet::from(["INV-1"]), "NVML hangs");
    world.engine.inventory.remove(&node);
    assert_eq!(broken(&world), BTreeSet::new(), "still awaited");
    world.engine.led_at = Timestamp(0);
    assert_eq!(broken(&world), BTreeSet::from(["INV-1"]), "never heard");
}

#[test]
fn place_1_sees_a_place_on_a_node_that_the_member_may_not_run_on() {
    let wrongs: [fn(&mut Node); 4] = [
        |node| node.unschedulable = true,
        |node| node.ready = false,
        |node| node.terminating = true,
        |node| {
            node.taints.push(Taint {
                key: Arc::from("maintenance"),
                value: Arc::from(""),
                effect: TaintEffect::NoSchedule,
            });
        },
    ];
    let (mut world, key) = a_gang(false);
    let name = slot(&mut world, &key, "Worker", 0).node.clone().unwrap();
    let sound = Node::clone(world.engine.ledger.node(&name).unwrap());
    for wrong in wrongs {
        let mut node = sound.clone();
        wrong(&mut node);
        world.engine.ledger.set_node(node);
        assert_eq!(broken(&world), BTreeSet::from(["PLACE-1"]));
    }
    world.engine.ledger.remove_node(&name);
    assert_eq!(broken(&world), BTreeSet::from(["PLACE-1"]));
    world.engine.ledger.set_node(sound);
    assert_eq!(broken(&world), BTreeSet::new());
}
