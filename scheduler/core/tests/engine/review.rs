//! Faults found by reading, each kept as a test with its story in the name.

use std::sync::Arc;

use crate::world::{World, gpus};
use muster_core::action::{JobChange, WriteKind};
use muster_core::event::{Event, WriteOutcome};
use muster_core::ids::GangKey;
use muster_core::pod::{Membership, MembershipSource, PodPhase};
use muster_core::time::Millis;
use muster_core::workload::{Hold, InvalidWorkload, MemberSource, WorkloadKind};

fn group_member(world: &mut World, name: &str, group: &str) -> muster_core::ids::PodUid {
    let membership = Membership {
        gang: GangKey::new("default", &format!("podgroup/{group}")),
        source: MembershipSource::PodGroup {
            name: Arc::from(group),
        },
        role: None,
        index: None,
    };
    world.pod(name, Some(membership), gpus(1))
}

#[test]
fn pods_of_a_podgroup_that_does_not_exist_are_not_taken_for_all_of_it() {
    let mut world = World::new(2, 8);
    for name in ["a", "b", "c"] {
        group_member(&mut world, name, "late");
    }
    world.pass(Millis::from_secs(60));
    let key = GangKey::new("default", "podgroup/late");
    assert_eq!(world.bound(&key), 0);
    assert_eq!(world.phase(&key), "Waiting PodGroupMissing 0/3");
}

#[test]
fn second_run_under_the_same_label_is_a_gang_anew() {
    let mut world = World::new(1, 8);
    let key = GangKey::labelled("default", "train");
    for name in ["a", "b"] {
        world.labelled(name, "train", 2, 4, true);
    }
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    for name in ["a", "b"] {
        let uid = world.member(name);
        world.change_pod(&uid, |pod| pod.phase = PodPhase::Succeeded);
    }
    world.settle();
    assert!(
        world.phase(&key).starts_with("Succeeded Finished"),
        "{}",
        world.phase(&key)
    );
    // Half of the node is taken: of a second run of two, one alone would fit.
    let other = world.submit("other", &[("Worker", 1, gpus(4))], Hold::Held);
    world.settle();
    assert_eq!(world.bound(&other), 1);
    for name in ["c", "d"] {
        world.labelled(name, "train", 2, 4, true);
    }
    world.pass(Millis::from_secs(40));
    let running = world
        .pods
        .values()
        .filter(|pod| pod.node.is_some() && pod.is_alive());
    assert_eq!(running.count(), 1, "only the other job runs");
}

#[test]
fn single_pod_that_has_ended_says_so() {
    let mut world = World::new(1, 8);
    let uid = world.pod("alone", None, gpus(1));
    let key = GangKey::new("default", uid.as_str());
    world.change_pod(&uid, |pod| {
        pod.membership = Some(Membership {
            gang: key.clone(),
            source: MembershipSource::Alone,
            role: None,
            index: None,
        });
    });
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
    world.change_pod(&uid, |pod| pod.phase = PodPhase::Failed);
    world.settle();
    assert!(
        world.phase(&key).starts_with("Failed Finished"),
        "{}",
        world.phase(&key)
    );
}

#[test]
fn template_that_a_gitops_tool_puts_back_while_all_run_is_let_be() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let before = world.writes.len();
    world.edit(&key, |job| {
        let MemberSource::Roles(roles) = &mut job.members else {
            return;
        };
        roles.iter_mut().for_each(|role| role.pinned = None);
    });
    world.settle();
    let repinned = world.writes.iter().skip(before).any(|write| {
        matches!(
            &write.what,
            WriteKind::ChangeJob {
                change: JobChange::Repin { .. },
                ..
            }
        )
    });
    assert!(!repinned);
}

#[test]
fn cloned_uuid_takes_the_device_from_both_nodes() {
    let mut world = World::new(2, 8);
    world.clone_uuid("GPU-n1-0", "GPU-n0-0");
    world.report_all();
    world.settle();
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(
        world.bound(&key),
        0,
        "neither node has eight GPUs that are surely its own"
    );
    world.engine.handle(Event::Tick, world.now);
}

#[test]
fn restart_waits_for_agents_before_it_doubts_a_plan() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let plan = world.gangs[&key].record.plan.clone();
    world.reports = false;
    world.restart(2);
    world.settle();
    let slots = |plan: &Result<Option<muster_core::record::PlanRecord>, Arc<str>>| {
        let plan = plan.as_ref().ok().and_then(Option::as_ref);
        plan.map(|plan| {
            plan.slots
                .iter()
                .map(|slot| slot.node.clone())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(slots(&world.gangs[&key].record.plan), slots(&plan));
    world.reports = true;
    world.report_all();
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

#[test]
fn pods_that_come_one_by_one_cost_no_status_each() {
    let mut world = World::new(2, 8);
    for index in 0..8 {
        world.labelled(&format!("p{index}"), "group", 8, 1, true);
        world.settle();
    }
    let statuses = world
        .writes
        .iter()
        .filter(|write| matches!(write.what, WriteKind::PutStatus { .. }))
        .count();
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.phase(&key), "Running AllBound 8/8");
    assert_eq!(statuses, 3, "waiting, planned, running");
}

#[test]
fn pods_that_were_never_refused_are_not_woken() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 4, gpus(1))], Hold::Free);
    world.settle();
    assert_eq!(world.bound(&key), 4);
    let woken = world
        .writes
        .iter()
        .any(|write| matches!(write.what, WriteKind::WakePod { .. }));
    assert!(!woken);
}

#[test]
fn member_that_ended_early_does_not_shield_a_gang_that_never_ran_whole() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 3, gpus(8))], Hold::Held);
    world.fail = Some(Box::new(|write| match &write.what {
        WriteKind::Bind { pod, .. } if pod.name.ends_with("-2") => {
            Some(WriteOutcome::Refused(Arc::from("quota")))
        }
        _ => None,
    }));
    for _ in 0..20 {
        world.step();
    }
    assert_eq!(world.bound(&key), 2);
    let early = world.member("train-Worker-1");
    world.change_pod(&early, |pod| pod.phase = PodPhase::Succeeded);
    for _ in 0..50 {
        world.now = world.now + Millis::from_secs(1);
        world.report_all();
        for _ in 0..4 {
            world.step();
        }
    }
    let released = world
        .announced
        .iter()
        .any(|said| said.starts_with("ReleasedWhole"));
    assert!(released, "{:?}", world.announced);
}

/// A world in which only the first member of a gang gets its Binding through.
fn bind_only_the_first(world: &mut World) {
    world.fail = Some(Box::new(|write| match &write.what {
        WriteKind::Bind { pod, .. } if !pod.name.ends_with("-0") => {
            Some(WriteOutcome::Refused(Arc::from("quota")))
        }
        _ => None,
    }));
    for _ in 0..30 {
        world.step();
    }
}

/// Starts again without the Gang object, on nodes that take nobody any more.
fn lose_the_plan(world: &mut World, key: &GangKey) {
    for name in world.nodes.keys().cloned().collect::<Vec<_>>() {
        world.change_node(&name, |node| node.unschedulable = true);
    }
    world.gangs.remove(key);
    world.fail = None;
    world.restart(2);
}

#[test]
fn twin_that_is_left_is_not_counted_for_both_after_a_restart() {
    let mut world = World::new(1, 8);
    let key = GangKey::labelled("default", "twins");
    for name in ["a", "b"] {
        let membership = Membership {
            gang: key.clone(),
            source: MembershipSource::Label {
                name: Arc::from("twins"),
                size: Ok(2),
            },
            role: Some("part".into()),
            index: Some(0),
        };
        let uid = world.pod(name, Some(membership), gpus(4));
        world.change_pod(&uid, |pod| pod.controlled = false);
    }
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let plan = world.gangs[&key].record.plan.clone().unwrap().unwrap();
    let first = plan.slots.iter().find(|slot| slot.index == 0).unwrap();
    world.delete_pod(first.pod.as_ref().unwrap());
    world.settle();
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
    world.restart(2);
    world.settle();
    assert!(
        world.phase(&key).starts_with("Repairing MembersLost 1/"),
        "{}",
        world.phase(&key)
    );
    world.pass(Millis::from_secs(31));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

#[test]
fn podgroup_without_a_minimum_is_not_left_bound_in_part() {
    let mut world = World::new(2, 8);
    let key = world.submit("group", &[], Hold::Free);
    world.edit(&key, |group| {
        group.kind = WorkloadKind::PodGroup;
        group.members = MemberSource::Pods;
    });
    for index in 0..3 {
        let membership = Membership {
            gang: key.clone(),
            source: MembershipSource::PodGroup {
                name: Arc::from("group"),
            },
            role: None,
            index: None,
        };
        world.pod(&format!("p-{index}"), Some(membership), gpus(4));
    }
    world.settle();
    world.now = world.now + Millis::from_secs(4);
    bind_only_the_first(&mut world);
    assert_eq!(world.bound(&key), 1);
    lose_the_plan(&mut world, &key);
    world.pass(Millis::from_secs(29));
    assert_eq!(world.bound(&key), 1);
    world.pass(Millis::from_secs(3));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

#[test]
fn gang_that_has_become_invalid_is_not_left_bound_in_part() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Free);
    bind_only_the_first(&mut world);
    assert_eq!(world.bound(&key), 1);
    world.edit(&key, |job| {
        job.invalid = Some(InvalidWorkload {
            field: Arc::from("spec"),
            value: Arc::from("x"),
            limit: Arc::from("y"),
        });
    });
    lose_the_plan(&mut world, &key);
    world.pass(Millis::from_secs(32));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

#[test]
fn member_that_ended_in_an_earlier_run_opens_no_barrier() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 3, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.bound(&key), 3);
    let ended = world.member("train-Worker-1");
    world.change_pod(&ended, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    // Held again; its controller has deleted two of its pods and comes to the third later.
    (world.operator, world.scheduler) = (false, false);
    for name in ["train-Worker-0", "train-Worker-2"] {
        let uid = world.member(name);
        world.delete_pod(&uid);
    }
    world.gangs.remove(&key);
    world.edit(&key, |job| {
        job.hold = Hold::Held;
        let MemberSource::Roles(roles) = &mut job.members else {
            return;
        };
        roles.iter_mut().for_each(|role| role.pinned = None);
    });
    world.restart(2);
    world.settle();
    world.delete_pod(&ended);
    world.operator = true;
    world.settle();
    let uid = world.member("train-Worker-0");
    let view = world.engine.view();
    let membership = world.pods[&uid].membership.clone();
    let muster_core::view::FilterAnswer::Only(node) = view.filter(&uid, membership.as_ref()) else {
        panic!("no node: {}", world.phase(&key));
    };
    world.bind(&uid, &node);
    world.settle();
    assert_eq!(world.bound(&key), 0, "two others have not been accepted");
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

#[test]
fn f06_podgroup_whose_minimum_is_raised_before_the_barrier_is_planned_anew() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("group", &[], Hold::Free);
    world.edit(&key, |group| {
        group.kind = WorkloadKind::PodGroup;
        group.members = MemberSource::Pods;
        group.minimum = Some(2);
    });
    let member = |world: &mut World, name: &str| {
        let membership = Membership {
            gang: key.clone(),
            source: MembershipSource::PodGroup {
                name: Arc::from("group"),
            },
            role: None,
            index: None,
        };
        world.pod(name, Some(membership), gpus(4));
    };
    member(&mut world, "a");
    member(&mut world, "b");
    world.settle();
    assert!(world.phase(&key).starts_with("Starting"));
    world.edit(&key, |group| group.minimum = Some(3));
    world.scheduler = true;
    world.settle();
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
    member(&mut world, "c");
    world.pass(Millis::from_secs(30));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

#[test]
fn new_plan_for_a_gang_bound_in_part_does_not_begin_its_deadline_anew() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Free);
    bind_only_the_first(&mut world);
    assert_eq!(world.bound(&key), 1);
    lose_the_plan(&mut world, &key);
    world.pass(Millis::from_secs(20));
    world.scheduler = false;
    for name in ["n0", "n1"] {
        world.change_node(name, |node| node.unschedulable = false);
    }
    world.pass(Millis::from_secs(8));
    assert_eq!(world.bound(&key), 1, "{}", world.phase(&key));
    world.pass(Millis::from_secs(3));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

/// The wait for agents is as long as the time for repair: the gang was released whole instead of completed.
#[test]
fn gang_bound_in_part_without_a_plan_is_completed_while_agents_are_awaited() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Free);
    bind_only_the_first(&mut world);
    assert_eq!(world.bound(&key), 1);
    world.gangs.remove(&key);
    world.fail = None;
    world.silent = true;
    world.restart(2);
    world.next_generation();
    for node in ["n0", "n1"] {
        let report = world.report_of(node).unwrap();
        world.engine.handle(Event::Report(report), world.now);
    }
    world.settle();
    world.pass(Millis::from_secs(5));
    assert_eq!(world.bound(&key), 2, "{}", world.phase(&key));
}

#[test]
fn pod_that_the_record_names_in_another_place_is_not_counted_twice_after_a_restart() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    // As a plan by free seats may have it: the pod of seat 1 sits in seat 0, whose own pod is gone.
    let record = &mut world.gangs.get_mut(&key).unwrap().record;
    let slots = &mut record.plan.as_mut().unwrap().as_mut().unwrap().slots;
    let gone = slots[0].pod.clone().unwrap();
    slots[0].pod = slots[1].pod.take();
    world.pods.remove(&gone);
    world.operator = false;
    world.restart(2);
    assert_eq!(world.bound(&key), 1);
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
}

#[test]
fn member_bound_behind_our_back_starts_the_time_for_repair() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let slot = world.gangs[&key]
        .record
        .plan
        .clone()
        .unwrap()
        .unwrap()
        .slots[0]
        .clone();
    let pod = world.pods.values().find(|pod| pod.name.ends_with("-0"));
    let uid = pod.unwrap().uid.clone();
    world.change_pod(&uid, |pod| pod.node = Some(slot.node));
    world.settle();
    assert_eq!(world.bound(&key), 1);
    world.pass(Millis::from_secs(31));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
}

#[test]
fn member_refused_before_it_was_first_seen_is_not_waited_for_until_the_barrier_ends() {
    let mut world = World::new(2, 8);
    (world.scheduler, world.operator) = (false, false);
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let planned = |world: &World| {
        let status = world.gangs[&key].status.as_ref();
        let plan = status.and_then(|status| status.plan.as_ref());
        plan.map(|plan| plan.slots[0].node.clone())
    };
    let first = planned(&world).expect("a plan");
    // Born and turned down within one batch of events.
    world.operator = true;
    assert!(world.play_operator());
    let uid = world.member("train-Worker-0");
    world.change_pod(&uid, |pod| {
        pod.unschedulable = Some(Arc::from(
            "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.",
        ));
    });
    world.pass(Millis::from_secs(7));
    let second = planned(&world);
    assert!(second.is_some_and(|node| node != first), "still {first}");
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
}

#[test]
fn podgroup_whose_pods_go_before_its_plan_is_written_holds_no_room() {
    let mut world = World::new(1, 8);
    let key = world.submit("group", &[], Hold::Free);
    world.edit(&key, |group| {
        group.kind = WorkloadKind::PodGroup;
        group.members = MemberSource::Pods;
        group.minimum = Some(1);
    });
    world.fail = Some(Box::new(|write| {
        matches!(write.what, WriteKind::CreateRecord { .. })
            .then(|| WriteOutcome::Unknown(Arc::from("no answer")))
    }));
    let membership = Membership {
        gang: key.clone(),
        source: MembershipSource::PodGroup {
            name: Arc::from("group"),
        },
        role: None,
        index: None,
    };
    let uid = world.pod("a", Some(membership), gpus(8));
    world.settle();
    world.delete_pod(&uid);
    world.pass(Millis::from_secs(120));
    let other = world.submit("other", &[("Worker", 1, gpus(8))], Hold::Held);
    world.fail = None;
    world.settle();
    assert_eq!(world.bound(&other), 1, "{}", world.reason(&other));
}

/// Whether a job of eight GPUs, a whole node, is bound within two seconds.
fn is_planned(world: &mut World, name: &str) -> bool {
    let key = world.submit(name, &[("Worker", 1, gpus(8))], Hold::Held);
    world.pass(Millis::from_secs(2));
    world.bound(&key) > 0
}

#[test]
fn node_made_again_under_its_name_is_not_planned_on_what_the_one_before_reported() {
    let mut world = World::new(1, 8);
    world.silent = true;
    world.change_node("n0", |node| node.uid = Arc::from("another"));
    assert!(!is_planned(&mut world, "train"));
    world.silent = false;
    world.report_all();
    world.pass(Millis::from_secs(2));
    assert_eq!(
        world.pods.values().filter(|pod| pod.node.is_some()).count(),
        1
    );
}

#[test]
fn node_that_has_booted_again_is_not_planned_on_what_was_reported_before() {
    let mut world = World::new(1, 8);
    world.change_node("n0", |node| node.boot_id = Some(Arc::from("next boot")));
    assert!(
        !is_planned(&mut world, "train"),
        "the agent is of the last boot"
    );
    world.change_node("n0", |node| node.boot_id = None);
    world.pass(Millis::from_secs(2));
    assert_eq!(
        world.pods.values().filter(|pod| pod.node.is_some()).count(),
        1
    );
}
