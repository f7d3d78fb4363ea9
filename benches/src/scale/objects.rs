//! Nodes, pods and jobs as large as they are in production: a pod has 8 KB, a node 23 KB.

use muster_kubernetes::names;
use serde_json::{Map, Value, json};

/// GPUs of a node.
pub const GPUS: u32 = 8;
/// Namespace of the load.
pub const NAMESPACE: &str = "default";

/// A date, for times that nobody looks at.
const DATE: &str = "2026-11-26T00:00:00Z";

/// A node with 8 GPUs, and 50 images, as a kubelet reports them; without a boot id, which agents would have to share.
pub fn node(name: &str) -> Value {
    let amounts = json!({"cpu": "192", "memory": "2113393Mi", "pods": "110", "ephemeral-storage": "3600Gi",
        "hugepages-2Mi": "0", "nvidia.com/gpu": GPUS.to_string()});
    let mut labels = Map::new();
    for (key, value) in [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("node.kubernetes.io/instance-type", "p5.48xlarge"),
        ("topology.kubernetes.io/region", "region-1"),
        ("topology.kubernetes.io/zone", "region-1a"),
        ("nvidia.com/gpu.present", "true"),
        ("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3"),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    for feature in 0..30 {
        let key = format!("feature.node.kubernetes.io/cpu-cpuid.FEATURE{feature}");
        labels.insert(key, json!("true"));
    }
    let images: Vec<Value> = (0..50_u64)
        .map(|image| {
            let name = format!("registry.example.com/team-{}/image-{image}", image % 7);
            json!({"names": [format!("{name}@sha256:{image:064x}"), format!("{name}:v1.{image}.0")],
                "sizeBytes": 1_000_000_000 + image})
        })
        .collect();
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": format!("Kubelet{kind}"),
            "message": format!("kubelet says {status} to {kind}"), "lastHeartbeatTime": DATE, "lastTransitionTime": DATE})
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "labels": labels,
            "annotations": {"node.alpha.kubernetes.io/ttl": "15", "volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            "managedFields": [
                managed("kubelet", "", &["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"], "labels"),
                managed("node-feature-discovery", "", &(0..30).map(|_| "feature.node.kubernetes.io/cpu-cpuid").collect::<Vec<_>>(), "labels"),
                managed("kubelet", "status", &["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"], "conditions"),
            ],
        },
        "spec": {
            "providerID": format!("cloud:///region-1a/{name}"), "podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"],
            "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
        },
        "status": {
            "capacity": amounts, "allocatable": amounts, "images": images,
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": name}],
            "conditions": [condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
                condition("PIDPressure", "False"), condition("Ready", "True")],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"kubeletVersion": "v1.37.2", "osImage": "Ubuntu 24.04", "architecture": "amd64", "operatingSystem": "linux",
                "kernelVersion": "6.8.0", "containerRuntimeVersion": "containerd://2.1.0", "kubeProxyVersion": "", "machineID": "0123456789abcdef0123456789abcdef",
                "systemUUID": "01234567-89ab-cdef-0123-456789abcdef"},
        },
    })
}

/// An entry of managedFields that owns so many keys of a part.
fn managed(manager: &str, subresource: &str, keys: &[&str], part: &str) -> Value {
    let mut owned = Map::new();
    for (index, key) in keys.iter().enumerate() {
        let field = json!({".": {}, "f:message": {}, "f:reason": {}, "f:status": {}, "f:type": {}});
        owned.insert(format!("f:{key}-{index}"), field);
    }
    let mut entry = json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": DATE,
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {format!("f:{part}"): owned}}});
    if let Some(entry) = entry.as_object_mut().filter(|_| !subresource.is_empty()) {
        entry.insert("subresource".to_owned(), json!(subresource));
    }
    entry
}

/// What a pod is.
pub enum Whose<'a> {
    /// A worker of a PyTorchJob, as training-operator makes it.
    Job {
        /// Name of the job.
        name: &'a str,
        /// Its UID.
        uid: &'a str,
    },
    /// A member of a labelled gang of so many.
    Gang {
        /// Name of the gang.
        name: &'a str,
        /// Its size.
        size: u32,
    },
    /// A DaemonSet's, which kube-scheduler placed without Muster.
    Daemon {
        /// Name of the DaemonSet.
        name: &'a str,
        /// Its UID.
        uid: &'a str,
    },
}

/// A pod, on a node where one is given.
pub fn pod(whose: &Whose<'_>, index: u32, gpus: u32, node: Option<&str>) -> Value {
    let (name, mut metadata) = metadata(whose, index);
    let environment: Vec<Value> = (0..24)
        .map(|at| json!({"name": format!("SETTING_{at}"), "value": format!("the value of setting {at} of {name}")}))
        .collect();
    let managers = [
        managed("training-operator", "", &environment_keys(), "spec"),
        managed(
            "kubelet",
            "status",
            &[
                "PodReadyToStartContainers",
                "Initialized",
                "Ready",
                "ContainersReady",
            ],
            "status",
        ),
    ];
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("managedFields".to_owned(), json!(managers));
    }
    let limits = match gpus {
        0 => json!({"cpu": "200m", "memory": "256Mi"}),
        gpus => json!({"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": gpus.to_string()}),
    };
    let ours = !matches!(whose, Whose::Daemon { .. });
    let mut spec = json!({
        "schedulerName": if ours { names::SCHEDULER_NAME } else { "default-scheduler" },
        "restartPolicy": if ours { "OnFailure" } else { "Always" },
        "serviceAccountName": "default", "serviceAccount": "default",
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        ],
        "containers": [{
            "name": "pytorch", "image": "registry.example.com/team-1/train:v1.2.3", "env": environment,
            "command": ["torchrun", "/workspace/train.py"], "args": ["--config", "/etc/train/config.yaml", "--epochs", "90"],
            "ports": [{"name": "pytorchjob-port", "containerPort": 23456, "protocol": "TCP"}],
            "resources": {"limits": limits, "requests": limits},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/dev/shm"},
                {"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
        }],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
            {"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}},
        ],
    });
    if let (Some(spec), Some(node)) = (spec.as_object_mut(), node) {
        spec.insert("nodeName".to_owned(), json!(node));
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// What training-operator owns of a pod's environment.
fn environment_keys() -> Vec<&'static str> {
    vec!["k:{\"name\":\"SETTING\"}"; 24]
}

/// Name and metadata of a pod.
fn metadata(whose: &Whose<'_>, index: u32) -> (String, Value) {
    let owner = |api: &str, kind: &str, name: &str, uid: &str| json!([{"apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    match whose {
        Whose::Job { name: job, uid } => {
            let name = format!("{job}-worker-{index}");
            let labels = json!({names::JOB_NAME: job, names::OPERATOR_NAME: "pytorchjob-controller",
                names::REPLICA_TYPE: "worker", names::REPLICA_INDEX: index.to_string(), "team": "team-1"});
            let owners = owner("kubeflow.org/v1", "PyTorchJob", job, uid);
            let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels, "ownerReferences": owners,
                "annotations": {"sidecar.istio.io/inject": "false"}});
            (name, metadata)
        }
        Whose::Gang { name: gang, size } => {
            let name = format!("{gang}-{index}");
            let metadata = json!({"name": name, "namespace": NAMESPACE,
                "labels": {names::GANG_LABEL: gang, names::INDEX_LABEL: index.to_string(), "team": "team-1"},
                "annotations": {names::GANG_SIZE: size.to_string(), "sidecar.istio.io/inject": "false"}});
            (name, metadata)
        }
        Whose::Daemon { name: set, uid } => {
            let name = format!("{set}-{index}");
            let owners = owner("apps/v1", "DaemonSet", set, uid);
            let metadata = json!({"name": name, "namespace": "kube-system", "ownerReferences": owners,
                "labels": {"app": set, "controller-revision-hash": "5d4f7c9b8", "pod-template-generation": "1"},
                "annotations": {"prometheus.io/scrape": "true"}});
            (name, metadata)
        }
    }
}

/// The status of a pod that runs, as a merge patch.
pub fn running() -> Value {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": DATE});
    json!({"status": {
        "phase": "Running", "hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}], "podIP": "10.1.0.1",
        "podIPs": [{"ip": "10.1.0.1"}], "startTime": DATE,
        "conditions": [condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
            condition("ContainersReady"), condition("PodScheduled")],
        "containerStatuses": [{
            "name": "pytorch", "ready": true, "started": true, "restartCount": 0, "image": "registry.example.com/team-1/train:v1.2.3",
            "imageID": "registry.example.com/team-1/train@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "containerID": "containerd://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "lastState": {}, "state": {"running": {"startedAt": DATE}},
        }],
    }})
}

/// A DaemonSet.
pub fn daemon_set(name: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "main", "image": "registry.example.com/exporter:v1"}]}}},
    })
}

/// A PyTorchJob with so many workers of one GPU each.
pub fn job(name: &str, workers: u32) -> Value {
    json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"pytorchReplicaSpecs": {"Worker": {
            "replicas": workers, "restartPolicy": "OnFailure",
            "template": {"spec": {
                "schedulerName": names::SCHEDULER_NAME,
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "containers": [{"name": "pytorch", "image": "registry.example.com/team-1/train:v1.2.3",
                    "resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}}}],
            }},
        }}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures of memory say little about objects that are smaller than real ones.
    #[test]
    fn objects_are_as_large_as_real_ones() {
        let size = |object: &Value| object.to_string().len();
        let node = size(&node("gpu-0"));
        assert!((17_000..30_000).contains(&node), "{node}");
        let uid = "00000000-0000-4000-8000-000000000000";
        let worker = Whose::Job {
            name: "train-1",
            uid,
        };
        let daemon = Whose::Daemon {
            name: "exporter",
            uid,
        };
        for whose in [worker, daemon] {
            let pod = size(&pod(&whose, 3, 1, Some("gpu-0"))) + size(&running());
            assert!((7_000..11_000).contains(&pod), "{pod}");
        }
    }
}
