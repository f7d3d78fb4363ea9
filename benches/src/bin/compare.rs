//! Compares schedulers on a real control plane; see `compare --help` and the README beside.

use clap::Parser as _;
use muster_benches::cli::Cli;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Cli::parse().run().await
}
