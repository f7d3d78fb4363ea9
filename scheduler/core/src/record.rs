//! The durable side of a gang: what its Gang object says.
//!
//! A plan that is not in here does not exist: nothing is released before the write that put it
//! here is confirmed, and a restart finds everything that was promised.

use std::sync::Arc;

use crate::ids::{DeviceUuid, Epoch, GangKey, NodeName, PlanId, PodUid, ResourceVersion, RoleName};
use crate::reason::Reason;
use crate::sharing::Shared;
use crate::workload::WorkloadKind;

/// A member's place in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRecord {
    /// Role of the member.
    pub role: RoleName,
    /// Index within the role.
    pub index: u32,
    /// Planned node.
    pub node: NodeName,
    /// Devices that kubelet gave it, as far as its agent has told; before that those predicted.
    pub devices: Vec<DeviceUuid>,
    /// The pod that has claimed the slot, where it is known.
    pub pod: Option<PodUid>,
    /// The pod's name, for people.
    pub pod_name: Option<Arc<str>>,
    /// The pod is bound to the node.
    pub bound: bool,
    /// The member has ended well. Its pod may be gone since.
    pub ended: bool,
}

/// A durable plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRecord {
    /// Id of the plan.
    pub id: PlanId,
    /// Leadership that made it.
    pub epoch: Epoch,
    /// Members that must run together, as of the commit; 0 where the record does not say.
    pub minimum: u32,
    /// One slot per planned member, in order of role and index.
    pub slots: Vec<SlotRecord>,
}

/// Phase of a gang, as people see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Waits for room, for members, or for a valid definition; the reason says which.
    #[default]
    Waiting,
    /// Has a durable plan; its pods are being released and collected at the bind barrier.
    Starting,
    /// Enough members are bound.
    Running,
    /// Fewer members than the minimum are bound; replacements are being placed.
    Repairing,
    /// Suspended by its user.
    Suspended,
    /// The job has ended well.
    Succeeded,
    /// The job has ended, and not well.
    Failed,
}

impl Phase {
    /// The phase as written in the Gang's status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Repairing => "Repairing",
            Self::Suspended => "Suspended",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// The phase with this name.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Waiting,
            Self::Starting,
            Self::Running,
            Self::Repairing,
            Self::Suspended,
            Self::Succeeded,
            Self::Failed,
        ]
        .into_iter()
        .find(|phase| phase.as_str() == text)
    }
}

/// Everything that a Gang's status says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GangStatus {
    /// Phase.
    pub phase: Phase,
    /// Why it is in this phase.
    pub reason: Option<Reason>,
    /// The durable plan, while there is one.
    pub plan: Option<PlanRecord>,
    /// Members bound.
    pub bound: u32,
    /// Members the gang has when whole; 0 while that is not known.
    pub total: u32,
    /// Members that must run together.
    pub minimum: u32,
    /// Generation of the workload that this status speaks about.
    pub observed_generation: i64,
    /// What is said of keys under `muster.dev/` that nobody reads; see [`crate::settings`].
    pub ignored: Option<Arc<str>>,
    /// What is said of members that run on failed GPUs.
    pub failing: Option<Arc<str>>,
}

/// What a Gang object was last seen to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangRecord {
    /// Identity of the gang, from the object's `spec.workload`.
    pub key: GangKey,
    /// `metadata.name` of the Gang object.
    pub object: Arc<str>,
    /// `metadata.uid` of the Gang object.
    pub object_uid: Arc<str>,
    /// `metadata.resourceVersion` of the Gang object.
    pub resource_version: ResourceVersion,
    /// Kind of the workload.
    pub kind: WorkloadKind,
    /// Name of the workload.
    pub name: Arc<str>,
    /// Phase found there.
    pub phase: Phase,
    /// Plan found there; an error text when it cannot be read, for example when a newer version
    /// wrote it: the gang is then left alone.
    pub plan: Result<Option<PlanRecord>, Arc<str>>,
}

impl GangRecord {
    /// Takes from `texts` what pods and nodes have as well.
    pub fn share(&mut self, texts: &mut Shared<str>) {
        self.key.share(texts);
        texts.share_in(&mut self.object);
        texts.share_in(&mut self.name);
        let Ok(Some(plan)) = &mut self.plan else {
            return;
        };
        plan.id.share(texts);
        plan.slots.shrink_to_fit();
        for slot in &mut plan.slots {
            slot.role.share(texts);
            slot.node.share(texts);
            if let Some(pod) = &mut slot.pod {
                pod.share(texts);
            }
            if let Some(name) = &mut slot.pod_name {
                texts.share_in(name);
            }
        }
    }
}
