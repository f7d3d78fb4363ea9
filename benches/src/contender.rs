//! The schedulers that are compared, and what each is given.

use muster_kubernetes::names;

use crate::case::{Case, Scene};

/// A scheduler, and the way in which a gang is shown to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// No scheduler: the bench binds each pod to a node chosen up front, as soon as the pod is
    /// there and many at once. What the API server takes at most.
    Raw,
    /// kube-scheduler as it comes: pods one by one, no gangs.
    Plain,
    /// The same for the pods of PyTorchJobs, which somebody else makes as soon as the job is there.
    PlainJob,
    /// kube-scheduler with its own gang scheduling: a PodGroup for each gang.
    Native,
    /// kube-scheduler with the coscheduling plugin of scheduler-plugins: a PodGroup for each gang.
    Coscheduling,
    /// KAI-scheduler: PyTorchJobs, of which its podgrouper makes PodGroups.
    Kai,
    /// Muster by way of the job: PyTorchJobs held at creation, released by one write each.
    MusterJob,
    /// Muster by way of gates: labelled pods gated at creation, released by one write each.
    MusterGate,
    /// Muster without admission policies: labelled pods that Filter refuses until planned.
    MusterUngated,
}

/// The program of kube-scheduler, as usages are named after it.
const KUBE_SCHEDULER: &[&str] = &["kube-scheduler"];
/// The programs of Muster.
const MUSTER: &[&str] = &["kube-scheduler", "muster-scheduler"];

impl Contender {
    /// All of them, in the order in which they run.
    pub const ALL: [Contender; 9] = [
        Contender::Raw,
        Contender::Plain,
        Contender::PlainJob,
        Contender::Native,
        Contender::Coscheduling,
        Contender::Kai,
        Contender::MusterJob,
        Contender::MusterGate,
        Contender::MusterUngated,
    ];

    /// Short name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Raw => "raw",
            Contender::Plain => "kube-scheduler",
            Contender::PlainJob => "kube-scheduler-job",
            Contender::Native => "native-gang",
            Contender::Coscheduling => "coscheduling",
            Contender::Kai => "kai",
            Contender::MusterJob => "muster-job",
            Contender::MusterGate => "muster-gate",
            Contender::MusterUngated => "muster-ungated",
        }
    }

    /// Whether Muster runs.
    pub fn is_muster(self) -> bool {
        matches!(
            self,
            Contender::MusterJob | Contender::MusterGate | Contender::MusterUngated
        )
    }

    /// Whether it is somebody else's program, built on request only: what it fails at is its own.
    pub fn is_peer(self) -> bool {
        matches!(self, Contender::Coscheduling | Contender::Kai)
    }

    /// Whether a gang is all or nothing.
    pub fn has_gangs(self) -> bool {
        !matches!(
            self,
            Contender::Raw | Contender::Plain | Contender::PlainJob
        )
    }

    /// Whether gangs are submitted as PyTorchJobs.
    pub fn has_jobs(self) -> bool {
        matches!(
            self,
            Contender::MusterJob | Contender::Kai | Contender::PlainJob
        )
    }

    /// Whether the admission policies are installed.
    pub fn has_policies(self) -> bool {
        matches!(self, Contender::MusterJob | Contender::MusterGate)
    }

    /// Why it has no row in a case; nothing where it has one.
    pub fn has_no_part_in(self, case: &Case) -> Option<&'static str> {
        let decides = case.is_overload() || case.scene == Scene::Full;
        (self == Contender::Raw && decides).then_some("binds what it is told to, decides nothing")
    }

    /// The scheduler's programs, as their usages are named. Empty for [`Contender::Raw`], whose
    /// requests come from the bench.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Contender::Raw => &[],
            Contender::Plain | Contender::PlainJob | Contender::Native => KUBE_SCHEDULER,
            Contender::Coscheduling => &[crate::coscheduling::PROGRAM],
            Contender::Kai => &crate::kai::PROGRAMS,
            Contender::MusterJob | Contender::MusterGate | Contender::MusterUngated => MUSTER,
        }
    }

    /// `spec.schedulerName` of the pods.
    pub fn scheduler_name(self) -> &'static str {
        match self {
            Contender::Raw => "nobody",
            Contender::Plain
            | Contender::PlainJob
            | Contender::Native
            | Contender::Coscheduling => "default-scheduler",
            Contender::Kai => crate::kai::SCHEDULER_NAME,
            Contender::MusterJob | Contender::MusterGate | Contender::MusterUngated => {
                names::SCHEDULER_NAME
            }
        }
    }
}
