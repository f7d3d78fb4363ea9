//! Figures beside their floors and aims.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::machine::Machine;

/// One figure. Less is better for all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    what: String,
    /// The figure.
    figure: f64,
    /// Its unit.
    unit: &'static str,
    /// The largest that it must be; absent where it is only told.
    floor: Option<f64>,
    /// The largest that it should be.
    aim: Option<f64>,
}

impl Figure {
    fn misses(&self, most: Option<f64>) -> bool {
        // What is no number keeps to nothing.
        most.is_some_and(|most| self.figure.is_nan() || self.figure > most)
    }
}

/// What a case has found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How large the case was.
    sizes: Map<String, Value>,
    /// Its figures.
    figures: Vec<Figure>,
}

/// The first line of the table.
pub fn head() -> String {
    format!(
        "{:<8} {:<52} {:>10} {:<6} {:>9} {:<6} {:>9} {:<6}",
        "case", "figure", "", "", "floor", "", "aim", ""
    )
}

impl Report {
    /// An empty report of a case of this size.
    pub fn new(sizes: &[(&str, u64)]) -> Self {
        let sizes = sizes.iter();
        Self {
            sizes: sizes
                .map(|(name, size)| ((*name).to_owned(), json!(size)))
                .collect(),
            figures: Vec::new(),
        }
    }

    /// Adds a figure with its floor and its aim.
    pub fn hold(&mut self, what: &str, figure: f64, unit: &'static str, floor: f64, aim: f64) {
        self.figures.push(Figure {
            what: what.to_owned(),
            figure,
            unit,
            floor: Some(floor),
            aim: Some(aim),
        });
    }

    /// Adds a figure that is only told.
    pub fn tell(&mut self, what: &str, figure: f64, unit: &'static str) {
        self.figures.push(Figure {
            what: what.to_owned(),
            figure,
            unit,
            floor: None,
            aim: None,
        });
    }

    /// Whether a figure is worse than its floor.
    pub fn misses_a_floor(&self) -> bool {
        self.figures
            .iter()
            .any(|figure| figure.misses(figure.floor))
    }

    /// The rows of the table.
    pub fn rows(&self, case: &str) -> String {
        let mut text = String::new();
        for figure in &self.figures {
            let _ = write!(
                text,
                "{case:<8} {:<52} {:>10} {:<6}",
                figure.what,
                number(figure.figure),
                figure.unit
            );
            for most in [figure.floor, figure.aim] {
                let (most, verdict) = match most {
                    None => (String::from("-"), ""),
                    Some(limit) if figure.misses(most) => (number(limit), "MISSED"),
                    Some(limit) => (number(limit), "met"),
                };
                let _ = write!(text, " {most:>9} {verdict:<6}");
            }
            let kept = text.trim_end().len();
            text.truncate(kept);
            text.push('\n');
        }
        text
    }

    /// Writes the report as `CASE.json` into a folder.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn write(&self, folder: &Path, case: &str, machine: &Machine) -> anyhow::Result<()> {
        let all = json!({
            "case": case,
            "date": jiff::Timestamp::now().to_string(),
            "machine": machine,
            "sizes": self.sizes,
            "figures": self.figures,
        });
        let file = folder.join(format!("{case}.json"));
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&file, format!("{all:#}\n")))
            .with_context(|| file.display().to_string())
    }
}

/// Three digits that count, more where there are more before the point.
fn number(figure: f64) -> String {
    let places = match figure.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{figure:.places$}")
}

/// Bytes as MiB.
pub fn mib(bytes: u64) -> f64 {
    // Exact below 2^52 bytes.
    bytes as f64 / f64::from(1_u32 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_floor_and_aim_are_met_and_no_number_meets_nothing() {
        let mut report = Report::new(&[("nodes", 5_000)]);
        report.hold("p99", 0.4, "ms", 1.0, 0.1);
        report.tell("calls", 12_345.0, "");
        assert!(!report.misses_a_floor());
        let rows: Vec<Vec<String>> = report
            .rows("filter")
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        assert_eq!(
            rows[0],
            [
                "filter", "p99", "0.400", "ms", "1.00", "met", "0.100", "MISSED"
            ]
        );
        assert_eq!(rows[1], ["filter", "calls", "12345", "-", "-"]);
        report.hold("p99", f64::NAN, "ms", 1.0, 0.1);
        assert!(report.misses_a_floor());
    }
}
