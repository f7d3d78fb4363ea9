//! The API server, asked by the real kube client in process.

mod accounts;
mod definitions;
mod owners;
mod pods;
mod policies;
mod watches;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use muster_embedded::api::{ApiServer, Limits};
use muster_embedded::clock::Clock;
use serde_json::{Value, json};

fn server() -> ApiServer {
    ApiServer::new(Clock::fixed(), 1, Limits::default())
}

fn pods(server: &ApiServer) -> Api<Pod> {
    Api::namespaced(server.client("test"), "default")
}

fn pod(name: &str, extra: Value) -> Pod {
    let mut object = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "busybox"}]}});
    muster_embedded::api::patch::strategic(&mut object, &extra);
    serde_json::from_value(object).unwrap()
}

fn jobs(server: &ApiServer) -> Api<DynamicObject> {
    let kind = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob"),
        "pytorchjobs",
    );
    Api::namespaced_with(server.client("test"), "default", &kind)
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn pytorchjob(name: &str, scheduler: &str) -> DynamicObject {
    object(
        json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 2, "template": {"spec": {"schedulerName": scheduler,
            "containers": [{"name": "pytorch", "image": "x"}]}}}}}}),
    )
}

fn status_of(error: kube::Error) -> kube::core::Status {
    match error {
        kube::Error::Api(status) => *status,
        other => panic!("no answer of the API server: {other}"),
    }
}
