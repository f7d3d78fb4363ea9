//! Rules between pods: which are read, of whom they speak, and that a pod reads like its template.

use muster_core::interpod::{InterPodKind, InterPodRule, Labels};
use muster_core::pod::Pod;
use muster_core::workload::{MemberSource, RoleSpec};

use super::super::*;
use super::read;

const GPU: &str = "containers: [{name: pytorch, resources: {limits: {nvidia.com/gpu: 1}}}]";

fn a_pod(meta: &str, spec: &str) -> Pod {
    let yaml = format!(
        "{{metadata: {{name: p, namespace: ns, uid: pu, {meta}}}, spec: {{schedulerName: muster, {GPU}, {spec}}}}}"
    );
    pod(&read(&yaml), &PodRules::default())
}

fn roles(templates: &[(&str, &str, &str)]) -> Vec<RoleSpec> {
    let specs: Vec<String> = templates
        .iter()
        .map(|(role, labels, spec)| {
            format!(
                "{role}: {{replicas: 1, template: {{metadata: {{labels: {{{labels}}}}}, spec: {{schedulerName: muster, {GPU}, {spec}}}}}}}"
            )
        })
        .collect();
    let yaml = format!(
        "{{metadata: {{name: j, namespace: ns, uid: ju}}, spec: {{pytorchReplicaSpecs: {{{}}}}}}}",
        specs.join(", ")
    );
    let job = pytorchjob(&read(&yaml), &PodRules::default()).expect("ours");
    assert_eq!(job.invalid, None);
    match job.members {
        MemberSource::Roles(roles) => roles,
        MemberSource::Pods => panic!("no roles"),
    }
}

fn apart(term: &str) -> String {
    format!(
        "affinity: {{podAntiAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: kubernetes.io/hostname, {term}}}]}}}}"
    )
}

fn only(rules: &std::collections::BTreeSet<InterPodRule>) -> &InterPodRule {
    assert_eq!(rules.len(), 1, "{rules:?}");
    rules.first().expect("one")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs.map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect()
}

#[test]
fn job_speaks_of_its_own_pods_by_the_label_of_its_operator() {
    let spec = apart("labelSelector: {matchLabels: {training.kubeflow.org/job-name: j}}");
    let roles = roles(&[("Master", "app: a", ""), ("Worker", "app: a", &spec)]);
    let rule = only(&roles[1].shape.between_pods);
    assert_eq!(rule.kind, InterPodKind::AntiAffinity);
    assert_eq!(&*rule.topology, "kubernetes.io/hostname");
    // The Master has no rule, and is spoken of.
    assert!(roles[0].shape.between_pods.is_empty());
    for role in &roles {
        assert!(rule.matches(&role.labels), "{:?}", role.labels);
        assert_eq!(role.labels.len(), 1, "labels that no rule looks at go");
    }
}

#[test]
fn job_without_rules_keeps_no_labels() {
    let roles = roles(&[("Worker", "app: a, team: b", "")]);
    assert!(roles[0].labels.is_empty());
    assert!(roles[0].shape.between_pods.is_empty());
}

#[test]
fn pod_reads_like_the_template_that_it_was_made_from() {
    let spec = format!(
        "{}, topologySpreadConstraints: [{{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, \
         labelSelector: {{matchLabels: {{app: a}}}}, matchLabelKeys: [run]}}]",
        apart(
            "labelSelector: {matchExpressions: [{key: app, operator: In, values: [b, a]}]}, matchLabelKeys: [run]"
        )
    );
    let merged = "matchExpressions: [{key: run, operator: In, values: ['7']}]";
    // As the API server completes it.
    let born = format!(
        "{}, topologySpreadConstraints: [{{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, \
         labelSelector: {{matchLabels: {{app: a}}, {merged}}}, matchLabelKeys: [run]}}]",
        apart(
            "labelSelector: {matchExpressions: [{key: app, operator: In, values: [a, b]}, \
             {key: run, operator: In, values: ['7']}]}, matchLabelKeys: [run]"
        )
    );
    let template = roles(&[("Worker", "app: a, run: '7'", &spec)]);
    let owner = "ownerReferences: [{apiVersion: kubeflow.org/v1, kind: PyTorchJob, name: j, uid: ju, controller: true}]";
    let pod = a_pod(
        &format!("labels: {{app: a, run: '7', training.kubeflow.org/replica-index: '3'}}, {owner}"),
        &born,
    );
    assert_eq!(pod.shape.between_pods.len(), 2);
    assert_eq!(pod.shape.between_pods, template[0].shape.between_pods);
    assert!(pod.labels.is_empty(), "its template says them");
}

#[test]
fn selectors_are_evaluated_as_kubernetes_does() {
    let cases = [
        ("labelSelector: {matchLabels: {app: a}}", true),
        ("labelSelector: {matchLabels: {app: a, other: x}}", false),
        ("labelSelector: {}", true),
        (
            "labelSelector: {matchExpressions: [{key: app, operator: NotIn, values: [a]}]}",
            false,
        ),
        (
            "labelSelector: {matchExpressions: [{key: other, operator: NotIn, values: [a]}]}",
            true,
        ),
        (
            "labelSelector: {matchExpressions: [{key: app, operator: Exists}]}",
            true,
        ),
        (
            "labelSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}",
            false,
        ),
        (
            "labelSelector: {matchExpressions: [{key: app, operator: Like, values: [a]}]}",
            false,
        ),
        (
            "labelSelector: {matchLabels: {app: a}}, mismatchLabelKeys: [run]",
            false,
        ),
        (
            "labelSelector: {matchLabels: {app: a}}, matchLabelKeys: [run, absent]",
            true,
        ),
        (
            "labelSelector: {matchLabels: {app: a}}, namespaces: [ns, other]",
            true,
        ),
        (
            "labelSelector: {matchLabels: {app: a}}, namespaceSelector: {}",
            true,
        ),
        (
            "labelSelector: {matchLabels: {app: a}}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ns}}",
            true,
        ),
    ];
    let own = labels(&[("app", "a"), ("run", "7")]);
    for (term, expected) in cases {
        let pod = a_pod(
            "labels: {app: a, run: '7', muster.dev/gang: g}",
            &apart(term),
        );
        assert_eq!(
            only(&pod.shape.between_pods).matches(&own),
            expected,
            "{term}"
        );
        assert!(pod.labels.contains_key("app"), "known by its pods");
    }
}

#[test]
fn rules_that_speak_of_no_pod_of_the_namespace_are_not_read() {
    let spread = |when: &str| {
        format!(
            "topologySpreadConstraints: [{{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: {when}, labelSelector: {{}}}}]"
        )
    };
    let cases = [
        apart("namespaces: [other], labelSelector: {}"),
        apart("namespaceSelector: {matchLabels: {team: x}}, labelSelector: {}"),
        apart("namespaces: [ns]"),
        spread("ScheduleAnyway"),
        "affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: zone, labelSelector: {}}}]}}".to_owned(),
        "affinity: {podAffinity: null, podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: null}}".to_owned(),
    ];
    for spec in cases {
        let pod = a_pod("labels: {muster.dev/gang: g}", &spec);
        assert!(pod.shape.between_pods.is_empty(), "{spec}");
    }
    let pod = a_pod("labels: {muster.dev/gang: g}", &spread("DoNotSchedule"));
    assert_eq!(pod.shape.between_pods.len(), 1);
}

#[test]
fn spread_is_read_with_its_policies() {
    let spec = "topologySpreadConstraints: [{topologyKey: zone, maxSkew: 2, minDomains: 3, nodeAffinityPolicy: Ignore, \
                nodeTaintsPolicy: Honor, whenUnsatisfiable: DoNotSchedule}]";
    let pod = a_pod("labels: {app: a, muster.dev/gang: g}", spec);
    let rule = only(&pod.shape.between_pods);
    let InterPodKind::Spread(spread) = &rule.kind else {
        panic!("{rule:?}");
    };
    assert_eq!((spread.skew_max, spread.domains_min), (2, 3));
    assert!(spread.ignores_affinity && spread.honors_taints);
    assert!(!rule.matches(&pod.labels), "no selector selects nothing");
}
