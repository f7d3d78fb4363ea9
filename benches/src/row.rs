//! One line of the table.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::analysis::Tick;

/// What one scheduler did with one case. Times in seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// The case in words.
    pub case_title: String,
    /// Short name of the case.
    pub case: String,
    /// Short name of the contender.
    pub contender: String,
    /// Number of the repetition, from 1.
    pub round: u32,
    /// Nodes of the cluster.
    pub nodes: u32,
    /// Pods asked for.
    pub pods: usize,
    /// Pods bound at the end.
    pub pods_bound: usize,
    /// From the first submission to the last binding.
    pub first_create_to_last_bound: f64,
    /// From the answer to the last creation to the last binding.
    pub last_create_to_last_bound: f64,
    /// Pods bound for each second of that time.
    pub pods_per_second: f64,
    /// Median of the times from a gang's submission to its last binding.
    pub gang_p50: f64,
    /// 95th percentile of the same.
    pub gang_p95: f64,
    /// Median of the times from a gang's first pod to its last binding.
    pub gang_pods_p50: f64,
    /// 95th percentile of the same.
    pub gang_pods_p95: f64,
    /// Write requests of all clients, events included, for each pod asked for. Without the load's
    /// own creation of pods, jobs and PodGroups, and without what authorization turned away.
    pub writes_per_pod: f64,
    /// All write requests by resource and verb, or by client too where there is an audit log.
    pub writes: BTreeMap<String, u64>,
    /// Write requests in the 10 s after all was settled, without Leases; overload only.
    pub writes_after_settling: Option<u64>,
    /// Processor time of each program.
    pub cpu: BTreeMap<String, f64>,
    /// Largest resident memory of each program, MiB.
    pub memory_peak_mib: BTreeMap<String, u64>,
    /// Share of the machine's processor time that programs outside of the run took, 0 to 1.
    pub others_cpu_share: f64,
    /// Gangs with all members bound at the end.
    pub gangs_whole: usize,
    /// Gangs with some and not all members bound at the end.
    pub gangs_partial: usize,
    /// Most gangs bound in part at one instant.
    pub gangs_partial_most: usize,
    /// Longest time in which any gang was bound in part.
    pub partial_longest: f64,
    /// GPUs held at the end by gangs that never became whole.
    pub waiting_gpus: u64,
    /// Most GPUs that such gangs held at one instant.
    pub waiting_gpus_most: u64,
    /// Second by second.
    pub timeline: Vec<Tick>,
    /// Muster's metrics page at the end.
    #[serde(skip)]
    pub muster_metrics: Option<String>,
}

impl Row {
    /// Processor time of a program, seconds; 0 when it did not run.
    pub fn cpu_of(&self, program: &str) -> f64 {
        self.cpu.get(program).copied().unwrap_or(0.0)
    }
}
