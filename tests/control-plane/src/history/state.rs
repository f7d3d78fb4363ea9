//! What the recorder keeps of an object: the parts that placement is about.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;

use super::quantity::milli;

/// Amounts by resource name, in thousandths (of a core, a byte, a GPU).
pub type Amounts = BTreeMap<String, i128>;

/// A pod at one resource version.
#[derive(Clone, Debug, PartialEq)]
pub struct PodState {
    /// `metadata.uid`.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The node it is bound to.
    pub node: Option<String>,
    /// `status.phase`, `Pending` when unset.
    pub phase: String,
    /// Whether it has a deletionTimestamp.
    pub terminating: bool,
    /// Names of its scheduling gates.
    pub gates: Vec<String>,
    /// `spec.schedulerName`.
    pub scheduler: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its controller as `(kind, name, uid)`.
    pub controller: Option<(String, String, String)>,
    /// What it asks of a node, with one of `pods`.
    pub requests: Amounts,
    /// When the API server created it (whole seconds).
    pub created: Option<Timestamp>,
}

impl PodState {
    pub(super) fn of(pod: &Pod) -> PodState {
        let spec = pod.spec.as_ref();
        let controller = pod
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| (owner.kind.clone(), owner.name.clone(), owner.uid.clone()));
        let gates = spec.and_then(|spec| spec.scheduling_gates.as_ref());
        PodState {
            uid: pod.uid().unwrap_or_default(),
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            node: spec
                .and_then(|spec| spec.node_name.clone())
                .filter(|node| !node.is_empty()),
            phase: pod
                .status
                .as_ref()
                .and_then(|status| status.phase.clone())
                .unwrap_or_else(|| "Pending".into()),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            gates: gates
                .into_iter()
                .flatten()
                .map(|gate| gate.name.clone())
                .collect(),
            scheduler: spec
                .and_then(|spec| spec.scheduler_name.clone())
                .unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            annotations: pod.metadata.annotations.clone().unwrap_or_default(),
            controller,
            requests: spec.map(pod_requests).unwrap_or_default(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        }
    }

    /// Whether it has ended, well or badly.
    pub fn is_finished(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }

    /// Whether it counts as a running member: bound, not finished, not being deleted.
    pub fn is_bound_and_live(&self) -> bool {
        self.node.is_some() && !self.is_finished() && !self.terminating
    }

    /// Whether it holds its node's resources: bound and not finished; a pod being deleted holds them until it is gone.
    pub fn holds_resources(&self) -> bool {
        self.node.is_some() && !self.is_finished()
    }
}

/// A node at one resource version.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeState {
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// What pods may ask for in total.
    pub allocatable: Amounts,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// Whether its Ready condition is True.
    pub ready: bool,
    /// Taints as `key=value:effect`.
    pub taints: Vec<String>,
}

impl NodeState {
    pub(super) fn of(node: &Node) -> NodeState {
        let status = node.status.as_ref();
        let spec = node.spec.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let taints = spec.and_then(|spec| spec.taints.as_ref());
        NodeState {
            name: node.name_any(),
            uid: node.uid().unwrap_or_default(),
            allocatable: amounts(status.and_then(|status| status.allocatable.as_ref())),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            ready: conditions
                .into_iter()
                .flatten()
                .any(|c| c.type_ == "Ready" && c.status == "True"),
            taints: taints
                .into_iter()
                .flatten()
                .map(|taint| {
                    format!(
                        "{}={}:{}",
                        taint.key,
                        taint.value.as_deref().unwrap_or(""),
                        taint.effect
                    )
                })
                .collect(),
        }
    }
}

/// A PyTorchJob at one resource version.
#[derive(Clone, Debug, PartialEq)]
pub struct JobState {
    /// `metadata.uid`, which its pods' controller reference names.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Members that must run together: `schedulingPolicy.minAvailable`, else the sum of replicas.
    pub minimum: u32,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether it has succeeded or failed.
    pub finished: bool,
    /// When the API server created it (whole seconds).
    pub created: Option<Timestamp>,
}

impl JobState {
    pub(super) fn of(job: &DynamicObject) -> JobState {
        let spec = job.data.get("spec");
        let number = |value: Option<&Value>, or: u64| value.and_then(Value::as_u64).unwrap_or(or);
        let replicas: u64 = spec
            .and_then(|spec| spec.get("pytorchReplicaSpecs"))
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(|specs| specs.values())
            .map(|replica| number(replica.get("replicas"), 1))
            .fold(0, u64::saturating_add);
        let policy = spec.and_then(|spec| spec.pointer("/runPolicy/schedulingPolicy/minAvailable"));
        let conditions = job
            .data
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        JobState {
            uid: job.uid().unwrap_or_default(),
            namespace: job.namespace().unwrap_or_default(),
            name: job.name_any(),
            minimum: u32::try_from(number(policy, replicas)).unwrap_or(u32::MAX),
            suspended: spec
                .and_then(|spec| spec.pointer("/runPolicy/suspend"))
                .and_then(Value::as_bool)
                .unwrap_or(false),
            finished: conditions.into_iter().flatten().any(|condition| {
                let kind = condition.get("type").and_then(Value::as_str);
                let status = condition.get("status").and_then(Value::as_str);
                matches!(kind, Some("Succeeded" | "Failed")) && status == Some("True")
            }),
            created: job.metadata.creation_timestamp.as_ref().map(|time| time.0),
        }
    }
}

fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities
        .into_iter()
        .flatten()
        .filter_map(|(name, quantity)| Some((name.clone(), milli(&quantity.0)?)))
        .collect()
}

fn add(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = to.entry(name.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = to.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

/// A container's requests; a limit without a request counts as one, which the API server makes explicit for stored pods anyway.
fn container_requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let mut requests = amounts(resources.and_then(|r| r.limits.as_ref()));
    requests.extend(amounts(resources.and_then(|r| r.requests.as_ref())));
    requests
}

/// What kube-scheduler counts: containers together with sidecars, or the largest init step where that is more, plus overhead; resources
/// named for the pod as a whole replace the sum.
fn pod_requests(spec: &PodSpec) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(
            &mut total,
            &container_requests(container.resources.as_ref()),
        );
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    let inits: &[Container] = spec.init_containers.as_deref().unwrap_or_default();
    for container in inits {
        let own = container_requests(container.resources.as_ref());
        let mut step = sidecars.clone();
        add(&mut step, &own);
        raise(&mut peak, &step);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = step;
        }
    }
    add(&mut total, &sidecars);
    raise(&mut total, &peak);
    total.extend(container_requests(spec.resources.as_ref()));
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total.insert("pods".into(), 1_000);
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> PodState {
        let pod: Pod =
            serde_saphyr::from_str(&format!("metadata: {{name: a, uid: u}}\nspec: {spec}\n"))
                .unwrap();
        PodState::of(&pod)
    }

    #[test]
    fn requests_count_sidecars_the_largest_init_step_and_limits_without_requests() {
        let pod = pod(r#"{nodeName: n, overhead: {cpu: 100m},
            containers: [{name: a, resources: {requests: {cpu: "1"}, limits: {nvidia.com/gpu: "2"}}}],
            initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 500m}}},
                             {name: i, resources: {requests: {cpu: "3"}}}]}"#);
        assert_eq!(pod.requests["cpu"], 3_600);
        assert_eq!(pod.requests["nvidia.com/gpu"], 2_000);
        assert_eq!(pod.requests["pods"], 1_000);
        assert!(pod.is_bound_and_live());
    }

    #[test]
    fn a_job_needs_min_available_or_the_sum_of_its_replicas() {
        let job = |policy: &str| -> JobState {
            let text = format!(
                "{{apiVersion: kubeflow.org/v1, kind: PyTorchJob, metadata: {{name: j}}, spec: {{runPolicy: {{{policy}}}, \
                 pytorchReplicaSpecs: {{Master: {{}}, Worker: {{replicas: 4}}}}}}}}"
            );
            JobState::of(&serde_saphyr::from_str::<DynamicObject>(&text).unwrap())
        };
        assert_eq!(job("").minimum, 5);
        assert_eq!(
            job("suspend: true, schedulingPolicy: {minAvailable: 3}").minimum,
            3
        );
        assert!(job("suspend: true").suspended);
    }
}
