//! Jobs that come, run for some seconds, end and are replaced, so that so many are there at any time.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::{DeleteParams, DynamicObject, PostParams};
use muster_control_plane::TrainingOperatorOptions;

use crate::jobs::{Job, Role};
use crate::pairs::Pairs;
use crate::rng::Rng;

/// How often jobs that have ended are replaced.
pub const REPLACE_EVERY: Duration = Duration::from_millis(500);
/// Jobs that are made at most at a time.
const MADE_AT_ONCE: usize = 10;

/// A training-operator that keeps up with such a crowd: by its own defaults it makes ten pods a second.
pub fn operator() -> TrainingOperatorOptions {
    TrainingOperatorOptions {
        qps: 200,
        burst: 400,
        threads: 4,
        ..TrainingOperatorOptions::default()
    }
}

/// The jobs that are there.
pub struct Crowd<'a> {
    pairs: &'a Pairs,
    rng: Rng,
    made: u32,
    /// Asked for, and not known to be there.
    again: Vec<Job>,
    /// Made, and not seen to have ended.
    open: BTreeSet<String>,
    ended: usize,
}

impl<'a> Crowd<'a> {
    /// Nobody yet.
    pub fn new(pairs: &'a Pairs, seed: u64) -> Self {
        Self {
            pairs,
            rng: Rng::new(seed),
            made: 0,
            again: Vec::new(),
            open: BTreeSet::new(),
            ended: 0,
        }
    }

    /// Jobs that are there.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.open.iter()
    }

    /// Jobs that have ended.
    pub fn ended(&self) -> usize {
        self.ended
    }

    fn job(&mut self) -> Job {
        self.made = self.made.saturating_add(1);
        let workers = u32::try_from(self.rng.below(4))
            .unwrap_or(0)
            .saturating_add(1);
        let gpus = self.rng.pick(&[1, 1, 2, 4]).copied().unwrap_or(1);
        let seconds = u32::try_from(self.rng.below(15))
            .unwrap_or(0)
            .saturating_add(5);
        let name = format!("j{}", self.made);
        Job::new(&name, vec![Role::new("Worker", workers, gpus)])
            .policy("cleanPodPolicy: None")
            .running_for(seconds)
    }

    /// Takes away the jobs that have ended, and makes new ones up to this many, ten at most. One that could not be made is made later under
    /// the same name: it may be there, and its answer lost.
    pub async fn tend(&mut self, in_flight: usize) -> anyhow::Result<()> {
        let jobs = self.pairs.jobs();
        let finished: Vec<String> = self.pairs.recorder.look(|world| {
            let finished = world.jobs.values().filter(|job| job.finished);
            finished.map(|job| job.name.clone()).collect()
        });
        let known: BTreeSet<String> = self.pairs.recorder.look(|world| {
            let jobs = world.jobs.values();
            jobs.map(|job| job.name.clone()).collect()
        });
        let asked = std::mem::take(&mut self.again);
        let (there, again): (Vec<Job>, Vec<Job>) =
            asked.into_iter().partition(|job| known.contains(&job.name));
        self.again = again;
        self.open.extend(there.into_iter().map(|job| job.name));
        for name in &finished {
            if self.open.remove(name) {
                self.ended = self.ended.saturating_add(1);
            }
        }
        // What is gone already, or cannot be reached, is tried again or was done.
        let gone = DeleteParams::background();
        futures::future::join_all(finished.iter().map(|name| jobs.delete(name, &gone))).await;
        let missing = in_flight.saturating_sub(self.open.len());
        let mut wanted: Vec<Job> = Vec::new();
        while wanted.len() < missing.min(MADE_AT_ONCE) {
            let job = self.again.pop().unwrap_or_else(|| self.job());
            wanted.push(job);
        }
        let made = wanted.iter().map(|job| async {
            let object: DynamicObject = serde_saphyr::from_str(&job.yaml())?;
            anyhow::Ok(match jobs.create(&PostParams::default(), &object).await {
                Ok(_) => true,
                // It was made, and the answer was lost.
                Err(kube::Error::Api(status)) => status.code == 409,
                Err(_) => false,
            })
        });
        let made = futures::future::join_all(made).await;
        for (job, made) in wanted.into_iter().zip(made) {
            if made? {
                self.open.insert(job.name);
            } else {
                self.again.push(job);
            }
        }
        Ok(())
    }
}
