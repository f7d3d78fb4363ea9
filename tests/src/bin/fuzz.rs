//! Goes on changing inputs at random for as long as it is told to, on all processors.
//!
//! ```text
//!   FUZZ_SECONDS=600     how long, shared among the targets; 60 where nothing is said
//!   FUZZ_TARGET=filter   only this one
//!   FUZZ_SEED=7          only the round of this seed, to see a failure again
//!   FUZZ_FIRST=1000      the first seed; from the clock where nothing is said, so that each run is another
//!   FUZZ_KEEP=1          adds inputs that came to something new to tests/corpus
//! ```
//! Ends with an error when an input did harm, and says how to repeat it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use muster_tests::fuzz::{Failure, keep, round, target, targets};

/// Runs of a round: short enough that what was found new is forgotten now and then.
const RUNS: u64 = 5_000;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[derive(Default)]
struct Sum {
    runs: u64,
    rounds: u64,
    outcomes: usize,
    /// The shortest input that came to each outcome.
    found: BTreeMap<u64, Vec<u8>>,
    took: Duration,
}

impl Sum {
    fn take(&mut self, found: BTreeMap<u64, Vec<u8>>) {
        for (outcome, input) in found {
            let known = self.found.entry(outcome).or_insert_with(|| input.clone());
            if input.len() < known.len() {
                *known = input;
            }
        }
    }
}

/// Runs rounds of one target until its time is over.
fn work(
    name: &str,
    next: &AtomicU64,
    until: Instant,
    keeps: bool,
) -> anyhow::Result<(Sum, Option<Failure>)> {
    let (mut sum, started) = (Sum::default(), Instant::now());
    while Instant::now() < until {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        let mut target = target(name)?;
        match round(&mut *target, seed, RUNS) {
            Ok(done) => {
                sum.runs = sum.runs.saturating_add(done.runs);
                sum.rounds = sum.rounds.saturating_add(1);
                sum.outcomes = sum.outcomes.max(done.outcomes);
                if keeps {
                    sum.take(done.found);
                }
            }
            Err(failure) => {
                sum.took = started.elapsed();
                return Ok((sum, Some(*failure)));
            }
        }
    }
    sum.took = started.elapsed();
    Ok((sum, None))
}

fn main() -> anyhow::Result<()> {
    let mut names: Vec<&str> = targets()?.iter().map(|target| target.name()).collect();
    if let Ok(only) = std::env::var("FUZZ_TARGET") {
        names.retain(|name| *name == only);
        anyhow::ensure!(!names.is_empty(), "no target is called {only}");
    }
    if let Some(seed) = setting("FUZZ_SEED") {
        for name in names {
            match round(&mut *target(name)?, seed, RUNS) {
                Ok(done) => println!("{name}: {} outcomes in {} runs", done.outcomes, done.runs),
                Err(failure) => anyhow::bail!("{failure}"),
            }
        }
        return Ok(());
    }
    let seconds = setting("FUZZ_SECONDS").unwrap_or(60);
    let share = Duration::from_secs(seconds) / u32::try_from(names.len()).unwrap_or(1).max(1);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let first = setting("FUZZ_FIRST").unwrap_or(now.as_secs());
    println!("FUZZ_FIRST={first}");
    let keeps = setting("FUZZ_KEEP").is_some();
    let failures: Mutex<BTreeMap<&str, String>> = Mutex::default();
    let mut total: u64 = 0;
    for name in names {
        let (next, until) = (AtomicU64::new(first), Instant::now() + share);
        let done = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| scope.spawn(|| work(name, &next, until, keeps)))
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join())
                .collect::<Vec<_>>()
        });
        let (mut runs, mut outcomes, mut took) = (0_u64, 0, Duration::ZERO);
        let mut all = Sum::default();
        for one in done {
            let (sum, failure) =
                one.map_err(|_| anyhow::anyhow!("a worker of {name} panicked"))??;
            runs = runs.saturating_add(sum.runs);
            outcomes = outcomes.max(sum.outcomes);
            took = took.max(sum.took);
            all.take(sum.found);
            if let Some(failure) = failure {
                let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.insert(name, failure.to_string());
            }
        }
        total = total.saturating_add(runs);
        let rate = runs as f64 / took.as_secs_f64().max(0.001);
        println!("{name}: {runs} runs, {rate:.0} a second, {outcomes} outcomes in a round at most");
        if keeps {
            println!(
                "{name}: {} more are kept",
                keep(&mut *target(name)?, all.found)?
            );
        }
    }
    println!("{total} runs in all");
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let told: Vec<String> = failures.into_values().collect();
    anyhow::ensure!(told.is_empty(), "{}", told.join("\n\n"));
    Ok(())
}
