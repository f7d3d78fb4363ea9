//! Muster is installed and does not run: its objects are there, and no process of it. Whatever belongs to others goes its way on a real
//! API server, and so does what Muster needs to come back.

use std::time::{Duration, Instant};

use axum::http::{Method, Request};
use muster_control_plane::Cluster;
use serde_json::{Value, json};

use crate::account::{JOBS, PODS};
use crate::files::id;
use crate::programs::kustomize;

/// Longest wait for a policy to act after it has come, and for controllers to make pods.
const PATIENCE: Duration = Duration::from_secs(90);
const OWN_PODS: &str = "/api/v1/namespaces/muster-system/pods";

/// Asks the API server as an administrator.
async fn asked(
    cluster: &Cluster,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Value, String> {
    let kind = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method.clone())
        .uri(path)
        .header("content-type", kind)
        .body(body.to_string().into_bytes())
        .unwrap();
    let answer = cluster.admin().request::<Value>(request).await;
    answer.map_err(|error| format!("{method} {path}: {error}"))
}

/// The installation as it stands in the repository, its kinds first.
async fn install(cluster: &Cluster) {
    let list = |objects: &[Value]| {
        json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
    };
    let (first, rest): (Vec<Value>, Vec<Value>) =
        kustomize("kustomize/base").into_iter().partition(|object| {
            let id = id(object);
            id.starts_with("Namespace") || id.starts_with("CustomResourceDefinition")
        });
    cluster.apply_yaml(&list(&first)).await.unwrap();
    let jobs = cluster.binaries().pytorchjobs_crd();
    cluster.apply_file(&jobs).await.unwrap();
    let crds = ["gangs.muster.dev", "pytorchjobs.kubeflow.org"];
    cluster.wait_for_crds(&crds).await.unwrap();
    cluster.apply_yaml(&list(&rest)).await.unwrap();
}

fn pod(name: &str, scheduler: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"muster.dev/gang": name}, "annotations": {"muster.dev/gang-size": "1"}},
        "spec": {"schedulerName": scheduler, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}})
}

fn job(name: &str, scheduler: &str) -> Value {
    json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 2, "template": {"spec": {
            "schedulerName": scheduler, "containers": [{"name": "pytorch", "image": "i"}]}}}}}})
}

fn binding(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}})
}

/// Makes an object until `is_there` says that a policy has seen it; dry runs.
async fn until_seen(
    cluster: &Cluster,
    path: &str,
    body: &Value,
    is_there: impl Fn(&Value) -> bool,
) {
    let (end, path) = (Instant::now() + PATIENCE, format!("{path}?dryRun=All"));
    loop {
        let answer = asked(cluster, Method::POST, &path, body).await;
        if answer.as_ref().is_ok_and(&is_there) {
            return;
        }
        assert!(Instant::now() < end, "the policies do not act: {answer:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Pods, jobs and Bindings of others, and of those who wait for Muster.
async fn everybody_goes_on(cluster: &Cluster) {
    let running = json!({"status": {"phase": "Running"}});
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    for (name, scheduler) in [("theirs", "default-scheduler"), ("waits", "muster")] {
        let (own, own_job) = (format!("{PODS}/{name}"), format!("{JOBS}/{name}"));
        let ask = async |method: Method, path: &str, body: &Value| {
            asked(cluster, method, path, body).await.unwrap()
        };
        ask(Method::POST, JOBS, &job(name, scheduler)).await;
        ask(Method::PATCH, &own_job, &label).await;
        let made = ask(Method::POST, PODS, &pod(name, scheduler)).await;
        let gates = made.pointer("/spec/schedulingGates");
        ask(Method::PATCH, &own, &label).await;
        if scheduler == "muster" {
            assert!(gates.is_some(), "it waits: {made}");
        } else {
            assert_eq!(gates, None, "{made}");
            ask(Method::POST, &format!("{own}/binding"), &binding(name)).await;
            ask(Method::PATCH, &format!("{own}/status"), &running).await;
            let bound = ask(Method::GET, &own, &json!({})).await;
            assert_eq!(bound["spec"]["nodeName"], "n1");
        }
        let now = json!({"gracePeriodSeconds": 0});
        ask(Method::DELETE, &own, &now).await;
        ask(Method::DELETE, &own_job, &json!({})).await;
    }
}

/// The pods of Muster itself are made, and anybody may bind them: nothing has to run for them to run.
async fn muster_comes_back(cluster: &Cluster) {
    let end = Instant::now() + PATIENCE;
    let name = loop {
        let found = asked(cluster, Method::GET, OWN_PODS, &json!({}))
            .await
            .unwrap();
        let name = found.pointer("/items/0/metadata/name");
        if let Some(name) = name.and_then(Value::as_str) {
            break name.to_owned();
        }
        assert!(Instant::now() < end, "no pod of Muster is made");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let path = format!("{OWN_PODS}/{name}/binding");
    let bound = asked(cluster, Method::POST, &path, &binding(&name)).await;
    assert!(bound.is_ok(), "{bound:?}");
}

/// While a webhook for all pods was down, no pod of the cluster could be made, and the webhook's own neither; one on `pods/binding`
/// kept everything from being scheduled after a reboot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f49_f50_with_all_of_muster_installed_and_none_of_it_running_everybody_goes_on() {
    let cluster = Cluster::builder().with_kwok(false).start().await.unwrap();
    install(&cluster).await;
    let held = |job: &Value| job["metadata"]["annotations"]["muster.dev/hold"] == "queued";
    until_seen(&cluster, JOBS, &job("probe", "muster"), held).await;
    let gated = |pod: &Value| pod.pointer("/spec/schedulingGates/0").is_some();
    until_seen(&cluster, PODS, &pod("probe", "muster"), gated).await;
    everybody_goes_on(&cluster).await;
    muster_comes_back(&cluster).await;
}
