//! PodGroups of scheduler-plugins.

use std::sync::Arc;

use muster_core::ids::{GangKey, ResourceVersion};
use muster_core::workload::{Hold, MEMBERS_MAX, MemberSource, Shown, Workload, WorkloadKind};
use serde_json::Value;

use super::{Problem, created_seconds, settings, text};
use crate::lite::LitePodGroup;
use crate::names;

/// Key of a PodGroup's gang: `podgroup/<name>` in the namespace. Pods name their PodGroup and do
/// not know its UID.
pub(super) fn key(namespace: &str, name: &str) -> GangKey {
    GangKey::new(namespace, &format!("podgroup/{name}"))
}

/// A PodGroup. `minMember` absent or 0 means all members, and who they are the pods say.
///
/// `None` when a PyTorchJob controls it: training-operator made it as a copy of the job, loses
/// queue and priority on the way, and the job itself is what counts.
pub fn pod_group(group: &LitePodGroup) -> Option<Workload> {
    let meta = &group.metadata;
    let made_from_job = meta.owner_references.iter().flatten().any(|owner| {
        owner.controller == Some(true)
            && owner.kind == "PyTorchJob"
            && owner
                .api_version
                .starts_with(&format!("{}/", names::KUBEFLOW_GROUP))
    });
    if made_from_job {
        return None;
    }
    let name = text(meta.name.as_ref());
    let (minimum, problem) = match minimum(&group.spec) {
        Ok(minimum) => (minimum, None),
        Err(problem) => (None, Some(problem)),
    };
    Some(Workload {
        key: key(text(meta.namespace.as_ref()), name),
        kind: WorkloadKind::PodGroup,
        name: Arc::from(name),
        uid: Arc::from(text(meta.uid.as_ref())),
        resource_version: ResourceVersion::from(text(meta.resource_version.as_ref())),
        generation: meta.generation.unwrap_or(0),
        created_seconds: created_seconds(meta),
        priority: 0,
        ours: true,
        members: MemberSource::Pods,
        minimum,
        hold: Hold::Free,
        shown: Shown::Nothing,
        finished: None,
        invalid: problem.map(Into::into),
        settings: settings(meta),
    })
}

fn minimum(spec: &Value) -> Result<Option<u32>, Problem> {
    match spec.get("minMember") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => super::job::count(value)
            .map(|count| (count > 0).then_some(count))
            .ok_or_else(|| {
                Problem::new(
                    "spec.minMember",
                    &super::job::shown(value),
                    format!("must be a whole number from 0 to {MEMBERS_MAX}"),
                )
            }),
    }
}
