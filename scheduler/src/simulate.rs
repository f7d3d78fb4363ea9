//! `muster-scheduler simulate`: the command line of `muster-simulate`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use muster_simulate::input::trace::TraceOptions;
use muster_simulate::progress::Meter;
use muster_simulate::{Format, Input, PolicyKind, Simulation, Until};

use crate::span::Span;

/// Replay gangs in virtual time on nodes that do not exist; figures and pictures go to a folder.
#[derive(Debug, Args)]
pub struct Simulate {
    /// philly (CSV: timestamp, num_gpus, duration in s), muri (CSV: submit_time, num_gpu, duration, in
    /// ms), or scenario (YAML: see deploy/examples/scenarios).
    #[arg(long)]
    format: Format,
    /// The trace, for philly and muri.
    #[arg(long, value_name = "FILE", required_if_eq_any([("format", "philly"), ("format", "muri")]))]
    jobs: Option<PathBuf>,
    /// The scenario; it says itself what the flags for traces say.
    #[arg(long, value_name = "FILE", required_if_eq("format", "scenario"))]
    #[arg(conflicts_with_all = ["jobs", "nodes", "gpus_per_node", "load", "limit_jobs"])]
    file: Option<PathBuf>,
    /// Nodes, for philly and muri: 1 to 20000.
    #[arg(long, value_name = "N", required_if_eq_any([("format", "philly"), ("format", "muri")]))]
    nodes: Option<usize>,
    /// GPUs of each node: 1 to 64; 8 by default.
    #[arg(long, value_name = "N")]
    gpus_per_node: Option<u32>,
    /// Stretch the times of arrival until the sum of GPUs x duration is this share of the GPU time
    /// between the first and the last arrival: 0.01 to 10. Without it they stay as they are.
    #[arg(long, value_name = "RATIO")]
    load: Option<f64>,
    /// Replay so many jobs only, one after the other; the seed says from where on, 0 from the first.
    #[arg(long, value_name = "N")]
    limit_jobs: Option<usize>,
    /// The same input and seed give the same bytes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// muster (the engine that serves), fifo (strict order of arrival), or greedy (in order of arrival,
    /// and whoever fits goes).
    #[arg(long, default_value = "muster")]
    policy: PolicyKind,
    /// How long a write to the API takes, for the policy muster: 0ms to 60s.
    #[arg(long, value_name = "TIME", default_value = "0ms")]
    write_delay: Span,
    /// End: drained (nothing runs and nothing more can start), last-arrival, or a time like 90s, 12h, 30d.
    #[arg(long, value_name = "WHEN")]
    until: Option<Until>,
    /// Folder for summary.json, timeline.csv and report.html: empty, or not there yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write into a folder that is not empty.
    #[arg(long)]
    force: bool,
}

impl Simulate {
    /// Runs the replay and says what it has found.
    pub fn run(self) -> anyhow::Result<()> {
        let options = TraceOptions {
            nodes: self.nodes.unwrap_or_default(),
            gpus_per_node: self.gpus_per_node.unwrap_or(8),
            load: self.load,
            limit_jobs: self.limit_jobs,
            seed: self.seed,
        };
        let simulation = Simulation {
            input: Input::new(self.format, options),
            file: self.file.or(self.jobs).context("no --jobs and no --file")?,
            policy: self.policy,
            seed: self.seed,
            write_delay_ms: self.write_delay.millis().0,
            until: self.until,
            out: self.out,
            force: self.force,
        };
        let mut meter = Meter::stderr();
        let summary = simulation.run(&mut |progress| meter.update(progress));
        meter.finish();
        let report = simulation.out.join("report.html");
        let said = format!("{}\nreport: {}", summary?.in_words(), report.display());
        writeln!(std::io::stdout(), "{said}").context("standard output")
    }
}
