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

/// The goals that the rows of one run can be held to: each of Muster's rows by job and by gates, and without policies where all is
/// there before the scheduler, against the other schedulers' rows of the same case and round.
pub fn goals(rows: &[Row]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for row in rows {
        let is = |contender: Contender| row.contender == contender.name();
        let is_held = is(Contender::MusterJob)
            || is(Contender::MusterGate)
            || (is(Contender::MusterUngated) && row.case == "before");
        if !is_held {
            continue;
        }
        let mut held = Held {
            row,
            rows,
            goals: &mut goals,
        };
        match row.case.as_str() {
            "overload" => held.floor("writes per pod", row.writes_per_pod, 7.0),
            "verdict" => held.hold_verdict(),
            "before" => held.hold_backlog(),
            case => {
                held.hold_to_native();
                match case {
                    "many" => held.hold_many(),
                    "large" => held.hold_large(),
                    _ => held.hold_to_plain(),
                }
                // A gate costs a write more.
                let most = if is(Contender::MusterGate) { 4.2 } else { 3.2 };
                held.aim("writes per pod", row.writes_per_pod, most);
            }
        }
    }
    goals
}

/// A row while it is held to its goals.
struct Held<'a> {
    row: &'a Row,
    rows: &'a [Row],
    goals: &'a mut Vec<Goal>,
}

impl Held<'_> {
    fn add(&mut self, floor: bool, what: &str, figure: f64, most: f64) {
        let what = format!("{} {}: {what}", self.row.case, self.row.contender);
        self.goals.push(Goal {
            floor,
            what,
            figure,
            most,
        });
    }

    fn floor(&mut self, what: &str, figure: f64, most: f64) {
        self.add(true, what, figure, most);
    }

    fn aim(&mut self, what: &str, figure: f64, most: f64) {
        self.add(false, what, figure, most);
    }

    /// Another contender's row of the same case and round.
    fn other(&self, contender: Contender) -> Option<&Row> {
        self.rows.iter().find(|other| {
            other.case == self.row.case
                && other.round == self.row.round
                && other.contender == contender.name()
        })
    }

    /// The row's time as a part of another contender's.
    fn time_of(&self, contender: Contender) -> Option<f64> {
        let other = self.other(contender)?.first_create_to_last_bound;
        Some(self.row.first_create_to_last_bound / other)
    }

    fn p95_of(&self, contender: Contender) -> Option<f64> {
        Some(self.row.gang_p95 / self.other(contender)?.gang_p95)
    }

    fn is_big(&self) -> bool {
        self.row.nodes >= BIG
    }

    fn hold_to_native(&mut self) {
        if let Some(ratio) = self.time_of(Contender::Native) {
            self.floor("first create to last bound, of native's", ratio, 1.0);
        }
        if let Some(ratio) = self.p95_of(Contender::Native) {
            self.floor("gang p95, of native's", ratio, 1.0);
        }
    }

    fn hold_to_plain(&mut self) {
        if let Some(ratio) = self.time_of(Contender::Plain) {
            let most = if self.is_big() { 0.95 } else { 1.2 };
            self.aim(
                "first create to last bound, of kube-scheduler's",
                ratio,
                most,
            );
        }
    }

    /// Many gangs while the scheduler runs. Their p95 is held against the native gangs' above.
    fn hold_many(&mut self) {
        if let Some(ratio) = self.time_of(Contender::Plain) {
            let (floor, aim) = if self.is_big() {
                (1.0, 0.85)
            } else {
                (1.3, 1.1)
            };
            let what = "first create to last bound, of kube-scheduler's";
            self.floor(what, ratio, floor);
            self.aim(what, ratio, aim);
        }
        for peer in Contender::ALL.into_iter().filter(|one| one.is_peer()) {
            if let Some(ratio) = self.p95_of(peer) {
                self.floor(&format!("gang p95, of {}'s", peer.name()), ratio, 1.0);
            }
        }
    }

    /// One gang that takes most of the cluster.
    fn hold_large(&mut self) {
        let what = "first create to last bound, s";
        let seconds = self.row.first_create_to_last_bound;
        self.floor(what, seconds, 5.0);
        let raw = self.other(Contender::Raw);
        let most = raw.map_or(1.0, |raw| (raw.first_create_to_last_bound * 1.2).max(1.0));
        self.aim(what, seconds, most);
    }

    /// All gangs are there before the scheduler.
    fn hold_backlog(&mut self) {
        if let Some(ratio) = self.time_of(Contender::Plain) {
            // 1.3 times its pods per second.
            let what = "start to last bound, of kube-scheduler's";
            self.floor(what, ratio, 1.0);
            self.aim(what, ratio, 1.0 / 1.3);
        }
        let what = "half of the gangs whole, share of the time";
        let share = self.row.half_share;
        self.floor(what, share, 0.6);
        self.aim(what, share, 0.5);
    }

    /// A gang that cannot run.
    fn hold_verdict(&mut self) {
        if let Some(told) = &self.row.told {
            let what = "last create to verdict, s";
            let after = told.after;
            self.floor(what, after, 1.0);
            self.aim(what, after, 0.05);
        }
    }
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
    use crate::row::Told;

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

    fn shown(rows: &[Row]) -> Vec<(bool, bool, String)> {
        goals(rows)
            .into_iter()
            .map(|goal| (goal.floor, goal.is_met(), goal.what))
            .collect()
    }

    #[test]
    fn the_large_gang_may_take_a_second_or_a_fifth_more_than_bindings_alone() {
        let large = |contender, seconds| Row {
            case: "large".into(),
            ..row(contender, seconds, 3.0)
        };
        let of = |raw: &[Row]| {
            let rows = [raw, &[large(Contender::MusterJob, 1.7)]].concat();
            let shown = shown(&rows);
            let wanted = "large muster-job: first create to last bound, s";
            let own = shown.into_iter().filter(|(_, _, what)| what == wanted);
            own.map(|(floor, met, _)| (floor, met)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [(true, true), (false, false)]);
        assert_eq!(
            of(&[large(Contender::Raw, 1.5)]),
            [(true, true), (false, true)]
        );
    }

    #[test]
    fn a_verdict_a_backlog_and_many_gangs_have_goals_of_their_own() {
        let told = Told {
            after: 0.2,
            ..Told::default()
        };
        let verdict = Row {
            case: "verdict".into(),
            told: Some(told),
            ..row(Contender::MusterGate, 0.0, 3.0)
        };
        let before = |contender, seconds| Row {
            case: "before".into(),
            half_share: 0.55,
            ..row(contender, seconds, 3.0)
        };
        let many = |contender, seconds| Row {
            case: "many".into(),
            ..row(contender, seconds, 3.0)
        };
        let rows = [
            verdict,
            before(Contender::Plain, 10.0),
            before(Contender::MusterGate, 9.0),
            before(Contender::MusterUngated, 11.0),
            many(Contender::Plain, 10.0),
            many(Contender::MusterUngated, 99.0),
            many(Contender::Coscheduling, 11.0),
            many(Contender::MusterGate, 12.0),
        ];
        let wanted = [
            (true, true, "verdict muster-gate: last create to verdict, s"),
            (
                false,
                false,
                "verdict muster-gate: last create to verdict, s",
            ),
            (
                true,
                true,
                "before muster-gate: start to last bound, of kube-scheduler's",
            ),
            (
                false,
                false,
                "before muster-gate: start to last bound, of kube-scheduler's",
            ),
            (
                true,
                true,
                "before muster-gate: half of the gangs whole, share of the time",
            ),
            (
                false,
                false,
                "before muster-gate: half of the gangs whole, share of the time",
            ),
            (
                true,
                false,
                "before muster-ungated: start to last bound, of kube-scheduler's",
            ),
            (
                false,
                false,
                "before muster-ungated: start to last bound, of kube-scheduler's",
            ),
            (
                true,
                true,
                "before muster-ungated: half of the gangs whole, share of the time",
            ),
            (
                false,
                false,
                "before muster-ungated: half of the gangs whole, share of the time",
            ),
            (
                true,
                true,
                "many muster-gate: first create to last bound, of kube-scheduler's",
            ),
            (
                false,
                false,
                "many muster-gate: first create to last bound, of kube-scheduler's",
            ),
            (true, false, "many muster-gate: gang p95, of coscheduling's"),
            (false, true, "many muster-gate: writes per pod"),
        ];
        let wanted = wanted.map(|(floor, met, what)| (floor, met, what.to_owned()));
        assert_eq!(shown(&rows), wanted);
    }
}
