//! `timeline.csv`: a row for each time at which something changed.

use std::fmt::Write as _;

use crate::record::{Record, Sample};

/// First line of the file.
const HEADER: &str = "time_seconds,gpus,gpus_used,gangs_running,gangs_waiting,\
                      gpus_wanted_by_waiting,free_gpus,free_gpus_on_whole_nodes,free_nodes_whole\n";

/// The text of `timeline.csv`.
pub fn text(record: &Record) -> String {
    let mut text = String::from(HEADER);
    for sample in &record.samples {
        row(&mut text, sample);
    }
    text
}

fn row(text: &mut String, sample: &Sample) {
    let Sample { at_ms, nodes, .. } = sample;
    let (whole, part) = (at_ms.div_euclid(1000), at_ms.rem_euclid(1000));
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{whole}.{part:03},{},{},{},{},{},{},{},{}",
        nodes.gpus,
        nodes.used,
        sample.running,
        sample.waiting,
        sample.wanted,
        nodes.free,
        nodes.free_whole,
        nodes.whole_nodes,
    );
}
