//! A PyTorchJob through the real training operator, kube-scheduler and KWOK.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
};
use muster_control_plane::history::{GangRule, Recorder, World};
use muster_control_plane::{Cluster, NodeTemplate, Program, TrainingOperatorOptions};

const JOB: &str = r#"
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: train, namespace: default}
spec:
  runPolicy: {cleanPodPolicy: None}
  pytorchReplicaSpecs:
    Master:
      replicas: 1
      restartPolicy: OnFailure
      template:
        metadata: {annotations: {muster.dev/run-seconds: "2"}}
        spec:
          tolerations: [{key: nvidia.com/gpu, operator: Exists}]
          containers:
          - {name: pytorch, image: example/train, resources: {limits: {nvidia.com/gpu: "1"}}}
    Worker:
      replicas: 2
      restartPolicy: OnFailure
      template:
        metadata: {annotations: {muster.dev/run-seconds: "2"}}
        spec:
          tolerations: [{key: nvidia.com/gpu, operator: Exists}]
          containers:
          - {name: pytorch, image: example/train, resources: {limits: {nvidia.com/gpu: "1"}}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pytorchjob_becomes_labelled_pods_that_run_and_the_job_succeeds() {
    let cluster = Cluster::builder()
        .nodes(NodeTemplate::gpu_pool("gpu", 2))
        .start()
        .await
        .unwrap();
    let options = TrainingOperatorOptions {
        gang_scheduler_name: Some("default-scheduler".into()),
        ..TrainingOperatorOptions::default()
    };
    cluster.start_training_operator(&options).await.unwrap();
    let config = cluster.default_kube_scheduler_config().unwrap();
    cluster.start_kube_scheduler(&config).await.unwrap();

    // The webhook is really asked.
    let bad = JOB.replace("Master:\n      replicas: 1", "Master:\n      replicas: 2");
    let refused = cluster.apply_yaml(&bad).await.unwrap_err().to_string();
    assert!(refused.contains("validator.pytorchjob"), "{refused}");

    cluster.apply_yaml(JOB).await.unwrap();
    let since = Instant::now();
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob"));
    let jobs: Api<DynamicObject> = Api::namespaced_with(cluster.admin(), "default", &kind);
    let mut touched = Instant::now();
    let seen = loop {
        let list = pods.list(&ListParams::default()).await.unwrap();
        let running = |pod: &Pod| {
            pod.status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                == Some("Running")
        };
        if list.items.len() == 3 && list.items.iter().all(running) {
            break list.items;
        }
        // On a busy machine the operator may not see its own PodGroup in time and forget the job
        // until that changes.
        if list.items.is_empty() && touched.elapsed() > Duration::from_secs(10) {
            touched = Instant::now();
            let mark = format!("{:?}", since.elapsed());
            let patch = serde_json::json!({"metadata": {"annotations": {"test/touch": mark}}});
            let patch = Patch::Merge(&patch);
            jobs.patch("train", &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "pods: {:?}",
            list.items
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for pod in &seen {
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert_eq!(labels["training.kubeflow.org/job-name"], "train");
        assert_eq!(
            labels["training.kubeflow.org/operator-name"],
            "pytorchjob-controller"
        );
        assert_eq!(labels["scheduling.x-k8s.io/pod-group"], "train");
        let name = pod.metadata.name.as_deref().unwrap();
        let (kind, index) = (
            &labels["training.kubeflow.org/replica-type"],
            &labels["training.kubeflow.org/replica-index"],
        );
        assert_eq!(name, format!("train-{kind}-{index}"));
        let owner = &pod.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.controller),
            ("PyTorchJob", Some(true))
        );
        assert!(
            pod.spec
                .as_ref()
                .unwrap()
                .node_name
                .as_ref()
                .unwrap()
                .starts_with("gpu-")
        );
    }
    let waited = [
        "wait",
        "--for=condition=Succeeded",
        "--timeout=60s",
        "pytorchjob/train",
    ];
    let output = cluster.kubectl(&waited).await.unwrap();
    assert!(output.success, "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_training_operator_comes_back_and_replaces_a_deleted_member() {
    // Runs beside the test above: two operators on one machine at once.
    let cluster = Cluster::builder()
        .nodes(NodeTemplate::gpu_pool("gpu", 2))
        .start()
        .await
        .unwrap();
    cluster
        .start_training_operator(&TrainingOperatorOptions::default())
        .await
        .unwrap();
    let recorder = Recorder::start(cluster.admin()).await.unwrap();
    let job = JOB.replace("run-seconds", "not-run-seconds");
    cluster.apply_yaml(&job).await.unwrap();
    let minute = Duration::from_secs(60);
    recorder
        .wait_for(minute, "3 pods", |world| {
            world.pods_of("train").count() == 3
        })
        .await
        .unwrap();
    let uid = |world: &World| {
        world
            .pods
            .values()
            .find(|pod| pod.name == "train-worker-1")
            .map(|pod| pod.uid.clone())
    };
    let old = recorder.look(uid).unwrap();

    cluster.kill(&Program::TrainingOperator).unwrap();
    let deleted = cluster
        .kubectl(&["delete", "pod", "train-worker-1"])
        .await
        .unwrap();
    assert!(deleted.success, "{}", deleted.stderr);
    recorder
        .wait_for(minute, "2 pods", |world| {
            world.pods_of("train").count() == 2
        })
        .await
        .unwrap();
    cluster.start(&Program::TrainingOperator).await.unwrap();
    recorder
        .wait_for(minute, "a new worker-1", |world| {
            uid(world).is_some_and(|new| new != old)
        })
        .await
        .unwrap();
    // No scheduler runs: nothing was bound, and the job's minimum is known from the job itself.
    let history = recorder.caught_up(minute).await.unwrap();
    assert_eq!(history.binds(), []);
    let gangs = history.gangs(&GangRule::new(minute));
    assert_eq!(
        (
            gangs.len(),
            gangs[0].pods,
            gangs[0].minimum,
            gangs[0].name.as_str()
        ),
        (1, 4, 3, "default/train")
    );
}
