//! Status of a PyTorchJob as training-operator keeps it: conditions, counts per role, times.

use serde_json::{Value, json};

use crate::value;

/// How many pods of a role are in which phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) active: i64,
    pub(crate) running: i64,
    pub(crate) succeeded: i64,
    pub(crate) failed: i64,
}

impl Counts {
    pub(crate) fn add(&mut self, phase: &str) {
        match phase {
            "Running" => {
                self.active += 1;
                self.running += 1;
            }
            "Succeeded" => self.succeeded += 1,
            "Failed" => self.failed += 1,
            _ => {}
        }
    }
}

/// Whether the condition is there and true.
pub(crate) fn is_true(job: &Value, kind: &str) -> bool {
    value::condition(job, kind).is_some_and(|c| value::text(c, &["status"]) == "True")
}

/// Whether the job has ended.
pub(crate) fn is_finished(job: &Value) -> bool {
    is_true(job, "Succeeded") || is_true(job, "Failed")
}

/// Sets a condition the way training-operator does: it goes to the end of the list, and what it excludes becomes false.
pub(crate) fn set(
    job: &mut Value,
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: &str,
) {
    let status = if status { "True" } else { "False" };
    let same = value::condition(job, kind).is_some_and(|c| {
        value::text(c, &["status"]) == status && value::text(c, &["reason"]) == reason
    });
    if same {
        return;
    }
    let since = value::condition(job, kind)
        .filter(|c| value::text(c, &["status"]) == status)
        .map_or(now, |c| value::text(c, &["lastTransitionTime"]))
        .to_owned();
    let conditions = value::list(job, &["status", "conditions"]);
    conditions.retain(|c| {
        let other = value::text(c, &["type"]);
        // Running and Restarting replace each other.
        let pair = matches!(
            (kind, other),
            ("Running", "Restarting") | ("Restarting", "Running")
        );
        other != kind && !pair
    });
    for other in conditions.iter_mut() {
        let ends =
            matches!(kind, "Succeeded" | "Failed") || (kind == "Suspended" && status == "True");
        if ends && value::text(other, &["type"]) == "Running" {
            value::set(other, &["status"], "False");
        }
    }
    conditions.push(
        json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastUpdateTime": now, "lastTransitionTime": since}),
    );
}

/// Writes the counts of a role.
pub(crate) fn set_counts(job: &mut Value, role: &str, counts: Counts, name: &str) {
    let selector = format!(
        "training.kubeflow.org/job-name={name},training.kubeflow.org/operator-name=pytorchjob-controller,training.kubeflow.org/replica-type={}",
        role.to_lowercase()
    );
    let mut status = json!({"selector": selector});
    for (key, n) in [
        ("active", counts.active),
        ("succeeded", counts.succeeded),
        ("failed", counts.failed),
    ] {
        if n > 0 {
            value::set(&mut status, &[key], n);
        }
    }
    value::set(job, &["status", "replicaStatuses", role], status);
}
