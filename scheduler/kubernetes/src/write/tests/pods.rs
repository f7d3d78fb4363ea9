//! Patches of pods, and Bindings.

use muster_core::action::PodTarget;
use muster_core::ids::{Epoch, NodeName};
use serde_json::{Value, json};

use super::super::{binding, release_pod_patch, stamp_patch, wake_pod_patch};
use super::yaml;
use crate::lite::LitePod;

fn pod(spec: &str) -> LitePod {
    let value = yaml(&format!(
        "{{metadata: {{name: p, uid: u, resourceVersion: '3'}}, spec: {{{spec}}}}}"
    ));
    serde_json::from_value(value).expect("a pod")
}

fn pinned(patch: &Value) -> &Value {
    &patch["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
}

#[test]
fn t36_only_our_gate_is_taken_off() {
    for (gates, left) in [
        ("[{name: muster.dev/gang}]", json!([])),
        (
            "[{name: a}, {name: muster.dev/gang}, {name: b}]",
            json!([{"name": "a"}, {"name": "b"}]),
        ),
        ("null", json!([])),
    ] {
        let patch = release_pod_patch(&pod(&format!("schedulingGates: {gates}")), None);
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u", "resourceVersion": "3"}, "spec": {"schedulingGates": left}})
        );
    }
}

#[test]
fn pin_is_appended_to_each_term_and_the_terms_stay_as_many() {
    let pin = json!({"key": "metadata.name", "operator": "In", "values": ["n1"]});
    let has = json!({"key": "k", "operator": "Exists"});
    let zone = json!({"key": "z", "operator": "NotIn", "values": ["1", "2"]});
    for (terms, expected) in [
        ("", json!([{"matchFields": [pin]}])),
        (
            "[{matchExpressions: [{key: k, operator: Exists}, {key: z, operator: NotIn, values: ['1', '2']}]}, {}]",
            json!([{"matchExpressions": [has, zone], "matchFields": [pin]}, {"matchFields": [pin]}]),
        ),
        (
            "[{matchFields: [{key: metadata.name, operator: NotIn, values: [n2]}]}]",
            json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n2"]}, pin]}]),
        ),
        // Released twice: the pin is there once.
        (
            "[{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}]",
            json!([{"matchFields": [pin]}]),
        ),
    ] {
        let affinity = if terms.is_empty() {
            String::new()
        } else {
            format!(
                "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: {terms}}}}}}}"
            )
        };
        let patch = release_pod_patch(&pod(&affinity), Some(&NodeName::from("n1")));
        assert_eq!(pinned(&patch), &expected, "{terms}");
    }
}

#[test]
fn t23_every_write_names_the_pod_it_means() {
    assert_eq!(
        wake_pod_patch("u", "e1-2/1-7"),
        json!({"metadata": {"uid": "u", "annotations": {"muster.dev/woken-for": "e1-2/1-7"}}})
    );
    assert_eq!(
        stamp_patch("u", "3", Epoch(4), "m"),
        json!({"metadata": {"uid": "u", "resourceVersion": "3",
            "annotations": {"muster.dev/epoch": "4", "muster.dev/stamp-mark": "m"}}})
    );
    let target = PodTarget {
        namespace: "ns".into(),
        name: "p".into(),
        uid: "u".into(),
        resource_version: "3".into(),
    };
    let devices = ["GPU-1".into(), "GPU-2".into()];
    let bound = binding(&target, &"n1".into(), &"e1-2".into(), Epoch(4), &devices);
    assert_eq!(
        serde_json::to_value(bound).expect("JSON"),
        json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {
                "name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "3",
                "annotations": {"muster.dev/plan": "e1-2", "muster.dev/epoch": "4", "muster.dev/devices": "GPU-1,GPU-2"},
            },
            "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"},
        })
    );
}
