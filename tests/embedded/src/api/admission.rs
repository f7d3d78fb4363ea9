//! Admission inside the API server.
//!
//! MutatingAdmissionPolicies are stored, but their CEL is not run. What the policies of this project do is emulated
//! instead: a policy with the label `muster.dev/emulate` switches one of the built-in mutators on as long as a
//! binding names it. Tests and tools add functions of their own through `ApiServer::add_mutator`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::ApiError;
use super::resources::ResourceType;
use super::store::Store;
use crate::value;

/// The label on a MutatingAdmissionPolicy that names the mutator to run in its place.
pub const EMULATE_LABEL: &str = "muster.dev/emulate";
/// The annotation that marks a job as held by the scheduler, not by its user.
pub const HOLD_ANNOTATION: &str = "muster.dev/hold";
/// The scheduling gate of pods that wait for their gang.
pub const GANG_GATE: &str = "muster.dev/gang";
/// The scheduler whose jobs and pods the built-in mutators change.
pub const SCHEDULER_NAME: &str = "muster";

/// What is being done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is new.
    Create,
    /// It is changed.
    Update,
}

/// What an admission function may know besides the object.
#[derive(Debug)]
pub struct AdmissionContext<'a> {
    /// What is being done.
    pub operation: Operation,
    /// The resource.
    pub ty: &'a ResourceType,
    /// Namespace, `""` for cluster-wide objects.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// Who asks.
    pub client: &'a str,
    /// The object before an update.
    pub old: Option<&'a Value>,
}

/// An admission function: changes the object or refuses the request. It must not call the API server.
pub type Mutator =
    Arc<dyn Fn(&mut Value, &AdmissionContext<'_>) -> Result<(), ApiError> + Send + Sync>;

/// Runs the built-in mutators that policies in the store have switched on.
pub fn emulate(store: &Store, object: &mut Value, context: &AdmissionContext<'_>) {
    if context.ty.is("kubeflow.org", "pytorchjobs") && active(store, "suspend-pytorchjobs") {
        suspend_pytorchjob(object, context.old);
    }
    if context.operation == Operation::Create && context.ty.is_pod() && active(store, "gate-pods") {
        gate_pod(object, context.namespace);
    }
}

/// The same for a write of a status; `old` is the object as it is stored.
pub fn emulate_status(store: &Store, ty: &ResourceType, object: &mut Value, old: &Value) {
    if ty.is("kubeflow.org", "pytorchjobs") && active(store, "show-queued") {
        show_queued(object, old);
    }
}

fn active(store: &Store, mutator: &str) -> bool {
    const GROUP: &str = "admissionregistration.k8s.io";
    let table = |plural| store.find(GROUP, plural).and_then(|i| store.tables.get(i));
    let (Some(policies), Some(bindings)) = (
        table("mutatingadmissionpolicies"),
        table("mutatingadmissionpolicybindings"),
    ) else {
        return false;
    };
    policies
        .objects
        .values()
        .filter(|p| value::text(&p.value, &["metadata", "labels", EMULATE_LABEL]) == mutator)
        .any(|p| {
            let name = value::name(&p.value);
            bindings
                .objects
                .values()
                .any(|b| value::text(&b.value, &["spec", "policyName"]) == name)
        })
}

/// The label of a job that Kueue queues.
const KUEUE_LABEL: &str = "kueue.x-k8s.io/queue-name";
/// Marks of a pod that belongs to a gang without being a PyTorchJob's.
const GANG_LABELS: [&str; 2] = ["muster.dev/gang", "scheduling.x-k8s.io/pod-group"];
/// The namespace whose pods are never gated: the scheduler's own.
const OWN_NAMESPACE: &str = "muster-system";

/// The match conditions and the mutation of `muster-suspend-pytorchjobs`: holds a job that is new,
/// or that its user has just resumed.
fn suspend_pytorchjob(job: &mut Value, old: Option<&Value>) {
    let ours = value::at(job, &["spec", "pytorchReplicaSpecs"])
        .and_then(Value::as_object)
        .is_some_and(|roles| {
            roles
                .values()
                .any(|r| value::text(r, &["template", "spec", "schedulerName"]) == SCHEDULER_NAME)
        });
    let managed_by = value::text(job, &["spec", "runPolicy", "managedBy"]);
    let by_operator = matches!(managed_by, "" | "kubeflow.org/training-operator");
    let by_kueue = value::at(job, &["metadata", "labels", KUEUE_LABEL]).is_some();
    let queueable = old.is_none_or(|old| {
        let released = hold(job) == "released" && hold(old) == "queued";
        is_suspended(old) && !released && !has_ended(old)
    });
    if ours && by_operator && !by_kueue && queueable && !is_suspended(job) {
        value::set(job, &["spec", "runPolicy", "suspend"], true);
        value::set(job, &["metadata", "annotations", HOLD_ANNOTATION], "queued");
    }
}

fn hold(job: &Value) -> &str {
    value::text(job, &["metadata", "annotations", HOLD_ANNOTATION])
}

fn is_suspended(job: &Value) -> bool {
    value::flag(job, &["spec", "runPolicy", "suspend"])
}

fn has_ended(job: &Value) -> bool {
    ["Succeeded", "Failed"].iter().any(|kind| {
        value::condition(job, kind).is_some_and(|c| value::text(c, &["status"]) == "True")
    })
}

/// Puts a condition `Queued` behind the `Suspended` of a held job, and takes it out of any other.
fn show_queued(job: &mut Value, old: &Value) {
    let conditions = value::items(job, &["status", "conditions"]).to_vec();
    let is = |c: &Value, kind: &str, status: &str| {
        value::text(c, &["type"]) == kind && value::text(c, &["status"]) == status
    };
    let ours = |c: &Value| {
        value::text(c, &["type"]) == "Queued" && value::text(c, &["reason"]) == "MusterQueued"
    };
    let Some(last) = conditions.last() else {
        return;
    };
    let held = hold(old) == "queued" && is_suspended(old);
    let marked = !hold(old).is_empty() || conditions.iter().any(ours);
    let differs = if held {
        is(last, "Suspended", "True")
    } else {
        is(last, "Suspended", "False") || conditions.iter().any(ours)
    };
    if !marked || !differs {
        return;
    }
    let others: Vec<Value> = conditions.iter().filter(|c| !ours(c)).cloned().collect();
    let wanted = if held {
        let since = value::text(last, &["lastTransitionTime"]);
        let message = format!(
            "queued by Muster: `kubectl describe gang {}` says why",
            value::name(old)
        );
        let queued = json!({"type": "Queued", "status": "True", "reason": "MusterQueued",
            "message": message, "lastTransitionTime": since, "lastUpdateTime": since});
        others.into_iter().chain([queued]).collect()
    } else {
        let (over, rest): (Vec<Value>, Vec<Value>) = others
            .into_iter()
            .partition(|c| is(c, "Suspended", "False"));
        [over, rest].concat()
    };
    value::set(job, &["status", "conditions"], Value::Array(wanted));
}

/// The constraints, the match conditions and the mutation of `muster-gate-pods`.
fn gate_pod(pod: &mut Value, namespace: &str) {
    let of_job = value::controller(pod).is_some_and(|o| {
        value::text(o, &["kind"]) == "PyTorchJob"
            && value::text(o, &["apiVersion"]).starts_with("kubeflow.org/")
    });
    if namespace == OWN_NAMESPACE
        || value::text(pod, &["spec", "schedulerName"]) != SCHEDULER_NAME
        || !value::text(pod, &["spec", "nodeName"]).is_empty()
        || of_job
        || !(names_a_gang(pod) || asks_for_devices(pod))
    {
        return;
    }
    let gates = value::list(pod, &["spec", "schedulingGates"]);
    if !gates.iter().any(|g| value::text(g, &["name"]) == GANG_GATE) {
        gates.push(json!({"name": GANG_GATE}));
    }
}

fn names_a_gang(pod: &Value) -> bool {
    GANG_LABELS
        .iter()
        .any(|label| value::at(pod, &["metadata", "labels", label]).is_some())
}

fn asks_for_devices(pod: &Value) -> bool {
    let device = |name: &String| name == "nvidia.com/gpu" || name.starts_with("nvidia.com/mig-");
    let containers = value::items(pod, &["spec", "containers"]);
    let before = value::items(pod, &["spec", "initContainers"]);
    containers.iter().chain(before).any(|container| {
        value::at(container, &["resources", "limits"])
            .and_then(Value::as_object)
            .is_some_and(|limits| limits.keys().any(device))
    })
}
