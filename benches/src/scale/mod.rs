//! What Muster costs at the sizes it is made for, without Go and without a cluster.
//!
//! ```text
//!   this process: API server in memory (TLS), played callers, kubelets and misbehaving agents
//!        ^ lists, watches, writes, TokenReviews      | Filter, Bind (mTLS, one HTTP/2 connection)
//!        |                                           v
//!   muster-scheduler serve, a child process <══ gRPC ══ muster-agent fleet, or muster-agent run
//!        └── /metrics, /proc/PID ──> figures ──> table, target/scale/CASE.json
//! ```
//! Programs run as they do in production, over sockets and TLS; what is measured has a process of its own.
//! A figure exists only when the work behind it was real: each case checks that before it measures.

mod agent;
mod agents;
mod binds;
mod callers;
mod figures;
mod filter;
mod flood;
mod memory;
mod objects;
mod plan;
mod process;
mod world;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Parser, ValueEnum};

use crate::machine::Machine;
use crate::programs::Programs;
use figures::Report;

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Plans and verdicts, the planner alone, in this process.
    Plan,
    /// Filter calls of 64 callers on one connection.
    Filter,
    /// A gang of 1,000 members at the barrier, all on one connection.
    Binds,
    /// Memory with 5,000 nodes and 50,000 pods.
    Memory,
    /// 15,000 agents: memory and processor time, a restart, and some that say too much.
    Agents,
    /// Processor time and memory of one agent on a node with 8 GPUs.
    Agent,
}

impl Case {
    /// All of them.
    const ALL: [Self; 6] = [
        Self::Plan,
        Self::Filter,
        Self::Binds,
        Self::Memory,
        Self::Agents,
        Self::Agent,
    ];

    /// As it is written on the command line.
    const fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Filter => "filter",
            Self::Binds => "binds",
            Self::Memory => "memory",
            Self::Agents => "agents",
            Self::Agent => "agent",
        }
    }
}

/// Measures what Muster costs: plans, Filter and Bind, memory, thousands of agents, one agent.
///
/// Needs Linux, no Go and no cluster: the API server is in memory.
#[derive(Debug, Parser)]
#[command(name = "scale")]
pub struct Cli {
    /// Cases; all when none is named.
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// Nodes of `filter` and `memory`.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1_300..=20_000))]
    nodes: u32,
    /// Pods of `memory`; half of them are members of gangs.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..=200_000))]
    pods: u32,
    /// Members of the gang of `binds`.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=8_000))]
    members: u32,
    /// Agents of `agents`, each with a node and a stream of its own.
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(20..=50_000))]
    agents: u32,
    /// Agents of `agents` that say too much, beside the others.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=2_000))]
    floods: u32,
    /// Time over which is measured: processor time of `agents` and `agent`, each of the loads of
    /// `filter` a sixth of it, seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(6..=3_600))]
    seconds: u64,
    /// Folder with ready `muster-scheduler` and `muster-agent`; otherwise cargo builds them.
    #[arg(long, value_name = "DIR")]
    muster_bin: Option<PathBuf>,
    /// Folder for a JSON file of each case.
    #[arg(long, value_name = "DIR", default_value = "target/scale")]
    out: PathBuf,
    /// End with an error when a floor is missed.
    #[arg(long)]
    strict: bool,
}

impl Cli {
    /// Runs the cases one after the other and prints a row for each figure.
    ///
    /// # Errors
    /// A case that could not be measured, or with `--strict` a missed floor. The other cases run all the same.
    pub async fn run(self) -> anyhow::Result<()> {
        let cases = match self.cases.as_slice() {
            [] => &Case::ALL[..],
            some => some,
        };
        let programs = Programs::find(self.muster_bin.as_deref(), true)?;
        let machine = Machine::this();
        let (mut missed, mut failed) = (false, Vec::new());
        println!("{}", figures::head());
        for case in cases {
            eprintln!("{}:", case.name());
            let report = match self.measure(*case, &programs).await {
                Ok(report) => report,
                Err(error) => {
                    eprintln!("{}: {error:#}", case.name());
                    failed.push(case.name());
                    continue;
                }
            };
            print!("{}", report.rows(case.name()));
            report.write(&self.out, case.name(), &machine)?;
            missed |= report.misses_a_floor();
        }
        if !failed.is_empty() {
            bail!("not measured: {}", failed.join(", "));
        }
        if self.strict && missed {
            bail!("a floor was missed");
        }
        Ok(())
    }

    async fn measure(&self, case: Case, programs: &Programs) -> anyhow::Result<Report> {
        match case {
            Case::Plan => plan::measure(),
            Case::Filter => filter::measure(programs, self.nodes, self.seconds.div_ceil(6)).await,
            Case::Binds => binds::measure(programs, self.members).await,
            Case::Memory => memory::measure(programs, self.nodes, self.pods).await,
            Case::Agents => agents::measure(programs, self.agents, self.floods, self.seconds).await,
            Case::Agent => agent::measure(programs, self.seconds).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_named_as_they_are_written_and_all_run_without_one() {
        for case in Case::ALL {
            let cli = Cli::try_parse_from(["scale", case.name()]).unwrap();
            assert_eq!(cli.cases, [case]);
        }
        let cli = Cli::try_parse_from(["scale", "filter", "agents", "--agents", "200"]).unwrap();
        assert_eq!(cli.cases, [Case::Filter, Case::Agents]);
        assert_eq!(cli.agents, 200);
        assert!(Cli::try_parse_from(["scale", "everything"]).is_err());
        assert!(Cli::try_parse_from(["scale"]).unwrap().cases.is_empty());
    }
}
