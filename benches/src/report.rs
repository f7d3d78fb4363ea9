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
    /// Runs that failed, and why.
    pub failures: Vec<String>,
}

const HEADER: &str = "scheduler        first create to       /kube-  /native  gang p50/p95 s    pods/s  writes  CPU s: API   kube-    Muster  others'\n                 last bound, s         sched                                     per pod  server       sched            CPU";

impl Report {
    /// The table: a block for each case, ratios to the first two contenders of the same round.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut titles: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !titles.contains(&row.case_title.as_str()) {
                titles.push(&row.case_title);
            }
        }
        for title in titles {
            let rows: Vec<&Row> = self
                .rows
                .iter()
                .filter(|row| row.case_title == title)
                .collect();
            let _ = writeln!(text, "\n{title}\n{HEADER}");
            for row in &rows {
                let _ = writeln!(text, "{}", self.line(row));
            }
            if rows.iter().any(|row| row.writes_after_settling.is_some()) {
                overload(&mut text, &rows);
            }
        }
        text.push_str(&goals::table(&goals::goals(&self.rows)));
        for failure in &self.failures {
            let _ = writeln!(text, "\nFAILED: {failure}");
        }
        text
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
        format!(
            "{:<16} {:>14.1}      {:>7}  {:>7}  {:>6.1} / {:>6.1}  {:>8.0}  {:>6.2}  {:>10.1}  {:>6.1}  {:>8.1}  {:>6.0}%",
            row.contender,
            row.first_create_to_last_bound,
            self.ratio(row, Contender::Plain),
            self.ratio(row, Contender::Native),
            row.gang_p50,
            row.gang_p95,
            row.pods_per_second,
            row.writes_per_pod,
            row.cpu_of("kube-apiserver"),
            row.cpu_of("kube-scheduler"),
            row.cpu_of("muster-scheduler"),
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

fn overload(text: &mut String, rows: &[&Row]) {
    let _ = writeln!(
        text,
        "{:<16} {:>6} {:>8} {:>13} {:>16} {:>13} {:>14} {:>14}",
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
            "{:<16} {:>6} {:>8} {:>13} {:>16.2} {:>13} {:>14} {:>14}",
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

    #[test]
    fn ratios_are_to_the_rows_of_the_same_case_and_round() {
        let mut later = row(Contender::Plain, 99.0);
        later.round = 1;
        let report = Report {
            machine: Machine {
                cores: 2,
                memory_bytes: 0,
                kernel: String::new(),
                commit: String::new(),
            },
            began: String::new(),
            agents: false,
            audit: false,
            rows: vec![
                row(Contender::Plain, 10.0),
                row(Contender::Native, 20.0),
                row(Contender::MusterJob, 15.0),
                later,
            ],
            failures: vec!["x".into()],
        };
        let table = report.table();
        let line = table
            .lines()
            .find(|line| line.starts_with("muster-job"))
            .unwrap();
        assert!(line.contains("1.50") && line.contains("0.75"), "{line}");
        assert!(table.contains("FAILED: x"));
    }
}
