//! An operator freezes the scheduler: nothing new begins, nothing that runs is touched, half of a gang is
//! completed, and all goes on where it stood.

#[allow(dead_code)]
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::world::{World, gpus};
use muster_core::action::WriteKind;
use muster_core::event::{Event, WriteOutcome};
use muster_core::ids::{GangKey, NodeName};
use muster_core::time::Millis;
use muster_core::view::{FROZEN, FilterAnswer};
use muster_core::workload::Hold;

fn freeze(world: &mut World, frozen: bool) {
    let why = frozen.then(|| Arc::from("an operator looks at it"));
    world.engine.handle(Event::Frozen(why), world.now);
    world.settle();
}

/// Writes since `from` that begin something or take something away.
fn touching(world: &World, from: usize) -> Vec<&WriteKind> {
    let since = world.writes.iter().skip(from).map(|write| &write.what);
    since
        .filter(|what| {
            !matches!(
                what,
                WriteKind::CreateRecord { .. } | WriteKind::PutStatus { .. }
            )
        })
        .collect()
}

fn a_gang(world: &mut World, name: &str, workers: u32) -> GangKey {
    world.submit(name, &[("Worker", workers, gpus(8))], Hold::Held)
}

#[test]
fn gangs_that_would_fit_say_that_all_is_frozen_and_start_when_it_goes_on() {
    let mut world = World::new(2, 8);
    freeze(&mut world, true);
    let (small, large) = (
        a_gang(&mut world, "small", 2),
        a_gang(&mut world, "large", 3),
    );
    world.pass(Millis::from_secs(600));
    assert_eq!(world.phase(&small), "Waiting Frozen 0/2");
    let said = "nothing new is bound for now: an operator looks at it";
    assert_eq!(world.reason(&small), said);
    assert_eq!(
        world.phase(&large),
        "Waiting NeverFits 0/3",
        "verdicts go on"
    );
    assert!(touching(&world, 0).is_empty(), "{:?}", world.writes);
    let written = world.writes.len();
    world.pass(Millis::from_secs(600));
    assert_eq!(
        world.writes.len(),
        written,
        "a gang that waits writes nothing"
    );
    freeze(&mut world, false);
    world.settle();
    assert_eq!(world.phase(&small), "Running AllBound 2/2");
}

#[test]
fn gang_at_the_barrier_keeps_its_plan_and_its_binds_are_answered_in_time() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = a_gang(&mut world, "train", 2);
    world.settle();
    freeze(&mut world, true);
    let before = world.writes.len();
    assert_eq!(world.phase(&key), "Starting Frozen 0/2");
    world.scheduler = true;
    world.settle();
    let plan = world.gangs[&key]
        .status
        .as_ref()
        .unwrap()
        .plan
        .clone()
        .unwrap();
    let held: Vec<_> = world.held.keys().copied().collect();
    assert_eq!(held.len(), 2);
    world.scheduler = false;
    world.pass(Millis(world.config.gather_max.0 + 1000));
    for ticket in held {
        let text = "muster: frozen, nothing is bound for now";
        assert_eq!(world.answers[&ticket], Err(Arc::from(text)));
    }
    assert!(touching(&world, before).is_empty());
    world.pass(Millis::from_secs(3600));
    let after = world.gangs[&key]
        .status
        .as_ref()
        .unwrap()
        .plan
        .clone()
        .unwrap();
    assert_eq!(after.id, plan.id, "the plan is kept");
    freeze(&mut world, false);
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

#[test]
fn gang_whose_barrier_has_passed_is_bound_whole_all_the_same() {
    let mut world = World::new(2, 8);
    let key = a_gang(&mut world, "train", 2);
    let breaks = Rc::new(Cell::new(true));
    let is_broken = Rc::clone(&breaks);
    world.fail = Some(Box::new(move |write| match &write.what {
        WriteKind::Bind { pod, .. } if pod.name.ends_with("-1") && is_broken.get() => {
            Some(WriteOutcome::Unknown(Arc::from("no answer")))
        }
        _ => None,
    }));
    for _ in 0..40 {
        world.step();
    }
    assert_eq!(world.bound(&key), 1);
    breaks.set(false);
    freeze(&mut world, true);
    world.pass(Millis::from_secs(5));
    assert_eq!(world.bound(&key), 2, "half of a gang is left by nobody");
}

#[test]
fn running_gang_that_loses_a_member_is_neither_completed_nor_taken_away() {
    let mut world = World::new(3, 8);
    let key = a_gang(&mut world, "train", 2);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    freeze(&mut world, true);
    let before = world.writes.len();
    let lost = world.member("train-Worker-1");
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(3600));
    assert_eq!(world.bound(&key), 1, "its replacement waits");
    assert!(touching(&world, before).is_empty());
    freeze(&mut world, false);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

#[test]
fn time_for_repair_goes_on_where_it_stood() {
    let mut world = World::new(2, 8);
    let key = a_gang(&mut world, "train", 2);
    world.settle();
    let lost = world.member("train-Worker-1");
    world.scheduler = false;
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(20));
    freeze(&mut world, true);
    world.pass(Millis::from_secs(600));
    assert_eq!(world.bound(&key), 1);
    freeze(&mut world, false);
    world.pass(Millis::from_secs(9));
    assert_eq!(world.bound(&key), 1, "twenty seconds of thirty had passed");
    world.pass(Millis::from_secs(2));
    assert_eq!(world.bound(&key), 0, "it is released whole");
}

/// Two gated pods with a controller, let go towards their nodes and not bound yet. Returns the node of the first.
fn a_gang_let_go(world: &mut World) -> NodeName {
    world.scheduler = false;
    for name in ["a", "b"] {
        come(world, name);
    }
    world.settle();
    let first = world.member("a");
    let pod = &world.pods[&first];
    assert!(!pod.gated && pod.shape.is_pinned());
    let view = world.engine.view();
    view.gangs[&labelled()].nodes[&first].clone()
}

fn labelled() -> GangKey {
    GangKey::labelled("default", "group")
}

fn come(world: &mut World, name: &str) {
    let uid = world.labelled(name, "group", 2, 8, true);
    world.change_pod(&uid, |pod| pod.controlled = true);
}

/// The node dies; nothing else is left for the pod that was let go towards it.
fn lose(world: &mut World, node: &NodeName) {
    world.nodes.remove(node.as_str());
    let gone = Event::NodeRemoved(node.clone());
    world.engine.handle(gone, world.now);
    world.settle();
}

/// What their controller does about pods that were deleted, and kube-scheduler about those that come.
fn replaced_and_bound(world: &mut World) {
    world.scheduler = true;
    for _ in 0..4 {
        for name in ["a", "b"] {
            if !world.pods.values().any(|pod| &*pod.name == name) {
                come(world, name);
            }
        }
        world.pass(Millis::from_secs(60));
    }
    let why = world.reason(&labelled());
    assert_eq!(world.phase(&labelled()), "Running AllBound 2/2", "{why}");
}

#[test]
fn gang_whose_node_died_while_frozen_has_its_pods_made_anew_when_it_goes_on() {
    let mut world = World::new(3, 8);
    let node = a_gang_let_go(&mut world);
    freeze(&mut world, true);
    let before = world.writes.len();
    lose(&mut world, &node);
    world.pass(Millis::from_secs(600));
    assert!(touching(&world, before).is_empty());
    freeze(&mut world, false);
    world.settle();
    assert!(world.pods.values().all(|pod| &*pod.name != "a"));
    replaced_and_bound(&mut world);
}

#[test]
fn the_leader_after_the_one_that_gave_a_plan_back_while_frozen_deletes_its_pods_too() {
    let mut world = World::new(3, 8);
    let node = a_gang_let_go(&mut world);
    freeze(&mut world, true);
    lose(&mut world, &node);
    world.restart(2);
    world.pass(Millis::from_secs(60));
    replaced_and_bound(&mut world);
}

#[test]
fn pod_of_a_dead_node_whose_deletion_failed_is_deleted_again() {
    let mut world = World::new(3, 8);
    let node = a_gang_let_go(&mut world);
    let fails = Rc::new(Cell::new(3));
    let left = Rc::clone(&fails);
    world.fail = Some(Box::new(move |write| {
        let hit = matches!(write.what, WriteKind::DeletePod { .. }) && left.get() > 0;
        hit.then(|| {
            left.set(left.get() - 1);
            WriteOutcome::Unknown(Arc::from("no answer"))
        })
    }));
    lose(&mut world, &node);
    world.pass(Millis::from_secs(120));
    assert_eq!(fails.get(), 0);
    replaced_and_bound(&mut world);
}

/// Found by `STORM_SEED=743`: the gate was seen to be on when the plan was given back, so that nobody noted the pod.
#[test]
fn pod_whose_release_comes_through_after_its_plan_is_gone_is_deleted_too() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    world.fail = Some(Box::new(|write| {
        let release = matches!(write.what, WriteKind::ReleasePod { .. });
        release.then(|| WriteOutcome::Unknown(Arc::from("no answer")))
    }));
    for name in ["a", "b"] {
        come(&mut world, name);
    }
    world.settle();
    let first = world.member("a");
    let node = world.engine.view().gangs[&labelled()].nodes[&first].clone();
    assert!(world.pods[&first].gated);
    lose(&mut world, &node);
    world.fail = None;
    world.change_pod(&first, |pod| {
        pod.gated = false;
        let mut shape = (*pod.shape).clone();
        shape.required_affinity = Some(vec![crate::world::name_term(&node)]);
        pod.shape = Arc::new(shape);
    });
    world.settle();
    world.add_node("another", 8);
    world.change_node("another", |_| ());
    world.report_all();
    replaced_and_bound(&mut world);
}

/// It is told apart by nothing but that it was there under no plan.
#[test]
fn pod_that_its_user_has_confined_is_not_deleted_while_it_waits() {
    let mut world = World::new(2, 8);
    a_gang_let_go(&mut world);
    let (a, b) = (world.member("a"), world.member("b"));
    let shape = Arc::clone(&world.pods[&a].shape);
    world.delete_pod(&a);
    world.delete_pod(&b);
    world.pass(Millis::from_secs(60));
    let before = world.writes.len();
    let uid = world.labelled("c", "other", 2, 8, false);
    world.change_pod(&uid, |pod| {
        pod.controlled = true;
        pod.shape = shape;
    });
    world.pass(Millis::from_secs(600));
    assert!(world.pods.contains_key(&uid));
    let since = &world.writes[before..];
    assert!(
        !since
            .iter()
            .any(|write| matches!(write.what, WriteKind::DeletePod { .. }))
    );
}

#[test]
fn pod_of_no_gang_is_told_to_come_again_and_preempts_nobody_while_all_is_frozen() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    freeze(&mut world, true);
    let uid = world.pod("alone", None, gpus(1));
    world.settle();
    let view = world.engine.view();
    assert_eq!(view.filter(&uid, None), FilterAnswer::Later(FROZEN));
    assert!(!view.may_preempt(None));
    freeze(&mut world, false);
    let view = world.engine.view();
    assert_eq!(view.filter(&uid, None), FilterAnswer::WhereRoom);
    assert!(view.may_preempt(None));
}
