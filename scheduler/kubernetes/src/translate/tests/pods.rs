//! Pods: what they ask for, where they may stand, whom they belong to.

use muster_core::node::SelectorOperator;
use muster_core::pod::{MembershipSource, Pod, PodPhase};

use super::super::*;
use super::{amounts, read};

fn pod_of(yaml: &str) -> Pod {
    pod(&read(yaml), &PodRules::default())
}

#[test]
fn what_a_pod_asks_of_the_topology_is_read_and_nothing_else_of_its_annotations() {
    let text = "
metadata:
  annotations: {muster.dev/required-topology: rack, muster.dev/plan: e1-1, other: x}
spec: {schedulerName: muster}
";
    let pod = pod_of(text);
    let settings: Vec<_> = pod.settings.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(settings, [("muster.dev/required-topology", "rack")]);
}

#[test]
fn what_a_gang_of_pods_wants_done_about_a_failed_gpu_is_read_from_its_pods() {
    let pod = pod_of(
        "
metadata: {annotations: {muster.dev/on-gpu-failure: Evict}}
spec: {schedulerName: muster}
",
    );
    let asked = muster_core::failure::OnGpuFailure::of(&pod.settings);
    assert_eq!(asked, Ok(Some(muster_core::failure::OnGpuFailure::Evict)));
}

#[test]
fn mistyped_keys_of_a_pod_are_spoken_of_if_it_is_ours() {
    let said = |scheduler: &str| {
        let pod = pod_of(&format!(
            "
metadata:
  labels: {{muster.dev/gang: g, muster.dev/gang-sise: '3'}}
  annotations: {{muster.dev/devices: GPU-1, muster.dev/epoch: '3'}}
spec: {{schedulerName: {scheduler}}}
"
        ));
        muster_core::settings::ignored(&pod.settings)
    };
    let wanted = "muster.dev/gang-sise is ignored, did you mean muster.dev/gang-size?";
    assert_eq!(said("muster").as_deref(), Some(wanted));
    assert_eq!(said("default-scheduler"), None);
}

/// The core tells slips from keys by a list of its own: it holds every name that this crate uses.
#[test]
fn every_key_that_is_used_is_known_as_one() {
    let source = include_str!("../../names.rs");
    let mut used: Vec<&str> = source
        .split('"')
        .filter(|word| word.starts_with(names::PREFIX) && *word != names::PREFIX)
        .chain(muster_core::topology::KEYS)
        .chain([muster_core::failure::ON_GPU_FAILURE])
        .collect();
    let all = muster_core::settings::OF_USERS.into_iter();
    let mut known: Vec<&str> = all.chain(muster_core::settings::OWN).collect();
    for list in [&mut used, &mut known] {
        list.sort_unstable();
        list.dedup();
    }
    assert_eq!(used, known);
}

#[test]
fn t18_requests_are_counted_as_kubernetes_counts_them() {
    let cases = [
        (
            "containers: [{resources: {requests: {cpu: 1, memory: 1k}}}, {resources: {requests: {cpu: 500m}}}]",
            "cpu=1500m mem=1000",
        ),
        (
            "containers: [{resources: {limits: {cpu: 2, nvidia.com/gpu: 8}, requests: {cpu: 1}}}]",
            "cpu=1000m nvidia.com/gpu=8",
        ),
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: 1e0}}}, {resources: {limits: {nvidia.com/gpu: '1.0'}}}]",
            "nvidia.com/gpu=2",
        ),
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: 0}}}]",
            "",
        ),
        // Init phase: the largest init container against the sum of the others.
        (
            "initContainers: [{resources: {requests: {cpu: 4}}}, {resources: {requests: {memory: 5k}}}]\n\
          containers: [{resources: {requests: {cpu: 1, memory: 1k}}}]",
            "cpu=4000m mem=5000",
        ),
        (
            "initContainers: [{resources: {limits: {nvidia.com/gpu: 2}}}]\ncontainers: [{}]",
            "nvidia.com/gpu=2",
        ),
        // A sidecar runs beside the containers and beside later init containers, not earlier ones.
        (
            "initContainers: [{resources: {requests: {cpu: 3}}}, {restartPolicy: Always, resources: {requests: {cpu: 1}}}]\n\
          containers: [{resources: {requests: {cpu: 1}}}]",
            "cpu=3000m",
        ),
        (
            "initContainers: [{restartPolicy: Always, resources: {requests: {cpu: 1}}}, {resources: {requests: {cpu: 3}}}]\n\
          containers: [{resources: {requests: {cpu: 1}}}]",
            "cpu=4000m",
        ),
        (
            "initContainers: [{restartPolicy: Always, resources: {limits: {nvidia.com/gpu: 1}}}]\n\
          containers: [{resources: {limits: {nvidia.com/gpu: 1}}}]",
            "nvidia.com/gpu=2",
        ),
        // Overhead, and requests of the pod as a whole.
        (
            "overhead: {cpu: 250m}\ncontainers: [{resources: {requests: {cpu: 1}}}]",
            "cpu=1250m",
        ),
        (
            "resources: {requests: {cpu: 5, memory: 7k}}\noverhead: {cpu: 1}\n\
          containers: [{resources: {requests: {cpu: 1}, limits: {nvidia.com/gpu: 1}}}]",
            "cpu=6000m mem=7000 nvidia.com/gpu=1",
        ),
        (
            "resources: {limits: {cpu: 5, memory: 7k}}\ncontainers: [{resources: {requests: {cpu: 1}}}]",
            "cpu=1000m mem=7000",
        ),
        (
            "resources: {requests: {nvidia.com/gpu: 4}}\ncontainers: [{}]",
            "",
        ),
        (
            "resources: {requests: {hugepages-2Mi: 4Mi}}\ncontainers: [{}]",
            "hugepages-2Mi=4194304",
        ),
        // What cannot be read or counted fits nowhere.
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: eight}}}]",
            "nvidia.com/gpu=max",
        ),
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: -1}}}]",
            "nvidia.com/gpu=max",
        ),
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: 99999999999999999999E}}}]",
            "nvidia.com/gpu=max",
        ),
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: [1]}}}]",
            "nvidia.com/gpu=max",
        ),
        (
            "containers: [{resources: {limits: {a/b: 18446744073709551615}}}, {resources: {limits: {a/b: 5}}}]",
            "a/b=max",
        ),
        ("containers: null", ""),
    ];
    for (spec, expected) in cases {
        let yaml = format!("spec:\n  {}", spec.replace('\n', "\n  "));
        let pod = pod_of(&yaml);
        assert_eq!(amounts(&pod.shape.requests), expected, "{spec}");
        assert_eq!(pod.shape.requests.pods, 1, "{spec}");
    }
}

#[test]
fn host_ports_are_those_of_the_node() {
    let cases = [
        ("containers: [{ports: [{containerPort: 80}]}]", ""),
        (
            "containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]",
            "TCP 0.0.0.0 8080",
        ),
        (
            "containers: [{ports: [{containerPort: 80, hostPort: 8080, hostIP: 10.0.0.1, protocol: UDP}]}]",
            "UDP 10.0.0.1 8080",
        ),
        (
            "hostNetwork: true\n  containers: [{ports: [{containerPort: 23456, hostIP: ''}]}]",
            "TCP 0.0.0.0 23456",
        ),
        (
            "initContainers: [{ports: [{hostPort: 1}]}, {restartPolicy: Always, ports: [{hostPort: 2}]}]\n  containers: []",
            "TCP 0.0.0.0 2",
        ),
        (
            "containers: [{ports: [{hostPort: 70000}, {hostPort: -1}]}]",
            "",
        ),
    ];
    for (spec, expected) in cases {
        let pod = pod_of(&format!("spec:\n  {spec}"));
        let ports: Vec<String> = pod
            .shape
            .host_ports
            .iter()
            .map(|port| format!("{} {} {}", port.protocol, port.address, port.port))
            .collect();
        assert_eq!(ports.join(","), expected, "{spec}");
    }
}

#[test]
fn tolerations_that_mean_nothing_are_left_out() {
    let pod = pod_of(
        "
spec:
  tolerations:
    - {key: a, operator: Exists, effect: NoSchedule}
    - {operator: Exists}
    - {key: b, value: x}
    - {key: c, operator: Equal, value: y, effect: ''}
    - {key: d, operator: Exists, effect: Sometimes}
    - {operator: Equal, value: z}
    - {key: e, operator: Near, value: '1'}
",
    );
    let keys: Vec<_> = pod
        .shape
        .tolerations
        .iter()
        .map(|toleration| toleration.key.as_deref().unwrap_or("*"))
        .collect();
    assert_eq!(keys, ["a", "*", "b", "c"]);
    assert_eq!(pod.shape.tolerations[3].effect, None);
}

#[test]
fn required_affinity_that_cannot_be_understood_matches_nowhere() {
    let terms = |text: &str| {
        let pod = pod_of(&format!(
            "{{spec: {{affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: {text}}}}}}}}}}}"
        ));
        pod.shape.required_affinity.clone().expect("affinity")
    };
    assert!(terms("[]").is_empty());
    assert!(terms("null").is_empty());
    let nowhere = SelectorOperator::In(Default::default());
    for (requirement, expected) in [
        ("{key: k, operator: Exists}", SelectorOperator::Exists),
        (
            "{key: k, operator: DoesNotExist}",
            SelectorOperator::DoesNotExist,
        ),
        (
            "{key: k, operator: Gt, values: ['5']}",
            SelectorOperator::Gt(5),
        ),
        (
            "{key: k, operator: Lt, values: ['-5']}",
            SelectorOperator::Lt(-5),
        ),
        ("{key: k, operator: Gt, values: [five]}", nowhere.clone()),
        (
            "{key: k, operator: Gt, values: ['1', '2']}",
            nowhere.clone(),
        ),
        ("{key: k, operator: Near, values: ['1']}", nowhere.clone()),
        ("{key: k, operator: In}", nowhere.clone()),
    ] {
        let found = terms(&format!("[{{matchExpressions: [{requirement}]}}]"));
        assert_eq!(found[0].expressions[0].operator, expected, "{requirement}");
    }
    let pod = pod_of(
        "{spec: {affinity: {podAffinity: {}, nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}}}",
    );
    assert_eq!(pod.shape.required_affinity, None);
}

const JOB: &str = "ownerReferences: [{apiVersion: kubeflow.org/v1, kind: PyTorchJob, name: j, uid: ju, controller: true}]";
const SET: &str = "ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: j, uid: ru, controller: true}]";
const WORKER: &str = "training.kubeflow.org/job-name: j, training.kubeflow.org/replica-type: worker, training.kubeflow.org/replica-index: '3'";
const GPU: &str = "containers: [{resources: {limits: {nvidia.com/gpu: 1}}}]";

/// `gang source role/index` of a pod, or `-`.
fn membership_text(meta: &str, labels: &str, spec: &str) -> String {
    let meta = if meta.is_empty() {
        String::new()
    } else {
        format!(", {meta}")
    };
    let yaml = format!(
        "{{metadata: {{name: p, namespace: ns, uid: pu, labels: {{{labels}}}{meta}}}, spec: {{schedulerName: muster, {spec}}}}}"
    );
    let Some(found) = pod_of(&yaml).membership else {
        return "-".to_owned();
    };
    let source = match &found.source {
        MembershipSource::Job => "job".to_owned(),
        MembershipSource::Alone => "alone".to_owned(),
        MembershipSource::PodGroup { name } => format!("podgroup:{name}"),
        MembershipSource::Label { name, size } => match size {
            Ok(size) => format!("label:{name}:{size}"),
            Err(error) => format!("label:{name}:{error}"),
        },
    };
    let role = found.role.as_ref().map_or("?", |role| role.as_str());
    let index = found
        .index
        .map_or("?".to_owned(), |index| index.to_string());
    format!("{} {source} {role}/{index}", found.gang)
}

#[test]
fn membership_follows_the_strongest_evidence() {
    let master = WORKER.replace("worker", "master");
    let other_job = WORKER.replace("job-name: j", "job-name: k");
    let evaluator = WORKER.replace("worker", "evaluator");
    let huge = WORKER.replace("'3'", "'99999999999'");
    let forged = format!("{WORKER}, muster.dev/gang: other, scheduling.x-k8s.io/pod-group: other");
    let tf = JOB.replace("PyTorchJob", "TFJob");
    let not_controller = JOB.replace(", controller: true", "");
    let other_group = JOB.replace("kubeflow.org", "evil.org");
    let cases: &[(&str, &str, &str, &str)] = &[
        (JOB, WORKER, GPU, "ns/ju job Worker/3"),
        (JOB, &master, "containers: []", "ns/ju job Master/3"),
        // A pod cannot leave its job by label.
        (JOB, &forged, GPU, "ns/ju job Worker/3"),
        // Labels that do not agree with the owner say nothing about the place.
        (JOB, &other_job, GPU, "ns/ju job ?/?"),
        (JOB, &evaluator, GPU, "ns/ju job ?/?"),
        (JOB, &huge, GPU, "ns/ju job Worker/?"),
        (JOB, "", GPU, "ns/ju job ?/?"),
        // Nor can it join a job by label.
        ("", WORKER, GPU, "ns/pu alone ?/?"),
        (SET, WORKER, GPU, "ns/pu alone ?/?"),
        (&tf, WORKER, GPU, "ns/pu alone ?/?"),
        (&not_controller, WORKER, GPU, "ns/pu alone ?/?"),
        (&other_group, WORKER, GPU, "ns/pu alone ?/?"),
        (
            "",
            "muster.dev/gang: g, muster.dev/gang-size: '4'",
            "containers: []",
            "ns/label/g label:g:4 ?/?",
        ),
        (
            "annotations: {muster.dev/gang-size: '5'}",
            "muster.dev/gang: g, muster.dev/gang-size: '4'",
            GPU,
            "ns/label/g label:g:5 ?/?",
        ),
        (
            "",
            "muster.dev/gang: g, muster.dev/gang-size: '4', muster.dev/role: ps, muster.dev/index: '2', scheduling.x-k8s.io/pod-group: h",
            GPU,
            "ns/label/g label:g:4 ps/2",
        ),
        (
            "",
            "muster.dev/gang: g",
            GPU,
            "ns/label/g label:g:muster.dev/gang-size is missing: must be the number of members, 1 to 16384 ?/?",
        ),
        (
            "",
            "muster.dev/gang: g, muster.dev/gang-size: '0'",
            GPU,
            "ns/label/g label:g:muster.dev/gang-size is 0: must be the number of members, 1 to 16384 ?/?",
        ),
        (
            "",
            "muster.dev/gang: g, muster.dev/gang-size: '1000000000'",
            GPU,
            "ns/label/g label:g:muster.dev/gang-size is 1000000000: must be the number of members, 1 to 16384 ?/?",
        ),
        (
            "",
            "scheduling.x-k8s.io/pod-group: h",
            "containers: []",
            "ns/podgroup/h podgroup:h ?/?",
        ),
        (
            SET,
            "scheduling.x-k8s.io/pod-group: h, muster.dev/role: r",
            "containers: []",
            "ns/podgroup/h podgroup:h r/?",
        ),
        ("", "muster.dev/gang: ''", "containers: []", "-"),
        ("", "", GPU, "ns/pu alone ?/?"),
        (
            "",
            "",
            "initContainers: [{resources: {limits: {nvidia.com/mig-1g.5gb: 1}}}]",
            "ns/pu alone ?/?",
        ),
        (
            "",
            "",
            "containers: [{resources: {limits: {vpc.amazonaws.com/efa: 1}}}]",
            "-",
        ),
        (
            "",
            "",
            "containers: [{resources: {limits: {nvidia.com/gpu: 0}}}]",
            "-",
        ),
        // Whoever carries our gate has to be released by us.
        (
            "",
            "",
            "schedulingGates: [{name: muster.dev/gang}]",
            "ns/pu alone ?/?",
        ),
    ];
    for (meta, labels, spec, expected) in cases {
        assert_eq!(
            membership_text(meta, labels, spec),
            *expected,
            "{meta} {labels} {spec}"
        );
    }
}

#[test]
fn pods_of_other_schedulers_belong_to_no_gang() {
    let pod = pod_of(&format!(
        "{{metadata: {{namespace: ns, labels: {{muster.dev/gang: g}}, {JOB}}}, spec: {{schedulerName: default-scheduler, nodeName: n, {GPU}}}, status: {{phase: Running}}}}"
    ));
    assert!(!pod.ours && pod.membership.is_none());
    assert!(pod.holds_room() && pod.controlled);
    assert_eq!(amounts(&pod.shape.requests), "nvidia.com/gpu=1");
}

#[test]
fn what_was_written_on_a_pod_is_read_back() {
    let annotations = "annotations: {muster.dev/plan: e3-9, muster.dev/epoch: '3', muster.dev/devices: 'GPU-1,,GPU-2', other: x}";
    let bound = pod_of(&format!(
        "{{metadata: {{{annotations}}}, spec: {{nodeName: n1}}}}"
    ));
    let record = bound.record.expect("a record");
    assert_eq!((record.plan.as_str(), record.epoch.0), ("e3-9", 3));
    assert_eq!(record.devices.len(), 2);
    assert_eq!(bound.stamp, None);
    let unbound = pod_of(&format!(
        "{{metadata: {{{annotations}}}, spec: {{nodeName: ''}}}}"
    ));
    assert_eq!((unbound.node, unbound.record), (None, None));
    assert_eq!(unbound.stamp.map(|epoch| epoch.0), Some(3));
    let odd = pod_of(
        "{metadata: {annotations: {muster.dev/epoch: third, muster.dev/plan: p}}, spec: {nodeName: n}}",
    );
    assert_eq!((odd.record, odd.stamp), (None, None));
}

#[test]
fn state_of_a_pod() {
    let pod = pod_of(
        "
metadata: {name: p, namespace: ns, uid: u, resourceVersion: '12', creationTimestamp: '1970-01-01T00:00:09Z', deletionTimestamp: '2026-01-01T00:00:00Z'}
spec: {priority: -5, schedulerName: muster, schedulingGates: [{name: muster.dev/gang}, {name: kueue.x-k8s.io/admission}]}
status:
  phase: Pending
  reason: UnexpectedAdmissionError
  conditions:
    - {type: PodScheduled, status: 'False', reason: Unschedulable, message: 0/3 nodes are available}
    - {type: Ready, status: 'False', message: x}
",
    );
    assert_eq!(
        (pod.resource_version.as_str(), pod.created_seconds),
        ("12", 9)
    );
    assert_eq!((pod.phase, pod.priority), (PodPhase::Pending, -5));
    assert!(pod.terminating && pod.gated && pod.gated_by_others && !pod.controlled);
    assert_eq!(
        pod.unschedulable.as_deref(),
        Some("0/3 nodes are available")
    );
    assert_eq!(
        pod.status_reason.as_deref(),
        Some("UnexpectedAdmissionError")
    );
    let gated = pod_of(
        "{status: {conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated, message: m}]}}",
    );
    assert_eq!(gated.unschedulable, None);
}

#[test]
fn a_pod_with_nothing_in_it_is_still_a_pod() {
    for yaml in [
        "{}",
        "{metadata: null, spec: null, status: null}",
        "{spec: {affinity: {}, resources: null, priority: null}}",
    ] {
        let pod = pod_of(yaml);
        assert_eq!(pod.uid.as_str(), "", "{yaml}");
        assert_eq!(pod.shape.requests.pods, 1);
    }
}

/// The API server drops the field unless its gate is on. Where it is on, our kube-scheduler's is off:
/// the pod is taken for what its label, owner or devices make it, and never waits for the others.
#[test]
fn t43_pod_of_a_native_group_is_read_by_its_other_evidence() {
    let gang = |meta: &str, group: &str| {
        let pod = pod_of(&format!(
            "
metadata: {{name: p, namespace: ns, uid: u{meta}}}
spec:
  schedulerName: muster
  {group}
  containers: [{{name: c, resources: {{limits: {{nvidia.com/gpu: '1'}}}}}}]
"
        ));
        pod.membership
    };
    let group = "schedulingGroup: {podGroupName: g}";
    let label = ", labels: {muster.dev/gang: g}, annotations: {muster.dev/gang-size: '2'}";
    for meta in ["", label] {
        let membership = gang(meta, group);
        assert!(membership.is_some(), "{meta}");
        assert_eq!(membership, gang(meta, ""), "{meta}");
    }
    let odd = gang("", "schedulingGroup: 7");
    assert_eq!(odd, gang("", ""));
}
