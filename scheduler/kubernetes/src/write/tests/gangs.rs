//! Gang objects and their status.

use std::sync::Arc;

use jiff::Timestamp;
use muster_core::ids::{Epoch, GangKey};
use muster_core::reason::Reason;
use muster_core::record::{GangStatus as CoreStatus, Phase, PlanRecord, SlotRecord};
use muster_core::workload::WorkloadKind;
use serde_json::json;

use super::super::{gang_object, own, status};
use crate::gang::{Condition, GangStatus};
use crate::translate::record;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn planned() -> CoreStatus {
    let slot = |index: u32, node: &str, bound: bool| SlotRecord {
        role: "Worker".into(),
        index,
        node: node.into(),
        devices: vec!["GPU-1".into()],
        pod: bound.then(|| "pu".into()),
        pod_name: bound.then(|| Arc::from("j-worker-0")),
        bound,
        ended: false,
    };
    CoreStatus {
        phase: Phase::Starting,
        reason: Some(Reason::Gathering {
            planned: 2,
            said: None,
        }),
        plan: Some(PlanRecord {
            id: "e7-1".into(),
            epoch: Epoch(7),
            minimum: 2,
            slots: vec![slot(0, "n1", true), slot(1, "n1", false)],
        }),
        bound: 1,
        total: 2,
        minimum: 2,
        observed_generation: 5,
        ignored: None,
        failing: None,
    }
}

#[test]
fn keys_that_nobody_reads_are_a_condition_and_go_with_the_slip() {
    let of = |status: &GangStatus| -> Vec<(String, String, String, String)> {
        let conditions = status.conditions.iter().cloned();
        let words = |it: Condition| (it.type_, it.status, it.reason, it.message);
        conditions.map(words).collect()
    };
    let said = "muster.dev/required-topolgy is ignored, did you mean muster.dev/required-topology?";
    let mut core = planned();
    core.ignored = Some(said.into());
    let first = status(&core, None, at(60));
    let ignored = ("KeysIgnored", "True", "UnknownKey", said);
    let (type_, holds, reason, message) = ignored;
    assert_eq!(
        of(&first)[2..],
        [(
            type_.to_owned(),
            holds.to_owned(),
            reason.to_owned(),
            message.to_owned()
        )]
    );
    // The same bytes later on, and nothing else differs from a status without it.
    let second = status(&core, Some(&first), at(120));
    assert_eq!(second, first);
    core.ignored = None;
    let mended = status(&core, Some(&first), at(120));
    assert_eq!(of(&mended), of(&first)[..2]);
    assert_eq!(
        (mended.phase, mended.reason, mended.message),
        (first.phase, first.reason, first.message)
    );
}

/// `kubectl explain` said "Placed or Running" when there were four.
#[test]
fn every_condition_that_a_gang_may_have_is_explained() {
    let mut core = planned();
    core.ignored = Some("a key".into());
    core.failing = Some("a GPU".into());
    let written = status(&core, None, at(60));
    let printed = crate::manifests::crds();
    let explains: Vec<&str> = printed
        .lines()
        .filter(|line| line.contains("description: ") && line.contains("Placed"))
        .collect();
    assert_eq!(explains.len(), 2, "the list and the type: {explains:?}");
    assert_eq!(written.conditions.len(), 4);
    for condition in written.conditions {
        for line in &explains {
            assert!(line.contains(&condition.type_), "{line}");
        }
    }
}

#[test]
fn gang_belongs_to_its_workload() {
    let key = GangKey::new("ns", "ju");
    for (kind, owner) in [
        (
            WorkloadKind::PyTorchJob,
            json!([{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "j",
            "uid": "ju", "controller": false, "blockOwnerDeletion": false}]),
        ),
        (
            WorkloadKind::Pod,
            json!([{"apiVersion": "v1", "kind": "Pod", "name": "j",
            "uid": "ju", "controller": false, "blockOwnerDeletion": false}]),
        ),
        (WorkloadKind::PodGroup, json!(null)),
        (WorkloadKind::Label, json!(null)),
    ] {
        let gang = serde_json::to_value(gang_object(&key, kind, "j", "g")).expect("JSON");
        assert_eq!(gang["apiVersion"], "muster.dev/v1alpha1");
        assert_eq!(gang["metadata"]["namespace"], "ns");
        assert_eq!(gang["metadata"]["name"], "g");
        assert_eq!(
            gang["metadata"]
                .get("ownerReferences")
                .unwrap_or(&json!(null)),
            &owner
        );
        assert_eq!(
            gang["spec"]["workload"],
            json!({"kind": kind.as_str(), "name": "j", "uid": "ju"})
        );
    }
    let mut gang = gang_object(
        &GangKey::new("ns", "podgroup/g"),
        WorkloadKind::PodGroup,
        "g",
        "g",
    );
    own(&mut gang, WorkloadKind::PodGroup, "g", "real-uid");
    let owners = gang.metadata.owner_references.expect("an owner");
    assert_eq!(
        (owners[0].uid.as_str(), owners[0].api_version.as_str()),
        ("real-uid", "scheduling.x-k8s.io/v1alpha1")
    );
}

#[test]
fn status_is_read_back_as_the_same_plan() {
    let written = planned();
    let mut gang = gang_object(
        &GangKey::new("ns", "ju"),
        WorkloadKind::PyTorchJob,
        "j",
        "g",
    );
    gang.status = Some(status(&written, None, at(0)));
    let text = serde_json::to_string(&gang).expect("JSON");
    let read = record(&serde_json::from_str(&text).expect("a Gang")).expect("a record");
    assert_eq!(read.plan, Ok(written.plan));
    assert_eq!(
        (read.phase, read.key),
        (Phase::Starting, GangKey::new("ns", "ju"))
    );
}

#[test]
fn status_reads_well() {
    let value = serde_json::to_value(status(&planned(), None, at(61))).expect("JSON");
    assert_eq!(value["phase"], "Starting");
    assert_eq!(value["membersBound"], "1/2");
    assert_eq!(value["reason"], "Gathering");
    assert_eq!(
        value["message"],
        "waits until kube-scheduler has accepted all 2 members on their planned nodes"
    );
    assert_eq!(
        (&value["epoch"], &value["observedGeneration"]),
        (&json!(7), &json!(5))
    );
    assert_eq!(
        value["conditions"],
        json!([
            {"type": "Placed", "status": "True", "observedGeneration": 5, "lastTransitionTime": "1970-01-01T00:01:01Z",
             "reason": "Planned", "message": "plan e7-1: 2 members on 1 nodes"},
            {"type": "Running", "status": "False", "observedGeneration": 5, "lastTransitionTime": "1970-01-01T00:01:01Z",
             "reason": "Gathering", "message": "waits until kube-scheduler has accepted all 2 members on their planned nodes"},
        ])
    );
    let unknown = status(&CoreStatus::default(), None, at(0));
    assert_eq!(unknown.members_bound.as_deref(), Some("0/?"));
    assert_eq!(unknown.conditions[0].reason, "Waiting");
}

#[test]
fn transition_time_stays_while_the_status_does() {
    let first = status(&planned(), None, at(10));
    let mut running = planned();
    running.phase = Phase::Running;
    running.reason = Some(Reason::AllBound);
    let second = status(&running, Some(&first), at(20));
    let times = |status: &crate::gang::GangStatus| -> Vec<String> {
        status
            .conditions
            .iter()
            .map(|condition| condition.last_transition_time.clone())
            .collect()
    };
    assert_eq!(
        times(&second),
        ["1970-01-01T00:00:10Z", "1970-01-01T00:00:20Z"]
    );
    assert_eq!(status(&running, Some(&second), at(30)), second);
}

#[test]
fn epoch_stays_without_a_plan_and_is_never_dressed_up() {
    let first = status(&planned(), None, at(0));
    let without = status(&CoreStatus::default(), Some(&first), at(1));
    assert_eq!((without.epoch, without.plan_id.as_deref()), (Some(7), None));
    // An earlier leader's plan carries its own epoch, for the API server to refuse.
    let mut older = planned();
    if let Some(plan) = &mut older.plan {
        plan.epoch = Epoch(3);
    }
    assert_eq!(status(&older, Some(&without), at(1)).epoch, Some(3));
}

#[test]
fn long_reasons_are_cut() {
    let long = CoreStatus {
        reason: Some(Reason::UnreadableRecord("x".repeat(5000).into())),
        ..CoreStatus::default()
    };
    let written = status(&long, None, at(0));
    let message = written.message.expect("a message");
    assert_eq!(message.chars().count(), 1024);
    assert!(message.ends_with("..."));
    assert_eq!(written.conditions[1].message, message);
}
