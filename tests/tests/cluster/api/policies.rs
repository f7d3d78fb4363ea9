//! Admission policies.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use muster_embedded::api::ApiServer;
use serde_json::{Value, json};

use super::{jobs, pod, pytorchjob, server};

fn create_policy_object(server: &ApiServer, plural: &'static str, object: Value) {
    let target = server
        .target("admissionregistration.k8s.io", plural, "", "")
        .unwrap();
    server
        .create(&muster_embedded::api::Caller::new("test"), &target, object)
        .unwrap();
}

fn create_policies(server: &ApiServer) {
    for (name, emulate) in [("hold", "suspend-pytorchjobs"), ("gate", "gate-pods")] {
        let policy = json!({"metadata": {"name": name, "labels": {"muster.dev/emulate": emulate}}, "spec": {}});
        create_policy_object(server, "mutatingadmissionpolicies", policy);
    }
}

fn bind_policies(server: &ApiServer) {
    for name in ["hold", "gate"] {
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        create_policy_object(server, "mutatingadmissionpolicybindings", binding);
    }
}

#[tokio::test(start_paused = true)]
async fn policies_with_the_label_hold_jobs_once_they_are_bound() {
    let server = server();
    create_policies(&server);
    let jobs = jobs(&server);
    let free = jobs
        .create(&PostParams::default(), &pytorchjob("before", "muster"))
        .await
        .unwrap();
    assert_eq!(
        free.data["spec"]["runPolicy"]["suspend"],
        Value::Null,
        "a policy without a binding does nothing"
    );
    bind_policies(&server);
    let held = jobs
        .create(&PostParams::default(), &pytorchjob("held", "muster"))
        .await
        .unwrap();
    assert_eq!(held.data["spec"]["runPolicy"]["suspend"], true);
    assert_eq!(
        held.metadata.annotations.unwrap()["muster.dev/hold"],
        "queued"
    );
    let other = jobs
        .create(
            &PostParams::default(),
            &pytorchjob("other", "default-scheduler"),
        )
        .await
        .unwrap();
    assert_eq!(other.data["spec"]["runPolicy"]["suspend"], Value::Null);
    let mut own = pytorchjob("own", "muster");
    own.data["spec"]["runPolicy"] = json!({"suspend": true});
    let mut elsewhere = pytorchjob("elsewhere", "muster");
    elsewhere.data["spec"]["runPolicy"] = json!({"managedBy": "kueue.x-k8s.io/multikueue"});
    let mut kueue = pytorchjob("kueue", "muster");
    kueue.metadata.labels =
        Some([("kueue.x-k8s.io/queue-name".to_owned(), "team".to_owned())].into());
    for job in [&own, &elsewhere, &kueue] {
        let made = jobs.create(&PostParams::default(), job).await.unwrap();
        assert_eq!(made.metadata.annotations, None, "{:?}", made.metadata.name);
    }
}

#[tokio::test(start_paused = true)]
async fn the_policy_gates_pods_that_ask_for_devices_or_name_a_gang_and_no_others() {
    let server = server();
    create_policies(&server);
    bind_policies(&server);
    let gpu = json!([{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]);
    let slice = json!([{"name": "init", "image": "a", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}]);
    let owner = json!([{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "j", "uid": "u", "controller": true}]);
    let ours = json!({"schedulerName": "muster", "containers": gpu});
    let labelled = |label: &str| json!({"metadata": {"labels": {label: "g"}}, "spec": {"schedulerName": "muster"}});
    let cases = [
        ("gpu", "default", json!({"spec": ours}), true),
        (
            "slice",
            "default",
            json!({"spec": {"schedulerName": "muster", "initContainers": slice}}),
            true,
        ),
        ("label", "default", labelled("muster.dev/gang"), true),
        (
            "group",
            "default",
            labelled("scheduling.x-k8s.io/pod-group"),
            true,
        ),
        (
            "cpu",
            "default",
            json!({"spec": {"schedulerName": "muster"}}),
            false,
        ),
        (
            "other",
            "default",
            json!({"spec": {"containers": gpu}}),
            false,
        ),
        (
            "placed",
            "default",
            json!({"spec": {"schedulerName": "muster", "nodeName": "n", "containers": gpu}}),
            false,
        ),
        (
            "owned",
            "default",
            json!({"metadata": {"ownerReferences": owner}, "spec": ours}),
            false,
        ),
        ("own", "muster-system", json!({"spec": ours}), false),
    ];
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(server.client("test"));
    let own = serde_json::from_value(json!({"metadata": {"name": "muster-system"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &own)
        .await
        .unwrap();
    for (name, namespace, object, gated) in cases {
        let api: Api<Pod> = Api::namespaced(server.client("test"), namespace);
        let made = api
            .create(&PostParams::default(), &pod(name, object))
            .await
            .unwrap();
        let gates = made.spec.unwrap().scheduling_gates.unwrap_or_default();
        let names: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
        let wanted: &[&str] = if gated { &["muster.dev/gang"] } else { &[] };
        assert_eq!(names, wanted, "{name}");
    }
}
