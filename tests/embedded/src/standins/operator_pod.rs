//! The objects that training-operator makes for a PyTorchJob: pods, services, the PodGroup.

use serde_json::{Value, json};

use crate::value;

const PORT: i64 = 23456;

fn labels(job: &Value, role: &str, index: i64) -> Value {
    let has_master = value::at(job, &["spec", "pytorchReplicaSpecs", "Master"]).is_some();
    let mut labels = json!({
        "training.kubeflow.org/job-name": value::name(job),
        "training.kubeflow.org/operator-name": "pytorchjob-controller",
        "training.kubeflow.org/replica-type": role.to_lowercase(),
        "training.kubeflow.org/replica-index": index.to_string(),
    });
    if role == "Master" || (!has_master && index == 0) {
        value::set(&mut labels, &["training.kubeflow.org/job-role"], "master");
    }
    labels
}

fn owner(job: &Value) -> Value {
    json!([{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": value::name(job), "uid": value::uid(job),
        "controller": true, "blockOwnerDeletion": true}])
}

fn replica_name(job: &Value, role: &str, index: i64) -> String {
    format!("{}-{}-{index}", value::name(job), role.to_lowercase())
}

fn replicas_of(job: &Value, role: &str) -> i64 {
    match value::at(job, &["spec", "pytorchReplicaSpecs", role]) {
        Some(spec) => value::int(spec, &["replicas"]).unwrap_or(1).max(0),
        None => 0,
    }
}

/// The pod of one replica.
#[must_use]
pub(crate) fn build(
    job: &Value,
    role: &str,
    spec: &Value,
    index: i64,
    gang_scheduler: Option<&str>,
) -> Value {
    let template = spec.get("template").cloned().unwrap_or_default();
    let mut pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": template.get("spec")});
    for part in ["labels", "annotations"] {
        if let Some(own) = value::at(&template, &["metadata", part]) {
            value::set(&mut pod, &["metadata", part], own.clone());
        }
    }
    if let Value::Object(keys) = labels(job, role, index) {
        value::object(&mut pod, &["metadata", "labels"]).extend(keys);
    }
    value::set(
        &mut pod,
        &["metadata", "name"],
        replica_name(job, role, index),
    );
    value::set(&mut pod, &["metadata", "namespace"], value::namespace(job));
    value::set(&mut pod, &["metadata", "ownerReferences"], owner(job));
    let policy = match value::text(spec, &["restartPolicy"]) {
        "ExitCode" => "Never",
        "" => "OnFailure",
        other => other,
    };
    value::set(&mut pod, &["spec", "restartPolicy"], policy);
    if let Some(scheduler) = gang_scheduler {
        value::set(
            &mut pod,
            &["metadata", "labels", "scheduling.x-k8s.io/pod-group"],
            value::name(job),
        );
        value::set_default(&mut pod, &["spec", "schedulerName"], scheduler);
    }
    set_environment(&mut pod, job, role, index);
    let has_master = replicas_of(job, "Master") > 0;
    if role == "Worker" && has_master {
        add_init_container(&mut pod, job);
    }
    pod
}

fn set_environment(pod: &mut Value, job: &Value, role: &str, index: i64) {
    let has_master = replicas_of(job, "Master") > 0;
    let rank = if role == "Worker" && has_master {
        index.saturating_add(1)
    } else {
        index
    };
    let first = if has_master {
        replica_name(job, "Master", 0)
    } else {
        replica_name(job, "Worker", 0)
    };
    let nodes = replicas_of(job, "Master").saturating_add(replicas_of(job, "Worker"));
    let per_node = value::text(job, &["spec", "nprocPerNode"]);
    let world = nodes.saturating_mul(per_node.parse::<i64>().unwrap_or(1));
    let elastic = value::at(job, &["spec", "elasticPolicy"]);
    let bound = |key: &str| elastic.and_then(|e| value::int(e, &[key]));
    let pet_nodes = match (bound("minReplicas"), bound("maxReplicas")) {
        (None, None) => nodes.to_string(),
        (min, max) => {
            let workers = replicas_of(job, "Worker");
            format!(
                "{}:{}",
                min.or(max).unwrap_or(workers),
                max.or(min).unwrap_or(workers)
            )
        }
    };
    let per_node = if per_node.is_empty() {
        "auto"
    } else {
        per_node
    }
    .to_owned();
    let variables = [
        ("MASTER_PORT", PORT.to_string()),
        ("PET_MASTER_PORT", PORT.to_string()),
        ("MASTER_ADDR", first.clone()),
        ("PET_MASTER_ADDR", first),
        ("WORLD_SIZE", world.to_string()),
        ("RANK", rank.to_string()),
        ("PET_NPROC_PER_NODE", per_node),
        ("PET_NODE_RANK", rank.to_string()),
        ("PET_NNODES", pet_nodes),
    ];
    if value::items(pod, &["spec", "containers"]).is_empty() {
        return;
    }
    for container in value::list(pod, &["spec", "containers"]) {
        let env = value::list(container, &["env"]);
        env.push(json!({"name": "PYTHONUNBUFFERED", "value": "1"}));
        env.extend(
            variables
                .iter()
                .map(|(name, v)| json!({"name": name, "value": v})),
        );
        if value::text(container, &["name"]) == "pytorch" {
            let ports = value::list(container, &["ports"]);
            if !ports
                .iter()
                .any(|p| value::text(p, &["name"]) == "pytorchjob-port")
            {
                ports.push(
                    json!({"name": "pytorchjob-port", "containerPort": PORT, "protocol": "TCP"}),
                );
            }
        }
    }
}

fn add_init_container(pod: &mut Value, job: &Value) {
    let master = replica_name(job, "Master", 0);
    let script = format!(
        "err=1;for i in $(seq 100); do if nslookup {master}; then err=0 && break; fi;echo waiting for master; sleep 2; done; exit $err"
    );
    value::list(pod, &["spec", "initContainers"]).push(json!({
        "name": "init-pytorch", "image": "alpine:3.10", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "resources": {"limits": {"cpu": "100m", "memory": "20Mi"}, "requests": {"cpu": "50m", "memory": "10Mi"}},
    }));
}

/// The headless service of one replica.
#[must_use]
pub(crate) fn service(job: &Value, role: &str, index: i64) -> Value {
    let labels = labels(job, role, index);
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": replica_name(job, role, index), "namespace": value::namespace(job),
            "labels": labels, "ownerReferences": owner(job)},
        "spec": {"clusterIP": "None", "selector": labels,
            "ports": [{"name": "pytorchjob-port", "port": PORT, "protocol": "TCP", "targetPort": PORT}]}})
}

/// The PodGroup of a job.
#[must_use]
pub(crate) fn podgroup(job: &Value) -> Value {
    let policy =
        |key: &str| value::at(job, &["spec", "runPolicy", "schedulingPolicy", key]).cloned();
    let all = replicas_of(job, "Master").saturating_add(replicas_of(job, "Worker"));
    let mut spec = json!({});
    match policy("minAvailable") {
        // A minimum of 0 is left out on the wire.
        Some(Value::Number(n)) if n.as_i64() == Some(0) => {}
        Some(min) => value::set(&mut spec, &["minMember"], min),
        None => value::set(&mut spec, &["minMember"], all),
    }
    for key in ["minResources", "scheduleTimeoutSeconds"] {
        if let Some(v) = policy(key) {
            value::set(&mut spec, &[key], v);
        }
    }
    let mut metadata = json!({"name": value::name(job), "namespace": value::namespace(job), "ownerReferences": owner(job)});
    if let Some(annotations) = value::at(job, &["metadata", "annotations"]) {
        value::set(&mut metadata, &["annotations"], annotations.clone());
    }
    json!({"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup", "metadata": metadata, "spec": spec})
}
