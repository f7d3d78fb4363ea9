//! Muster runs for long while jobs come and go: what it holds must not grow.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::LocalBoxFuture;
use muster_control_plane::Program;

use crate::crowd::{Crowd, REPLACE_EVERY, operator};
use crate::pairs::Pairs;

/// Name of the one pair.
const PAIR: &str = "a";
/// Pause between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Part of the time after which all that is kept for good is there, and growth counts: one of so many.
const WARM_UP: u32 = 3;

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// For how long.
    pub length: Duration,
    /// Jobs that are there at any time.
    pub in_flight: usize,
    /// GPU nodes of 8 each.
    pub nodes: u32,
    /// What the jobs come from.
    pub seed: u64,
}

/// What a program holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Since the beginning.
    pub at: Duration,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Open file descriptors.
    pub files: usize,
    /// Series that it serves, but for the states of gangs.
    pub series: usize,
}

/// What came of it, after the warm-up.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Jobs that have ended.
    pub jobs: usize,
    /// Every sample of Muster, those of the warm-up too.
    pub samples: Vec<Sample>,
    /// Growth of resident memory, bytes an hour, by least squares.
    pub bytes_per_hour: f64,
    /// Fewest and most open file descriptors.
    pub files: (usize, usize),
    /// Fewest and most series.
    pub series: (usize, usize),
}

/// Runs it.
///
/// # Errors
/// Something ended that should not, or cannot be looked at.
pub fn run<'a>(plan: Plan, say: &'a dyn Fn(&str)) -> LocalBoxFuture<'a, anyhow::Result<Outcome>> {
    Box::pin(sample(plan, say))
}

async fn sample(plan: Plan, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
    let pairs = Pairs::start_of(&[PAIR], plan.nodes, "", Duration::ZERO, &operator()).await?;
    let sampled = sample_on(&pairs, plan, say).await;
    if sampled.is_err() {
        pairs.cluster.keep_logs();
    }
    sampled
}

async fn sample_on(pairs: &Pairs, plan: Plan, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
    pairs.until_jobs_are_held().await?;
    let [muster, _] = pairs.programs(PAIR)?;
    let mut crowd = Crowd::new(pairs, plan.seed);
    let mut samples = Vec::new();
    let (since, mut next) = (Instant::now(), Duration::ZERO);
    while since.elapsed() < plan.length {
        crowd.tend(plan.in_flight).await?;
        if since.elapsed() >= next {
            next = next.saturating_add(SAMPLE_EVERY);
            pairs.cluster.check_all_running()?;
            let sample = look(pairs, &muster, since.elapsed()).await?;
            say(&format!(
                "{:>7.1} MiB, {} files, {} series, {} jobs have ended, {} are there",
                mebibytes(sample.rss_bytes),
                sample.files,
                sample.series,
                crowd.ended(),
                crowd.open()
            ));
            samples.push(sample);
        }
        tokio::time::sleep(REPLACE_EVERY).await;
    }
    Ok(judge(samples, plan.length, crowd.ended()))
}

/// Bytes as people read them.
pub fn mebibytes(bytes: u64) -> f64 {
    let whole = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
    f64::from(whole) / 1024.0
}

async fn look(pairs: &Pairs, program: &Program, at: Duration) -> anyhow::Result<Sample> {
    let pid = pairs.cluster.pid(program).context("Muster runs")?;
    let usage = pairs.cluster.usage(program).context("Muster's memory")?;
    let files = PathBuf::from(format!("/proc/{pid}/fd"));
    let page = pairs.page(PAIR, "/metrics").await?;
    let series = page.lines().filter(|line| line.starts_with("muster_"));
    // A state that a gang is in for the first time is one more, and there are so many states.
    let series = series.filter(|line| !line.starts_with("muster_gangs{"));
    Ok(Sample {
        at,
        rss_bytes: usage.rss_bytes,
        files: std::fs::read_dir(files)?.count(),
        series: series.count(),
    })
}

fn judge(samples: Vec<Sample>, length: Duration, jobs: usize) -> Outcome {
    let warm = length / WARM_UP;
    let counted: Vec<Sample> = samples
        .iter()
        .filter(|sample| sample.at >= warm)
        .copied()
        .collect();
    let range = |of: fn(&Sample) -> usize| {
        let values = counted.iter().map(of);
        (values.clone().min().unwrap_or(0), values.max().unwrap_or(0))
    };
    Outcome {
        jobs,
        bytes_per_hour: slope(&counted) * 3600.0,
        files: range(|sample| sample.files),
        series: range(|sample| sample.series),
        samples,
    }
}

/// Bytes of memory that are added in a second, by least squares.
fn slope(samples: &[Sample]) -> f64 {
    let points: Vec<(f64, f64)> = samples
        .iter()
        .map(|sample| {
            (
                sample.at.as_secs_f64(),
                mebibytes(sample.rss_bytes) * 1024.0 * 1024.0,
            )
        })
        .collect();
    let count = f64::from(u32::try_from(points.len()).unwrap_or(u32::MAX)).max(1.0);
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let rise: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    let run: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.0 - x))
        .sum();
    if run > 0.0 { rise / run } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_counts_after_the_warm_up_only() {
        let sample = |seconds: u64, kibibytes: u64| Sample {
            at: Duration::from_secs(seconds),
            rss_bytes: kibibytes * 1024,
            files: 40,
            series: usize::try_from(seconds / 10).unwrap(),
        };
        let flat = [
            sample(0, 1000),
            sample(10, 90_000),
            sample(20, 90_000),
            sample(30, 90_000),
        ];
        let outcome = judge(flat.to_vec(), Duration::from_secs(30), 7);
        assert!(outcome.bytes_per_hour.abs() < 1.0, "{outcome:?}");
        assert_eq!(
            (outcome.files, outcome.series, outcome.jobs),
            ((40, 40), (1, 3), 7)
        );
        let grows = [sample(10, 1000), sample(20, 1010), sample(30, 1020)];
        let outcome = judge(grows.to_vec(), Duration::from_secs(30), 0);
        assert!(
            (outcome.bytes_per_hour - 3600.0 * 1024.0).abs() < 1.0,
            "{outcome:?}"
        );
    }
}
