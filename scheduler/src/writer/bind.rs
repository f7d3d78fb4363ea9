//! Binding: the write that cannot be taken back.
//!
//! UID and resourceVersion are preconditions, so a Binding that arrives late, or twice, applies at
//! most once and never to a pod that another leader has stamped. After a conflict the pod is read:
//! bound to this node is done; unbound, not deleted, not gated and not stamped by a later leader is
//! tried again with the version just read; anything else is refused.
//!
//! A Binding for which no Bind is held any more is not sent, however long it stood in line: whoever asked
//! has given up, and the pod may be on its way to another node.
//!
//! An attempt whose answer was lost may apply as long as the pod is at the version that it cites. A
//! later attempt that is refused says nothing about it: the outcome is then not known, and tells
//! that version.

use std::sync::Arc;

use muster_core::action::{PodTarget, Write};
use muster_core::event::WriteOutcome;
use muster_core::ids::{DeviceUuid, Epoch, NodeName, PlanId, ResourceVersion};
use muster_core::planted::{self, Bug};
use muster_kubernetes::write;
use serde_json::Value;
use tokio::time::Instant;

use super::Writer;
use super::step::{Request, Tried, epoch_of, pod_path, text};

/// Conflicts after which a Binding is given up: each needs somebody else's write in between.
const CONFLICTS_MAX: u32 = 3;

/// Said of a Binding for which nobody waits.
const GIVEN_UP: &str = "kube-scheduler has given this Bind up";

/// What a pod says about a Binding in doubt.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Bound to the node.
    Bound,
    /// It may be tried again with this resourceVersion.
    Free(ResourceVersion),
    /// It may not be bound, and why.
    Closed(String),
}

fn look(pod: &Value, node: &NodeName, epoch: Epoch) -> Found {
    let bound = text(pod, "/spec/nodeName");
    if bound == node.as_str() {
        return Found::Bound;
    }
    if !bound.is_empty() {
        return Found::Closed(format!("the pod is bound to node {bound}"));
    }
    if pod
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|at| !at.is_null())
    {
        return Found::Closed("the pod is being deleted".into());
    }
    let gates = pod
        .pointer("/spec/schedulingGates")
        .and_then(Value::as_array);
    if gates.is_some_and(|gates| !gates.is_empty()) {
        return Found::Closed("the pod has scheduling gates".into());
    }
    if epoch_of(pod).is_some_and(|stamp| stamp > epoch) {
        return Found::Closed("a later leader has stamped the pod".into());
    }
    Found::Free(text(pod, "/metadata/resourceVersion").into())
}

/// The outcome, given the version that an unanswered attempt cites and that the pod may still be at.
fn with_doubt(outcome: WriteOutcome, doubtful: Option<ResourceVersion>) -> WriteOutcome {
    match (outcome, doubtful) {
        (WriteOutcome::Refused(said) | WriteOutcome::Unknown(said), Some(cited)) => {
            WriteOutcome::BindingUnknown { cited, said }
        }
        (outcome, _) => outcome,
    }
}

impl Writer {
    pub(super) async fn bind(
        &self,
        write: &Write,
        pod: &PodTarget,
        node: &NodeName,
        plan: &PlanId,
        devices: &[DeviceUuid],
        deadline: Instant,
    ) -> WriteOutcome {
        let mut attempts = self.attempts(write, deadline);
        let mut target = pod.clone();
        let mut conflicts: u32 = 0;
        let mut doubtful: Option<ResourceVersion> = None;
        loop {
            if !self.binds.awaits(&pod.uid) {
                return with_doubt(WriteOutcome::Refused(Arc::from(GIVEN_UP)), doubtful);
            }
            let binding = write::binding(&target, node, plan, write.epoch, devices);
            let body = match serde_json::to_value(binding) {
                Ok(body) => body,
                Err(error) => return WriteOutcome::Refused(Arc::from(error.to_string())),
            };
            let request = Request::post(format!("{}/binding", pod_path(pod)), body);
            match attempts.send(&request).await {
                Tried::Done(_) => return WriteOutcome::Done(None),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return with_doubt(outcome, doubtful),
                Tried::Conflict { .. } => conflicts = conflicts.saturating_add(1),
                Tried::Doubt if planted::is(Bug::LostAnswerIsSuccess) => {
                    return WriteOutcome::Done(None);
                }
                Tried::Doubt if planted::is(Bug::LostAnswerIsRefusal) => {
                    return WriteOutcome::Refused(Arc::from("no answer"));
                }
                Tried::Doubt => {
                    doubtful = Some(target.resource_version.clone());
                    attempts.pause().await;
                }
            }
            let found = match attempts.read_pod(pod).await {
                Ok(found) => found,
                Err(outcome) => return with_doubt(outcome, doubtful),
            };
            match look(&found, node, write.epoch) {
                Found::Bound => return WriteOutcome::Done(None),
                Found::Closed(why) => return WriteOutcome::Refused(Arc::from(why)),
                Found::Free(version) => {
                    // Read after the attempt: at another version now, the pod has moved on from it.
                    doubtful.take_if(|cited| *cited != version);
                    target.resource_version = version;
                }
            }
            if conflicts > CONFLICTS_MAX {
                let said = Arc::from("the pod is changed again and again");
                return with_doubt(WriteOutcome::Refused(said), doubtful);
            }
            if attempts.spent() {
                return with_doubt(attempts.unknown(), doubtful);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_kubernetes::names;
    use serde_json::json;

    #[test]
    fn what_a_pod_says_about_a_binding_in_doubt() {
        let node = NodeName::from("n1");
        let say = |pod: Value| look(&pod, &node, Epoch(5));
        assert_eq!(say(json!({"spec": {"nodeName": "n1"}})), Found::Bound);
        assert!(matches!(
            say(json!({"spec": {"nodeName": "n2"}})),
            Found::Closed(_)
        ));
        assert!(matches!(
            say(json!({"metadata": {"deletionTimestamp": "t"}})),
            Found::Closed(_)
        ));
        assert!(matches!(
            say(json!({"spec": {"schedulingGates": [{"name": "g"}]}})),
            Found::Closed(_)
        ));
        let stamped = |epoch: &str| json!({"metadata": {"resourceVersion": "7", "annotations": {names::EPOCH: epoch}}});
        assert!(matches!(say(stamped("6")), Found::Closed(_)));
        assert_eq!(say(stamped("5")), Found::Free("7".into()));
    }
}
