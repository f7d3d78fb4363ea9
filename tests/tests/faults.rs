//! The table of faults and invariants (`tests/FAULTS.md`) is true.

// A test that cannot go on stops with the place and the value.
#![allow(clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The checkout.
fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the checkout")
}

/// A line of the table.
struct Row<'a> {
    number: &'a str,
    shown_by: &'a str,
}

impl<'a> Row<'a> {
    /// Files and names of the tests, in order.
    fn tests(&self) -> Vec<(&'a str, &'a str)> {
        let quoted = self.shown_by.split('`').skip(1).step_by(2);
        quoted
            .map(|test| test.split_once("::").unwrap_or((test, "")))
            .collect()
    }
}

fn rows(table: &str) -> Vec<Row<'_>> {
    let lines = table.lines().filter(|line| line.starts_with('|'));
    let cells = lines.map(|line| line.trim_matches('|').split('|').map(str::trim));
    // The heading and the line below it.
    let rows = cells.skip(2).map(|mut cells| Row {
        number: cells.next().unwrap_or_default(),
        shown_by: cells.nth(2).unwrap_or_default(),
    });
    rows.collect()
}

fn numbers() -> Vec<String> {
    let faults = (1..=52).map(|number| format!("F{number:02}"));
    let invariants = (1..=16).map(|number| format!("S{number}"));
    let progress = (1..=6).map(|number| format!("L{number}"));
    faults.chain(invariants).chain(progress).collect()
}

/// Names of the tests of a source.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut is_test = source.contains("proptest! {");
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.contains("test");
            continue;
        }
        let function = line.trim_start_matches("async ").strip_prefix("fn ");
        if let Some((name, _)) = function.and_then(|rest| rest.split_once('(')) {
            if is_test {
                names.insert(name);
            }
            is_test = source.contains("proptest! {");
        }
    }
    names
}

fn wrong(table: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let rows = rows(table);
    let found: Vec<&str> = rows.iter().map(|row| row.number).collect();
    let wanted = numbers();
    if found != wanted {
        wrong.push(format!("the numbers are {found:?}"));
    }
    let mut sources: BTreeMap<&str, Option<String>> = BTreeMap::new();
    for row in &rows {
        let tests = row.tests();
        if tests.is_empty() {
            let excused = row.shown_by.strip_prefix("none: ");
            if excused.is_none_or(|reason| reason.len() < 20) {
                wrong.push(format!(
                    "{} is shown by nothing, without a reason",
                    row.number
                ));
            }
            continue;
        }
        for (file, name) in &tests {
            let source = sources.entry(*file).or_insert_with(|| read(file));
            let exists = source
                .as_deref()
                .is_some_and(|source| tests_of(source).contains(name));
            if !exists {
                wrong.push(format!("{}: there is no test {file}::{name}", row.number));
            }
        }
        let token = row.number.to_lowercase();
        let first = tests.first().map_or("", |(_, name)| *name);
        if !first.split('_').any(|word| word == token) {
            wrong.push(format!("{}: {first} does not carry its number", row.number));
        }
    }
    wrong
}

fn read(file: &str) -> Option<String> {
    std::fs::read_to_string(root().join(file)).ok()
}

fn table() -> String {
    read("tests/FAULTS.md").expect("tests/FAULTS.md")
}

#[test]
fn every_fault_and_invariant_is_shown_by_tests_that_exist() {
    let wrong = wrong(&table(), read);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each thing that can be wrong with the table is found.
#[test]
fn a_table_that_is_wrong_is_found() {
    let table = table();
    let line = |number: &str| {
        let start = format!("| {number} |");
        let found = table.lines().find(|line| line.starts_with(&start));
        found.expect("a line").to_owned()
    };
    let with = |from: &str, to: &str| wrong(&table.replace(from, to), read);
    let said = with(&format!("{}\n", line("F07")), "");
    assert!(
        said.iter().any(|text| text.starts_with("the numbers are")),
        "{said:?}"
    );
    let said = with("f07_gang_that_stays_partial", "f07_gang_that_never_was");
    assert!(
        said.iter()
            .any(|text| text.starts_with("F07: there is no test")),
        "{said:?}"
    );
    let said = with(&line("S6"), "| S6 | quota | - | none: later |");
    assert_eq!(said, ["S6 is shown by nothing, without a reason"]);
    let other = "scheduler/core/tests/engine/flows.rs::user_suspends_and_resumes";
    let said = with(&line("F08"), &format!("| F08 | x | core | `{other}` |"));
    assert_eq!(
        said,
        ["F08: user_suspends_and_resumes does not carry its number"]
    );
}

/// Whoever gives a test such a number means a line of the table.
#[test]
fn every_test_that_carries_a_number_is_in_the_table() {
    let table = table();
    let listed: BTreeSet<&str> = rows(&table)
        .iter()
        .flat_map(Row::tests)
        .map(|(_, name)| name)
        .collect();
    let numbers: BTreeSet<String> = numbers()
        .iter()
        .map(|number| number.to_lowercase())
        .collect();
    let mut carried = 0;
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() {
                let name = name.to_string_lossy();
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
                continue;
            }
            if path.extension().is_none_or(|ending| ending != "rs") {
                continue;
            }
            let source = std::fs::read_to_string(&path).expect("a source is text");
            for name in tests_of(&source) {
                if name.split('_').any(|word| numbers.contains(word)) {
                    carried += 1;
                    assert!(
                        listed.contains(name),
                        "{}: {name} is in no line",
                        path.display()
                    );
                }
            }
        }
    }
    assert!(carried > 60, "only {carried} tests carry a number");
}
