//! What really comes: requests of kube-scheduler, streams of agents, objects, files.

use jiff::Timestamp as WallTime;
use muster_core::config::{Config, NodesWithoutAgent};
use muster_core::engine::Engine;
use muster_core::event::Event;
use muster_core::ids::Epoch;
use muster_core::time::Timestamp;
use muster_kubernetes::lite::{LiteNode, LitePyTorchJob};
use muster_kubernetes::translate::{self, PodRules};
use muster_proto::inventory::agent_message::Kind;
use muster_proto::inventory::{
    AgentMessage, Bye, Delta, Device, Health, HealthEvent, Heartbeat, Hello, Holder, KubeletView,
    NodeFacts, PeerLink, Reauth, Sampler, Snapshot,
};
use prost::Message as _;
use serde_json::{Value, json};

use super::wire::{Content, Field, write};

/// Words that mean something in requests and objects.
pub(super) const WORDS: &[&str] = &[
    "Pod",
    "pod",
    "Nodes",
    "nodes",
    "items",
    "NodeNames",
    "nodenames",
    "NodeNameToVictims",
    "NodeNameToMetaVictims",
    "Pods",
    "UID",
    "NumPDBViolations",
    "PodName",
    "PodNamespace",
    "PodUID",
    "Node",
    "Error",
    "metadata",
    "name",
    "namespace",
    "uid",
    "labels",
    "annotations",
    "ownerReferences",
    "controller",
    "kind",
    "PyTorchJob",
    "PodGroup",
    "Label",
    "apiVersion",
    "kubeflow.org/v1",
    "resourceVersion",
    "deletionTimestamp",
    "creationTimestamp",
    "2026-11-26T12:00:00Z",
    "spec",
    "status",
    "schedulerName",
    "muster",
    "muster.dev/gang",
    "muster.dev/gang-size",
    "muster.dev/role",
    "muster.dev/index",
    "muster.dev/hold",
    "queued",
    "released",
    "muster.dev/plan",
    "muster.dev/pinned",
    "muster.dev/elastic-minimum",
    "muster.dev/epoch",
    "muster.dev/devices",
    "muster.dev/required-topology",
    "muster.dev/preferred-topology",
    "muster.dev/segment-size",
    "training.kubeflow.org/job-name",
    "training.kubeflow.org/replica-type",
    "training.kubeflow.org/replica-index",
    "scheduling.x-k8s.io/pod-group",
    "containers",
    "initContainers",
    "restartPolicy",
    "Always",
    "resources",
    "requests",
    "limits",
    "nvidia.com/gpu",
    "nvidia.com/mig-1g.5gb",
    "cpu",
    "memory",
    "overhead",
    "100m",
    "8Gi",
    "1e0",
    "hostPort",
    "ports",
    "nodeName",
    "nodeSelector",
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "matchExpressions",
    "matchFields",
    "NotIn",
    "Gt",
    "DoesNotExist",
    "topologySpreadConstraints",
    "tolerations",
    "schedulingGates",
    "replicas",
    "minAvailable",
    "m",
    "held",
];

/// Words of HTTP.
pub(super) const PAGE_WORDS: &[&str] = &[
    "GET",
    "POST",
    "OPTIONS",
    "HEAD",
    "/metrics",
    "/healthz",
    "/readyz",
    "/debug/dump",
    "/debug/../debug/dump",
    "/%64ebug/dump",
    "?x=y",
    "http://localhost/debug/dump",
    "http://[::1]:80/debug/dump",
    "localhost",
    "127.0.0.1",
    "[::1]",
    "muster.muster-system.svc",
    "host: localhost\r\n",
    "forwarded: for=127.0.0.1\r\n",
    "x-forwarded-for: 127.0.0.1\r\n",
    "x-real-ip: ::1\r\n",
    "via: 1.1 proxy\r\n",
    "content-length: 99999999999\r\n",
    "accept: */*\r\n",
];

/// Words of the configuration.
pub(super) const CONFIG_WORDS: &[&str] = &[
    "extender:",
    "bindTimeout: ",
    "gang:",
    "gatherMax: ",
    "agents:",
    "topology:",
    "levels:",
    "name: ",
    "label: ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "\n",
    "&a [*a, *a]",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "9999999999h",
    "0s",
    "-1s",
    "1ms",
    "\"\\u0000\"",
];

pub(super) const QUANTITIES: &[&str] = &[
    "500m",
    "2Gi",
    "1e0",
    "1.5",
    "0",
    "12E",
    "1Ei",
    "100n",
    "9223372036854775807",
    "1e-9",
    "+1",
    "0.000000001Ki",
];

pub(super) const PODS: [&str; 4] = [
    r#"{"metadata":{"name":"p","namespace":"ns","uid":"m","resourceVersion":"1","labels":{"muster.dev/gang":"g"},"annotations":{"muster.dev/gang-size":"2","kubectl.kubernetes.io/last-applied-configuration":"{}"},"managedFields":[{"manager":"kubectl","operation":"Update"}]},"spec":{"schedulerName":"muster","containers":[{"name":"c","image":"i","resources":{"limits":{"nvidia.com/gpu":"1"},"requests":{"nvidia.com/gpu":"1","cpu":"100m","memory":"8Gi"}}}],"tolerations":[{"key":"nvidia.com/gpu","operator":"Exists","effect":"NoSchedule"}]},"status":{"phase":"Pending"}}"#,
    r#"{"metadata":{"name":"train-worker-0","namespace":"ns","uid":"u0","resourceVersion":"7","creationTimestamp":"2026-11-26T12:00:00Z","labels":{"training.kubeflow.org/job-name":"train","training.kubeflow.org/replica-type":"worker","training.kubeflow.org/replica-index":"0"},"ownerReferences":[{"apiVersion":"kubeflow.org/v1","kind":"PyTorchJob","name":"train","uid":"ju","controller":true}]},"spec":{"schedulerName":"muster","hostNetwork":true,"nodeSelector":{"pool":"a"},"schedulingGates":[{"name":"muster.dev/gang"}],"initContainers":[{"name":"i","restartPolicy":"Always","resources":{"requests":{"cpu":"1"}}}],"containers":[{"name":"pytorch","ports":[{"containerPort":23456,"hostPort":23456}],"resources":{"limits":{"nvidia.com/gpu":8}}}],"overhead":{"cpu":"250m"},"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"zone","operator":"In","values":["a","b"]},{"key":"gen","operator":"Gt","values":["3"]}],"matchFields":[{"key":"metadata.name","operator":"In","values":["n1"]}]}]}},"podAntiAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[{"topologyKey":"kubernetes.io/hostname","labelSelector":{"matchLabels":{"app":"x"},"matchExpressions":[{"key":"a","operator":"NotIn","values":["b"]}]}}]}},"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"x"}},"minDomains":2}]},"status":{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/3 nodes are available: 1 muster: waits, 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."}]}}"#,
    r#"{"metadata":{"name":"b","namespace":"ns","uid":"u1","resourceVersion":"9","annotations":{"muster.dev/plan":"e1-1","muster.dev/epoch":"1","muster.dev/devices":"GPU-1,GPU-2"},"labels":{"scheduling.x-k8s.io/pod-group":"pg"}},"spec":{"schedulerName":"muster","nodeName":"n1","containers":[{"name":"c","resources":{"limits":{"nvidia.com/gpu":"2"}}}]},"status":{"phase":"Running"}}"#,
    r#"{"metadata":{"name":"q","namespace":"ns","uid":"q"},"spec":{"schedulerName":"muster","containers":[{"name":"c"}]}}"#,
];

pub(super) const JOBS: [&str; 2] = [
    r#"{"metadata":{"name":"train","namespace":"ns","uid":"ju","resourceVersion":"1","generation":2,"creationTimestamp":"2026-11-26T12:00:00Z"},"spec":{"runPolicy":{"suspend":false,"cleanPodPolicy":"None","schedulingPolicy":{"minAvailable":3}},"pytorchReplicaSpecs":{"Master":{"replicas":1,"restartPolicy":"OnFailure","template":{"spec":{"schedulerName":"muster","containers":[{"name":"pytorch","image":"i","resources":{"limits":{"nvidia.com/gpu":"1"}}}],"tolerations":[{"key":"nvidia.com/gpu","operator":"Exists"}]}}},"Worker":{"replicas":2,"template":{"metadata":{"labels":{"app":"x"}},"spec":{"schedulerName":"muster","containers":[{"name":"pytorch","image":"i","resources":{"limits":{"nvidia.com/gpu":"4"},"requests":{"cpu":"2","memory":"8Gi"}}}],"tolerations":[{"key":"nvidia.com/gpu","operator":"Exists"}]}}}}}}"#,
    r#"{"metadata":{"name":"elastic","namespace":"ns","uid":"je","resourceVersion":"1","annotations":{"muster.dev/hold":"queued","muster.dev/pinned":"{\"Worker\":{\"nodes\":[\"n1\"]}}","muster.dev/elastic-minimum":"true","muster.dev/required-topology":"rack","muster.dev/plan":"e1-1"}},"spec":{"elasticPolicy":{"minReplicas":2,"maxReplicas":4},"runPolicy":{"suspend":true,"managedBy":"","schedulingPolicy":{"priorityClass":"high","queue":"q"}},"pytorchReplicaSpecs":{"Worker":{"replicas":3,"template":{"spec":{"schedulerName":"muster","hostNetwork":true,"nodeSelector":{"pool":"a"},"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"pool","operator":"In","values":["a"]}],"matchFields":[{"key":"metadata.name","operator":"In","values":["n1"]}]}]}}},"initContainers":[{"name":"i","restartPolicy":"Always","resources":{"requests":{"cpu":1}}}],"containers":[{"name":"pytorch","ports":[{"containerPort":1}],"resources":{"requests":{"cpu":1},"limits":{"cpu":2,"nvidia.com/gpu":8}}}]}}}}},"status":{"conditions":[{"type":"Running","status":"True","reason":"r","message":"m"},{"type":"Suspended","status":"True"}],"replicaStatuses":{"Worker":{"active":1}}}}"#,
];

pub(super) const POD_GROUPS: [&str; 2] = [
    r#"{"metadata":{"name":"pg","namespace":"ns","uid":"gu","resourceVersion":"1"},"spec":{"minMember":3,"scheduleTimeoutSeconds":10}}"#,
    r#"{"metadata":{"name":"of-job","namespace":"ns","uid":"g2","resourceVersion":"1","annotations":{"muster.dev/preferred-topology":"rack"},"ownerReferences":[{"apiVersion":"kubeflow.org/v1","kind":"PyTorchJob","name":"train","uid":"ju","controller":true}]},"spec":{"minMember":2147483647,"minResources":{"cpu":"3"}},"status":{"phase":"Running"}}"#,
];

pub(super) const NODES: [&str; 2] = [
    r#"{"metadata":{"name":"n1","uid":"nu1","resourceVersion":"1","labels":{"kubernetes.io/hostname":"n1","pool":"a","zone":"a","gen":"4"}},"spec":{"taints":[{"key":"nvidia.com/gpu","value":"present","effect":"NoSchedule"}]},"status":{"allocatable":{"cpu":"64","memory":"256Gi","ephemeral-storage":"1Ti","pods":"110","nvidia.com/gpu":"8"},"conditions":[{"type":"Ready","status":"True"},{"type":"MemoryPressure","status":"False"}],"nodeInfo":{"bootID":"boot"}}}"#,
    r#"{"metadata":{"name":"n2","uid":"nu2","resourceVersion":"1","deletionTimestamp":"2026-11-26T12:00:00Z"},"spec":{"unschedulable":true,"taints":[{"key":"node.kubernetes.io/unschedulable","effect":"NoSchedule"},{"key":"x","effect":"NoExecute"}]},"status":{"allocatable":{"cpu":"3920m","memory":"123456Ki","pods":110,"nvidia.com/mig-1g.5gb":"7"},"conditions":[{"type":"Ready","status":"Unknown"}]}}"#,
];

pub(super) const GANGS: [&str; 2] = [
    r#"{"apiVersion":"muster.dev/v1alpha1","kind":"Gang","metadata":{"name":"train","namespace":"ns","uid":"gg","resourceVersion":"4"},"spec":{"workload":{"kind":"PyTorchJob","name":"train","uid":"ju"}},"status":{"recordVersion":1,"planId":"e1-1","epoch":1,"phase":"Starting","reason":"Gathering","message":"m","bound":0,"total":2,"minimum":2,"membersBound":"0/2","members":[{"role":"Worker","index":0,"node":"n1","devices":["GPU-1"],"pod":"train-worker-0","podUid":"u0"},{"role":"Worker","index":1,"node":"n1","bound":true,"ended":true}],"conditions":[{"type":"Placed","status":"True","reason":"r","message":"m","lastTransitionTime":"2026-11-26T12:00:00Z"}]}}"#,
    r#"{"apiVersion":"muster.dev/v1alpha1","kind":"Gang","metadata":{"name":"label-g","namespace":"ns","uid":"g3","resourceVersion":"4"},"spec":{"workload":{"kind":"Label","name":"g","uid":"label/g"}},"status":{"recordVersion":2,"phase":"Waiting","bound":0,"total":0,"minimum":0}}"#,
];

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn bytes(values: impl IntoIterator<Item = Value>) -> Vec<Vec<u8>> {
    let values = values.into_iter();
    values.map(|value| value.to_string().into_bytes()).collect()
}

/// Filter calls, as the Go client writes them.
pub(super) fn filter() -> Vec<Vec<u8>> {
    let nodes = json!({"metadata": {}, "items": NODES.map(value)});
    let mut calls = Vec::new();
    for pod in PODS.map(value) {
        calls.push(json!({"Pod": pod, "Nodes": null, "NodeNames": ["n1", "n2", "n3"]}));
        calls.push(json!({"Pod": pod, "Nodes": nodes, "NodeNames": null}));
        calls.push(json!({"pod": pod, "nodenames": []}));
    }
    bytes(calls)
}

/// Preempt calls, in both forms.
pub(super) fn preempt() -> Vec<Vec<u8>> {
    let meta = json!({"n1": {"Pods": [{"UID": "x"}], "NumPDBViolations": 1}, "n2": {"Pods": [{"UID": "held"}]}, "n3": {"Pods": null}});
    let mut calls = Vec::new();
    for pod in PODS.map(value) {
        calls.push(json!({"Pod": pod, "NodeNameToVictims": null, "NodeNameToMetaVictims": meta}));
        let victims = json!({"n1": {"Pods": [value(PODS[3])], "NumPDBViolations": 0}, "n2": null});
        calls.push(json!({"Pod": pod, "NodeNameToVictims": victims}));
    }
    bytes(calls)
}

/// Bind calls.
pub(super) fn bind() -> Vec<Vec<u8>> {
    let call = |uid: &str, node: &str| json!({"PodName": "p", "PodNamespace": "ns", "PodUID": uid, "Node": node});
    bytes([
        call("m", "n2"),
        call("m", "n1"),
        call("u0", "n2"),
        call("", ""),
        Value::Null,
    ])
}

fn stream(messages: Vec<Kind>) -> Vec<u8> {
    let fields = messages.into_iter().map(|kind| {
        let message = AgentMessage { kind: Some(kind) };
        Field {
            number: 1,
            content: Content::Bytes(message.encode_to_vec()),
        }
    });
    write(&fields.collect::<Vec<_>>())
}

fn device(index: u32) -> Device {
    let uuid = |index: u32| format!("GPU-{index}");
    Device {
        uuid: uuid(index),
        health: Health::Healthy.into(),
        health_reason: "xid-79".into(),
        index: Some(index),
        minor_number: Some(index),
        numa_node: Some(index / 4),
        name: Some("NVIDIA H100 80GB HBM3".into()),
        memory_total_bytes: Some(80 << 30),
        peers: (0..4)
            .map(|peer| PeerLink {
                uuid: uuid(peer),
                nvlinks: 18,
                ancestor: 3,
            })
            .collect(),
        resource_name: "nvidia.com/gpu".into(),
        holders: vec![Holder {
            namespace: "ns".into(),
            pod: "p".into(),
            container: "c".into(),
        }],
        ..Device::default()
    }
}

/// Streams of agents.
pub(super) fn agents(at: WallTime) -> Vec<Vec<u8>> {
    let observed_at_ms = at.as_millisecond();
    let hello = |node: &str| {
        Kind::Hello(Hello {
            protocol: muster_proto::PROTOCOL,
            agent_version: "0.1.0".into(),
            node_name: node.into(),
            node_uid: "nu1".into(),
            boot_id: "boot".into(),
            instance: 1_700_000_000_000_000,
        })
    };
    let snapshot = Kind::Snapshot(Snapshot {
        generation: 1,
        observed_at_ms,
        node: Some(NodeFacts {
            driver_version: Some("580.65".into()),
            cuda_version: Some(13000),
            devices_expected: Some(4),
            ..NodeFacts::default()
        }),
        devices: (0..4).map(device).collect(),
        kubelet: Some(KubeletView {
            known: true,
            ..KubeletView::default()
        }),
        ..Snapshot::default()
    });
    let delta = Kind::Delta(Delta {
        base_generation: 1,
        generation: 2,
        observed_at_ms,
        upserts: vec![Device {
            health: Health::Unhealthy.into(),
            leaked: true,
            ..device(2)
        }],
        removed: vec!["GPU-3".into()],
        ..Delta::default()
    });
    let heartbeat = Kind::Heartbeat(Heartbeat {
        generation: 2,
        observed_at_ms,
        sampler: Sampler::Ok.into(),
        ..Heartbeat::default()
    });
    let event = Kind::HealthEvent(HealthEvent {
        id: 1,
        device_uuid: "GPU-2".into(),
        code: 79,
        count: 1,
        fatal: true,
        ..HealthEvent::default()
    });
    let reauth = Kind::Reauth(Reauth {
        token: "header.payload.signature".into(),
    });
    vec![
        stream(vec![
            hello("n1"),
            snapshot.clone(),
            delta.clone(),
            heartbeat.clone(),
            event,
            heartbeat.clone(),
        ]),
        stream(vec![
            hello("n2"),
            snapshot,
            reauth,
            delta,
            Kind::Bye(Bye::default()),
        ]),
        stream(vec![heartbeat]),
    ]
}

/// Requests for the pages.
pub(super) fn pages() -> Vec<Vec<u8>> {
    let mut requests = Vec::new();
    for path in ["/metrics", "/healthz", "/readyz", "/debug/dump", "/nothing"] {
        for host in ["localhost:8080", "10.0.0.1", ""] {
            let text = format!(
                "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: kube-probe/1.37\r\n\r\n"
            );
            requests.push(text.into_bytes());
        }
    }
    requests
}

/// Configuration files.
pub(super) fn configs() -> Vec<String> {
    let small = "gang: {gatherMax: 60s}\nextender:\n  bindTimeout: 120s\ntopology:\n  levels:\n    - {name: rack, label: example.com/rack}\n  keepTogether: rack\n";
    let short = "inventory: {nodesWithoutAgent: useAllocatable}\n";
    vec![
        muster_scheduler::config::DOCUMENTED.to_owned(),
        small.to_owned(),
        short.to_owned(),
    ]
}

/// Dumps: of an engine with a node, and a job that it wants to place there.
pub(super) fn dumps() -> Vec<String> {
    let config = Config {
        nodes_without_agent: NodesWithoutAgent::UseAllocatable,
        ..Config::default()
    };
    let now = Timestamp(1_000_000);
    let mut texts = Vec::new();
    for jobs in [1, 2] {
        let mut engine = Engine::new(config.clone());
        for node in NODES {
            if let Ok(node) = serde_json::from_str::<LiteNode>(node) {
                engine.handle(Event::NodeApplied(translate::node(&node)), now);
            }
        }
        for job in JOBS.iter().take(jobs) {
            let job = serde_json::from_str::<LitePyTorchJob>(job).ok();
            let rules = PodRules::new("muster", &config);
            if let Some(job) = job.and_then(|job| translate::pytorchjob(&job, &rules)) {
                engine.handle(Event::WorkloadApplied(job), now);
            }
        }
        engine.handle(
            Event::LeadershipGained {
                epoch: Epoch(1),
                first: true,
            },
            now,
        );
        engine.handle(Event::Synced, now);
        engine.decide(now);
        texts.extend(muster_dump::write(&engine.state(now)).ok());
    }
    texts
}
