//! The figures of a replay.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::record::{Life, Record, Sample, as_f64};
use crate::replay::Outcome;
use crate::scene::{GangSpec, Scene};
use crate::units::span;

/// Most gangs that are named with a reason in a summary.
const NAMED_MAX: usize = 20;

/// Waits of the gangs of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Waits {
    /// Gangs that started.
    pub gangs: usize,
    /// Mean wait, seconds.
    pub mean: f64,
    /// Wait that 95 % of them do not exceed, seconds.
    pub p95: f64,
    /// Longest wait, seconds.
    pub max: f64,
}

/// A gang that did not run, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotRun {
    /// Its name.
    pub gang: String,
    /// Why, in the planner's words.
    pub reason: String,
}

/// How free GPUs were spread over nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Fragmentation {
    /// Share of the free GPUs that were on nodes with something on them, over time.
    pub free_gpus_on_used_nodes_ratio_mean: f64,
    /// GPUs free on nodes with something on them, over time.
    pub free_gpus_on_used_nodes_mean: f64,
    /// Nodes with all their GPUs free, over time.
    pub whole_free_nodes_mean: f64,
    /// Share of the time in which a gang waited although as many GPUs as it wants were free.
    pub blocked_time_ratio: f64,
}

/// The figures of a replay, in the order in which `summary.json` has them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Version of Muster.
    pub version: &'static str,
    /// Format of the input.
    pub format: &'static str,
    /// Name of the input's file.
    pub input: String,
    /// Policy.
    pub policy: &'static str,
    /// `--seed`.
    pub seed: u64,
    /// `--load`, where it was given.
    pub load: Option<f64>,
    /// How long a write took, milliseconds.
    pub write_delay_ms: u64,
    /// How long a gang waited before nodes were kept for it, milliseconds; 0: none ever were. Under `muster` only.
    pub reserve_after_ms: u64,
    /// How long they were kept while nothing ended on them, milliseconds; 0: until it started.
    pub keep_for_ms: u64,
    /// Nodes at the beginning.
    pub nodes: usize,
    /// Their GPUs.
    pub gpus: u64,
    /// Gangs of the input.
    pub gangs: usize,
    /// Gangs that ran for their duration.
    pub gangs_completed: usize,
    /// Gangs that run at the end.
    pub gangs_running: usize,
    /// Gangs that arrived, could have run on the empty cluster, and had not started at the end.
    pub gangs_starved: usize,
    /// Gangs that could not run on the empty cluster; they are not submitted.
    pub gangs_impossible: usize,
    /// Times that a gang lost what it had done because it lost a node.
    pub gangs_halted: u64,
    /// Mean wait of the gangs that started, from arrival to first start, seconds.
    pub gang_wait_seconds_mean: f64,
    /// Wait that 95 % of them do not exceed, seconds.
    pub gang_wait_seconds_p95: f64,
    /// The longest of them, seconds.
    pub gang_wait_seconds_max: f64,
    /// Waits of gangs of more than one pod.
    pub multi_pod_gang_wait_seconds: Waits,
    /// Waits by GPUs of the gang.
    #[serde(serialize_with = "in_order")]
    pub gang_wait_seconds_by_size: Vec<(String, Waits)>,
    /// From the first arrival to the last end, or to the end of the replay where gangs still run,
    /// seconds.
    pub makespan_seconds: f64,
    /// GPU time in use, of the GPU time that there was within the makespan.
    pub gpu_use_ratio: f64,
    /// The same, between the first and the last arrival.
    pub gpu_use_ratio_to_last_arrival: f64,
    /// How free GPUs were spread over nodes, within the makespan.
    pub fragmentation: Fragmentation,
    /// Invariants of the engine that did not hold; anything but 0 is a bug.
    pub invariant_violations: u64,
    /// Gangs that wait at the end and why, the first of them.
    pub waiting_at_end: Vec<NotRun>,
    /// Gangs that could not run and why, the first of them.
    pub impossible: Vec<NotRun>,
    /// Things that a reader of the figures should know.
    pub notes: Vec<String>,
}

/// What of a summary is not found by the replay itself.
#[derive(Clone, Debug)]
pub struct About {
    /// Format of the input.
    pub format: &'static str,
    /// Policy.
    pub policy: &'static str,
    /// `--seed`.
    pub seed: u64,
    /// `--load`.
    pub load: Option<f64>,
    /// How long a write took, milliseconds.
    pub write_delay_ms: u64,
    /// How long a gang waited before nodes were kept for it, milliseconds.
    pub reserve_after_ms: u64,
    /// How long they were kept while nothing ended on them, milliseconds.
    pub keep_for_ms: u64,
}

fn in_order<S: serde::Serializer>(
    pairs: &[(String, Waits)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(size, waits)| (size, waits)))
}

/// Seconds of milliseconds.
pub fn seconds(ms: u64) -> f64 {
    as_f64(ms) / 1000.0
}

/// Sizes are counted in steps: 0, 1, 2, 3-4, 5-8, 9-16 and so on. The largest size of the step.
fn step(gpus: u64) -> u64 {
    if gpus == 0 {
        return 0;
    }
    gpus.checked_next_power_of_two().unwrap_or(u64::MAX)
}

fn step_name(top: u64) -> String {
    match top {
        0..=2 => top.to_string(),
        _ => format!("{}-{top}", top.div_euclid(2).saturating_add(1)),
    }
}

impl Waits {
    /// Of waits in milliseconds.
    fn of(mut waits: Vec<u64>) -> Self {
        waits.sort_unstable();
        let Some(longest) = waits.last().copied() else {
            return Self::default();
        };
        let sum: u128 = waits.iter().map(|wait| u128::from(*wait)).sum();
        let count = waits.len();
        // Nearest rank: the smallest wait that at least 95 % do not exceed.
        let rank = count.saturating_mul(95).div_ceil(100).saturating_sub(1);
        let mean = u64::try_from(sum.div_euclid(count as u128)).unwrap_or(u64::MAX);
        Self {
            gangs: count,
            mean: seconds(mean),
            p95: seconds(waits.get(rank).copied().unwrap_or(longest)),
            max: seconds(longest),
        }
    }
}

/// Shares are written with six digits: more would only show how they were added up.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// Sums over time.
#[derive(Default)]
struct Integral {
    time: f64,
    used: f64,
    gpus: f64,
    free_time: f64,
    fragmented: f64,
    stranded: f64,
    whole: f64,
    blocked: f64,
}

impl Integral {
    fn add(&mut self, sample: &Sample, ms: u64) {
        let (span, nodes) = (as_f64(ms), &sample.nodes);
        self.time += span;
        self.used += span * as_f64(nodes.used);
        self.gpus += span * as_f64(nodes.gpus);
        if nodes.free > 0 {
            self.free_time += span;
            self.fragmented += span * sample.fragmentation();
        }
        self.stranded += span * as_f64(nodes.free.saturating_sub(nodes.free_whole));
        self.whole += span * as_f64(nodes.whole_nodes);
        if sample.is_blocked() {
            self.blocked += span;
        }
    }

    fn of(record: &Record, from_ms: u64, until_ms: u64) -> Self {
        let mut sum = Self::default();
        for (sample, span) in record.spans(until_ms) {
            let early = from_ms.saturating_sub(sample.at_ms);
            sum.add(sample, span.saturating_sub(early));
        }
        sum
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        rounded(part / whole)
    } else {
        0.0
    }
}

/// The time that the figures speak of: from the first arrival to the last end.
pub fn window_ms(scene: &Scene, record: &Record) -> (u64, u64) {
    let first = scene
        .gangs
        .iter()
        .zip(&record.lives)
        .find(|(_, life)| life.arrived)
        .map_or(0, |(gang, _)| gang.arrival_ms);
    let unfinished = |life: &Life| life.arrived && life.ended_ms.is_none();
    let last_end = record.lives.iter().filter_map(|life| life.ended_ms).max();
    let last = match last_end {
        Some(end) if !record.lives.iter().any(unfinished) => end,
        _ => record.end_ms,
    };
    (first, last.max(first))
}

impl Summary {
    /// The figures of a replay.
    pub fn of(about: &About, scene: &Scene, outcome: &Outcome) -> Self {
        let record = &outcome.record;
        let count = |is: &dyn Fn(&Life) -> bool| record.lives.iter().filter(|l| is(l)).count();
        let waits = all_waits(scene, record);
        let all = Waits::of(waits.iter().map(|(_, wait)| *wait).collect());
        let (first, last) = window_ms(scene, record);
        let last_arrival = scene.gangs.last().map_or(0, |gang| gang.arrival_ms);
        let whole = Integral::of(record, first, last);
        let arriving = Integral::of(record, first, last_arrival.clamp(first, last));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            format: about.format,
            input: scene.source.clone(),
            policy: about.policy,
            seed: about.seed,
            load: about.load,
            write_delay_ms: about.write_delay_ms,
            reserve_after_ms: about.reserve_after_ms,
            keep_for_ms: about.keep_for_ms,
            nodes: scene.nodes.iter().filter(|node| !node.absent).count(),
            gpus: scene.gpus(),
            gangs: scene.gangs.len(),
            gangs_completed: count(&|life| life.ended_ms.is_some()),
            gangs_running: count(&|life| life.running),
            gangs_starved: count(&|life| life.arrived && life.started_ms.is_none()),
            gangs_impossible: count(&|life| life.impossible.is_some()),
            gangs_halted: record.lives.iter().map(|life| u64::from(life.halts)).sum(),
            gang_wait_seconds_mean: all.mean,
            gang_wait_seconds_p95: all.p95,
            gang_wait_seconds_max: all.max,
            multi_pod_gang_wait_seconds: Waits::of(
                waits
                    .iter()
                    .filter(|(gang, _)| gang.members() > 1)
                    .map(|(_, wait)| *wait)
                    .collect(),
            ),
            gang_wait_seconds_by_size: by_size(&waits),
            makespan_seconds: seconds(last.saturating_sub(first)),
            gpu_use_ratio: ratio(whole.used, whole.gpus),
            gpu_use_ratio_to_last_arrival: ratio(arriving.used, arriving.gpus),
            fragmentation: Fragmentation {
                free_gpus_on_used_nodes_ratio_mean: ratio(whole.fragmented, whole.free_time),
                free_gpus_on_used_nodes_mean: ratio(whole.stranded, whole.time),
                whole_free_nodes_mean: ratio(whole.whole, whole.time),
                blocked_time_ratio: ratio(whole.blocked, whole.time),
            },
            invariant_violations: outcome.violations,
            waiting_at_end: named(scene, outcome.reasons.iter()),
            impossible: named(
                scene,
                record.lives.iter().enumerate().filter_map(|(gang, life)| {
                    let why = life.impossible.as_ref()?;
                    Some((gang, why))
                }),
            ),
            notes: scene.notes.clone(),
        }
    }

    /// The most important figures, in a few lines for people.
    pub fn in_words(&self) -> String {
        let several = &self.multi_pod_gang_wait_seconds;
        let mut lines = vec![
            format!(
                "{} gangs on {} GPUs under {}: {} completed, {} running, {} starved (never started), {} impossible",
                self.gangs,
                self.gpus,
                self.policy,
                self.gangs_completed,
                self.gangs_running,
                self.gangs_starved,
                self.gangs_impossible
            ),
            format!(
                "wait of those that started, until they first did: mean {}, p95 {}, longest {}; gangs of several pods: \
                 mean {}, p95 {}",
                span(self.gang_wait_seconds_mean),
                span(self.gang_wait_seconds_p95),
                span(self.gang_wait_seconds_max),
                span(several.mean),
                span(several.p95)
            ),
            format!(
                "GPU use {:.1} %, up to the last arrival {:.1} %; makespan {}",
                100.0 * self.gpu_use_ratio,
                100.0 * self.gpu_use_ratio_to_last_arrival,
                span(self.makespan_seconds)
            ),
        ];
        if self.gangs_halted > 0 {
            let count = self.gangs_halted;
            lines.push(format!(
                "{count} runs were lost with a node and had to begin again: what they waited for that is not in the wait"
            ));
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        if self.invariant_violations > 0 {
            let count = self.invariant_violations;
            lines.push(format!(
                "a bug: {count} invariants of the engine did not hold"
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

fn named<'a, G: std::borrow::Borrow<usize>>(
    scene: &Scene,
    reasons: impl Iterator<Item = (G, &'a String)>,
) -> Vec<NotRun> {
    reasons
        .filter_map(|(gang, reason)| {
            Some(NotRun {
                gang: scene.gangs.get(*gang.borrow())?.name.to_string(),
                reason: reason.clone(),
            })
        })
        .take(NAMED_MAX)
        .collect()
}

/// Wait of every gang that started, milliseconds.
fn all_waits<'a>(scene: &'a Scene, record: &Record) -> Vec<(&'a GangSpec, u64)> {
    scene
        .gangs
        .iter()
        .zip(&record.lives)
        .filter_map(|(gang, life)| {
            let started = life.started_ms?;
            Some((gang, started.saturating_sub(gang.arrival_ms)))
        })
        .collect()
}

fn by_size(waits: &[(&GangSpec, u64)]) -> Vec<(String, Waits)> {
    let mut sizes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (gang, wait) in waits {
        sizes.entry(step(gang.gpus())).or_default().push(*wait);
    }
    sizes
        .into_iter()
        .map(|(top, waits)| (step_name(top), Waits::of(waits)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fall_into_steps_of_powers_of_two() {
        let name = |gpus| step_name(step(gpus));
        let names: Vec<String> = [0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 512].map(name).into();
        assert_eq!(
            names,
            [
                "0", "1", "2", "3-4", "3-4", "5-8", "5-8", "9-16", "9-16", "17-32", "257-512"
            ]
        );
        assert_eq!(step(u64::MAX), u64::MAX);
    }

    #[test]
    fn p95_is_the_wait_that_95_of_100_do_not_exceed() {
        let waits = Waits::of((1..=100).rev().map(|seconds| seconds * 1000).collect());
        assert_eq!(
            (waits.gangs, waits.mean, waits.p95, waits.max),
            (100, 50.5, 95.0, 100.0)
        );
        assert_eq!(Waits::of(vec![7000]).p95, 7.0);
        assert_eq!(Waits::of(Vec::new()), Waits::default());
    }
}
