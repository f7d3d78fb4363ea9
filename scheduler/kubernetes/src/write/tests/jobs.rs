//! Changes of jobs. The API server is played by a merge; the user edits in between.

use std::collections::BTreeMap;

use muster_core::action::JobChange;
use muster_core::ids::{NodeName, RoleName};
use muster_core::workload::{Hold, MemberSource, Shown};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::job_patch;
use super::{merged, yaml};
use crate::lite::LitePyTorchJob;
use crate::names;
use crate::translate::{PodRules, pytorchjob};

const TERMS: &str = "/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

/// A job as the API server has it after admission: suspended and marked by us. `affinity` is that
/// of the workers' template; empty for none.
fn queued(affinity: &str) -> Value {
    let affinity = if affinity.is_empty() {
        String::new()
    } else {
        format!("affinity: {affinity}, ")
    };
    yaml(&format!(
        "
metadata: {{name: j, namespace: ns, uid: ju, resourceVersion: '1', annotations: {{muster.dev/hold: queued, mine: kept}}}}
spec:
  runPolicy: {{suspend: true, cleanPodPolicy: None}}
  pytorchReplicaSpecs:
    Master: {{replicas: 1, template: {{spec: {{schedulerName: muster, containers: [{{name: pytorch}}]}}}}}}
    Worker: {{replicas: 2, template: {{spec: {{{affinity}schedulerName: muster, containers: [{{name: pytorch}}]}}}}}}
"
    ))
}

fn required(terms: &str) -> String {
    format!(
        "{{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: {terms}}}}}}}"
    )
}

fn pool(name: &str) -> String {
    format!("matchExpressions: [{{key: pool, operator: In, values: [{name}]}}]")
}

fn pins(roles: &[(&str, &[&str])]) -> BTreeMap<RoleName, Vec<NodeName>> {
    roles
        .iter()
        .map(|(role, nodes)| {
            let nodes = nodes.iter().map(|node| NodeName::from(*node)).collect();
            (RoleName::from(*role), nodes)
        })
        .collect()
}

fn release(plan: &str, roles: &[(&str, &[&str])]) -> JobChange {
    JobChange::Release {
        plan: plan.into(),
        pins: pins(roles),
    }
}

fn repin(plan: &str, roles: &[(&str, &[&str])]) -> JobChange {
    JobChange::Repin {
        plan: plan.into(),
        pins: pins(roles),
    }
}

/// The job after the change. The preconditions are checked and are no change of the job.
fn after(job: &Value, change: &JobChange) -> Value {
    match job_patch(job, change, "ju", "1") {
        None => job.clone(),
        Some(patch) => {
            assert_eq!(patch["metadata"]["uid"], "ju");
            assert_eq!(patch["metadata"]["resourceVersion"], "1");
            merged(job, &patch)
        }
    }
}

/// The workers' terms in short: `a@n1` is pool a on node n1, `@n1` node n1, `-` no affinity.
fn terms(job: &Value, role: &str) -> String {
    let Some(terms) = job["spec"]["pytorchReplicaSpecs"][role].pointer(TERMS) else {
        return "-".to_owned();
    };
    let short = |term: &Value| {
        let pool = term["matchExpressions"][0]["values"][0]
            .as_str()
            .unwrap_or("");
        let fields = term["matchFields"].as_array().cloned().unwrap_or_default();
        fields.iter().fold(pool.to_owned(), |text, field| {
            format!("{text}@{}", field["values"][0].as_str().expect("a node"))
        })
    };
    let terms: Vec<String> = terms.as_array().expect("terms").iter().map(short).collect();
    format!("[{}]", terms.join(" "))
}

fn annotations(job: &Value) -> Vec<&str> {
    let keys = job["metadata"]["annotations"].as_object();
    keys.into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
        .collect()
}

#[test]
fn release_confines_each_role_and_keeps_the_users_terms() {
    let two = required(&format!("[{{{}}}, {{{}}}]", pool("a"), pool("b")));
    let own_pin = required("[{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}]");
    let with_empty = required(&format!("[{{}}, {{{}}}]", pool("a")));
    let cases: &[(&str, &[&str], &str)] = &[
        ("", &["n1"], "[@n1]"),
        ("", &["n1", "n2", "n1"], "[@n1 @n2]"),
        ("", &[], "-"),
        ("{}", &["n1"], "[@n1]"),
        ("{podAffinity: {}, nodeAffinity: {}}", &["n1"], "[@n1]"),
        (&two, &["n1", "n2", "n3"], "[a@n1 a@n2 a@n3 b@n1 b@n2 b@n3]"),
        (&own_pin, &["n1", "n2"], "[@n1@n1 @n1@n2]"),
        // A term without requirements matches nothing, and must not begin to.
        (&with_empty, &["n1", "n2"], "[ a@n1 a@n2]"),
    ];
    for (affinity, nodes, expected) in cases {
        let before = queued(affinity);
        let job = after(&before, &release("e1-1", &[("Worker", nodes)]));
        assert_eq!(terms(&job, "Worker"), *expected, "{affinity} {nodes:?}");
        assert_eq!(terms(&job, "Master"), "-");
        assert_eq!(
            job["spec"]["runPolicy"],
            json!({"suspend": false, "cleanPodPolicy": "None"})
        );
        assert_eq!(job["metadata"]["annotations"][names::HOLD], "released");
        assert_eq!(job["metadata"]["annotations"][names::PLAN], "e1-1");
        assert_eq!(job["metadata"]["annotations"]["mine"], "kept");
    }
}

#[test]
fn patch_touches_what_is_ours_and_nothing_else() {
    let affinity = required(&format!("[{{{}}}]", pool("a")));
    let before = queued(&affinity);
    let patch = job_patch(
        &before,
        &release("e1-1", &[("Worker", &["n1"]), ("Gone", &["n2"])]),
        "ju",
        "7",
    );
    let patch = patch.expect("a change");
    assert_eq!(
        patch,
        json!({
            "metadata": {
                "uid": "ju",
                "resourceVersion": "7",
                "annotations": {
                    names::HOLD: "released",
                    names::PLAN: "e1-1",
                    names::PINNED: r#"{"Worker":{"nodes":["n1"]}}"#,
                },
            },
            "spec": {
                "runPolicy": {"suspend": false},
                "pytorchReplicaSpecs": {"Worker": {"template": {"spec": {"affinity": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
                        "matchExpressions": [{"key": "pool", "operator": "In", "values": ["a"]}],
                        "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}],
                    }]},
                }}}}}},
            },
        })
    );
}

#[test]
fn nothing_to_change_is_no_patch() {
    let affinity = required(&format!("[{{{}}}]", pool("a")));
    for affinity in ["", &affinity] {
        let held = queued(affinity);
        assert_eq!(job_patch(&held, &JobChange::Hold, "ju", "1"), None);
        let change = release("e1-1", &[("Worker", &["n1", "n2"])]);
        let released = after(&held, &change);
        assert_eq!(job_patch(&released, &change, "ju", "1"), None);
        let same = repin("e1-1", &[("Worker", &["n1", "n2"])]);
        assert_eq!(job_patch(&released, &same, "ju", "1"), None);
        let plain = after(&released, &JobChange::Strip);
        assert_eq!(job_patch(&plain, &JobChange::Strip, "ju", "1"), None);
    }
}

#[test]
fn what_was_put_in_is_taken_out_again() {
    let two = required(&format!(
        "[{{{}}}, {{{}}}, {{}}, {{{}}}]",
        pool("a"),
        pool("b"),
        pool("a")
    ));
    let preferred = "{nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}";
    for affinity in [
        "",
        "{}",
        "{nodeAffinity: {}}",
        "{podAffinity: {}}",
        preferred,
        &two,
    ] {
        let held = queued(affinity);
        let released = after(
            &held,
            &release("e1-1", &[("Master", &["n9"]), ("Worker", &["n1", "n2"])]),
        );
        assert_ne!(released["spec"], held["spec"]);
        assert_eq!(after(&released, &JobChange::Hold), held, "hold {affinity}");
        let repinned = after(&released, &repin("e1-2", &[("Worker", &["n3"])]));
        assert_eq!(terms(&repinned, "Master"), "-");
        assert_eq!(repinned["metadata"]["annotations"][names::HOLD], "released");
        assert_eq!(
            after(&repinned, &JobChange::Hold),
            held,
            "hold after repin {affinity}"
        );
        let stripped = after(&released, &JobChange::Strip);
        assert_eq!(
            stripped["spec"]["pytorchReplicaSpecs"],
            held["spec"]["pytorchReplicaSpecs"]
        );
        assert_eq!(stripped["spec"]["runPolicy"]["suspend"], false);
        assert_eq!(annotations(&stripped), ["mine"]);
    }
}

#[test]
fn strip_follows_what_the_user_has_edited_meanwhile() {
    type Edit = fn(&mut Vec<Value>);
    let cases: &[(bool, Edit, &str)] = &[
        // The user had no terms.
        (
            false,
            |terms| {
                terms.push(json!({"matchExpressions": [{"key": "pool", "operator": "In", "values": ["z"]}]}))
            },
            "[z]",
        ),
        (
            false,
            |terms| {
                terms[0]["matchExpressions"] =
                    json!([{"key": "pool", "operator": "In", "values": ["z"]}]);
            },
            "[z]",
        ),
        (
            false,
            |terms| {
                terms.remove(0);
            },
            "-",
        ),
        (false, |terms| terms.clear(), "[]"),
        (
            false,
            |terms| {
                *terms = vec![
                    json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["other"]}]}),
                ];
            },
            "[@other]",
        ),
        // The user had pool a.
        (
            true,
            |terms| {
                terms.insert(0, json!({"matchExpressions": [{"key": "pool", "operator": "In", "values": ["z"]}]}))
            },
            "[z a]",
        ),
        (
            true,
            |terms| {
                terms.remove(0);
            },
            "[a]",
        ),
        (
            true,
            |terms| {
                terms[1]["matchExpressions"][0]["values"][0] = json!("z");
            },
            "[a z]",
        ),
        (true, |terms| terms.reverse(), "[a a]"),
        (
            true,
            |terms| {
                *terms = vec![
                    json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                ];
            },
            "[@n1]",
        ),
        (
            true,
            |terms| {
                *terms = vec![
                    json!({"matchExpressions": [{"key": "pool", "operator": "In", "values": ["z"]}]}),
                ];
            },
            "[z]",
        ),
    ];
    for (had_terms, edit, expected) in cases {
        let affinity = if *had_terms {
            required(&format!("[{{{}}}]", pool("a")))
        } else {
            String::new()
        };
        let mut job = after(
            &queued(&affinity),
            &release("e1-1", &[("Worker", &["n1", "n2"])]),
        );
        let list = job["spec"]["pytorchReplicaSpecs"]["Worker"]
            .pointer_mut(TERMS)
            .expect("terms");
        edit(list.as_array_mut().expect("a list"));
        for change in [JobChange::Strip, JobChange::Hold] {
            assert_eq!(terms(&after(&job, &change), "Worker"), *expected);
        }
    }
}

#[test]
fn strip_leaves_alone_what_it_does_not_understand() {
    for affinity in [
        "7",
        "{nodeAffinity: odd}",
        "{nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: []}}",
    ] {
        let held = queued(affinity);
        let released = after(&held, &release("e1-1", &[("Worker", &["n1"])]));
        assert_eq!(
            released["spec"]["pytorchReplicaSpecs"], held["spec"]["pytorchReplicaSpecs"],
            "{affinity}"
        );
        assert_eq!(annotations(&released), ["mine", names::HOLD, names::PLAN]);
        assert_eq!(after(&released, &JobChange::Hold), held);
    }
    for record in [
        "",
        "{",
        "[]",
        r#"{"Worker":7}"#,
        r#"{"Nobody":{"nodes":["n1"]}}"#,
    ] {
        let mut job = queued("");
        job["metadata"]["annotations"][names::PINNED] = json!(record);
        let stripped = after(&job, &JobChange::Strip);
        assert_eq!(stripped["spec"], job["spec"], "{record}");
        assert_eq!(annotations(&stripped), ["mine"]);
    }
    let odd = json!({"metadata": {"annotations": null}, "spec": {"runPolicy": null, "pytorchReplicaSpecs": 7}});
    let held = after(&odd, &JobChange::Hold);
    assert_eq!(held["spec"]["runPolicy"]["suspend"], true);
    assert_eq!(held["metadata"]["annotations"][names::HOLD], "queued");
}

/// The status says who holds a suspended job; spec and marks are not touched, and a second look
/// finds nothing to write.
#[test]
fn show_puts_our_condition_behind_the_suspension_of_a_held_job_and_takes_it_out_of_any_other() {
    let mut held = queued(&required(&format!("[{{{}}}]", pool("a"))));
    let since = "2026-01-01T00:00:00Z";
    held["status"] = json!({"conditions": [
        {"type": "Created", "status": "True"},
        {"type": "Suspended", "status": "True", "reason": "PyTorchJobSuspended", "message": "m",
         "lastTransitionTime": since, "lastUpdateTime": since},
    ]});
    let patch = job_patch(&held, &JobChange::Show, "ju", "1").expect("a patch");
    let touched: Vec<&str> = patch
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(touched, ["metadata", "status"]);
    assert_eq!(
        patch["metadata"],
        json!({"uid": "ju", "resourceVersion": "1"})
    );
    let shown = after(&held, &JobChange::Show);
    assert_eq!(
        shown["status"]["conditions"][2],
        json!({"type": "Queued", "status": "True", "reason": "MusterQueued",
               "message": "queued by Muster: `kubectl describe gang j` says why",
               "lastTransitionTime": since, "lastUpdateTime": since})
    );
    assert_eq!(
        shown["status"]["conditions"].as_array().map(Vec::len),
        Some(3)
    );
    assert_eq!(job_patch(&shown, &JobChange::Show, "ju", "1"), None);
    let read = |value: &Value| {
        let job: LitePyTorchJob = serde_json::from_value(value.clone()).expect("a job");
        pytorchjob(&job, &PodRules::default()).expect("ours").shown
    };
    assert_eq!(read(&held), Shown::Suspended);
    assert_eq!(read(&shown), Shown::Queued);
    let mut taken_back = shown;
    taken_back["metadata"]["annotations"] = json!({"mine": "kept"});
    let cleaned = after(&taken_back, &JobChange::Show);
    assert_eq!(cleaned["status"], held["status"]);
    assert_eq!(job_patch(&cleaned, &JobChange::Show, "ju", "1"), None);
}

#[test]
fn what_is_written_is_read_back() {
    let job =
        |value: &Value| -> LitePyTorchJob { serde_json::from_value(value.clone()).expect("a job") };
    let held = queued("");
    let released = after(&held, &release("e1-1", &[("Worker", &["n1", "n2"])]));
    for (value, hold, pinned) in [
        (&held, Hold::Held, None),
        (
            &released,
            Hold::Released("e1-1".into()),
            Some(vec!["n1".into(), "n2".into()]),
        ),
        (&after(&released, &JobChange::Hold), Hold::Held, None),
        (&after(&released, &JobChange::Strip), Hold::Free, None),
    ] {
        let workload = pytorchjob(&job(value), &PodRules::default()).expect("ours");
        assert_eq!(workload.hold, hold);
        let MemberSource::Roles(roles) = &workload.members else {
            panic!("roles");
        };
        assert_eq!(roles[1].pinned, pinned);
        assert_eq!(roles[1].shape.required_affinity, None);
    }
    // The trimmed job, written out again, is as good as the object that was read.
    let trimmed = serde_json::to_value(job(&released)).expect("JSON");
    assert_eq!(
        job_patch(&trimmed, &JobChange::Hold, "ju", "1"),
        job_patch(&released, &JobChange::Hold, "ju", "1")
    );
}

fn any_term() -> impl Strategy<Value = Value> {
    let node = prop_oneof![Just("n1"), Just("n2"), Just("other")];
    let expressions = prop_oneof![
        Just(json!(null)),
        "[ab]".prop_map(|pool| json!([{"key": "pool", "operator": "In", "values": [pool]}]))
    ];
    let fields = prop_oneof![
        Just(json!(null)),
        node.prop_map(|node| json!([{"key": "metadata.name", "operator": "In", "values": [node]}]))
    ];
    (expressions, fields).prop_map(|(expressions, fields)| {
        let mut term = serde_json::Map::new();
        for (key, value) in [("matchExpressions", expressions), ("matchFields", fields)] {
            if !value.is_null() {
                term.insert(key.to_owned(), value);
            }
        }
        Value::Object(term)
    })
}

proptest! {
    #[test]
    fn hold_undoes_release_whatever_the_user_had(
        terms in proptest::option::of(proptest::collection::vec(any_term(), 1..6)),
        first in proptest::collection::vec("n[0-3]", 0..4),
        second in proptest::collection::vec("n[0-3]", 0..4),
    ) {
        let mut held = queued("");
        if let Some(terms) = terms {
            held["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["affinity"] = json!({
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
            });
        }
        let first: Vec<&str> = first.iter().map(String::as_str).collect();
        let second: Vec<&str> = second.iter().map(String::as_str).collect();
        let released = after(&held, &release("p", &[("Worker", &first)]));
        prop_assert_eq!(&after(&released, &JobChange::Hold), &held);
        let repinned = after(&released, &repin("p", &[("Worker", &second)]));
        prop_assert_eq!(&repinned, &after(&held, &release("p", &[("Worker", &second)])));
        prop_assert_eq!(&after(&repinned, &JobChange::Hold), &held);
    }
}
