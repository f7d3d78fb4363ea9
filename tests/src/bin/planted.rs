//! Plants one bug after the other and tells which seed of the storms finds it first.
//!
//! `cargo run -p muster-tests --bin planted` tries all; with names, only those. `SIM_SEEDS=50` says after
//! how many seeds a bug counts as not found. Fails when fewer than 95 of 100 are found.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use muster_core::planted::{Bug, plant};
use muster_tests::sim::storm::{Telling, run};

/// Seeds after which a bug counts as not found: those that CI runs.
const SEEDS: u64 = 100;

/// The first seed that finds a bug, and what it says.
fn first_found(bug: Bug, seeds: u64) -> Option<(u64, String)> {
    let next = AtomicU64::new(1);
    let found: Mutex<Option<(u64, String)>> = Mutex::default();
    let found_at = AtomicU64::new(u64::MAX);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        plant(Some(bug));
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > seeds || seed > found_at.load(Ordering::Relaxed) {
                return;
            }
            let Some((wrong, _)) = run(seed, Telling::Short).wrong else {
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
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> anyhow::Result<()> {
    let seeds = std::env::var("SIM_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(SEEDS);
    let names: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |bug: &Bug| names.is_empty() || names.contains(&format!("{bug:?}"));
    let bugs: Vec<Bug> = Bug::ALL.into_iter().filter(wanted).collect();
    anyhow::ensure!(!bugs.is_empty(), "no bug of these names: {names:?}");
    let mut found: usize = 0;
    for bug in &bugs {
        match first_found(*bug, seeds) {
            Some((seed, line)) => {
                found = found.saturating_add(1);
                println!("found      {bug:?} by seed {seed}: {line}");
            }
            None => println!("NOT FOUND  {bug:?} in {seeds} seeds"),
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
