//! Custom resources.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::{jobs, object, pytorchjob, server, status_of};

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
