//! Patches of pods, and Bindings.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Binding, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use muster_core::action::PodTarget;
use muster_core::ids::{DeviceUuid, Epoch, NodeName, PlanId};
use muster_core::planted::{self, Bug};
use serde_json::{Map, Value, json};

use crate::lite::{LiteGate, LitePod, LiteRequirement, LiteSelector, LiteTerm};
use crate::names;

/// Takes our gate off a pod, and only ours; with `pin` confines it to that node in the same write.
///
/// A gated pod's required node affinity may only be added to: the pin is appended to each term, or
/// becomes the only term where there is none. UID and resourceVersion of `pod` are preconditions.
pub fn release_pod_patch(pod: &LitePod, pin: Option<&NodeName>) -> Value {
    let gates: Vec<&LiteGate> = pod
        .spec
        .scheduling_gates
        .iter()
        .filter(|gate| gate.name != names::GATE)
        .collect();
    let mut spec = Map::new();
    spec.insert("schedulingGates".to_owned(), json!(gates));
    if let Some(node) = pin {
        let terms = pinned_terms(pod, node.as_str());
        spec.insert(
            "affinity".to_owned(),
            json!({"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
            }}),
        );
    }
    json!({
        "metadata": {
            "uid": pod.metadata.uid,
            "resourceVersion": pod.metadata.resource_version,
        },
        "spec": spec,
    })
}

/// The same for a pod of which it is known that our gate is its only one and that it has no required
/// node affinity. UID and resourceVersion of `pod` are preconditions: they keep that true.
pub fn release_plain_pod_patch(pod: &PodTarget, pin: Option<&NodeName>) -> Value {
    let plain = LitePod {
        metadata: ObjectMeta {
            uid: Some(pod.uid.as_str().to_owned()),
            resource_version: Some(pod.resource_version.as_str().to_owned()),
            ..ObjectMeta::default()
        },
        ..LitePod::default()
    };
    release_pod_patch(&plain, pin)
}

fn pinned_terms(pod: &LitePod, node: &str) -> Vec<LiteTerm> {
    let pin = LiteRequirement {
        key: names::NODE_NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: vec![node.to_owned()],
    };
    let required: Option<&LiteSelector> = pod
        .spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required.as_ref());
    let mut terms = required.map_or_else(
        || vec![LiteTerm::default()],
        |selector| selector.node_selector_terms.clone(),
    );
    for term in &mut terms {
        if !term.match_fields.contains(&pin) {
            term.match_fields.push(pin.clone());
        }
    }
    terms
}

/// Touches a pod so that kube-scheduler tries it again. UID is a precondition. `mark` must differ from
/// what the pod has: a patch that changes nothing wakes nobody.
pub fn wake_pod_patch(uid: &str, mark: &str) -> Value {
    json!({"metadata": {
        "uid": uid,
        "annotations": {names::WOKEN_FOR: mark},
    }})
}

/// Writes our epoch on a pod that is not bound or on a Gang object, so that no Binding and no plan of an earlier
/// leader applies. UID and resourceVersion are preconditions. `mark` is new for each attempt, so that the object
/// changes whatever its maker has written on it.
pub fn stamp_patch(uid: &str, resource_version: &str, epoch: Epoch, mark: &str) -> Value {
    json!({"metadata": {
        "uid": uid,
        "resourceVersion": resource_version,
        "annotations": {names::EPOCH: epoch.to_string(), names::STAMP_MARK: mark},
    }})
}

/// The Binding of a pod to a node, with UID and resourceVersion as preconditions and our record as
/// annotations that the API server puts on the pod in the same write.
pub fn binding(
    target: &PodTarget,
    node: &NodeName,
    plan: &PlanId,
    epoch: Epoch,
    devices: &[DeviceUuid],
) -> Binding {
    let devices: Vec<&str> = devices.iter().map(DeviceUuid::as_str).collect();
    let annotations = BTreeMap::from([
        (names::PLAN.to_owned(), plan.as_str().to_owned()),
        (names::EPOCH.to_owned(), epoch.to_string()),
        (names::DEVICES.to_owned(), devices.join(",")),
    ]);
    let without_uid = planted::is(Bug::BindingWithoutUid);
    let without_version = without_uid || planted::is(Bug::BindingWithoutVersion);
    let version = target.resource_version.as_str().to_owned();
    Binding {
        metadata: ObjectMeta {
            name: Some(target.name.to_string()),
            namespace: Some(target.namespace.as_str().to_owned()),
            uid: (!without_uid).then(|| target.uid.as_str().to_owned()),
            resource_version: (!without_version).then_some(version),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.as_str().to_owned()),
            ..ObjectReference::default()
        },
    }
}
