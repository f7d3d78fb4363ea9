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
    let sent = |id: &str| RequestInfo {
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
    };
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
