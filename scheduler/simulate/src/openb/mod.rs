//! The published experiment of FGD ("Beware of Fragmentation: Scheduling GPU-Sharing Workloads with
//! Fragmentation Gradient Descent", USENIX ATC 2023) on the openb traces of Alibaba.
//!
//! ```text
//!   nodes, pods (CSV) ──> Trace ──> Arrivals (shuffled, inflated, by the seed)
//!                                       │ one pod after the other, and none ever ends
//!                                       v
//!                      Policy: muster, or fgd, bestfit, random, first-fit
//!                                       │ a node and GPUs of it, checked against the experiment's own nodes
//!                                       v
//!                         Run ──> allocation.csv, summary.json, timeline.csv, report.html
//! ```
//!
//! A pod that fits nowhere is dropped and counts as arrived. What is measured is the share of all GPUs that
//! is allocated, by how many GPUs have arrived. Source of the rules, and of the published policies:
//! <https://github.com/hkust-adsl/kubernetes-scheduler-simulator>, commit 8f3d6417; each file here names
//! what it follows.
//!
//! Numbers are drawn by [`crate::random`], not by Go's generator: the same seed gives other arrivals than
//! there, so that means over seeds are compared, never single runs.

pub mod allocation;
mod arrivals;
mod board;
mod fragments;
mod muster;
mod run;
mod scored;
mod summary;
mod timeline;
mod trace;

use std::path::PathBuf;
use std::str::FromStr;

pub use self::allocation::Allocation;
use self::muster::Muster;
pub use self::run::{Placement, Policy, Run, play};
use self::scored::{Rule, Scored};
pub use self::summary::Summary;
pub use self::trace::{Machine, Pod, Request, Trace};
use crate::error::Error;
use crate::{output, report};

/// GPUs of a node at most. Source: `MaxNumGpuPerNode`.
pub const GPUS_MAX: usize = 8;

/// Pods of a node at most. Source: `pods` in `openb_node_list_gpu_node.yaml`.
pub const PODS_MAX: u32 = 1001;

/// Thousandths of a GPU.
pub const MILLI: u32 = 1000;

/// Pods that may arrive at most.
pub const ARRIVALS_MAX: usize = 1_000_000;

/// Limits of `--inflate`.
pub const INFLATE_LIMITS: std::ops::RangeInclusive<f64> = 0.01..=10.0;

/// `--inflate` of the published runs.
pub const INFLATE: f64 = 1.3;

/// Who chooses node and GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyKind {
    /// The production planner.
    Muster,
    /// The node whose fragmentation grows least.
    Fgd,
    /// The node with the least left over.
    BestFit,
    /// Any node.
    Random,
    /// The first node in order of name.
    FirstFit,
}

impl PolicyKind {
    /// Every policy.
    pub const ALL: [Self; 5] = [
        Self::Muster,
        Self::Fgd,
        Self::BestFit,
        Self::Random,
        Self::FirstFit,
    ];

    /// Name on the command line and in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Muster => "muster",
            Self::Fgd => "fgd",
            Self::BestFit => "bestfit",
            Self::Random => "random",
            Self::FirstFit => "first-fit",
        }
    }

    /// Name in the column `sc_policy`: as published for policies that were, in the same manner for others.
    pub fn published(self) -> &'static str {
        match self {
            Self::Muster => "00-Muster",
            Self::Random => "01-Random",
            Self::BestFit => "05-BestFit",
            Self::Fgd => "06-FGD",
            Self::FirstFit => "07-FirstFit",
        }
    }
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| "must be muster, fgd, bestfit, random or first-fit".into())
    }
}

/// What of a run is chosen, beside the trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// Who decides.
    pub policy: PolicyKind,
    /// GPUs that arrive in all, as a share of those of the cluster; within [`INFLATE_LIMITS`].
    pub inflate: f64,
    /// Chooses the order of arrival and of nodes, and the pods that arrive again.
    pub seed: u64,
}

impl Setting {
    /// Whether every value is within its limits.
    fn check(&self) -> Result<(), Error> {
        if !INFLATE_LIMITS.contains(&self.inflate) {
            let (least, most) = (INFLATE_LIMITS.start(), INFLATE_LIMITS.end());
            let limit = format!("must be {least} to {most}");
            return Err(Error::flag("--inflate", self.inflate, limit));
        }
        Ok(())
    }

    /// The policy, for nodes in this order and pods of this trace.
    fn policy<'a>(&self, trace: &'a Trace, nodes: &[Machine]) -> Box<dyn Policy + 'a> {
        let rule = match self.policy {
            PolicyKind::Muster => return Box::new(Muster::new(trace, nodes)),
            PolicyKind::Fgd => Rule::fgd(trace),
            PolicyKind::BestFit => Rule::BestFit,
            PolicyKind::Random => Rule::random(self.seed),
            PolicyKind::FirstFit => Rule::FirstFit,
        };
        Box::new(Scored::new(trace, nodes, rule))
    }
}

/// The experiment, from files to a folder.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Table of nodes.
    pub nodes: PathBuf,
    /// Table of pods.
    pub pods: PathBuf,
    /// What is chosen.
    pub setting: Setting,
    /// Folder for the results.
    pub out: PathBuf,
    /// Write into a folder that is not empty.
    pub force: bool,
}

impl Experiment {
    /// Reads, plays and writes the results. `progress` is told how many pods of how many have arrived.
    pub fn run(&self, progress: &mut dyn FnMut(usize, usize)) -> Result<Summary, Error> {
        let trace = Trace::read(&self.nodes, &self.pods)?;
        self.setting.check()?;
        output::prepare(&self.out, self.force)?;
        let run = play(&trace, &self.setting, progress)?;
        let allocation = Allocation::of(&run);
        let summary = Summary::of(&trace, &self.setting, &run, &allocation);
        let row = allocation.text(&trace.name, &self.setting, run.gpus());
        output::write(&self.out, "allocation.csv", &row)?;
        output::write(&self.out, "summary.json", &summary.json())?;
        output::write(&self.out, "timeline.csv", &timeline::text(&run))?;
        let page = report::openb::page(&summary, &allocation, &run);
        output::write(&self.out, "report.html", &page)?;
        Ok(summary)
    }
}
