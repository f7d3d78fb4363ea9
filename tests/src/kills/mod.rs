//! Muster is killed again and again while gangs start, run and end, and whatever it depends on with it.
//!
//! ```text
//!   crowd    jobs come, run for some seconds, end and are replaced: so many are there at any time
//!   reaper   SIGKILL for Muster at a random moment; now and then for kube-scheduler, API server or etcd; bytes
//!            between them and the agents that are lost, late or cut
//!   kubelet  starts again what has ended
//!   looker   plans that have nothing bound for longer than 60 s: room that is reserved for nobody
//!   judge    what the API server's own watch told; a gang has its 30 s of a healthy API server and of a Muster that leads
//! ```

mod judge;
mod reaper;
mod story;
mod unused;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::future::LocalBoxFuture;
use jiff::Timestamp;
use muster_control_plane::Outage;

use crate::crowd::{Crowd, REPLACE_EVERY, operator};
use crate::jobs::{Job, Role};
use crate::pairs::Pairs;
use crate::rng::Rng;

use reaper::Reaper;
use unused::Unused;

/// Name of the one pair.
const PAIR: &str = "a";
/// Longest that the record asks for what it missed while the API server was away: meanwhile nobody replaces jobs that have ended.
const VERSIONS_MAX: Duration = Duration::from_secs(15);
/// Longest wait for so many jobs to be there before the first kill.
const FILLED_MAX: Duration = Duration::from_secs(40);
/// Longest wait for all that is left to run and end once nothing goes wrong any more.
const REST_MAX: Duration = Duration::from_secs(420);
/// Longest that a plan may have nothing bound while a Muster leads and kube-scheduler comes, and longest wait for a job that takes all GPUs there are in the end:
/// nothing may be reserved for nobody for longer. Fifty kills have too few long lives for so much time: there the last job finds what leaks.
const LEAK_MAX: Duration = Duration::from_secs(60);
/// How often it is looked who leads.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// SIGKILLs of Muster.
    pub kills: u32,
    /// Jobs that are there at any time.
    pub in_flight: usize,
    /// GPU nodes of 8 each.
    pub nodes: u32,
    /// What the moments of all faults come from.
    pub seed: u64,
    /// Everything has to be over by then.
    pub longest: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// SIGKILLs of Muster.
    pub kills: u32,
    /// Other faults, by name.
    pub faults: BTreeMap<&'static str, u32>,
    /// Jobs that were made, and of which all pods have run to their end.
    pub jobs: usize,
    /// Bindings.
    pub binds: usize,
    /// Longest that a gang was bound in part, without outages of the API server.
    pub partial_longest: Duration,
    /// The same without the times in which no Muster led.
    pub partial_led: Duration,
    /// For how long no Muster led, in all.
    pub leaderless: Duration,
    /// Longest that a plan had nothing bound, of the time in which a Muster led.
    pub unused_longest: Duration,
    /// From the last fault to the end of the last job.
    pub rest: Duration,
    /// Until a job that takes every GPU was bound.
    pub all_gpus: Duration,
}

/// The epoch in which Muster leads, as its own page says it.
async fn epoch_led(pairs: &Pairs) -> Option<u64> {
    let page = pairs.page(PAIR, "/metrics").await.unwrap_or_default();
    let leads = page.lines().any(|line| line == "muster_leading 1");
    let mut epochs = page
        .lines()
        .filter_map(|line| line.strip_prefix("muster_epoch "));
    epochs.next()?.parse().ok().filter(|_| leads)
}

/// Times in which no Muster leads.
async fn watch_leader(pairs: &Pairs, leaderless: &Mutex<Vec<Outage>>) {
    loop {
        let leads = epoch_led(pairs).await.is_some();
        {
            let mut known = leaderless.lock().unwrap_or_else(PoisonError::into_inner);
            let open = known.last_mut().filter(|last| last.until.is_none());
            match (open, leads) {
                (Some(last), true) => last.until = Some(Timestamp::now()),
                (None, false) => known.push(Outage {
                    from: Timestamp::now(),
                    until: None,
                }),
                _ => {}
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Does it, and judges what has happened.
///
/// # Errors
/// Something that must not happen has; or a wait was in vain.
pub fn run<'a>(plan: Plan, say: &'a dyn Fn(&str)) -> LocalBoxFuture<'a, anyhow::Result<Outcome>> {
    Box::pin(kill_and_judge(plan, say))
}

async fn kill_and_judge(plan: Plan, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
    let pairs = Pairs::start_of(&[PAIR], plan.nodes, "", Duration::ZERO, &operator()).await?;
    pairs.until_jobs_are_held().await?;
    pairs.recorder.ask_for_versions_up_to(VERSIONS_MAX);
    say("the control plane is up; jobs come, and Muster is killed");
    let leaderless = Mutex::new(Vec::new());
    let unused = Mutex::new(Unused::default());
    let done = tokio::select! {
        kept = pairs.keep_running(PAIR) => {
            kept.and_then(|()| bail!("nobody starts programs any more"))
        }
        () = watch_leader(&pairs, &leaderless) => Err(anyhow::anyhow!("nobody looks who leads")),
        leak = unused::watch(&pairs, &unused) => Err(leak),
        done = kill_all(&pairs, plan, &leaderless, say) => done,
    };
    let longest = unused.lock().unwrap_or_else(PoisonError::into_inner);
    let done = done.map(|outcome| Outcome {
        unused_longest: longest.longest(),
        ..outcome
    });
    if done.is_err() {
        pairs.cluster.keep_logs();
    }
    done
}

async fn kill_all(
    pairs: &Pairs,
    plan: Plan,
    leaderless: &Mutex<Vec<Outage>>,
    say: &dyn Fn(&str),
) -> anyhow::Result<Outcome> {
    let (kills, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let end = Instant::now() + plan.longest;
    let mut crowd = Crowd::new(pairs, plan.seed.wrapping_add(1));
    // On a busy machine jobs may end as fast as they can be made: so many are never there then, and those that are will do.
    let filled = Instant::now();
    while crowd.open() < plan.in_flight && filled.elapsed() < FILLED_MAX {
        crowd.tend(plan.in_flight).await?;
    }
    anyhow::ensure!(crowd.open() > 0, "no job could be made in {FILLED_MAX:?}");
    say(&format!("{} jobs are there", crowd.open()));
    let mut reaper = Reaper {
        pairs,
        rng: Rng::new(plan.seed),
        kills: &kills,
        faults: BTreeMap::new(),
    };
    let killing = async {
        let killed = tokio::time::timeout(plan.longest, reaper.run(plan.kills)).await;
        over.store(true, Ordering::Relaxed);
        killed.context("the kills took too long")?
    };
    let coming = async {
        let mut said = Instant::now();
        while !over.load(Ordering::Relaxed) {
            crowd.tend(plan.in_flight).await?;
            if said.elapsed() > Duration::from_secs(30) {
                said = Instant::now();
                say(&format!(
                    "{} kills, {} jobs have ended, {} are there",
                    kills.load(Ordering::Relaxed),
                    crowd.ended(),
                    crowd.open()
                ));
            }
            tokio::time::sleep(REPLACE_EVERY).await;
        }
        anyhow::Ok(())
    };
    let (killed, came) = tokio::join!(killing, coming);
    killed?;
    came?;
    say("nothing goes wrong any more: all that is there has to run and end");
    let rest = Instant::now();
    let mut said = rest;
    while crowd.open() > 0 {
        if rest.elapsed() > REST_MAX || Instant::now() > end + REST_MAX {
            bail!(
                "after {REST_MAX:?} these jobs have not ended: {:?}",
                crowd.names().collect::<Vec<_>>()
            );
        }
        crowd.tend(0).await?;
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            let held = pairs.recorder.look(|world| world.held("nvidia.com/gpu"));
            say(&format!(
                "{} jobs are left, {held} GPUs in use",
                crowd.open()
            ));
        }
        tokio::time::sleep(REPLACE_EVERY).await;
    }
    let rest = rest.elapsed();
    let all_gpus = take_every_gpu(pairs, plan.nodes).await?;
    let known = |known: &Mutex<Vec<Outage>>| {
        let known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    };
    let leaderless = known(leaderless);
    let mut outcome = judge::judge(pairs, leaderless).await?;
    outcome.kills = kills.load(Ordering::Relaxed);
    outcome.faults = reaper.faults;
    outcome.jobs = crowd.ended();
    outcome.rest = rest;
    outcome.all_gpus = all_gpus;
    Ok(outcome)
}

/// A job that needs every GPU there is runs only where none is reserved for nobody.
async fn take_every_gpu(pairs: &Pairs, nodes: u32) -> anyhow::Result<Duration> {
    let none = |world: &muster_control_plane::history::World| world.held("nvidia.com/gpu") == 0;
    let wait = Duration::from_secs(120);
    pairs
        .recorder
        .wait_for(wait, "no GPU to be held", none)
        .await?;
    let job = Job::new("every-gpu", vec![Role::new("Worker", nodes, 8)]);
    let asked = Instant::now();
    let bound = pairs
        .run(&job, LEAK_MAX)
        .await
        .context("some GPUs are reserved for nobody")?;
    Ok(bound.duration_since(asked))
}
