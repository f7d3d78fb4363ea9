//! A real API server accepts every object, with unknown fields refused.

use std::collections::BTreeSet;

use muster_control_plane::{Cluster, Identity};
use serde_json::Value;

use crate::account::check_account;
use crate::files::{documents, id, read, text, with_ending};
use crate::programs::{KUBE_VERSION, kustomize, template};

fn as_list(objects: &[Value]) -> String {
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// Applies objects in a dry run: the API server validates and admits them and keeps nothing. Gives
/// the lines of its warnings.
async fn dry_run(cluster: &Cluster, objects: &[Value], from: &str) -> Vec<String> {
    let args = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--force-conflicts",
        "--output=name",
        "-f",
        "-",
    ];
    let output = cluster
        .kubectl_as(&Identity::Admin, &args, &as_list(objects))
        .await
        .unwrap();
    assert!(output.success, "{from}: {}", output.stderr);
    assert_eq!(
        output.stdout.lines().count(),
        objects.len(),
        "{from}: {}",
        output.stdout
    );
    output.stderr.lines().map(str::to_owned).collect()
}

/// The namespace warns of every pod template that is not `restricted`: the agent's host folder and
/// its root user are the one exception, and the scheduler is none.
fn check_warnings(warnings: &[String], from: &str) {
    let [warning] = warnings else {
        panic!("{from}: {warnings:?}");
    };
    let parts = [
        "would violate PodSecurity \"restricted:latest\": restricted volume types (volume \"pod-resources\"",
        "runAsNonRoot != true (pod or container \"muster-agent\"",
    ];
    for part in parts {
        assert!(warning.contains(part), "{from}: {warning}");
    }
    for word in [
        "privileged",
        "capabilities",
        "seccomp",
        "allowPrivilegeEscalation",
        "kube-scheduler",
    ] {
        assert!(!warning.contains(word), "{from}: {warning}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_accepts_every_installation_and_the_examples() {
    let cluster = Cluster::builder().with_kwok(false).start().await.unwrap();
    let base = kustomize("kustomize/base");
    let lasting = |object: &&Value| {
        ["Namespace", "CustomResourceDefinition"].contains(&object["kind"].as_str().unwrap())
    };
    let first: Vec<Value> = base.iter().filter(lasting).cloned().collect();
    assert_eq!(first.len(), 2, "the namespace and Gang");
    cluster.apply_yaml(&as_list(&first)).await.unwrap();
    for crd in [
        cluster.binaries().pytorchjobs_crd(),
        cluster.binaries().pod_groups_crd(),
    ] {
        cluster.apply_file(&crd).await.unwrap();
    }
    let crds = [
        "gangs.muster.dev",
        "pytorchjobs.kubeflow.org",
        "podgroups.scheduling.x-k8s.io",
    ];
    cluster.wait_for_crds(&crds).await.unwrap();

    check_warnings(
        &dry_run(&cluster, &base, "kustomize base").await,
        "kustomize base",
    );
    let chart = template("muster-system", KUBE_VERSION, "");
    check_warnings(&dry_run(&cluster, &chart, "chart").await, "chart");
    for path in with_ending("yaml") {
        if path.starts_with("examples/") {
            let warnings = dry_run(&cluster, &documents(&read(&path)), &path).await;
            assert_eq!(warnings, Vec::<String>::new(), "{path}");
        }
    }

    check_overlays(&cluster).await;
    check_gang_rules(&cluster).await;
    check_rights(&cluster, &base).await;
    check_account(&cluster).await;

    // The check itself finds what it is for.
    let mut wrong = base
        .iter()
        .find(|object| id(object).starts_with("DaemonSet"))
        .unwrap()
        .clone();
    wrong["spec"]["template"]["spec"]["runtimeClass"] = "nvidia".into();
    let args = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ];
    let output = cluster
        .kubectl_as(&Identity::Admin, &args, &wrong.to_string())
        .await
        .unwrap();
    assert!(
        !output.success && output.stderr.contains("runtimeClass"),
        "{}",
        output.stderr
    );
}

/// Kinds of cert-manager and trust-manager, whose CRDs are not at hand: group, version, kind, plural
/// and scope.
const OF_CERT_MANAGER: [[&str; 5]; 3] = [
    [
        "cert-manager.io",
        "v1",
        "ClusterIssuer",
        "clusterissuers",
        "Cluster",
    ],
    [
        "cert-manager.io",
        "v1",
        "Certificate",
        "certificates",
        "Namespaced",
    ],
    [
        "trust.cert-manager.io",
        "v1alpha1",
        "Bundle",
        "bundles",
        "Cluster",
    ],
];

/// A CustomResourceDefinition that takes any spec.
fn open_crd([group, version, kind, plural, scope]: [&str; 5]) -> Value {
    serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": version, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object",
                    "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
            }],
        },
    })
}

/// Each overlay is accepted as a whole. Of the kinds of cert-manager the API server checks group,
/// version, kind, name, scope and that there is nothing but a spec; what their own CRDs say of the
/// spec is not checked.
async fn check_overlays(cluster: &Cluster) {
    let names: Vec<String> = with_ending("yaml")
        .iter()
        .filter_map(|path| path.strip_prefix("kustomize/overlays/"))
        .filter_map(|path| path.strip_suffix("/kustomization.yaml"))
        .map(str::to_owned)
        .collect();
    assert_eq!(names, ["cert-manager", "without-admission-policies"]);
    let foreign: Vec<Value> = OF_CERT_MANAGER.map(open_crd).to_vec();
    cluster.apply_yaml(&as_list(&foreign)).await.unwrap();
    let served: Vec<&str> = foreign
        .iter()
        .map(|crd| crd["metadata"]["name"].as_str().unwrap())
        .collect();
    cluster.wait_for_crds(&served).await.unwrap();
    let namespace = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"cert-manager"}}"#;
    cluster.apply_yaml(namespace).await.unwrap();

    let mut seen = BTreeSet::new();
    for name in names {
        let from = format!("kustomize/overlays/{name}");
        let objects = kustomize(&from);
        check_warnings(&dry_run(cluster, &objects, &from).await, &from);
        for object in &objects {
            let api = text(object, "/apiVersion");
            if api.contains("cert-manager") {
                seen.insert(format!("{api} {}", text(object, "/kind")));
            }
        }
    }
    let known =
        OF_CERT_MANAGER.map(|[group, version, kind, ..]| format!("{group}/{version} {kind}"));
    assert_eq!(seen, known.into(), "all that only a stand-in has checked");
}

/// The API server itself keeps the Gang's rules, whoever writes: the workload is the same for ever, a
/// plan has an epoch, and the epoch never goes back. A plan all of whose members have lost their places
/// lists none. Each refusal names the rule.
async fn check_gang_rules(cluster: &Cluster) {
    let gang = serde_json::json!({
        "apiVersion": "muster.dev/v1alpha1", "kind": "Gang", "metadata": {"name": "ruled", "namespace": "default"},
        "spec": {"workload": {"kind": "Label", "name": "ruled", "uid": "label/ruled"}},
    });
    cluster.apply_yaml(&gang.to_string()).await.unwrap();
    let member = r#"{"role":"Worker","index":0,"node":"n0","bound":false}"#;
    let plan = |epoch: &str| {
        format!(r#"{{"status":{{"planId":"e4-1","epoch":{epoch},"members":[{member}]}}}}"#)
    };
    let status = "--subresource=status";
    let back = "status.epoch never goes back";
    let half = "a plan has an epoch";
    let fixed = "spec.workload is immutable";
    let cases: [(&str, String, Option<&str>); 9] = [
        (status, r#"{"status":{"planId":"e4-1"}}"#.into(), Some(half)),
        (
            status,
            r#"{"status":{"planId":"e4-1","epoch":4}}"#.into(),
            None,
        ),
        (status, plan("null"), Some(half)),
        (status, plan("4"), None),
        (status, plan("3"), Some(back)),
        // Without a plan the epoch stays, or a leader that was fenced off could plan again.
        (
            status,
            r#"{"status":{"planId":null,"members":null,"epoch":null}}"#.into(),
            Some(back),
        ),
        (
            status,
            r#"{"status":{"planId":null,"members":null}}"#.into(),
            None,
        ),
        (status, plan("5"), None),
        (
            "",
            r#"{"spec":{"workload":{"uid":"label/other"}}}"#.into(),
            Some(fixed),
        ),
    ];
    for (subresource, patch, refusal) in cases {
        let mut args = vec!["patch", "gang", "ruled", "--type=merge", "-p", &patch];
        args.extend(Some(subresource).filter(|text| !text.is_empty()));
        let output = cluster.kubectl(&args).await.unwrap();
        match refusal {
            None => assert!(output.success, "{patch}: {}", output.stderr),
            Some(rule) => assert!(
                !output.success && output.stderr.contains(rule),
                "{patch} should be refused ({rule}): {}{}",
                output.stdout,
                output.stderr
            ),
        }
    }
}

/// Account, what `kubectl auth can-i` is asked, and the answer.
const RIGHTS: [(&str, &str, bool); 25] = [
    (
        "muster-scheduler",
        "create pods --subresource=binding",
        true,
    ),
    ("muster-scheduler", "patch pods --subresource=status", true),
    ("muster-scheduler", "list persistentvolumes", true),
    (
        "muster-scheduler",
        "watch storageclasses.storage.k8s.io",
        true,
    ),
    (
        "muster-scheduler",
        "create tokenreviews.authentication.k8s.io",
        true,
    ),
    ("muster-scheduler", "patch pytorchjobs.kubeflow.org", true),
    (
        "muster-scheduler",
        "patch pytorchjobs.kubeflow.org --subresource=status",
        true,
    ),
    (
        "muster-scheduler",
        "update pytorchjobs.kubeflow.org --subresource=status",
        false,
    ),
    (
        "muster-scheduler",
        "update gangs.muster.dev --subresource=status",
        true,
    ),
    (
        "muster-scheduler",
        "get configmap/extension-apiserver-authentication -n kube-system",
        true,
    ),
    (
        "muster-scheduler",
        "update leases.coordination.k8s.io/muster-scheduler -n muster-system",
        true,
    ),
    (
        "muster-scheduler",
        "update leases.coordination.k8s.io/muster-kube-scheduler-a -n muster-system",
        true,
    ),
    (
        "muster-scheduler",
        "update leases.coordination.k8s.io/other -n kube-system",
        false,
    ),
    (
        "muster-scheduler",
        "delete leases.coordination.k8s.io -n muster-system",
        false,
    ),
    ("muster-scheduler", "patch gangs.muster.dev", true),
    ("muster-scheduler", "update gangs.muster.dev", false),
    (
        "muster-scheduler",
        "patch gangs.muster.dev --subresource=status",
        false,
    ),
    ("muster-kube-scheduler", "list pods", false),
    ("muster-scheduler", "list secrets", false),
    ("muster-scheduler", "create pods", false),
    ("muster-scheduler", "delete nodes", false),
    ("muster-scheduler", "create pods --subresource=exec", false),
    ("muster-agent", "list pods", false),
    ("muster-agent", "get nodes", false),
    ("muster-agent", "list secrets -n muster-system", false),
];

/// The pod's account may do what Muster and kube-scheduler do, and the agent's account nothing.
async fn check_rights(cluster: &Cluster, base: &[Value]) {
    let rights: Vec<Value> = base
        .iter()
        .filter(|object| {
            let kind = object["kind"].as_str().unwrap();
            kind == "ServiceAccount" || kind.contains("Role")
        })
        .cloned()
        .collect();
    cluster.apply_yaml(&as_list(&rights)).await.unwrap();
    for (account, action, allowed) in RIGHTS {
        let user = format!("--as=system:serviceaccount:muster-system:{account}");
        let mut args = vec!["auth", "can-i", &user];
        args.extend(action.split(' '));
        let output = cluster.kubectl(&args).await.unwrap();
        let wanted = if allowed { "yes" } else { "no" };
        assert_eq!(
            output.stdout.trim(),
            wanted,
            "{account}: {action}: {}",
            output.stderr
        );
    }
}
