//! `muster-scheduler`: see [`muster_scheduler::cli`].

use clap::Parser;
use muster_scheduler::cli::{self, Cli};

fn main() -> anyhow::Result<std::process::ExitCode> {
    let cli = Cli::parse();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(cli::run(cli))
}
