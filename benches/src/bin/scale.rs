//! What Muster's edges cost at the sizes it is made for; see `scale --help` and the README beside.

use clap::Parser as _;
use muster_benches::scale::Cli;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Cli::parse().run().await
}
