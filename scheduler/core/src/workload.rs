//! What a user submitted: a job, a PodGroup, a labelled group of pods, or a single pod, as the gang
//! it asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::ids::{GangKey, NodeName, PlanId, ResourceVersion, RoleName};
use crate::interpod::Labels;
use crate::pod::PodShape;

/// Largest number of members a gang may have. Far above any real job; keeps a slip of the keyboard
/// (`minAvailable: 1000000000`) from costing memory.
pub const MEMBERS_MAX: u32 = 16_384;

/// Kind of object that defines a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadKind {
    /// `kubeflow.org/v1` PyTorchJob.
    PyTorchJob,
    /// `scheduling.x-k8s.io/v1alpha1` PodGroup.
    PodGroup,
    /// Pods that carry our label.
    Label,
    /// One pod with GPUs.
    Pod,
}

impl WorkloadKind {
    /// Kind as written in Kubernetes objects and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PyTorchJob => "PyTorchJob",
            Self::PodGroup => "PodGroup",
            Self::Label => "Label",
            Self::Pod => "Pod",
        }
    }
}

/// One role of a job: pods made from one template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleSpec {
    /// `Master` or `Worker`.
    pub name: RoleName,
    /// Number of pods.
    pub count: u32,
    /// What each of them asks for, as its user wrote it: nodes that we confined the template to are
    /// not in here but in `pinned`.
    pub shape: Arc<PodShape>,
    /// Labels that each of them has, as far as a rule between the job's pods looks at them.
    pub labels: Arc<Labels>,
    /// Nodes that the role's template is confined to by us now; `None` when we put nothing in.
    pub pinned: Option<Vec<NodeName>>,
}

/// Who the members are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberSource {
    /// The job says it: roles with counts and templates. Known before any pod exists.
    Roles(Vec<RoleSpec>),
    /// The pods say it: those whose membership names the gang.
    Pods,
}

/// Whether the job's pods may be born.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The object cannot be held, or is not: its pods come as they like.
    Free,
    /// Suspended and marked as queued by us.
    Held,
    /// Released by us, by this plan.
    Released(PlanId),
    /// Suspended by its user: nothing of it is to run.
    SuspendedByUser,
}

/// What the job's own status, which its controller writes, says of a suspension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// Nothing: it is not suspended, or its controller has not seen it yet.
    #[default]
    Nothing,
    /// Suspended, as if by its user.
    Suspended,
    /// Suspended, and queued by us.
    Queued,
}

/// How a finished job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Condition `Succeeded`.
    Succeeded,
    /// Condition `Failed`.
    Failed,
}

/// What is wrong with a workload: one field, the value it has, and what it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidWorkload {
    /// Path of the field, for example `spec.runPolicy.schedulingPolicy.minAvailable`.
    pub field: Arc<str>,
    /// The value found, shortened to 64 characters.
    pub value: Arc<str>,
    /// What is allowed.
    pub limit: Arc<str>,
}

impl fmt::Display for InvalidWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.value, self.limit)
    }
}

/// A job, PodGroup or other definition of a gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Identity of the gang.
    pub key: GangKey,
    /// Kind of the object.
    pub kind: WorkloadKind,
    /// `metadata.name` of the object, or the label's value.
    pub name: Arc<str>,
    /// `metadata.uid` of the object. The gang's key has it for a job only.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion`; empty for a gang without an object.
    pub resource_version: ResourceVersion,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`, seconds since the Unix epoch. Orders the queue.
    pub created_seconds: i64,
    /// Priority of the gang: the largest of its pods'.
    pub priority: i32,
    /// Whether the object itself says that it is ours: a template names our scheduler, or we have
    /// marked it. A job that does not say so is ours from the moment that a pod of it names us:
    /// training-operator may put the name into its pods.
    pub ours: bool,
    /// Who the members are.
    pub members: MemberSource,
    /// Members that must run together. `None`: all of them.
    pub minimum: Option<u32>,
    /// Whether its pods may be born.
    pub hold: Hold,
    /// What its own status says of that.
    pub shown: Shown,
    /// How it ended, once it has.
    pub finished: Option<Outcome>,
    /// Why it cannot be taken up at all.
    pub invalid: Option<InvalidWorkload>,
    /// Annotations and labels of the object that the gang's policy is read from: keys under
    /// `muster.dev/`.
    pub settings: BTreeMap<Arc<str>, Arc<str>>,
}

impl Workload {
    /// Sum of the counts of all roles; `None` when the pods say it.
    pub fn total(&self) -> Option<u32> {
        match &self.members {
            MemberSource::Roles(roles) => Some(
                roles
                    .iter()
                    .fold(0, |sum: u32, role| sum.saturating_add(role.count)),
            ),
            MemberSource::Pods => None,
        }
    }

    /// The role with this name.
    pub fn role(&self, name: &RoleName) -> Option<&RoleSpec> {
        match &self.members {
            MemberSource::Roles(roles) => roles.iter().find(|role| role.name == *name),
            MemberSource::Pods => None,
        }
    }
}
