//! What the figures are held to: floors, without which Muster is not worth its installation, and aims.

use std::fmt::Write as _;

use crate::contender::Contender;
use crate::row::Row;

/// One figure beside its goal.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// A floor; otherwise an aim.
    pub floor: bool,
    /// What is compared, with case and contender.
    pub what: String,
    /// The figure.
    pub figure: f64,
    /// The largest that it may be.
    pub most: f64,
}

impl Goal {
    /// Whether the figure keeps to it.
    pub fn is_met(&self) -> bool {
        self.figure <= self.most
    }
}

/// Nodes from which the cluster counts as a big one, for which the aim is sharper.
const BIG: u32 = 2_000;

/// The goals that the rows of one run can be held to: each of Muster's rows by job and by gates,
/// against the other schedulers' rows of the same case and round.
pub fn goals(rows: &[Row]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for row in rows {
        let writes = match row.contender.as_str() {
            name if name == Contender::MusterJob.name() => 3.2,
            name if name == Contender::MusterGate.name() => 4.2,
            _ => continue,
        };
        let of = |contender: Contender| {
            rows.iter().find(|other| {
                other.case == row.case
                    && other.round == row.round
                    && other.contender == contender.name()
            })
        };
        let mut add = |floor: bool, what: &str, figure: f64, most: f64| {
            let what = format!("{} {}: {what}", row.case, row.contender);
            goals.push(Goal {
                floor,
                what,
                figure,
                most,
            });
        };
        if row.writes_after_settling.is_some() {
            add(true, "writes per pod", row.writes_per_pod, 7.0);
            continue;
        }
        if let Some(native) = of(Contender::Native) {
            let ratio = row.first_create_to_last_bound / native.first_create_to_last_bound;
            add(true, "first create to last bound, of native's", ratio, 1.0);
            let ratio = row.gang_p95 / native.gang_p95;
            add(true, "gang p95, of native's", ratio, 1.0);
        }
        if let Some(plain) = of(Contender::Plain) {
            let ratio = row.first_create_to_last_bound / plain.first_create_to_last_bound;
            let most = if row.nodes >= BIG { 0.95 } else { 1.2 };
            add(
                false,
                "first create to last bound, of kube-scheduler's",
                ratio,
                most,
            );
        }
        add(false, "writes per pod", row.writes_per_pod, writes);
    }
    goals
}

/// The goals as a table; nothing when there are none.
pub fn table(goals: &[Goal]) -> String {
    let mut text = String::new();
    if goals.is_empty() {
        return text;
    }
    let _ = writeln!(text, "\nfigure   at most  goal");
    for goal in goals {
        let kind = if goal.floor { "floor" } else { "aim" };
        let verdict = if goal.is_met() { "met" } else { "MISSED" };
        let _ = writeln!(
            text,
            "{:>6.2}   {:>7.2}  {kind} {verdict:<6}  {}",
            goal.figure, goal.most, goal.what
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(contender: Contender, seconds: f64, writes: f64) -> Row {
        Row {
            case: "one".into(),
            contender: contender.name().into(),
            nodes: 500,
            first_create_to_last_bound: seconds,
            gang_p95: seconds,
            writes_per_pod: writes,
            ..Row::default()
        }
    }

    #[test]
    fn a_row_is_held_to_its_own_way_and_to_rows_of_its_case_and_round() {
        let mut elsewhere = row(Contender::Native, 0.1, 1.0);
        elsewhere.round = 1;
        let rows = [
            row(Contender::Plain, 2.0, 3.0),
            elsewhere,
            row(Contender::Native, 2.0, 4.0),
            row(Contender::MusterJob, 1.9, 3.3),
            row(Contender::MusterGate, 2.5, 4.1),
            row(Contender::MusterUngated, 9.0, 9.0),
        ];
        let goals = goals(&rows);
        let shown: Vec<(bool, bool, &str)> = goals
            .iter()
            .map(|goal| (goal.floor, goal.is_met(), goal.what.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (
                    true,
                    true,
                    "one muster-job: first create to last bound, of native's"
                ),
                (true, true, "one muster-job: gang p95, of native's"),
                (
                    false,
                    true,
                    "one muster-job: first create to last bound, of kube-scheduler's"
                ),
                (false, false, "one muster-job: writes per pod"),
                (
                    true,
                    false,
                    "one muster-gate: first create to last bound, of native's"
                ),
                (true, false, "one muster-gate: gang p95, of native's"),
                (
                    false,
                    false,
                    "one muster-gate: first create to last bound, of kube-scheduler's"
                ),
                (false, true, "one muster-gate: writes per pod"),
            ]
        );
        let table = table(&goals);
        assert!(
            table.contains("  1.25      1.00  floor MISSED  one muster-gate: gang p95"),
            "{table}"
        );
    }
}
