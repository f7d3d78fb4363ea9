//! `timeline.csv`: a row for each arrival.

use std::fmt::Write as _;

use super::run::{Run, Sample};

/// First line of the file.
const HEADER: &str = "arrival,arrived_gpus,allocated_gpus,pods_placed,pods_dropped,\
                      idle_gpus_whole,idle_gpus_in_part,idle_gpus_on_nodes_without_a_core\n";

/// The text of `timeline.csv`.
pub(super) fn text(run: &Run) -> String {
    let mut text = String::from(HEADER);
    for (arrival, sample) in (1usize..).zip(&run.samples) {
        let Sample { idle, .. } = sample;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{arrival},{},{},{},{},{},{},{}",
            gpus(sample.arrived_milli),
            gpus(sample.allocated_milli),
            sample.placed,
            sample.dropped,
            gpus(idle.whole),
            gpus(idle.part),
            gpus(idle.without_core),
        );
    }
    text
}

/// Thousandths of GPUs as GPUs.
fn gpus(milli: u64) -> String {
    format!("{}.{:03}", milli.div_euclid(1000), milli.rem_euclid(1000))
}
