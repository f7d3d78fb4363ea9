//! What a job's controller, and the garbage collector, do late, never, or one thing after the other.

use crate::traps::{gathered, planned};
use crate::world::{World, gpus};
use muster_core::event::Event;
use muster_core::ids::{GangKey, PodUid};
use muster_core::pod::{Membership, MembershipSource};
use muster_core::time::Millis;
use muster_core::workload::Hold;

/// A job whose plan was given back while its controller is away, 25 seconds later: it is held, and its pods are there.
fn held_again_with_its_pods() -> (World, GangKey, Vec<PodUid>) {
    let (mut world, key, uids) = gathered(4, 2);
    world.operator = false;
    let node = planned(&world, &uids[0]);
    world.change_node(node.as_str(), |node| node.unschedulable = true);
    world.pass(Millis::from_secs(25));
    assert_eq!(world.jobs[&key].hold, Hold::Held);
    (world, key, uids)
}

/// The controller comes back and takes the job's pods; it starts with others.
fn comes_and_starts_others(world: &mut World, key: &GangKey, before: &[PodUid]) {
    world.operator = true;
    world.scheduler = true;
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(key), "Running AllBound 2/2");
    assert!(!before.iter().any(|uid| world.pods.contains_key(uid)));
}

/// A plan that was given back suspended its job, and the next one resumed it half a second later. A training-operator that was
/// behind took the pods of the first only then, and the second had bound them.
#[test]
fn job_that_is_held_again_is_planned_once_its_controller_has_taken_its_pods() {
    let (mut world, key, uids) = held_again_with_its_pods();
    assert!(world.phase(&key).starts_with("Waiting"));
    assert!(uids.iter().all(|uid| world.pods.contains_key(uid)));
    comes_and_starts_others(&mut world, &key, &uids);
}

/// We held the job, and began anew before its plan was taken back. The plan was carried on and the job released at once, and a
/// controller that was late took the pods that were bound by it.
#[test]
fn plan_of_a_job_that_was_held_before_a_restart_is_carried_on_once_its_pods_were_taken() {
    let (mut world, key, uids) = gathered(4, 2);
    world.operator = false;
    world.edit(&key, |job| job.hold = Hold::Held);
    world.restart(2);
    world.pass(Millis::from_secs(5));
    assert_eq!(world.jobs[&key].hold, Hold::Held);
    comes_and_starts_others(&mut world, &key, &uids);
}

/// Whether its controller ever takes them nobody knows: the job is not kept waiting for it without end.
#[test]
fn job_whose_controller_leaves_its_pods_is_planned_again_after_a_while() {
    let (mut world, key, _) = held_again_with_its_pods();
    world.pass(Millis::from_secs(15));
    assert!(matches!(world.jobs[&key].hold, Hold::Released(_)));
}

/// training-operator makes the pods of one job after the other, ten a second. Jobs whose turn came after more than a minute were given up as
/// if nobody were coming, rested, and went to the end of its queue.
#[test]
fn job_behind_others_in_its_controllers_queue_is_not_given_up_while_pods_are_made() {
    let mut world = World::new(24, 8);
    world.scheduler = false;
    world.operator = false;
    let first = world.submit("first", &[("Worker", 16, gpus(8))], Hold::Held);
    let behind = world.submit("behind", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let born = |world: &mut World, index: u32| {
        let membership = Membership {
            gang: first.clone(),
            source: MembershipSource::Job,
            role: Some("Worker".into()),
            index: Some(index),
        };
        world.pod(&format!("first-Worker-{index}"), Some(membership), gpus(8));
    };
    for index in 0..9 {
        assert_eq!(world.phase(&behind), "Starting Gathering 0/2", "{index}");
        born(&mut world, index);
        world.pass(Millis::from_secs(30));
    }
    // It may be that nobody ever makes them; and next time it is waited for a minute.
    for (index, wait) in [(9, 25), (10, 7)] {
        assert_eq!(world.phase(&behind), "Starting Gathering 0/2");
        born(&mut world, index);
        world.pass(Millis::from_secs(wait));
    }
    assert_eq!(world.phase(&behind), "Waiting BarrierTimeout 0/2");
}

/// A job that runs is deleted and its pods are let be (`--cascade=orphan`): the garbage collector takes the owner from one after the other. Those it had
/// not come to were taken for what is left of a gang, and deleted after 30 s.
#[test]
fn pods_of_a_job_that_are_let_be_one_after_the_other_run_on() {
    let (mut world, key, uids) = gathered(4, 3);
    world.scheduler = true;
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    world.operator = false;
    world.jobs.remove(&key);
    world.tell(Event::WorkloadRemoved(key.clone()));
    for uid in &uids {
        world.change_pod(uid, |pod| pod.membership = None);
        world.pass(Millis::from_secs(40));
    }
    assert!(uids.iter().all(|uid| world.pods.contains_key(uid)));
}

/// A finalizer keeps the pods of an elastic job that was deleted. What was written last said how many must run; after half a minute it said nothing, and
/// after a restart those that ran were deleted because others were pending.
#[test]
fn elastic_gang_whose_job_is_being_deleted_is_let_be_after_a_restart_too() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 3, gpus(8))], Hold::Held);
    world.edit(&key, |job| job.minimum = Some(2));
    world.pass(Millis::from_secs(5));
    world.operator = false;
    world.scheduler = false;
    let membership = Membership {
        gang: key.clone(),
        source: MembershipSource::Job,
        role: Some("Worker".into()),
        index: Some(2),
    };
    if !world
        .pods
        .values()
        .any(|pod| &*pod.name == "train-Worker-2")
    {
        world.pod("train-Worker-2", Some(membership), gpus(8));
    }
    world.settle();
    assert_eq!(world.bound(&key), 2);
    world.jobs.remove(&key);
    world.tell(Event::WorkloadRemoved(key.clone()));
    world.pass(Millis::from_secs(40));
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 2);
}
