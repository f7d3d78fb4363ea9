//! What went wrong in other gang schedulers, by its number in `tests/FAULTS.md`, as far as no other test
//! here shows that it does not go wrong in this one.

#[allow(dead_code)]
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::world::{GPU, World, gpus};
use muster_core::action::{JobChange, WriteKind};
use muster_core::engine::Engine;
use muster_core::event::{Event, Listing, Ticket};
use muster_core::ids::{Epoch, GangKey, NodeName, PodUid, ResourceVersion};
use muster_core::time::{Millis, Timestamp};
use muster_core::view::FilterAnswer;
use muster_core::workload::{Hold, Outcome};

fn free(world: &World, node: &str) -> u64 {
    let view = world.engine.view();
    view.free.get(node).map_or(0, |free| free.extended(GPU))
}

/// What is free on each node, as Filter sees it.
fn all_free(world: &World) -> Vec<String> {
    let view = world.engine.view();
    let lines = view
        .free
        .iter()
        .map(|(node, free)| format!("{node} {free:?}"));
    lines.collect()
}

/// kube-scheduler with one pod: it asks again 1, 2, 4, 8, 10, 10 s after an error, and a pod that Filter has
/// refused when the pod has changed, or five minutes later.
struct Attempts {
    pod: PodUid,
    next: Timestamp,
    errors: u32,
    held: Option<Ticket>,
    refused_at: Option<ResourceVersion>,
}

impl Attempts {
    fn new(pod: &PodUid, first: Timestamp) -> Self {
        Self {
            pod: pod.clone(),
            next: first,
            errors: 0,
            held: None,
            refused_at: None,
        }
    }

    fn turn(&mut self, world: &mut World) {
        if let Some(ticket) = self.held {
            match world.answers.get(&ticket) {
                Some(Err(_)) => {
                    self.held = None;
                    self.errors += 1;
                    let seconds = (1_u64 << self.errors.min(5).saturating_sub(1)).min(10);
                    self.next = world.now + Millis::from_secs(seconds);
                }
                _ => return,
            }
        }
        let Some(pod) = world.pods.get(&self.pod) else {
            return;
        };
        let has_changed = self
            .refused_at
            .as_ref()
            .is_some_and(|at| *at != pod.resource_version);
        if pod.node.is_some() || (world.now < self.next && !has_changed) {
            return;
        }
        let view = world.engine.view();
        match view.filter(&self.pod, pod.membership.as_ref()) {
            FilterAnswer::Only(node) => {
                self.refused_at = None;
                let pod = self.pod.clone();
                self.held = Some(world.bind(&pod, &node));
            }
            FilterAnswer::Nowhere(why) => {
                let said = Arc::from(format!("0/2 nodes are available: 2 {why}."));
                world.change_pod(&self.pod, |pod| pod.unschedulable = Some(said));
                let pod = world.pods.get(&self.pod);
                self.refused_at = pod.map(|pod| pod.resource_version.clone());
                self.next = world.now + Millis::from_secs(300);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Two members took turns for ever: one waited while the other was kept away, and the other way round.
/// Whatever the rhythm in which two pods come to the barrier, they meet there.
#[test]
fn f04_members_that_come_in_any_rhythm_meet_at_the_barrier() {
    let mut longest = 0;
    for second_comes in (0..240).step_by(3) {
        let mut world = World::new(2, 8);
        world.scheduler = false;
        let pods = ["a", "b"].map(|name| world.labelled(name, "pair", 2, 8, false));
        world.settle();
        let begun = world.now;
        let second = begun + Millis::from_secs(second_comes);
        let mut attempts = [
            Attempts::new(&pods[0], begun),
            Attempts::new(&pods[1], second),
        ];
        let key = GangKey::labelled("default", "pair");
        while world.bound(&key) < 2 {
            for attempt in &mut attempts {
                attempt.turn(&mut world);
            }
            world.pass(Millis::from_secs(1));
            let waited = world.now.since(second).0 / 1000;
            assert!(
                waited <= 120,
                "{second_comes} s apart they do not meet: {}",
                world.phase(&key)
            );
            longest = longest.max(waited);
        }
    }
    println!("met {longest} s after the second came, at the latest");
}

/// A gang whose workers were enough for its number ran on without its master.
#[test]
fn f09_gang_that_has_lost_its_only_master_is_bound_in_part_however_many_workers_run() {
    let mut world = World::new(4, 8);
    let roles = [("Master", 1, gpus(8)), ("Worker", 3, gpus(8))];
    let key = world.submit("train", &roles, Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 4/4");
    let master = world.member("train-Master-0");
    let node = world.pods[&master].node.clone().unwrap();
    world.change_node(node.as_str(), |node| node.unschedulable = true);
    world.delete_pod(&master);
    world.pass(Millis::from_secs(29));
    assert_eq!(world.phase(&key), "Repairing MembersLost 3/4");
    world.pass(Millis::from_secs(2));
    assert_eq!(world.bound(&key), 0);
    world.assert_not_overcommitted();
}

/// Counts of good and bad cells were kept by adding and subtracting, and went wrong when a cell did so again and again.
#[test]
fn f12_s16_devices_and_nodes_that_flap_are_counted_as_after_a_restart() {
    let mut world = World::new(4, 8);
    // What is held back is told again to a new leader, and counts there.
    world.config.breaker.percent_max = 100;
    world.restart(2);
    let train = world.submit("train", &[("Worker", 2, gpus(4))], Hold::Held);
    world.settle();
    world.submit("waits", &[("Worker", 4, gpus(8))], Hold::Held);
    for round in 0..120_u32 {
        let node = format!("n{}", round % 4);
        let device = format!("GPU-{node}-{}", round * 5 % 8);
        if !world.unhealthy.remove(&device) {
            world.unhealthy.insert(device);
        }
        if round % 7 == 0 {
            world.change_node(&node, |node| node.ready = !node.ready);
        }
        if round % 11 == 0 {
            world.change_node(&node, |node| node.unschedulable = !node.unschedulable);
        }
        if round % 13 == 0 {
            let cloned = format!("GPU-n{}-7", round % 3);
            match world.clones.is_empty() {
                true => world.clone_uuid("GPU-n3-7", &cloned),
                false => world.clones.clear(),
            }
        }
        world.pass(Millis::from_secs(2));
        if round % 10 == 9 {
            let before = all_free(&world);
            world.restart(3 + u64::from(round));
            assert_eq!(all_free(&world), before, "after round {round}");
        }
    }
    world.unhealthy.clear();
    world.clones.clear();
    for name in ["n0", "n1", "n2", "n3"] {
        world.change_node(name, |node| {
            (node.ready, node.unschedulable) = (true, false)
        });
    }
    world.edit(&train, |job| job.finished = Some(Outcome::Succeeded));
    world.remove([&train]);
    world.pass(Millis::from_secs(600));
    let waits = GangKey::new("default", "uid-waits");
    assert_eq!(world.phase(&waits), "Running AllBound 4/4");
}

/// The next cycle did not see what the one before had just bound: its view is the watch's, which lags.
#[test]
fn f17_s15_room_of_a_binding_is_taken_before_the_watch_shows_it() {
    let mut world = World::new(1, 8);
    let first = world.submit("first", &[("Worker", 1, gpus(8))], Hold::Free);
    while world.bound(&first) == 0 {
        assert!(world.step(), "nothing more happens");
    }
    // From here on the watch brings nothing of pods.
    let mut unseen = Vec::new();
    let second = world.submit("second", &[("Worker", 1, gpus(8))], Hold::Free);
    for _ in 0..20 {
        let is_pods = |event: &Event| matches!(event, Event::PodApplied(pod) if pod.node.is_some());
        let (late, now): (Vec<Event>, Vec<Event>) = world.watch.drain(..).partition(is_pods);
        unseen.extend(late);
        world.watch.extend(now);
        world.step();
        assert_eq!(free(&world, "n0"), 0);
    }
    assert!(!unseen.is_empty(), "the Binding was not seen meanwhile");
    assert_eq!(world.bound(&second), 0);
    world.watch.extend(unseen);
    world.settle();
    assert_eq!((world.bound(&first), world.bound(&second)), (1, 0));
    assert_eq!(free(&world, "n0"), 0);
    world.assert_not_overcommitted();
}

/// A pod that terminates was dropped from the cache, and its GPUs were given to the next one.
#[test]
fn f18_abuse_pod_that_terminates_without_end_keeps_its_gpus() {
    let mut world = World::new(1, 8);
    world.graceful = true;
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let stuck = world.member("train-Worker-0");
    // A finalizer holds it.
    world.end_pod(&stuck);
    let next = world.submit("next", &[("Worker", 1, gpus(8))], Hold::Held);
    world.pass(Millis::from_secs(3600));
    assert_eq!((world.bound(&key), world.bound(&next)), (1, 0));
    assert_eq!(free(&world, "n0"), 0);
    assert!(
        world.reason(&next).contains("0 free in all"),
        "{}",
        world.reason(&next)
    );
    world.assert_not_overcommitted();
    world.remove([&key]);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&next), "Running AllBound 1/1");
}

/// A node that went and came back made allocations of pods that were only meant for it.
#[test]
fn f20_node_that_goes_and_comes_back_at_the_barrier_leaves_nothing_held() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let uids = [0, 1].map(|index| world.member(&format!("train-Worker-{index}")));
    let planned = |world: &World, uid: &PodUid| -> NodeName {
        let view = world.engine.view();
        match view.filter(uid, world.pods[uid].membership.as_ref()) {
            FilterAnswer::Only(node) => node,
            other => panic!("{other:?}"),
        }
    };
    let nodes = [&uids[0], &uids[1]].map(|uid| planned(&world, uid));
    world.bind(&uids[0], &nodes[0]);
    world.settle();
    let flaps = world.nodes.remove(nodes[1].as_str()).unwrap();
    world.tell(Event::NodeRemoved(nodes[1].clone()));
    world.settle();
    assert_eq!(free(&world, nodes[1].as_str()), 0);
    world.pass(Millis::from_secs(5));
    let again = muster_core::node::Node {
        uid: Arc::from("another"),
        ..flaps
    };
    world.nodes.insert(nodes[1].to_string(), again.clone());
    world.tell(Event::NodeApplied(again));
    world.scheduler = true;
    world.pass(Millis::from_secs(400));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    world.assert_not_overcommitted();
    world.remove([&key]);
    assert_eq!(["n0", "n1"].map(|node| free(&world, node)), [8, 8]);
}

/// A reservation whose pods never came blocked its nodes for ever.
#[test]
fn f23_s5_plan_whose_pods_never_come_gives_its_room_to_the_next_gang() {
    let mut world = World::new(2, 8);
    // Nobody makes the job's pods.
    world.operator = false;
    let never = world.submit("never", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(["n0", "n1"].map(|node| free(&world, node)), [0, 0]);
    for name in ["a", "b"] {
        world.labelled(name, "pair", 2, 8, true);
    }
    world.settle();
    let pair = GangKey::labelled("default", "pair");
    assert_eq!(world.bound(&pair), 0);
    let begun = world.now;
    while world.bound(&pair) < 2 {
        world.pass(Millis::from_secs(1));
        let limit = Millis(world.config.gather_max.0 + world.config.gather_quiet_max.0);
        assert!(world.now.since(begun) < limit, "{}", world.phase(&never));
    }
    world.assert_not_overcommitted();
}

/// What a cache took for free was flushed by a report that was made before a pod was bound.
#[test]
fn f24_report_that_knows_nothing_of_a_binding_frees_nothing() {
    let mut world = World::new(1, 8);
    let before = world.report_of("n0").unwrap();
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    let next = world.submit("next", &[("Worker", 1, gpus(8))], Hold::Held);
    for _ in 0..5 {
        world.next_generation();
        let mut late = before.clone();
        late.order = world.report_of("n0").unwrap().order;
        world.engine.handle(Event::Report(late), world.now);
        let listed = Event::Relisted(Listing::Pods);
        world.engine.handle(listed, world.now);
        world.settle();
        assert_eq!(free(&world, "n0"), 0);
    }
    assert_eq!((world.bound(&key), world.bound(&next)), (1, 0));
}

/// Amounts that users wrote overflowed and counted as less than nothing.
#[test]
fn f28_amounts_that_overflow_when_added_up_are_too_large_and_take_nothing_from_others() {
    let mut world = World::new(2, 8);
    let vast = |gpus: u64| {
        let mut shape = crate::world::shape(gpus);
        shape.requests.milli_cpu = u64::MAX - 1;
        shape.requests.memory_bytes = u64::MAX / 2 + 1;
        Arc::new(shape)
    };
    let mut absurd = Vec::new();
    for (name, gpus) in [("a", u64::MAX), ("b", u64::MAX / 2 + 1), ("c", 1)] {
        let roles = [("Master", 1, vast(gpus)), ("Worker", 16_000, vast(gpus))];
        absurd.push(world.submit(name, &roles, Hold::Held));
    }
    let good = world.submit("good", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    for key in &absurd {
        assert!(
            world.phase(key).starts_with("Waiting NeverFits"),
            "{}",
            world.phase(key)
        );
    }
    assert_eq!(world.phase(&good), "Running AllBound 2/2");
    assert_eq!(["n0", "n1"].map(|node| free(&world, node)), [0, 0]);
    // A pod like that which somebody else has put on a node counts as all that the node has.
    let foreign = world.stranger("foreign", vast(u64::MAX), "n0");
    world.remove([&good]);
    assert_eq!(["n0", "n1"].map(|node| free(&world, node)), [0, 8]);
    world.delete_pod(&foreign);
    world.settle();
    assert_eq!(["n0", "n1"].map(|node| free(&world, node)), [8, 8]);
}

/// The room of a node that was gone counted for a moment.
#[test]
fn f30_room_of_a_node_that_is_gone_counts_at_no_moment() {
    let mut world = World::new(2, 8);
    let gone = world.nodes.remove("n1").unwrap();
    world
        .engine
        .handle(Event::NodeRemoved("n1".into()), world.now);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    while world.step() {
        assert_eq!(free(&world, "n1"), 0);
        assert!(
            !world
                .writes
                .iter()
                .any(|write| matches!(write.what, WriteKind::Bind { .. }))
        );
    }
    assert!(
        world.phase(&key).starts_with("Waiting NeverFits"),
        "{}",
        world.phase(&key)
    );
    world.nodes.insert("n1".into(), gone.clone());
    world.tell(Event::NodeApplied(gone));
    world.report_all();
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// A task that was just being bound was counted twice: as planned and as there.
#[test]
fn f31_member_that_is_being_bound_is_counted_once() {
    let mut world = World::new(1, 8);
    let first = world.submit("first", &[("Worker", 2, gpus(2))], Hold::Free);
    assert_eq!(free(&world, "n0"), 8);
    let mut seen = Vec::new();
    while world.step() {
        seen.push(free(&world, "n0"));
    }
    seen.dedup();
    assert_eq!(seen, [4], "at no moment more than four are taken");
    let second = world.submit("second", &[("Worker", 2, gpus(2))], Hold::Free);
    world.settle();
    assert_eq!((world.bound(&first), world.bound(&second)), (2, 2));
    assert_eq!(free(&world, "n0"), 0);
}

/// Victims were evicted on nodes that nobody used then; gangs evicted each other in turn; what was released came
/// back as preempted. Muster evicts nobody to make room yet, so that there is nothing of this.
#[test]
fn f33_f34_f36_s11_gang_that_runs_is_never_evicted_for_another() {
    let mut world = World::new(2, 8);
    let low = world.submit("low", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let high = world.submit("high", &[("Worker", 2, gpus(8))], Hold::Held);
    world.edit(&high, |job| job.priority = i32::MAX);
    let before = world.pods.clone();
    world.pass(Millis::from_secs(7200));
    assert_eq!(world.phase(&low), "Running AllBound 2/2");
    assert_eq!(world.bound(&high), 0);
    assert_eq!(world.pods, before);
    let evicts = |write: &muster_core::action::Write| match &write.what {
        WriteKind::DeletePod { .. } => true,
        WriteKind::ChangeJob { change, .. } => *change == JobChange::Hold && write.gang == low,
        _ => false,
    };
    assert!(!world.writes.iter().any(evicts));
    world.edit(&low, |job| job.finished = Some(Outcome::Succeeded));
    world.settle();
    assert_eq!(world.phase(&high), "Running AllBound 2/2");
}

/// A follower skipped what was deleted while it followed, and led with ghosts.
#[test]
fn f43_follower_forgets_what_is_deleted_while_it_follows() {
    let mut world = World::new(4, 8);
    let jobs =
        ["a", "b", "c"].map(|name| world.submit(name, &[("Worker", 1, gpus(8))], Hold::Held));
    for name in ["x", "y"] {
        world.labelled(name, "pair", 2, 4, true);
    }
    world.settle();
    let mut follower = Engine::new(world.config.clone());
    let now = world.now;
    let nodes = world.nodes.values().cloned().map(Event::NodeApplied);
    let reports = world
        .nodes
        .keys()
        .filter_map(|name| world.report_of(name))
        .map(Event::Report);
    let pods = world.pods.values().cloned().map(Event::PodApplied);
    let jobs_seen = world.jobs.values().cloned().map(Event::WorkloadApplied);
    let gangs = world
        .gangs
        .values()
        .map(|gang| Event::RecordApplied(gang.record.clone()));
    for event in nodes
        .chain(reports)
        .chain(pods)
        .chain(jobs_seen)
        .chain(gangs)
    {
        follower.handle(event, now);
    }
    follower.handle(Event::Synced, now);
    follower.decide(now);
    assert!(follower.poll_action().is_none(), "a follower does nothing");
    // While it follows, two jobs and the pair end and go; the leader sees to it.
    let pair = GangKey::labelled("default", "pair");
    let gone: Vec<GangKey> = [jobs[0].clone(), jobs[1].clone(), pair].into();
    for key in &gone {
        let of_it = world.pods.values();
        let of_it = of_it.filter(|pod| pod.membership.as_ref().is_some_and(|m| m.gang == *key));
        for uid in of_it.map(|pod| pod.uid.clone()).collect::<Vec<_>>() {
            follower.handle(Event::PodRemoved(uid), now);
        }
        world.remove([key]);
        follower.handle(Event::WorkloadRemoved(key.clone()), now);
        follower.handle(Event::RecordRemoved(key.clone()), now);
        follower.decide(now);
    }
    let leaders = all_free(&world);
    follower.handle(
        Event::LeadershipGained {
            epoch: Epoch(2),
            first: false,
        },
        now,
    );
    world.engine = follower;
    world.settle();
    assert_eq!(all_free(&world), leaders);
    let known: Vec<GangKey> = world.engine.view().gangs.keys().cloned().collect();
    assert_eq!(known, [jobs[2].clone()]);
}

/// Memory grew with every pod that had ever been, and with every object that was written to in vain.
#[test]
fn f48_l4_nothing_is_kept_of_gangs_that_are_gone() {
    let mut world = World::new(4, 8);
    let churn = |world: &mut World, rounds: u32| {
        for round in 0..rounds {
            let name = format!("job-{}", round % 10);
            let large = world.submit(&name, &[("Worker", 3, gpus(8))], Hold::Held);
            let never = world.submit("never", &[("Worker", 1, gpus(9))], Hold::Held);
            for member in ["a", "b"] {
                world.labelled(member, "pair", 2, 4, round % 2 == 0);
            }
            world.settle();
            assert_eq!(world.phase(&large), "Running AllBound 3/3");
            if round % 3 == 0 {
                let lost = world.member(&format!("{name}-Worker-1"));
                world.delete_pod(&lost);
                world.settle();
            }
            for key in [large, never, GangKey::labelled("default", "pair")] {
                world.remove([&key]);
            }
            world.pass(Millis::from_secs(1));
            world.writes.clear();
            world.answers.clear();
            world.woken.clear();
        }
        world.pass(Millis::from_secs(700));
    };
    churn(&mut world, 30);
    // All that it holds, as text; numbers get longer, and there are a few hundred.
    let held = |world: &World| format!("{:?}", world.engine).len();
    let before = held(&world);
    churn(&mut world, 300);
    let after = held(&world);
    assert!(
        after < before + 1000,
        "{before} bytes of text became {after}"
    );
    let state = world.engine.state(world.now);
    assert!(state.gangs.is_empty(), "{:?}", state.gangs);
    let view = world.engine.view();
    assert!(view.gangs.is_empty() && view.members.is_empty() && view.protected.is_empty());
    let holdings: BTreeMap<_, _> = state
        .nodes
        .iter()
        .map(|node| (&node.name, node.holdings.len()))
        .collect();
    assert!(holdings.values().all(|held| *held == 0), "{holdings:?}");
}

/// Statuses were written again and again although nothing had changed.
#[test]
fn l3_cluster_in_which_nothing_changes_costs_no_write() {
    let mut world = World::new(4, 8);
    world.submit("runs", &[("Worker", 3, gpus(8))], Hold::Held);
    world.submit("waits", &[("Worker", 2, gpus(8))], Hold::Held);
    world.submit("never", &[("Worker", 1, gpus(9))], Hold::Held);
    world.labelled("a", "pair", 2, 4, true);
    // That nodes are kept for it is told once.
    world.pass(Millis::from_secs(660));
    let (before, deadline) = (world.writes.len(), world.engine.next_deadline());
    world.pass(Millis::from_secs(7200));
    let after = &world.writes[before..];
    assert!(after.is_empty(), "{after:?}");
    let said = deadline.map(|at| at.since(Timestamp(0)));
    println!("the next deadline was {said:?}");
}

/// One tenant queues ten thousand gangs that do not fit, most of them for longer than the limit after which nodes are
/// kept. What waits costs nothing when the cluster changes. Nodes are kept for eight of them at most, which those of
/// others pass that go before them; the rest have their turn when it is over.
#[test]
fn abuse_ten_thousand_gangs_of_one_tenant_delay_nobody_for_long() {
    let mut world = World::new(8, 8);
    world.config.keep_for = Millis::from_secs(120);
    world.restart(2);
    world.submit("filler", &[("Worker", 5, gpus(8))], Hold::Held);
    world.settle();
    for number in 0..10_000 {
        let roles = [("Worker", 4 + number % 50, gpus(8 - u64::from(number % 3)))];
        world.submit(&format!("queued-{number}"), &roles, Hold::Held);
    }
    let begun = std::time::Instant::now();
    world.settle();
    let kept = world.engine.kept_nodes();
    assert!((1..=8).contains(&kept.gangs), "{kept:?}");
    let took = begun.elapsed();
    println!("{kept:?} after {took:?}");
    assert!(took.as_secs() < 20, "{took:?}");
    let begun = std::time::Instant::now();
    let first = world.submit("first", &[("Worker", 2, gpus(8))], Hold::Held);
    world.edit(&first, |job| job.priority = 1);
    let good = world.submit("good", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.phase(&first), "Running AllBound 2/2");
    assert_eq!(world.phase(&good), "Waiting NodesKeptForAnother 0/1");
    let (took, writes) = (begun.elapsed(), world.writes.len());
    println!("planned and bound beside ten thousand within {took:?}");
    assert!(took.as_secs() < 10, "{took:?}");
    world.pass(Millis::from_secs(60));
    assert_eq!(
        world.writes.len(),
        writes,
        "who waits is written nothing about"
    );
    world.pass(world.config.keep_for);
    assert_eq!(world.phase(&good), "Running AllBound 1/1");
}
