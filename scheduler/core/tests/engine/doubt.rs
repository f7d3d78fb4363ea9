//! Answers that do not come, come late or say no: each test is a fault that was found, with what
//! must happen instead.

#[allow(dead_code)]
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::world::{GPU, World, gpus};
use muster_core::action::{Action, JobChange, Write, WriteKind};
use muster_core::event::{BindAsked, Event, Ticket, WriteOutcome};
use muster_core::ids::{Epoch, GangKey, PodUid, ResourceVersion};
use muster_core::pod::{BindRecord, Membership, MembershipSource, PodPhase};
use muster_core::record::{GangStatus, Phase};
use muster_core::time::Millis;
use muster_core::workload::{Hold, MemberSource};

fn lost() -> WriteOutcome {
    WriteOutcome::Unknown(Arc::from("no answer"))
}

fn free(world: &World, node: &str) -> u64 {
    world
        .engine
        .view()
        .free
        .get(node)
        .map_or(0, |free| free.extended(GPU))
}

/// A world in which the Binding of a free job's only worker is sent and not answered.
fn bind_in_doubt(world: &mut World) -> GangKey {
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Free);
    world.fail = Some(Box::new(|write| {
        matches!(write.what, WriteKind::Bind { .. }).then(lost)
    }));
    for _ in 0..12 {
        world.step();
        if matches!(
            world.writes.last().map(|write| &write.what),
            Some(WriteKind::Bind { .. })
        ) {
            break;
        }
    }
    world.scheduler = false;
    key
}

#[test]
fn f26_room_of_a_binding_in_doubt_is_not_given_away_with_the_plan() {
    let mut world = World::new(1, 8);
    let key = bind_in_doubt(&mut world);
    world.edit(&key, |job| job.hold = Hold::SuspendedByUser);
    world.operator = false;
    world.step();
    assert_eq!(free(&world, "n0"), 0, "the Binding may still apply");
    let uid = world.member("train-Worker-0");
    world.change_pod(&uid, |_| {});
    world.step();
    assert_eq!(
        free(&world, "n0"),
        8,
        "the pod has moved on: the Binding is void"
    );
}

#[test]
fn refused_status_gives_the_plan_back_and_does_not_spin() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    let refused = Rc::new(Cell::new(0));
    let count = Rc::clone(&refused);
    world.fail = Some(Box::new(move |write| {
        (matches!(write.what, WriteKind::PutStatus { .. }) && count.get() < 5).then(|| {
            count.set(count.get() + 1);
            WriteOutcome::Refused(Arc::from("etcdserver: request is too large"))
        })
    }));
    world.settle();
    assert_eq!(refused.get(), 1, "not tried again without a pause");
    assert_eq!(free(&world, "n0"), 8, "nothing is held for it meanwhile");
    world.pass(Millis::from_secs(400));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

#[test]
fn gang_object_that_cannot_be_made_does_not_spin() {
    let mut world = World::new(1, 8);
    world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.fail = Some(Box::new(|write| {
        matches!(write.what, WriteKind::CreateRecord { .. }).then(lost)
    }));
    world.settle();
    world.pass(Millis::from_secs(60));
    assert!(world.writes.len() < 20, "{} writes", world.writes.len());
}

#[test]
fn refused_release_of_one_pod_is_repeated() {
    let mut world = World::new(1, 8);
    world.labelled("a", "group", 2, 4, true);
    world.labelled("b", "group", 2, 4, true);
    let mut left = 2;
    world.fail = Some(Box::new(move |write| match &write.what {
        WriteKind::ReleasePod { pod, .. } if &*pod.name == "b" && left > 0 => {
            left -= 1;
            Some(WriteOutcome::Refused(Arc::from("quota")))
        }
        _ => None,
    }));
    world.settle();
    world.pass(Millis::from_secs(90));
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

#[test]
fn release_as_a_whole_that_fails_is_repeated_until_nothing_is_bound() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let worker = world.member("train-Worker-1");
    let node = world.pods[&worker].node.clone().unwrap();
    world.change_node(node.as_str(), |node| node.unschedulable = true);
    world.delete_pod(&worker);
    let mut left = 3;
    world.fail = Some(Box::new(move |write| match &write.what {
        WriteKind::ChangeJob {
            change: JobChange::Hold,
            ..
        } if left > 0 => {
            left -= 1;
            Some(lost())
        }
        _ => None,
    }));
    world.settle();
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 0);
}

#[test]
fn gang_found_bound_in_part_without_a_plan_is_released_in_time() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let worker = world.member("train-Worker-1");
    let node = world.pods[&worker].node.clone().unwrap();
    world.change_node(node.as_str(), |node| node.unschedulable = true);
    world.operator = false;
    world.delete_pod(&worker);
    world.gangs.remove(&key);
    world.restart(2);
    world.operator = true;
    assert_eq!(world.bound(&key), 1);
    world.pass(Millis::from_secs(31));
    assert_eq!(world.bound(&key), 0);
}

#[test]
fn lead_1_leadership_that_comes_back_finds_what_another_leader_has_promised() {
    let mut world = World::new(4, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    world.engine.handle(Event::LeadershipLost, world.now);
    world.step();
    // Another leader has moved the plan.
    let stored = world.gangs.get_mut(&key).unwrap();
    let Ok(Some(plan)) = &mut stored.record.plan else {
        panic!("no plan")
    };
    plan.epoch = Epoch(2);
    plan.id = "e2-1".into();
    plan.slots[0].node = "n3".into();
    stored.record.resource_version = "of another".into();
    let record = stored.record.clone();
    world.engine.handle(Event::RecordApplied(record), world.now);
    world.engine.handle(
        Event::LeadershipGained {
            epoch: Epoch(3),
            first: false,
        },
        world.now,
    );
    world.settle();
    assert_eq!(free(&world, "n3"), 0);
    assert_eq!(free(&world, "n0"), 8);
    world.scheduler = true;
    world.settle();
    let uid = world.member("train-Worker-0");
    assert_eq!(world.pods[&uid].node, Some("n3".into()));
}

#[test]
fn writes_that_nobody_has_fetched_are_taken_back_with_the_leadership() {
    let mut world = World::new(1, 8);
    world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.engine.decide(world.now);
    world.engine.handle(Event::LeadershipLost, world.now);
    world.engine.decide(world.now);
    while let Some(action) = world.engine.poll_action() {
        assert!(!matches!(action, Action::Write(_)), "{action:?}");
    }
}

#[test]
fn lead_1_stamp_that_is_lost_is_repeated_before_anything_is_planned() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    world.submit("train", &[("Worker", 1, gpus(8))], Hold::Free);
    world.settle();
    let mut left = 2;
    world.fail = Some(Box::new(move |write| {
        (matches!(write.what, WriteKind::StampPod { .. }) && left > 0).then(|| {
            left -= 1;
            lost()
        })
    }));
    world.restart(2);
    assert!(!world.engine.view().leading);
    world.pass(Millis::from_secs(5));
    assert!(world.engine.view().leading);
    assert!(world.pods.values().all(|pod| pod.stamp == Some(Epoch(2))));
}

#[test]
fn bind_that_waits_out_a_fence_does_not_call_the_engine_for_ever() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    world.submit("train", &[("Worker", 1, gpus(8))], Hold::Free);
    world.settle();
    world.engine.handle(Event::LeadershipLost, world.now);
    world.engine.handle(
        Event::LeadershipGained {
            epoch: Epoch(2),
            first: false,
        },
        world.now,
    );
    world.engine.decide(world.now);
    assert!(!world.engine.view().leading, "the stamp is on its way");
    let asked = BindAsked {
        ticket: Ticket(1),
        namespace: "default".into(),
        name: Arc::from("nobody"),
        pod: PodUid::from("nobody"),
        node: "n0".into(),
    };
    world.engine.handle(Event::BindAsked(asked), world.now);
    world.now = world.now + Millis::from_secs(20);
    world.engine.decide(world.now);
    let due = world.engine.next_deadline();
    assert!(due.is_none_or(|due| due > world.now), "{due:?}");
}

#[test]
fn plan_ids_go_on_from_those_that_were_seen_in_the_same_epoch() {
    let mut world = World::new(4, 8);
    let first = world.submit("first", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    world.restart(1);
    let second = world.submit("second", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let id = |key: &GangKey| {
        let record = &world.gangs[key].record;
        record.plan.clone().unwrap().unwrap().id
    };
    assert_ne!(id(&first), id(&second));
}

#[test]
fn plan_id_that_a_user_writes_on_a_pod_does_not_use_the_numbers_up() {
    let mut world = World::new(4, 8);
    for said in ["e1-18446744073709551615", "e1-18446744073709551614"] {
        let uid = world.pod("own", None, gpus(0));
        world.change_pod(&uid, |pod| {
            pod.node = Some("n3".into());
            pod.record = Some(BindRecord {
                plan: said.into(),
                epoch: Epoch(1),
                devices: Vec::new(),
            });
        });
    }
    world.settle();
    world.restart(1);
    let keys = ["first", "second"].map(|name| {
        let key = world.submit(name, &[("Worker", 1, gpus(8))], Hold::Held);
        world.settle();
        key
    });
    let id = |key: &GangKey| {
        let record = &world.gangs[key].record;
        record.plan.clone().unwrap().unwrap().id
    };
    assert_eq!(keys.each_ref().map(id), ["e1-1".into(), "e1-2".into()]);
}

#[test]
fn binding_is_not_taken_back_by_a_late_event() {
    let mut world = World::new(1, 8);
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let mut late = world.pods[&world.member("train-Worker-0")].clone();
    late.node = None;
    late.phase = PodPhase::Pending;
    world.engine.handle(Event::PodApplied(late), world.now);
    let thief = world.submit("thief", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!((world.bound(&key), world.bound(&thief)), (1, 0));
}

#[test]
fn heartbeat_after_a_silence_that_nobody_has_noticed_brings_the_node_back() {
    let mut world = World::new(1, 8);
    let order = world.report_of("n0").unwrap().order;
    world.now = world.now + Millis(29_900);
    world.engine.decide(world.now);
    world.now = world.now + Millis(300);
    world.change_node("n0", |node| {
        node.labels.insert(Arc::from("touched"), Arc::from(""));
    });
    world.engine.decide(world.now);
    assert_eq!(free(&world, "n0"), 0);
    let beat = Event::Heartbeat {
        node: "n0".into(),
        order,
        sampler_ok: true,
    };
    world.engine.handle(beat, world.now);
    world.engine.decide(world.now);
    assert_eq!(free(&world, "n0"), 8);
}

#[test]
fn two_pods_that_say_the_same_place_both_get_one() {
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
        world.pod(name, Some(membership), gpus(4));
    }
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

#[test]
fn labelled_gang_with_a_member_gone_is_not_taken_up_smaller_than_it_says() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    let uids: Vec<PodUid> = ["a", "b", "c"]
        .into_iter()
        .map(|name| world.labelled(name, "group", 3, 2, false))
        .collect();
    world.settle();
    world.delete_pod(&uids[2]);
    world.restart(2);
    world.scheduler = true;
    world.settle();
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
    assert_eq!(world.phase(&key), "Waiting MembersMissing 0/2");
}

#[test]
fn pods_born_before_an_edit_of_the_template_are_placed_by_their_own_shape() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Free);
    world.settle();
    world.edit(&key, |job| {
        let MemberSource::Roles(roles) = &mut job.members else {
            return;
        };
        roles[0].shape = gpus(4);
    });
    world.change_node("n0", |node| node.unschedulable = true);
    world.settle();
    world.change_node("n0", |node| node.unschedulable = false);
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    world.assert_not_overcommitted();
}

#[test]
fn refusals_of_pods_whose_job_is_not_known_have_one_text() {
    let mut world = World::new(1, 8);
    let gang = GangKey::new("default", "uid-of-a-job");
    let mut texts = std::collections::BTreeSet::new();
    for name in ["a", "b", "a2"] {
        let membership = Membership {
            gang: gang.clone(),
            source: MembershipSource::Job,
            role: Some("Worker".into()),
            index: None,
        };
        world.pod(name, Some(membership), gpus(1));
        world.settle();
        texts.insert(world.engine.view().gangs[&gang].refusal.clone());
    }
    assert_eq!(texts.len(), 1, "{texts:?}");
}

#[test]
fn label_that_is_taken_off_a_pod_leaves_nothing_behind() {
    let mut world = World::new(1, 8);
    let uid = world.labelled("a", "group", 2, 1, false);
    world.settle();
    world.change_pod(&uid, |pod| pod.membership = None);
    world.settle();
    world.delete_pod(&uid);
    world.settle();
    assert!(world.engine.view().gangs.is_empty());
}

#[test]
fn binds_of_one_batch_do_not_share_the_same_room() {
    let mut world = World::new(0, 0);
    world.add_node("cpu", 0);
    world.nodes.get_mut("cpu").unwrap().allocatable.milli_cpu = 1500;
    let node = world.nodes["cpu"].clone();
    world.tell(Event::NodeApplied(node));
    world.pod("a", None, gpus(0));
    world.pod("b", None, gpus(0));
    world.settle();
    let bound = world.pods.values().filter(|pod| pod.node.is_some());
    assert_eq!(bound.count(), 1);
}

#[test]
fn f52_bind_of_a_single_pod_is_answered_after_its_first_answer_was_lost() {
    let mut world = World::new(0, 0);
    world.add_node("cpu", 0);
    let node = world.nodes["cpu"].clone();
    world.tell(Event::NodeApplied(node));
    let uid = world.pod("a", None, gpus(0));
    world.lose = Some(lose_first_bind());
    world.settle();
    assert!(world.pods[&uid].node.is_some());
    assert!(world.held.is_empty());
    assert_eq!(binds(&world), 1, "it was bound, and is not bound again");
}

#[test]
fn f52_member_that_was_bound_though_the_answer_was_lost_is_bound_once_and_its_gang_runs() {
    for hold in [Hold::Free, Hold::Held] {
        let mut world = World::new(2, 8);
        let key = world.submit("train", &[("Worker", 2, gpus(8))], hold);
        world.lose = Some(lose_first_bind());
        world.settle();
        assert_eq!(world.phase(&key), "Running AllBound 2/2");
        assert!(world.held.is_empty());
        assert_eq!(binds(&world), 2, "each was bound once");
        world.pass(Millis::from_secs(60));
        assert_eq!(world.phase(&key), "Running AllBound 2/2");
    }
}

fn lose_first_bind() -> Box<dyn FnMut(&Write) -> bool> {
    let mut is_first = true;
    Box::new(move |write| {
        matches!(write.what, WriteKind::Bind { .. }) && std::mem::take(&mut is_first)
    })
}

fn binds(world: &World) -> usize {
    let writes = world.writes.iter();
    writes
        .filter(|write| matches!(write.what, WriteKind::Bind { .. }))
        .count()
}

#[test]
fn second_member_that_finds_no_place_does_not_hold_up_the_first() {
    let mut world = World::new(4, 8);
    let key = world.submit("train", &[("Worker", 4, gpus(8))], Hold::Held);
    world.settle();
    for index in [2, 3] {
        let uid = world.member(&format!("train-Worker-{index}"));
        world.change_pod(&uid, |pod| pod.phase = PodPhase::Failed);
        world.step();
        world.delete_pod(&uid);
    }
    world.add_node("n4", 8);
    let node = world.nodes["n4"].clone();
    world.tell(Event::NodeApplied(node));
    world.report_all();
    world.pass(Millis::from_secs(5));
    assert_eq!(world.bound(&key), 3, "{}", world.phase(&key));
    // The pods may have failed by themselves: after a while their nodes will do again.
    world.pass(Millis::from_secs(10));
    assert_eq!(world.bound(&key), 4, "{}", world.phase(&key));
}

#[test]
fn f40_held_pods_refused_while_a_plan_was_written_anew_are_woken() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    world.restart(2);
    for index in 0..2 {
        let uid = world.member(&format!("train-Worker-{index}"));
        world.change_pod(&uid, |pod| {
            pod.unschedulable = Some(Arc::from("0/2 nodes: muster: gang train waits"));
        });
    }
    world.settle();
    assert!(world.pods.keys().all(|uid| world.woken.contains_key(uid)));
    assert_eq!(world.gangs[&key].record.phase, Phase::Starting);
}

/// Its predecessor had been refused in the same words, and was woken from them. (This held before a place forgot them with its pod, too: a plan
/// with another member is written anew, and all that were refused meanwhile are woken when it is durable.)
#[test]
fn pod_that_is_refused_as_its_predecessor_was_is_woken_too() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let refused = |world: &mut World, uid: &PodUid| {
        world.change_pod(uid, |pod| {
            pod.unschedulable = Some(Arc::from("0/2 nodes: muster: gang pair waits"));
        });
    };
    for member in ["a", "b"] {
        let uid = world.labelled(member, "pair", 2, 8, false);
        refused(&mut world, &uid);
    }
    world.settle();
    assert!(world.pods.keys().all(|uid| world.woken.contains_key(uid)));
    let lost = world.member("b");
    world.delete_pod(&lost);
    world.settle();
    let next = world.labelled("c", "pair", 2, 8, false);
    refused(&mut world, &next);
    world.settle();
    assert!(world.woken.contains_key(&next));
}

/// While its predecessor still holds the room it is refused whatever wakes it, and once that is gone nobody woke it: its words were the same.
#[test]
fn pod_whose_predecessor_still_holds_the_room_is_woken_when_that_is_gone() {
    let mut world = World::new(1, 8);
    for member in ["a", "b"] {
        world.labelled(member, "pair", 2, 4, false);
    }
    world.settle();
    let key = GangKey::labelled("default", "pair");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let leaving = world.member("b");
    world.change_pod(&leaving, |pod| pod.terminating = true);
    world.scheduler = false;
    let next = world.labelled("c", "pair", 2, 4, false);
    world.change_pod(&next, |pod| {
        pod.unschedulable = Some(Arc::from("0/1 nodes: muster: gang pair waits"));
    });
    world.settle();
    assert!(!world.woken.contains_key(&next));
    world.delete_pod(&leaving);
    world.settle();
    assert!(world.woken.contains_key(&next));
}

#[test]
fn member_that_had_ended_and_is_made_again_runs_again() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let uid = world.member("train-Worker-1");
    world.change_pod(&uid, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    world.delete_pod(&uid);
    world.settle();
    world.pass(Millis::from_secs(10));
    assert_eq!(world.bound(&key), 2, "{}", world.phase(&key));
    assert_ne!(world.member("train-Worker-1"), uid);
}

/// The pod of a gang whose Binding is in doubt at this version, at which the watch has not shown it.
fn doubt_at(world: &mut World, cited: &str) -> PodUid {
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Free);
    let cited = ResourceVersion::from(cited);
    world.fail = Some(Box::new(move |write| {
        matches!(write.what, WriteKind::Bind { .. }).then(|| WriteOutcome::BindingUnknown {
            cited: cited.clone(),
            said: Arc::from("no answer"),
        })
    }));
    for _ in 0..12 {
        world.step();
        if matches!(
            world.writes.last().map(|write| &write.what),
            Some(WriteKind::Bind { .. })
        ) {
            break;
        }
    }
    (world.scheduler, world.operator) = (false, false);
    world.edit(&key, |job| job.hold = Hold::SuspendedByUser);
    world.step();
    world.member("train-Worker-0")
}

fn see_at(world: &mut World, uid: &PodUid, version: &str) {
    let mut pod = world.pods[uid].clone();
    pod.resource_version = version.into();
    world.engine.handle(Event::PodApplied(pod), world.now);
    world.engine.decide(world.now);
}

#[test]
fn binding_that_the_writer_sent_again_with_a_later_version_is_in_doubt_until_that_has_passed() {
    let mut world = World::new(1, 8);
    let uid = doubt_at(&mut world, "1000");
    assert_eq!(free(&world, "n0"), 0);
    see_at(&mut world, &uid, "999");
    assert_eq!(free(&world, "n0"), 0, "an event from before the last try");
    see_at(&mut world, &uid, "1000");
    assert_eq!(free(&world, "n0"), 0, "the version that it cites");
    see_at(&mut world, &uid, "1001");
    assert_eq!(free(&world, "n0"), 8, "void");
}

#[test]
fn answer_that_comes_after_the_pod_has_moved_on_ends_the_doubt_at_once() {
    let mut world = World::new(1, 8);
    doubt_at(&mut world, "1");
    assert_eq!(free(&world, "n0"), 8);
}

#[test]
fn second_binding_that_is_refused_says_nothing_about_the_first() {
    let mut world = World::new(1, 8);
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Free);
    let mut sent = 0;
    world.fail = Some(Box::new(move |write| {
        matches!(write.what, WriteKind::Bind { .. }).then(|| {
            sent += 1;
            match sent {
                1 => lost(),
                _ => WriteOutcome::Refused(Arc::from("quota")),
            }
        })
    }));
    for _ in 0..12 {
        world.step();
    }
    let binds = world
        .writes
        .iter()
        .filter(|write| matches!(write.what, WriteKind::Bind { .. }));
    assert!(binds.count() > 1);
    (world.scheduler, world.operator) = (false, false);
    world.edit(&key, |job| job.hold = Hold::SuspendedByUser);
    world.step();
    assert_eq!(free(&world, "n0"), 0, "the first may still apply");
}

#[test]
fn pod_that_was_not_seen_when_the_others_were_stamped_is_stamped_before_anything_is_planned() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    world.submit("train", &[("Worker", 1, gpus(8))], Hold::Free);
    world.settle();
    world.engine.handle(Event::LeadershipLost, world.now);
    world.engine.handle(
        Event::LeadershipGained {
            epoch: Epoch(2),
            first: false,
        },
        world.now,
    );
    let late = world.labelled("late", "group", 1, 1, false);
    world.settle();
    assert!(world.engine.view().leading);
    assert_eq!(world.pods[&late].stamp, Some(Epoch(2)));
    let stamped = |write: &muster_core::action::Write| match &write.what {
        WriteKind::StampPod { pod } => Some(pod.uid.clone()),
        _ => None,
    };
    let stamps: Vec<PodUid> = world.writes.iter().filter_map(stamped).collect();
    assert_eq!(stamps.len(), 2, "each once: {stamps:?}");
}

#[test]
fn pod_that_says_itself_that_it_is_stamped_is_stamped_all_the_same_and_once() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    let uids: Vec<PodUid> = [Some(2), Some(u64::MAX), None]
        .into_iter()
        .zip(["now", "later", "never"])
        .map(|(said, name)| {
            let uid = world.labelled(name, name, 1, 1, false);
            world.change_pod(&uid, |pod| pod.stamp = said.map(Epoch));
            uid
        })
        .collect();
    world.settle();
    world.restart(2);
    assert!(world.engine.view().leading);
    let stamps = world.writes.iter().filter_map(|write| match &write.what {
        WriteKind::StampPod { pod } => Some((pod.uid.clone(), write.epoch)),
        _ => None,
    });
    let mut stamps: Vec<_> = stamps.collect();
    stamps.sort();
    let mut each: Vec<_> = uids.into_iter().map(|uid| (uid, Epoch(2))).collect();
    each.sort();
    assert_eq!(stamps, each, "each once");
}

/// Seed 52010628: the Gang that had no plan was not written by a new leader, and the plan of the one before came late.
#[test]
fn plan_that_an_earlier_leader_sends_late_finds_its_gang_stamped() {
    let mut world = World::new(1, 8);
    let full = world.submit("full", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let waits = world.submit("waits", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    assert!(world.gangs[&waits].record.plan == Ok(None));
    // What a leader who has not seen the others' writes would send.
    let known = world.gangs[&waits].record.clone();
    let late = Write {
        id: muster_core::event::WriteId(u64::MAX),
        gang: waits.clone(),
        plan: None,
        epoch: Epoch(1),
        what: WriteKind::PutStatus {
            object: known.object,
            resource_version: known.resource_version,
            status: GangStatus::default(),
        },
    };
    world.writes.clear();
    world.restart(2);
    assert!(world.engine.view().leading);
    let stamped = |write: &Write| {
        let stamp = matches!(write.what, WriteKind::StampRecord { .. });
        stamp.then(|| (write.gang.clone(), write.epoch))
    };
    let stamps: BTreeMap<GangKey, Epoch> = world.writes.iter().filter_map(stamped).collect();
    let each = BTreeMap::from([(full, Epoch(2)), (waits, Epoch(2))]);
    assert_eq!(stamps, each);
    let count = world.writes.iter().filter_map(stamped).count();
    assert_eq!(count, 2, "each once");
    assert!(matches!(world.perform(late), WriteOutcome::Conflict(_)));
}

/// What counts is what the Gang says when it is stamped, not what it said when the new leader took the Lease.
#[test]
fn plan_that_is_written_until_the_stamp_is_taken_up() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let of = |world: &World| world.gangs[&key].record.plan.clone().unwrap().unwrap();
    let (before, node) = (of(&world), of(&world).slots[0].node.clone());
    let (other, moved) = match node.as_str() {
        "n0" => ("n1", "e1-99"),
        _ => ("n0", "e1-99"),
    };
    world.engine.handle(Event::LeadershipLost, world.now);
    // The leader of that time moves its member, and this replica's watch has not shown it yet.
    let uid = world.member("train-Worker-0");
    let version = world.version();
    let stored = world.gangs.get_mut(&key).unwrap();
    let mut plan = before;
    (plan.id, plan.slots[0].node) = (moved.into(), other.into());
    stored.record.plan = Ok(Some(plan));
    stored.record.resource_version = version;
    world.change_pod(&uid, |pod| pod.node = Some(other.into()));
    let (epoch, first) = (Epoch(2), false);
    let gained = Event::LeadershipGained { epoch, first };
    world.engine.handle(gained, world.now);
    world.settle();
    let after = of(&world);
    assert_eq!(after.id.as_str(), moved);
    assert_eq!(after.slots[0].node.as_str(), other);
    assert_eq!(
        (world.phase(&key).as_str(), world.bound(&key)),
        ("Running AllBound 1/1", 1)
    );
}

/// Objects of the Gangs that were stamped.
fn stamped_records(world: &World) -> Vec<(GangKey, Arc<str>)> {
    let uid = |write: &Write| match &write.what {
        WriteKind::StampRecord { uid, .. } => Some((write.gang.clone(), Arc::clone(uid))),
        _ => None,
    };
    world.writes.iter().filter_map(uid).collect()
}

#[test]
fn gang_that_may_run_again_is_stamped_though_its_object_says_that_it_has_ended() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    world.labelled("again", "group", 1, 1, false);
    world.submit("job", &[("Worker", 1, gpus(1))], Hold::Held);
    world.settle();
    let group = world.gangs.keys().find(|key| key.uid.contains("group"));
    let group = group.expect("the label's gang").clone();
    for stored in world.gangs.values_mut() {
        stored.record.phase = Phase::Succeeded;
    }
    world.writes.clear();
    world.restart(2);
    let stamped: Vec<GangKey> = stamped_records(&world).into_iter().map(|of| of.0).collect();
    assert_eq!(
        stamped,
        [group],
        "a job that has ended begins no second time"
    );
}

#[test]
fn gang_object_that_was_made_again_is_stamped_for_itself() {
    let mut world = World::new(1, 8);
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    world.engine.handle(Event::LeadershipLost, world.now);
    let version = world.version();
    let stored = world.gangs.get_mut(&key).unwrap();
    let before = Arc::clone(&stored.record.object_uid);
    stored.record.object_uid = Arc::from("made-again");
    stored.record.resource_version = version;
    world.writes.clear();
    let (epoch, first) = (Epoch(2), false);
    let gained = Event::LeadershipGained { epoch, first };
    world.engine.handle(gained, world.now);
    world.settle();
    let each = [(key.clone(), before), (key, Arc::from("made-again"))];
    assert_eq!(stamped_records(&world), each);
    assert!(world.engine.view().leading);
}

/// The stamp's answer is ahead of the watch, which then brings a plan that had been given back before the stamp.
#[test]
fn list_after_the_stamps_counts_though_its_versions_are_known() {
    let mut world = World::new(1, 8);
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let given_back = world.gangs[&key].record.clone();
    assert!(matches!(&given_back.plan, Ok(Some(_))));
    // A replica that has seen the Gang before all this.
    let mut before = given_back.clone();
    (before.plan, before.resource_version) = (Ok(None), world.version());
    world.engine = muster_core::engine::Engine::new(world.config.clone());
    world.gangs.get_mut(&key).unwrap().record = before;
    let pods: Vec<PodUid> = world.pods.keys().cloned().collect();
    for pod in pods {
        world.pods.remove(&pod);
    }
    world.jobs.get_mut(&key).unwrap().hold = Hold::SuspendedByUser;
    world.scheduler = false;
    world.watch.clear();
    for event in world.jobs.values().cloned().map(Event::WorkloadApplied) {
        world.engine.handle(event, world.now);
    }
    let known = world.gangs[&key].record.clone();
    world.engine.handle(Event::RecordApplied(known), world.now);
    let (epoch, first) = (Epoch(2), false);
    let gained = Event::LeadershipGained { epoch, first };
    world.engine.handle(gained, world.now);
    world.engine.handle(Event::Synced, world.now);
    world.engine.decide(world.now);
    let Some(Action::Write(stamp)) = world.engine.poll_action() else {
        panic!("the stamp");
    };
    let id = stamp.id;
    let outcome = world.perform(stamp);
    world.watch.clear();
    world
        .engine
        .handle(Event::WriteDone { id, outcome }, world.now);
    let late = Event::RecordApplied(given_back.clone());
    world.engine.handle(late, world.now);
    world.settle();
    assert!(world.engine.view().leading);
    assert_eq!(world.gangs[&key].record.plan, Ok(None));
    let put = |write: &&Write| match &write.what {
        WriteKind::PutStatus { status, .. } => status.plan.is_some(),
        _ => false,
    };
    let since = world.writes.iter().filter(|write| write.epoch == epoch);
    assert_eq!(
        since.filter(put).count(),
        0,
        "nothing was promised any more"
    );
}
