//! The smaller writes to pods: release, wake, stamp, delete. The UID is a precondition of each.

use muster_core::action::{PodTarget, Write};
use muster_core::event::WriteOutcome;
use muster_core::ids::{NodeName, PlanId, ResourceVersion};
use muster_kubernetes::lite::LitePod;
use muster_kubernetes::{names, write};
use serde_json::Value;
use std::sync::Arc;
use tokio::time::Instant;

use super::Writer;
use super::step::{Request, Tried, annotation, pod_path, text};

/// Conflicts after which a patch is given up.
const CONFLICTS_MAX: u32 = 5;

fn is_gated(pod: &Value) -> bool {
    pod.pointer("/spec/schedulingGates")
        .and_then(Value::as_array)
        .is_some_and(|gates| {
            gates
                .iter()
                .any(|gate| gate.get("name").and_then(Value::as_str) == Some(names::GATE))
        })
}

impl Writer {
    /// Takes our gate off and confines the pod. Which gates and terms it has decides what the patch
    /// says: a plain pod's are known, any other is read first, and a plain one too when it has
    /// changed.
    pub(super) async fn release_pod(
        &self,
        write: &Write,
        pod: &PodTarget,
        pin: Option<&NodeName>,
        plain: bool,
        deadline: Instant,
    ) -> WriteOutcome {
        let mut attempts = self.attempts(write, deadline);
        if plain {
            let patch = write::release_plain_pod_patch(pod, pin);
            match attempts.send(&Request::patch(pod_path(pod), patch)).await {
                Tried::Done(_) => return WriteOutcome::Done(None),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } => {}
                Tried::Doubt => attempts.pause().await,
            }
        }
        for _ in 0..=CONFLICTS_MAX {
            let found = match attempts.read_pod(pod).await {
                Ok(found) => found,
                Err(outcome) => return outcome,
            };
            if !is_gated(&found) {
                return WriteOutcome::Done(None);
            }
            let lite: LitePod = match serde_json::from_value(found) {
                Ok(lite) => lite,
                Err(error) => return WriteOutcome::Refused(Arc::from(error.to_string())),
            };
            let patch = write::release_pod_patch(&lite, pin);
            match attempts.send(&Request::patch(pod_path(pod), patch)).await {
                Tried::Done(_) => return WriteOutcome::Done(None),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } => {}
                Tried::Doubt => attempts.pause().await,
            }
            if attempts.spent() {
                return attempts.unknown();
            }
        }
        WriteOutcome::Conflict(None)
    }

    /// Touches an annotation with a mark of this write alone. Doing it twice harms nobody.
    pub(super) async fn wake_pod(
        &self,
        write: &Write,
        pod: &PodTarget,
        plan: &PlanId,
        deadline: Instant,
    ) -> WriteOutcome {
        let mark = write.wake_mark(plan);
        let patch = write::wake_pod_patch(pod.uid.as_str(), &mark);
        let request = Request::patch(pod_path(pod), patch);
        let mut attempts = self.attempts(write, deadline);
        loop {
            match attempts.send(&request).await {
                Tried::Done(_) => return WriteOutcome::Done(None),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } | Tried::Doubt => attempts.pause().await,
            }
            let found = match attempts.read_pod(pod).await {
                Ok(found) => found,
                Err(outcome) => return outcome,
            };
            if annotation(&found, names::WOKEN_FOR) == Some(mark.as_str()) {
                return WriteOutcome::Done(None);
            }
            if attempts.spent() {
                return attempts.unknown();
            }
        }
    }

    /// Writes our epoch on an unbound pod. A pod that is bound meanwhile is a conflict.
    pub(super) async fn stamp_pod(
        &self,
        write: &Write,
        pod: &PodTarget,
        deadline: Instant,
    ) -> WriteOutcome {
        let mut attempts = self.attempts(write, deadline);
        let mut version = pod.resource_version.clone();
        let mut conflicts: u32 = 0;
        loop {
            let mark = format!("{version}.{}", self.wall.now().as_nanosecond());
            let patch = write::stamp_patch(pod.uid.as_str(), version.as_str(), write.epoch, &mark);
            match attempts.send(&Request::patch(pod_path(pod), patch)).await {
                Tried::Done(_) => return WriteOutcome::Done(None),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } => conflicts = conflicts.saturating_add(1),
                Tried::Doubt => attempts.pause().await,
            }
            let found = match attempts.read_pod(pod).await {
                Ok(found) => found,
                Err(outcome) => return outcome,
            };
            if annotation(&found, names::STAMP_MARK) == Some(mark.as_str()) {
                return WriteOutcome::Done(None);
            }
            if !text(&found, "/spec/nodeName").is_empty() || conflicts > CONFLICTS_MAX {
                return WriteOutcome::Conflict(None);
            }
            if attempts.spent() {
                return attempts.unknown();
            }
            version = ResourceVersion::from(text(&found, "/metadata/resourceVersion"));
        }
    }

    /// Deletes a pod by UID. One that is being deleted already is done.
    pub(super) async fn delete_pod(
        &self,
        write: &Write,
        pod: &PodTarget,
        deadline: Instant,
    ) -> WriteOutcome {
        let request = Request::delete(pod_path(pod), pod.uid.as_str());
        let mut attempts = self.attempts(write, deadline);
        loop {
            match attempts.send(&request).await {
                Tried::Done(_) => return WriteOutcome::Done(None),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { message, .. } => {
                    // Another UID under the name, or a change in between.
                    match attempts.read_pod(pod).await {
                        Err(outcome) => return outcome,
                        Ok(_) if attempts.spent() => {
                            return WriteOutcome::Unknown(Arc::from(message));
                        }
                        Ok(_) => attempts.pause().await,
                    }
                }
                Tried::Doubt => {
                    attempts.pause().await;
                    match attempts.read_pod(pod).await {
                        Err(outcome) => return outcome,
                        Ok(found) if !text(&found, "/metadata/deletionTimestamp").is_empty() => {
                            return WriteOutcome::Done(None);
                        }
                        Ok(_) if attempts.spent() => return attempts.unknown(),
                        Ok(_) => {}
                    }
                }
            }
        }
    }
}
