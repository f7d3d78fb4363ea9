//! Admission inside the API server.
//!
//! MutatingAdmissionPolicies are stored, but their CEL is not run. What the policies of this project do is emulated
//! instead: a policy with the label `muster.dev/emulate` switches one of the two built-in mutators on as long as a
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
    if context.operation != Operation::Create {
        return;
    }
    if context.ty.is("kubeflow.org", "pytorchjobs") && active(store, "suspend-pytorchjobs") {
        suspend_pytorchjob(object);
    }
    if context.ty.is_pod() && active(store, "gate-pods") {
        gate_pod(object);
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

fn suspend_pytorchjob(job: &mut Value) {
    let ours = value::at(job, &["spec", "pytorchReplicaSpecs"])
        .and_then(Value::as_object)
        .is_some_and(|roles| {
            roles
                .values()
                .any(|r| value::text(r, &["template", "spec", "schedulerName"]) == SCHEDULER_NAME)
        });
    if ours && !value::flag(job, &["spec", "runPolicy", "suspend"]) {
        value::set(job, &["spec", "runPolicy", "suspend"], true);
        value::set(job, &["metadata", "annotations", HOLD_ANNOTATION], "queued");
    }
}

fn gate_pod(pod: &mut Value) {
    let of_job = value::controller(pod).is_some_and(|o| value::text(o, &["kind"]) == "PyTorchJob");
    if value::text(pod, &["spec", "schedulerName"]) != SCHEDULER_NAME || of_job {
        return;
    }
    let gates = value::list(pod, &["spec", "schedulingGates"]);
    if !gates.iter().any(|g| value::text(g, &["name"]) == GANG_GATE) {
        gates.push(json!({"name": GANG_GATE}));
    }
}
