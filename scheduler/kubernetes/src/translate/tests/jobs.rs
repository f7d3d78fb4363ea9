//! PyTorchJobs: whose they are, what they ask for, what is wrong with them.

use std::fmt::Write as _;

use muster_core::workload::{Hold, MemberSource, Outcome, Shown, Workload};

use super::super::*;
use super::{amounts, read};

fn rules() -> PodRules {
    PodRules {
        priority_classes: [("high", 100), ("low", -7), ("", 5)]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        ..PodRules::default()
    }
}

/// A job whose workers are `muster` pods with one GPU; `spec` and `meta` are added.
fn job(meta: &str, spec: &str) -> Option<Workload> {
    job_by(meta, spec, &rules())
}

fn job_by(meta: &str, spec: &str, rules: &PodRules) -> Option<Workload> {
    let yaml = format!(
        "{{metadata: {{name: j, namespace: ns, uid: ju, resourceVersion: '4', generation: 2{meta}}}, spec: {{{spec}}}}}"
    );
    pytorchjob(&read(&yaml), rules)
}

const GPU: &str = "{name: pytorch, resources: {limits: {nvidia.com/gpu: 1}}}";

fn role(replicas: &str, spec: &str) -> String {
    let replicas = if replicas.is_empty() {
        String::new()
    } else {
        format!("replicas: {replicas}, ")
    };
    format!("{{{replicas}template: {{spec: {{schedulerName: muster, {spec}}}}}}}")
}

fn workers(replicas: &str) -> String {
    role(replicas, &format!("containers: [{GPU}]"))
}

/// Whether it is ours by its own word, and the summary.
fn whose(workload: &Workload) -> String {
    let whose = if workload.ours { "ours" } else { "not ours" };
    format!("{whose}: {}", summary(workload))
}

/// `Master=1 Worker=3 min=2`, or what is wrong.
fn summary(workload: &Workload) -> String {
    if let Some(invalid) = &workload.invalid {
        return format!("invalid: {invalid}");
    }
    let MemberSource::Roles(roles) = &workload.members else {
        return "no roles".to_owned();
    };
    let mut text = roles
        .iter()
        .map(|role| format!("{}={}", role.name, role.count))
        .collect::<Vec<_>>()
        .join(" ");
    if let Some(minimum) = workload.minimum {
        let _ = write!(text, " min={minimum}");
    }
    text
}

#[test]
fn t31_gangs_and_their_minimum() {
    const LIMIT: &str = "must be a whole number from 0 to 16384";
    let w = workers;
    let min = |value: &str| {
        format!(
            "runPolicy: {{schedulingPolicy: {{minAvailable: {value}}}}}, pytorchReplicaSpecs: {{Master: {}, Worker: {}}}",
            w("1"),
            w("3")
        )
    };
    let only = |replicas: &str| format!("pytorchReplicaSpecs: {{Worker: {}}}", w(replicas));
    let field = "spec.pytorchReplicaSpecs.Worker.replicas";
    let minimum = "spec.runPolicy.schedulingPolicy.minAvailable";
    let cases: Vec<(String, String)> = vec![
        (
            format!(
                "pytorchReplicaSpecs: {{Master: {}, Worker: {}}}",
                w("1"),
                w("4")
            ),
            "Master=1 Worker=4".into(),
        ),
        (only(""), "Worker=1".into()),
        (only("null"), "Worker=1".into()),
        (only("16384"), "Worker=16384".into()),
        (only("16385"), format!("invalid: {field} is 16385: {LIMIT}")),
        (
            only("1000000000"),
            format!("invalid: {field} is 1000000000: {LIMIT}"),
        ),
        (only("-3"), format!("invalid: {field} is -3: {LIMIT}")),
        (only("two"), format!("invalid: {field} is two: {LIMIT}")),
        (only("1.5"), format!("invalid: {field} is 1.5: {LIMIT}")),
        (only("[1]"), format!("invalid: {field} is [1]: {LIMIT}")),
        (
            only("0"),
            "invalid: spec.pytorchReplicaSpecs is 0: must have at least one replica in all".into(),
        ),
        (
            format!(
                "pytorchReplicaSpecs: {{Master: {}, Worker: {}}}",
                w("16384"),
                w("16384")
            ),
            "invalid: spec.pytorchReplicaSpecs is 32768: must have at most 16384 replicas in all"
                .into(),
        ),
        (min("2"), "Master=1 Worker=3 min=2".into()),
        (min("0"), "Master=1 Worker=3".into()),
        (min("null"), "Master=1 Worker=3".into()),
        // Above the sum is for the core to say, with the numbers.
        (min("10"), "Master=1 Worker=3 min=10".into()),
        (min("-1"), format!("invalid: {minimum} is -1: {LIMIT}")),
        (
            min("1000000000"),
            format!("invalid: {minimum} is 1000000000: {LIMIT}"),
        ),
        (
            min(&"7".repeat(300)),
            format!("invalid: {minimum} is 7.777777777777778e+299: {LIMIT}"),
        ),
        (min("many"), format!("invalid: {minimum} is many: {LIMIT}")),
        (
            format!(
                "pytorchReplicaSpecs: {{Worker: {}, worker: {}}}",
                w("1"),
                w("1")
            ),
            "invalid: spec.pytorchReplicaSpecs is worker: must be Master or Worker".into(),
        ),
        (
            format!(
                "pytorchReplicaSpecs: {{Worker: {}, {}: {}}}",
                w("1"),
                "x".repeat(300),
                w("1")
            ),
            format!(
                "invalid: spec.pytorchReplicaSpecs is {}...: must be Master or Worker",
                "x".repeat(61)
            ),
        ),
    ];
    for (spec, expected) in cases {
        let workload = job("", &spec).expect("ours");
        assert_eq!(summary(&workload), expected, "{spec}");
    }
}

#[test]
fn elastic_minimum_counts_only_when_asked_for() {
    let spec = |elastic: &str, policy: &str| {
        format!(
            "elasticPolicy: {elastic}, runPolicy: {{schedulingPolicy: {policy}}}, pytorchReplicaSpecs: {{Worker: {}}}",
            workers("8")
        )
    };
    let asked = ", annotations: {muster.dev/elastic-minimum: 'true'}";
    for (meta, elastic, policy, expected) in [
        ("", "{minReplicas: 1, maxReplicas: 64}", "null", "Worker=8"),
        (
            ", annotations: {muster.dev/elastic-minimum: 'false'}",
            "{minReplicas: 1}",
            "null",
            "Worker=8",
        ),
        (asked, "{minReplicas: 2}", "null", "Worker=8 min=2"),
        (
            asked,
            "{minReplicas: 2}",
            "{minAvailable: 4}",
            "Worker=8 min=4",
        ),
        (asked, "{minReplicas: 0}", "null", "Worker=8"),
        (asked, "{}", "{}", "Worker=8"),
        (asked, "null", "null", "Worker=8"),
        (
            asked,
            "{minReplicas: -2}",
            "null",
            "invalid: spec.elasticPolicy.minReplicas is -2: must be a whole number from 0 to 16384",
        ),
    ] {
        let workload = job(meta, &spec(elastic, policy)).expect("ours");
        assert_eq!(summary(&workload), expected, "{elastic} {policy}");
    }
    let with_master = format!(
        "elasticPolicy: {{minReplicas: 2}}, pytorchReplicaSpecs: {{Master: {}, Worker: {}}}",
        workers("1"),
        workers("8")
    );
    assert_eq!(
        summary(&job(asked, &with_master).expect("ours")),
        "Master=1 Worker=8 min=3"
    );
}

#[test]
fn templates_that_make_no_pods_are_told_at_once() {
    let path = "spec.pytorchReplicaSpecs.Worker.template.spec";
    let cases = [
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: eight}}}]",
            "containers[0].resources.limits[nvidia.com/gpu] is eight: must be a quantity, for example 500m or 2Gi",
        ),
        (
            "containers: [{}, {resources: {requests: {memory: -1}}}]",
            "containers[1].resources.requests[memory] is -1: must not be negative",
        ),
        (
            "initContainers: [{resources: {requests: {cpu: {a: 1}}}}]",
            "initContainers[0].resources.requests[cpu] is {...}: must be a quantity, for example 500m or 2Gi",
        ),
        (
            "containers: [{resources: {limits: {nvidia.com/gpu: 500m}}}]",
            "containers[0].resources.limits[nvidia.com/gpu] is 500m: must be a whole number",
        ),
        (
            "containers: [{resources: {requests: {nvidia.com/gpu: 1}}}]",
            "containers[0].resources.requests[nvidia.com/gpu] is 1: must have a limit of the same amount",
        ),
        (
            "containers: [{resources: {requests: {nvidia.com/gpu: 4}, limits: {nvidia.com/gpu: 8}}}]",
            "containers[0].resources.requests[nvidia.com/gpu] is 4: must equal its limit of 8",
        ),
        ("tolerations: all", "tolerations is all: must be a list"),
        (
            "containers: [{ports: [{containerPort: http}]}]",
            "containers[0].ports[0].containerPort is http: must be a whole number",
        ),
        (
            "affinity: {nodeAffinity: 7}",
            "affinity.nodeAffinity is 7: must be an object",
        ),
    ];
    for (spec, expected) in cases {
        let text = format!("pytorchReplicaSpecs: {{Worker: {}}}", role("2", spec));
        let workload = job("", &text).expect("ours");
        assert_eq!(
            summary(&workload),
            format!("invalid: {path}.{expected}"),
            "{spec}"
        );
    }
    let huge = format!(
        "pytorchReplicaSpecs: {{Worker: {}}}",
        role(
            "2",
            "containers: [{resources: {limits: {nvidia.com/gpu: 99999999999E}}}]"
        )
    );
    assert_eq!(summary(&job("", &huge).expect("ours")), "Worker=2");
    let long = format!(
        "pytorchReplicaSpecs: {{Worker: {}}}",
        role(
            "2",
            &format!(
                "containers: [{{resources: {{limits: {{nvidia.com/gpu: {}}}}}}}]",
                "z".repeat(300)
            )
        )
    );
    let invalid = job("", &long).expect("ours").invalid.expect("invalid");
    assert_eq!(invalid.value.chars().count(), 64);
}

#[test]
fn whose_job_it_is() {
    let named = |name: &str| {
        format!("{{template: {{spec: {{schedulerName: {name}, containers: [{GPU}]}}}}}}")
    };
    let unnamed = format!("{{template: {{spec: {{containers: [{GPU}]}}}}}}");
    let queued = ", annotations: {muster.dev/hold: queued}";
    let mixed = |other: &str| {
        format!(
            "ours: invalid: spec.pytorchReplicaSpecs.Worker.template.spec.schedulerName is {other}: must be muster as Master does"
        )
    };
    let cases: Vec<(&str, String, Option<String>)> = vec![
        ("", format!("pytorchReplicaSpecs: {{Worker: {}}}", named("other")),
         Some("not ours: invalid: spec.pytorchReplicaSpecs.Worker.template.spec.schedulerName is other: must be muster".into())),
        // A pod of it that names us says that the operator put the name there.
        ("", format!("pytorchReplicaSpecs: {{Worker: {unnamed}}}"), Some("not ours: Worker=1".into())),
        ("", format!("pytorchReplicaSpecs: {{Master: {unnamed}, Worker: {}}}", named("other")),
         Some("not ours: invalid: spec.pytorchReplicaSpecs.Worker.template.spec.schedulerName is other: must be muster as Master does".into())),
        ("", "pytorchReplicaSpecs: {}".into(), Some("not ours: invalid: spec.pytorchReplicaSpecs is {}: must have Master or Worker".into())),
        ("", "pytorchReplicaSpecs: [1]".into(), Some("not ours: invalid: spec.pytorchReplicaSpecs is {}: must have Master or Worker".into())),
        ("", String::new(), Some("not ours: invalid: spec.pytorchReplicaSpecs is {}: must have Master or Worker".into())),
        ("", format!("pytorchReplicaSpecs: {{Master: {}, Worker: {}}}", named("muster"), named("other")), Some(mixed("other"))),
        ("", format!("pytorchReplicaSpecs: {{Master: {}, Worker: {unnamed}}}", named("muster")), Some(mixed("default-scheduler"))),
        ("", format!("pytorchReplicaSpecs: {{Master: {}, Worker: {}}}", named("muster"), named(&"s".repeat(300))),
         Some(mixed(&format!("{}...", "s".repeat(61))))),
        // A job that we hold stays ours, or nobody would ever look after it.
        (queued, "pytorchReplicaSpecs: {}".into(), Some("ours: invalid: spec.pytorchReplicaSpecs is {}: must have Master or Worker".into())),
        (queued, format!("pytorchReplicaSpecs: {{Worker: {}}}", named("other")),
         Some("ours: invalid: spec.pytorchReplicaSpecs.Worker.template.spec.schedulerName is other: must be muster".into())),
        ("", format!("runPolicy: {{managedBy: kueue.x-k8s.io/multikueue}}, pytorchReplicaSpecs: {{Worker: {}}}", named("muster")), None),
        // Its controller makes no more pods for it.
        (", deletionTimestamp: '2026-01-01T00:00:00Z'", format!("pytorchReplicaSpecs: {{Worker: {}}}", named("muster")), None),
        ("", format!("runPolicy: {{managedBy: 7}}, pytorchReplicaSpecs: {{Worker: {}}}", named("muster")), None),
        ("", format!("runPolicy: {{managedBy: kubeflow.org/training-operator}}, pytorchReplicaSpecs: {{Worker: {}}}", named("muster")), Some("ours: Worker=1".into())),
        ("", format!("runPolicy: {{managedBy: ''}}, pytorchReplicaSpecs: {{Worker: {}}}", named("muster")), Some("ours: Worker=1".into())),
        ("", format!("runPolicy: odd, pytorchReplicaSpecs: {{Worker: {}}}", named("muster")), Some("ours: Worker=1".into())),
    ];
    for (meta, spec, expected) in cases {
        assert_eq!(
            job(meta, &spec).as_ref().map(whose),
            expected,
            "{meta} {spec}"
        );
    }
    let by_flag = PodRules {
        unnamed_jobs_are_ours: true,
        ..rules()
    };
    let yaml = format!(
        "{{metadata: {{name: j}}, spec: {{pytorchReplicaSpecs: {{Master: {unnamed}, Worker: {unnamed}}}}}}}"
    );
    let workload = pytorchjob(&read(&yaml), &by_flag).expect("ours");
    assert_eq!(whose(&workload), "ours: Master=1 Worker=1");
}

#[test]
fn shown_is_what_the_jobs_own_status_says_of_a_suspension() {
    let cases = [
        ("", Shown::Nothing),
        ("{type: Created, status: 'True'}", Shown::Nothing),
        ("{type: Suspended, status: 'True'}", Shown::Suspended),
        ("{type: Suspended, status: 'False'}", Shown::Nothing),
        (
            "{type: Suspended, status: 'True'}, {type: Queued, status: 'True', reason: MusterQueued}",
            Shown::Queued,
        ),
        (
            "{type: Suspended, status: 'True'}, {type: Queued, status: 'False', reason: MusterQueued}",
            Shown::Suspended,
        ),
        (
            "{type: Suspended, status: 'False'}, {type: Queued, status: 'True', reason: MusterQueued}",
            Shown::Nothing,
        ),
        ("7, {type: 7}, odd", Shown::Nothing),
    ];
    for (conditions, expected) in cases {
        let yaml = format!(
            "{{metadata: {{name: j}}, spec: {{pytorchReplicaSpecs: {{Worker: {}}}}}, status: {{conditions: [{conditions}]}}}}",
            workers("1")
        );
        let workload = pytorchjob(&read(&yaml), &rules()).expect("ours");
        assert_eq!(workload.shown, expected, "{conditions}");
    }
}

#[test]
fn queued_that_another_controller_wrote_is_not_taken_for_ours() {
    for theirs in [
        "{type: Queued, status: 'True'}",
        "{type: Queued, status: 'True', reason: QuotaExceeded}",
        "{type: Waiting, status: 'True', reason: MusterQueued}",
        "{type: Queued, status: 'True', reason: QuotaExceeded}, {type: Queued, status: 'False', reason: MusterQueued}",
    ] {
        let yaml = format!(
            "{{metadata: {{name: j}}, spec: {{pytorchReplicaSpecs: {{Worker: {}}}}}, status: {{conditions: [{{type: Suspended, status: 'True'}}, {theirs}]}}}}",
            workers("1")
        );
        let workload = pytorchjob(&read(&yaml), &rules()).expect("ours");
        assert_eq!(workload.shown, Shown::Suspended, "{theirs}");
    }
}

#[test]
fn hold_says_who_suspended_it() {
    let cases = [
        ("", "true", Hold::SuspendedByUser),
        ("", "false", Hold::Free),
        ("", "null", Hold::Free),
        ("muster.dev/hold: queued", "true", Hold::Held),
        ("muster.dev/hold: queued", "false", Hold::Free),
        (
            "muster.dev/hold: released, muster.dev/plan: e1-2",
            "false",
            Hold::Released("e1-2".into()),
        ),
        (
            "muster.dev/hold: released, muster.dev/plan: e1-2",
            "true",
            Hold::SuspendedByUser,
        ),
        ("muster.dev/hold: released", "false", Hold::Free),
        ("muster.dev/hold: odd", "true", Hold::SuspendedByUser),
    ];
    for (annotations, suspend, expected) in cases {
        let meta = format!(", annotations: {{{annotations}}}");
        let spec = format!(
            "runPolicy: {{suspend: {suspend}}}, pytorchReplicaSpecs: {{Worker: {}}}",
            workers("1")
        );
        assert_eq!(
            job(&meta, &spec).expect("ours").hold,
            expected,
            "{annotations} {suspend}"
        );
    }
}

#[test]
fn how_it_ended() {
    for (conditions, expected) in [
        ("[]", None),
        ("null", None),
        ("odd", None),
        ("[7, {type: Succeeded}]", None),
        (
            "[{type: Running, status: 'True'}, {type: Succeeded, status: 'False'}]",
            None,
        ),
        (
            "[{type: Running, status: 'False'}, {type: Succeeded, status: 'True'}]",
            Some(Outcome::Succeeded),
        ),
        ("[{type: Failed, status: 'True'}]", Some(Outcome::Failed)),
    ] {
        let yaml = format!(
            "{{metadata: {{name: j}}, spec: {{pytorchReplicaSpecs: {{Worker: {}}}}}, status: {{conditions: {conditions}}}}}",
            workers("1")
        );
        let workload = pytorchjob(&read(&yaml), &rules()).expect("ours");
        assert_eq!(workload.finished, expected, "{conditions}");
    }
}

#[test]
fn priority_is_that_of_the_classes_named() {
    let template = |class: &str| {
        format!(
            "{{template: {{spec: {{schedulerName: muster, priorityClassName: {class}, containers: []}}}}}}"
        )
    };
    for (policy, master, worker, expected) in [
        ("null", "null", "null", 5),
        ("null", "low", "high", 100),
        ("null", "low", "low", -7),
        ("null", "low", "unknown", 0),
        ("{priorityClass: low}", "high", "high", -7),
        ("{priorityClass: ''}", "high", "high", 100),
        ("{priorityClass: unknown}", "high", "high", 0),
        ("{priorityClass: [1]}", "high", "low", 100),
    ] {
        let spec = format!(
            "runPolicy: {{schedulingPolicy: {policy}}}, pytorchReplicaSpecs: {{Master: {}, Worker: {}}}",
            template(master),
            template(worker)
        );
        assert_eq!(
            job("", &spec).expect("ours").priority,
            expected,
            "{policy} {master} {worker}"
        );
    }
}

/// A held job has no pods whose class an admission or a quota could have refused.
#[test]
fn abuse_job_that_names_a_class_of_kubernetes_itself_passes_nobody_in_the_queue() {
    const CRITICAL: &str = "system-node-critical";
    let rules = PodRules {
        priority_classes: [(CRITICAL, 2_000_001_000), ("top", 1_000_000_000)]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        ..rules()
    };
    for (policy, class, expected) in [
        (CRITICAL, "null", 0),
        ("''", CRITICAL, 0),
        ("top", "null", 1_000_000_000),
        ("''", "top", 1_000_000_000),
    ] {
        let spec = format!(
            "runPolicy: {{schedulingPolicy: {{priorityClass: {policy}}}}}, pytorchReplicaSpecs: {{Worker: \
             {{template: {{spec: {{schedulerName: muster, priorityClassName: {class}, containers: []}}}}}}}}"
        );
        let found = job_by("", &spec, &rules).expect("ours");
        assert_eq!(found.priority, expected, "{policy} {class}");
    }
}

#[test]
fn shapes_have_what_the_operator_adds() {
    let shapes = |spec: &str| -> Vec<(String, usize)> {
        let workload = job("", spec).expect("ours");
        assert_eq!(workload.invalid, None);
        let MemberSource::Roles(roles) = workload.members else {
            panic!("roles");
        };
        roles
            .iter()
            .map(|role| (amounts(&role.shape.requests), role.shape.host_ports.len()))
            .collect()
    };
    // A Master without GPUs beside workers, which wait for it in an init container.
    let cpu = role(
        "1",
        "containers: [{name: pytorch, resources: {requests: {cpu: 4}}}]",
    );
    assert_eq!(
        shapes(&format!(
            "pytorchReplicaSpecs: {{Master: {cpu}, Worker: {}}}",
            workers("4")
        )),
        [
            ("cpu=4000m".to_owned(), 0),
            ("cpu=50m mem=10485760 nvidia.com/gpu=1".to_owned(), 0)
        ]
    );
    assert_eq!(
        shapes(&format!(
            "pytorchReplicaSpecs: {{Worker: {}}}",
            workers("4")
        )),
        [("nvidia.com/gpu=1".to_owned(), 0)]
    );
    // With the node's network the port that the operator adds is a port of the node.
    let host = role(
        "2",
        "hostNetwork: true, containers: [{name: pytorch}, {name: other}]",
    );
    assert_eq!(
        shapes(&format!("pytorchReplicaSpecs: {{Worker: {host}}}")),
        [(String::new(), 1)]
    );
    let named = role(
        "2",
        "hostNetwork: true, containers: [{name: pytorch, ports: [{name: pytorchjob-port, containerPort: 999}]}]",
    );
    assert_eq!(
        shapes(&format!("pytorchReplicaSpecs: {{Worker: {named}}}")),
        [(String::new(), 1)]
    );
}

#[test]
fn pins_are_read_apart_from_what_the_user_asks() {
    let pinned = r#"{"Worker":{"nodes":["n1","n2"]}}"#;
    let affinity = |terms: &str| {
        format!(
            "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: {terms}}}}}}}, containers: []"
        )
    };
    let pool = "matchExpressions: [{key: pool, operator: In, values: [a]}]";
    let pin = |node: &str| {
        format!("matchFields: [{{key: metadata.name, operator: In, values: [{node}]}}]")
    };
    let meta = format!(", annotations: {{muster.dev/pinned: '{pinned}'}}");
    let terms = format!("[{{{pool}, {}}}, {{{pool}, {}}}]", pin("n1"), pin("n2"));
    let spec = format!(
        "pytorchReplicaSpecs: {{Worker: {}}}",
        role("2", &affinity(&terms))
    );
    for (meta, nodes, left) in [
        (meta.as_str(), Some(2), 1),
        ("", None, 2),
        (", annotations: {muster.dev/pinned: '{'}", None, 2),
    ] {
        let workload = job(meta, &spec).expect("ours");
        let MemberSource::Roles(roles) = workload.members else {
            panic!("roles");
        };
        assert_eq!(roles[0].pinned.as_ref().map(Vec::len), nodes, "{meta}");
        let terms = roles[0].shape.required_affinity.as_ref().expect("affinity");
        assert_eq!(terms.len(), left, "{meta}");
        assert_eq!(terms[0].fields.is_empty(), nodes.is_some());
    }
}

#[test]
fn mistyped_keys_of_a_job_and_of_its_templates_are_spoken_of() {
    let said = |annotations: &str, template: &str| {
        let worker = workers("1").replace(
            "template: {",
            &format!("template: {{metadata: {{{template}}}, "),
        );
        assert!(worker.contains("metadata"), "{worker}");
        let spec = format!("pytorchReplicaSpecs: {{Worker: {worker}}}");
        let workload = job(&format!(", annotations: {{{annotations}}}"), &spec).expect("ours");
        assert_eq!(workload.invalid, None);
        muster_core::settings::ignored(&workload.settings)
    };
    let known =
        "muster.dev/required-topology: rack, muster.dev/hold: queued, muster.dev/plan: e1-1";
    assert_eq!(said(known, "labels: {muster.dev/role: a, other: b}"), None);
    let wanted =
        "muster.dev/requird-topology is ignored, did you mean muster.dev/required-topology?";
    let typed = "muster.dev/requird-topology: rack";
    assert_eq!(said(typed, "").as_deref(), Some(wanted));
    for template in [
        format!("labels: {{{typed}}}"),
        format!("annotations: {{{typed}}}"),
    ] {
        assert_eq!(said("", &template).as_deref(), Some(wanted), "{template}");
    }
    // In both places it is one slip.
    assert_eq!(
        said(typed, &format!("labels: {{{typed}}}")).as_deref(),
        Some(wanted)
    );
}

#[test]
fn identity_and_settings() {
    let workload = job(
        ", creationTimestamp: '1970-01-01T00:02:00Z', labels: {muster.dev/queue: a, other: b}, annotations: {muster.dev/queue: c, muster.dev/x: y, other: z}",
        &format!("pytorchReplicaSpecs: {{Worker: {}}}", workers("1")),
    )
    .expect("ours");
    assert_eq!(workload.key, muster_core::ids::GangKey::new("ns", "ju"));
    assert_eq!(
        (
            workload.resource_version.as_str(),
            workload.generation,
            workload.created_seconds
        ),
        ("4", 2, 120)
    );
    let settings: Vec<_> = workload
        .settings
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect();
    assert_eq!(settings, [("muster.dev/queue", "c"), ("muster.dev/x", "y")]);
}
