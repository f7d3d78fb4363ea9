//! Muster is killed many times under load, on the real control plane; the API server's watch says what came of it.
//!
//! ```text
//! cargo run --release -p muster-tests --bin kills -- --kills 1000
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use muster_tests::kills::{self, Plan};

/// Keeps so many PyTorchJobs on fake GPU nodes that come, run and end, while Muster is killed at random moments
/// (SIGKILL), with kube-scheduler, kube-apiserver and etcd killed among it, and connections that are lost, late and cut.
/// Ends with an error when a GPU was given twice, a gang was bound in part for longer than its time for repair, a job never
/// ended, a pod that ran was taken away before its job had ended by a Muster
/// that had led for less than 30 s, or GPUs stay reserved for nobody.
#[derive(Debug, Parser)]
#[command(name = "kills")]
struct Arguments {
    /// SIGKILLs of Muster
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    kills: u32,
    /// Jobs that are there at any time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    in_flight: u32,
    /// GPU nodes, of 8 GPUs each
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    nodes: u32,
    /// What the moments of all faults come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with an error after this long, minutes
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let plan = Plan {
        kills: arguments.kills,
        in_flight: usize::try_from(arguments.in_flight)?,
        nodes: arguments.nodes,
        seed: arguments.seed,
        longest: Duration::from_secs(arguments.minutes.saturating_mul(60)),
    };
    let since = Instant::now();
    let say = |text: &str| println!("{:>6.0} s  {text}", since.elapsed().as_secs_f64());
    let outcome = kills::run(plan, &say).await?;
    println!();
    let line = |words: &str, value: String| println!("{words:<52} {value:>8}");
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    line("SIGKILL of Muster", outcome.kills.to_string());
    for (fault, count) in &outcome.faults {
        line(fault, count.to_string());
    }
    line("jobs that came, ran and ended", outcome.jobs.to_string());
    line("pods bound", outcome.binds.to_string());
    line("no Muster led for", seconds(outcome.leaderless));
    line("longest in part", seconds(outcome.partial_longest));
    line(
        "longest in part while a Muster led",
        seconds(outcome.partial_led),
    );
    line(
        "longest that a plan had nothing bound",
        seconds(outcome.unused_longest),
    );
    line(
        "from the last fault to the last job's end",
        seconds(outcome.rest),
    );
    line("until a job had every GPU", seconds(outcome.all_gpus));
    println!(
        "no GPU given twice, no gang in part for longer than 32 s of a healthy API server and a Muster that leads, nor for longer than \
         107 s of a healthy API server, no job lost, no running pod taken away by a Muster that had led for less than 30 s, nothing reserved for nobody"
    );
    Ok(ExitCode::SUCCESS)
}
