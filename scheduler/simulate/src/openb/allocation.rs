//! `allocation.csv`: the share of all GPUs that is allocated, by how many have arrived. Columns and rounding
//! are those of the published table, `experiments/analysis/expected_results/analysis_allo_discrete.csv`, as
//! `merge_alloc_discrete.py` makes it, so that rows of both can stand in one file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Setting;
use super::run::Run;
use crate::record::as_f64;

/// The last column: GPUs that have arrived, percent of those of the cluster.
pub const ARRIVED_MAX: u32 = 130;

/// Share of all GPUs that was allocated, percent, by GPUs that had arrived, percent of the cluster's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    /// From 0 to [`ARRIVED_MAX`]; `None` where so many had not arrived, or never came.
    values: Vec<Option<f64>>,
}

impl Allocation {
    /// Of a run.
    ///
    /// After each arrival x is what has arrived, rounded to a whole percentage, and y what is allocated, rounded
    /// to two digits. A value is the mean y of all arrivals of the same x, rounded to two digits; where there
    /// is none, that of all arrivals with x - 1 to x + 1.
    pub fn of(run: &Run) -> Self {
        let gpus = as_f64(run.gpus());
        let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for sample in &run.samples {
            let arrived = (as_f64(sample.arrived_milli) / gpus / 10.0).round_ties_even();
            // Not negative. What is beyond the last column counts in none, but for the one before.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let x = arrived.clamp(0.0, f64::from(u32::MAX - 1)) as u32;
            let y = two_digits(as_f64(sample.allocated_milli) / gpus / 10.0);
            let (sum, count) = sums.entry(x).or_default();
            *sum += y;
            *count += 1.0;
        }
        let mean = |range: std::ops::RangeInclusive<u32>| {
            let found = sums.range(range).map(|(_, found)| *found);
            let (sum, count) =
                found.fold((0.0, 0.0), |all, found| (all.0 + found.0, all.1 + found.1));
            (count > 0.0).then(|| (sum / count * 100.0).round_ties_even() / 100.0)
        };
        let values = (0..=ARRIVED_MAX)
            .map(|x| mean(x..=x).or_else(|| mean(x.saturating_sub(1)..=x.saturating_add(1))))
            .collect();
        Self { values }
    }

    /// Allocated GPUs when so many had arrived, both in percent.
    pub fn at(&self, arrived: u32) -> Option<f64> {
        let position = usize::try_from(arrived).ok()?;
        self.values.get(position).copied().flatten()
    }

    /// The last value that there is.
    pub fn last(&self) -> Option<f64> {
        self.values.iter().rev().find_map(|value| *value)
    }

    /// Every value, from 0 on.
    pub fn values(&self) -> &[Option<f64>] {
        &self.values
    }

    /// The text of `allocation.csv`: a head and one row.
    pub fn text(&self, workload: &str, setting: &Setting, gpus: u64) -> String {
        let mut text = header();
        let workload = match workload.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", workload.replace('"', "\"\"")),
            false => workload.to_owned(),
        };
        // Writing to a String does not fail, here and below. Numbers are written as Python writes them.
        let _ = write!(
            text,
            "\n{workload},{},{:?},{},{gpus}",
            setting.policy.published(),
            setting.inflate,
            setting.seed
        );
        for value in &self.values {
            let _ = match value {
                Some(value) => write!(text, ",{value:?}"),
                None => write!(text, ","),
            };
        }
        text.push('\n');
        text
    }
}

/// The first line, without its end.
pub fn header() -> String {
    let mut text = String::from("workload,sc_policy,tune,seed,total_gpus");
    for x in 0..=ARRIVED_MAX {
        let _ = write!(text, ",{x}");
    }
    text
}

/// Rounded to two digits as Python's `round(x, 2)` does it: by the exact value of the float, and to an even
/// digit where that is in the middle, as Rust's formatting does.
fn two_digits(value: f64) -> f64 {
    format!("{value:.2}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::super::run::Sample;
    use super::super::trace::Machine;
    use super::super::{PolicyKind, Setting};
    use super::*;

    /// A run on 10 GPUs: thousandths that had arrived and were allocated after each arrival.
    fn run(samples: &[(u64, u64)]) -> Run {
        let sample = |&(arrived_milli, allocated_milli): &(u64, u64)| Sample {
            arrived_milli,
            allocated_milli,
            ..Sample::default()
        };
        let node = |gpus| Machine {
            name: "n".into(),
            cpu_milli: 0,
            memory_mib: 0,
            gpus,
            model: 0,
        };
        Run {
            nodes: vec![node(8), node(2)],
            models: Vec::new(),
            samples: samples.iter().map(sample).collect(),
            changes: Vec::new(),
            dropped_with_room: 0,
        }
    }

    #[test]
    fn rounding_is_that_of_python() {
        // Python: round(0.125, 2) == 0.12, round(0.375, 2) == 0.38, round(2.675, 2) == 2.67.
        let found = [0.125, 0.375, 2.675, 0.625, 95.0].map(two_digits);
        assert_eq!(found, [0.12, 0.38, 2.67, 0.62, 95.0]);
    }

    #[test]
    fn values_are_means_over_arrivals_of_the_same_whole_percentage() {
        let allocation = Allocation::of(&run(&[
            // x is 0 (half to even), 2 (half to even), 2, then 4 and 5; nothing has x 1 or 3.
            (50, 50),
            (150, 100),
            (200, 200),
            (400, 300),
            (500, 401),
        ]));
        assert_eq!(allocation.at(0), Some(0.5));
        assert_eq!(allocation.at(2), Some(1.5));
        assert_eq!(allocation.at(4), Some(3.0));
        assert_eq!(allocation.at(5), Some(4.01));
        // From its neighbours: all three arrivals with x 0 and 2, those with 2 and 4.
        assert_eq!(allocation.at(1), Some(1.17));
        assert_eq!(allocation.at(3), Some(2.0));
        assert_eq!(allocation.at(6), Some(4.01));
        assert_eq!((allocation.at(7), allocation.at(130)), (None, None));
        assert_eq!(allocation.last(), Some(4.01));
    }

    #[test]
    fn a_row_has_the_columns_of_the_published_table() {
        let setting = Setting {
            policy: PolicyKind::Fgd,
            inflate: 1.0,
            seed: 42,
        };
        let text = Allocation::of(&run(&[(1000, 1000)])).text("a,b", &setting, 10);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("workload,sc_policy,tune,seed,total_gpus,0,1,2,"));
        assert!(lines[0].ends_with(",129,130"));
        assert!(lines[1].starts_with("\"a,b\",06-FGD,1.0,42,10,,"), "{text}");
        assert_eq!(lines[0].split(',').count(), 5 + 131);
        assert_eq!(lines[1].split(',').count(), 6 + 131);
        assert!(lines[1].contains(",,10.0,10.0,10.0,,"));
    }
}
