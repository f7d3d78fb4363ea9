//! What a plan was made for is not so any more when its members are bound, or they are not bound at all: nothing of
//! it stays behind.

use std::sync::Arc;

use crate::world::{World, gpus, shape};
use muster_core::action::WriteKind;
use muster_core::event::{Event, Listing, WriteOutcome};
use muster_core::ids::{GangKey, NodeName};
use muster_core::node::{Taint, TaintEffect};
use muster_core::pod::{Membership, MembershipSource};
use muster_core::time::Millis;
use muster_core::workload::{Hold, MemberSource, Outcome, WorkloadKind};

fn free(world: &World) -> u64 {
    let view = world.engine.view();
    let nodes = view.free.values();
    nodes.map(|free| free.extended(crate::world::GPU)).sum()
}

fn planned(world: &World, key: &GangKey) -> Vec<NodeName> {
    let status = world.gangs[key].status.as_ref();
    let plan = status.and_then(|status| status.plan.as_ref());
    let slots = plan.into_iter().flat_map(|plan| &plan.slots);
    slots.map(|slot| slot.node.clone()).collect()
}

/// GPUs of a gang that was denied went on counting as used, and so did those of one that could not be bound.
#[test]
fn f19_gang_that_is_denied_or_cannot_be_bound_uses_nothing() {
    let mut world = World::new(10, 8);
    world.submit("first", &[("Worker", 6, gpus(8))], Hold::Held);
    let denied = world.submit("denied", &[("Worker", 6, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&denied), "Waiting NotEnoughFree 0/6");
    assert_eq!(free(&world), 32);
    // Somebody else takes all of what the denied one would have had.
    let third = world.submit("third", &[("Worker", 4, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&third), "Running AllBound 4/4");
    assert_eq!(free(&world), 0);
    world.edit(&third, |job| job.finished = Some(Outcome::Succeeded));
    world.settle();
    assert_eq!(free(&world), 32);
    // No Binding of the next one is taken.
    let unbound = world.submit("unbound", &[("Worker", 4, gpus(8))], Hold::Held);
    let key = unbound.clone();
    world.fail = Some(Box::new(move |write| {
        let is_bind = matches!(write.what, WriteKind::Bind { .. });
        (is_bind && write.gang == key).then(|| WriteOutcome::Refused(Arc::from("not here")))
    }));
    // As often as kube-scheduler tries.
    for _ in 0..60 {
        world.step();
    }
    let binds = world.writes.iter();
    let binds = binds.filter(|write| matches!(write.what, WriteKind::Bind { .. }));
    assert!(binds.filter(|write| write.gang == unbound).count() >= 4);
    assert_eq!(world.bound(&unbound), 0);
    world.remove([&unbound]);
    assert_eq!(free(&world), 32);
    let other = world.submit("other", &[("Worker", 4, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&other), "Running AllBound 4/4");
    assert_eq!(free(&world), 0);
    world.assert_not_overcommitted();
}

/// What was assumed of a Binding was never flushed, because the news that there is none was taken for an older one.
#[test]
fn f24_what_was_assumed_of_a_binding_that_never_was_is_free_once_its_pod_is_gone() {
    for is_listed in [false, true] {
        let mut world = World::new(1, 8);
        let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Free);
        world.fail = Some(Box::new(|write| {
            let is_bind = matches!(write.what, WriteKind::Bind { .. });
            is_bind.then(|| WriteOutcome::Unknown(Arc::from("no answer")))
        }));
        for _ in 0..12 {
            world.step();
        }
        let next = world.submit("next", &[("Worker", 1, gpus(8))], Hold::Held);
        world.step();
        assert_eq!(free(&world), 0, "it may be bound after all");
        world.operator = false;
        let uid = world.member("train-Worker-0");
        world.jobs.remove(&key);
        world.pods.remove(&uid);
        world.fail = None;
        if is_listed {
            // The watch was cut: only a list tells that it is gone.
            world.engine.handle(Event::PodRemoved(uid), world.now);
            world.engine.handle(Event::WorkloadRemoved(key), world.now);
            let listed = Event::Relisted(Listing::Pods);
            world.engine.handle(listed, world.now);
        } else {
            world.tell(Event::WorkloadRemoved(key));
            world.tell(Event::PodRemoved(uid));
        }
        world.operator = true;
        world.settle();
        assert_eq!(world.phase(&next), "Running AllBound 1/1");
        world.assert_not_overcommitted();
    }
}

/// A group was planned by the PodGroup that was seen first, though its pods were made for a larger one.
#[test]
fn f06_newer_pods_beside_an_older_podgroup_are_not_bound_once_the_newer_one_is_seen() {
    let mut world = World::new(1, 8);
    world.scheduler = false;
    let key = world.submit("group", &[], Hold::Free);
    world.edit(&key, |group| {
        group.kind = WorkloadKind::PodGroup;
        group.members = MemberSource::Pods;
        group.minimum = Some(2);
    });
    world.settle();
    // The group is made larger and gets its pods. Of that the pods are seen first.
    let version = world.version();
    let group = world.jobs.get_mut(&key).unwrap();
    group.minimum = Some(3);
    group.generation += 1;
    group.resource_version = version;
    let late = group.clone();
    for name in ["a", "b", "c"] {
        let source = MembershipSource::PodGroup {
            name: Arc::from("group"),
        };
        let membership = Membership {
            gang: key.clone(),
            source,
            role: None,
            index: None,
        };
        world.pod(name, Some(membership), gpus(4));
    }
    world.settle();
    assert!(
        world.phase(&key).starts_with("Starting"),
        "{}",
        world.phase(&key)
    );
    // Two of them have room, and are asked to be bound when the newer group comes.
    world.tell(Event::WorkloadApplied(late));
    world.scheduler = true;
    world.pass(Millis::from_secs(300));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
    assert!(
        world.phase(&key).starts_with("Waiting"),
        "{}",
        world.phase(&key)
    );
    assert_eq!(free(&world), 8);
}

/// Two nodes with the label that the gang asks for, one of which is planned, and one without.
fn planned_in_pool() -> (World, GangKey, NodeName) {
    let mut world = World::new(3, 8);
    for name in ["n0", "n1"] {
        world.change_node(name, |node| {
            node.labels.insert(Arc::from("pool"), Arc::from("a"));
        });
    }
    world.scheduler = false;
    let mut wants = shape(8);
    wants.node_selector = [(Arc::from("pool"), Arc::from("a"))].into();
    let roles = [("Worker", 1, Arc::new(wants))];
    let key = world.submit("train", &roles, Hold::Held);
    world.settle();
    let nodes = planned(&world, &key);
    assert_eq!(nodes.len(), 1, "{}", world.phase(&key));
    (world, key, nodes[0].clone())
}

#[test]
fn s7_place_1_node_that_matches_no_more_between_plan_and_bind_is_bound_to_by_nobody() {
    type Change = fn(&mut muster_core::node::Node);
    let changes: [(&str, Change); 4] = [
        ("another value", |node| {
            node.labels.insert(Arc::from("pool"), Arc::from("b"));
        }),
        ("no label", |node| {
            node.labels.remove("pool");
        }),
        ("a taint", |node| {
            node.taints.push(Taint {
                key: Arc::from("mending"),
                value: Arc::from(""),
                effect: TaintEffect::NoSchedule,
            });
        }),
        ("not ready", |node| node.ready = false),
    ];
    for (what, change) in changes {
        let (mut world, key, node) = planned_in_pool();
        world.change_node(node.as_str(), change);
        world.scheduler = true;
        world.pass(Millis::from_secs(30));
        assert_eq!(world.phase(&key), "Running AllBound 1/1", "{what}");
        let is_there = world
            .pods
            .values()
            .any(|pod| pod.node.as_ref() == Some(&node));
        assert!(!is_there, "{what}");
    }
}

#[test]
fn s7_place_1_selector_that_changes_between_plan_and_pod_is_followed() {
    let (mut world, key, node) = planned_in_pool();
    world.operator = false;
    let uid = world.member("train-Worker-0");
    world.pods.remove(&uid);
    world.tell(Event::PodRemoved(uid));
    world.change_node("n2", |node| {
        node.labels.insert(Arc::from("pool"), Arc::from("b"));
    });
    world.edit(&key, |job| {
        if let MemberSource::Roles(roles) = &mut job.members {
            let mut wants = shape(8);
            wants.node_selector = [(Arc::from("pool"), Arc::from("b"))].into();
            roles[0].shape = Arc::new(wants);
        }
    });
    (world.operator, world.scheduler) = (true, true);
    world.pass(Millis::from_secs(300));
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
    let on = world.pods.values().find_map(|pod| pod.node.clone());
    assert_eq!(on, Some(NodeName::from("n2")), "planned on {node}");
}
