//! The table for people and the JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::contender::Contender;
use crate::goals;
use crate::machine::Machine;
use crate::row::Row;

/// Everything of one run of the program.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was seen.
    pub machine: Machine,
    /// When it began.
    pub began: String,
    /// Fake agents reported the nodes.
    pub agents: bool,
    /// The API server wrote an audit log, which costs it processor time.
    pub audit: bool,
    /// The rows, in the order in which they were measured.
    pub rows: Vec<Row>,
    /// Rows that there are not, and why.
    pub absent: Vec<Absent>,
}

/// A row that is not there.
#[derive(Clone, Debug, Serialize)]
pub struct Absent {
    /// The case in words.
    pub case_title: String,
    /// Short name of the case.
    pub case: String,
    /// Short name of the contender.
    pub contender: String,
    /// Number of the repetition, from 1.
    pub round: u32,
    /// It was tried and failed; otherwise the contender has no part in the case.
    pub failed: bool,
    /// Why.
    pub why: String,
}

const HEADER: &str = "scheduler          first create to       /kube-  same by  /native    /raw  /muster-  gang p50/p95 s    pods/s  writes  CPU s: API   sche-  MiB, sche-  others'\n                   last bound, s         sched      job                     job                               per pod  server      duler  duler       CPU";

/// Longest reason shown in a block, characters; `report.json` has all of it.
const WHY_MAX: usize = 160;

impl Report {
    /// The table: a block for each case, ratios to rows of the same round.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut titles: Vec<&str> = Vec::new();
        let of_rows = self.rows.iter().map(|row| &row.case_title);
        let of_absent = self.absent.iter().map(|absent| &absent.case_title);
        for title in of_rows.chain(of_absent) {
            if !titles.contains(&title.as_str()) {
                titles.push(title);
            }
        }
        for title in titles {
            self.block(&mut text, title);
        }
        text.push_str(&goals::table(&goals::goals(&self.rows)));
        for absent in self.absent.iter().filter(|absent| absent.failed) {
            let _ = writeln!(
                text,
                "\nFAILED: round {}, {}, {}: {}",
                absent.round, absent.case, absent.contender, absent.why
            );
        }
        text
    }

    fn block(&self, text: &mut String, title: &str) {
        let rows = self.rows.iter().filter(|row| row.case_title == title);
        let rows: Vec<&Row> = rows.collect();
        let _ = writeln!(text, "\n{title}");
        if rows.iter().any(|row| row.told.is_some()) {
            verdicts(text, &rows);
        } else {
            let _ = writeln!(text, "{HEADER}");
            for row in &rows {
                let _ = writeln!(text, "{}", self.line(row));
            }
        }
        let absent = self.absent.iter();
        for absent in absent.filter(|absent| absent.case_title == title) {
            let what = if absent.failed { "failed" } else { "no row" };
            let why = absent.why.lines().next().unwrap_or_default();
            let why: String = why.chars().take(WHY_MAX).collect();
            let _ = writeln!(text, "{:<18} {what}: {why}", absent.contender);
        }
        if rows.iter().any(|row| row.writes_after_settling.is_some()) {
            overload(text, &rows);
        }
        if rows.iter().any(|row| row.case == "before") {
            backlog(text, &rows);
        }
    }

    /// Runs that failed, without those of other gang schedulers: what these cannot do is their row.
    pub fn failures_that_count(&self) -> usize {
        let is_peer = |name: &str| {
            let mut peers = Contender::ALL.into_iter().filter(|one| one.is_peer());
            peers.any(|peer| peer.name() == name)
        };
        let absent = self.absent.iter();
        absent
            .filter(|absent| absent.failed && !is_peer(&absent.contender))
            .count()
    }

    fn ratio(&self, row: &Row, to: Contender) -> String {
        let same = |other: &&Row| {
            other.case == row.case && other.round == row.round && other.contender == to.name()
        };
        self.rows.iter().find(same).map_or_else(
            || "-".into(),
            |other| {
                let ratio = row.first_create_to_last_bound / other.first_create_to_last_bound;
                format!("{ratio:.2}")
            },
        )
    }

    fn line(&self, row: &Row) -> String {
        let programs = programs_of(row);
        format!(
            "{:<18} {:>14.1}      {:>7}  {:>7}  {:>7} {:>7}  {:>8}  {:>6.1} / {:>6.1}  {:>8.0}  {:>6.2}  {:>10.1}  {:>6.1}  {:>10}  {:>6.0}%",
            row.contender,
            row.first_create_to_last_bound,
            self.ratio(row, Contender::Plain),
            self.ratio(row, Contender::PlainJob),
            self.ratio(row, Contender::Native),
            self.ratio(row, Contender::Raw),
            self.ratio(row, Contender::MusterJob),
            row.gang_p50,
            row.gang_p95,
            row.pods_per_second,
            row.writes_per_pod,
            row.cpu_of(&["kube-apiserver"]),
            row.cpu_of(programs),
            row.memory_of(programs),
            row.others_cpu_share * 100.0,
        )
    }

    /// Writes `report.json`, `table.txt` and Muster's metrics of each run into a folder.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write("report.json", &serde_json::to_string_pretty(self)?)?;
        write("table.txt", &self.table())?;
        for row in &self.rows {
            if let Some(page) = &row.muster_metrics {
                let name = format!("{}-{}-{}.metrics", row.case, row.contender, row.round);
                write(&name, page)?;
            }
        }
        Ok(())
    }
}

/// The programs of a row's scheduler.
fn programs_of(row: &Row) -> &'static [&'static str] {
    let mut all = Contender::ALL.into_iter();
    let contender = all.find(|contender| contender.name() == row.contender);
    contender.map_or(&[], Contender::programs)
}

/// The block of the case in which a gang is to be told that it cannot run.
fn verdicts(text: &mut String, rows: &[&Row]) {
    let _ = writeln!(
        text,
        "scheduler          last create to   writes  CPU s: API   sche-  MiB, sche-  others'  said by, and what\n                   verdict, ms     per pod  server      duler  duler       CPU"
    );
    for row in rows {
        let Some(told) = &row.told else {
            continue;
        };
        let programs = programs_of(row);
        let _ = writeln!(
            text,
            "{:<18} {:>11.0} {:>11.2}  {:>10.2}  {:>6.2}  {:>10}  {:>6.0}%  {}: {}",
            row.contender,
            told.after * 1000.0,
            row.writes_per_pod,
            row.cpu_of(&["kube-apiserver"]),
            row.cpu_of(programs),
            row.memory_of(programs),
            row.others_cpu_share * 100.0,
            told.by,
            told.text.lines().next().unwrap_or_default(),
        );
    }
}

/// The further columns of the case in which all gangs are there before the scheduler.
fn backlog(text: &mut String, rows: &[&Row]) {
    let _ = writeln!(
        text,
        "scheduler          start to first   pods/s,     half of the gangs\n                   bound, s       /kube-sched  whole by, % of the time"
    );
    for row in rows {
        let plain = rows
            .iter()
            .find(|other| other.round == row.round && other.contender == Contender::Plain.name());
        let pods = plain.map_or_else(
            || "-".into(),
            |plain| format!("{:.2}", row.pods_per_second / plain.pods_per_second),
        );
        let _ = writeln!(
            text,
            "{:<18} {:>8.2} {:>17} {:>20.0}",
            row.contender,
            row.to_first_bound,
            pods,
            row.half_share * 100.0,
        );
    }
}

fn overload(text: &mut String, rows: &[&Row]) {
    let _ = writeln!(
        text,
        "{:<18} {:>6} {:>8} {:>13} {:>16} {:>13} {:>14} {:>14}",
        "scheduler",
        "whole",
        "in part",
        "most in part",
        "longest part, s",
        "waiting GPUs",
        "most at once",
        "writes in 10 s"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<18} {:>6} {:>8} {:>13} {:>16.2} {:>13} {:>14} {:>14}",
            row.contender,
            row.gangs_whole,
            row.gangs_partial,
            row.gangs_partial_most,
            row.partial_longest,
            row.waiting_gpus,
            row.waiting_gpus_most,
            row.writes_after_settling.unwrap_or(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(contender: Contender, seconds: f64) -> Row {
        Row {
            case: "many".into(),
            case_title: "many: ...".into(),
            contender: contender.name().into(),
            first_create_to_last_bound: seconds,
            ..Row::default()
        }
    }

    fn absent(contender: Contender, failed: bool, why: &str) -> Absent {
        Absent {
            case: "many".into(),
            case_title: "many: ...".into(),
            contender: contender.name().into(),
            round: 0,
            failed,
            why: why.into(),
        }
    }

    fn empty() -> Report {
        Report {
            machine: Machine {
                cores: 2,
                memory_bytes: 0,
                kernel: String::new(),
                commit: String::new(),
            },
            began: String::new(),
            agents: false,
            audit: false,
            rows: Vec::new(),
            absent: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_to_the_rows_of_the_same_case_and_round() {
        let mut later = row(Contender::Plain, 99.0);
        later.round = 1;
        let report = Report {
            rows: vec![
                row(Contender::Plain, 10.0),
                row(Contender::Native, 20.0),
                row(Contender::MusterJob, 15.0),
                later,
            ],
            absent: vec![
                absent(Contender::Kai, true, "no pod was bound\nits log"),
                absent(Contender::Raw, false, "decides nothing"),
            ],
            ..empty()
        };
        let table = report.table();
        let line = table
            .lines()
            .find(|line| line.starts_with("muster-job"))
            .unwrap();
        assert!(line.contains("1.50") && line.contains("0.75"), "{line}");
        assert!(
            table.contains("\nkai                failed: no pod was bound\n"),
            "{table}"
        );
        assert!(
            table.contains("\nraw                no row: decides nothing\n"),
            "{table}"
        );
        assert!(table.contains("FAILED: round 0, many, kai: no pod was bound\nits log"));
        assert_eq!(report.failures_that_count(), 0);
    }

    #[test]
    fn a_gang_schedulers_own_failure_is_its_row_and_everybody_elses_is_an_error() {
        let mut report = empty();
        report.absent = vec![
            absent(Contender::Kai, true, "x"),
            absent(Contender::MusterJob, true, "y"),
            absent(Contender::Raw, false, "z"),
        ];
        assert_eq!(report.failures_that_count(), 1);
    }
}
