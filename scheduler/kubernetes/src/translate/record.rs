//! Gang objects: what was promised, read back after a restart.

use std::sync::Arc;

use muster_core::ids::{
    DeviceUuid, Epoch, GangKey, NodeName, PlanId, PodUid, ResourceVersion, RoleName,
};
use muster_core::record::{GangRecord, Phase, PlanRecord, SlotRecord};
use muster_core::workload::WorkloadKind;

use super::{shortened, text};
use crate::gang::{Gang, GangStatus, RECORD_VERSION};

/// What a Gang object says. An error when it does not even say whose it is; a plan that cannot be
/// read is part of the answer, so that the gang is left alone.
pub fn record(gang: &Gang) -> Result<GangRecord, String> {
    let meta = &gang.metadata;
    let workload = &gang.spec.workload;
    let kind = [
        WorkloadKind::PyTorchJob,
        WorkloadKind::PodGroup,
        WorkloadKind::Label,
        WorkloadKind::Pod,
    ]
    .into_iter()
    .find(|kind| kind.as_str() == workload.kind)
    .ok_or_else(|| {
        format!(
            "spec.workload.kind is {}: must be PyTorchJob, PodGroup, Label or Pod",
            shortened(&workload.kind)
        )
    })?;
    for (field, value) in [
        ("metadata.name", text(meta.name.as_ref())),
        ("metadata.namespace", text(meta.namespace.as_ref())),
        ("spec.workload.uid", workload.uid.as_str()),
    ] {
        if value.is_empty() {
            return Err(format!("{field} is empty: must be set"));
        }
    }
    let unwritten = GangStatus::default();
    let status = gang.status.as_ref().unwrap_or(&unwritten);
    Ok(GangRecord {
        key: GangKey::new(text(meta.namespace.as_ref()), &workload.uid),
        object: Arc::from(text(meta.name.as_ref())),
        object_uid: Arc::from(text(meta.uid.as_ref())),
        resource_version: ResourceVersion::from(text(meta.resource_version.as_ref())),
        kind,
        name: Arc::from(workload.name.as_str()),
        phase: Phase::parse(&status.phase).unwrap_or_default(),
        plan: plan(status).map_err(Arc::from),
    })
}

fn plan(status: &GangStatus) -> Result<Option<PlanRecord>, String> {
    if status.record_version > RECORD_VERSION {
        return Err(format!(
            "status.recordVersion is {}: this version reads up to {RECORD_VERSION}",
            status.record_version
        ));
    }
    let Some(id) = status.plan_id.as_deref().filter(|id| !id.is_empty()) else {
        return Ok(None);
    };
    let epoch = status
        .epoch
        .and_then(|epoch| u64::try_from(epoch).ok())
        .ok_or("status.epoch is missing: must be set where status.planId is")?;
    let slots = status
        .members
        .iter()
        .enumerate()
        .map(|(at, member)| {
            if member.node.is_empty() || member.role.is_empty() {
                return Err(format!("status.members[{at}] lacks role or node"));
            }
            Ok(SlotRecord {
                role: RoleName::from(member.role.as_str()),
                index: u32::try_from(member.index).map_err(|_| {
                    format!(
                        "status.members[{at}].index is {}: must not be negative",
                        member.index
                    )
                })?,
                node: NodeName::from(member.node.as_str()),
                devices: member
                    .devices
                    .iter()
                    .map(|uuid| DeviceUuid::from(uuid.as_str()))
                    .collect(),
                pod: member.pod_uid.as_deref().map(PodUid::from),
                pod_name: member.pod.as_deref().map(Arc::from),
                bound: member.bound,
                ended: member.ended,
            })
        })
        .collect::<Result<Vec<_>, String>>()?;
    Ok(Some(PlanRecord {
        id: PlanId::from(id),
        epoch: Epoch(epoch),
        minimum: u32::try_from(status.minimum).unwrap_or(0),
        slots,
    }))
}
