//! What the engine wants done outside. The edge carries actions out in any order and at its own
//! pace; the result of each write comes back as an event.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Ticket, WriteId};
use crate::ids::{
    DeviceUuid, Epoch, GangKey, Namespace, NodeName, PlanId, PodUid, ResourceVersion, RoleName,
};
use crate::record::GangStatus;
use crate::workload::WorkloadKind;

/// An action.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // Nearly all actions are writes.
pub enum Action {
    /// Change something in the API. Ends with an `Event::WriteDone` of the same id, always.
    Write(Write),
    /// Answer a held Bind. `Ok` only after the binding is confirmed.
    AnswerBind {
        /// The held Bind.
        ticket: Ticket,
        /// What to say; an error text is constant for a state.
        answer: Result<(), Arc<str>>,
    },
    /// Publish a Kubernetes Event about a gang. Best effort, never awaited.
    Announce(Announcement),
    /// List the pods and the Gang objects afresh and tell them as events, then `Event::Relisted` of each.
    /// Asked for after a new leader has put its stamps: what an earlier leader bound and promised until
    /// then must be known before anything is planned.
    Relist,
}

/// The object that a Kubernetes Event is about. `kubectl describe` finds Events by its UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The object that defines the gang: a job, a PodGroup, or the one pod.
    Workload {
        /// Its kind.
        kind: WorkloadKind,
        /// Its name.
        name: Arc<str>,
        /// Its UID.
        uid: Arc<str>,
    },
    /// The Gang object, where nothing else defines the gang.
    Gang {
        /// Its name.
        name: Arc<str>,
        /// Its UID; `None` when it could not be made.
        uid: Option<Arc<str>>,
    },
}

/// A Kubernetes Event about a gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The gang.
    pub gang: GangKey,
    /// The object that the Event is about.
    pub subject: Subject,
    /// Something the user should look at.
    pub warning: bool,
    /// CamelCase word.
    pub reason: &'static str,
    /// Text for people.
    pub message: Arc<str>,
}

/// A change in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Number under which the result comes back.
    pub id: WriteId,
    /// The gang it is for, for logs.
    pub gang: GangKey,
    /// The plan it is for, for logs.
    pub plan: Option<PlanId>,
    /// Leadership under which it is done.
    pub epoch: Epoch,
    /// What to write.
    pub what: WriteKind,
}

impl Write {
    /// What a pod is marked with that this write wakes for `plan`. No two writes have the same mark:
    /// a patch that changes nothing is no event, and kube-scheduler would sleep on.
    pub fn wake_mark(&self, plan: &PlanId) -> String {
        format!("{plan}/{}-{}", self.epoch, self.id.0)
    }
}

/// A pod to write to: nothing is done when the pod under this name has another UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTarget {
    /// Namespace.
    pub namespace: Namespace,
    /// Name.
    pub name: Arc<str>,
    /// UID, a precondition of every write.
    pub uid: PodUid,
    /// resourceVersion as last seen, a precondition where the write says so.
    pub resource_version: ResourceVersion,
}

/// A job to write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobTarget {
    /// Kind.
    pub kind: WorkloadKind,
    /// Namespace.
    pub namespace: Namespace,
    /// Name.
    pub name: Arc<str>,
    /// UID, a precondition.
    pub uid: Arc<str>,
    /// resourceVersion as last seen, a precondition.
    pub resource_version: ResourceVersion,
}

/// What a job's template and suspension shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobChange {
    /// Not suspended; each role's template confined to these nodes (a role that is not named, or
    /// has no nodes, is not confined); marked as released by this plan.
    Release {
        /// The plan.
        plan: PlanId,
        /// Nodes by role.
        pins: BTreeMap<RoleName, Vec<NodeName>>,
    },
    /// The same nodes-by-role change on a job that runs: for a plan that was changed.
    Repin {
        /// The plan.
        plan: PlanId,
        /// Nodes by role.
        pins: BTreeMap<RoleName, Vec<NodeName>>,
    },
    /// Suspended again and marked as queued by us; what we put into the templates taken out.
    Hold,
    /// What we put into the templates taken out, and our marks; suspension left as it is.
    Strip,
    /// The job's own status says whether it is queued by us; nothing else is touched.
    Show,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// Make the Gang object, or find it when it exists. The outcome carries what it says.
    CreateRecord {
        /// Name of the Gang object.
        object: Arc<str>,
        /// Kind of the workload.
        kind: WorkloadKind,
        /// Name of the workload; with the gang's key the owner reference.
        name: Arc<str>,
    },
    /// Delete the Gang object of a gang that has no owner. UID and resourceVersion are preconditions.
    DeleteRecord {
        /// Name of the Gang object.
        object: Arc<str>,
        /// UID of the Gang object.
        object_uid: Arc<str>,
        /// Version last seen.
        resource_version: ResourceVersion,
    },
    /// Replace the status of the Gang object. resourceVersion is a precondition.
    PutStatus {
        /// Name of the Gang object.
        object: Arc<str>,
        /// Expected resourceVersion.
        resource_version: ResourceVersion,
        /// The whole status.
        status: GangStatus,
    },
    /// Change a job. UID and resourceVersion are preconditions.
    ChangeJob {
        /// The job.
        job: JobTarget,
        /// What it shall be.
        change: JobChange,
    },
    /// Take our gate off a pod, and confine it to `pin` in the same write where given.
    ReleasePod {
        /// The pod.
        pod: PodTarget,
        /// Node to confine it to by required affinity.
        pin: Option<NodeName>,
        /// Our gate is the only one, and the pod has no required node affinity of its own: what to
        /// write is known without reading it, as long as its resourceVersion still holds.
        plain: bool,
    },
    /// Touch a pod's annotation so that kube-scheduler tries it again.
    WakePod {
        /// The pod.
        pod: PodTarget,
        /// The plan it is woken for.
        plan: PlanId,
    },
    /// Bind a pod, with UID and resourceVersion as preconditions and our record as annotations in
    /// the same write. A pod that is already bound to this node counts as done.
    Bind {
        /// The pod.
        pod: PodTarget,
        /// The node.
        node: NodeName,
        /// The plan.
        plan: PlanId,
        /// Predicted devices.
        devices: Vec<DeviceUuid>,
    },
    /// Delete a pod by UID; its controller makes another one.
    DeletePod {
        /// The pod.
        pod: PodTarget,
    },
    /// Write our epoch on a pod that is not bound, so that no Binding of an earlier leader applies.
    StampPod {
        /// The pod.
        pod: PodTarget,
    },
    /// Write our epoch on a Gang object, so that no status that an earlier leader has sent applies.
    StampRecord {
        /// Its name.
        object: Arc<str>,
        /// Its UID.
        uid: Arc<str>,
        /// Version last seen.
        resource_version: ResourceVersion,
    },
}
