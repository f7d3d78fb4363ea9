//! Rules between members, through the whole engine: at the start, for a replacement, for pods without
//! a job.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::world::{World, shape};
use muster_core::event::Event;
use muster_core::ids::{GangKey, NodeName};
use muster_core::interpod::{HOSTNAME, InterPodKind, InterPodRule, Spread};
use muster_core::node::{Requirement, SelectorOperator, Taint, TaintEffect};
use muster_core::pod::PodShape;
use muster_core::workload::Hold;

/// One GPU, and no other pod of the gang on the node.
fn apart() -> Arc<PodShape> {
    let mut shape = shape(1);
    shape.between_pods.insert(InterPodRule {
        kind: InterPodKind::AntiAffinity,
        topology: HOSTNAME.into(),
        selector: [Requirement {
            key: "app".into(),
            operator: SelectorOperator::In(["gang".into()].into()),
        }]
        .into(),
    });
    Arc::new(shape)
}

fn nodes(world: &World) -> Vec<NodeName> {
    let pods = world.pods.values();
    pods.filter_map(|pod| pod.node.clone()).collect()
}

#[test]
fn gang_with_one_worker_per_host_runs_whole_on_as_many_hosts() {
    let mut world = World::new(4, 8);
    let key = world.submit("train", &[("Worker", 4, apart())], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    let distinct: BTreeSet<NodeName> = nodes(&world).into_iter().collect();
    assert_eq!(distinct.len(), 4);
}

#[test]
fn gang_with_more_workers_than_hosts_waits_and_says_why() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 4, apart())], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Waiting AntiAffinityNotMet 0/4");
    assert!(
        world.reason(&key).contains("found room for 3"),
        "{}",
        world.reason(&key)
    );
    world.add_node("n9", 8);
    world.change_node("n9", |_| ());
    world.report_all();
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
}

#[test]
fn replacement_of_one_worker_keeps_off_the_hosts_of_the_others() {
    let mut world = World::new(4, 8);
    let key = world.submit("train", &[("Worker", 3, apart())], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    let lost = world.member("train-Worker-1");
    let node = world.pods[&lost].node.clone().unwrap();
    let stay: BTreeSet<NodeName> = nodes(&world).into_iter().filter(|n| *n != node).collect();
    world.change_node(node.as_str(), |node| node.unschedulable = true);
    world.delete_pod(&lost);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    let anew = world.member("train-Worker-1");
    let there = world.pods[&anew].node.clone().unwrap();
    assert_ne!(there, node);
    assert!(!stay.contains(&there), "{there} has a worker already");
}

#[test]
fn pods_without_a_job_are_kept_apart_by_their_own_labels() {
    let mut world = World::new(2, 8);
    for name in ["a", "b"] {
        let uid = world.labelled(name, "group", 2, 1, true);
        world.change_pod(&uid, |pod| pod.shape = apart());
    }
    world.settle();
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let distinct: BTreeSet<NodeName> = nodes(&world).into_iter().collect();
    assert_eq!(distinct.len(), 2);
}

/// One GPU, and at most one member more in a zone than in the one with the fewest.
fn spread_over_zones() -> Arc<PodShape> {
    let mut shape = (*apart()).clone();
    let rule = shape.between_pods.pop_first().unwrap();
    shape.between_pods.insert(InterPodRule {
        kind: InterPodKind::Spread(Spread {
            skew_max: 1,
            domains_min: 1,
            ignores_affinity: false,
            honors_taints: false,
        }),
        topology: "zone".into(),
        ..rule
    });
    Arc::new(shape)
}

/// Two zones of one node each, of which the second is cordoned.
fn second_zone_is_cordoned() -> World {
    let mut world = World::new(2, 8);
    for (name, zone) in [("n0", "a"), ("n1", "b")] {
        world.change_node(name, |node| {
            node.labels.insert("zone".into(), zone.into());
            node.unschedulable = zone == "b";
        });
    }
    world
}

fn remove_node(world: &mut World, name: &str) {
    world.nodes.remove(name);
    world.tell(Event::NodeRemoved(name.into()));
    world.settle();
}

#[test]
fn spread_gang_that_waits_for_a_cordoned_zone_starts_when_the_zone_is_gone() {
    let mut world = second_zone_is_cordoned();
    let key = world.submit("train", &[("Worker", 3, spread_over_zones())], Hold::Held);
    world.settle();
    assert!(
        world.phase(&key).starts_with("Waiting"),
        "{}",
        world.phase(&key)
    );
    remove_node(&mut world, "n1");
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

#[test]
fn spread_pods_that_wait_for_a_cordoned_zone_start_when_the_zone_is_gone() {
    let mut world = second_zone_is_cordoned();
    for name in ["a", "b", "c"] {
        let uid = world.labelled(name, "group", 3, 1, true);
        world.change_pod(&uid, |pod| pod.shape = spread_over_zones());
    }
    world.settle();
    let key = GangKey::labelled("default", "group");
    assert!(
        world.phase(&key).starts_with("Waiting"),
        "{}",
        world.phase(&key)
    );
    remove_node(&mut world, "n1");
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

/// The taint that repeats a cordon keeps the zone out of a spread that honours taints, for as long as it
/// is there: whether the gang could ever fit is asked as if it had gone.
#[test]
fn spread_gang_that_honours_taints_and_waits_for_a_cordoned_zone_is_not_told_that_it_never_fits() {
    let mut world = second_zone_is_cordoned();
    world.change_node("n1", |node| {
        node.taints.push(Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            value: "".into(),
            effect: TaintEffect::NoSchedule,
        });
    });
    let mut shape = (*spread_over_zones()).clone();
    let rule = shape.between_pods.pop_first().unwrap();
    let InterPodKind::Spread(spread) = rule.kind else {
        panic!("a spread");
    };
    let spread = Spread {
        honors_taints: true,
        domains_min: 2,
        ..spread
    };
    shape.between_pods.insert(InterPodRule {
        kind: InterPodKind::Spread(spread),
        ..rule
    });
    let key = world.submit("train", &[("Worker", 2, Arc::new(shape))], Hold::Held);
    world.settle();
    let said = format!("{}: {}", world.phase(&key), world.reason(&key));
    assert!(said.starts_with("Waiting SpreadNotMet 0/2"), "{said}");
    assert!(!said.contains("when the cluster is empty"), "{said}");
    world.change_node("n1", |node| {
        node.unschedulable = false;
        node.taints.clear();
    });
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}
