//! Gangs that ask something of the network's topology, from annotation to bound pods and through
//! repair.

#[allow(dead_code)]
use std::sync::Arc;

use crate::world::{GPU, World, gpus};
use muster_core::event::Event;
use muster_core::ids::GangKey;
use muster_core::time::Millis;
use muster_core::topology::{Level, Source};
use muster_core::workload::{Hold, MemberSource};

/// Two blocks of two racks of two nodes with 8 GPUs.
fn racks() -> World {
    let mut world = World::new(8, 8);
    let level = |name: &str| Level {
        name: Arc::from(name),
        source: Source::Label(Arc::from(format!("net/{name}"))),
    };
    world.config.topology = vec![level("block"), level("rack")];
    world.restart(2);
    for at in 0..8 {
        world.change_node(&format!("n{at}"), |node| {
            let mut set = |key: &str, value: String| {
                node.labels.insert(Arc::from(key), Arc::from(value));
            };
            set("net/block", format!("b{}", at / 4));
            set("net/rack", format!("r{}", at / 2 % 2));
        });
    }
    world.settle();
    world
}

fn ask(world: &mut World, key: &GangKey, settings: &[(&str, &str)]) {
    world.edit(key, |job| {
        for (name, value) in settings {
            let name = Arc::from(format!("muster.dev/{name}"));
            job.settings.insert(name, Arc::from(*value));
        }
    });
}

/// Nodes of the gang's members, in order of name of the pods.
fn nodes(world: &World, key: &GangKey) -> Vec<String> {
    let of_it = world
        .pods
        .values()
        .filter(|pod| pod.membership.as_ref().is_some_and(|m| m.gang == *key));
    let mut nodes: Vec<_> = of_it
        .map(|pod| (pod.name.clone(), pod.node.clone().unwrap().to_string()))
        .collect();
    nodes.sort();
    nodes.into_iter().map(|(_, node)| node).collect()
}

/// A job that is annotated before anything is planned for it.
fn submit(world: &mut World, name: &str, workers: u32, settings: &[(&str, &str)]) -> GangKey {
    let key = world.submit(name, &[("Worker", workers, gpus(8))], Hold::SuspendedByUser);
    ask(world, &key, settings);
    world.edit(&key, |job| job.hold = Hold::Held);
    world.settle();
    key
}

#[test]
fn job_that_requires_a_rack_runs_in_one_and_a_lost_member_comes_back_into_it() {
    let mut world = racks();
    let key = submit(&mut world, "train", 2, &[("required-topology", "rack")]);
    assert_eq!(nodes(&world, &key), ["n0", "n1"]);
    let lost = world.member("train-Worker-1");
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(10));
    assert_eq!(nodes(&world, &key), ["n0", "n1"]);
}

#[test]
fn level_may_be_named_by_its_label() {
    let mut world = racks();
    let key = submit(
        &mut world,
        "train",
        4,
        &[("preferred-topology", "net/block")],
    );
    assert_eq!(nodes(&world, &key), ["n0", "n1", "n2", "n3"]);
}

#[test]
fn job_that_finds_no_rack_waits_and_says_so_until_one_is_free() {
    let mut world = racks();
    let thieves: Vec<GangKey> = (0..4)
        .map(|at| submit(&mut world, &format!("thief{at}"), 1, &[]))
        .collect();
    // One of each rack is taken, by hand.
    assert_eq!(thieves.len(), 4);
    for at in [2, 4, 6] {
        world.change_node(&format!("n{at}"), |node| node.unschedulable = true);
    }
    for key in &thieves[..2] {
        world.edit(key, |job| job.hold = Hold::SuspendedByUser);
    }
    world.settle();
    let key = submit(&mut world, "train", 2, &[("required-topology", "rack")]);
    let said = format!("{}: {}", world.phase(&key), world.reason(&key));
    assert_eq!(world.phase(&key), "Running AllBound 2/2", "{said}");
    let other = submit(&mut world, "other", 2, &[("required-topology", "rack")]);
    let said = format!("{}: {}", world.phase(&other), world.reason(&other));
    assert!(
        said.starts_with("Waiting TopologyNotMet 0/2: needs room for 2 Worker in one rack; of 4 the best, b1/r0, has room for 1."),
        "{said}"
    );
    world.change_node("n4", |node| node.unschedulable = false);
    world.settle();
    assert_eq!(nodes(&world, &other), ["n4", "n5"]);
}

#[test]
fn member_whose_rack_has_no_room_left_takes_its_gang_to_another_one() {
    let mut world = racks();
    let key = submit(&mut world, "train", 2, &[("required-topology", "rack")]);
    assert_eq!(nodes(&world, &key), ["n0", "n1"]);
    world.change_node("n1", |node| node.unschedulable = true);
    let lost = world.member("train-Worker-1");
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(29));
    assert_eq!(world.phase(&key), "Repairing MembersLost 1/2");
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    assert_eq!(nodes(&world, &key), ["n2", "n3"]);
}

#[test]
fn segments_of_a_job_keep_to_their_racks_through_a_loss() {
    let mut world = racks();
    let settings = [("segment-size", "2"), ("segment-topology", "rack")];
    let key = submit(&mut world, "train", 4, &settings);
    assert_eq!(nodes(&world, &key), ["n0", "n1", "n2", "n3"]);
    for name in ["train-Worker-1", "train-Worker-2"] {
        let lost = world.member(name);
        world.delete_pod(&lost);
    }
    world.pass(Millis::from_secs(10));
    assert_eq!(nodes(&world, &key), ["n0", "n1", "n2", "n3"]);
    world.restart(3);
    world.pass(Millis::from_secs(10));
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
}

#[test]
fn what_cannot_be_read_is_said_and_held_against_nobody_who_runs() {
    let mut world = racks();
    let wrong = submit(&mut world, "wrong", 2, &[("required-topology", "shelf")]);
    let said = format!("{}: {}", world.phase(&wrong), world.reason(&wrong));
    assert_eq!(
        said,
        "Waiting InvalidWorkload 0/2: metadata.annotations[muster.dev/required-topology] is shelf: must be a level of \
         the scheduler's configuration (topology.levels): block, rack"
    );
    ask(&mut world, &wrong, &[("required-topology", "rack")]);
    world.settle();
    assert_eq!(nodes(&world, &wrong), ["n0", "n1"]);
    let half = submit(&mut world, "half", 2, &[("segment-size", "2")]);
    let said = world.reason(&half);
    assert!(
        said.contains("[muster.dev/segment-topology] is missing"),
        "{said}"
    );
    ask(&mut world, &wrong, &[("required-topology", "shelf")]);
    let lost = world.member("wrong-Worker-1");
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&wrong), "Running AllBound 2/2");
}

#[test]
fn labelled_pods_ask_by_their_own_annotations() {
    let mut world = racks();
    world.change_node("n0", |node| node.unschedulable = true);
    let uids = ["a", "b"].map(|name| world.labelled(name, "pair", 2, 8, true));
    for uid in &uids {
        world.change_pod(uid, |pod| {
            let name = Arc::from("muster.dev/required-topology");
            pod.settings.insert(name, Arc::from("rack"));
        });
    }
    world.settle();
    let key = GangKey::labelled("default", "pair");
    assert_eq!(nodes(&world, &key), ["n2", "n3"]);
}

/// The agents report in which NVLink fabric their GPUs are: nobody has to label the nodes.
#[test]
fn nvlink_domain_is_known_from_the_agents() {
    let mut world = World::new(6, 4);
    world.config.topology = vec![Level {
        name: Arc::from("nvlink"),
        source: Source::FabricClique,
    }];
    for at in [0, 2, 4, 5] {
        let clique = Arc::from(if at < 4 { "c1.0" } else { "c2.0" });
        world.cliques.insert(format!("n{at}"), clique);
    }
    world.restart(2);
    let key = world.submit("train", &[("Worker", 2, gpus(4))], Hold::SuspendedByUser);
    ask(&mut world, &key, &[("required-topology", "nvlink")]);
    world.edit(&key, |job| job.hold = Hold::Held);
    world.settle();
    assert_eq!(nodes(&world, &key), ["n0", "n2"]);
    let wide = world.submit("wide", &[("Worker", 3, gpus(4))], Hold::SuspendedByUser);
    ask(&mut world, &wide, &[("required-topology", "nvlink")]);
    world.edit(&wide, |job| job.hold = Hold::Held);
    world.settle();
    let said = format!("{}: {}", world.phase(&wide), world.reason(&wide));
    assert!(
        said.starts_with("Waiting TopologyNotMet 0/3: needs room for 3 Worker in one nvlink; of 2 the best, c2.0, has room for 2"),
        "{said}"
    );
}

/// The agents of a rack that is wired up while a gang waits report another fabric, and nothing else.
#[test]
fn gang_that_waits_for_an_nvlink_domain_hears_of_one_that_has_grown() {
    let mut world = World::new(2, 4);
    world.config.topology = vec![Level {
        name: Arc::from("nvlink"),
        source: Source::FabricClique,
    }];
    world.cliques.insert("n0".into(), Arc::from("c1.0"));
    world.restart(2);
    let key = world.submit("train", &[("Worker", 2, gpus(4))], Hold::SuspendedByUser);
    ask(&mut world, &key, &[("required-topology", "nvlink")]);
    world.edit(&key, |job| job.hold = Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Waiting TopologyNotMet 0/2");
    world.cliques.insert("n1".into(), Arc::from("c1.0"));
    world.next_generation();
    world.report_all();
    world.settle();
    assert_eq!(nodes(&world, &key), ["n0", "n1"]);
}

/// The rack of a segment dies. One member that came alone into another rack would keep the rest of its
/// segment from the third, which has room for all.
#[test]
fn segment_that_has_lost_all_its_members_comes_back_as_a_whole() {
    let mut world = racks();
    for at in 6..8 {
        world.change_node(&format!("n{at}"), |node| node.unschedulable = true);
    }
    let settings = [("segment-size", "2"), ("segment-topology", "rack")];
    let thief = submit(&mut world, "thief", 1, &[]);
    assert_eq!(nodes(&world, &thief), ["n0"]);
    let key = submit(&mut world, "train", 4, &settings);
    assert_eq!(nodes(&world, &key), ["n2", "n3", "n4", "n5"]);
    world.change_node("n6", |node| node.unschedulable = false);
    world.change_node("n7", |node| node.unschedulable = false);
    for at in [2, 3] {
        world.change_node(&format!("n{at}"), |node| node.ready = false);
    }
    for name in ["train-Worker-0", "train-Worker-1"] {
        let lost = world.member(name);
        world.delete_pod(&lost);
    }
    world.pass(Millis::from_secs(20));
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    assert_eq!(nodes(&world, &key), ["n6", "n7", "n4", "n5"]);
}

/// Its user gives the wish up: nothing else has changed.
#[test]
fn gang_is_tried_again_when_it_asks_for_less() {
    let mut world = racks();
    let key = submit(&mut world, "train", 3, &[("required-topology", "rack")]);
    assert_eq!(world.phase(&key), "Waiting TopologyNotMet 0/3");
    world.edit(&key, |job| job.settings.clear());
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    let uids = ["a", "b", "c"].map(|name| world.labelled(name, "trio", 3, 8, true));
    let ask = |world: &mut World, level: &str| {
        let level = Arc::from(level);
        for uid in &uids {
            world.change_pod(uid, |pod| {
                let name = Arc::from("muster.dev/required-topology");
                pod.settings.insert(name, Arc::clone(&level));
            });
        }
    };
    ask(&mut world, "rack");
    let group = GangKey::labelled("default", "trio");
    world.settle();
    assert_eq!(world.phase(&group), "Waiting TopologyNotMet 0/3");
    ask(&mut world, "block");
    world.settle();
    assert_eq!(world.phase(&group), "Running AllBound 3/3");
}

/// Master and workers of one shape are counted through, whoever says who they are.
#[test]
fn segments_of_labelled_pods_count_through_their_roles() {
    let mut world = racks();
    for at in 4..8 {
        world.change_node(&format!("n{at}"), |node| node.unschedulable = true);
    }
    let uids = ["a", "b", "c", "d"].map(|name| world.labelled(name, "four", 4, 8, true));
    for (at, uid) in uids.iter().enumerate() {
        world.change_pod(uid, |pod| {
            for (name, value) in [("segment-size", "2"), ("segment-topology", "rack")] {
                let name = Arc::from(format!("muster.dev/{name}"));
                pod.settings.insert(name, Arc::from(value));
            }
            let member = pod.membership.as_mut().unwrap();
            let (role, index) = if at == 0 {
                ("master", 0)
            } else {
                ("worker", at - 1)
            };
            member.role = Some(role.into());
            member.index = Some(index as u32);
        });
    }
    world.settle();
    let key = GangKey::labelled("default", "four");
    assert_eq!(
        world.phase(&key),
        "Running AllBound 4/4",
        "{}",
        world.reason(&key)
    );
    assert_eq!(nodes(&world, &key), ["n0", "n1", "n2", "n3"]);
}

/// What a job had taken could not be found again to be given back: its topology was gone, or its size was another.
#[test]
fn f27_job_whose_racks_and_size_have_changed_gives_all_its_room_back() {
    let mut world = racks();
    let key = submit(&mut world, "train", 2, &[("required-topology", "rack")]);
    assert_eq!(world.bound(&key), 2);
    let relabel = |world: &mut World, with: bool| {
        for at in 0..8 {
            world.change_node(&format!("n{at}"), |node| {
                node.labels.retain(|key, _| !key.starts_with("net/"));
                if with {
                    let rack = Arc::from(format!("other-{}", at % 4));
                    node.labels.insert(Arc::from("net/rack"), rack);
                }
            });
        }
        world.settle();
    };
    let resize = |world: &mut World, count: u32| {
        world.edit(&key, |job| {
            let MemberSource::Roles(roles) = &mut job.members else {
                panic!("roles");
            };
            roles[0].count = count;
        });
        world.settle();
    };
    relabel(&mut world, false);
    resize(&mut world, 4);
    world.pass(Millis::from_secs(20));
    relabel(&mut world, true);
    resize(&mut world, 1);
    world.pass(Millis::from_secs(20));
    resize(&mut world, 3);
    relabel(&mut world, false);
    world.pass(Millis::from_secs(120));
    world.assert_not_overcommitted();
    world.jobs.remove(&key);
    world.tell(Event::WorkloadRemoved(key.clone()));
    for uid in world.pods.keys().cloned().collect::<Vec<_>>() {
        world.delete_pod(&uid);
    }
    world.settle();
    let view = world.engine.view();
    let free = view.free.values().map(|free| free.extended(GPU));
    assert_eq!(free.collect::<Vec<_>>(), [8; 8]);
    let probe = submit(&mut world, "probe", 8, &[]);
    assert_eq!(world.phase(&probe), "Running AllBound 8/8");
}
