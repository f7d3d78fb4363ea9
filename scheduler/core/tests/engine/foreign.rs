//! Jobs that do not say that they are ours. training-operator with `--gang-scheduler-name` puts a
//! scheduler's name into pods whose template has none: such a job is ours from its first pod on.

use crate::world::{World, gpus};
#[allow(dead_code)]
use muster_core::event::Event;
use muster_core::ids::GangKey;
use muster_core::time::Millis;
use muster_core::view::{FilterAnswer, UNKNOWN_JOB};
use muster_core::workload::Hold;

/// A world whose jobs name no scheduler.
fn unnamed(nodes: usize) -> World {
    let mut world = World::new(nodes, 8);
    world.named = false;
    world
}

fn submit(world: &mut World, name: &str, workers: u32) -> GangKey {
    world.submit(
        name,
        &[("Master", 1, gpus(1)), ("Worker", workers, gpus(8))],
        Hold::Free,
    )
}

#[test]
fn a_job_of_another_scheduler_is_nothing_to_us() {
    let mut world = unnamed(2);
    world.operator = false;
    let key = submit(&mut world, "theirs", 1);
    world.edit(&key, |job| job.minimum = Some(1));
    world.pass(Millis::from_secs(600));
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    assert!(world.announced.is_empty());
    world.jobs.remove(&key);
    world.tell(Event::WorkloadRemoved(key));
    world.settle();
    assert!(world.writes.is_empty());
}

#[test]
fn a_job_whose_pods_the_operator_gives_to_us_runs_whole_without_any_setting() {
    let mut world = unnamed(4);
    let key = submit(&mut world, "train", 3);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    let second = submit(&mut world, "second", 2);
    world.settle();
    assert_eq!(world.phase(&second), "Waiting NotEnoughFree 0/3");
    assert_eq!(world.bound(&second), 0);
    world.restart(2);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    assert_eq!(world.phase(&second), "Waiting NotEnoughFree 0/3");
}

#[test]
fn the_pods_may_be_seen_before_their_job() {
    let mut world = unnamed(4);
    let key = submit(&mut world, "train", 3);
    world.tell(Event::WorkloadRemoved(key.clone()));
    world.settle();
    assert_eq!(world.bound(&key), 0);
    let waiting = world.member("train-Worker-0");
    let membership = world.pods[&waiting].membership.clone();
    let answer = world.engine.view().filter(&waiting, membership.as_ref());
    assert!(
        matches!(&answer, FilterAnswer::Nowhere(text) if &**text == UNKNOWN_JOB),
        "{answer:?}"
    );
    world.edit(&key, |_| {});
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
}

#[test]
fn it_stays_ours_while_all_its_pods_are_made_again() {
    let mut world = unnamed(4);
    let key = submit(&mut world, "train", 3);
    world.settle();
    world.operator = false;
    let pods: Vec<_> = world.pods.keys().cloned().collect();
    for uid in pods {
        world.delete_pod(&uid);
    }
    world.edit(&key, |job| job.priority = 1);
    world.settle();
    world.named = true;
    let rival = world.submit("rival", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&rival), "Waiting NotEnoughFree 0/2");
    world.operator = true;
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    world.edit(&key, |job| job.hold = Hold::SuspendedByUser);
    world.settle();
    assert_eq!(world.phase(&key), "Suspended SuspendedByUser 0/4");
    assert_eq!(world.phase(&rival), "Running AllBound 2/2");
}
