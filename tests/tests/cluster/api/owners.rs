//! Owners, finalizers, namespaces.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{jobs, pod, pods, pytorchjob, server, status_of};

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
