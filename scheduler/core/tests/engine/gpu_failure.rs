//! A GPU fails under a member that runs on it: told, repaired or released by the gang's policy.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::world::{World, gpus};
use muster_core::action::WriteKind;
use muster_core::failure::{ON_GPU_FAILURE, OnGpuFailure};
use muster_core::ids::GangKey;
use muster_core::time::Millis;
use muster_core::workload::Hold;

const SECOND: Millis = Millis::from_secs(1);

/// Kubelets have given each bound pod all devices of its node, and the agents report.
fn give_all(world: &mut World) {
    world.holders.clear();
    let bound: Vec<(String, String)> = world
        .pods
        .values()
        .filter_map(|pod| Some((pod.name.to_string(), pod.node.as_ref()?.to_string())))
        .collect();
    for (pod, node) in bound {
        for index in 0..8 {
            let device = format!("GPU-{node}-{index}");
            world.holders.insert(device, pod.clone());
        }
    }
    world.report_all();
    world.settle();
}

/// Three workers with a node each, of four nodes.
fn running(policy: Option<&str>) -> (World, GangKey) {
    running_on(4, policy)
}

fn running_on(nodes: usize, policy: Option<&str>) -> (World, GangKey) {
    let mut world = World::new(nodes, 8);
    let key = world.submit("train", &[("Worker", 3, gpus(8))], Hold::Held);
    if let Some(policy) = policy {
        world.edit(&key, |job| {
            let setting = (Arc::from(ON_GPU_FAILURE), Arc::from(policy));
            job.settings.extend([setting]);
        });
    }
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    give_all(&mut world);
    (world, key)
}

fn node_of(world: &World, pod: &str) -> String {
    let uid = world.member(pod);
    world.pods[&uid].node.as_ref().unwrap().to_string()
}

/// The first GPU of the node on which this pod runs fails.
fn fail(world: &mut World, pod: &str) -> String {
    let node = node_of(world, pod);
    world.unhealthy.insert(format!("GPU-{node}-0"));
    world.pass(SECOND);
    node
}

fn said(world: &World, key: &GangKey) -> Option<String> {
    let status = world.gangs[key].status.as_ref().unwrap();
    status.failing.as_deref().map(str::to_owned)
}

fn deletions(world: &World) -> usize {
    let writes = world.writes.iter();
    writes
        .filter(|write| matches!(write.what, WriteKind::DeletePod { .. }))
        .count()
}

fn released(world: &World) -> bool {
    let mut said = world.announced.iter();
    said.any(|said| said.ends_with("released as a whole"))
}

fn events(world: &World, code: &str) -> usize {
    let said = world.announced.iter();
    said.filter(|event| event.starts_with(code)).count()
}

#[test]
fn it_is_told_at_once_and_nothing_else_happens_by_default() {
    let (mut world, key) = running(None);
    let writes = world.writes.len();
    let node = fail(&mut world, "train-Worker-1");
    let text = format!(
        "member Worker-1 runs on GPU-{node}-0 of node {node}, which has failed: xid-79; nothing follows from it \
         (muster.dev/on-gpu-failure: Ignore)"
    );
    assert_eq!(said(&world, &key), Some(text));
    world.pass(Millis::from_secs(900));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert_eq!((events(&world, "GpuFailed"), deletions(&world)), (1, 0));
    assert_eq!(world.writes.len(), writes + 1, "one status");
    world.unhealthy.clear();
    world.pass(SECOND);
    assert_eq!(said(&world, &key), None);
    assert_eq!(
        (events(&world, "GpuFailed"), world.writes.len()),
        (1, writes + 2)
    );
}

#[test]
fn a_member_on_a_failed_gpu_is_replaced_elsewhere_where_its_gang_asks_for_repair() {
    let (mut world, key) = running(Some("Repair"));
    let before = world.member("train-Worker-1");
    let node = fail(&mut world, "train-Worker-1");
    assert!(
        said(&world, &key)
            .unwrap()
            .ends_with("(muster.dev/on-gpu-failure: Repair)")
    );
    world.pass(Millis::from_secs(118));
    assert_eq!(world.member("train-Worker-1"), before, "not yet");
    world.pass(Millis::from_secs(3));
    assert_ne!(world.member("train-Worker-1"), before);
    assert_ne!(node_of(&world, "train-Worker-1"), node);
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    give_all(&mut world);
    assert_eq!(
        (said(&world, &key), events(&world, "ReleasedWhole")),
        (None, 0)
    );
}

/// Kubernetes gives a pod 30 s to end, as long as a gang may be bound in part: each repair would release it whole.
#[test]
fn a_member_that_takes_its_time_to_end_does_not_cost_the_whole_gang() {
    let (mut world, key) = running(Some("Repair"));
    world.graceful = true;
    let before = world.member("train-Worker-1");
    let node = fail(&mut world, "train-Worker-1");
    world.pass(Millis::from_secs(121));
    assert!(world.pods[&before].terminating);
    world.pass(Millis::from_secs(45));
    assert_eq!(world.phase(&key), "Repairing MembersLost 2/3");
    world.delete_pod(&before);
    world.pass(SECOND);
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert_ne!(node_of(&world, "train-Worker-1"), node);
    assert_eq!(events(&world, "ReleasedWhole"), 0);
}

#[test]
fn a_member_that_never_ends_is_not_waited_for_without_end() {
    let (mut world, key) = running(Some("Repair"));
    world.graceful = true;
    fail(&mut world, "train-Worker-1");
    world.pass(Millis::from_secs(121 + 60));
    assert_eq!(world.phase(&key), "Repairing MembersLost 2/3");
    world.pass(Millis::from_secs(32));
    assert_eq!(events(&world, "ReleasedWhole"), 1);
}

#[test]
fn a_gang_that_asks_for_it_is_released_whole_and_starts_again_without_the_gpu() {
    let (mut world, key) = running(Some("Evict"));
    let node = fail(&mut world, "train-Worker-1");
    let before: BTreeSet<_> = world.pods.keys().cloned().collect();
    world.pass(Millis::from_secs(118));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert!(
        world.pods.keys().all(|pod| !before.contains(pod)),
        "all anew"
    );
    let nodes: BTreeSet<String> = (0..3)
        .map(|index| node_of(&world, &format!("train-Worker-{index}")))
        .collect();
    assert!(nodes.len() == 3 && !nodes.contains(&node), "{nodes:?}");
    let text = "has failed (xid-79): released as a whole";
    assert!(world.announced.iter().any(|said| said.ends_with(text)));
}

#[test]
fn without_room_an_evicted_gang_waits_and_says_why() {
    let (mut world, key) = running_on(3, Some("Evict"));
    fail(&mut world, "train-Worker-1");
    world.pass(Millis::from_secs(180));
    assert_eq!(world.phase(&key), "Waiting NotEnoughFree 0/3");
    assert_eq!(world.bound(&key), 0);
}

#[test]
fn the_configured_policy_holds_for_gangs_that_do_not_say() {
    for (own, configured, replaced) in [
        (None, OnGpuFailure::Repair, true),
        (Some("Ignore"), OnGpuFailure::Repair, false),
        (Some("Repair"), OnGpuFailure::Ignore, true),
    ] {
        let mut world = World::new(4, 8);
        world.config.on_gpu_failure = configured;
        world.restart(2);
        let key = world.submit("train", &[("Worker", 3, gpus(8))], Hold::Held);
        world.edit(&key, |job| {
            let own = own.map(|own| (Arc::from(ON_GPU_FAILURE), Arc::from(own)));
            job.settings.extend(own);
        });
        world.settle();
        give_all(&mut world);
        fail(&mut world, "train-Worker-1");
        world.pass(Millis::from_secs(130));
        assert_eq!(deletions(&world) > 0, replaced, "{own:?} {configured:?}");
    }
}

#[test]
fn a_gpu_that_is_well_again_in_time_ends_nobody() {
    let (mut world, key) = running(Some("Evict"));
    fail(&mut world, "train-Worker-1");
    world.pass(Millis::from_secs(100));
    world.unhealthy.clear();
    world.pass(Millis::from_secs(60));
    // It fails anew: that is another two minutes.
    fail(&mut world, "train-Worker-1");
    world.pass(Millis::from_secs(100));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert_eq!(deletions(&world), 0);
}

#[test]
fn nobody_is_ended_on_the_word_of_an_agent_that_has_fallen_silent() {
    let (mut world, key) = running(Some("Evict"));
    fail(&mut world, "train-Worker-1");
    world.silent = true;
    world.pass(Millis::from_secs(900));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    world.silent = false;
    world.pass(Millis::from_secs(15));
    assert_eq!(
        events(&world, "GpuFailed"),
        2,
        "told, then released: {:?}",
        world.announced
    );
}

/// A leader that has just begun knows nothing of the time before, so that no breaker stops it.
#[test]
fn where_many_nodes_are_bad_nobody_is_ended_for_it_not_even_by_a_new_leader() {
    let (mut world, key) = running(Some("Evict"));
    for worker in 0..3 {
        let node = node_of(&world, &format!("train-Worker-{worker}"));
        world.unhealthy.insert(format!("GPU-{node}-0"));
    }
    world.pass(SECOND);
    assert!(world.engine.breaker().open);
    world.pass(Millis::from_secs(900));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    world.restart(2);
    world.pass(Millis::from_secs(900));
    assert!(!world.engine.breaker().open);
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert_eq!(deletions(&world), 0);
    // Of two it is believed.
    world.unhealthy.pop_first();
    world.pass(Millis::from_secs(15));
    assert!(
        world
            .announced
            .iter()
            .any(|said| said.ends_with("released as a whole"))
    );
}

#[test]
fn pods_that_nobody_makes_again_are_not_deleted_for_repair() {
    let mut world = World::new(3, 8);
    world.config.on_gpu_failure = OnGpuFailure::Repair;
    world.restart(2);
    for member in ["a", "b"] {
        world.labelled(member, "group", 2, 8, false);
    }
    world.settle();
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    give_all(&mut world);
    fail(&mut world, "a");
    world.pass(Millis::from_secs(900));
    assert_eq!((world.bound(&key), deletions(&world)), (2, 0));
    assert!(
        said(&world, &key)
            .unwrap()
            .contains("because nobody would make its pods again")
    );
}

#[test]
fn a_gang_of_pods_that_nobody_makes_again_is_not_evicted() {
    let mut world = World::new(3, 8);
    world.config.on_gpu_failure = OnGpuFailure::Evict;
    world.restart(2);
    for member in ["a", "b"] {
        world.labelled(member, "group", 2, 8, false);
    }
    world.settle();
    let key = GangKey::labelled("default", "group");
    give_all(&mut world);
    fail(&mut world, "a");
    world.pass(Millis::from_secs(900));
    assert_eq!((world.bound(&key), deletions(&world)), (2, 0));
}

#[test]
fn a_member_that_is_made_again_is_replaced_although_the_first_is_not() {
    let mut world = World::new(4, 8);
    world.config.on_gpu_failure = OnGpuFailure::Repair;
    world.restart(2);
    world.labelled("a", "group", 2, 8, false);
    let made_again = world.labelled("b", "group", 2, 8, false);
    world.change_pod(&made_again, |pod| pod.controlled = true);
    world.settle();
    give_all(&mut world);
    fail(&mut world, "a");
    fail(&mut world, "b");
    world.pass(Millis::from_secs(130));
    assert_eq!(deletions(&world), 1);
}

#[test]
fn a_gpu_that_was_well_again_while_its_kubelet_did_not_answer_ends_nobody() {
    let (mut world, key) = running(Some("Evict"));
    fail(&mut world, "train-Worker-1");
    world.pass(Millis::from_secs(30));
    world.kubelets_away = true;
    world.report_all();
    world.pass(Millis::from_secs(30));
    world.unhealthy.clear();
    world.report_all();
    world.pass(Millis::from_secs(120));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert_eq!((released(&world), said(&world, &key)), (false, None));
}

#[test]
fn a_failure_lasts_from_the_first_reading_on_after_the_driver_could_not_be_asked() {
    for well in [true, false] {
        let (mut world, key) = running(Some("Evict"));
        let node = fail(&mut world, "train-Worker-1");
        world.driverless.insert(node);
        world.report_all();
        world.pass(Millis::from_secs(600));
        world.driverless.clear();
        world.report_all();
        world.pass(Millis::from_secs(100));
        assert_eq!(world.phase(&key), "Running AllBound 3/3");
        assert!(!released(&world));
        if well {
            world.unhealthy.clear();
            world.report_all();
        }
        world.pass(Millis::from_secs(40));
        assert_eq!(released(&world), !well);
    }
}

#[test]
fn what_others_have_lived_with_for_long_keeps_nobody_from_being_released() {
    let (mut world, key) = running_on(14, Some("Evict"));
    let other = world.submit("patient", &[("Worker", 3, gpus(8))], Hold::Held);
    world.settle();
    give_all(&mut world);
    for worker in 0..3 {
        fail(&mut world, &format!("patient-Worker-{worker}"));
        world.pass(Millis::from_secs(400));
    }
    assert_eq!(world.phase(&other), "Running AllBound 3/3");
    assert_eq!(events(&world, "ReleasedWhole"), 0);
    fail(&mut world, "train-Worker-1");
    world.pass(Millis::from_secs(130));
    assert!(released(&world));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

#[test]
fn a_node_that_is_cordoned_while_verdicts_are_held_back_has_its_failure_told() {
    let (mut world, key) = running_on(8, None);
    let node = node_of(&world, "train-Worker-1");
    let held: Vec<String> = (0..3)
        .map(|worker| node_of(&world, &format!("train-Worker-{worker}")))
        .collect();
    let idle: Vec<String> = world.nodes.keys().map(ToString::to_string).collect();
    for name in idle.iter().filter(|name| !held.contains(name)).take(4) {
        world.unhealthy.insert(format!("GPU-{name}-0"));
    }
    world.pass(SECOND);
    assert!(world.engine.breaker().open);
    fail(&mut world, "train-Worker-1");
    assert_eq!(said(&world, &key), None);
    world.change_node(&node, |node| node.unschedulable = true);
    world.pass(SECOND);
    assert!(said(&world, &key).is_some());
}

#[test]
fn a_policy_that_does_not_exist_keeps_a_gang_from_starting_and_is_named() {
    let mut world = World::new(4, 8);
    let key = world.submit("train", &[("Worker", 3, gpus(8))], Hold::Held);
    world.edit(&key, |job| {
        let setting = (Arc::from(ON_GPU_FAILURE), Arc::from("repair"));
        job.settings.extend([setting]);
    });
    world.settle();
    assert_eq!(world.phase(&key), "Waiting InvalidWorkload 0/3");
    let text = "muster.dev/on-gpu-failure is repair: must be Repair, Evict or Ignore";
    assert!(world.announced.iter().any(|said| said.ends_with(text)));
    world.edit(&key, |job| job.settings.clear());
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}
