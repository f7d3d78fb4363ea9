//! Command line of `compare`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;
use jiff::Timestamp;

use crate::case::Case;
use crate::contender::Contender;
use crate::goals;
use crate::machine::Machine;
use crate::measure;
use crate::peers::Peers;
use crate::programs::Programs;
use crate::report::{Absent, Report};
use crate::stage::Options;

/// Compares schedulers on a real control plane: bindings without any scheduler, kube-scheduler
/// without gangs, its native gang scheduling, other gang schedulers on request, and Muster in three
/// ways, each in turn on a fresh cluster.
///
/// Compare rows of one run only: the machine is part of every figure.
#[derive(Debug, Parser)]
#[command(name = "compare")]
pub struct Cli {
    /// Cases: `all`, or some of `many`, `whole-nodes`, `one`, `large`, `before`, `overload`, `verdict`,
    /// separated by commas.
    #[arg(long, default_value = "all", value_delimiter = ',')]
    case: Vec<String>,
    /// Schedulers: `all`, or some of `raw`, `kube-scheduler`, `kube-scheduler-job`, `native-gang`, `coscheduling`, `kai`,
    /// `muster-job`, `muster-gate`, `muster-ungated`, separated by commas. `all` are those that need
    /// no further programs: without `coscheduling` and `kai`.
    #[arg(long, default_value = "all", value_delimiter = ',')]
    scheduler: Vec<String>,
    /// Run `coscheduling` and `kai` as well. They are built with Go the first time (about 6 minutes).
    #[arg(long)]
    peers: bool,
    /// Nodes with 8 GPUs each, in the cases in which all gangs fit.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(260..=10_000))]
    nodes: u32,
    /// How often to run everything.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Nodes count for Muster only as its fake agents report them; otherwise it believes kubelet.
    #[arg(long)]
    agents: bool,
    /// Let the API server write an audit log, so that writes are shown by client. Costs it time.
    #[arg(long)]
    audit: bool,
    /// `RUST_LOG` of Muster.
    #[arg(long, default_value = "warn")]
    muster_log: String,
    /// Folder with ready `muster-scheduler` and `muster-agent`; otherwise cargo builds them.
    #[arg(long, value_name = "DIR")]
    muster_bin: Option<PathBuf>,
    /// End with an error when a floor is missed.
    #[arg(long)]
    strict: bool,
    /// Longest time for one run, seconds.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(10..=3_600))]
    limit: u64,
    /// Folder for `report.json`, `table.txt` and Muster's metrics.
    #[arg(long, value_name = "DIR", default_value = "target/compare")]
    out: PathBuf,
}

impl Cli {
    /// Runs what is asked for and prints the table.
    ///
    /// # Errors
    /// When any run failed, but for those of other gang schedulers: the others are still run, printed
    /// and written. When a floor was missed and that counts.
    pub async fn run(self) -> anyhow::Result<()> {
        let cases = self.cases()?;
        let contenders = self.contenders()?;
        let programs = if contenders.iter().any(|contender| contender.is_muster()) {
            Some(Programs::find(self.muster_bin.as_deref(), self.agents)?)
        } else {
            None
        };
        let options = Options {
            programs,
            peers: Peers::build(&contenders),
            agents: self.agents,
            audit: self.audit,
            log: self.muster_log.clone(),
        };
        let mut report = Report {
            machine: Machine::this(),
            began: Timestamp::now().to_string(),
            agents: self.agents,
            audit: self.audit,
            rows: Vec::new(),
            absent: Vec::new(),
        };
        let limit = Duration::from_secs(self.limit);
        for round in 1..=self.rounds {
            for case in &cases {
                for contender in &contenders {
                    let absent = |failed: bool, why: String| Absent {
                        case: case.name.to_owned(),
                        case_title: case.title(),
                        contender: contender.name().to_owned(),
                        round,
                        failed,
                        why,
                    };
                    if let Some(why) = contender.has_no_part_in(case) {
                        report.absent.push(absent(false, why.to_owned()));
                        continue;
                    }
                    let since = Instant::now();
                    eprint!("round {round}  {}  {} ... ", case.title(), contender.name());
                    match measure::run(case, *contender, &options, limit).await {
                        Ok(mut row) => {
                            row.round = round;
                            eprintln!(
                                "{} ({:.0} s in all)",
                                row.in_short(),
                                since.elapsed().as_secs_f64()
                            );
                            report.rows.push(row);
                        }
                        Err(error) => {
                            eprintln!("failed: {error:#}");
                            report.absent.push(absent(true, format!("{error:#}")));
                        }
                    }
                    report.write(&self.out)?;
                }
            }
        }
        println!("{}", report.table());
        println!("written to {}", self.out.display());
        let failed = report.failures_that_count();
        if failed > 0 {
            bail!("{failed} runs failed");
        }
        let goals = goals::goals(&report.rows);
        let missed = goals.iter().filter(|goal| goal.floor && !goal.is_met());
        let missed = missed.count();
        if self.strict && missed > 0 {
            bail!("{missed} floors were missed");
        }
        Ok(())
    }

    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        let all = Case::all(self.nodes);
        let names: Vec<&str> = all.iter().map(|case| case.name).collect();
        let wanted = chosen("--case", &self.case, &names)?;
        Ok(all
            .into_iter()
            .filter(|case| wanted.contains(&case.name.to_owned()))
            .collect())
    }

    fn contenders(&self) -> anyhow::Result<Vec<Contender>> {
        let names = Contender::ALL.map(Contender::name);
        chosen("--scheduler", &self.scheduler, &names)?;
        let asked = |wanted: &str| self.scheduler.iter().any(|name| name == wanted);
        let is_wanted = |contender: &Contender| {
            let of_its_kind = if contender.is_peer() {
                self.peers
            } else {
                asked("all")
            };
            of_its_kind || asked(contender.name())
        };
        Ok(Contender::ALL.into_iter().filter(is_wanted).collect())
    }
}

/// The names asked for, each checked; `all` stands for every one.
fn chosen(flag: &str, asked: &[String], names: &[&str]) -> anyhow::Result<Vec<String>> {
    if asked.iter().any(|name| name == "all") {
        return Ok(names.iter().map(|name| (*name).to_owned()).collect());
    }
    for name in asked {
        if !names.contains(&name.as_str()) {
            bail!(
                "{flag} {name}: must be all, or some of {}",
                names.join(", ")
            );
        }
    }
    Ok(asked.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_none_is_refused_with_those_that_are() {
        let said = chosen("--case", &["lots".into()], &["many", "one"]).unwrap_err();
        assert_eq!(
            said.to_string(),
            "--case lots: must be all, or some of many, one"
        );
        assert_eq!(
            chosen("--case", &["all".into()], &["many"]).unwrap(),
            ["many"]
        );
    }

    #[test]
    fn other_gang_schedulers_run_when_they_are_asked_for_and_never_by_themselves() {
        let names = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["compare"], arguments].concat()).unwrap();
            let contenders = cli.contenders().unwrap();
            contenders
                .into_iter()
                .map(Contender::name)
                .collect::<Vec<_>>()
        };
        let own = [
            "raw",
            "kube-scheduler",
            "kube-scheduler-job",
            "native-gang",
            "muster-job",
            "muster-gate",
            "muster-ungated",
        ];
        assert_eq!(names(&[]), own);
        assert_eq!(names(&["--peers"]).len(), Contender::ALL.len());
        assert_eq!(names(&["--scheduler", "kai"]), ["kai"]);
        assert_eq!(names(&["--scheduler", "all,kai"]).len(), own.len() + 1);
        assert_eq!(
            names(&["--scheduler", "muster-job", "--peers"]),
            ["coscheduling", "kai", "muster-job"]
        );
    }
}
