//! Changes of PyTorchJobs: released, repinned, held, stripped.

use std::collections::BTreeMap;

use muster_core::action::JobChange;
use muster_core::ids::{NodeName, PlanId, RoleName};
use serde_json::{Map, Value, json};

use crate::names;
use crate::pins::{self, Pinned};

const SUSPEND: &[&str] = &["spec", "runPolicy", "suspend"];
const CONDITIONS: &[&str] = &["status", "conditions"];

/// The merge patch that makes `current`, the job as it was read, what `change` says; `None` when it
/// is so already.
///
/// For [`JobChange::Show`] it is a patch of the subresource `status`. Else it touches `spec.runPolicy.suspend`, Muster's annotations and the required node affinity
/// of each role's template, and carries UID and resourceVersion as preconditions. What the user has
/// written stays, also what was changed since Muster last wrote.
pub fn job_patch(
    current: &Value,
    change: &JobChange,
    uid: &str,
    resource_version: &str,
) -> Option<Value> {
    let mut wanted = current.clone();
    if *change == JobChange::Show {
        pins::set(&mut wanted, CONDITIONS, Some(shown_conditions(current)));
        return with_preconditions(difference(current, &wanted)?, uid, resource_version);
    }
    let recorded = recorded_pins(current);
    for (role, pins) in &recorded {
        if let Some(spec) = pins::template_spec_mut(&mut wanted, role) {
            pins::strip(spec, pins);
        }
    }
    match change {
        JobChange::Release { plan, pins } => {
            confine(&mut wanted, plan, pins);
            annotate(&mut wanted, names::HOLD, Some(names::HOLD_RELEASED));
            if is_suspended(current) {
                pins::set(&mut wanted, SUSPEND, Some(Value::Bool(false)));
            }
        }
        JobChange::Repin { plan, pins } => confine(&mut wanted, plan, pins),
        JobChange::Hold => {
            annotate(&mut wanted, names::HOLD, Some(names::HOLD_QUEUED));
            annotate(&mut wanted, names::PLAN, None);
            annotate(&mut wanted, names::PINNED, None);
            pins::set(&mut wanted, SUSPEND, Some(Value::Bool(true)));
        }
        JobChange::Show => {}
        JobChange::Strip => {
            for key in [names::HOLD, names::PLAN, names::PINNED] {
                annotate(&mut wanted, key, None);
            }
        }
    }
    with_preconditions(difference(current, &wanted)?, uid, resource_version)
}

fn with_preconditions(mut patch: Value, uid: &str, resource_version: &str) -> Option<Value> {
    pins::set(&mut patch, &["metadata", "uid"], Some(json!(uid)));
    pins::set(
        &mut patch,
        &["metadata", "resourceVersion"],
        Some(json!(resource_version)),
    );
    Some(patch)
}

/// The conditions of a suspended job, with ours last where we hold it, and without ours where its
/// user does. What the admission policy `muster-show-queued` does when the operator writes.
fn shown_conditions(job: &Value) -> Value {
    let found = CONDITIONS
        .iter()
        .try_fold(job, |at, key| at.get(key))
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let is = |condition: &Value, key: &str, value: &str| {
        condition.get(key).is_some_and(|found| found == value)
    };
    let mut conditions: Vec<Value> = found
        .iter()
        .filter(|condition| !is(condition, "reason", names::QUEUED_REASON))
        .cloned()
        .collect();
    let suspension = conditions
        .iter()
        .find(|condition| is(condition, "type", "Suspended") && is(condition, "status", "True"));
    let held = is_suspended(job) && hold_mark(job) == Some(names::HOLD_QUEUED);
    if let Some(suspension) = suspension.filter(|_| held) {
        let mut queued = suspension.clone();
        let name = job
            .get("metadata")
            .and_then(|metadata| metadata.get("name"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        for (key, value) in [
            ("type", names::QUEUED_CONDITION.to_owned()),
            ("reason", names::QUEUED_REASON.to_owned()),
            ("message", names::queued_message(name)),
        ] {
            pins::set(&mut queued, &[key], Some(Value::from(value)));
        }
        conditions.push(queued);
    }
    Value::Array(conditions)
}

fn hold_mark(job: &Value) -> Option<&str> {
    job.get("metadata")?
        .get("annotations")?
        .get(names::HOLD)?
        .as_str()
}

fn is_suspended(job: &Value) -> bool {
    SUSPEND
        .iter()
        .try_fold(job, |at, key| at.get(key))
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

fn recorded_pins(job: &Value) -> Pinned {
    pins::recorded(
        job.get("metadata")
            .and_then(|metadata| metadata.get("annotations"))
            .and_then(|annotations| annotations.get(names::PINNED))
            .and_then(Value::as_str),
    )
}

/// Puts the pins into a job that has none, and records them and the plan.
fn confine(job: &mut Value, plan: &PlanId, nodes: &BTreeMap<RoleName, Vec<NodeName>>) {
    let mut done = Pinned::new();
    for (role, nodes) in nodes {
        let nodes: Vec<String> = nodes.iter().map(|node| node.as_str().to_owned()).collect();
        let applied =
            pins::template_spec_mut(job, role.as_str()).and_then(|spec| pins::apply(spec, &nodes));
        if let Some(pins) = applied {
            done.insert(role.as_str().to_owned(), pins);
        }
    }
    let record = (!done.is_empty()).then(|| json!(done).to_string());
    annotate(job, names::PINNED, record.as_deref());
    annotate(job, names::PLAN, Some(plan.as_str()));
}

fn annotate(job: &mut Value, key: &str, value: Option<&str>) {
    pins::set(
        job,
        &["metadata", "annotations", key],
        value.map(Value::from),
    );
}

/// The merge patch that turns `current` into `wanted`; `None` when they are equal. A list is
/// replaced as a whole, a field that is gone becomes `null`.
fn difference(current: &Value, wanted: &Value) -> Option<Value> {
    if current == wanted {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (current, wanted) else {
        return Some(wanted.clone());
    };
    let mut patch = Map::new();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in after {
        let change = match before.get(key) {
            Some(old) => difference(old, value),
            None => Some(value.clone()),
        };
        if let Some(change) = change {
            patch.insert(key.clone(), change);
        }
    }
    Some(Value::Object(patch))
}
