//! The scheduler dies and starts again from what the API holds.

#[allow(dead_code)]
use std::sync::Arc;

use crate::world::{World, gpus};
use muster_core::action::WriteKind;
use muster_core::event::WriteOutcome;
use muster_core::ids::GangKey;
use muster_core::pod::{Membership, MembershipSource, PodPhase};
use muster_core::time::Millis;
use muster_core::workload::{Hold, MemberSource, WorkloadKind};

/// Crashes after each write in turn, restarts from what the API holds, and expects the same end.
fn crash_everywhere(hold: &Hold) {
    for crash_after in 1..14 {
        let mut world = World::new(4, 8);
        let seen = std::rc::Rc::new(std::cell::Cell::new(0));
        let key = world.submit(
            "train",
            &[("Master", 1, gpus(1)), ("Worker", 3, gpus(8))],
            hold.clone(),
        );
        for _ in 0..60 {
            seen.set(world.writes.len());
            world.step();
            if world.writes.len() >= crash_after {
                break;
            }
        }
        world.restart(2);
        world.pass(Millis::from_secs(40));
        assert_eq!(
            world.bound(&key),
            4,
            "crash after {crash_after} writes: {}",
            world.phase(&key)
        );
        assert_eq!(
            world.phase(&key),
            "Running AllBound 4/4",
            "crash after {crash_after} writes"
        );
        world.assert_not_overcommitted();
    }
}

#[test]
fn t32_f11_restart_after_any_write_of_a_held_job_ends_bound() {
    crash_everywhere(&Hold::Held);
}

#[test]
fn t32_restart_after_any_write_of_a_free_job_ends_bound() {
    crash_everywhere(&Hold::Free);
}

#[test]
fn crash_between_two_bindings_resumes_the_other_half() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.fail = Some(Box::new(|write| match &write.what {
        WriteKind::Bind { pod, .. } if pod.name.ends_with("-1") => {
            Some(WriteOutcome::Unknown(Arc::from("lost")))
        }
        _ => None,
    }));
    for _ in 0..20 {
        world.step();
    }
    assert_eq!(world.bound(&key), 1);
    world.fail = None;
    world.restart(2);
    let thief = world.submit("thief", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!((world.bound(&key), world.bound(&thief)), (2, 0));
}

#[test]
fn half_bound_gang_is_finished_before_any_agent_has_come_back() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.fail = Some(Box::new(|write| match &write.what {
        WriteKind::Bind { pod, .. } if pod.name.ends_with("-1") => {
            Some(WriteOutcome::Unknown(Arc::from("lost")))
        }
        _ => None,
    }));
    for _ in 0..20 {
        world.step();
    }
    assert_eq!(world.bound(&key), 1);
    world.fail = None;
    world.silent = true;
    world.restart(2);
    world.settle();
    assert_eq!(world.bound(&key), 2);
}

#[test]
fn plan_is_kept_over_a_restart_until_its_agents_should_have_come_back() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    assert!(world.phase(&key).starts_with("Starting"));
    world.silent = true;
    world.restart(2);
    world.pass(Millis::from_secs(29));
    assert!(world.phase(&key).starts_with("Starting"));
    let fresh = world.submit("fresh", &[("Worker", 1, gpus(1))], Hold::Held);
    world.settle();
    assert!(
        world.phase(&fresh).starts_with("Waiting"),
        "nothing new is planned"
    );
    world.pass(Millis::from_secs(2));
    assert!(world.phase(&key).starts_with("Waiting"));
}

/// kube-scheduler asks while a new leader does not know yet, is told to wait, and sleeps until the pod
/// changes. The plan is adopted under the id for which the pod was woken before.
#[test]
fn pod_that_is_refused_after_a_restart_is_woken_again_for_the_plan_that_was_adopted() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Free);
    world.settle();
    let uid = world.member("train-Worker-0");
    let plan_of = |world: &World| match &world.gangs[&key].record.plan {
        Ok(Some(plan)) => plan.id.clone(),
        other => panic!("no plan: {other:?}"),
    };
    let plan = plan_of(&world);
    for epoch in 2..5 {
        world.change_pod(&uid, |pod| {
            pod.unschedulable = Some(Arc::from("muster: needs 2 nodes"));
        });
        world.woken.clear();
        world.settle();
        assert!(
            world.woken.contains_key(&uid),
            "not woken before epoch {epoch}"
        );
        world.change_pod(&uid, |pod| pod.unschedulable = None);
        world.settle();
        world.restart(epoch);
        assert_eq!(plan_of(&world), plan, "the plan is adopted");
    }
    let woken = world
        .writes
        .iter()
        .filter(|write| matches!(write.what, WriteKind::WakePod { .. }));
    assert_eq!(woken.count(), 3);
}

#[test]
fn labelled_gang_that_lost_a_member_is_not_whole_because_of_a_restart() {
    let mut world = World::new(1, 8);
    let first = world.labelled("a", "pair", 2, 4, false);
    world.labelled("b", "pair", 2, 4, false);
    world.pass(Millis::from_secs(20));
    let key = GangKey::labelled("default", "pair");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    // Its node failed it, and there is no other: its place leaves the record. Nobody makes it again.
    world.change_pod(&first, |pod| pod.phase = PodPhase::Failed);
    world.settle();
    world.delete_pod(&first);
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

/// Fails a member of a gang of two on the only node there is, which takes nobody any more: its place
/// leaves the record.
fn lose_for_good(world: &mut World, key: &GangKey, name: &str) {
    world.change_node("n0", |node| node.unschedulable = true);
    world.operator = false;
    let uid = world.member(name);
    world.change_pod(&uid, |pod| pod.phase = PodPhase::Failed);
    world.settle();
    world.delete_pod(&uid);
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(key), "Repairing MembersLost 1/2");
}

#[test]
fn job_that_lost_a_member_is_not_whole_because_of_a_restart() {
    let mut world = World::new(1, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(4))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    lose_for_good(&mut world, &key, "train-Worker-0");
    world.restart(2);
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
    world.operator = true;
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

/// Until its pods are gone it is bound in part: a job's controller had another 30 s to take them, twice as long as a gang may stand so.
#[test]
fn pods_of_a_job_that_was_released_whole_go_soon_also_while_its_controller_is_down() {
    let mut world = World::new(1, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(4))], Hold::Held);
    world.settle();
    lose_for_good(&mut world, &key, "train-Worker-0");
    // Five seconds have gone by.
    world.pass(Millis::from_secs(28));
    let held = |world: &World| world.jobs[&key].hold.clone();
    assert_eq!(held(&world), Hold::Held, "released after 30 s");
    assert_eq!(world.bound(&key), 1, "its controller may still do it");
    world.pass(Millis::from_secs(9));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

#[test]
fn podgroup_that_lost_a_member_is_not_whole_because_of_a_restart() {
    let mut world = World::new(1, 8);
    let key = world.submit("group", &[], Hold::Free);
    world.edit(&key, |group| {
        group.kind = WorkloadKind::PodGroup;
        group.members = MemberSource::Pods;
        group.minimum = Some(2);
    });
    for name in ["a", "b"] {
        let membership = Membership {
            gang: key.clone(),
            source: MembershipSource::PodGroup {
                name: Arc::from("group"),
            },
            role: None,
            index: None,
        };
        world.pod(name, Some(membership), gpus(4));
    }
    world.pass(Millis::from_secs(20));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    lose_for_good(&mut world, &key, "a");
    world.restart(2);
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

/// The job has grown while nobody looked: what runs goes on running by what it was started with.
#[test]
fn job_that_grew_while_muster_was_down_keeps_what_runs() {
    let mut world = World::new(1, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(4))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    world.operator = false;
    if let Some(job) = world.jobs.get_mut(&key)
        && let MemberSource::Roles(roles) = &mut job.members
    {
        roles[0].count = 4;
    }
    world.restart(2);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 2, "{}", world.phase(&key));
}
