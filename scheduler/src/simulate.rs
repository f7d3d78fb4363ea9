//! `muster-scheduler simulate`: the command line of `muster-simulate`.

use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use muster_simulate::input::trace::TraceOptions;
use muster_simulate::openb::{self, Experiment};
use muster_simulate::progress::Meter;
use muster_simulate::{At, Format, Input, PolicyKind, Simulation, Until};

use crate::span::Span;

/// Replay gangs in virtual time on nodes that do not exist; figures and pictures go to a folder.
#[derive(Debug, Args)]
pub struct Simulate {
    /// philly (CSV: timestamp, num_gpus, duration in s), muri (CSV: submit_time, num_gpu, duration, in
    /// ms), scenario (YAML: see deploy/examples/scenarios), or openb (two CSVs: pods that come one after the
    /// other and never end, as in the published experiment of FGD).
    #[arg(long)]
    format: Kind,
    /// The trace, for philly and muri; the pods, for openb (CSV: name, cpu_milli, memory_mib, num_gpu,
    /// gpu_milli, gpu_spec).
    #[arg(long, value_name = "FILE")]
    #[arg(required_if_eq_any([("format", "philly"), ("format", "muri"), ("format", "openb")]))]
    jobs: Option<PathBuf>,
    /// The scenario; it says itself what the flags for traces say.
    #[arg(long, value_name = "FILE", required_if_eq("format", "scenario"))]
    #[arg(conflicts_with_all = ["jobs", "nodes", "gpus_per_node", "load", "limit_jobs"])]
    file: Option<PathBuf>,
    /// Nodes: for philly and muri how many, 1 to 20000; for openb a file (CSV: sn, cpu_milli, memory_mib,
    /// gpu, model).
    #[arg(long, value_name = "N|FILE")]
    #[arg(required_if_eq_any([("format", "philly"), ("format", "muri"), ("format", "openb")]))]
    nodes: Option<String>,
    /// GPUs of each node, for philly and muri: 1 to 64; 8 by default.
    #[arg(long, value_name = "N")]
    gpus_per_node: Option<u32>,
    /// Stretch the times of arrival, for philly and muri, until the sum of GPUs x duration is this share of
    /// the GPU time between the first and the last arrival: 0.01 to 10. Without it they stay as they are.
    #[arg(long, value_name = "RATIO")]
    load: Option<f64>,
    /// Replay so many jobs of philly and muri only, one after the other; the seed says from where on, 0 from
    /// the first.
    #[arg(long, value_name = "N")]
    limit_jobs: Option<usize>,
    /// Let pods of openb come again, or leave some out, until they ask for this share of the cluster's GPUs:
    /// 0.01 to 10; 1.3 by default.
    #[arg(long, value_name = "RATIO")]
    inflate: Option<f64>,
    /// The same input and seed give the same bytes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// muster (the engine that serves), fifo (strict order of arrival), or greedy (in order of arrival,
    /// and whoever fits goes); for openb muster (its planner), fgd, bestfit, random, or first-fit.
    #[arg(long, default_value = "muster")]
    policy: String,
    /// How long a write to the API takes, for the policy muster: 0ms to 60s; 0ms by default. Not for openb.
    #[arg(long, value_name = "TIME")]
    write_delay: Option<Span>,
    /// How long a gang waits before nodes are kept for it, for the policy muster: 0s to 168h, 0s for never; by default
    /// as the scenario says, or 10m. Not for openb.
    #[arg(long, value_name = "TIME")]
    reserve_after: Option<Span>,
    /// How long nodes are kept for a gang while nothing ends on them, for the policy muster: 0s to 168h, 0s for until it
    /// starts; by default as the scenario says, or 48h. Not for openb.
    #[arg(long, value_name = "TIME")]
    keep_for: Option<Span>,
    /// End: drained (nothing runs and nothing more can start), last-arrival, or a time like 90s, 12h, 30d.
    /// Not for openb.
    #[arg(long, value_name = "WHEN")]
    until: Option<Until>,
    /// Folder for summary.json, timeline.csv, gangs.csv (for openb allocation.csv) and report.html: empty, or
    /// not there yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write into a folder that is not empty.
    #[arg(long)]
    force: bool,
    /// Write what the planner sees to a file, for `muster-scheduler plan --dump FILE`; for the policy muster.
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// When: a time of the replay like 90s, 12h, 30d, once everything of that time has been decided. Without it
    /// at the end.
    #[arg(long, value_name = "TIME", requires = "dump")]
    dump_at: Option<At>,
}

/// What `--format` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Gangs over time.
    Replay(Format),
    /// The experiment of [`openb`].
    Openb,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "openb" {
            return Ok(Self::Openb);
        }
        Format::from_str(text)
            .map(Self::Replay)
            .map_err(|_| "must be philly, muri, scenario or openb".into())
    }
}

impl Simulate {
    /// Runs what `--format` names and says what it has found.
    pub fn run(self) -> anyhow::Result<()> {
        let report = self.out.join("report.html");
        let found = match self.format {
            Kind::Replay(format) => self.replay(format)?,
            Kind::Openb => self.openb()?,
        };
        let said = format!("{found}\nreport: {}", report.display());
        writeln!(std::io::stdout(), "{said}").context("standard output")
    }

    fn replay(self, format: Format) -> anyhow::Result<String> {
        if let Some(ratio) = self.inflate {
            bail!(
                "--inflate is {ratio}: goes with --format openb only, not with {}",
                format.as_str()
            );
        }
        let nodes = match self.nodes {
            Some(text) => text.parse().ok().with_context(|| {
                let format = format.as_str();
                format!("--nodes is {text:?}: must be a number of nodes with --format {format}")
            })?,
            None => 0,
        };
        let options = TraceOptions {
            nodes,
            gpus_per_node: self.gpus_per_node.unwrap_or(8),
            load: self.load,
            limit_jobs: self.limit_jobs,
            seed: self.seed,
        };
        let simulation = Simulation {
            input: Input::new(format, options),
            file: self.file.or(self.jobs).context("no --jobs and no --file")?,
            policy: policy::<PolicyKind>(&self.policy, format.as_str())?,
            seed: self.seed,
            write_delay_ms: self.write_delay.map_or(0, |delay| delay.millis().0),
            reserve_after_ms: self.reserve_after.map(|after| after.millis().0),
            keep_for_ms: self.keep_for.map(|span| span.millis().0),
            until: self.until,
            out: self.out,
            force: self.force,
            dump: self.dump.map(|file| {
                let end = At(u64::MAX);
                (file, self.dump_at.unwrap_or(end).0)
            }),
        };
        let mut meter = Meter::stderr();
        let summary = simulation.run(&mut |progress| meter.update(progress));
        meter.finish();
        Ok(summary?.in_words())
    }

    fn openb(self) -> anyhow::Result<String> {
        for (flag, is_given) in [
            ("--file", self.file.is_some()),
            ("--gpus-per-node", self.gpus_per_node.is_some()),
            ("--load", self.load.is_some()),
            ("--limit-jobs", self.limit_jobs.is_some()),
            ("--write-delay", self.write_delay.is_some()),
            ("--reserve-after", self.reserve_after.is_some()),
            ("--keep-for", self.keep_for.is_some()),
            ("--until", self.until.is_some()),
            ("--dump", self.dump.is_some()),
            ("--dump-at", self.dump_at.is_some()),
        ] {
            if is_given {
                bail!("{flag} does not go with --format openb: its pods come one after the other");
            }
        }
        let nodes = self.nodes.context("no --nodes")?;
        if nodes.parse::<u64>().is_ok() && !std::path::Path::new(&nodes).exists() {
            bail!("--nodes is {nodes:?}: must be a file with nodes with --format openb");
        }
        let experiment = Experiment {
            nodes: nodes.into(),
            pods: self.jobs.context("no --jobs")?,
            setting: openb::Setting {
                policy: policy::<openb::PolicyKind>(&self.policy, "openb")?,
                inflate: self.inflate.unwrap_or(openb::INFLATE),
                seed: self.seed,
            },
            out: self.out,
            force: self.force,
        };
        let mut meter = Meter::stderr();
        let summary = experiment.run(&mut |arrived, all| meter.update_arrivals(arrived, all));
        meter.finish();
        Ok(summary?.in_words())
    }
}

/// A policy of a format.
fn policy<P: FromStr<Err = String>>(text: &str, format: &str) -> anyhow::Result<P> {
    text.parse()
        .map_err(|limit| anyhow::anyhow!("--policy is {text:?}: {limit} with --format {format}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        simulate: Simulate,
    }

    /// What is said about a command line, when it is read or when it runs.
    fn said(line: &str) -> String {
        let words = std::iter::once("simulate").chain(line.split_whitespace());
        match Line::try_parse_from(words) {
            Ok(line) => format!("{:#}", line.simulate.run().unwrap_err()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn flags_of_another_format_are_refused_by_name() {
        let openb = "--format openb --nodes n.csv --jobs p.csv --out o";
        let muri = "--format muri --nodes 8 --jobs j.csv --out o";
        for (line, wanted) in [
            (
                format!("{openb} --load 1"),
                "--load does not go with --format openb",
            ),
            (
                format!("{openb} --until 3h"),
                "--until does not go with --format openb",
            ),
            (
                format!("{openb} --dump d.json"),
                "--dump does not go with --format openb",
            ),
            (
                format!("{openb} --policy greedy"),
                "--policy is \"greedy\": must be muster, fgd, bestfit, random or first-fit with --format openb",
            ),
            (
                format!("{muri} --policy fgd"),
                "--policy is \"fgd\": must be muster, fifo or greedy with --format muri",
            ),
            (
                format!("{muri} --inflate 1.3"),
                "--inflate is 1.3: goes with --format openb only, not with muri",
            ),
            (
                "--format muri --nodes n.csv --jobs j.csv --out o".into(),
                "--nodes is \"n.csv\": must be a number of nodes with --format muri",
            ),
            (
                "--format openb --nodes 8 --jobs p.csv --out o".into(),
                "--nodes is \"8\": must be a file with nodes with --format openb",
            ),
            (openb.into(), "n.csv: No such file"),
            ("--format openb --nodes n.csv --out o".into(), "--jobs"),
            (
                "--format helios --out o".into(),
                "must be philly, muri, scenario or openb",
            ),
        ] {
            let said = said(&line);
            assert!(said.contains(wanted), "{line}: {said}");
        }
    }
}
