//! The objects of the load, as JSON. Pods of all contenders are of the same size and shape but for
//! what the contender needs.

use anyhow::Context as _;
use muster_kubernetes::names;
use serde_json::{Map, Value, json};

use crate::case::Case;
use crate::contender::Contender;
use crate::kai;

/// Namespace of the load.
pub const NAMESPACE: &str = "default";
/// Label on every pod of the load: its gang.
pub const GANG: &str = "bench.muster.dev/gang";
/// Label on the pods of a job: its name.
pub const JOB_LABEL: &str = "training.kubeflow.org/job-name";
/// Label on the pods that only take room.
pub const FILLER: &str = "bench.muster.dev/filler";
/// Label by which a pod names its PodGroup of scheduler-plugins.
const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";

/// Something to create: where to POST what.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Path of the collection.
    pub path: String,
    /// The object as JSON.
    pub body: Vec<u8>,
}

impl Object {
    /// An object to POST to the path.
    pub fn new(path: String, object: &Value) -> anyhow::Result<Self> {
        let body = serde_json::to_vec(object).context("encode an object")?;
        let name = object.pointer("/metadata/name").and_then(Value::as_str);
        let name = name.unwrap_or_default().to_owned();
        Ok(Self { name, path, body })
    }
}

/// Path of a namespaced collection.
fn collection(api: &str, plural: &str) -> String {
    format!("{api}/namespaces/{NAMESPACE}/{plural}")
}

/// Path of the pods.
pub fn pods_path() -> String {
    collection("/api/v1", "pods")
}

/// Path of the PyTorchJobs.
pub fn jobs_path() -> String {
    collection("/apis/kubeflow.org/v1", "pytorchjobs")
}

/// API version of a contender's PodGroups that the load has to create; nothing where there are none.
pub fn pod_group_api(contender: Contender) -> Option<&'static str> {
    match contender {
        Contender::Native => Some("scheduling.k8s.io/v1beta1"),
        Contender::Coscheduling => Some("scheduling.x-k8s.io/v1alpha1"),
        _ => None,
    }
}

/// A gang to be made.
#[derive(Clone, Debug)]
pub struct Gang {
    /// Its name.
    pub name: String,
    /// Pods.
    pub pods: usize,
    /// GPUs of each.
    pub gpus: u32,
}

impl Gang {
    /// The gangs of a case.
    pub fn of(case: &Case) -> Vec<Gang> {
        (0..case.gangs)
            .map(|index| Gang {
                name: Case::gang(index),
                pods: case.pods,
                gpus: case.gpus,
            })
            .collect()
    }

    /// Name of one of its pods.
    pub fn pod_name(&self, index: usize) -> String {
        pod_name(&self.name, "worker", index)
    }
}

/// Named as training-operator names pods.
fn pod_name(job: &str, role: &str, index: usize) -> String {
    format!("{job}-{role}-{index}")
}

/// The template's spec: what a user writes.
fn template_spec(gang: &Gang, contender: Contender) -> Value {
    json!({
        "schedulerName": contender.scheduler_name(),
        "restartPolicy": "OnFailure",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [{
            "name": "pytorch",
            "image": "registry.example/train:1",
            "command": ["torchrun", "/workspace/train.py"],
            "resources": {
                "requests": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": gang.gpus},
                "limits": {"nvidia.com/gpu": gang.gpus},
            },
        }],
    })
}

/// What training-operator adds to a container.
fn environment(job: &str, index: usize, pods: usize) -> Value {
    json!([
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "MASTER_PORT", "value": "23456"},
        {"name": "PET_MASTER_PORT", "value": "23456"},
        {"name": "MASTER_ADDR", "value": format!("{job}-worker-0")},
        {"name": "PET_MASTER_ADDR", "value": format!("{job}-worker-0")},
        {"name": "WORLD_SIZE", "value": pods.to_string()},
        {"name": "RANK", "value": index.to_string()},
        {"name": "PET_NODE_RANK", "value": index.to_string()},
        {"name": "PET_NPROC_PER_NODE", "value": "auto"},
        {"name": "PET_NNODES", "value": pods.to_string()},
    ])
}

/// The PyTorchJob of a gang, as a user submits it.
pub fn job(gang: &Gang, contender: Contender) -> anyhow::Result<Object> {
    let mut labels = Map::new();
    if contender == Contender::Kai {
        labels.insert(kai::QUEUE_LABEL.to_owned(), json!(kai::QUEUE));
    }
    let mut of_pods = labels.clone();
    of_pods.insert(GANG.to_owned(), json!(gang.name));
    let job = json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": gang.name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"pytorchReplicaSpecs": {"Worker": {
            "replicas": gang.pods,
            "restartPolicy": "OnFailure",
            "template": {
                "metadata": {"labels": of_pods},
                "spec": template_spec(gang, contender),
            },
        }}},
    });
    Object::new(jobs_path(), &job)
}

/// The PodGroup that goes before a gang's pods; nothing where a contender has none.
pub fn pod_group(gang: &Gang, contender: Contender) -> anyhow::Result<Option<Object>> {
    let Some(api) = pod_group_api(contender) else {
        return Ok(None);
    };
    let spec = match contender {
        Contender::Native => json!({"schedulingPolicy": {"gang": {"minCount": gang.pods}}}),
        _ => json!({"minMember": gang.pods}),
    };
    let group = json!({
        "apiVersion": api,
        "kind": "PodGroup",
        "metadata": {"name": gang.name, "namespace": NAMESPACE},
        "spec": spec,
    });
    let path = collection(&format!("/apis/{api}"), "podgroups");
    Object::new(path, &group).map(Some)
}

/// Pods that take every GPU of the nodes and that no scheduler has to place.
pub fn fillers(nodes: impl Iterator<Item = String>, gpus: u32) -> anyhow::Result<Vec<Object>> {
    nodes
        .map(|node| {
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": format!("filler-{node}"), "namespace": NAMESPACE,
                    "labels": {FILLER: "true"},
                },
                "spec": {
                    "nodeName": node,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "filler",
                        "image": "registry.example/train:1",
                        "resources": {"limits": {"nvidia.com/gpu": gpus}},
                    }],
                },
            });
            Object::new(pods_path(), &pod)
        })
        .collect()
}

/// The pods of a gang that no job stands for.
pub fn pods(gang: &Gang, contender: Contender) -> anyhow::Result<Vec<Object>> {
    let mut labels = Map::new();
    labels.insert(GANG.to_owned(), json!(gang.name));
    let mut annotations = Map::new();
    let mut spec = template_spec(gang, contender);
    if contender.is_muster() {
        labels.insert(names::GANG_LABEL.to_owned(), json!(gang.name));
        annotations.insert(names::GANG_SIZE.to_owned(), json!(gang.pods.to_string()));
    }
    if contender == Contender::Coscheduling {
        labels.insert(POD_GROUP_LABEL.to_owned(), json!(gang.name));
    }
    if contender == Contender::Native
        && let Some(spec) = spec.as_object_mut()
    {
        spec.insert(
            "schedulingGroup".to_owned(),
            json!({"podGroupName": gang.name}),
        );
    }
    let template = json!({
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": spec,
    });
    (0..gang.pods)
        .map(|index| pod(&gang.name, None, "worker", index, gang.pods, &template))
        .collect()
}

/// The pods of a job, as training-operator makes them: labels, owner, environment.
pub fn pods_of_job(job: &Value) -> anyhow::Result<Vec<Object>> {
    let name = job
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .context("a job without a name")?;
    let uid = job
        .pointer("/metadata/uid")
        .and_then(Value::as_str)
        .with_context(|| format!("job {name} without a uid"))?;
    let roles = job
        .pointer("/spec/pytorchReplicaSpecs")
        .and_then(Value::as_object)
        .with_context(|| format!("job {name} without pytorchReplicaSpecs"))?;
    let count = |role: &Value| {
        role.get("replicas")
            .and_then(Value::as_u64)
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(1)
    };
    let total = roles.values().map(count).sum();
    let mut objects = Vec::new();
    for (role, spec) in roles {
        let template = spec
            .get("template")
            .with_context(|| format!("job {name}: role {role} without a template"))?;
        for index in 0..count(spec) {
            let kind = role.to_lowercase();
            objects.push(pod(name, Some(uid), &kind, index, total, template)?);
        }
    }
    Ok(objects)
}

fn pod(
    job: &str,
    owner: Option<&str>,
    role: &str,
    index: usize,
    total: usize,
    template: &Value,
) -> anyhow::Result<Object> {
    let mut pod = template.clone();
    let name = pod_name(job, role, index);
    let root = pod.as_object_mut().context("a template is an object")?;
    root.insert("apiVersion".to_owned(), json!("v1"));
    root.insert("kind".to_owned(), json!("Pod"));
    let metadata = root
        .entry("metadata")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .context("metadata is an object")?;
    metadata.insert("name".to_owned(), json!(name));
    metadata.insert("namespace".to_owned(), json!(NAMESPACE));
    let labels = metadata
        .entry("labels")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .context("labels are an object")?;
    for (key, value) in [
        (JOB_LABEL, job.to_owned()),
        (
            "training.kubeflow.org/operator-name",
            "pytorchjob-controller".to_owned(),
        ),
        ("training.kubeflow.org/replica-type", role.to_owned()),
        ("training.kubeflow.org/replica-index", index.to_string()),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    if index == 0 {
        labels.insert("training.kubeflow.org/job-role".to_owned(), json!("master"));
    }
    if let Some(uid) = owner {
        metadata.insert(
            "ownerReferences".to_owned(),
            json!([{
                "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": job, "uid": uid,
                "controller": true, "blockOwnerDeletion": true,
            }]),
        );
    }
    if let Some(container) = pod.pointer_mut("/spec/containers/0")
        && let Some(container) = container.as_object_mut()
    {
        container.insert("env".to_owned(), environment(job, index, total));
        container.insert(
            "ports".to_owned(),
            json!([{"containerPort": 23456, "name": "pytorchjob-port", "protocol": "TCP"}]),
        );
    }
    Object::new(pods_path(), &pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gang() -> Gang {
        Gang {
            name: "g000".into(),
            pods: 3,
            gpus: 2,
        }
    }

    fn read(object: &Object) -> Value {
        serde_json::from_slice(&object.body).unwrap()
    }

    #[test]
    fn pods_of_a_job_carry_the_operators_labels_owner_and_the_templates_affinity() {
        let mut job = read(&job(&gang(), Contender::MusterJob).unwrap());
        job["metadata"]["uid"] = json!("u1");
        job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["affinity"] =
            json!({"nodeAffinity": {}});
        let pods = pods_of_job(&job).unwrap();
        assert_eq!(pods.len(), 3);
        let pod = read(&pods[1]);
        assert_eq!(pod["metadata"]["name"], "g000-worker-1");
        assert_eq!(
            pod["metadata"]["labels"]["training.kubeflow.org/replica-index"],
            "1"
        );
        assert_eq!(pod["metadata"]["labels"][GANG], "g000");
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "u1");
        assert_eq!(pod["spec"]["affinity"], json!({"nodeAffinity": {}}));
        assert_eq!(pod["spec"]["schedulerName"], "muster");
    }

    #[test]
    fn each_contender_gets_what_it_reads_and_nothing_else() {
        let of = |contender| read(&pods(&gang(), contender).unwrap()[0]);
        let plain = of(Contender::Plain);
        assert_eq!(plain["spec"]["schedulingGroup"], Value::Null);
        assert_eq!(plain["metadata"]["labels"][names::GANG_LABEL], Value::Null);
        let native = of(Contender::Native);
        assert_eq!(native["spec"]["schedulingGroup"]["podGroupName"], "g000");
        let group = |contender| {
            let group = pod_group(&gang(), contender).unwrap();
            group.map(|group| (group.path.clone(), read(&group)["spec"].clone()))
        };
        let native = group(Contender::Native).unwrap();
        assert_eq!(native.1["schedulingPolicy"]["gang"]["minCount"], 3);
        let cosched = of(Contender::Coscheduling);
        assert_eq!(cosched["metadata"]["labels"][POD_GROUP_LABEL], "g000");
        let cosched = group(Contender::Coscheduling).unwrap();
        assert_eq!(
            cosched.0,
            "/apis/scheduling.x-k8s.io/v1alpha1/namespaces/default/podgroups"
        );
        assert_eq!(cosched.1["minMember"], 3);
        assert_eq!(group(Contender::MusterGate), None);
        let kai = read(&job(&gang(), Contender::Kai).unwrap());
        assert_eq!(kai["metadata"]["labels"][kai::QUEUE_LABEL], kai::QUEUE);
        let gated = of(Contender::MusterGate);
        assert_eq!(gated["metadata"]["labels"][names::GANG_LABEL], "g000");
        assert_eq!(gated["metadata"]["annotations"][names::GANG_SIZE], "3");
    }
}
