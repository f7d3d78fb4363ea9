//! Every name that Muster shares with the cluster: groups, labels, annotations, gates.

/// API group of Muster's own objects.
pub const GROUP: &str = "muster.dev";
/// Prefix of every label and annotation that is Muster's.
pub const PREFIX: &str = "muster.dev/";
/// `spec.schedulerName` of the pods that Muster places.
pub const SCHEDULER_NAME: &str = "muster";
/// Scheduling gate that holds a pod until its gang is planned.
pub const GATE: &str = "muster.dev/gang";
/// Namespace in which Muster runs.
pub const NAMESPACE: &str = "muster-system";

/// Lease by which kube-scheduler leads. Of several replicas each has one of its own: the kube-scheduler
/// beside the Muster of this name is started with `--leader-elect-resource-name` and this.
pub fn kube_scheduler_lease(replica: &str) -> String {
    format!("{KUBE_SCHEDULER_LEASE}-{replica}")
}
/// Lease of a kube-scheduler that is not told another.
pub const KUBE_SCHEDULER_LEASE: &str = "muster-kube-scheduler";

/// Pod label: name of the gang, for pods without a job. Unique within a namespace.
pub const GANG_LABEL: &str = "muster.dev/gang";
/// Pod annotation or label: number of members of a labelled gang.
pub const GANG_SIZE: &str = "muster.dev/gang-size";
/// Pod label: role of a member in a labelled gang or PodGroup.
pub const ROLE_LABEL: &str = "muster.dev/role";
/// Pod label: index of a member within its role.
pub const INDEX_LABEL: &str = "muster.dev/index";

/// Type of the condition in a job's own status that says that the job is held by Muster.
pub const QUEUED_CONDITION: &str = "Queued";
/// Reason of [`QUEUED_CONDITION`], by which it is known to be Muster's.
pub const QUEUED_REASON: &str = "MusterQueued";

/// Message of [`QUEUED_CONDITION`] on the job of this name.
pub fn queued_message(job: &str) -> String {
    format!("queued by Muster: `kubectl describe gang {job}` says why")
}

/// Job annotation: [`HOLD_QUEUED`] while the job is suspended by Muster, [`HOLD_RELEASED`] after.
pub const HOLD: &str = "muster.dev/hold";
/// Value of [`HOLD`] on a job that Muster holds back.
pub const HOLD_QUEUED: &str = "queued";
/// Value of [`HOLD`] on a job that Muster has released.
pub const HOLD_RELEASED: &str = "released";
/// Job and pod annotation: id of the plan that released the job or bound the pod.
pub const PLAN: &str = "muster.dev/plan";
/// Job annotation: what Muster put into the templates, as JSON by role.
pub const PINNED: &str = "muster.dev/pinned";
/// Job annotation with value `true`: `elasticPolicy.minReplicas` is the gang's minimum.
pub const ELASTIC_MINIMUM: &str = "muster.dev/elastic-minimum";

/// Pod annotation: on a bound pod the leadership that bound it, on an unbound pod the stamp of a
/// new leader.
pub const EPOCH: &str = "muster.dev/epoch";
/// Pod annotation beside a stamp: a mark that nobody can have written before. A stamp that changed
/// nothing would leave the pod at the version that an earlier leader's Binding cites.
pub const STAMP_MARK: &str = "muster.dev/stamp-mark";
/// Pod annotation written at bind: UUIDs of the predicted devices, separated by commas.
pub const DEVICES: &str = "muster.dev/devices";
/// Pod annotation: plan for which the pod was woken, and the write that did it.
pub const WOKEN_FOR: &str = "muster.dev/woken-for";

/// Label of the admission policies: which of them it is, for stand-ins that cannot run CEL.
pub const EMULATE: &str = "muster.dev/emulate";
/// Value of [`EMULATE`] on the policy that suspends PyTorchJobs.
pub const EMULATE_SUSPEND: &str = "suspend-pytorchjobs";
/// Value of [`EMULATE`] on the policy that lets a held job's status say that it is queued.
pub const EMULATE_SHOW: &str = "show-queued";
/// Value of [`EMULATE`] on the policy that gates pods.
pub const EMULATE_GATE: &str = "gate-pods";

/// Group of PyTorchJobs.
pub const KUBEFLOW_GROUP: &str = "kubeflow.org";
/// Pod label of training-operator: name of the job.
pub const JOB_NAME: &str = "training.kubeflow.org/job-name";
/// Pod label of training-operator: role, in lower case.
pub const REPLICA_TYPE: &str = "training.kubeflow.org/replica-type";
/// Pod label of training-operator: index within the role.
pub const REPLICA_INDEX: &str = "training.kubeflow.org/replica-index";

/// Pod label of training-operator: which of its controllers made the pod.
pub const OPERATOR_NAME: &str = "training.kubeflow.org/operator-name";
/// Pod label of training-operator: `master` on the Master, or on the first worker without one.
pub const JOB_ROLE: &str = "training.kubeflow.org/job-role";

/// Group of the PodGroups of scheduler-plugins.
pub const POD_GROUP_GROUP: &str = "scheduling.x-k8s.io";
/// Pod label: name of the PodGroup in the pod's namespace.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";

/// Field of a node that a pin matches.
pub const NODE_NAME_FIELD: &str = "metadata.name";
