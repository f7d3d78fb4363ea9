//! A cluster on which much happens at once, and nothing goes wrong: what is planned stays, and little is written.

use std::sync::Arc;

use crate::traps::{ask, gathered, is_ok, planned};
use crate::world::{World, gpus};
use muster_core::action::WriteKind;
use muster_core::event::Event;
use muster_core::ids::{GangKey, NodeName, PlanId};
use muster_core::node::{TaintEffect, Toleration, TolerationOperator};
use muster_core::pod::PodPhase;
use muster_core::time::Millis;
use muster_core::workload::Outcome;

/// The plan that a gang's object says.
fn written_plan(world: &World, key: &GangKey) -> Option<PlanId> {
    let plan = world.gangs[key].status.as_ref()?.plan.as_ref();
    plan.map(|plan| plan.id.clone())
}

/// After the API server was away, kube-scheduler had not seen for seconds that pods were gone, and offered no node. The gang
/// found no others, and waited for five minutes.
#[test]
fn gang_that_a_kube_scheduler_that_is_behind_refuses_everywhere_starts_seconds_later() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let uids = ["pair-0", "pair-1"].map(|name| world.labelled(name, "pair", 2, 8, true));
    world.settle();
    let key = GangKey::labelled("default", "pair");
    for uid in &uids {
        let node = planned(&world, uid);
        let pod = uid.clone();
        world.tell(Event::PlannedNodeNotOffered { pod, node });
    }
    world.pass(Millis::from_secs(6));
    assert_eq!(world.phase(&key), "Waiting NotEnoughFree 0/2");
    assert!(world.reason(&key).contains("refused before 2"));
    world.scheduler = true;
    world.pass(Millis::from_secs(19));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// With other nodes about, one that refused a member is avoided for as long as before: it may refuse for good.
#[test]
fn node_that_refused_a_member_is_left_alone_for_long_where_there_are_others() {
    let mut world = World::new(4, 8);
    world.scheduler = false;
    let uids = ["pair-0", "pair-1"].map(|name| world.labelled(name, "pair", 2, 8, true));
    world.settle();
    for refusing in ["n0", "n1"] {
        let uid = uids
            .iter()
            .find(|uid| planned(&world, uid).as_str() == refusing);
        let pod = uid.expect("a member is planned there").clone();
        let node = NodeName::from(refusing);
        world.tell(Event::PlannedNodeNotOffered { pod, node });
        world.pass(Millis::from_secs(30));
    }
    let mut nodes = uids.each_ref().map(|uid| planned(&world, uid));
    nodes.sort();
    assert_eq!(nodes.each_ref().map(|node| node.as_str()), ["n2", "n3"]);
}

/// A member of one gang was bound: until that gang was looked at, the node had its place and its pod, and the plan of another
/// gang on the same full node was given back. On a busy cluster one plan in ten went that way.
#[test]
fn plan_on_a_full_node_outlives_the_binding_of_another_gangs_member_there() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    // Whichever is looked at first.
    for (waits, comes) in [("a", "b"), ("d", "c")] {
        let [waiting, coming] = [waits, comes].map(|gang| {
            let member = |index| world.labelled(&format!("{gang}-{index}"), gang, 2, 2, false);
            [0, 1].map(member)
        });
        world.settle();
        for uid in waiting.iter().chain(&coming) {
            planned(&world, uid);
        }
        let key = |gang| GangKey::labelled("default", gang);
        let plan = |world: &World| written_plan(world, &key(waits));
        let before = plan(&world);
        assert!(before.is_some());
        for uid in &coming {
            ask(&mut world, uid);
        }
        assert_eq!(world.phase(&key(comes)), "Running AllBound 2/2");
        assert_eq!(plan(&world), before, "{waits} beside {comes}");
        for uid in &waiting {
            ask(&mut world, uid);
        }
        assert_eq!(world.phase(&key(waits)), "Running AllBound 2/2");
        for uid in waiting.iter().chain(&coming) {
            world.delete_pod(uid);
        }
        world.settle();
    }
}

/// The same for a pod of no gang, whose Bind comes with the answers to the members' Bindings.
#[test]
fn pod_of_no_gang_finds_the_room_beside_members_that_were_bound_a_moment_ago() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    world.change_node("n0", |node| node.allocatable.milli_cpu = 3_000);
    let members = [0, 1].map(|index| world.labelled(&format!("m-{index}"), "m", 2, 1, false));
    let other = world.pod("other", None, gpus(0));
    world.settle();
    let node = planned(&world, &members[0]);
    for uid in &members {
        world.bind(uid, &node);
    }
    // Bindings are sent and answered, and nobody has looked at their gang since.
    world.step();
    let ticket = world.bind(&other, &node);
    world.settle();
    assert_eq!(is_ok(&world, ticket), Some(true));
}

/// Pods are born with tolerations that no template has. A gang that was Starting when Muster began anew, and then lost a pod, was taken for one
/// whose job had been edited, and its plan was given back.
#[test]
fn starting_gang_that_loses_a_pod_after_a_restart_keeps_its_plan() {
    let (mut world, key, uids) = gathered(3, 2);
    let at_birth = |key: &str| Toleration {
        key: Some(Arc::from(key)),
        operator: TolerationOperator::Exists,
        effect: Some(TaintEffect::NoExecute),
    };
    for uid in &uids {
        world.change_pod(uid, |pod| {
            let shape = Arc::make_mut(&mut pod.shape);
            shape
                .tolerations
                .push(at_birth("node.kubernetes.io/not-ready"));
        });
    }
    world.settle();
    let before = written_plan(&world, &key);
    // The first writes down which pods there are, and the second reads it.
    for epoch in [2, 3] {
        world.restart(epoch);
        world.settle();
    }
    world.delete_pod(&uids[0]);
    world.settle();
    assert_eq!(written_plan(&world, &key), before);
    world.scheduler = true;
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// A job that ended cost a status for its end, another one because taking our marks out of it had moved its generation, and a third
/// that said Waiting once it was deleted, with its pods and its Gang about to go after it.
#[test]
fn end_of_a_job_and_its_deletion_cost_one_status() {
    let (mut world, key, uids) = gathered(3, 2);
    world.scheduler = true;
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let statuses = |world: &World| {
        let writes = world.writes.iter();
        writes
            .filter(|write| matches!(write.what, WriteKind::PutStatus { .. }))
            .count()
    };
    let before = statuses(&world);
    for uid in &uids {
        world.change_pod(uid, |pod| pod.phase = PodPhase::Succeeded);
    }
    world.edit(&key, |job| job.finished = Some(Outcome::Succeeded));
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key).split(' ').next(), Some("Succeeded"));
    world.jobs.remove(&key);
    world.tell(Event::WorkloadRemoved(key.clone()));
    world.pass(Millis::from_secs(20));
    assert_eq!(statuses(&world), before + 1);
}
