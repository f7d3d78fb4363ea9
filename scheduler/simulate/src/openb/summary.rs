//! The figures of a run.

use serde::Serialize;

use super::run::Run;
use super::trace::Trace;
use super::{Allocation, Setting};
use crate::record::as_f64;
use crate::units::number;

/// GPUs that nobody has, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct IdleGpus {
    /// Whole GPUs, on nodes with a core left.
    pub whole: f64,
    /// Parts of GPUs, on nodes with a core left.
    pub in_part: f64,
    /// On nodes with less than one core left.
    pub on_nodes_without_a_core: f64,
}

/// The figures of a run, in the order in which `summary.json` has them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Version of Muster.
    pub version: &'static str,
    /// Always `openb`.
    pub format: &'static str,
    /// Name of the pods' file, without its ending.
    pub input: String,
    /// Policy.
    pub policy: &'static str,
    /// `--seed`.
    pub seed: u64,
    /// `--inflate`.
    pub inflate: f64,
    /// Nodes.
    pub nodes: usize,
    /// Their GPUs.
    pub gpus: u64,
    /// Pods that arrived.
    pub pods: usize,
    /// Those of them that were placed.
    pub pods_placed: usize,
    /// Those of them that found no room.
    pub pods_dropped: usize,
    /// Those of them that found no room although a node had some; anything but 0 is a fault of the policy.
    pub pods_dropped_with_room: usize,
    /// GPUs that all of them asked for.
    pub gpus_arrived: f64,
    /// GPUs that were allocated at the end.
    pub gpus_allocated: f64,
    /// Allocated GPUs when as many had arrived as there are, percent of all; `null` where that never was.
    pub allocation_percent_at_100: Option<f64>,
    /// Allocated GPUs at the last arrivals, percent of all, as `allocation.csv` has it.
    pub allocation_percent_at_end: Option<f64>,
    /// GPUs that nobody had at the end.
    pub idle_gpus: IdleGpus,
}

fn gpus(milli: u64) -> f64 {
    as_f64(milli) / 1000.0
}

impl Summary {
    /// The figures of a run.
    pub(super) fn of(trace: &Trace, setting: &Setting, run: &Run, allocation: &Allocation) -> Self {
        let last = run.last();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            format: "openb",
            input: trace.name.clone(),
            policy: setting.policy.as_str(),
            seed: setting.seed,
            inflate: setting.inflate,
            nodes: run.nodes.len(),
            gpus: run.gpus(),
            pods: run.samples.len(),
            pods_placed: last.placed,
            pods_dropped: last.dropped,
            pods_dropped_with_room: run.dropped_with_room,
            gpus_arrived: gpus(last.arrived_milli),
            gpus_allocated: gpus(last.allocated_milli),
            allocation_percent_at_100: allocation.at(100),
            allocation_percent_at_end: allocation.last(),
            idle_gpus: IdleGpus {
                whole: gpus(last.idle.whole),
                in_part: gpus(last.idle.part),
                on_nodes_without_a_core: gpus(last.idle.without_core),
            },
        }
    }

    /// The most important figures, in a few lines for people.
    pub fn in_words(&self) -> String {
        let percent = |value: Option<f64>| match value {
            Some(value) => format!("{} %", number(value, 2)),
            None => "nothing".into(),
        };
        let idle = &self.idle_gpus;
        let mut lines = vec![
            format!(
                "{} pods on {} nodes with {} GPUs under {}: {} placed, {} dropped",
                self.pods, self.nodes, self.gpus, self.policy, self.pods_placed, self.pods_dropped
            ),
            format!(
                "of all GPUs allocated: {} when as many had arrived, {} at the end",
                percent(self.allocation_percent_at_100),
                percent(self.allocation_percent_at_end)
            ),
            format!(
                "idle at the end: {} GPUs whole, {} in parts, {} on nodes without a core",
                number(idle.whole, 0),
                number(idle.in_part, 1),
                number(idle.on_nodes_without_a_core, 1)
            ),
        ];
        if self.pods_dropped_with_room > 0 {
            let count = self.pods_dropped_with_room;
            lines.push(format!(
                "a fault: {count} pods were dropped although a node had room for them"
            ));
        }
        lines.join("\n")
    }

    /// The text of `summary.json`.
    pub fn json(&self) -> String {
        // A structure of numbers and texts: nothing of it can fail to be written.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}
