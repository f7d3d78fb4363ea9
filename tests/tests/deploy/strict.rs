//! Objects against the types of Kubernetes 1.37: a field that the type does not know is a failure.
//!
//! An object is read into its type and written again. What was lost on the way is unknown to the
//! type, or misspelt, or in the wrong place.

use k8s_openapi::api::admissionregistration::v1 as admission;
use k8s_openapi::api::{apps, core, networking, policy, rbac};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::files::{deploy, documents, id, read, text, with_ending};

/// Files that hold no objects of a cluster: inputs of tools, and kinds of programs.
const NOT_OBJECTS: [&str; 3] = ["Kustomization", "KubeSchedulerConfiguration", "Chart"];
/// Kinds of other projects, whose schemas are not at hand. Listed, so that a new one is noticed.
const FOREIGN: [&str; 4] = [
    "ClusterIssuer cert-manager.io/v1",
    "Certificate cert-manager.io/v1",
    "Bundle trust.cert-manager.io/v1alpha1",
    "PodGroup scheduling.x-k8s.io/v1alpha1",
];

/// What is wrong with an object; empty when nothing is.
pub fn problems(object: &Value) -> Vec<String> {
    match (text(object, "/apiVersion"), text(object, "/kind")) {
        ("v1", "ConfigMap") => check::<core::v1::ConfigMap>(object),
        ("v1", "Namespace") => check::<core::v1::Namespace>(object),
        ("v1", "Pod") => check::<core::v1::Pod>(object),
        ("v1", "Secret") => check::<core::v1::Secret>(object),
        ("v1", "Service") => check::<core::v1::Service>(object),
        ("v1", "ServiceAccount") => check::<core::v1::ServiceAccount>(object),
        ("apps/v1", "DaemonSet") => check::<apps::v1::DaemonSet>(object),
        ("apps/v1", "Deployment") => check::<apps::v1::Deployment>(object),
        ("policy/v1", "PodDisruptionBudget") => check::<policy::v1::PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => check::<networking::v1::NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check::<rbac::v1::ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            check::<rbac::v1::ClusterRoleBinding>(object)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => check::<rbac::v1::Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => check::<rbac::v1::RoleBinding>(object),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            check::<apiextensions::v1::CustomResourceDefinition>(object)
        }
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy") => {
            check::<admission::MutatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicyBinding") => {
            check::<admission::MutatingAdmissionPolicyBinding>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            check::<admission::ValidatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            check::<admission::ValidatingAdmissionPolicyBinding>(object)
        }
        ("kubeflow.org/v1", "PyTorchJob") => pytorchjob(object),
        (group, kind) => vec![format!("{kind} of {group} has no strict type here")],
    }
}

/// The job's own fields by name, its pod templates by their type.
fn pytorchjob(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let known = |value: &Value, at: &str, names: &[&str], found: &mut Vec<String>| {
        for key in value.as_object().into_iter().flat_map(Map::keys) {
            if !names.contains(&key.as_str()) {
                found.push(format!("{at}.{key} is unknown"));
            }
        }
    };
    known(
        object,
        "",
        &["apiVersion", "kind", "metadata", "spec"],
        &mut found,
    );
    let spec = &object["spec"];
    let fields = [
        "pytorchReplicaSpecs",
        "runPolicy",
        "elasticPolicy",
        "nprocPerNode",
    ];
    known(spec, "spec", &fields, &mut found);
    let roles = &spec["pytorchReplicaSpecs"];
    known(
        roles,
        "spec.pytorchReplicaSpecs",
        &["Master", "Worker"],
        &mut found,
    );
    for (role, replicas) in roles.as_object().into_iter().flatten() {
        let at = format!("spec.pytorchReplicaSpecs.{role}");
        known(
            replicas,
            &at,
            &["replicas", "restartPolicy", "template"],
            &mut found,
        );
        let template = check::<core::v1::PodTemplateSpec>(&replicas["template"]);
        found.extend(
            template
                .into_iter()
                .map(|what| format!("{at}.template{what}")),
        );
        let containers = replicas.pointer("/template/spec/containers");
        let named = containers.and_then(Value::as_array).into_iter().flatten();
        if !named
            .clone()
            .any(|container| container["name"] == "pytorch")
        {
            found.push(format!("{at} has no container named pytorch"));
        }
    }
    found
}

fn check<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    let mut object = object.clone();
    quantities_as_text(&mut object);
    let typed: T = match serde_json::from_value(object.clone()) {
        Ok(typed) => typed,
        Err(error) => return vec![format!(": {error}")],
    };
    let mut lost = Vec::new();
    compare(
        &object,
        &serde_json::to_value(&typed).unwrap(),
        "",
        &mut lost,
    );
    lost
}

/// The API server takes a number for a quantity; the Rust type takes texts alone.
fn quantities_as_text(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if ["limits", "requests"].contains(&key.as_str()) {
                    for quantity in inner.as_object_mut().into_iter().flat_map(Map::values_mut) {
                        if quantity.is_number() {
                            *quantity = json!(quantity.to_string());
                        }
                    }
                }
                quantities_as_text(inner);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(quantities_as_text),
        _ => {}
    }
}

fn compare(wanted: &Value, got: &Value, at: &str, lost: &mut Vec<String>) {
    match (wanted, got) {
        (Value::Object(wanted), Value::Object(got)) => {
            for (key, value) in wanted {
                match got.get(key) {
                    Some(other) => compare(value, other, &format!("{at}.{key}"), lost),
                    None if value.is_null() => {}
                    None => lost.push(format!("{at}.{key} is unknown")),
                }
            }
        }
        (Value::Array(wanted), Value::Array(got)) if wanted.len() == got.len() => {
            for (index, (value, other)) in wanted.iter().zip(got).enumerate() {
                compare(value, other, &format!("{at}[{index}]"), lost);
            }
        }
        // A limit of a schema may be written `0` and is a number with a fraction for the type.
        (Value::Number(wanted), Value::Number(got)) if wanted.as_f64() == got.as_f64() => {}
        _ if wanted == got => {}
        _ => lost.push(format!("{at} is {wanted}, read as {got}")),
    }
}

/// Asserts that each object is known to its type in every field.
pub fn assert_strict(objects: &[Value], from: &str) {
    assert!(!objects.is_empty(), "{from} holds no object");
    for object in objects {
        let found = problems(object);
        assert!(found.is_empty(), "{from}: {}: {found:?}", id(object));
    }
}

#[test]
fn every_yaml_file_holds_objects_that_their_types_know() {
    let mut checked = 0;
    for path in with_ending("yaml") {
        let chart = "helm/muster/";
        // Neither is an object of Kubernetes; printed.rs and parity.rs look at them.
        let settings = path == "config.yaml" || path == format!("{chart}values.yaml");
        if settings || path.starts_with(&format!("{chart}templates/")) {
            continue;
        }
        for object in documents(&read(&path)) {
            let (api, kind) = (text(&object, "/apiVersion"), text(&object, "/kind"));
            if NOT_OBJECTS.contains(&kind) || path == format!("{chart}Chart.yaml") {
                continue;
            }
            if FOREIGN.contains(&format!("{kind} {api}").as_str()) {
                assert!(
                    object["spec"].is_object(),
                    "{path}: {} has no spec",
                    id(&object)
                );
            } else {
                assert_strict(&[object], &path);
            }
            checked += 1;
        }
    }
    assert!(
        checked > 40,
        "only {checked} objects below {}",
        deploy().display()
    );
}

#[test]
fn a_misspelt_field_and_a_wrong_type_are_found() {
    let pod = |container: Value| json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container]}});
    let good = json!({"name": "a", "resources": {"limits": {"nvidia.com/gpu": 1}}});
    assert_eq!(problems(&pod(good)), Vec::<String>::new());
    let misspelt = json!({"name": "a", "resource": {}});
    assert_eq!(
        problems(&pod(misspelt)),
        [".spec.containers[0].resource is unknown"]
    );
    let wrong = json!({"name": "a", "args": "all"});
    assert_eq!(problems(&pod(wrong)).len(), 1);
    assert_eq!(
        problems(&json!({"apiVersion": "v9", "kind": "Pod"})).len(),
        1
    );
}
