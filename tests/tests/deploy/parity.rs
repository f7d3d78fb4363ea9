//! The chart and the kustomize base are two ways to the same objects.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::files::{documents, id, text};
use crate::programs::{KUBE_VERSION, kustomize, lint, template, try_template};
use crate::strict::assert_strict;

const NAMESPACE: &str = "muster-system";

/// Values that differ from the default in every place that a template looks at.
const OTHER_VALUES: &str = r#"
crds: {install: false}
admissionPolicy: {install: never}
tls: {serverSecret: a-tls, kubeSchedulerSecret: b-tls, caConfigMap: c-ca}
config:
  inventory: {nodesWithoutAgent: useAllocatable, reportAgeMax: 1m}
  lease: {duration: 30s}
scheduler:
  image: {repository: example.org/muster-scheduler, tag: "9.9", pullPolicy: Always}
  nodeSelector: {node-role.kubernetes.io/control-plane: ""}
  tolerations: []
kubeScheduler:
  image: {repository: example.org/kube-scheduler, tag: v1.36.1}
  resources: {requests: {cpu: 2}}
agent:
  image: {repository: example.org/muster-agent, tag: "9.9"}
  runtimeClassName: ""
  nodeSelector: {pool: gpu}
  tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
  podResourcesDir: /var/data/kubelet/pod-resources
networkPolicy: {enabled: false}
imagePullSecrets: [{name: pull}]
"#;

fn by_id(objects: &[Value]) -> BTreeMap<String, &Value> {
    let map: BTreeMap<String, &Value> = objects.iter().map(|o| (id(o), o)).collect();
    assert_eq!(map.len(), objects.len(), "two objects have one name");
    map
}

/// An object without what tells chart and base apart by intention: Helm's labels, the annotations
/// that restart pods or keep CRDs, the default of imagePullPolicy, and the layout of YAML in a
/// ConfigMap.
fn plain(object: &Value) -> Value {
    fn strip(value: &mut Value) {
        if let Value::Object(map) = value {
            if let Some(labels) = map.get_mut("labels").and_then(Value::as_object_mut) {
                labels.retain(|key, _| {
                    !key.starts_with("helm.sh/")
                        && !["version", "managed-by", "instance"]
                            .contains(&key.trim_start_matches("app.kubernetes.io/"))
                });
            }
            if let Some(notes) = map.get_mut("annotations").and_then(Value::as_object_mut) {
                notes
                    .retain(|key, _| !key.starts_with("checksum/") && !key.starts_with("helm.sh/"));
                if notes.is_empty() {
                    map.remove("annotations");
                }
            }
            map.remove("imagePullPolicy");
            map.values_mut().for_each(strip);
        } else if let Value::Array(list) = value {
            list.iter_mut().for_each(strip);
        }
    }
    let mut object = object.clone();
    strip(&mut object);
    if object["kind"] == "ConfigMap" {
        for (_, file) in object["data"].as_object_mut().into_iter().flatten() {
            *file = documents(file.as_str().unwrap()).remove(0);
        }
    }
    object
}

fn find<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    let found = objects.iter().find(|object| id(object) == wanted);
    found.unwrap_or_else(|| panic!("{wanted} is missing"))
}

#[test]
fn chart_and_kustomize_base_give_the_same_objects() {
    let chart = template(NAMESPACE, KUBE_VERSION, "namespace: {create: true}");
    let base = kustomize("kustomize/base");
    assert_strict(&chart, "chart");
    assert_strict(&base, "kustomize base");
    let (chart, base) = (by_id(&chart), by_id(&base));
    let ids = |map: &BTreeMap<String, &Value>| map.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(ids(&chart), ids(&base));
    for (id, object) in &chart {
        assert_eq!(plain(object), plain(base[id]), "{id} differs");
    }
}

#[test]
fn by_default_the_namespace_is_made_beforehand() {
    let default = template(NAMESPACE, KUBE_VERSION, "");
    assert_strict(&default, "chart");
    assert!(default.iter().all(|object| object["kind"] != "Namespace"));
    assert_eq!(default.len() + 1, kustomize("kustomize/base").len());
}

#[test]
fn other_values_reach_the_objects() {
    let objects = template("gpu", "v1.36.3-gke.12", OTHER_VALUES);
    assert_strict(&objects, "chart with other values");
    let kinds: BTreeSet<&str> = objects.iter().map(|object| text(object, "/kind")).collect();
    for gone in [
        "CustomResourceDefinition",
        "MutatingAdmissionPolicy",
        "NetworkPolicy",
        "Namespace",
    ] {
        assert!(!kinds.contains(gone), "{gone} is still there");
    }
    let all = serde_json::to_string(&objects).unwrap();
    assert!(
        !all.contains("muster-system"),
        "the default namespace is still named"
    );

    let scheduler = find(&objects, "Deployment gpu/muster-scheduler");
    let spec = &scheduler["spec"]["template"]["spec"];
    assert_eq!(
        spec["containers"][0]["image"],
        "example.org/muster-scheduler:9.9"
    );
    assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(
        spec["containers"][1]["image"],
        "example.org/kube-scheduler:v1.36.1"
    );
    assert_eq!(spec["imagePullSecrets"][0]["name"], "pull");
    assert!(spec.get("tolerations").is_none());
    let secrets: Vec<&str> = [2, 3]
        .map(|index| text(&spec["volumes"][index], "/secret/secretName"))
        .to_vec();
    assert_eq!(secrets, ["a-tls", "b-tls"]);

    let agent = &find(&objects, "DaemonSet gpu/muster-agent")["spec"]["template"]["spec"];
    assert!(agent.get("runtimeClassName").is_none());
    assert_eq!(agent["nodeSelector"]["pool"], "gpu");
    assert_eq!(agent["volumes"][1]["configMap"]["name"], "c-ca");
    assert_eq!(
        agent["volumes"][2]["hostPath"]["path"],
        "/var/data/kubelet/pod-resources"
    );
    let args = agent["containers"][0]["args"].as_array().unwrap();
    assert!(
        args.contains(&"--scheduler=https://muster-agents.gpu.svc:8444".into()),
        "{args:?}"
    );

    let config = text(
        find(&objects, "ConfigMap gpu/muster-config"),
        "/data/muster.yaml",
    );
    let config = &documents(config)[0];
    assert_eq!(config["inventory"]["nodesWithoutAgent"], "useAllocatable");
    assert_eq!(config["lease"]["namespace"], "gpu");
    assert_eq!(config["lease"]["duration"], "30s");
    assert_eq!(
        config["agents"]["serviceAccount"],
        "system:serviceaccount:gpu:muster-agent"
    );
}

#[test]
fn kube_scheduler_has_the_version_of_the_cluster_and_old_clusters_get_no_policy() {
    for (version, image, policies) in [
        ("v1.35.4-gke.7", "registry.k8s.io/kube-scheduler:v1.35.4", 0),
        (
            "v1.36.0-eks-1a2b",
            "registry.k8s.io/kube-scheduler:v1.36.0",
            3,
        ),
    ] {
        let objects = template(NAMESPACE, version, "");
        let scheduler = find(&objects, "Deployment muster-system/muster-scheduler");
        let containers = &scheduler["spec"]["template"]["spec"]["containers"];
        assert_eq!(containers[1]["image"], image);
        let found = objects
            .iter()
            .filter(|o| o["kind"] == "MutatingAdmissionPolicy")
            .count();
        assert_eq!(found, policies, "policies on {version}");
    }
    let forced = template(NAMESPACE, "v1.35.4", "admissionPolicy: {install: always}");
    assert!(
        forced
            .iter()
            .any(|object| object["kind"] == "MutatingAdmissionPolicy")
    );
}

#[test]
fn helm_finds_nothing_to_complain_about_in_the_chart() {
    assert!(lint("").contains("0 chart(s) failed"));
    assert!(lint(OTHER_VALUES).contains("0 chart(s) failed"));
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (values, named) in [
        ("agents: {}", "agents"),
        ("agent: {privileged: true}", "privileged"),
        ("admissionPolicy: {install: sometimes}", "install"),
        ("config: {schedulerName: other}", "schedulerName"),
        ("config: {lease: {namespace: elsewhere}}", "lease"),
        (
            "config: {agents: {serviceAccount: 'system:serviceaccount:a:b'}}",
            "agents",
        ),
        ("agent: {podResourcesDir: relative}", "podResourcesDir"),
    ] {
        let error = try_template(NAMESPACE, KUBE_VERSION, values).expect_err(values);
        assert!(error.contains(named), "{values}: {error}");
    }
    let error = try_template(NAMESPACE, "v1.32.9", "").expect_err("too old");
    assert!(error.contains("1.33"), "{error}");
}

#[test]
fn overlays_change_what_they_say() {
    let base = kustomize("kustomize/base");
    let without = kustomize("kustomize/overlays/without-admission-policies");
    assert_strict(&without, "overlay without-admission-policies");
    let gone: BTreeSet<String> = base
        .iter()
        .filter(|object| !without.contains(object))
        .map(|object| text(object, "/kind").to_owned())
        .collect();
    let policies = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"];
    assert_eq!(gone, policies.map(str::to_owned).into());

    let managed = kustomize("kustomize/overlays/cert-manager");
    let added: Vec<String> = managed
        .iter()
        .filter(|o| !base.contains(o))
        .map(id)
        .collect();
    assert_eq!(managed.len(), base.len() + added.len());
    for wanted in [
        "Certificate muster-system/muster-tls",
        "Certificate muster-system/muster-kube-scheduler-tls",
        "Bundle muster-ca",
    ] {
        assert!(
            added.iter().any(|id| id == wanted),
            "{wanted} is missing: {added:?}"
        );
    }
}
