//! Translation, as tables of short YAML and what becomes of it.

mod between;
mod jobs;
mod pods;
mod spoiled;

use muster_core::ids::ResourceName;
use muster_core::node::TaintEffect;
use muster_core::resources::Resources;
use serde::de::DeserializeOwned;

use super::*;
use crate::gang::{Gang, GangStatus, Member};

fn read<T: DeserializeOwned>(yaml: &str) -> T {
    // `n` and `y` are names here, as in Kubernetes.
    let options = serde_saphyr::options! { strict_booleans: true };
    let value: serde_json::Value = serde_saphyr::from_str_with_options(yaml, options).expect(yaml);
    serde_json::from_value(value).expect(yaml)
}

/// Amounts in short: `cpu=500m mem=1024 nvidia.com/gpu=8`.
fn amounts(resources: &Resources) -> String {
    let mut parts = Vec::new();
    if resources.milli_cpu > 0 {
        parts.push(format!("cpu={}m", resources.milli_cpu));
    }
    if resources.memory_bytes > 0 {
        parts.push(format!("mem={}", resources.memory_bytes));
    }
    if resources.ephemeral_bytes > 0 {
        parts.push(format!("disk={}", resources.ephemeral_bytes));
    }
    for (name, amount) in &resources.extended {
        parts.push(match *amount {
            u64::MAX => format!("{name}=max"),
            amount => format!("{name}={amount}"),
        });
    }
    parts.join(" ")
}

#[test]
fn node_is_what_placement_looks_at() {
    let node = node(&read(
        "
metadata: {name: n1, uid: u1, labels: {pool: a}, managedFields: [{manager: x}], deletionTimestamp: '2026-01-01T00:00:00Z'}
spec:
  unschedulable: true
  taints:
    - {key: gpu, value: 'yes', effect: NoSchedule}
    - {key: soft, effect: PreferNoSchedule}
    - {key: odd, effect: Sometimes}
status:
  allocatable: {cpu: 3920m, memory: 1Gi, ephemeral-storage: 2k, pods: '110', nvidia.com/gpu: 8, nvidia.com/mig-1g.5gb: 0, odd/one: eight}
  conditions: [{type: MemoryPressure, status: 'False'}, {type: Ready, status: 'True', reason: KubeletReady}]
  images: [{names: [a, b], sizeBytes: 1}]
  nodeInfo: {bootID: b1, kernelVersion: 6.8.0}
",
    ));
    assert_eq!((node.name.as_str(), &*node.uid), ("n1", "u1"));
    assert_eq!(node.boot_id.as_deref(), Some("b1"));
    assert_eq!(node.labels.get("pool").map(AsRef::as_ref), Some("a"));
    assert!(node.unschedulable && node.ready && node.terminating);
    let taints: Vec<_> = node
        .taints
        .iter()
        .map(|taint| (&*taint.key, &*taint.value, taint.effect))
        .collect();
    assert_eq!(
        taints,
        [
            ("gpu", "yes", TaintEffect::NoSchedule),
            ("soft", "", TaintEffect::PreferNoSchedule)
        ]
    );
    assert_eq!(
        amounts(&node.allocatable),
        "cpu=3920m mem=1073741824 disk=2000 nvidia.com/gpu=8"
    );
    assert_eq!(node.allocatable.pods, 110);
}

#[test]
fn boot_id_that_is_empty_or_absent_is_not_known() {
    for status in ["{nodeInfo: {bootID: ''}}", "{nodeInfo: null}", "{}"] {
        let yaml = format!("{{metadata: {{name: n}}, status: {status}}}");
        assert_eq!(node(&read(&yaml)).boot_id, None, "{status}");
    }
}

#[test]
fn node_is_ready_only_when_it_says_so() {
    for (conditions, ready) in [
        ("[]", false),
        ("null", false),
        ("[{type: Ready, status: 'False'}]", false),
        ("[{type: Ready, status: Unknown}]", false),
        ("[{type: Ready, status: 'True'}]", true),
    ] {
        let yaml = format!("{{metadata: {{name: n}}, status: {{conditions: {conditions}}}}}");
        assert_eq!(node(&read(&yaml)).ready, ready, "{conditions}");
    }
}

#[test]
fn pod_group_is_a_minimum_and_its_pods() {
    for (spec, expected) in [
        ("{minMember: 3}", Ok(Some(3))),
        ("{minMember: 0}", Ok(None)),
        ("{}", Ok(None)),
        ("null", Ok(None)),
        (
            "{minMember: -1}",
            Err("spec.minMember is -1: must be a whole number from 0 to 16384"),
        ),
        (
            "{minMember: 1000000000}",
            Err("spec.minMember is 1000000000: must be a whole number from 0 to 16384"),
        ),
        (
            "{minMember: two}",
            Err("spec.minMember is two: must be a whole number from 0 to 16384"),
        ),
        ("[1]", Ok(None)),
    ] {
        let yaml = format!(
            "{{metadata: {{name: g, namespace: ns, uid: u, creationTimestamp: '1970-01-01T00:01:00Z'}}, spec: {spec}}}"
        );
        let group = pod_group(&read(&yaml)).expect("ours");
        assert_eq!(group.key, GangKeyOf("ns", "podgroup/g").into());
        assert_eq!(group.created_seconds, 60);
        let found = match &group.invalid {
            None => Ok(group.minimum),
            Some(invalid) => Err(invalid.to_string()),
        };
        assert_eq!(found, expected.map_err(str::to_owned), "{spec}");
    }
}

/// A key, short to write.
struct GangKeyOf(&'static str, &'static str);

impl From<GangKeyOf> for muster_core::ids::GangKey {
    fn from(key: GangKeyOf) -> Self {
        Self::new(key.0, key.1)
    }
}

#[test]
fn pod_group_made_from_a_job_gives_way_to_the_job() {
    for (owner, ours) in [
        (
            "{apiVersion: kubeflow.org/v1, kind: PyTorchJob, name: g, uid: j, controller: true}",
            false,
        ),
        (
            "{apiVersion: kubeflow.org/v1, kind: PyTorchJob, name: g, uid: j}",
            true,
        ),
        (
            "{apiVersion: kubeflow.org/v1, kind: TFJob, name: g, uid: j, controller: true}",
            true,
        ),
        (
            "{apiVersion: evil.org/v1, kind: PyTorchJob, name: g, uid: j, controller: true}",
            true,
        ),
    ] {
        let yaml = format!(
            "{{metadata: {{name: g, namespace: ns, ownerReferences: [{owner}]}}, spec: {{minMember: 2}}}}"
        );
        assert_eq!(pod_group(&read(&yaml)).is_some(), ours, "{owner}");
    }
}

fn gang(status: GangStatus) -> Gang {
    let mut gang: Gang = read(
        "{metadata: {name: g, namespace: ns, uid: gu, resourceVersion: '7'}, spec: {workload: {kind: PyTorchJob, name: j, uid: ju}}}",
    );
    gang.status = Some(status);
    gang
}

#[test]
fn record_is_the_plan_that_was_written() {
    let found = record(&gang(GangStatus {
        record_version: 1,
        plan_id: Some("e2-5".into()),
        epoch: Some(2),
        phase: "Running".into(),
        members: vec![Member {
            role: "Worker".into(),
            index: 3,
            node: "n1".into(),
            devices: vec!["GPU-1".into()],
            pod: Some("j-worker-3".into()),
            pod_uid: Some("pu".into()),
            bound: true,
            ended: true,
        }],
        ..GangStatus::default()
    }))
    .expect("a record");
    assert_eq!(found.key, GangKeyOf("ns", "ju").into());
    assert_eq!((&*found.object, &*found.object_uid), ("g", "gu"));
    assert_eq!(found.phase, muster_core::record::Phase::Running);
    let plan = found.plan.expect("readable").expect("a plan");
    assert_eq!((plan.id.as_str(), plan.epoch.0), ("e2-5", 2));
    let slot = &plan.slots[0];
    assert_eq!(
        (
            slot.role.as_str(),
            slot.index,
            slot.node.as_str(),
            slot.bound,
            slot.ended
        ),
        ("Worker", 3, "n1", true, true)
    );
    assert_eq!(slot.pod.as_ref().map(|uid| uid.as_str()), Some("pu"));
}

#[test]
fn record_that_cannot_be_read_says_so_in_its_plan() {
    let planned = GangStatus {
        record_version: 1,
        plan_id: Some("e1-1".into()),
        epoch: Some(1),
        members: vec![Member {
            role: "Worker".into(),
            node: "n".into(),
            ..Member::default()
        }],
        ..GangStatus::default()
    };
    type Spoil = fn(&mut GangStatus);
    let cases: &[(Spoil, &str)] = &[
        (
            |status| status.record_version = 2,
            "status.recordVersion is 2: this version reads up to 1",
        ),
        (
            |status| status.epoch = None,
            "status.epoch is missing: must be set where status.planId is",
        ),
        (
            |status| status.epoch = Some(-1),
            "status.epoch is missing: must be set where status.planId is",
        ),
        (
            |status| status.members[0].node.clear(),
            "status.members[0] lacks role or node",
        ),
        (
            |status| status.members[0].index = -1,
            "status.members[0].index is -1: must not be negative",
        ),
    ];
    for (spoil, expected) in cases {
        let mut status = planned.clone();
        spoil(&mut status);
        let plan = record(&gang(status)).expect("a record").plan;
        assert_eq!(plan, Err(Arc::from(*expected)));
    }
    assert!(matches!(
        record(&gang(GangStatus::default())).expect("a record").plan,
        Ok(None)
    ));
}

#[test]
fn gang_that_does_not_say_whose_it_is_is_no_record() {
    for (yaml, expected) in [
        (
            "{metadata: {name: g, namespace: ns}, spec: {workload: {kind: CronJob, name: j, uid: u}}}",
            "spec.workload.kind is CronJob: must be PyTorchJob, PodGroup, Label or Pod",
        ),
        (
            "{metadata: {name: g, namespace: ns}, spec: {workload: {kind: Pod, name: j, uid: ''}}}",
            "spec.workload.uid is empty: must be set",
        ),
        (
            "{metadata: {name: g}, spec: {workload: {kind: Pod, name: j, uid: u}}}",
            "metadata.namespace is empty: must be set",
        ),
    ] {
        assert_eq!(record(&read(yaml)), Err(expected.to_owned()));
    }
}

#[test]
fn values_in_messages_are_short_and_on_one_line() {
    assert_eq!(shortened("a\nb"), "a b");
    assert_eq!(shortened(&"x".repeat(64)), "x".repeat(64));
    let short = shortened(&"\u{e9}".repeat(300));
    assert_eq!(short.chars().count(), 64);
    assert!(short.ends_with("..."));
}

#[test]
fn device_patterns_are_those_of_the_configuration() {
    let rules = PodRules::default();
    for (name, device) in [
        ("nvidia.com/gpu", true),
        ("nvidia.com/mig-1g.5gb", true),
        ("nvidia.com/gpuu", false),
        ("vpc.amazonaws.com/efa", false),
    ] {
        assert_eq!(rules.config.is_device(&ResourceName::from(name)), device);
    }
}
