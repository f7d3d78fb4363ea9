//! Each of the judge's rules broken by hand, with nothing else wrong: it is found, and it alone.

use serde_json::json;

use super::*;

const GPU: &str = "nvidia.com/gpu";
const JOB: &str = "job-uid";

fn node(name: &str, cordoned: bool) -> Value {
    json!({"metadata": {"name": name, "uid": name}, "spec": {"unschedulable": cordoned},
        "status": {"allocatable": {GPU: "8", "cpu": "64", "memory": "256Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn job(workers: u32) -> Value {
    json!({"metadata": {"name": "train", "namespace": "ns", "uid": JOB},
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": workers}}}})
}

/// A member of the job; bound by a plan where a node is named.
fn member(index: u32, node: &str, (plan, epoch): (&str, u64)) -> Value {
    let mut pod = json!({"metadata": {"name": format!("train-worker-{index}"), "namespace": "ns",
            "uid": format!("pod-{index}"),
            "ownerReferences": [{"kind": "PyTorchJob", "uid": JOB, "controller": true}]},
        "spec": {"schedulerName": "muster", "containers": [{"name": "c",
            "resources": {"limits": {GPU: "5"}, "requests": {GPU: "5"}}}]},
        "status": {"phase": "Pending"}});
    if !node.is_empty() {
        value::set(&mut pod, &["spec", "nodeName"], node);
        let record = json!({"muster.dev/plan": plan, "muster.dev/epoch": epoch.to_string()});
        value::set(&mut pod, &["metadata", "annotations"], record);
    }
    pod
}

/// A plan with a worker on each of these nodes.
fn plan(gang: &str, (id, epoch): (&str, u64), nodes: &[&str]) -> Value {
    let member = |(index, node): (usize, &&str)| json!({"role": "Worker", "index": index, "node": node, "devices": [format!("GPU-{node}")]});
    let members: Vec<Value> = nodes.iter().enumerate().map(member).collect();
    json!({"metadata": {"name": "train", "namespace": "ns", "uid": "gang-uid"},
        "spec": {"workload": {"uid": gang}},
        "status": {"planId": id, "epoch": epoch, "minimum": 2, "members": members}})
}

/// A judge who has seen two nodes and a job with two workers, and what time it is.
fn judge() -> (Judge, Instant) {
    let (mut judge, now) = (Judge::default(), Instant::now());
    for name in ["n1", "n2"] {
        judge.set("nodes", name, &node(name, false), now);
    }
    judge.set("pytorchjobs", JOB, &job(2), now);
    (judge, now)
}

/// Sees a member of the job as it is now.
fn see(judge: &mut Judge, pod: &Value, now: Instant) {
    judge.set("pods", value::uid(pod), pod, now);
}

const PLAN: (&str, u64) = ("e1-1", 1);

/// The job planned and bound as it should be, on these nodes.
fn run(judge: &mut Judge, nodes: [&str; 2], now: Instant) {
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &nodes), now);
    for index in 0..2 {
        see(judge, &member(index, "", PLAN), now);
    }
    for (index, node) in (0..).zip(nodes) {
        see(judge, &member(index, node, PLAN), now);
    }
}

/// Which rules were broken.
fn broken(judge: &Judge) -> Vec<&str> {
    let said = judge.violations.iter();
    let ids = said.filter_map(|violation| violation.text.split(':').next());
    let mut ids: Vec<&str> = ids.collect();
    ids.dedup();
    ids
}

#[test]
fn job_that_is_bound_as_planned_breaks_no_rule() {
    let (mut judge, now) = judge();
    judge.calm(true);
    run(&mut judge, ["n1", "n2"], now);
    judge.judge_time(now + Duration::from_secs(600));
    assert_eq!(broken(&judge), Vec::<&str>::new());
    assert_eq!(judge.bindings(), 2);
}

#[test]
fn s1_pods_that_hold_more_than_their_node_has_are_found() {
    let (mut judge, now) = judge();
    run(&mut judge, ["n1", "n1"], now);
    assert_eq!(broken(&judge), ["DEV-1"]);
}

/// One that is being deleted has its room until it is gone.
#[test]
fn s1_room_of_a_pod_that_terminates_is_not_free() {
    let (mut judge, now) = judge();
    let mut first = member(7, "n1", PLAN);
    value::set(
        &mut first,
        &["metadata", "deletionTimestamp"],
        "2026-01-01T00:00:00Z",
    );
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), now);
    judge.set("pytorchjobs", JOB, &job(1), now);
    see(&mut judge, &first, now);
    see(&mut judge, &member(0, "n1", PLAN), now);
    assert_eq!(broken(&judge), ["DEV-1"]);
}

#[test]
fn s2_plan_with_a_device_that_has_long_been_broken_is_found() {
    let (mut judge, now) = judge();
    judge.sick("GPU-n2", true);
    let soon = now + Duration::from_secs(20);
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), soon);
    assert_eq!(broken(&judge), Vec::<&str>::new(), "nobody can know yet");
    let late = now + Duration::from_secs(120);
    judge.set(
        "gangs",
        "gang-uid",
        &plan(JOB, ("e1-2", 1), &["n1", "n2"]),
        late,
    );
    assert_eq!(broken(&judge), ["S2"]);
}

#[test]
fn s3_gang_that_stays_bound_in_part_is_found() {
    let (mut judge, now) = judge();
    run(&mut judge, ["n1", "n2"], now);
    judge.calm(true);
    judge.gone("pods", &member(1, "n2", PLAN), now);
    judge.judge_time(now + Duration::from_secs(20));
    assert_eq!(broken(&judge), Vec::<&str>::new());
    judge.judge_time(now + Duration::from_secs(120));
    assert_eq!(broken(&judge), ["GANG-1"]);
}

#[test]
fn s4_binding_without_a_durable_plan_is_found() {
    let (mut judge, now) = judge();
    for index in 0..2 {
        see(&mut judge, &member(index, "", PLAN), now);
    }
    see(&mut judge, &member(0, "n1", PLAN), now);
    assert_eq!(broken(&judge), ["GANG-2"]);
}

#[test]
fn s4_binding_to_a_node_that_the_plan_does_not_name_is_found() {
    let (mut judge, now) = judge();
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n1"]), now);
    for index in 0..2 {
        see(&mut judge, &member(index, "", PLAN), now);
    }
    see(&mut judge, &member(0, "n2", PLAN), now);
    assert_eq!(broken(&judge), ["GANG-2"]);
}

#[test]
fn s4_plan_that_does_not_cover_the_minimum_is_found() {
    let (mut judge, now) = judge();
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1"]), now);
    assert_eq!(broken(&judge), ["GANG-2"]);
}

#[test]
fn s4_first_binding_before_all_members_are_there_is_found() {
    let (mut judge, now) = judge();
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), now);
    see(&mut judge, &member(0, "", PLAN), now);
    see(&mut judge, &member(0, "n1", PLAN), now);
    assert_eq!(broken(&judge), ["GANG-2"]);
}

#[test]
fn s7_plan_on_a_node_that_has_long_been_cordoned_is_found() {
    let (mut judge, now) = judge();
    judge.set("nodes", "n2", &node("n2", true), now);
    let late = now + Duration::from_secs(120);
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), late);
    assert_eq!(broken(&judge), ["PLACE-1"]);
}

/// A status of a Gang with this plan, as it is sent.
fn sent(id: &str) -> RequestInfo {
    RequestInfo {
        number: 1,
        client: CLIENT.into(),
        verb: "update".into(),
        group: "muster.dev".into(),
        resource: "gangs".into(),
        subresource: "status".into(),
        namespace: "ns".into(),
        name: "train".into(),
        continued: false,
        any_version: false,
        body: json!({"status": {"planId": id}}).to_string().into(),
    }
}

/// A storm lasts for 49 s at most, and a node is cordoned in it for half a minute: for as long as a minute was forgiven,
/// nothing of that could be found.
#[test]
fn s7_plan_on_a_node_that_its_sender_was_shown_as_cordoned_is_found_in_a_storm() {
    let (mut judge, now) = judge();
    let mut cordoned = node("n2", true);
    value::set(&mut cordoned, &["metadata", "resourceVersion"], "9");
    judge.set("nodes", "n2", &cordoned, now);
    let at = |seconds| now + Duration::from_secs(seconds);
    judge.sight.show(CLIENT, "nodes", 9, at(1));
    judge.sight.send(&sent("e1-1"), at(2));
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), at(40));
    assert_eq!(broken(&judge), Vec::<&str>::new(), "sent before, and late");
    judge.sight.send(&sent("e1-2"), at(20));
    judge.set(
        "gangs",
        "gang-uid",
        &plan(JOB, ("e1-2", 1), &["n1", "n2"]),
        at(20),
    );
    assert_eq!(broken(&judge), ["PLACE-1"]);
}

#[test]
fn s8_binding_by_the_plan_of_another_job_is_found() {
    let (mut judge, now) = judge();
    judge.set(
        "gangs",
        "gang-uid",
        &plan("another", PLAN, &["n1", "n2"]),
        now,
    );
    for index in 0..2 {
        see(&mut judge, &member(index, "", PLAN), now);
    }
    see(&mut judge, &member(0, "n1", PLAN), now);
    assert_eq!(broken(&judge), ["GANG-2"]);
    let said = judge
        .first()
        .map(|violation| violation.text)
        .unwrap_or_default();
    assert!(said.contains("which is of gang ns/another"), "{said}");
}

#[test]
fn s9_binding_of_an_epoch_before_the_last_plans_is_found() {
    let (mut judge, now) = judge();
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), now);
    judge.set(
        "gangs",
        "gang-uid",
        &plan(JOB, ("e2-1", 2), &["n1", "n2"]),
        now,
    );
    for index in 0..2 {
        see(&mut judge, &member(index, "", PLAN), now);
    }
    see(&mut judge, &member(0, "n1", PLAN), now);
    assert_eq!(broken(&judge), ["LEAD-1"]);
}

#[test]
fn s9_plan_of_an_epoch_before_the_last_plans_is_found() {
    let (mut judge, now) = judge();
    judge.set(
        "gangs",
        "gang-uid",
        &plan(JOB, ("e2-1", 2), &["n1", "n2"]),
        now,
    );
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), now);
    assert_eq!(broken(&judge), ["LEAD-1"]);
}

#[test]
fn s14_plan_on_a_node_whose_agent_has_long_been_silent_is_found() {
    let (mut judge, now) = judge();
    judge.silent("n2", true);
    let late = now + Duration::from_secs(120);
    judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), late);
    assert_eq!(broken(&judge), ["INV-1"]);
}

/// Seed 52010453: a gang of five that ran lost its Gang object, its leader and its nodes one after the other, and what was
/// planned of it by then was held against a leader that made whole what was left.
#[test]
fn plan_of_a_gang_that_runs_may_lack_places_and_that_of_one_that_does_not_may_not() {
    let mut part = plan(JOB, ("e2-1", 2), &["n1", "n2"]);
    value::set(&mut part, &["status", "minimum"], 3);
    let first = part.pointer_mut("/status/members/0").unwrap();
    value::set(first, &["podUid"], "pod-0");
    let mut says = part.clone();
    let first = says.pointer_mut("/status/members/0").unwrap();
    value::set(first, &["bound"], true);
    // Which member runs, what the plan says of it, and what is broken by that.
    let none: &[&str] = &[];
    for (runs, plan, expected) in [
        (Some(0), &says, none),
        (Some(1), &says, &["GANG-2"]),
        (None, &says, &["GANG-2"]),
        (Some(0), &part, &["GANG-2"]),
    ] {
        let (mut judge, now) = judge();
        run(&mut judge, ["n1", "n2"], now);
        for gone in (0..2).filter(|index| Some(*index) != runs) {
            judge.gone("pods", &member(gone, "n1", PLAN), now);
        }
        judge.set("gangs", "gang-uid", plan, now);
        assert_eq!(broken(&judge), expected, "{runs:?} {plan}");
    }
}

/// Seed 52004932: two of two were there when the Bindings were sent, one of which was throttled for two seconds; by then the
/// job had grown twice, and it was held to what it had asked for in between.
#[test]
fn gang_that_grew_twice_since_its_bindings_were_sent_is_held_to_what_it_asked_for_then() {
    for (bound_after, expected) in [(2, vec![]), (120, vec!["GANG-2"])] {
        let (mut judge, now) = judge();
        let at = |ms| now + Duration::from_millis(ms);
        judge.set("gangs", "gang-uid", &plan(JOB, PLAN, &["n1", "n2"]), now);
        for index in 0..2 {
            see(&mut judge, &member(index, "", PLAN), now);
        }
        judge.gone("pods", &member(1, "", PLAN), at(40));
        judge.set("pytorchjobs", JOB, &job(4), at(1_000));
        judge.set("pytorchjobs", JOB, &job(5), at(1_100));
        see(&mut judge, &member(0, "n1", PLAN), at(bound_after * 1_000));
        assert_eq!(broken(&judge), expected, "{bound_after} s");
    }
}

/// Seeds 52010739 and 52008235: a plan that had been given back was written late, and a member that had joined an older plan
/// meanwhile, in the room that was free again, was held against it.
#[test]
fn plan_that_arrives_late_is_not_held_to_a_member_that_joined_an_older_one_meanwhile() {
    for (sent_at, expected) in [(1, vec![]), (120, vec!["DEV-1"])] {
        let (mut judge, now) = judge();
        let at = |seconds| now + Duration::from_secs(seconds);
        judge.set("nodes", "n3", &node("n3", false), now);
        run(&mut judge, ["n1", "n2"], now);
        if sent_at == 1 {
            judge.sight.send(&sent("e1-2"), at(1));
        }
        judge.set("pytorchjobs", JOB, &job(3), at(20));
        let mut grown = plan(JOB, PLAN, &["n1", "n2", "n3"]);
        let third = grown.pointer_mut("/status/members/2").unwrap();
        value::set(third, &["podUid"], "pod-2");
        judge.set("gangs", "gang-uid", &grown, at(20));
        see(&mut judge, &member(2, "", PLAN), at(20));
        see(&mut judge, &member(2, "n3", PLAN), at(20));
        if sent_at == 120 {
            judge.sight.send(&sent("e1-2"), at(120));
        }
        let late = plan("other", ("e1-2", 1), &["n3"; 4]);
        judge.set("gangs", "other", &late, at(sent_at + 25));
        assert_eq!(broken(&judge), expected, "sent at {sent_at} s");
    }
}
