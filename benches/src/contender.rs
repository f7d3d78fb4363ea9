//! The schedulers that are compared, and what each is given.

use muster_kubernetes::names;

/// A scheduler, and the way in which a gang is shown to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// kube-scheduler as it comes: pods one by one, no gangs.
    Plain,
    /// kube-scheduler with its own gang scheduling: a PodGroup for each gang.
    Native,
    /// Muster by way of the job: PyTorchJobs held at creation, released by one write each.
    MusterJob,
    /// Muster by way of gates: labelled pods gated at creation, released by one write each.
    MusterGate,
    /// Muster without admission policies: labelled pods that Filter refuses until planned.
    MusterUngated,
}

impl Contender {
    /// All of them, in the order in which they run.
    pub const ALL: [Contender; 5] = [
        Contender::Plain,
        Contender::Native,
        Contender::MusterJob,
        Contender::MusterGate,
        Contender::MusterUngated,
    ];

    /// Short name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Plain => "kube-scheduler",
            Contender::Native => "native-gang",
            Contender::MusterJob => "muster-job",
            Contender::MusterGate => "muster-gate",
            Contender::MusterUngated => "muster-ungated",
        }
    }

    /// Whether Muster runs.
    pub fn is_muster(self) -> bool {
        !matches!(self, Contender::Plain | Contender::Native)
    }

    /// Whether a gang is all or nothing.
    pub fn has_gangs(self) -> bool {
        self != Contender::Plain
    }

    /// Whether the admission policies are installed.
    pub fn has_policies(self) -> bool {
        matches!(self, Contender::MusterJob | Contender::MusterGate)
    }

    /// `spec.schedulerName` of the pods.
    pub fn scheduler_name(self) -> &'static str {
        if self.is_muster() {
            names::SCHEDULER_NAME
        } else {
            "default-scheduler"
        }
    }
}
