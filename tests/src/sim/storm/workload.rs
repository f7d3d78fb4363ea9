//! What users submit in a storm.

use muster_embedded::standins::kubelet::RUN_SECONDS;
use muster_embedded::value;
use muster_kubernetes::names;
use serde_json::{Value, json};

use crate::rng::Rng;

/// GPUs of each node.
pub const GPUS: u32 = 8;

/// A gang of bare pods, by a label, a PodGroup, or of one.
#[derive(Clone, Debug)]
pub struct Set {
    /// Name, and prefix of its pods.
    pub name: String,
    /// Key of the gang, but for a pod alone, whose UID is that.
    pub key: String,
    /// Members.
    pub count: u32,
    /// Objects to create, in order.
    pub objects: Vec<Value>,
}

/// A job with these roles: name, replicas, GPUs of each. Each pod runs for so many seconds.
pub fn job(name: &str, roles: &[(&str, u32, u32)], run_seconds: Option<u64>) -> Value {
    let mut specs = serde_json::Map::new();
    for (role, replicas, gpus) in roles {
        specs.insert(
            (*role).to_owned(),
            json!({"replicas": replicas, "restartPolicy": "OnFailure",
                "template": {"metadata": {"annotations": run(run_seconds)}, "spec": pod_spec("pytorch", *gpus)}}),
        );
    }
    json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"runPolicy": {"cleanPodPolicy": "None"}, "pytorchReplicaSpecs": specs}})
}

fn run(seconds: Option<u64>) -> Value {
    match seconds {
        Some(seconds) => json!({RUN_SECONDS: seconds.to_string()}),
        None => json!({}),
    }
}

fn pod_spec(container: &str, gpus: u32) -> Value {
    let mut limits = json!({});
    if gpus > 0 {
        limits = json!({"nvidia.com/gpu": gpus.to_string()});
    }
    json!({"schedulerName": names::SCHEDULER_NAME,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [{"name": container, "image": "train:1",
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": limits}}]})
}

/// Workers of so many GPUs that fit into the empty cluster beside a Master.
fn workers_for(gpus: u32, nodes: u32) -> u64 {
    let room = nodes.saturating_sub(1).max(1).saturating_mul(GPUS);
    u64::from(room.checked_div(gpus).unwrap_or(1))
}

/// How many workers a job may have to fit into the empty cluster.
pub fn workers_max(job: &Value, nodes: u32) -> u64 {
    let containers = job.pointer("/spec/pytorchReplicaSpecs/Worker/template/spec/containers");
    let gpus = containers
        .and_then(|containers| containers.pointer("/0/resources/limits/nvidia.com~1gpu"))
        .and_then(Value::as_str)
        .and_then(|gpus| gpus.parse().ok());
    workers_for(gpus.unwrap_or(1), nodes)
}

/// A job by chance.
pub fn any_job(rng: &mut Rng, name: &str, nodes: u32) -> Value {
    let gpus = rng.of(&[1, 2, 4, 8]);
    let workers = 1 + u32::try_from(rng.below(workers_for(gpus, nodes).min(5))).unwrap_or(0);
    let run_seconds = Some(10 + rng.below(50));
    let mut roles = vec![("Worker", workers, gpus)];
    if rng.chance(50) {
        roles.push(("Master", 1, if rng.chance(70) { gpus.min(4) } else { 0 }));
    }
    let mut job = job(name, &roles, run_seconds);
    if rng.chance(15) && workers > 1 {
        let needed = workers.saturating_sub(1);
        let policy = json!({"minAvailable": needed});
        value::set(&mut job, &["spec", "runPolicy", "schedulingPolicy"], policy);
    }
    job
}

/// How bare pods say that they belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Label,
    PodGroup,
    Alone,
}

/// Bare pods by chance.
pub fn any_set(rng: &mut Rng, name: &str) -> Set {
    let kind = match rng.below(10) {
        0..5 => Kind::Label,
        5..8 => Kind::PodGroup,
        _ => Kind::Alone,
    };
    let count = match kind {
        Kind::Alone => 1,
        _ => 1 + u32::try_from(rng.below(4)).unwrap_or(0),
    };
    let gpus = rng.of(&[1, 1, 2, 4]);
    set(name, kind, count, gpus, Some(10 + rng.below(40)))
}

/// A gang by its label.
pub fn labelled(name: &str, count: u32, gpus: u32, seconds: Option<u64>) -> Set {
    set(name, Kind::Label, count, gpus, seconds)
}

/// A pod alone.
pub fn alone(name: &str, gpus: u32, seconds: Option<u64>) -> Set {
    set(name, Kind::Alone, 1, gpus, seconds)
}

fn set(name: &str, kind: Kind, count: u32, gpus: u32, seconds: Option<u64>) -> Set {
    let mut objects = Vec::new();
    if kind == Kind::PodGroup {
        objects.push(
            json!({"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"minMember": count}}),
        );
    }
    for index in 0..count {
        let mut labels = json!({names::INDEX_LABEL: index.to_string()});
        let mut annotations = run(seconds);
        match kind {
            Kind::PodGroup => value::set(&mut labels, &[names::POD_GROUP_LABEL], name),
            Kind::Label => {
                value::set(&mut labels, &[names::GANG_LABEL], name);
                value::set(&mut annotations, &[names::GANG_SIZE], count.to_string());
            }
            Kind::Alone => {}
        }
        objects.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("{name}-{index}"), "namespace": "default",
                "labels": labels, "annotations": annotations},
            "spec": pod_spec("main", gpus)}));
    }
    let key = match kind {
        Kind::PodGroup => format!("default/podgroup/{name}"),
        Kind::Label => format!("default/label/{name}"),
        Kind::Alone => String::new(),
    };
    Set {
        name: name.to_owned(),
        key,
        count,
        objects,
    }
}

/// A pod that waits for a scheduler which is not there.
pub fn elsewhere(name: &str, gpus: u32) -> Value {
    let mut spec = pod_spec("main", gpus);
    value::set(&mut spec, &["schedulerName"], "another-scheduler");
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

/// A pod that asks for more devices than can be counted: two and a little if sums wrap around.
pub fn beyond_all_numbers(name: &str) -> Value {
    let amounts = [i64::MAX.to_string(), i64::MAX.to_string(), "4".to_owned()];
    let containers = amounts.iter().enumerate().map(|(at, gpus)| {
        json!({"name": format!("c{at}"), "image": "train:1",
            "resources": {"limits": {"nvidia.com/gpu": gpus}}})
    });
    let mut spec = pod_spec("main", 0);
    value::set(&mut spec, &["containers"], containers.collect::<Vec<_>>());
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

/// A pod whose annotation is no number.
pub fn unreadable(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {names::GANG_LABEL: name, names::INDEX_LABEL: "-1"},
            "annotations": {names::GANG_SIZE: "many"}},
        "spec": pod_spec("main", 1)})
}

/// A pod without devices for the cluster's own scheduler.
pub fn plain(name: &str) -> Value {
    let mut pod = elsewhere(name, 0);
    value::set(&mut pod, &["spec", "schedulerName"], "default-scheduler");
    pod
}

/// Somebody else's pod on a node.
pub fn stranger(name: &str, node: &str, gpus: u32) -> Value {
    let mut spec = pod_spec("main", gpus);
    value::set(&mut spec, &["schedulerName"], "default-scheduler");
    value::set(&mut spec, &["nodeName"], node);
    value::set(&mut spec, &["tolerations"], json!([{"operator": "Exists"}]));
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}
