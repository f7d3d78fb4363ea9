//! The API server, asked by the real kube client in process.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind, WatchEvent};
use kube::runtime::watcher;
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

#[tokio::test(start_paused = true)]
async fn lists_are_filtered_and_paged_on_one_snapshot() {
    let server = server();
    let api = pods(&server);
    for at in 0..25 {
        let labels = json!({"metadata": {"labels": {"half": (at % 2).to_string()}}});
        api.create(&PostParams::default(), &pod(&format!("p{at:02}"), labels))
            .await
            .unwrap();
    }
    let odd = api
        .list(&ListParams::default().labels("half in (1)"))
        .await
        .unwrap();
    assert_eq!(odd.items.len(), 12);
    assert_eq!(
        api.list(&ListParams::default().fields("metadata.name=p03"))
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    assert_eq!(
        api.list(&ListParams::default().fields("spec.nodeName=,status.phase=Pending"))
            .await
            .unwrap()
            .items
            .len(),
        25
    );
    assert_eq!(
        status_of(
            api.list(&ListParams::default().fields("spec.odd=1"))
                .await
                .unwrap_err()
        )
        .code,
        400
    );

    let mut params = ListParams::default().limit(10);
    let first = api.list(&params).await.unwrap();
    assert_eq!(
        (first.items.len(), first.metadata.remaining_item_count),
        (10, Some(15))
    );
    api.delete("p15", &DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &pod("p12a", json!({})))
        .await
        .unwrap();
    params = params.continue_token(first.metadata.continue_.as_deref().unwrap());
    let second = api.list(&params).await.unwrap();
    let names: Vec<_> = second
        .items
        .iter()
        .filter_map(|p| p.metadata.name.clone())
        .collect();
    assert_eq!(names.first().map(String::as_str), Some("p10"));
    assert!(
        names.contains(&"p15".to_owned()) && !names.contains(&"p12a".to_owned()),
        "{names:?}"
    );
    assert_eq!(
        second.metadata.resource_version,
        first.metadata.resource_version
    );
    server.compact();
    assert_eq!(status_of(api.list(&params).await.unwrap_err()).code, 410);
}

#[tokio::test(start_paused = true)]
async fn watches_resume_bookmark_expire_and_follow_selectors() {
    let server = server();
    let api = pods(&server);
    let start = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let params = WatchParams::default().labels("on=yes").timeout(90);
    let mut stream = api.watch(&params, &start).await.unwrap().boxed();
    let on = |v: &str| Patch::Merge(json!({"metadata": {"labels": {"on": v}}}));
    api.create(&PostParams::default(), &pod("a", json!({})))
        .await
        .unwrap();
    api.patch("a", &PatchParams::default(), &on("yes"))
        .await
        .unwrap();
    api.patch("a", &PatchParams::default(), &on("no"))
        .await
        .unwrap();
    assert!(
        matches!(stream.try_next().await.unwrap(), Some(WatchEvent::Added(p)) if p.metadata.name.as_deref() == Some("a"))
    );
    assert!(matches!(
        stream.try_next().await.unwrap(),
        Some(WatchEvent::Deleted(_))
    ));
    let before = tokio::time::Instant::now();
    assert!(matches!(
        stream.try_next().await.unwrap(),
        Some(WatchEvent::Bookmark(_))
    ));
    assert_eq!(before.elapsed().as_secs(), 60);
    assert!(matches!(
        stream.try_next().await.unwrap(),
        Some(WatchEvent::Bookmark(_))
    ));
    assert!(
        stream.try_next().await.unwrap().is_none(),
        "the watch ends after its timeout"
    );
    server.compact();
    let mut stream = api
        .watch(&WatchParams::default(), &start)
        .await
        .unwrap()
        .boxed();
    assert!(
        matches!(stream.try_next().await.unwrap(), Some(WatchEvent::Error(e)) if e.code == 410 && e.reason == "Expired")
    );
}

#[tokio::test(start_paused = true)]
async fn the_watcher_of_kube_runtime_follows_in_both_modes_and_survives_compaction() {
    for streaming in [false, true] {
        let server = server();
        let api = pods(&server);
        api.create(&PostParams::default(), &pod("a", json!({})))
            .await
            .unwrap();
        let config = if streaming {
            watcher::Config::default().streaming_lists()
        } else {
            watcher::Config::default()
        };
        let mut events = watcher::watcher(api.clone(), config).boxed();
        let mut seen = Vec::new();
        while seen.last().is_none_or(|l| l != "done") {
            match events.try_next().await.unwrap().unwrap() {
                watcher::Event::Init => seen.push("init".to_owned()),
                watcher::Event::InitApply(p) => seen.push(p.metadata.name.unwrap()),
                watcher::Event::InitDone => seen.push("done".to_owned()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, ["init", "a", "done"]);
        api.create(&PostParams::default(), &pod("b", json!({})))
            .await
            .unwrap();
        assert!(
            matches!(events.try_next().await.unwrap(), Some(watcher::Event::Apply(p)) if p.metadata.name.as_deref() == Some("b"))
        );
        api.delete("b", &DeleteParams::default()).await.unwrap();
        assert!(
            matches!(events.try_next().await.unwrap(), Some(watcher::Event::Delete(p)) if p.metadata.name.as_deref() == Some("b"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn custom_resources_are_defined_served_validated_and_scaled() {
    let server = server();
    let crds: Api<CustomResourceDefinition> = Api::all(server.client("test"));
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "gangs.muster.dev"},
        "spec": {"group": "muster.dev", "scope": "Namespaced", "names": {"plural": "gangs", "kind": "Gang", "singular": "gang", "shortNames": ["gg"]},
        "versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer", "minimum": 1}, "mode": {"type": "string", "enum": ["a", "b"], "default": "a"}}},
                "status": {"type": "object", "properties": {"phase": {"type": "string"}}}}}}}]}});
    let made = crds
        .patch(
            "gangs.muster.dev",
            &PatchParams::apply("test"),
            &Patch::Apply(crd),
        )
        .await
        .unwrap();
    assert!(
        made.status
            .unwrap()
            .conditions
            .unwrap()
            .iter()
            .any(|c| c.type_ == "Established" && c.status == "True")
    );
    let kind = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("muster.dev", "v1alpha1", "Gang"),
        "gangs",
    );
    let gangs: Api<DynamicObject> = Api::namespaced_with(server.client("test"), "default", &kind);
    let gang = |spec: Value| {
        object(
            json!({"apiVersion": "muster.dev/v1alpha1", "kind": "Gang", "metadata": {"name": "g"}, "spec": spec, "status": {"phase": "early"}}),
        )
    };
    for (spec, field) in [
        (json!({"size": 0}), "spec.size"),
        (json!({"size": "x"}), "spec.size"),
        (json!({}), "spec.size"),
        (json!({"size": 1, "mode": "c"}), "spec.mode"),
    ] {
        let refused = status_of(
            gangs
                .create(&PostParams::default(), &gang(spec))
                .await
                .unwrap_err(),
        );
        assert_eq!(refused.code, 422);
        assert_eq!(refused.details.unwrap().causes[0].field, field);
    }
    let made = gangs
        .create(&PostParams::default(), &gang(json!({"size": 2, "odd": 1})))
        .await
        .unwrap();
    assert_eq!(
        made.data,
        json!({"spec": {"size": 2, "mode": "a"}}),
        "status and unknown fields go, defaults come"
    );
    let status = Patch::Merge(json!({"status": {"phase": "Planned"}, "spec": {"size": 9}}));
    let after = gangs
        .patch_status("g", &PatchParams::default(), &status)
        .await
        .unwrap();
    assert_eq!(
        (
            after.data["status"]["phase"].clone(),
            after.data["spec"]["size"].clone(),
            after.metadata.generation
        ),
        (json!("Planned"), json!(2), Some(1))
    );
    let after = gangs
        .patch(
            "g",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"size": 3}})),
        )
        .await
        .unwrap();
    assert_eq!(after.metadata.generation, Some(2));

    let jobs = jobs(&server);
    jobs.create(&PostParams::default(), &pytorchjob("j", "muster"))
        .await
        .unwrap();
    let scale = jobs.get_scale("j").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(2));
    jobs.patch_scale(
        "j",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"replicas": 5}})),
    )
    .await
    .unwrap();
    assert_eq!(
        jobs.get("j").await.unwrap().data["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"],
        5
    );
    let bad = jobs
        .patch_scale(
            "j",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": -1}})),
        )
        .await
        .unwrap_err();
    assert_eq!(status_of(bad).code, 422);
}

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

#[tokio::test(start_paused = true)]
async fn dependents_go_with_their_owner_and_namespaces_with_their_content() {
    let server = server();
    let collector = tokio::spawn({
        let server = server.clone();
        async move { server.collect_garbage().await }
    });
    let jobs = jobs(&server);
    let owner = jobs
        .create(&PostParams::default(), &pytorchjob("j", "x"))
        .await
        .unwrap();
    let api = pods(&server);
    let owned = |uid: Option<String>| json!({"metadata": {"ownerReferences": [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "j", "uid": uid, "controller": true, "blockOwnerDeletion": true}]}});
    for name in ["a", "b"] {
        api.create(
            &PostParams::default(),
            &pod(name, owned(owner.metadata.uid.clone())),
        )
        .await
        .unwrap();
    }
    api.create(
        &PostParams::default(),
        &pod("late", owned(Some("gone".into()))),
    )
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        api.list(&ListParams::default()).await.unwrap().items.len(),
        2,
        "an owner that is not there is no owner"
    );
    jobs.delete("j", &DeleteParams::foreground()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        api.list(&ListParams::default()).await.unwrap().items.len(),
        0
    );
    assert_eq!(status_of(jobs.get("j").await.unwrap_err()).code, 404);

    let namespaces: Api<Namespace> = Api::all(server.client("test"));
    namespaces
        .create(
            &PostParams::default(),
            &serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap(),
        )
        .await
        .unwrap();
    let team: Api<Pod> = Api::namespaced(server.client("test"), "team");
    team.create(&PostParams::default(), &pod("a", json!({})))
        .await
        .unwrap();
    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        status_of(namespaces.get("team").await.unwrap_err()).code,
        404
    );
    assert_eq!(
        team.list(&ListParams::default()).await.unwrap().items.len(),
        0
    );
    server.shutdown();
    collector.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn finalizers_hold_an_object_until_the_last_one_goes() {
    let server = server();
    let jobs = jobs(&server);
    let mut job = pytorchjob("j", "x");
    job.metadata.finalizers = Some(vec!["muster.dev/clean".into()]);
    let made = jobs.create(&PostParams::default(), &job).await.unwrap();
    let wrong = DeleteParams {
        preconditions: Some(kube::api::Preconditions {
            uid: Some("other".into()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    assert_eq!(
        status_of(jobs.delete("j", &wrong).await.unwrap_err()).code,
        409
    );
    jobs.delete("j", &DeleteParams::default()).await.unwrap();
    let held = jobs.get("j").await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    assert_eq!(held.metadata.uid, made.metadata.uid);
    jobs.patch(
        "j",
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": {"finalizers": null}})),
    )
    .await
    .unwrap();
    assert_eq!(status_of(jobs.get("j").await.unwrap_err()).code, 404);
}

#[tokio::test(start_paused = true)]
async fn tokens_prove_the_node_of_their_pod() {
    let server = server();
    let client = server.client("test");
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .create(
            &PostParams::default(),
            &serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap(),
        )
        .await
        .unwrap();
    let api = pods(&server);
    api.create(
        &PostParams::default(),
        &pod("agent", json!({"spec": {"nodeName": "n1"}})),
    )
    .await
    .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let request: k8s_openapi::api::authentication::v1::TokenRequest = serde_json::from_value(json!({"metadata": {},
        "spec": {"audiences": ["muster"], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "agent"}}})).unwrap();
    let token = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token
        .unwrap();
    let review = |token: String, audience: &'static str| {
        let reviews: Api<k8s_openapi::api::authentication::v1::TokenReview> =
            Api::all(client.clone());
        async move {
            let body = serde_json::from_value(
                json!({"metadata": {}, "spec": {"token": token, "audiences": [audience]}}),
            )
            .unwrap();
            reviews
                .create(&PostParams::default(), &body)
                .await
                .unwrap()
                .status
                .unwrap()
        }
    };
    let good = review(token.clone(), "muster").await;
    assert_eq!(good.authenticated, Some(true));
    assert_eq!(
        good.user.unwrap().extra.unwrap()["authentication.kubernetes.io/node-name"],
        ["n1"]
    );
    assert_eq!(
        review(token.clone(), "other").await.authenticated,
        Some(false)
    );
    assert_eq!(
        review("forged".into(), "muster").await.authenticated,
        Some(false)
    );
    let minted = review(server.mint_node_token("n1"), "muster").await;
    assert_eq!(
        minted.user.unwrap().extra.unwrap()["authentication.kubernetes.io/node-name"],
        ["n1"]
    );
    tokio::time::advance(Duration::from_secs(601)).await;
    assert_eq!(review(token, "muster").await.authenticated, Some(false));
}

#[tokio::test(start_paused = true)]
async fn leases_are_created_by_update_and_fenced_by_version() {
    let server = server();
    let api: Api<Lease> = Api::namespaced(server.client("test"), "kube-system");
    let lease = |holder: &str| -> Lease {
        serde_json::from_value(
            json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": holder}}),
        )
        .unwrap()
    };
    let first = api
        .create(&PostParams::default(), &lease("a"))
        .await
        .unwrap();
    let mut mine = first.clone();
    mine.spec.as_mut().unwrap().holder_identity = Some("b".into());
    api.replace("l", &PostParams::default(), &mine)
        .await
        .unwrap();
    assert_eq!(
        status_of(
            api.replace("l", &PostParams::default(), &mine)
                .await
                .unwrap_err()
        )
        .code,
        409
    );
    assert_eq!(
        status_of(
            api.replace("l", &PostParams::default(), &lease("c"))
                .await
                .unwrap_err()
        )
        .code,
        422
    );
}

#[tokio::test(start_paused = true)]
async fn the_log_and_the_counts_name_every_write_and_its_client() {
    let server = server();
    let (before, digest) = server.digest();
    pods(&server)
        .create(&PostParams::default(), &pod("a", json!({})))
        .await
        .unwrap();
    let writes = server.writes_since(before);
    assert_eq!(writes.len(), 1);
    let write = &writes[0];
    assert_eq!(
        (
            write.client.as_str(),
            write.verb.as_str(),
            write.resource.as_str(),
            write.name.as_str()
        ),
        ("test", "create", "pods", "a")
    );
    assert_ne!(server.digest().1, digest);
    let key = ("test".to_owned(), "create".to_owned(), "pods".to_owned());
    assert_eq!(server.request_counts().get(&key), Some(&1));
}
