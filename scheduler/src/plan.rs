//! `muster-scheduler plan`: plans the gangs of a dump with the production planner, away from any cluster.

use std::io::{Read, Write as _};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use muster_core::state::State;
use muster_dump::FILE_MAX;
use muster_dump::report::Report;

/// Plan the gangs of a dump: where each of them goes, or why it goes nowhere.
#[derive(Debug, Args)]
pub struct Plan {
    /// A dump: what `dump` or `simulate --dump` has written; - is standard input.
    #[arg(long, value_name = "FILE")]
    dump: PathBuf,
    /// Say it of this gang only: its namespace and the name of its job or of its Gang. The others are planned
    /// nevertheless: those before it in the queue go first.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    gang: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Plan {
    /// Reads, plans, and says what has been found.
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(gang) = self.gang.as_ref().filter(|gang| !gang.contains('/')) {
            bail!("--gang is {gang}: must be NAMESPACE/NAME");
        }
        let file = self.dump.display().to_string();
        let state = self.read().context(file)?;
        let replay = muster_dump::replay(&state);
        let report = Report::of(&state, &replay, self.gang.as_deref());
        if let Some(gang) = self.gang.filter(|_| report.gangs.is_empty()) {
            let gangs = state.gangs.len();
            bail!("--gang is {gang}: must be one of the {gangs} gangs in the dump");
        }
        let text = match self.json {
            true => report.json()?,
            false => report.in_words(),
        };
        let mut out = std::io::stdout();
        out.write_all(text.as_bytes()).context("standard output")
    }

    fn read(&self) -> anyhow::Result<State> {
        let mut text = String::new();
        let file: Box<dyn Read> = match self.dump.as_os_str() == "-" {
            true => Box::new(std::io::stdin()),
            false => Box::new(std::fs::File::open(&self.dump)?),
        };
        let read = file
            .take(FILE_MAX.saturating_add(1))
            .read_to_string(&mut text)?;
        if u64::try_from(read).unwrap_or(u64::MAX) > FILE_MAX {
            bail!("must be at most {FILE_MAX} bytes");
        }
        Ok(muster_dump::read(&text)?)
    }
}
