//! Devices that were predicted, against those that kubelet gave.

use crate::world::{GPU, World, gpus};
use muster_core::action::WriteKind;
use muster_core::engine::Predictions;
use muster_core::ids::{DeviceUuid, GangKey};
use muster_core::workload::Hold;

/// Kubelet has given these devices to a pod, and the agents report.
fn give(world: &mut World, pod: &str, devices: &[&str]) {
    world.holders.retain(|_, holder| holder != pod);
    for device in devices {
        world.holders.insert((*device).into(), pod.into());
    }
    world.report_all();
    world.settle();
}

/// Devices by role and index, as the Gang's status says.
fn shown(world: &World, key: &GangKey) -> Vec<(String, Vec<String>)> {
    let status = world.gangs.get(key).and_then(|gang| gang.status.as_ref());
    let plan = status.and_then(|status| status.plan.as_ref());
    let text = |devices: &[DeviceUuid]| devices.iter().map(ToString::to_string).collect();
    plan.into_iter()
        .flat_map(|plan| &plan.slots)
        .map(|slot| (format!("{}-{}", slot.role, slot.index), text(&slot.devices)))
        .collect()
}

fn devices_of(world: &World, key: &GangKey, member: &str) -> Vec<String> {
    let shown = shown(world, key).into_iter();
    let mut of_it = shown.filter(|(name, _)| name == member);
    of_it.next().map(|(_, devices)| devices).unwrap_or_default()
}

fn counted(world: &World) -> (u64, u64) {
    let Predictions { matched, differed } = world.engine.predictions();
    (matched, differed)
}

/// Two workers with two GPUs each on one node of eight: predicted to get 0 and 1, 2 and 3.
fn running() -> (World, GangKey) {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(2))], Hold::Free);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    assert_eq!(
        shown(&world, &key),
        [
            (
                "Worker-0".into(),
                vec!["GPU-n0-0".into(), "GPU-n0-1".into()]
            ),
            (
                "Worker-1".into(),
                vec!["GPU-n0-2".into(), "GPU-n0-3".into()]
            ),
        ]
    );
    (world, key)
}

#[test]
fn pods_that_got_what_was_predicted_or_something_else_are_counted_once() {
    let (mut world, _) = running();
    assert_eq!(counted(&world), (0, 0), "nobody has said who holds what");
    give(&mut world, "train-Worker-0", &["GPU-n0-1", "GPU-n0-0"]);
    assert_eq!(counted(&world), (1, 0));
    give(&mut world, "train-Worker-1", &["GPU-n0-3", "GPU-n0-4"]);
    assert_eq!(counted(&world), (1, 1));
    world.next_generation();
    give(&mut world, "somebody", &["GPU-n0-7"]);
    give(&mut world, "train-Worker-1", &["GPU-n0-5", "GPU-n0-4"]);
    assert_eq!(counted(&world), (1, 1));
}

#[test]
fn what_kubelet_gave_costs_no_write_and_is_shown_with_the_next_one() {
    let (mut world, key) = running();
    let writes = world.writes.len();
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    assert_eq!(world.writes.len(), writes, "{:?}", world.writes.last());
    world.edit(&key, |job| job.minimum = Some(1));
    world.settle();
    assert_eq!(
        devices_of(&world, &key, "Worker-0"),
        ["GPU-n0-6", "GPU-n0-7"]
    );
    assert_eq!(
        devices_of(&world, &key, "Worker-1"),
        ["GPU-n0-2", "GPU-n0-3"]
    );
}

#[test]
fn room_of_a_lost_member_is_kept_on_the_devices_that_it_had() {
    let (mut world, key) = running();
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    let lost = world.member("train-Worker-0");
    world.operator = false;
    world.delete_pod(&lost);
    give(&mut world, "train-Worker-0", &[]);
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
    assert_eq!(
        devices_of(&world, &key, "Worker-0"),
        ["GPU-n0-6", "GPU-n0-7"]
    );
    let other = world.submit("other", &[("Worker", 1, gpus(2))], Hold::Held);
    world.operator = true;
    world.scheduler = false;
    world.settle();
    assert_eq!(
        devices_of(&world, &other, "Worker-0"),
        ["GPU-n0-0", "GPU-n0-1"],
        "predicted for the first, and never given"
    );
}

#[test]
fn successor_is_not_compared_with_what_its_predecessor_of_the_same_name_had() {
    let (mut world, key) = running();
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    assert_eq!(counted(&world), (0, 1));
    let lost = world.member("train-Worker-0");
    world.delete_pod(&lost);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    assert_ne!(world.member("train-Worker-0"), lost);
    // The last report is of before, and names the predecessor.
    assert_eq!(counted(&world), (0, 1));
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    assert_eq!(counted(&world), (1, 1), "where its room was kept");
}

#[test]
fn what_kubelet_gave_is_known_again_after_a_restart() {
    let (mut world, key) = running();
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    world.restart(2);
    assert_eq!(counted(&world), (0, 1), "each process counts for itself");
    world.edit(&key, |job| job.minimum = Some(1));
    world.settle();
    assert_eq!(
        devices_of(&world, &key, "Worker-0"),
        ["GPU-n0-6", "GPU-n0-7"]
    );
}

#[test]
fn nothing_is_compared_by_an_agent_that_cannot_ask_its_kubelet_or_names_too_few() {
    let (mut world, _) = running();
    give(&mut world, "train-Worker-0", &["GPU-n0-6"]);
    assert_eq!(counted(&world), (0, 0), "one of its two is not reported");
    world.kubelets_away = true;
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    assert_eq!(counted(&world), (0, 0));
    world.kubelets_away = false;
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    assert_eq!(counted(&world), (0, 1));
}

#[test]
fn pod_that_nothing_was_predicted_for_is_shown_and_not_counted() {
    let mut world = World::new(0, 8);
    world.config.nodes_without_agent = muster_core::config::NodesWithoutAgent::UseAllocatable;
    world.silent = true;
    world.restart(1);
    world.add_node("n0", 8);
    world.change_node("n0", |node| assert_eq!(node.allocatable.extended(GPU), 8));
    let key = world.submit("train", &[("Worker", 1, gpus(2))], Hold::Free);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
    assert!(devices_of(&world, &key, "Worker-0").is_empty());
    world.silent = false;
    give(&mut world, "train-Worker-0", &["GPU-n0-6", "GPU-n0-7"]);
    assert_eq!(counted(&world), (0, 0));
    world.edit(&key, |job| job.minimum = Some(1));
    world.settle();
    assert_eq!(
        devices_of(&world, &key, "Worker-0"),
        ["GPU-n0-6", "GPU-n0-7"]
    );
    let status =
        |write: &&muster_core::action::Write| matches!(write.what, WriteKind::PutStatus { .. });
    assert!(world.writes.iter().filter(status).count() <= 3);
}
