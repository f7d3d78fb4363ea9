//! What Muster costs while nothing happens: thousands of fake agents report over real gRPC streams,
//! and nobody asks for anything.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use muster_benches::http::metric;
use muster_benches::muster::{self, Muster, Settings};
use muster_benches::programs::Programs;
use muster_benches::{fleet, machine, stage};
use muster_control_plane::{Cluster, Usage};
use serde_json::json;

/// Memory and processor time of muster-scheduler while a fleet of fake agents reports and no gang
/// exists.
#[derive(Debug, Parser)]
#[command(name = "idle")]
struct Cli {
    /// Nodes, each with an agent of its own.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    nodes: u32,
    /// Rest after the last agent has reported, seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    rest: u64,
    /// Time over which is measured, seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Folder with ready `muster-scheduler` and `muster-agent`; otherwise cargo builds them.
    #[arg(long, value_name = "DIR")]
    muster_bin: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let programs = Programs::find(cli.muster_bin.as_deref(), true)?;
    let pool = stage::pool(cli.nodes);
    eprintln!("starting a control plane with {} nodes", cli.nodes);
    let cluster = Cluster::builder()
        .with_kwok(false)
        .nodes(pool.clone())
        .start()
        .await?;
    let settings = Settings {
        programs,
        policies: true,
        agents: true,
        log: "warn".into(),
    };
    Muster::install(&cluster, &settings).await?;
    let muster = Muster::start(&cluster, &settings).await?;
    eprintln!("starting {} agents", cli.nodes);
    fleet::start(&cluster, &muster, &settings.programs, &pool).await?;
    tokio::time::sleep(Duration::from_secs(cli.rest)).await;
    let figures = watch(&cluster, &muster, Duration::from_secs(cli.seconds)).await?;
    println!("{}", serde_json::to_string_pretty(&figures)?);
    Ok(())
}

/// Looks at the beginning and at the end of a quiet time.
async fn watch(
    cluster: &Cluster,
    muster: &Muster,
    span: Duration,
) -> anyhow::Result<serde_json::Value> {
    let usage = || -> anyhow::Result<Usage> {
        cluster
            .usage(&muster::program())
            .context("muster-scheduler has ended")
    };
    let (before, page_before) = (usage()?, muster.metrics().await?);
    let (writes_before, busy_before) = (cluster.api_writes().await?, machine::busy());
    tokio::time::sleep(span).await;
    let (after, page) = (usage()?, muster.metrics().await?);
    let writes = cluster.api_writes().await?.since(&writes_before);
    let seconds = span.as_secs_f64();
    let messages = metric(&page, "muster_agent_messages_total")
        - metric(&page_before, "muster_agent_messages_total");
    let busy = machine::busy().saturating_sub(busy_before).as_secs_f64();
    Ok(json!({
        "nodes": metric(&page, "muster_agents"),
        "seconds": seconds,
        "rssMiB": after.rss_bytes >> 20,
        "rssPeakMiB": after.rss_peak_bytes >> 20,
        "cpuShareOfOneCore": after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds,
        "agentMessagesPerSecond": messages / seconds,
        "apiWritesPerSecondOfAllClients": writes.total() as f64 / seconds,
        "coresBusyInAll": busy / seconds,
    }))
}
