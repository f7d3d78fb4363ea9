//! Good objects with one part replaced by anything: translation answers, and harms nobody else.

use muster_core::action::JobChange;
use muster_core::workload::{MEMBERS_MAX, MemberSource};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::*;
use super::read;
use crate::lite::{LitePod, LitePodGroup, LitePyTorchJob};
use crate::write::job_patch;

/// Any small JSON value, with the numbers and texts that hurt.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![
            Just(0),
            Just(-1),
            Just(i64::MIN),
            Just(i64::MAX),
            Just(1_000_000_000)
        ]
        .prop_map(Value::from),
        Just(json!(u64::MAX)),
        Just(json!(1e300)),
        prop_oneof![
            Just(String::new()),
            Just("muster".to_owned()),
            Just("x".repeat(300)),
            ".{0,8}"
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,4}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// Paths of every part of a value.
fn paths(value: &Value, prefix: &str, all: &mut Vec<String>) {
    all.push(prefix.to_owned());
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                paths(value, &format!("{prefix}/{}", escaped(key)), all);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                paths(value, &format!("{prefix}/{index}"), all);
            }
        }
        _ => {}
    }
}

/// `good` with one part under `/spec` or `/status` replaced.
fn spoiled(good: Value) -> impl Strategy<Value = Value> {
    let mut all = Vec::new();
    paths(&good, "", &mut all);
    all.retain(|path| path.starts_with("/spec") || path.starts_with("/status"));
    (proptest::sample::select(all), anything()).prop_map(move |(path, value)| {
        let mut bad = good.clone();
        if let Some(part) = bad.pointer_mut(&path) {
            *part = value;
        }
        bad
    })
}

fn good_job() -> Value {
    read(
        "
metadata: {name: j, namespace: ns, uid: ju, resourceVersion: '1', annotations: {muster.dev/hold: queued, muster.dev/pinned: '{\"Worker\":{\"nodes\":[\"n1\"]}}', muster.dev/elastic-minimum: 'true'}}
spec:
  elasticPolicy: {minReplicas: 2}
  runPolicy: {suspend: true, managedBy: '', schedulingPolicy: {minAvailable: 3, priorityClass: high}}
  pytorchReplicaSpecs:
    Master: {replicas: 1, template: {spec: {schedulerName: muster, containers: [{name: pytorch}]}}}
    Worker:
      replicas: 3
      template:
        spec:
          schedulerName: muster
          hostNetwork: true
          nodeSelector: {pool: a}
          tolerations: [{key: gpu, operator: Exists}]
          affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [a]}], matchFields: [{key: metadata.name, operator: In, values: [n1]}]}]}}}
          initContainers: [{name: i, restartPolicy: Always, resources: {requests: {cpu: 1}}}]
          containers: [{name: pytorch, ports: [{containerPort: 1}], resources: {requests: {cpu: 1}, limits: {cpu: 2, nvidia.com/gpu: 8}}}]
status: {conditions: [{type: Running, status: 'True'}]}
",
    )
}

fn good_pod() -> Value {
    read(
        "
metadata: {name: p, namespace: ns, uid: pu}
spec:
  schedulerName: muster
  nodeName: n1
  overhead: {cpu: 1}
  resources: {requests: {cpu: 1}}
  schedulingGates: [{name: muster.dev/gang}]
  containers: [{name: c, ports: [{containerPort: 1, hostPort: 2}], resources: {limits: {nvidia.com/gpu: 8}}}]
status: {phase: Running, conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: m}]}
",
    )
}

proptest! {
    #[test]
    fn f46_spoiled_job_is_a_gang_or_a_reason(bad in spoiled(good_job())) {
        let job: LitePyTorchJob = serde_json::from_value(bad.clone()).expect("a LIST never fails");
        for change in [JobChange::Hold, JobChange::Strip] {
            let _ = job_patch(&bad, &change, "ju", "1");
        }
        let Some(workload) = pytorchjob(&job, &PodRules::default()) else {
            return Ok(());
        };
        if let Some(invalid) = &workload.invalid {
            prop_assert!(invalid.value.chars().count() <= 64, "{}", invalid);
            prop_assert!(invalid.field.starts_with("spec"), "{}", invalid);
            prop_assert!(!invalid.limit.is_empty());
        } else {
            let MemberSource::Roles(roles) = &workload.members else {
                panic!("roles");
            };
            let total: u32 = roles.iter().map(|role| role.count).sum();
            prop_assert!((1..=MEMBERS_MAX).contains(&total));
            prop_assert!(workload.minimum.is_none_or(|minimum| (1..=2 * MEMBERS_MAX).contains(&minimum)));
        }
    }

    #[test]
    fn f46_spoiled_pod_group_is_a_gang_or_a_reason(spec in anything(), minimum in anything()) {
        for spec in [spec, json!({"minMember": minimum})] {
            let group: LitePodGroup = serde_json::from_value(json!({"metadata": {"name": "g"}, "spec": spec}))
                .expect("a LIST never fails");
            let workload = pod_group(&group).expect("ours");
            prop_assert!(workload.minimum.is_none_or(|minimum| (1..=MEMBERS_MAX).contains(&minimum)));
        }
    }

    #[test]
    fn f46_spoiled_pod_is_a_pod_or_no_pod(bad in spoiled(good_pod())) {
        if let Ok(lite) = serde_json::from_value::<LitePod>(bad) {
            let read = pod(&lite, &PodRules::default());
            prop_assert_eq!(read.shape.requests.pods, 1);
            prop_assert_eq!(read.uid.as_str(), "pu");
        }
    }
}
