//! Plants bugs and tells which seed of the storms finds each first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use muster_core::planted::{Bug, plant};

use super::storm::{Telling, run, threads};

/// The first of so many seeds that finds a bug, and what it says.
pub fn first_found(bug: Bug, seeds: u64) -> Option<(u64, String)> {
    first_that_says(bug, seeds, |_| true)
}

/// The first of so many seeds that says something of this kind about a bug.
pub fn first_that_says(
    bug: Bug,
    seeds: u64,
    is_wanted: impl Fn(&str) -> bool + Sync,
) -> Option<(u64, String)> {
    let next = AtomicU64::new(1);
    let found: Mutex<Option<(u64, String)>> = Mutex::default();
    let found_at = AtomicU64::new(u64::MAX);
    let work = || {
        plant(Some(bug));
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > seeds || seed > found_at.load(Ordering::Relaxed) {
                return;
            }
            let wrong = run(seed, Telling::Short).wrong;
            let Some((wrong, _)) = wrong.filter(|(wrong, _)| is_wanted(wrong)) else {
                continue;
            };
            found_at.fetch_min(seed, Ordering::Relaxed);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                let line = wrong.lines().next().unwrap_or_default().to_owned();
                *found = Some((seed, line));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Tries these bugs and prints a table. Fails when fewer than 95 of 100 are found.
pub fn try_these(bugs: &[Bug], seeds: u64) -> anyhow::Result<()> {
    let mut found: usize = 0;
    for bug in bugs {
        let class = bug.class();
        match first_found(*bug, seeds) {
            Some((seed, line)) => {
                found = found.saturating_add(1);
                println!("{class}  found      {bug:?} by seed {seed}: {line}");
            }
            None => println!("{class}  NOT FOUND  {bug:?} in {seeds} seeds"),
        }
    }
    let all = bugs.len();
    println!("{found} of {all} planted bugs found");
    anyhow::ensure!(
        found.saturating_mul(100) >= all.saturating_mul(95),
        "fewer than 95 of 100"
    );
    Ok(())
}

/// The bugs of these names, separated by commas; all where nothing is named.
pub fn named(names: &str) -> anyhow::Result<Vec<Bug>> {
    let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    for name in &names {
        let known = Bug::ALL.iter().any(|bug| format!("{bug:?}") == *name);
        anyhow::ensure!(known, "there is no planted bug {name}: {:?}", Bug::ALL);
    }
    let wanted = |bug: &Bug| names.is_empty() || names.contains(&format!("{bug:?}").as_str());
    Ok(Bug::ALL.into_iter().filter(wanted).collect())
}
