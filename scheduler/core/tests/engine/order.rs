//! Who is given room first, what is promised to whom, and that nothing is promised by trying. There are no queues, quotas
//! and promises to gangs that wait yet (ARCHITECTURE.md, "What is absent"); what is so without them is shown here by the numbers in
//! `tests/FAULTS.md` that ask for them.

#[allow(dead_code)]
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::world::{GPU, World, gpus};
use muster_core::event::Event;
use muster_core::ids::{GangKey, NodeName};
use muster_core::time::Millis;
use muster_core::view::FilterAnswer;
use muster_core::workload::{Hold, Outcome};

/// A job of one worker that takes a whole node.
fn small(world: &mut World, number: u32) -> GangKey {
    let roles = [("Worker", 1, gpus(8))];
    world.submit(&format!("small-{number}"), &roles, Hold::Held)
}

/// A job that takes all four nodes.
fn large(world: &mut World, priority: i32) -> GangKey {
    let key = world.submit("large", &[("Worker", 4, gpus(8))], Hold::Held);
    world.edit(&key, |job| job.priority = priority);
    key
}

/// Small gangs that came later went first, again and again, though there was room for the large one.
#[test]
fn f38_l2_large_gang_that_fits_comes_before_smaller_ones_that_came_later() {
    let mut world = World::new(4, 8);
    let running: Vec<GangKey> = (0..4).map(|number| small(&mut world, number)).collect();
    world.settle();
    let large = large(&mut world, 0);
    let later: Vec<GangKey> = (4..12).map(|number| small(&mut world, number)).collect();
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&large), 0);
    // All leave between two looks.
    for key in &running {
        world.edit(key, |job| job.finished = Some(Outcome::Succeeded));
    }
    world.remove(&running);
    assert_eq!(world.phase(&large), "Running AllBound 4/4");
    assert!(later.iter().all(|key| world.bound(key) == 0));
    world.remove(&[large]);
    let bound = later.iter().filter(|key| world.bound(key) == 1);
    assert_eq!(bound.count(), 4, "in their turn");
    world.assert_not_overcommitted();
}

/// Room that a gang had been promised went to whoever came meanwhile. A plan is a promise from the moment it is made, and nobody has
/// its room: neither who has less to say nor who has more, nor a pod of no gang.
#[test]
fn s12_room_of_a_plan_is_taken_by_nobody_of_whatever_priority() {
    let mut world = World::new(2, 8);
    // Its members are not asked about yet.
    world.scheduler = false;
    let promised = world.submit("promised", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let mut others = Vec::new();
    for (name, priority) in [("lower", -1000), ("equal", 0), ("higher", i32::MAX)] {
        for hold in [Hold::Held, Hold::Free] {
            let name = format!("{name}-{hold:?}");
            let key = world.submit(&name, &[("Worker", 1, gpus(1))], hold);
            world.edit(&key, |job| job.priority = priority);
            others.push(key);
        }
    }
    world.pass(Millis::from_secs(20));
    let view = world.engine.view();
    for key in &others {
        assert!(
            world.phase(key).starts_with("Waiting"),
            "{}",
            world.phase(key)
        );
        for pod in world.pods.values() {
            if pod.membership.as_ref().is_some_and(|m| m.gang == *key) {
                let answer = view.filter(&pod.uid, pod.membership.as_ref());
                assert!(matches!(answer, FilterAnswer::Nowhere(_)), "{answer:?}");
            }
        }
    }
    let free = |node: &str| view.free.get(node).map_or(0, |free| free.extended(GPU));
    assert_eq!(["n0", "n1"].map(free), [0, 0], "for pods of no gang");
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&promised), "Running AllBound 2/2");
    world.assert_not_overcommitted();
}

/// Of those who wait, the one with the higher priority has what comes free, however long the other has waited.
#[test]
fn s12_room_that_comes_free_goes_to_the_higher_priority_first() {
    let mut world = World::new(4, 8);
    let runs = world.submit("runs", &[("Worker", 4, gpus(8))], Hold::Held);
    world.settle();
    let waiting: Vec<GangKey> = [("low", -10), ("middle", 0), ("high", 10)]
        .iter()
        .map(|(name, priority)| {
            let key = world.submit(name, &[("Worker", 3, gpus(8))], Hold::Held);
            world.edit(&key, |job| job.priority = *priority);
            world.pass(Millis::from_secs(60));
            key
        })
        .collect();
    world.remove(&[runs]);
    let bound = |world: &World| -> Vec<usize> { waiting.iter().map(|k| world.bound(k)).collect() };
    assert_eq!(bound(&world), [0, 0, 3]);
    world.remove(&waiting[2..]);
    assert_eq!(bound(&world), [0, 3, 0]);
    world.remove(&waiting[1..2]);
    assert_eq!(bound(&world), [3, 0, 0]);
}

/// A priority below zero counted as none for as long as the job had no pods, which is as long as it waits: it went by age.
#[test]
fn s12_job_of_a_priority_below_zero_waits_behind_one_of_none_though_it_is_older_and_has_no_pods() {
    let mut world = World::new(1, 8);
    let runs = world.submit("runs", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let below = world.submit("below", &[("Worker", 1, gpus(8))], Hold::Held);
    world.edit(&below, |job| job.priority = -1);
    let none = world.submit("none", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    world.remove(&[runs]);
    assert_eq!((world.bound(&below), world.bound(&none)), (0, 1));
}

/// What is in use was kept by adding and subtracting, and did not come to what the pods ask for. Quotas will be counted from this.
#[test]
fn s6_what_is_in_use_is_what_the_pods_ask_for_after_whatever_has_come_and_gone() {
    let mut world = World::new(4, 8);
    let mut there: Vec<GangKey> = Vec::new();
    let mut foreign = Vec::new();
    let mut most = 0;
    for round in 0..240_u32 {
        let (count, each) = (1 + round % 4, u64::from(1 + round * 7 % 8));
        there.push(world.submit(
            &format!("j{round}"),
            &[("Worker", count, gpus(each))],
            Hold::Held,
        ));
        if round % 9 == 4 {
            let mut shape = crate::world::shape(u64::MAX / 2);
            shape.requests.memory_bytes = u64::MAX;
            let node = format!("n{}", round / 9 % 4);
            foreign.push(world.stranger("foreign", Arc::new(shape), node.as_str()));
        }
        world.settle();
        if round % 9 == 7 {
            let gone = foreign.remove(0);
            world.delete_pod(&gone);
        }
        if round % 5 == 3 {
            let lost = world.pods.values().find(|pod| pod.node.is_some());
            let lost = lost.map(|pod| pod.uid.clone());
            world.delete_pod(&lost.expect("something runs"));
        }
        if there.len() > 6 {
            let at = usize::try_from(round).unwrap() % there.len();
            let gone = there.remove(at);
            world.remove(&[gone]);
        }
        world.pass(Millis::from_secs(90));
        let view = world.engine.view();
        let mut sum = 0;
        for (name, node) in &world.nodes {
            let held = world.pods.values().filter(|pod| {
                pod.holds_room() && pod.node.as_ref().is_some_and(|on| on.as_str() == name)
            });
            let used = held.fold(0_u64, |used, pod| {
                used.saturating_add(pod.shape.requests.extended(GPU))
            });
            sum += used.min(8);
            let left = node.allocatable.extended(GPU).saturating_sub(used);
            let said = view.free.get(name.as_str());
            let said = said.map_or(0, |free| free.extended(GPU));
            assert_eq!(said, left, "{name} after round {round}");
        }
        most = most.max(sum);
    }
    assert!(
        most >= 24,
        "at most {most} GPUs were in use: nothing is shown"
    );
}

/// What is held, promised and free, as text.
fn counted(world: &World) -> String {
    let state = world.engine.state(world.now);
    let nodes = state.nodes.iter();
    let holdings: Vec<_> = nodes.map(|node| (&node.name, &node.holdings)).collect();
    format!("{holdings:?}\n{:?}", world.engine.view().free)
}

fn places(world: &World) -> BTreeMap<&str, Option<&NodeName>> {
    let pods = world.pods.values();
    pods.map(|pod| (&*pod.name, pod.node.as_ref())).collect()
}

/// A plan that was only tried was counted as one that was made, for as long as nobody noticed. While all is frozen plans are
/// tried all the time, of gangs that fit, and none is made; one that cannot be is tried in any case.
#[test]
fn f35_gangs_that_were_only_tried_change_nothing_that_is_counted() {
    let made = |tries: bool| {
        let mut world = World::new(6, 8);
        // Nodes are kept for whoever has waited for long: that counts.
        world.config.reserve_after = Millis(0);
        world.restart(2);
        world.submit("runs", &[("Worker", 2, gpus(5))], Hold::Held);
        world.settle();
        world.tell(Event::Frozen(Some("somebody looks".into())));
        world.settle();
        let before = counted(&world);
        let mut keys = Vec::new();
        for number in 0..24_u32 {
            let roles = [
                ("Master", 1, gpus(u64::from(number % 3))),
                ("Worker", 1 + number % 5, gpus(u64::from(1 + number % 8))),
            ];
            keys.push(world.submit(&format!("tried-{number}"), &roles, Hold::Held));
            if tries {
                world.settle();
                assert_eq!(counted(&world), before, "after {number}");
            }
        }
        if tries {
            // What is tried again and again: nodes come, go and change.
            for round in 0..12_u32 {
                let node = format!("n{}", round % 6);
                world.change_node(&node, |node| node.unschedulable = round % 2 == 0);
                world.pass(Millis::from_secs(40));
                world.change_node(&node, |node| node.unschedulable = false);
                world.pass(Millis::from_secs(40));
            }
            assert_eq!(counted(&world), before, "after all");
            let fit = keys
                .iter()
                .filter(|key| world.phase(key).contains("Frozen"));
            assert!(fit.count() > 4, "of gangs that fit, too");
        }
        world.tell(Event::Frozen(None));
        world.settle();
        world
    };
    let (tried, fresh) = (made(true), made(false));
    assert!(places(&fresh).values().flatten().count() > 8);
    assert_eq!(places(&tried), places(&fresh));
}
