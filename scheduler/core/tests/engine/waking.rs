//! Who is tried again, and when: a gang that waits hears of everything that could give it a place, although room
//! that has not grown wakes nobody.

#[allow(dead_code)]
use std::sync::Arc;

use crate::world::{World, gpus, shape};
use muster_core::ids::GangKey;
use muster_core::node::{HostPort, TaintEffect, Toleration, TolerationOperator};
use muster_core::pod::{Membership, MembershipSource, PodPhase, PodShape};
use muster_core::workload::{Hold, MemberSource, Workload};

fn on_port(port: u16) -> Arc<PodShape> {
    let mut on_port = shape(1);
    on_port.host_ports.insert(HostPort {
        address: Arc::from("0.0.0.0"),
        protocol: Arc::from("TCP"),
        port,
    });
    Arc::new(on_port)
}

fn workers(job: &mut Workload, count: u32, shape: Arc<PodShape>) {
    let MemberSource::Roles(roles) = &mut job.members else {
        panic!("{} has no roles", job.name);
    };
    if let Some(role) = roles.first_mut() {
        (role.count, role.shape) = (count, shape);
    }
}

#[test]
fn pod_that_comes_between_plan_and_bindings_gets_its_place_once_the_others_are_bound() {
    let mut world = World::new(3, 1);
    world.scheduler = false;
    let gang = GangKey::labelled("default", "g");
    for name in ["a", "b"] {
        world.labelled(name, "g", 2, 1, false);
    }
    world.settle();
    world.labelled("c", "g", 2, 1, false);
    world.settle();
    assert_eq!(world.phase(&gang), "Starting Gathering 0/2");
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&gang), "Running AllBound 3/3");
}

#[test]
fn member_that_a_job_has_grown_by_gets_its_place_once_the_lost_one_is_back() {
    let mut world = World::new(4, 1);
    let cordon = |world: &mut World, is: bool| {
        for name in ["n2", "n3"] {
            world.change_node(name, |node| node.unschedulable = is);
        }
    };
    cordon(&mut world, true);
    let key = world.submit("train", &[("Worker", 2, gpus(1))], Hold::Free);
    world.edit(&key, |job| job.minimum = Some(2));
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let lost = world.member("train-Worker-1");
    world.change_pod(&lost, |pod| pod.phase = PodPhase::Failed);
    world.settle();
    world.edit(&key, |job| workers(job, 3, gpus(1)));
    world.settle();
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/3");
    // Room comes for both; the gang is made whole first.
    cordon(&mut world, false);
    world.delete_pod(&lost);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
}

#[test]
fn pod_that_is_made_again_smaller_is_planned_although_no_room_has_come() {
    let mut world = World::new(2, 1);
    let gang = GangKey::labelled("default", "g");
    world.labelled("a", "g", 2, 1, false);
    let large = world.labelled("b", "g", 2, 2, false);
    world.settle();
    assert_eq!(world.phase(&gang), "Waiting NeverFits 0/2");
    world.delete_pod(&large);
    world.labelled("b", "g", 2, 1, false);
    world.settle();
    assert_eq!(world.phase(&gang), "Running AllBound 2/2");
}

#[test]
fn pod_that_its_job_makes_again_from_the_edited_template_is_planned_although_no_room_has_come() {
    let mut world = World::new(1, 1);
    let key = world.submit("train", &[("Worker", 1, gpus(2))], Hold::Free);
    world.settle();
    world.edit(&key, |job| workers(job, 1, gpus(1)));
    world.settle();
    // The pod is still the one of before.
    assert_eq!(world.phase(&key), "Waiting NeverFits 0/1");
    let pod = world.member("train-Worker-0");
    world.delete_pod(&pod);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
}

#[test]
fn tolerations_that_the_api_server_gives_every_pod_make_no_member_another() {
    let mut world = World::new(1, 1);
    let key = world.submit("train", &[("Worker", 3, gpus(1))], Hold::Free);
    world.operator = false;
    world.settle();
    let first = world.reason(&key);
    assert!(first.contains("3 Worker"), "{first}");
    let mut born = shape(1);
    born.tolerations
        .extend(["not-ready", "unreachable"].map(|state| Toleration {
            key: Some(Arc::from(format!("node.kubernetes.io/{state}"))),
            operator: TolerationOperator::Exists,
            effect: Some(TaintEffect::NoExecute),
        }));
    let membership = Membership {
        gang: key.clone(),
        source: MembershipSource::Job,
        role: Some("Worker".into()),
        index: Some(0),
    };
    world.pod("train-Worker-0", Some(membership), Arc::new(born));
    world.settle();
    world.edit(&key, |job| job.generation += 1);
    world.settle();
    assert_eq!(world.reason(&key), first);
}

#[test]
fn gang_that_waits_for_a_port_of_the_node_starts_when_another_port_is_taken_for_it() {
    let mut world = World::new(1, 2);
    let holder =
        |world: &mut World, name: &str, port: u16| world.stranger(name, on_port(port), "n0");
    let first = holder(&mut world, "first", 80);
    world.settle();
    let key = world.submit("train", &[("Worker", 1, on_port(80))], Hold::Held);
    world.settle();
    assert_eq!(world.bound(&key), 0);
    // The watch brings both at once: as many ports are taken as before, and as much of the rest.
    world.delete_pod(&first);
    holder(&mut world, "second", 81);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
}
