//! Gang objects and their status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use muster_core::ids::GangKey;
use muster_core::record::{GangStatus as CoreStatus, Phase, SlotRecord};
use muster_core::workload::WorkloadKind;

use crate::gang::{Condition, Gang, GangSpec, GangStatus, Member, RECORD_VERSION, WorkloadRef};

/// Longest message in a status, characters.
const MESSAGE_MAX: usize = 1024;

/// Type of the condition of a gang with keys under `muster.dev/` that nobody reads.
const KEYS_IGNORED: &str = "KeysIgnored";

/// Type of the condition of a gang with a member that runs on a GPU that has failed.
const GPU_FAILED: &str = "GpuFailed";

/// A Gang object without status. It belongs to its PyTorchJob or Pod by owner reference. A labelled
/// gang has no owner; the key of a PodGroup's gang does not carry the PodGroup's UID, so [`own`]
/// adds that owner once its UID is known.
pub fn gang_object(key: &GangKey, kind: WorkloadKind, name: &str, object: &str) -> Gang {
    let mut gang = Gang::new(
        object,
        GangSpec {
            workload: WorkloadRef {
                kind: kind.as_str().to_owned(),
                name: name.to_owned(),
                uid: key.uid.to_string(),
            },
        },
    );
    gang.metadata.namespace = Some(key.namespace.as_str().to_owned());
    if matches!(kind, WorkloadKind::PyTorchJob | WorkloadKind::Pod) {
        own(&mut gang, kind, name, &key.uid);
    }
    gang
}

/// Makes a Gang belong to the object of this kind, name and UID: it is deleted with it. Does
/// nothing for a labelled gang, which has no object.
pub fn own(gang: &mut Gang, kind: WorkloadKind, name: &str, uid: &str) {
    let api_version = match kind {
        WorkloadKind::PyTorchJob => "kubeflow.org/v1",
        WorkloadKind::PodGroup => "scheduling.x-k8s.io/v1alpha1",
        WorkloadKind::Pod => "v1",
        WorkloadKind::Label => return,
    };
    gang.metadata.owner_references = Some(vec![OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.as_str().to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller: Some(false),
        block_owner_deletion: Some(false),
    }]);
}

/// The status to write. A condition keeps its transition time while its status stays the same.
///
/// Without a plan the epoch stays what it was, so that a plan of an earlier leader is refused by the
/// API server also after a later one has given its plan back.
pub fn status(status: &CoreStatus, previous: Option<&GangStatus>, now: Timestamp) -> GangStatus {
    let message = status.reason.as_ref().map(|why| cut(&why.to_string()));
    let reason = status
        .reason
        .as_ref()
        .map_or(status.phase.as_str(), |why| why.code());
    let plan = status.plan.as_ref();
    let epoch = match plan {
        Some(plan) => Some(i64::try_from(plan.epoch.0).unwrap_or(i64::MAX)),
        None => previous.and_then(|previous| previous.epoch),
    };
    GangStatus {
        record_version: RECORD_VERSION,
        plan_id: plan.map(|plan| plan.id.as_str().to_owned()),
        epoch,
        phase: status.phase.as_str().to_owned(),
        reason: Some(reason.to_owned()),
        message: message.clone(),
        bound: i64::from(status.bound),
        total: i64::from(status.total),
        minimum: i64::from(status.minimum),
        members_bound: Some(match status.total {
            0 => format!("{}/?", status.bound),
            total => format!("{}/{total}", status.bound),
        }),
        members: plan
            .map(|plan| plan.slots.iter().map(member).collect())
            .unwrap_or_default(),
        conditions: conditions(status, reason, message.unwrap_or_default(), previous, now),
        observed_generation: status.observed_generation,
    }
}

fn member(slot: &SlotRecord) -> Member {
    Member {
        role: slot.role.as_str().to_owned(),
        index: i64::from(slot.index),
        node: slot.node.as_str().to_owned(),
        devices: slot
            .devices
            .iter()
            .map(|uuid| uuid.as_str().to_owned())
            .collect(),
        pod: slot.pod_name.as_deref().map(str::to_owned),
        pod_uid: slot.pod.as_ref().map(|uid| uid.as_str().to_owned()),
        bound: slot.bound,
        ended: slot.ended,
    }
}

fn conditions(
    status: &CoreStatus,
    reason: &str,
    message: String,
    previous: Option<&GangStatus>,
    now: Timestamp,
) -> Vec<Condition> {
    let placed = status.plan.as_ref().map(|plan| {
        let mut nodes: Vec<_> = plan.slots.iter().map(|slot| &slot.node).collect();
        nodes.sort();
        nodes.dedup();
        format!(
            "plan {}: {} members on {} nodes",
            plan.id,
            plan.slots.len(),
            nodes.len()
        )
    });
    let running = status.phase == Phase::Running;
    let both = [
        match placed {
            Some(plan) => ("Placed", true, "Planned", plan),
            None => ("Placed", false, reason, message.clone()),
        },
        ("Running", running, reason, message),
    ];
    // There only where there is something to say.
    let ignored = status.ignored.as_ref();
    let ignored = ignored.map(|keys| (KEYS_IGNORED, true, "UnknownKey", cut(keys)));
    let failing = status.failing.as_ref();
    let failing = failing.map(|what| (GPU_FAILED, true, "GpuFailed", cut(what)));
    both.into_iter()
        .chain(ignored)
        .chain(failing)
        .map(|(type_, holds, reason, message)| {
            let holds = if holds { "True" } else { "False" };
            let unchanged = previous
                .and_then(|previous| {
                    previous
                        .conditions
                        .iter()
                        .find(|condition| condition.type_ == type_)
                })
                .filter(|condition| condition.status == holds);
            Condition {
                type_: type_.to_owned(),
                status: holds.to_owned(),
                observed_generation: status.observed_generation,
                last_transition_time: unchanged.map_or_else(
                    || now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    |condition| condition.last_transition_time.clone(),
                ),
                reason: reason.to_owned(),
                message,
            }
        })
        .collect()
}

/// At most [`MESSAGE_MAX`] characters; a longer text ends in `...`.
fn cut(text: &str) -> String {
    if text.chars().count() <= MESSAGE_MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(MESSAGE_MAX.saturating_sub(3)).collect();
    short.push_str("...");
    short
}
