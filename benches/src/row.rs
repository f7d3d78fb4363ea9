//! One line of the table.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::analysis::Tick;

/// How soon a gang that cannot run was told so.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Told {
    /// From the answer to the last creation (of a pod; of the job where no pods are made before there
    /// is room) until the watch brought the object that says so, s; 0 where it came before that answer.
    pub after: f64,
    /// Kind and name of that object.
    pub by: String,
    /// Its text.
    pub text: String,
}

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
    /// From the first submission to the last binding; from the start of the scheduler where that
    /// comes after the gangs.
    pub first_create_to_last_bound: f64,
    /// From the same moment to the first binding.
    pub to_first_bound: f64,
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
    /// Share of the first time by which half of the gangs had all members bound, 0 to 1.
    pub half_share: f64,
    /// How soon it was said that a gang cannot run, where that is the question.
    pub told: Option<Told>,
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
    /// What the row says above all, for a line of progress.
    pub fn in_short(&self) -> String {
        self.told.as_ref().map_or_else(
            || format!("{:.1} s", self.first_create_to_last_bound),
            |told| format!("told after {:.0} ms", told.after * 1000.0),
        )
    }

    /// Processor time of programs together, seconds; 0 for those that did not run.
    pub fn cpu_of(&self, programs: &[&str]) -> f64 {
        let cpu = programs.iter().filter_map(|program| self.cpu.get(*program));
        // Not by `sum`, which is -0.0 of nothing.
        cpu.fold(0.0, |sum, one| sum + one)
    }

    /// Sum of the programs' largest resident memories, MiB.
    pub fn memory_of(&self, programs: &[&str]) -> u64 {
        let memory = programs
            .iter()
            .filter_map(|program| self.memory_peak_mib.get(*program));
        memory.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_no_program_is_zero_and_not_minus_zero() {
        let row = Row {
            cpu: [("a".to_owned(), 1.5), ("b".to_owned(), 2.0)].into(),
            ..Row::default()
        };
        assert_eq!(format!("{:.1}", row.cpu_of(&[])), "0.0");
        assert_eq!(format!("{:.1}", row.cpu_of(&["a", "b", "c"])), "3.5");
    }
}
