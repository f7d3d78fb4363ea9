//! Traps of the extender protocol that the engine must not step into, by their numbers.

#[allow(dead_code)]
use std::sync::Arc;

use crate::world::{GPU, World, gpus};
use muster_core::action::WriteKind;
use muster_core::event::{BindAsked, Event, Ticket, WriteOutcome};
use muster_core::ids::{GangKey, NodeName, PodUid};
use muster_core::pod::{Membership, MembershipSource, PodPhase, TurnedDown};
use muster_core::time::Millis;
use muster_core::view::{FilterAnswer, NOT_OFFERED};
use muster_core::workload::Hold;

/// A job of workers with a node each, planned and released; nobody schedules its pods.
pub(crate) fn gathered(nodes: usize, workers: u32) -> (World, GangKey, Vec<PodUid>) {
    let mut world = World::new(nodes, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", workers, gpus(8))], Hold::Held);
    world.settle();
    let uids = (0..workers)
        .map(|index| world.member(&format!("train-Worker-{index}")))
        .collect();
    (world, key, uids)
}

/// The node that Filter names for a pod.
pub(crate) fn planned(world: &World, uid: &PodUid) -> NodeName {
    let view = world.engine.view();
    let membership = world.pods.get(uid).and_then(|pod| pod.membership.as_ref());
    match view.filter(uid, membership) {
        FilterAnswer::Only(node) => node,
        other => panic!("no node for {uid:?}: {other:?}"),
    }
}

/// kube-scheduler asks to bind a pod where Filter sent it.
pub(crate) fn ask(world: &mut World, uid: &PodUid) -> Ticket {
    let node = planned(world, uid);
    let ticket = world.bind(uid, &node);
    world.settle();
    ticket
}

/// Names of the pods that Bindings were sent for, in order.
fn bindings(world: &World) -> Vec<String> {
    let sent = world.writes.iter().filter_map(|write| match &write.what {
        WriteKind::Bind { pod, .. } => Some(pod.name.to_string()),
        _ => None,
    });
    sent.collect()
}

pub(crate) fn is_ok(world: &World, ticket: Ticket) -> Option<bool> {
    world.answers.get(&ticket).map(Result::is_ok)
}

#[test]
fn gang_whose_last_binding_is_refused_again_and_again_is_released_in_time() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let [first, second] = ["first", "second"].map(|name| world.labelled(name, "g", 2, 8, false));
    world.settle();
    world.fail = Some(Box::new(|write| match &write.what {
        WriteKind::Bind { pod, .. } if &*pod.name == "second" => {
            Some(WriteOutcome::Refused(Arc::from("admission says no")))
        }
        _ => None,
    }));
    ask(&mut world, &first);
    let begun = world.now;
    for _ in 0..10 {
        ask(&mut world, &second);
        world.pass(Millis::from_secs(3));
        if !world.pods.contains_key(&first) {
            break;
        }
    }
    assert!(
        !world.pods.contains_key(&first),
        "it is bound in part still"
    );
    assert_eq!(world.now.since(begun), world.config.repair_max);
}

/// A pod with a nominated node is filtered on that node alone first, so the planned one is not
/// offered, and on all nodes right after. The first call may not cost the node its place.
#[test]
fn t15_filter_call_with_the_nominated_node_alone_costs_the_planned_node_nothing() {
    let (mut world, key, uids) = gathered(3, 2);
    let before: Vec<NodeName> = uids.iter().map(|uid| planned(&world, uid)).collect();
    for (uid, node) in uids.iter().zip(&before) {
        let told = Event::PlannedNodeNotOffered {
            pod: uid.clone(),
            node: node.clone(),
        };
        world.engine.handle(told, world.now);
        world.settle();
        ask(&mut world, uid);
    }
    assert_eq!(world.bound(&key), 2);
    let after: Vec<NodeName> = uids
        .iter()
        .filter_map(|uid| world.pods[uid].node.clone())
        .collect();
    assert_eq!(after, before);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// kube-scheduler turns two members down one after the other. The plan is given back for the first;
/// the second one's refusal is not forgotten over that: nobody would say it again.
#[test]
fn member_refused_a_moment_after_another_gets_another_node_too() {
    let mut world = World::new(4, 8);
    world.scheduler = false;
    let mut uids = Vec::new();
    for index in 0..2 {
        uids.push(world.labelled(&format!("pair-{index}"), "pair", 2, 8, true));
    }
    world.settle();
    let key = GangKey::labelled("default", "pair");
    let refused: Vec<NodeName> = uids.iter().map(|uid| planned(&world, uid)).collect();
    for (uid, node) in uids.iter().zip(&refused) {
        let told = Event::PlannedNodeNotOffered {
            pod: uid.clone(),
            node: node.clone(),
        };
        world.tell(told);
        world.pass(Millis(400));
    }
    world.pass(Millis::from_secs(6));
    for uid in &uids {
        let node = planned(&world, uid);
        assert!(!refused.contains(&node), "{uid:?} on {node:?} again");
    }
    world.scheduler = true;
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// A volume claim that does not exist yet keeps a member from every node, before kube-scheduler looks
/// at one. Its node is not to blame: the plan stays until the barrier's deadline, the gang says what is
/// missing, and starts on the same nodes, of which there are no others.
#[test]
fn member_whose_claim_is_missing_costs_no_node_its_place() {
    let (mut world, key, uids) = gathered(2, 2);
    let plan = |world: &World| {
        let status = world.gangs[&key].status.as_ref();
        status.and_then(|status| status.plan.as_ref().map(|plan| plan.id.clone()))
    };
    let first = plan(&world);
    assert!(first.is_some());
    let missing = "0/2 nodes are available: persistentvolumeclaim \"data\" not found. preemption: \
                   0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    world.change_pod(&uids[0], |pod| pod.unschedulable = Some(Arc::from(missing)));
    ask(&mut world, &uids[1]);
    world.pass(Millis::from_secs(30));
    assert_eq!(plan(&world), first, "the plan is kept");
    world.pass(Millis::from_secs(31));
    assert_eq!(world.phase(&key), "Waiting BarrierTimeout 0/2");
    let reason = world.reason(&key);
    assert!(reason.contains("\"data\" not found"), "{reason}");
    world.pass(Millis::from_secs(15));
    // The job was held in between: its members are new ones.
    let uid = world.member("train-Worker-0");
    assert_ne!(uid, uids[0]);
    world.change_pod(&uid, |pod| pod.unschedulable = Some(Arc::from(missing)));
    world.pass(Millis::from_secs(1));
    let reason = world.reason(&key);
    assert!(reason.contains("\"data\" not found"), "{reason}");
    assert!(reason.starts_with("waits until"), "{reason}");
    world.change_pod(&uid, |pod| pod.unschedulable = None);
    world.scheduler = true;
    world.pass(Millis::from_secs(5));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// The write that only says what a member lacks is not answered in time. What the plan promises was
/// written before: the members that wait at the barrier are not sent away over it.
#[test]
fn unknown_outcome_of_a_write_that_only_says_why_keeps_the_plan() {
    let (mut world, key, uids) = gathered(2, 2);
    ask(&mut world, &uids[1]);
    let mut unknown = 1;
    world.fail = Some(Box::new(move |write| match &write.what {
        WriteKind::PutStatus { .. } if unknown > 0 => {
            unknown -= 1;
            Some(WriteOutcome::Unknown(Arc::from("timed out")))
        }
        _ => None,
    }));
    let missing = "0/2 nodes are available: persistentvolumeclaim \"data\" not found.";
    world.change_pod(&uids[0], |pod| pod.unschedulable = Some(Arc::from(missing)));
    world.settle();
    let puts = |world: &World| {
        let sent = world.writes.iter();
        sent.filter(|write| matches!(write.what, WriteKind::PutStatus { .. }))
            .count()
    };
    let before = puts(&world);
    world.change_pod(&uids[0], |pod| pod.unschedulable = None);
    ask(&mut world, &uids[0]);
    assert_eq!(world.bound(&key), 2, "{} puts", before);
    world.pass(Millis::from_secs(30));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// What was said of a member that has come since says nothing about what the gang waits for now. It is
/// taken back once: a member that comes and goes is not worth two writes each time.
#[test]
fn what_was_said_of_a_member_is_taken_back_when_it_comes() {
    let (mut world, key, uids) = gathered(3, 2);
    let puts = |world: &World| {
        let sent = world.writes.iter();
        sent.filter(|write| matches!(write.what, WriteKind::PutStatus { .. }))
            .count()
    };
    let missing = "0/3 nodes are available: persistentvolumeclaim \"data\" not found.";
    world.change_pod(&uids[0], |pod| pod.unschedulable = Some(Arc::from(missing)));
    world.settle();
    assert!(
        world.reason(&key).ends_with(missing),
        "{}",
        world.reason(&key)
    );
    let before = puts(&world);
    world.change_pod(&uids[0], |pod| pod.unschedulable = None);
    ask(&mut world, &uids[0]);
    assert!(
        !world.reason(&key).contains("said"),
        "{}",
        world.reason(&key)
    );
    assert_eq!(puts(&world), before + 1);
    for _ in 0..5 {
        world.change_pod(&uids[1], |pod| pod.unschedulable = Some(Arc::from(missing)));
        world.settle();
        world.change_pod(&uids[1], |pod| pod.unschedulable = None);
        world.settle();
    }
    assert!(
        world.reason(&key).ends_with(missing),
        "{}",
        world.reason(&key)
    );
    assert_eq!(puts(&world), before + 2);
    ask(&mut world, &uids[1]);
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// kube-scheduler may ask about a new pod, and not offer the planned node, before Muster has seen the
/// pod. Nobody is told then; the pod's condition says it too.
#[test]
fn node_that_is_not_offered_to_a_pod_before_it_is_known_is_avoided_too() {
    let (mut world, key, uids) = gathered(4, 2);
    let node = planned(&world, &uids[0]);
    let said = format!(
        "0/4 nodes are available: 1 node(s) had volume node affinity conflict, 3 {NOT_OFFERED}."
    );
    world.change_pod(&uids[0], |pod| pod.unschedulable = Some(Arc::from(said)));
    world.pass(Millis::from_secs(8));
    let status = world.gangs[&key].status.as_ref();
    let plan = status
        .and_then(|status| status.plan.clone())
        .expect("a plan");
    let nodes: Vec<&NodeName> = plan.slots.iter().map(|slot| &slot.node).collect();
    assert!(!nodes.contains(&&node), "{nodes:?} with {node:?}");
}

/// A member of a gang that runs is turned down on its new place and gets another one. What its condition
/// says is about the first: the second one is not lost over it, however long kube-scheduler takes.
#[test]
fn what_was_said_of_a_member_on_its_former_place_costs_it_no_other_one() {
    let mut world = World::new(5, 8);
    let uids = ["a", "b"].map(|name| world.labelled(name, "pair", 2, 8, true));
    world.settle();
    let key = GangKey::labelled("default", "pair");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    world.scheduler = false;
    world.delete_pod(&uids[1]);
    world.settle();
    let uid = world.labelled("b", "pair", 2, 8, true);
    world.settle();
    let first = planned(&world, &uid);
    let said = format!(
        "0/5 nodes are available: 1 node(s) had volume node affinity conflict, 4 {NOT_OFFERED}."
    );
    world.change_pod(&uid, |pod| pod.unschedulable = Some(Arc::from(said)));
    world.pass(Millis::from_secs(6));
    let second = planned(&world, &uid);
    assert_ne!(second, first, "it was turned down there");
    world.pass(Millis::from_secs(12));
    assert_eq!(planned(&world, &uid), second, "nobody looked at this one");
    ask(&mut world, &uid);
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// A Bind that kube-scheduler has given up, or that was answered with an error, is never bound
/// later: the pod may be on its way to another node by then.
#[test]
fn t21_bind_that_was_given_up_is_not_bound_when_the_barrier_opens() {
    let (mut world, key, uids) = gathered(3, 2);
    let first = ask(&mut world, &uids[0]);
    world.engine.handle(Event::BindDropped(first), world.now);
    world.settle();
    let second = ask(&mut world, &uids[1]);
    assert_eq!(bindings(&world), Vec::<String>::new());
    assert_eq!(world.bound(&key), 0);
    // It comes again, as kube-scheduler does after an error.
    ask(&mut world, &uids[0]);
    assert_eq!(world.bound(&key), 2);
    assert_eq!(is_ok(&world, second), Some(true));
    assert_eq!(is_ok(&world, first), None, "nobody listens any more");
}

#[test]
fn t21_bind_that_comes_after_the_barrier_gave_up_is_refused() {
    let (mut world, key, uids) = gathered(3, 2);
    let node = planned(&world, &uids[1]);
    let first = ask(&mut world, &uids[0]);
    world.pass(Millis::from_secs(61));
    assert_eq!(is_ok(&world, first), Some(false), "error to all");
    let late = Ticket(u64::MAX);
    let asked = BindAsked {
        ticket: late,
        namespace: "default".into(),
        name: Arc::from("train-Worker-1"),
        pod: uids[1].clone(),
        node,
    };
    world.engine.handle(Event::BindAsked(asked), world.now);
    world.pass(Millis::from_secs(30));
    assert_eq!(is_ok(&world, late), Some(false));
    assert_eq!(bindings(&world), Vec::<String>::new());
    world.scheduler = true;
    world.pass(Millis::from_secs(120));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// A gang too large for the pace of its controller says which limits to raise, not that nobody came.
#[test]
fn t19_gang_whose_members_still_come_at_the_limit_says_what_to_raise() {
    let (mut world, key, uids) = gathered(20, 20);
    for uid in uids.iter().take(16) {
        ask(&mut world, uid);
        world.pass(Millis::from_secs(10));
        if world.phase(&key).contains("BarrierTimeout") {
            break;
        }
    }
    assert_eq!(world.phase(&key), "Waiting BarrierTimeout 0/20");
    let reason = world.reason(&key);
    assert!(
        reason.starts_with("only 15 of 20 members were accepted by kube-scheduler in time"),
        "{reason}"
    );
    assert!(
        reason.contains("still coming after 150 s (gang.gatherMax)"),
        "{reason}"
    );
    assert_eq!(bindings(&world), Vec::<String>::new());
    // One that stops coming says nothing of limits.
    let (mut world, _, uids) = gathered(3, 2);
    ask(&mut world, &uids[0]);
    world.pass(Millis::from_secs(61));
    let said = world.announced.join("; ");
    assert!(
        said.contains("BarrierTimeout") && !said.contains("gatherMax"),
        "{said}"
    );
}

/// kube-scheduler may ask several times for one pod (its answer was lost, it was restarted).
#[test]
fn t27_barrier_opens_once_and_binds_each_member_once_however_often_it_was_asked() {
    let (mut world, key, uids) = gathered(4, 3);
    let early: Vec<Ticket> = (0..3).map(|_| ask(&mut world, &uids[0])).collect();
    let second = ask(&mut world, &uids[1]);
    assert_eq!(world.bound(&key), 0);
    // The last one comes twice in one batch.
    let node = planned(&world, &uids[2]);
    let twice = [world.bind(&uids[2], &node), world.bind(&uids[2], &node)];
    world.settle();
    assert_eq!(world.bound(&key), 3);
    let mut sent = bindings(&world);
    sent.sort();
    assert_eq!(sent, ["train-Worker-0", "train-Worker-1", "train-Worker-2"]);
    // Of several for one pod the last is told that it is bound; each is answered.
    let told: Vec<Option<bool>> = early.iter().map(|ticket| is_ok(&world, *ticket)).collect();
    assert_eq!(told, [Some(false), Some(false), Some(true)]);
    assert_eq!(is_ok(&world, second), Some(true));
    let told = twice.map(|ticket| is_ok(&world, ticket));
    assert_eq!(told, [Some(false), Some(true)]);
    // And asked after it is bound: yes, without another Binding.
    let again = world.bind(&uids[1], &world.pods[&uids[1]].node.clone().unwrap());
    world.settle();
    assert_eq!(is_ok(&world, again), Some(true));
    assert_eq!(bindings(&world).len(), 3);
}

#[test]
fn t28_member_preempted_while_its_bind_is_held_is_answered_and_its_successor_waited_for() {
    let (mut world, key, uids) = gathered(3, 2);
    let held = ask(&mut world, &uids[0]);
    world.delete_pod(&uids[0]);
    world.settle();
    assert_eq!(is_ok(&world, held), Some(false));
    let other = ask(&mut world, &uids[1]);
    assert_eq!(world.bound(&key), 0, "one of two is there");
    assert_eq!(is_ok(&world, other), None, "and is held");
    let successor = world.member("train-Worker-0");
    assert_ne!(successor, uids[0]);
    ask(&mut world, &successor);
    assert_eq!(world.bound(&key), 2);
    let meant = world
        .writes
        .iter()
        .filter(|write| matches!(&write.what, WriteKind::Bind { pod, .. } if pod.uid == uids[0]));
    assert_eq!(meant.count(), 0, "no Binding names the pod that is gone");
}

/// A pin that is put in with the gate's removal cannot be changed. When its node dies before the
/// bind, the pod is deleted, and its controller's next one gets another place.
#[test]
fn t37_pod_pinned_to_a_node_that_died_is_deleted_and_its_successor_placed_elsewhere() {
    let mut world = World::new(3, 8);
    world.scheduler = false;
    for name in ["a", "b"] {
        let uid = world.labelled(name, "group", 2, 8, true);
        world.change_pod(&uid, |pod| pod.controlled = true);
    }
    world.settle();
    let first = world.member("a");
    let dead = planned(&world, &first);
    assert!(!world.pods[&first].gated && world.pods[&first].shape.is_pinned());
    world.nodes.remove(dead.as_str());
    world
        .engine
        .handle(Event::NodeRemoved(dead.clone()), world.now);
    world.settle();
    assert!(!world.pods.contains_key(&first), "it can go nowhere");
    for name in ["a", "b"] {
        if !world.pods.values().any(|pod| &*pod.name == name) {
            let uid = world.labelled(name, "group", 2, 8, true);
            world.change_pod(&uid, |pod| pod.controlled = true);
        }
    }
    world.scheduler = true;
    world.pass(Millis::from_secs(120));
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let nodes: Vec<_> = world.pods.values().map(|pod| pod.node.clone()).collect();
    assert!(!nodes.contains(&Some(dead)), "{nodes:?}");
}

/// Something on the node takes a device between plan and admission: kubelet turns the pod away,
/// its controller makes another one, and that goes to another node.
#[test]
fn t41_member_turned_away_by_the_device_plugin_is_replaced_on_another_node() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let turned_away = world.member("train-Worker-1");
    let node = world.pods[&turned_away].node.clone().unwrap();
    world.change_pod(&turned_away, |pod| {
        pod.phase = PodPhase::Failed;
        pod.status_reason = Some(Arc::from("UnexpectedAdmissionError"));
    });
    world.step();
    world.delete_pod(&turned_away);
    world.settle();
    world.pass(Millis::from_secs(20));
    assert_eq!(world.bound(&key), 2);
    let successor = world.member("train-Worker-1");
    assert_ne!(world.pods[&successor].node.as_ref(), Some(&node));
}

/// Kubelet and agent disagree: the smaller number counts, whoever says it.
#[test]
fn t42_of_allocatable_and_inventory_the_smaller_is_believed() {
    let mut world = World::new(2, 8);
    // The agent still reports eight devices; the device plugin has taken four of them out.
    let stale = world.report_of("n0").unwrap();
    world.change_node("n0", |node| {
        node.allocatable.extended.insert(GPU.into(), 4);
    });
    let mut report = stale;
    report.order.generation += 10;
    world.engine.handle(Event::Report(report), world.now);
    // The other way round: kubelet offers eight, the agent sees three that are well.
    for index in 3..8 {
        world.unhealthy.insert(format!("GPU-n1-{index}"));
    }
    let mut report = world.report_of("n1").unwrap();
    report.order.generation += 10;
    world.engine.handle(Event::Report(report), world.now);
    world.settle();
    let large = world.submit("large", &[("Worker", 1, gpus(5))], Hold::Held);
    let four = world.submit("four", &[("Worker", 1, gpus(4))], Hold::Held);
    let three = world.submit("three", &[("Worker", 1, gpus(3))], Hold::Held);
    let one = world.submit("one", &[("Worker", 1, gpus(1))], Hold::Held);
    world.settle();
    assert!(
        world.phase(&large).starts_with("Waiting"),
        "{}",
        world.phase(&large)
    );
    assert_eq!(world.phase(&four), "Running AllBound 1/1");
    assert_eq!(world.phase(&three), "Running AllBound 1/1");
    assert!(
        world.phase(&one).starts_with("Waiting"),
        "{}",
        world.phase(&one)
    );
    let node = |name: &str| world.pods[&world.member(name)].node.clone().unwrap();
    assert_eq!(node("four-Worker-0").as_str(), "n0");
    assert_eq!(node("three-Worker-0").as_str(), "n1");
}

/// The operator makes a member late, one too many, and one of a role that the job does not have: the
/// first is waited for, the others get no place and keep nobody from starting.
#[test]
fn t31_members_that_come_late_too_many_or_of_an_unknown_role_do_not_disturb_the_gang() {
    let mut world = World::new(4, 8);
    world.operator = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let member = |role: &str, index: u32| Membership {
        gang: key.clone(),
        source: MembershipSource::Job,
        role: Some(role.into()),
        index: Some(index),
    };
    let first = world.pod("train-Worker-0", Some(member("Worker", 0)), gpus(8));
    let extra = world.pod("train-Worker-7", Some(member("Worker", 7)), gpus(8));
    let wrong = world.pod("train-Evaluator-0", Some(member("Evaluator", 0)), gpus(8));
    world.pass(Millis::from_secs(20));
    assert_eq!(world.bound(&key), 0, "one of two is not the gang");
    let late = world.pod("train-Worker-1", Some(member("Worker", 1)), gpus(8));
    world.pass(Millis::from_secs(20));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    for uid in [&first, &late] {
        assert!(world.pods[uid].node.is_some(), "{uid:?}");
    }
    for uid in [&extra, &wrong] {
        assert!(world.pods[uid].node.is_none(), "{uid:?}");
        let membership = world.pods[uid].membership.as_ref();
        let answer = world.engine.view().filter(uid, membership);
        assert!(matches!(answer, FilterAnswer::Nowhere(_)), "{answer:?}");
    }
}

/// Somebody's webhook, or a quota, refuses the PATCH of one pod in the middle of a release: nobody is
/// bound, and the gang starts whole when the PATCH is let through.
#[test]
fn t38_release_of_one_member_that_is_refused_holds_the_others_at_the_barrier() {
    let mut world = World::new(3, 8);
    let mut refused = 3;
    world.fail = Some(Box::new(move |write| match &write.what {
        WriteKind::ReleasePod { pod, .. } if &*pod.name == "b" && refused > 0 => {
            refused -= 1;
            Some(WriteOutcome::Refused(Arc::from("admission webhook denied")))
        }
        _ => None,
    }));
    for name in ["a", "b", "c"] {
        world.labelled(name, "trio", 3, 8, true);
    }
    world.pass(Millis::from_secs(5));
    let key = GangKey::labelled("default", "trio");
    assert_eq!(world.bound(&key), 0, "{}", world.reason(&key));
    assert_eq!(bindings(&world), Vec::<String>::new());
    world.pass(Millis::from_secs(60));
    assert_eq!(world.phase(&key), "Running AllBound 3/3");
    assert_eq!(bindings(&world).len(), 3, "each member is bound once");
}

#[test]
fn message_of_kube_scheduler_tells_who_turned_a_pod_down_and_where() {
    let cases = [
        (
            "0/3 nodes are available: 3 muster: gang train waits (NotEnoughFree); see: kubectl describe gang train.",
            TurnedDown::ByMuster,
        ),
        (
            "0/12 nodes are available: 10 Insufficient nvidia.com/gpu, 2 node(s) didn't match pod anti-affinity rules. \
             preemption: 0/12 nodes are available: 12 No preemption victims found for incoming pod.",
            TurnedDown::OnNodes,
        ),
        (
            "0/3 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/3 nodes are available: \
             3 Preemption is not helpful for scheduling.",
            TurnedDown::Everywhere,
        ),
        (
            "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            TurnedDown::Everywhere,
        ),
        (
            "0/3 nodes are available: node(s) didn't satisfy plugin(s) [NodeAffinity VolumeBinding] simultaneously.",
            TurnedDown::OnNodes,
        ),
        // On each node that its other plugins leave, wherever the pod goes.
        (
            "0/9 nodes are available: 2 node(s) had untolerated taint(s), 7 node(s) unavailable due to \
             PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod.",
            TurnedDown::Everywhere,
        ),
        (
            "0/1 nodes are available: 1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).",
            TurnedDown::Everywhere,
        ),
        ("no nodes available to schedule pods", TurnedDown::OnNodes),
        ("", TurnedDown::OnNodes),
    ];
    for (said, who) in cases {
        assert_eq!(TurnedDown::of(said), who, "{said}");
    }
}

/// A job that was released as a whole is held again, and its controller takes the pods away. One that is
/// down does not: the pods would hold their GPUs, of a gang in part, for as long.
#[test]
fn pods_of_a_job_released_whole_go_even_while_its_controller_is_down() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.bound(&key), 2);
    world.operator = false;
    let lost = world.member("train-Worker-1");
    world.delete_pod(&lost);
    world.pass(Millis::from_secs(31));
    assert!(
        world
            .announced
            .iter()
            .any(|said| said.starts_with("ReleasedWhole")),
        "{:?}",
        world.announced
    );
    assert_eq!(world.bound(&key), 1, "its controller has time to do it");
    world.pass(Millis::from_secs(31));
    assert_eq!(world.bound(&key), 0);
    world.operator = true;
    world.pass(Millis::from_secs(30));
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
}

/// Somebody else manages the job from now on: it is no longer read, and none of its members will come.
#[test]
fn what_is_bound_in_part_of_a_job_that_is_gone_is_released() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    world.scheduler = false;
    let lost = world.member("train-Worker-1");
    world.delete_pod(&lost);
    world.settle();
    world.operator = false;
    world.tell(Event::WorkloadRemoved(key.clone()));
    world.settle();
    assert_eq!(world.bound(&key), 1);
    world.pass(Millis::from_secs(31));
    assert_eq!(world.bound(&key), 0);
}

fn unreadable(world: &World, key: &GangKey) -> Event {
    let mut record = world.gangs[key].record.clone();
    record.plan = Err(Arc::from("recordVersion 9 is newer than this scheduler"));
    record.resource_version = "9999".into();
    Event::RecordApplied(record)
}

/// A Gang object that a newer version has written while Binds are held: they would be held until
/// kube-scheduler gives up, and nobody would learn why.
#[test]
fn gang_whose_object_cannot_be_read_holds_no_binds_and_says_so() {
    let (mut world, key, uids) = gathered(3, 2);
    let ticket = ask(&mut world, &uids[0]);
    assert_eq!(is_ok(&world, ticket), None, "it is held");
    let event = unreadable(&world, &key);
    world.tell(event);
    world.settle();
    assert_eq!(is_ok(&world, ticket), Some(false));
    let said = world.announced.join("; ");
    assert!(
        said.contains("UnreadableRecord the Gang's plan cannot be read: recordVersion 9"),
        "{said}"
    );
    world.scheduler = true;
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 0);
}

#[test]
fn gang_whose_object_cannot_be_read_is_not_left_bound_in_part() {
    let mut world = World::new(3, 8);
    let uids = ["a", "b"].map(|name| world.labelled(name, "pair", 2, 8, true));
    world.settle();
    let key = GangKey::labelled("default", "pair");
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    let event = unreadable(&world, &key);
    world.tell(event);
    world.pass(Millis::from_secs(60));
    assert_eq!(world.bound(&key), 2, "what is whole goes on");
    world.delete_pod(&uids[1]);
    world.pass(Millis::from_secs(31));
    assert_eq!(world.bound(&key), 0);
}

/// The same for pods: their Event is about the Gang object, which is there.
#[test]
fn labelled_gang_whose_object_cannot_be_read_says_so_too() {
    let mut world = World::new(3, 8);
    let _ = ["a", "b"].map(|name| world.labelled(name, "pair", 2, 8, true));
    world.settle();
    let key = GangKey::labelled("default", "pair");
    let event = unreadable(&world, &key);
    world.tell(event);
    world.settle();
    let said = world.announced.join("; ");
    assert!(said.contains("UnreadableRecord"), "{said}");
}

/// What a job without its object, but with a minimum of its own, had running is not too little.
#[test]
fn elastic_gang_that_runs_is_let_be_when_its_job_goes() {
    let mut world = World::new(3, 8);
    let key = world.submit("train", &[("Worker", 4, gpus(8))], Hold::Held);
    world.edit(&key, |job| job.minimum = Some(2));
    world.settle();
    assert_eq!(world.bound(&key), 3);
    world.operator = false;
    world.tell(Event::WorkloadRemoved(key.clone()));
    world.pass(Millis::from_secs(90));
    assert_eq!(world.bound(&key), 3);
}
