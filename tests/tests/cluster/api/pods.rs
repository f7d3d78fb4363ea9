//! Pods: defaults, refusals, versions, Bindings, gates.

use k8s_openapi::api::core::v1::{Binding, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{pod, pods, server, status_of};

#[tokio::test(start_paused = true)]
async fn pods_are_created_with_defaults_and_refused_with_the_real_texts() {
    let server = server();
    let api = pods(&server);
    let made = api
        .create(&PostParams::default(), &pod("a", json!({"spec": {"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}})))
        .await
        .unwrap();
    let spec = made.spec.unwrap();
    assert_eq!(spec.scheduler_name.as_deref(), Some("default-scheduler"));
    assert_eq!(
        spec.containers[0]
            .resources
            .as_ref()
            .unwrap()
            .requests
            .as_ref()
            .unwrap()["nvidia.com/gpu"]
            .0,
        "2"
    );
    assert_eq!(spec.priority, Some(0));
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
    assert_eq!(made.metadata.generation, Some(1));
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());

    let again = status_of(
        api.create(&PostParams::default(), &pod("a", json!({})))
            .await
            .unwrap_err(),
    );
    assert_eq!(
        (again.code, again.reason.as_str(), again.message.as_str()),
        (409, "AlreadyExists", "pods \"a\" already exists")
    );
    let missing = status_of(api.get("b").await.unwrap_err());
    assert_eq!(
        (missing.code, missing.message.as_str()),
        (404, "pods \"b\" not found")
    );
    let bad = status_of(
        api.create(&PostParams::default(), &pod("Bad_Name", json!({})))
            .await
            .unwrap_err(),
    );
    assert_eq!((bad.code, bad.reason.as_str()), (422, "Invalid"));
    let gpus = json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"nvidia.com/gpu": "1"}}}]}});
    let bad = status_of(
        api.create(&PostParams::default(), &pod("c", gpus))
            .await
            .unwrap_err(),
    );
    assert!(
        bad.message
            .contains("Limit must be set for non overcommitable resources"),
        "{}",
        bad.message
    );
    let nowhere: Api<Pod> = Api::namespaced(server.client("test"), "nowhere");
    let bad = status_of(
        nowhere
            .create(&PostParams::default(), &pod("d", json!({})))
            .await
            .unwrap_err(),
    );
    assert_eq!(bad.message, "namespaces \"nowhere\" not found");
    let class = pod("e", json!({"spec": {"priorityClassName": "gone"}}));
    assert_eq!(
        status_of(
            api.create(&PostParams::default(), &class)
                .await
                .unwrap_err()
        )
        .code,
        403
    );
}

#[tokio::test(start_paused = true)]
async fn writes_are_guarded_by_resource_version_and_equal_writes_are_no_writes() {
    let server = server();
    let api = pods(&server);
    let first = api
        .create(&PostParams::default(), &pod("a", json!({})))
        .await
        .unwrap();
    let label = |v: &str| Patch::Merge(json!({"metadata": {"labels": {"x": v}}}));
    let second = api
        .patch("a", &PatchParams::default(), &label("1"))
        .await
        .unwrap();
    assert_ne!(
        first.metadata.resource_version,
        second.metadata.resource_version
    );
    let same = api
        .patch("a", &PatchParams::default(), &label("1"))
        .await
        .unwrap();
    assert_eq!(
        same.metadata.resource_version,
        second.metadata.resource_version
    );
    assert_eq!(
        same.metadata.generation,
        Some(1),
        "labels are no change of the wanted state"
    );
    let stale = status_of(
        api.replace("a", &PostParams::default(), &first)
            .await
            .unwrap_err(),
    );
    assert_eq!((stale.code, stale.reason.as_str()), (409, "Conflict"));
    let uid = json!({"metadata": {"uid": "other"}});
    let other = status_of(
        api.patch("a", &PatchParams::default(), &Patch::Merge(uid))
            .await
            .unwrap_err(),
    );
    assert_eq!(other.code, 409);

    let status = json!({"status": {"phase": "Running"}, "spec": {"nodeName": "sneaky"}});
    let after = api
        .patch_status("a", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    assert_eq!(after.status.unwrap().phase.as_deref(), Some("Running"));
    assert_eq!(
        after.spec.unwrap().node_name,
        None,
        "the status endpoint writes the status only"
    );
    let spec = json!({"spec": {"nodeName": "sneaky"}});
    let refused = status_of(
        api.patch("a", &PatchParams::default(), &Patch::Merge(spec))
            .await
            .unwrap_err(),
    );
    assert_eq!(refused.code, 422);
    assert!(
        refused
            .message
            .contains("pod updates may not change fields other than")
    );
}

#[tokio::test(start_paused = true)]
async fn binding_has_the_preconditions_of_the_real_one() {
    let server = server();
    let api = pods(&server);
    let made = api
        .create(&PostParams::default(), &pod("a", json!({})))
        .await
        .unwrap();
    let bind = |name: &str, meta: Value| {
        let mut metadata = json!({"name": name});
        muster_embedded::api::patch::merge(&mut metadata, &meta);
        serde_json::to_vec(&json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}})).unwrap()
    };
    let post = |name: &'static str, body: Vec<u8>| {
        let api = api.clone();
        async move {
            let binding: Binding = serde_json::from_slice(&body).unwrap();
            api.create_subresource::<Binding, kube::core::Status>(
                "binding",
                name,
                &PostParams::default(),
                &binding,
            )
            .await
        }
    };
    let wrong_uid = status_of(
        post("a", bind("a", json!({"uid": "other"})))
            .await
            .unwrap_err(),
    );
    assert_eq!(wrong_uid.code, 409);
    assert!(
        wrong_uid.message.starts_with(
            "Operation cannot be fulfilled on pods/binding \"a\": Precondition failed: UID"
        ),
        "{}",
        wrong_uid.message
    );
    let stale = status_of(
        post("a", bind("a", json!({"resourceVersion": "1"})))
            .await
            .unwrap_err(),
    );
    assert_eq!(stale.code, 409);
    let good = bind(
        "a",
        json!({"uid": made.metadata.uid, "resourceVersion": made.metadata.resource_version, "annotations": {"plan": "7"}}),
    );
    post("a", good).await.unwrap();
    let bound = api.get("a").await.unwrap();
    assert_eq!(bound.spec.unwrap().node_name.as_deref(), Some("n1"));
    assert_eq!(bound.metadata.annotations.unwrap()["plan"], "7");
    let conditions = bound.status.unwrap().conditions.unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c.type_ == "PodScheduled" && c.status == "True")
    );
    let twice = status_of(post("a", bind("a", json!({}))).await.unwrap_err());
    assert!(
        twice.message.contains("is already assigned to node \"n1\""),
        "{}",
        twice.message
    );

    api.create(
        &PostParams::default(),
        &pod("g", json!({"spec": {"schedulingGates": [{"name": "x"}]}})),
    )
    .await
    .unwrap();
    let gated = status_of(post("g", bind("g", json!({}))).await.unwrap_err());
    assert!(
        gated
            .message
            .contains("has non-empty .spec.schedulingGates"),
        "{}",
        gated.message
    );
    // A bound pod waits for its kubelet, and cannot be bound while it does.
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let leaving = api.get("a").await.unwrap();
    assert_eq!(leaving.metadata.deletion_grace_period_seconds, Some(30));
    let late = status_of(post("a", bind("a", json!({}))).await.unwrap_err());
    assert!(
        late.message
            .contains("is being deleted, cannot be assigned to a host"),
        "{}",
        late.message
    );
    api.delete("a", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert_eq!(status_of(api.get("a").await.unwrap_err()).code, 404);
}

#[tokio::test(start_paused = true)]
async fn a_gated_pod_is_pinned_and_released_in_one_patch_and_a_free_one_is_not() {
    let server = server();
    let api = pods(&server);
    api.create(
        &PostParams::default(),
        &pod(
            "g",
            json!({"spec": {"schedulingGates": [{"name": "muster.dev/gang"}]}}),
        ),
    )
    .await
    .unwrap();
    let pin = |values: Value, gates: Value| {
        Patch::Merge(
            json!({"spec": {"schedulingGates": gates, "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": values}]}]}}}}}),
        )
    };
    let two = status_of(
        api.patch(
            "g",
            &PatchParams::default(),
            &pin(json!(["a", "b"]), json!([])),
        )
        .await
        .unwrap_err(),
    );
    assert!(
        two.message.contains("must be only one value"),
        "{}",
        two.message
    );
    let more = status_of(
        api.patch(
            "g",
            &PatchParams::default(),
            &pin(
                json!(["a"]),
                json!([{"name": "muster.dev/gang"}, {"name": "more"}]),
            ),
        )
        .await
        .unwrap_err(),
    );
    assert!(
        more.message.contains("only deletion is allowed"),
        "{}",
        more.message
    );
    let free = api
        .patch("g", &PatchParams::default(), &pin(json!(["a"]), json!([])))
        .await
        .unwrap();
    assert_eq!(free.metadata.generation, Some(2));
    let late = status_of(
        api.patch("g", &PatchParams::default(), &pin(json!(["b"]), json!([])))
            .await
            .unwrap_err(),
    );
    assert_eq!(late.code, 422);
}
