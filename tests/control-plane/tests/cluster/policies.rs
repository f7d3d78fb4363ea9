//! A MutatingAdmissionPolicy gates pods without any webhook, with the token of a service account that may do no more than it should.

#![allow(clippy::unwrap_used)] // helper functions of tests panic as tests do

use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ObjectMeta, PostParams};
use muster_control_plane::{Cluster, NodeTemplate, TokenOptions};
use serde_json::json;

const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: gate}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}
  matchConditions:
  - {name: scheduler, expression: "object.spec.schedulerName == 'muster'"}
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration:
      expression: 'Object{spec: Object.spec{schedulingGates: [Object.spec.schedulingGates{name: "muster.dev/gang"}]}}'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: gate}
spec: {policyName: gate}
"#;

const ACCOUNT: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: team}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: team}]
"#;

fn pod(name: &str, scheduler: &str, node: Option<&str>) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "schedulerName": scheduler, "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
    }))
    .unwrap()
}

fn gates(pod: &Pod) -> Vec<String> {
    let gates = pod.spec.as_ref().unwrap().scheduling_gates.iter().flatten();
    gates.map(|gate| gate.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_gates_pods_of_one_scheduler_and_a_service_account_stays_within_its_role() {
    let cluster = Cluster::builder()
        .nodes(NodeTemplate::cpu_pool("cpu", 1))
        .start()
        .await
        .unwrap();
    cluster.create_namespace("team").await.unwrap();
    cluster.apply_yaml(POLICY).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "team");
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    // A policy acts a moment after it was created.
    let since = Instant::now();
    while gates(
        &pods
            .create(&dry_run, &pod("probe", "muster", None))
            .await
            .unwrap(),
    )
    .is_empty()
    {
        assert!(
            since.elapsed() < Duration::from_secs(30),
            "the policy never acted"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let gated = pods
        .create(&PostParams::default(), &pod("gated", "muster", None))
        .await
        .unwrap();
    assert_eq!(gates(&gated), ["muster.dev/gang"]);
    let free = pods
        .create(
            &PostParams::default(),
            &pod("free", "default-scheduler", None),
        )
        .await
        .unwrap();
    assert_eq!(gates(&free), Vec::<String>::new());
    let shown = cluster
        .kubectl(&["-n", "team", "get", "pods", "--no-headers"])
        .await
        .unwrap();
    assert!(shown.stdout.contains("SchedulingGated"), "{}", shown.stdout);

    cluster.apply_yaml(ACCOUNT).await.unwrap();
    let kubeconfig = cluster
        .service_account_kubeconfig("team", "reader")
        .await
        .unwrap();
    let kubeconfig = kubeconfig.display().to_string();
    let can = |verb: &'static str, what: &'static str| {
        let (cluster, kubeconfig) = (&cluster, &kubeconfig);
        async move {
            let args = ["--kubeconfig", kubeconfig, "auth", "can-i", verb, what];
            cluster
                .kubectl(&args)
                .await
                .unwrap()
                .stdout
                .trim()
                .to_owned()
        }
    };
    assert_eq!(can("list", "nodes").await, "yes");
    assert_eq!(can("delete", "nodes").await, "no");

    // A token bound to a pod proves the pod's node.
    pods.create(
        &PostParams::default(),
        &pod("agent", "default-scheduler", Some("cpu-0")),
    )
    .await
    .unwrap();
    let options = TokenOptions {
        audiences: vec!["muster".into()],
        pod: Some("agent".into()),
        ..TokenOptions::default()
    };
    let token = cluster
        .service_account_token("team", "default", &options)
        .await
        .unwrap();
    let review = TokenReview {
        metadata: ObjectMeta::default(),
        spec: TokenReviewSpec {
            token,
            audiences: Some(vec!["muster".into()]),
        },
        status: None,
    };
    let reviews: Api<TokenReview> = Api::all(cluster.admin());
    let status = reviews
        .create(&PostParams::default(), &review)
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!(status.authenticated, Some(true), "{status:?}");
    let extra = status.user.unwrap().extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["cpu-0"]);
}
