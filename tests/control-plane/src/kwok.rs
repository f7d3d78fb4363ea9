//! KWOK's configuration: how nodes and pods without a kubelet live.
//!
//! ```text
//!   node without Ready condition -> Ready          (a node added with its own condition keeps it)
//!   pod bound -> Running -> Succeeded after muster.dev/run-seconds
//!                        -> Failed    after muster.dev/fail-seconds
//!   pod with deletionTimestamp and finalizers -> Failed, and its finalizers' owners act
//!   pod with deletionTimestamp -> gone after muster.dev/terminate-seconds (at once without it)
//! ```

use std::time::Duration;

/// Pod annotation: seconds (a decimal number such as `1.5`) that the pod runs before it succeeds. Without it the pod runs on.
pub const RUN_SECONDS: &str = "muster.dev/run-seconds";
/// Pod annotation: seconds that the pod runs before it fails with exit code 1.
pub const FAIL_SECONDS: &str = "muster.dev/fail-seconds";
/// Pod annotation: seconds between deletion and disappearance, as a container that is slow to stop.
pub const TERMINATE_SECONDS: &str = "muster.dev/terminate-seconds";

/// Pods that KWOK works on at once; its default of 4 would be the bottleneck of a thousand bindings.
const POD_PARALLELISM: u32 = 64;

/// The configuration file, one document per stage.
///
/// KWOK plays a pod twice when its watch brings the same state twice, which happens while it lists the pods of a new node and when
/// the API server cuts the watch of a KWOK that is too slow for it (a loaded machine). The second play is refused with 422 because it
/// brings a second pod IP, so it costs the server a request and the store nothing: [`crate::Writes::accepted`] leaves it out. Plain lists
/// in parallel keep the first case short; a measurement begins after [`crate::Cluster::wait_until_quiet`].
///
/// A bound pod runs `start` later. While it waits for that, the same state again is known for what it is, so that nothing is played
/// twice.
pub(crate) fn configuration(start: Duration) -> String {
    let mut text = format!(
        r#"apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
metadata: {{name: kwok}}
options:
  manageAllNodes: true
  nodeLeaseDurationSeconds: 0
  podPlayStageParallelism: {POD_PARALLELISM}
  nodePlayStageParallelism: 16
  podsOnNodeSyncParallelism: 64
  enablePodsOnNodeSyncListPager: false
  enablePodsOnNodeSyncStreamWatch: false
  enableDebuggingHandlers: false
  cidr: 10.0.0.0/8
"#
    );
    for stage in [
        NODE_INITIALIZE.to_owned(),
        pod_ready(start),
        pod_end(true),
        pod_end(false),
        POD_TERMINATE.to_owned(),
        pod_delete(),
    ] {
        text.push_str("---\n");
        text.push_str(&stage);
    }
    text
}

const NODE_INITIALIZE: &str = r#"apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-initialize}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - key: '.status.conditions.[] | select( .type == "Ready" ) | .status'
      operator: DoesNotExist
  next:
    statusTemplate: |
      {{ $now := Now }}
      conditions:
      {{ range NodeConditions }}
      - lastHeartbeatTime: {{ $now | Quote }}
        lastTransitionTime: {{ $now | Quote }}
        message: {{ .message | Quote }}
        reason: {{ .reason | Quote }}
        status: {{ .status | Quote }}
        type: {{ .type | Quote }}
      {{ end }}
      phase: Running
"#;

fn pod_ready(start: Duration) -> String {
    format!(
        r#"apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-ready}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - key: '.metadata.deletionTimestamp'
      operator: DoesNotExist
    - key: '.status.phase'
      operator: In
      values: [Pending]
  delay:
    durationMilliseconds: {}
  next:
    statusTemplate: |
{POD_RUNS}"#,
        start.as_millis()
    )
}

/// Status of a pod that runs.
const POD_RUNS: &str = r#"      {{ $now := Now }}
      conditions:
      - {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
      - {type: Ready, status: "True", lastTransitionTime: {{ $now | Quote }}}
      - {type: ContainersReady, status: "True", lastTransitionTime: {{ $now | Quote }}}
      containerStatuses:
      {{ range .spec.containers }}
      - image: {{ .image | Quote }}
        name: {{ .name | Quote }}
        ready: true
        started: true
        restartCount: 0
        state: {running: {startedAt: {{ $now | Quote }}}}
      {{ end }}
      initContainerStatuses:
      {{ range .spec.initContainers }}
      - image: {{ .image | Quote }}
        name: {{ .name | Quote }}
        ready: true
        restartCount: 0
        {{ if eq .restartPolicy "Always" }}
        started: true
        state: {running: {startedAt: {{ $now | Quote }}}}
        {{ else }}
        state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}
        {{ end }}
      {{ end }}
      {{ $podIPs := PodIPsWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) }}
      {{ with $podIPs }}
      podIP: {{ index . 0 | Quote }}
      podIPs:
      {{ range . }}
      - ip: {{ . | Quote }}
      {{ end }}
      {{ end }}
      phase: Running
      startTime: {{ $now | Quote }}
"#;

fn pod_end(succeeds: bool) -> String {
    let (name, annotation, phase, reason, code) = if succeeds {
        ("pod-succeed", RUN_SECONDS, "Succeeded", "Completed", 0)
    } else {
        ("pod-fail", FAIL_SECONDS, "Failed", "Error", 1)
    };
    format!(
        r#"apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: {name}}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - key: '.metadata.deletionTimestamp'
      operator: DoesNotExist
    - key: '.status.phase'
      operator: In
      values: [Running]
    - key: '.metadata.annotations["{annotation}"]'
      operator: Exists
  delay:
    durationFrom:
      expressionFrom: '(.metadata.annotations["{annotation}"] // "0") + "s"'
  next:
    statusTemplate: |
      {{{{ $now := Now }}}}
      conditions:
      - {{type: Ready, status: "False", reason: PodCompleted, lastTransitionTime: {{{{ $now | Quote }}}}}}
      - {{type: ContainersReady, status: "False", reason: PodCompleted, lastTransitionTime: {{{{ $now | Quote }}}}}}
      containerStatuses:
      {{{{ range .spec.containers }}}}
      - image: {{{{ .image | Quote }}}}
        name: {{{{ .name | Quote }}}}
        ready: false
        started: false
        restartCount: 0
        state: {{terminated: {{exitCode: {code}, reason: {reason}, startedAt: {{{{ $now | Quote }}}}, finishedAt: {{{{ $now | Quote }}}}}}}}
      {{{{ end }}}}
      phase: {phase}
"#
    )
}

/// A pod that a finalizer keeps (those of batch/v1 Jobs) ends first, as a kubelet has it end; the finalizer's owner then lets it go.
const POD_TERMINATE: &str = r#"apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-terminate}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - key: '.metadata.deletionTimestamp'
      operator: Exists
    - key: '.metadata.finalizers'
      operator: Exists
    - key: '.status.phase'
      operator: In
      values: [Pending, Running]
  next:
    statusTemplate: |
      phase: Failed
"#;

fn pod_delete() -> String {
    format!(
        r#"apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-delete}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - key: '.metadata.deletionTimestamp'
      operator: Exists
    - key: '.metadata.finalizers'
      operator: DoesNotExist
  delay:
    durationFrom:
      expressionFrom: '(.metadata.annotations["{TERMINATE_SECONDS}"] // "0") + "s"'
  next:
    delete: true
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_yaml_with_a_kind() {
        let text = configuration(Duration::ZERO);
        let kinds: Vec<String> = text
            .split("---\n")
            .map(|document| {
                let value: serde_json::Value = serde_saphyr::from_str(document).unwrap();
                value["kind"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(
            kinds,
            [
                "KwokConfiguration",
                "Stage",
                "Stage",
                "Stage",
                "Stage",
                "Stage",
                "Stage"
            ]
        );
    }
}
