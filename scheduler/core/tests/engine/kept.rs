//! QUE-1: a large gang is not starved by small ones. Nodes are kept for a gang that has waited for long, of which those
//! behind it get none.

#[allow(dead_code)]
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::world::{World, gpus, shape};
use muster_core::engine::KeptNodes;
use muster_core::event::Event;
use muster_core::ids::GangKey;
use muster_core::pod::PodShape;
use muster_core::time::Millis;
use muster_core::topology::{Level, Source};
use muster_core::workload::{Hold, MemberSource, Outcome};

/// The default of `queue.reserveAfter`.
const LIMIT: Millis = Millis::from_secs(600);

fn minutes(count: u64) -> Millis {
    Millis::from_secs(count * 60)
}

fn submit(world: &mut World, name: &str, count: u32, gpus_each: u64) -> GangKey {
    world.submit(name, &[("Worker", count, gpus(gpus_each))], Hold::Held)
}

/// The job has ended well, and with it its pods.
fn end(world: &mut World, key: &GangKey) {
    world.edit(key, |job| job.finished = Some(Outcome::Succeeded));
    world.settle();
}

fn kept(world: &World) -> (usize, usize) {
    let KeptNodes { gangs, nodes } = world.engine.kept_nodes();
    (gangs, nodes)
}

fn nodes_of(world: &World, key: &GangKey) -> BTreeSet<String> {
    let of_gang = |membership: &muster_core::pod::Membership| membership.gang == *key;
    let pods = world.pods.values();
    pods.filter(|pod| pod.membership.as_ref().is_some_and(of_gang))
        .filter_map(|pod| Some(pod.node.as_ref()?.as_str().to_owned()))
        .collect()
}

/// A shape for the nodes with this label only.
fn in_pool(pool: &str, gpus_each: u64) -> Arc<PodShape> {
    let mut shape = shape(gpus_each);
    let selector = (Arc::from("pool"), Arc::from(pool));
    shape.node_selector = [selector].into();
    Arc::new(shape)
}

/// A gang that wants all four nodes, and every two minutes one that wants half of one for twenty: more than there is.
/// Returns after how many minutes the large one runs, three hours at most.
fn minutes_until_large_runs(limit: Millis) -> Option<u64> {
    let mut world = World::new(4, 8);
    world.config.reserve_after = limit;
    world.restart(2);
    let mut small: Vec<(u64, GangKey)> = Vec::new();
    let mut come = |world: &mut World, minute: u64| {
        let over = small.iter().filter(|(since, _)| minute >= since + 20);
        let over: Vec<GangKey> = over.map(|(_, key)| key.clone()).collect();
        for key in &over {
            end(world, key);
        }
        small.retain(|(_, key)| !over.contains(key));
        // One that waits begins when it is placed.
        for (since, key) in &mut small {
            if world.bound(key) == 0 {
                *since = minute;
            }
        }
        let key = submit(world, &format!("small-{minute}"), 2, 2);
        small.push((minute, key));
    };
    for minute in (0..20).step_by(2) {
        come(&mut world, minute);
        world.pass(minutes(2));
    }
    let large = submit(&mut world, "large", 4, 8);
    for minute in (0..180).step_by(2) {
        come(&mut world, 20 + minute);
        world.pass(minutes(2));
        world.assert_not_overcommitted();
        if world.bound(&large) == 4 {
            return Some(minute);
        }
    }
    None
}

#[test]
fn t30_que_1_f38_l2_large_gang_is_placed_although_small_ones_come_without_end() {
    assert_eq!(minutes_until_large_runs(Millis(0)), None);
    // What runs when the limit has passed ends within 20 minutes.
    let minutes = minutes_until_large_runs(LIMIT);
    assert!(minutes.is_some_and(|m| m <= 10 + 20 + 2), "{minutes:?}");
}

#[test]
fn que_1_limit_that_passes_wakes_the_gang_although_nothing_else_happens() {
    let mut world = World::new(2, 8);
    let runs = submit(&mut world, "runs", 1, 8);
    let large = submit(&mut world, "large", 2, 8);
    let began = world.now;
    world.settle();
    assert_eq!(world.phase(&large), "Waiting NotEnoughFree 0/2");
    let created = world.jobs[&large].created_seconds;
    world.pass(minutes(9));
    assert_eq!(kept(&world), (0, 0));
    // Agents are heard, and nothing else happens.
    let due = world.engine.next_deadline_if_heard().unwrap();
    let newest = world.pods.values().map(|pod| pod.created_seconds).max();
    let passed = u64::try_from(newest.unwrap() - created).unwrap() * 1000;
    assert_eq!(due, began + LIMIT - Millis(passed));
    while world.now + Millis::from_secs(10) < due {
        world.now = world.now + Millis::from_secs(10);
        world.report_all();
        world.engine.decide(world.now);
        assert_eq!(kept(&world), (0, 0));
    }
    world.now = due;
    world.engine.decide(world.now);
    assert_eq!(kept(&world), (1, 2));
    world.settle();
    assert_eq!(world.phase(&large), "Waiting NodesKept 0/2");
    let reason = world.reason(&large);
    assert!(reason.starts_with("2 nodes are kept for it"), "{reason}");
    assert!(reason.contains("found room for 1"), "{reason}");
    let (writes, said) = (world.writes.len(), reason);
    world.pass(minutes(30));
    assert_eq!(
        world.writes.len(),
        writes,
        "a gang that waits costs nothing"
    );
    assert_eq!(world.reason(&large), said);
    end(&mut world, &runs);
    assert_eq!(world.phase(&large), "Running AllBound 2/2");
    assert_eq!(kept(&world), (0, 0));
}

#[test]
fn que_1_impossible_gang_keeps_nothing() {
    let mut world = World::new(3, 8);
    let runs = submit(&mut world, "runs", 1, 8);
    let never = submit(&mut world, "never", 4, 8);
    let wrong = submit(&mut world, "wrong", 1, 64);
    world.settle();
    // Pods that are no gang's are not known to end: beside them there is never room.
    let mut service = shape(0);
    service.requests.milli_cpu = 40_000;
    world.stranger("service", Arc::new(service), "n2");
    let mut wide = shape(8);
    wide.requests.milli_cpu = 60_000;
    let beside = world.submit("beside", &[("Worker", 3, Arc::new(wide))], Hold::Held);
    world.pass(minutes(30));
    assert_eq!(world.phase(&never), "Waiting NeverFits 0/4");
    assert_eq!(world.phase(&wrong), "Waiting NeverFits 0/1");
    assert_eq!(world.phase(&beside), "Waiting NotEnoughFree 0/3");
    assert_eq!(kept(&world), (0, 0));
    let small = submit(&mut world, "small", 2, 8);
    world.settle();
    assert_eq!(world.phase(&small), "Running AllBound 2/2");
    end(&mut world, &runs);
    assert_eq!(kept(&world), (0, 0));
}

/// Three nodes: one runs, one is free, and all are wanted by `large`, which has waited for long.
fn waits_for_long() -> (World, GangKey, GangKey) {
    let mut world = World::new(3, 8);
    let runs = submit(&mut world, "runs", 1, 8);
    let large = submit(&mut world, "large", 3, 8);
    world.pass(minutes(11));
    assert_eq!(kept(&world), (1, 3));
    (world, runs, large)
}

#[test]
fn que_1_s12_gang_behind_is_told_for_whom_nodes_are_kept_and_goes_on_when_they_are_let_go() {
    for edited in [false, true] {
        let (mut world, _, large) = waits_for_long();
        let small = submit(&mut world, "small", 1, 8);
        let huge = submit(&mut world, "huge", 4, 8);
        world.settle();
        assert_eq!(world.phase(&small), "Waiting NodesKeptForAnother 0/1");
        assert_eq!(
            world.reason(&small),
            "would fit on nodes that are kept for gang large in namespace default, which is before it in the \
             queue and has waited for long"
        );
        // What does not fit anyhow is told what is so without.
        assert_eq!(world.phase(&huge), "Waiting NeverFits 0/4");
        let view = world.engine.view();
        let refusal = view.gangs[&small].refusal.clone();
        assert_eq!(
            &*refusal,
            "muster: gang small waits (NodesKeptForAnother); see: kubectl describe gang small"
        );
        let writes = world.writes.len();
        world.pass(minutes(5));
        assert_eq!(world.writes.len(), writes);
        if edited {
            world.edit(&large, |job| {
                if let MemberSource::Roles(roles) = &mut job.members {
                    roles[0].count = 5;
                }
            });
        } else {
            world.jobs.remove(&large);
            world.tell(Event::WorkloadRemoved(large.clone()));
        }
        world.settle();
        assert_eq!(kept(&world), (0, 0));
        assert_eq!(world.phase(&small), "Running AllBound 1/1", "{edited}");
    }
}

#[test]
fn que_1_gang_that_is_suspended_keeps_nothing() {
    let (mut world, _, large) = waits_for_long();
    let small = submit(&mut world, "small", 1, 8);
    world.settle();
    world.edit(&large, |job| job.hold = Hold::SuspendedByUser);
    world.settle();
    assert_eq!(kept(&world), (0, 0));
    assert_eq!(world.phase(&small), "Running AllBound 1/1");
}

#[test]
fn que_1_gang_of_higher_priority_passes_the_one_that_nodes_are_kept_for() {
    let (mut world, runs, large) = waits_for_long();
    let small = submit(&mut world, "small", 1, 8);
    world.settle();
    assert_eq!(world.phase(&small), "Waiting NodesKeptForAnother 0/1");
    // It is raised while it waits: that alone wakes it.
    world.edit(&small, |job| job.priority = 10);
    world.settle();
    assert_eq!(world.phase(&small), "Running AllBound 1/1");
    assert_eq!(kept(&world), (1, 3));
    for key in [runs, small] {
        end(&mut world, &key);
    }
    assert_eq!(world.phase(&large), "Running AllBound 3/3");
}

#[test]
fn que_1_nodes_are_kept_for_the_first_in_the_queue() {
    let mut world = World::new(3, 8);
    let runs = submit(&mut world, "runs", 1, 8);
    let older = submit(&mut world, "older", 3, 8);
    let younger = submit(&mut world, "younger", 3, 8);
    world.pass(minutes(11));
    assert_eq!(kept(&world), (1, 3));
    assert_eq!(world.phase(&older), "Waiting NodesKept 0/3");
    assert_eq!(world.phase(&younger), "Waiting NotEnoughFree 0/3");
    // What goes before it by its priority takes the nodes from it.
    world.edit(&younger, |job| job.priority = 1);
    world.settle();
    assert_eq!(kept(&world), (1, 3));
    assert_eq!(world.phase(&younger), "Waiting NodesKept 0/3");
    assert_eq!(world.phase(&older), "Waiting NotEnoughFree 0/3");
    end(&mut world, &runs);
    assert_eq!(world.phase(&younger), "Running AllBound 3/3");
    assert_eq!(world.phase(&older), "Waiting NodesKept 0/3");
    end(&mut world, &younger);
    assert_eq!(world.phase(&older), "Running AllBound 3/3");
}

#[test]
fn que_1_member_that_is_lost_is_replaced_on_kept_nodes() {
    let (mut world, runs, large) = waits_for_long();
    let member = world.member("runs-Worker-0");
    let node = nodes_of(&world, &runs).pop_first().unwrap();
    world.change_node(&node, |node| node.unschedulable = true);
    world.delete_pod(&member);
    world.settle();
    assert_eq!(world.phase(&runs), "Running AllBound 1/1");
    assert!(!nodes_of(&world, &runs).contains(&node));
    assert_eq!(world.phase(&large), "Waiting NotEnoughFree 0/3");
}

#[test]
fn que_1_gang_in_one_pool_starves_none_in_another() {
    let mut world = World::new(6, 8);
    for (index, pool) in ["a", "a", "a", "b", "b", "b"].into_iter().enumerate() {
        world.change_node(&format!("n{index}"), |node| {
            node.labels.insert(Arc::from("pool"), Arc::from(pool));
        });
    }
    let wants = |world: &mut World, name: &str, pool: &str, count: u32| {
        let roles = [("Worker", count, in_pool(pool, 8))];
        world.submit(name, &roles, Hold::Held)
    };
    let runs = ["a", "b"].map(|pool| wants(&mut world, &format!("runs-{pool}"), pool, 1));
    let large = ["a", "b"].map(|pool| wants(&mut world, &format!("large-{pool}"), pool, 3));
    world.pass(minutes(12));
    assert_eq!(kept(&world), (2, 6));
    let small = ["a", "b"].map(|pool| wants(&mut world, &format!("small-{pool}"), pool, 1));
    world.settle();
    for key in &small {
        assert_eq!(world.phase(key), "Waiting NodesKeptForAnother 0/1");
    }
    assert!(world.reason(&small[1]).contains("gang large-b"));
    end(&mut world, &runs[1]);
    assert_eq!(world.phase(&large[1]), "Running AllBound 3/3");
    assert_eq!(kept(&world), (1, 3));
    assert_eq!(world.phase(&small[1]), "Waiting NotEnoughFree 0/1");
    end(&mut world, &runs[0]);
    assert_eq!(world.phase(&large[0]), "Running AllBound 3/3");
}

#[test]
fn que_1_another_leader_keeps_the_nodes_that_have_become_empty() {
    let mut world = World::new(6, 8);
    let runs: Vec<GangKey> = (0..6)
        .map(|index| submit(&mut world, &format!("runs-{index}"), 1, 8))
        .collect();
    let large = submit(&mut world, "large", 3, 8);
    world.pass(minutes(11));
    assert_eq!(kept(&world), (1, 3));
    // Those on two nodes end that are not the first by name.
    let mut empty = BTreeSet::new();
    for key in &runs[4..] {
        empty.extend(nodes_of(&world, key));
        end(&mut world, key);
    }
    world.restart(2);
    // Nothing is made that would tell the time, or that could pass it.
    assert_eq!(kept(&world), (0, 0));
    let small = submit(&mut world, "small", 1, 8);
    world.settle();
    assert_eq!(kept(&world), (1, 3));
    assert_eq!(world.phase(&large), "Waiting NodesKept 0/3");
    // Two of the three are the empty ones: nothing else is free.
    assert_eq!(world.phase(&small), "Waiting NodesKeptForAnother 0/1");
    let third = runs[..4].iter().find(|key| {
        end(&mut world, key);
        world.bound(&large) == 3
    });
    assert!(third.is_some());
    assert!(nodes_of(&world, &large).is_superset(&empty));
}

#[test]
fn que_1_node_that_is_lost_is_made_up_for_by_another_one() {
    let mut world = World::new(4, 8);
    let runs: Vec<GangKey> = (0..4)
        .map(|index| submit(&mut world, &format!("runs-{index}"), 1, 8))
        .collect();
    let large = submit(&mut world, "large", 2, 8);
    world.pass(minutes(11));
    assert_eq!(kept(&world), (1, 2));
    for cordoned in ["n0", "n1"] {
        world.change_node(cordoned, |node| node.unschedulable = true);
    }
    world.settle();
    assert_eq!(kept(&world), (1, 2));
    let on = |world: &World, node: &str| {
        let mut runs = runs.iter();
        let key = runs.find(|key| nodes_of(world, key).contains(node));
        key.unwrap().clone()
    };
    for node in ["n2", "n3"] {
        let key = on(&world, node);
        end(&mut world, &key);
    }
    assert_eq!(world.phase(&large), "Running AllBound 2/2");
    assert_eq!(kept(&world), (0, 0));
}

#[test]
fn que_1_gang_starts_as_soon_as_it_fits_anywhere() {
    let (mut world, _, large) = waits_for_long();
    world.add_node("n9", 8);
    let node = world.nodes["n9"].clone();
    world.tell(Event::NodeApplied(node));
    world.report_all();
    world.settle();
    assert_eq!(world.phase(&large), "Running AllBound 3/3");
    assert_eq!(kept(&world), (0, 0));
}

#[test]
fn que_1_of_an_elastic_gang_nodes_are_kept_for_its_minimum() {
    let mut world = World::new(4, 8);
    let runs: Vec<GangKey> = (0..4)
        .map(|index| submit(&mut world, &format!("runs-{index}"), 1, 8))
        .collect();
    let elastic = submit(&mut world, "elastic", 4, 8);
    world.edit(&elastic, |job| job.minimum = Some(2));
    world.pass(minutes(11));
    assert_eq!(kept(&world), (1, 2));
    for key in &runs[..2] {
        end(&mut world, key);
    }
    assert_eq!(world.phase(&elastic), "Running MinimumBound 2/4");
}

#[test]
fn que_1_at_most_eight_gangs_have_nodes_kept_and_the_next_in_the_queue_follows() {
    let mut world = World::new(20, 8);
    let runs: Vec<GangKey> = (0..20)
        .map(|index| submit(&mut world, &format!("runs-{index:02}"), 1, 8))
        .collect();
    let large: Vec<GangKey> = (0..10)
        .map(|index| submit(&mut world, &format!("large-{index}"), 2, 8))
        .collect();
    world.pass(minutes(12));
    assert_eq!(kept(&world), (8, 16));
    assert_eq!(world.phase(&large[7]), "Waiting NodesKept 0/2");
    assert_eq!(world.phase(&large[8]), "Waiting NotEnoughFree 0/2");
    for key in &runs {
        end(&mut world, key);
    }
    for key in &large {
        assert_eq!(world.phase(key), "Running AllBound 2/2");
    }
    assert_eq!(kept(&world), (0, 0));
}

#[test]
fn que_1_nodes_are_kept_by_what_the_gang_asks_of_the_network_where_least_has_to_end() {
    let mut world = World::new(6, 8);
    for (index, rack) in ["a", "a", "a", "b", "b", "b"].into_iter().enumerate() {
        world.change_node(&format!("n{index}"), |node| {
            node.labels.insert(Arc::from("rack"), Arc::from(rack));
        });
    }
    world.config.topology = vec![Level {
        name: Arc::from("rack"),
        source: Source::Label(Arc::from("rack")),
    }];
    world.restart(2);
    let on = |world: &mut World, node: &str, gpus_each: u64| {
        let mut shape = shape(gpus_each);
        let selector = (Arc::from("kubernetes.io/hostname"), Arc::from(node));
        shape.node_selector = [selector].into();
        let roles = [("Worker", 1, Arc::new(shape))];
        world.submit(&format!("on-{node}"), &roles, Hold::Held)
    };
    let runs = [("n0", 8), ("n1", 8), ("n5", 2)].map(|(node, each)| on(&mut world, node, each));
    let large = submit(&mut world, "large", 3, 8);
    world.edit(&large, |job| {
        let asked = ("muster.dev/required-topology", "rack");
        job.settings.insert(Arc::from(asked.0), Arc::from(asked.1));
    });
    world.pass(minutes(11));
    assert_eq!(world.phase(&large), "Waiting NodesKept 0/3");
    // Two GPUs have to end in rack b, sixteen in rack a.
    let small = submit(&mut world, "small", 1, 8);
    world.settle();
    assert_eq!(nodes_of(&world, &small), ["n2".to_owned()].into());
    end(&mut world, &runs[2]);
    assert_eq!(world.phase(&large), "Running AllBound 3/3");
    let rack = ["n3", "n4", "n5"].map(str::to_owned);
    assert_eq!(nodes_of(&world, &large), rack.into());
}

/// For how long nodes are kept in the tests about that.
const KEEP_FOR: Millis = Millis::from_secs(2 * 3600);

/// As [`waits_for_long`], but what runs on a kept node never ends, and nodes are kept for two hours.
fn waits_for_what_never_ends() -> (World, GangKey, GangKey) {
    let mut world = World::new(3, 8);
    world.config.keep_for = KEEP_FOR;
    world.restart(2);
    let runs = submit(&mut world, "runs", 1, 8);
    let large = submit(&mut world, "large", 3, 8);
    world.pass(minutes(11));
    assert_eq!(kept(&world), (1, 3));
    (world, runs, large)
}

#[test]
fn que_1_f37_l2_nodes_on_which_nothing_ends_are_idle_for_others_half_of_the_time_at_most() {
    let (mut world, runs, large) = waits_for_what_never_ends();
    let small = submit(&mut world, "small", 2, 8);
    world.pass(minutes(110));
    assert_eq!(kept(&world), (1, 3));
    assert_eq!(world.phase(&small), "Waiting NodesKeptForAnother 0/2");
    // The limit that passes wakes everybody, though nothing else happens.
    world.pass(minutes(10));
    assert_eq!(kept(&world), (0, 0));
    assert_eq!(world.phase(&small), "Running AllBound 2/2");
    assert_eq!(world.phase(&large), "Waiting NotEnoughFree 0/3");
    // For as long others get what becomes free.
    end(&mut world, &small);
    let next = submit(&mut world, "next", 2, 8);
    world.pass(minutes(110));
    assert_eq!(kept(&world), (0, 0));
    assert_eq!(world.phase(&next), "Running AllBound 2/2");
    let writes = world.writes.len();
    // Then it is its turn again, for as long as before.
    world.pass(minutes(11));
    assert_eq!(kept(&world), (1, 3));
    assert_eq!(world.phase(&large), "Waiting NodesKept 0/3");
    end(&mut world, &next);
    let late = submit(&mut world, "late", 1, 8);
    world.pass(minutes(100));
    assert_eq!(world.phase(&late), "Waiting NodesKeptForAnother 0/1");
    world.pass(minutes(25));
    assert_eq!(world.phase(&late), "Running AllBound 1/1");
    assert!(
        world.writes.len() < writes + 12,
        "{}",
        world.writes.len() - writes
    );
    // It starts as soon as it fits, whosever turn it is.
    for key in [&runs, &late] {
        end(&mut world, key);
    }
    assert_eq!(world.phase(&large), "Running AllBound 3/3");
}

#[test]
fn que_1_l2_nodes_are_kept_until_the_gang_starts_where_there_is_no_limit() {
    let mut world = World::new(3, 8);
    (world.config.keep_for, world.config.reserve_after) = (Millis(0), minutes(1));
    world.restart(2);
    submit(&mut world, "runs", 1, 8);
    submit(&mut world, "large", 3, 8);
    world.pass(minutes(10 * 60));
    assert_eq!(kept(&world), (1, 3));
}

#[test]
fn que_1_l2_another_leader_keeps_nodes_no_longer_than_the_one_before() {
    // After one hour, two hours less ten minutes are left of which one has passed; after three it rests.
    for (hours, is_kept, until_change) in [(1, true, 60), (3, false, 60)] {
        let (mut world, _, large) = waits_for_what_never_ends();
        world.pass(minutes(hours * 60));
        assert_eq!(kept(&world).0 == 1, is_kept);
        world.restart(3);
        // Something new tells the time.
        let small = submit(&mut world, "small", 1, 8);
        world.settle();
        assert_eq!(kept(&world).0 == 1, is_kept, "after {hours} hours");
        assert_eq!(world.bound(&small) == 0, is_kept);
        world.pass(minutes(until_change - 5));
        assert_eq!(kept(&world).0 == 1, is_kept, "after {hours} hours");
        world.pass(minutes(10));
        assert_eq!(kept(&world).0 == 1, !is_kept, "after {hours} hours");
        assert_eq!(world.bound(&large), 0);
    }
}

#[test]
fn que_1_l2_nodes_rest_from_being_kept_whoever_they_were_kept_for() {
    let mut world = World::new(6, 8);
    world.config.keep_for = KEEP_FOR;
    world.restart(2);
    for index in 0..4 {
        submit(&mut world, &format!("runs-{index}"), 1, 8);
    }
    // Each of them alone would keep all nodes for as long as it may, one after the other.
    let large: Vec<GangKey> = (0..4)
        .map(|index| submit(&mut world, &format!("large-{index}"), 3 + index, 8))
        .collect();
    world.pass(minutes(12));
    let (gangs, nodes) = kept(&world);
    assert!(gangs > 0 && nodes >= 3, "{gangs} have {nodes}");
    let small = submit(&mut world, "small", 2, 8);
    world.settle();
    assert_eq!(world.bound(&small), 0);
    world.pass(minutes(2 * 125));
    assert_eq!(world.phase(&small), "Running AllBound 2/2");
    assert!(large.iter().all(|key| world.bound(key) == 0));
}

#[test]
fn que_1_nodes_on_which_something_ends_now_and_then_are_kept_on() {
    let mut world = World::new(4, 8);
    world.config.keep_for = KEEP_FOR;
    world.restart(2);
    let runs: Vec<GangKey> = (0..4)
        .map(|index| submit(&mut world, &format!("runs-{index}"), 1, 8))
        .collect();
    let large = submit(&mut world, "large", 4, 8);
    world.pass(minutes(11));
    for key in &runs {
        // Each of them longer than all four could be kept.
        world.pass(minutes(100));
        assert_eq!(kept(&world), (1, 4));
        end(&mut world, key);
    }
    assert_eq!(world.phase(&large), "Running AllBound 4/4");
}
