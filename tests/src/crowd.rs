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

    /// Takes away the jobs that have ended, and makes new ones up to this many.
    pub async fn tend(&mut self, in_flight: usize) -> anyhow::Result<()> {
        let jobs = self.pairs.jobs();
        let finished: Vec<String> = self.pairs.recorder.look(|world| {
            let finished = world.jobs.values().filter(|job| job.finished);
            finished.map(|job| job.name.clone()).collect()
        });
        for name in &finished {
            if self.open.remove(name) {
                self.ended = self.ended.saturating_add(1);
            }
        }
        // What is gone already, or cannot be reached, is tried again or was done.
        let gone = DeleteParams::background();
        futures::future::join_all(finished.iter().map(|name| jobs.delete(name, &gone))).await;
        for _ in 0..MADE_AT_ONCE {
            if self.open.len() >= in_flight {
                break;
            }
            let job = self.job();
            let object: DynamicObject = serde_saphyr::from_str(&job.yaml())?;
            match jobs.create(&PostParams::default(), &object).await {
                Ok(_) => {}
                // It was made, and the answer was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(_) => {
                    self.made = self.made.saturating_sub(1);
                    break;
                }
            }
            self.open.insert(job.name);
        }
        Ok(())
    }
}
