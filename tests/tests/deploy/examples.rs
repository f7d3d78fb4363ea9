//! The examples are what their names say.

use muster_kubernetes::names;
use serde_json::Value;

use crate::files::{documents, read, text, with_ending};

fn example(name: &str) -> Vec<Value> {
    documents(&read(&format!("examples/{name}.yaml")))
}

/// Pods that an object becomes: how many, and how many GPUs each asks for.
fn pods(object: &Value) -> Vec<(u64, u64)> {
    let gpus = |spec: &Value| {
        let gpus = spec.pointer("/containers/0/resources/limits/nvidia.com~1gpu");
        assert_eq!(text(spec, "/schedulerName"), names::SCHEDULER_NAME);
        assert_eq!(text(spec, "/tolerations/0/key"), "nvidia.com/gpu");
        gpus.and_then(Value::as_u64).unwrap_or(0)
    };
    match text(object, "/kind") {
        "PyTorchJob" => ["Master", "Worker"]
            .iter()
            .filter_map(|role| object["spec"]["pytorchReplicaSpecs"].get(role))
            .map(|role| {
                (
                    role["replicas"].as_u64().unwrap(),
                    gpus(&role["template"]["spec"]),
                )
            })
            .collect(),
        "Pod" => vec![(1, gpus(&object["spec"]))],
        _ => Vec::new(),
    }
}

#[test]
fn each_example_has_the_shape_of_its_name() {
    let shapes: [(&str, &[(u64, u64)]); 10] = [
        ("gpu-pod", &[(1, 1)]),
        ("labelled-pods", &[(1, 8), (1, 8)]),
        ("podgroup", &[(1, 4), (1, 4)]),
        ("pytorchjob-1-4", &[(1, 1), (4, 1)]),
        ("pytorchjob-batch", &[(10, 8)]),
        ("pytorchjob-cpu-master", &[(1, 0), (4, 8)]),
        ("pytorchjob-elastic", &[(8, 8)]),
        ("pytorchjob-impossible", &[(1, 64)]),
        ("pytorchjob-one-rack", &[(4, 8)]),
        ("pytorchjob-too-big-for-now", &[(24, 8)]),
    ];
    let all = with_ending("yaml")
        .iter()
        .filter(|path| path.starts_with("examples/"))
        .count();
    assert_eq!(all, shapes.len(), "an example is not checked");
    for (name, shape) in shapes {
        let found: Vec<(u64, u64)> = example(name).iter().flat_map(pods).collect();
        assert_eq!(found, shape, "{name}");
        let comments = read(&format!("examples/{name}.yaml"));
        assert_eq!(
            comments
                .lines()
                .take_while(|line| line.starts_with("# "))
                .count(),
            2,
            "{name}"
        );
    }
}

#[test]
fn groups_without_a_job_name_themselves_with_the_right_keys() {
    for pod in example("labelled-pods") {
        assert_eq!(pod["metadata"]["labels"][names::GANG_LABEL], "sweep");
        assert_eq!(pod["metadata"]["annotations"][names::GANG_SIZE], "2");
    }
    let group = &example("podgroup")[0];
    for pod in &example("podgroup")[1..] {
        let label = &pod["metadata"]["labels"][names::POD_GROUP_LABEL];
        assert_eq!(label, &group["metadata"]["name"]);
    }
    let elastic = &example("pytorchjob-elastic")[0];
    assert_eq!(
        elastic["metadata"]["annotations"][names::ELASTIC_MINIMUM],
        "true"
    );
    assert_eq!(text(&example("gpu-pod")[0], "/spec/nodeSelector/pool"), "a");
}
