//! Muster on the real control plane for long, while jobs come and go: memory, open files and metric series.
//!
//! ```text
//! cargo run --release -p muster-tests --bin soak -- --minutes 120
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use muster_tests::soak::{self, Plan, mebibytes};

/// Open files that come and go with connections.
const FILES_SPREAD: usize = 64;

/// Keeps so many PyTorchJobs on fake GPU nodes that come, run and end, and looks every 10 s at what Muster holds. The first
/// third of the time is warm-up.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// For how long, minutes
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Jobs that are there at any time
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    in_flight: u32,
    /// GPU nodes, of 8 GPUs each
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    nodes: u32,
    /// What the jobs come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Most that memory may grow, MiB an hour; only a run of hours tells little from nothing
    #[arg(long, default_value_t = 1.0)]
    growth_max: f64,
    /// End with an error when anything has grown
    #[arg(long)]
    strict: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let plan = Plan {
        length: Duration::from_secs(arguments.minutes.saturating_mul(60)),
        in_flight: usize::try_from(arguments.in_flight)?,
        nodes: arguments.nodes,
        seed: arguments.seed,
    };
    let since = Instant::now();
    let say = |text: &str| println!("{:>6.0} s  {text}", since.elapsed().as_secs_f64());
    let outcome = soak::run(plan, &say).await?;
    let growth = outcome.bytes_per_hour / (1024.0 * 1024.0);
    let last = outcome.samples.last().map_or(0, |sample| sample.rss_bytes);
    println!();
    println!("jobs that came, ran and ended   {}", outcome.jobs);
    println!(
        "memory at the end               {:.1} MiB, {growth:+.2} MiB/h since the warm-up",
        mebibytes(last)
    );
    println!(
        "open files                      {} to {}",
        outcome.files.0, outcome.files.1
    );
    println!(
        "metric series                   {} to {}",
        outcome.series.0, outcome.series.1
    );
    let flat = growth <= arguments.growth_max
        && outcome.files.1.saturating_sub(outcome.files.0) <= FILES_SPREAD
        && outcome.series.0 == outcome.series.1;
    println!("{}", if flat { "flat" } else { "NOT FLAT" });
    Ok(if arguments.strict && !flat {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
