//! Gangs of which some members have ended: completing, or broken.

use crate::world::{World, gpus};
#[allow(dead_code)]
use muster_core::ids::GangKey;
use muster_core::pod::PodPhase;
use muster_core::time::Millis;
use muster_core::workload::Hold;

fn was_released(world: &World) -> bool {
    world
        .announced
        .iter()
        .any(|said| said.starts_with("ReleasedWhole"))
}

/// A master and three workers on a node each, the first worker ended.
fn first_worker_has_ended() -> (World, GangKey) {
    let mut world = World::new(4, 8);
    let key = world.submit(
        "train",
        &[("Master", 1, gpus(8)), ("Worker", 3, gpus(8))],
        Hold::Held,
    );
    world.settle();
    assert_eq!(world.bound(&key), 4);
    let ended = world.member("train-Worker-0");
    world.change_pod(&ended, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    (world, key)
}

#[test]
fn worker_that_is_lost_is_missing_although_another_one_has_ended() {
    let (mut world, key) = first_worker_has_ended();
    for name in world.nodes.keys().cloned().collect::<Vec<_>>() {
        world.change_node(&name, |node| node.unschedulable = true);
    }
    let lost = world.member("train-Worker-1");
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(29));
    assert_eq!(world.phase(&key), "Repairing MembersLost 3/4");
    assert!(!was_released(&world));
    world.pass(Millis::from_secs(2));
    assert!(was_released(&world), "{:?}", world.announced);
    assert_eq!(world.bound(&key), 0);
}

#[test]
fn worker_that_is_lost_beside_one_that_has_ended_comes_back_alone() {
    let (mut world, key) = first_worker_has_ended();
    let lost = world.member("train-Worker-1");
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    assert!(!was_released(&world));
}

#[test]
fn gang_is_let_be_while_all_but_one_have_ended_over_a_restart_too() {
    let (mut world, key) = first_worker_has_ended();
    for name in ["train-Worker-1", "train-Worker-2"] {
        let uid = world.member(name);
        world.change_pod(&uid, |pod| pod.phase = PodPhase::Succeeded);
    }
    world.pass(Millis::from_secs(60));
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    assert!(!was_released(&world));
}

#[test]
fn gang_without_its_object_is_let_be_while_the_others_have_ended() {
    let (mut world, key) = first_worker_has_ended();
    for name in world.nodes.keys().cloned().collect::<Vec<_>>() {
        world.change_node(&name, |node| node.unschedulable = true);
    }
    world.gangs.remove(&key);
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert!(!was_released(&world));
    assert_eq!(world.bound(&key), 4);
}

#[test]
fn ended_member_whose_pod_was_taken_away_counts_on() {
    let mut world = World::new(1, 8);
    let key = GangKey::labelled("default", "group");
    let ended = world.labelled("a", "group", 2, 4, false);
    world.labelled("b", "group", 2, 4, false);
    world.settle();
    world.change_pod(&ended, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    world.delete_pod(&ended);
    world.pass(Millis::from_secs(60));
    assert!(!was_released(&world));
    assert_eq!(world.bound(&key), 1);
}

#[test]
fn ended_member_whose_pod_was_taken_away_counts_on_over_a_restart_too() {
    let mut world = World::new(1, 8);
    let key = GangKey::labelled("default", "group");
    let ended = world.labelled("a", "group", 2, 4, false);
    world.labelled("b", "group", 2, 4, false);
    world.settle();
    world.change_pod(&ended, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    let writes = world.writes.len();
    world.settle();
    assert_eq!(world.writes.len(), writes, "an end alone is worth no write");
    world.delete_pod(&ended);
    world.settle();
    assert_eq!(world.writes.len(), writes + 1);
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert!(!was_released(&world), "{:?}", world.announced);
    assert_eq!(world.bound(&key), 1);
    assert!(world.phase(&key).starts_with("Running"));
}

/// Three labelled pods on a node each, the first of them ended.
fn first_of_three_pods_has_ended() -> (World, GangKey) {
    let mut world = World::new(3, 8);
    for name in ["a", "b", "c"] {
        world.labelled(name, "group", 3, 8, false);
    }
    world.settle();
    let ended = world.member("a");
    world.change_pod(&ended, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    (world, GangKey::labelled("default", "group"))
}

fn cordon(world: &mut World, on: bool) {
    for name in world.nodes.keys().cloned().collect::<Vec<_>>() {
        world.change_node(&name, |node| node.unschedulable = on);
    }
}

#[test]
fn pods_that_are_left_of_a_released_gang_start_together_without_the_one_that_has_ended() {
    let (mut world, key) = first_of_three_pods_has_ended();
    cordon(&mut world, true);
    let lost = world.member("b");
    world.delete_pod(&lost);
    world.labelled("b2", "group", 3, 8, false);
    world.pass(Millis::from_secs(32));
    assert!(was_released(&world), "{:?}", world.announced);
    world.labelled("c2", "group", 3, 8, false);
    world.pass(Millis::from_secs(10));
    let running = |world: &World| {
        let pods = world.pods.values();
        pods.filter(|pod| pod.node.is_some() && pod.is_alive())
            .count()
    };
    assert_eq!(running(&world), 0);
    // Room for one of the two is no room.
    world.change_node("n0", |node| node.unschedulable = false);
    world.pass(Millis::from_secs(60));
    assert_eq!(running(&world), 0, "{}", world.phase(&key));
    cordon(&mut world, false);
    world.pass(Millis::from_secs(60));
    assert_eq!(running(&world), 2, "{}", world.phase(&key));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

#[test]
fn pod_that_is_made_again_after_all_others_have_ended_is_no_second_run() {
    let (mut world, key) = first_of_three_pods_has_ended();
    let (second, lost) = (world.member("b"), world.member("c"));
    world.change_pod(&second, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key), "Repairing MembersLost 2/3");
    world.labelled("c2", "group", 3, 8, false);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

#[test]
fn gang_whose_last_pod_is_deleted_for_good_has_ended_after_a_while() {
    let (mut world, key) = first_of_three_pods_has_ended();
    let (second, lost) = (world.member("b"), world.member("c"));
    world.change_pod(&second, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(60));
    assert!(
        world.phase(&key).starts_with("Succeeded"),
        "{}",
        world.phase(&key)
    );
}

/// Four labelled pods that ran, of which two have ended and are gone.
fn two_of_four_have_ended_and_are_gone() -> (World, GangKey) {
    let mut world = World::new(4, 8);
    for name in ["a", "b", "c", "d"] {
        world.labelled(name, "group", 4, 8, false);
    }
    world.settle();
    for name in ["a", "b"] {
        let uid = world.member(name);
        world.change_pod(&uid, |pod| pod.phase = PodPhase::Succeeded);
        world.settle();
        world.delete_pod(&uid);
        world.settle();
    }
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    (world, key)
}

#[test]
fn members_that_have_ended_do_not_stand_for_those_of_another_run_after_a_restart() {
    let (mut world, key) = two_of_four_have_ended_and_are_gone();
    for name in ["c", "d"] {
        let uid = world.member(name);
        world.delete_pod(&uid);
    }
    for name in ["a2", "b2", "c2", "d2"] {
        world.labelled(name, "group", 4, 8, false);
    }
    for name in ["n2", "n3"] {
        world.change_node(name, |node| node.unschedulable = true);
    }
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 0, "room for two: {}", world.phase(&key));
    assert!(
        world.phase(&key).starts_with("Waiting"),
        "{}",
        world.phase(&key)
    );
    cordon(&mut world, false);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    assert_eq!(world.bound(&key), 4);
}

#[test]
fn members_that_have_ended_count_on_after_a_restart_for_those_that_run_or_are_made_again() {
    let (mut world, key) = two_of_four_have_ended_and_are_gone();
    let lost = world.member("d");
    world.delete_pod(&lost);
    world.labelled("d2", "group", 4, 8, false);
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    assert_eq!(world.bound(&key), 2);
    assert!(!was_released(&world), "{:?}", world.announced);
}

/// Two labelled pods of one controller that ran, of which one has ended well and the other has failed.
fn one_has_ended_and_one_has_failed() -> (World, GangKey) {
    let mut world = World::new(2, 8);
    for name in ["a", "b"] {
        world.labelled(name, "group", 2, 8, false);
    }
    world.settle();
    for (name, phase) in [("a", PodPhase::Succeeded), ("b", PodPhase::Failed)] {
        let uid = world.member(name);
        world.change_pod(&uid, |pod| pod.phase = phase);
        world.settle();
    }
    (world, GangKey::labelled("default", "group"))
}

#[test]
fn failed_member_that_its_controller_makes_again_beside_one_that_has_ended_runs() {
    let (mut world, key) = one_has_ended_and_one_has_failed();
    world.pass(Millis::from_secs(10));
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
    world.labelled("b2", "group", 2, 8, false);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let anew = world.member("b2");
    assert!(world.pods[&anew].node.is_some());
}

#[test]
fn gang_whose_failed_member_stays_away_has_failed_after_a_while() {
    let (mut world, key) = one_has_ended_and_one_has_failed();
    world.pass(Millis::from_secs(60));
    assert!(
        world.phase(&key).starts_with("Failed"),
        "{}",
        world.phase(&key)
    );
}

/// Its template confines its pods to the nodes of the plan, and the pod of a member that had ended is made
/// again after a restart: that it may stand nowhere else was taken for its own wish, for ever.
#[test]
fn ended_member_that_is_made_again_after_a_restart_is_not_kept_to_the_nodes_of_before() {
    let mut world = World::new(3, 4);
    let key = world.submit("train", &[("Worker", 3, gpus(2))], Hold::Held);
    world.edit(&key, |job| job.minimum = Some(1));
    world.settle();
    let uid = world.member("train-Worker-1");
    world.change_pod(&uid, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    // Somebody else takes the room that it has left.
    let node = world.pods[&uid].node.clone().unwrap();
    world.stranger("thief", gpus(2), node);
    world.settle();
    world.restart(2);
    world.delete_pod(&uid);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert_eq!(world.bound(&key), 3);
}

/// Nobody says that a pod of no job is ever made again: its place would be kept from others for ever.
#[test]
fn place_of_a_lost_pod_that_its_gang_can_do_without_is_given_to_others_after_a_while() {
    let mut world = World::new(1, 8);
    let key = GangKey::labelled("default", "group");
    let uids = ["a", "b", "c"].map(|name| world.labelled(name, "group", 2, 2, true));
    world.settle();
    assert_eq!(world.bound(&key), 3);
    let waiting = world.submit("waiting", &[("Worker", 1, gpus(4))], Hold::Held);
    world.delete_pod(&uids[2]);
    world.settle();
    assert_eq!(world.bound(&waiting), 0, "it may come back");
    world.pass(Millis::from_secs(31));
    assert_eq!(world.bound(&waiting), 1);
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}
