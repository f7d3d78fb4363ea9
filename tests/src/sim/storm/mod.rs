//! The whole scheduler in a storm: one seed is one run.
//!
//! ```text
//!   weather: API faults ──┐                        ┌── mischief: nodes, GPUs, agents, pods, jobs, people
//!   replica(s): killed ───┼─► cluster in memory ◄──┤
//!   and stopped at any    │     │ every write      └── workload: gangs of every kind
//!   await                 │     ▼
//!                         │   judge: what must always hold
//!   a storm, then calm: what must come of it
//!   a story, step by step, and calm again: exams
//! ```
//! The seed decides everything: how many nodes and replicas there are, which faults exist and how often, what happens
//! when. Equal seeds give equal stories, down to the order of writes. Every eighth run is long: two storms with a lull between
//! them, two stories, all exams ([`is_long`]).

mod ambush;
pub mod calm;
mod exam;
pub mod facts;
mod impostor;
pub mod judge;
pub mod log;
pub mod mischief;
pub mod replica;
mod room;
pub mod sight;
mod stories;
pub mod weather;
pub mod workload;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use muster_agent::fleet::Fleet;
use muster_embedded::cluster::{Running, run_paused};
use muster_embedded::standins::agents::Agents;
use muster_embedded::standins::kubelet::{Holder, KubeletConfig};
use muster_embedded::standins::operator::OperatorConfig;
use muster_embedded::{EmbeddedCluster, NodePool, value, yaml};
use muster_kubernetes::manifests;
use muster_scheduler::config::Config;
use muster_scheduler::span::Span;
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::log::Log;
use self::mischief::Undo;
use self::replica::Replica;
use self::weather::{Fault, Weather};
use self::workload::Set;
use super::doors::Doors;
use super::steps::Steps;
use super::{CLIENT, GANGS, JOBS, PODS, Script, gpu_pool, kube_scheduler, start_agents};
use crate::rng::Rng;

/// Steps after which a run is over, however little time has passed: many times those of any that ends by itself.
const STEPS_MAX: u64 = 60_000;
/// Of so many seeds one is long.
const LONG_EVERY: u64 = 8;
/// Which of them.
const LONG_AT: u64 = 2;
/// Seeds from here on are long, all of them.
const LONG_FROM: u64 = 50_000_000;
/// A run with fewer faults was no storm.
pub const FAULTS_MIN: u64 = 25;
/// Longest that a storm goes on for as many.
const CALM_MAX: Duration = Duration::from_secs(60);
/// Calm between two storms, at least.
const LULL_MIN: Duration = Duration::from_secs(20);
/// The same, at most: long enough for GANG-1 to be judged. It ends before that when no gang is bound in part.
const LULL_MAX: Duration = Duration::from_secs(105);
/// The second replica's name for the API server.
const SECOND: &str = "muster-scheduler-b";

/// What one seed came to.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was wrong, with the names that it is about; `None` when nothing was.
    pub wrong: Option<(String, Vec<String>)>,
    /// Gangs that ran to their end.
    pub completed: u64,
    /// Bindings of Muster.
    pub bindings: u64,
    /// Faults and things done to the cluster.
    pub faults: u64,
    /// Whether its storm went on because little had come of it.
    pub prolonged: bool,
    /// API faults by kind.
    pub by_fault: BTreeMap<Fault, u64>,
    /// Writes of the store.
    pub writes: u64,
    /// Steps that it took.
    pub steps: u64,
    /// Digest of the whole story.
    pub digest: u64,
    /// Time that passed in the cluster.
    pub time: Duration,
    /// Time of calm until every gang had run.
    pub settled: Duration,
    /// The story as lines; all of it, or the end of it when something was wrong, or nothing.
    pub story: Vec<String>,
}

/// A run.
pub struct Storm {
    seed: u64,
    /// Beginning of the names of the stories that are told, where not all are.
    only: Option<String>,
    rng: Rng,
    nodes: u32,
    cluster: EmbeddedCluster,
    agents: Agents,
    doors: Arc<Doors>,
    script: Arc<Script>,
    weather: Arc<Weather>,
    judge: judge::Shared,
    eyes: (CancellationToken, JoinHandle<()>),
    log: Log,
    config: Config,
    replicas: Vec<Replica>,
    kube_scheduler: Running,
    operator: Running,
    operator_config: OperatorConfig,
    holders: Arc<Mutex<BTreeMap<String, Vec<Holder>>>>,
    sets: Vec<Set>,
    undo: Vec<(Instant, Undo)>,
    strays: JoinSet<()>,
    /// Agents that speak for a node which is not theirs.
    impostors: BTreeMap<String, Fleet>,
    made: u64,
    done: u64,
    prolonged: bool,
    settled: Duration,
    steps: Arc<Steps>,
}

/// What the replicas share, borrowed field by field.
macro_rules! around {
    ($storm:expr) => {
        $crate::sim::storm::replica::Surroundings {
            cluster: &$storm.cluster,
            doors: &$storm.doors,
            config: &$storm.config,
            seed: $storm.seed,
            log: &$storm.log,
            judge: &$storm.judge,
        }
    };
}
use around;

/// How much of its story a run keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// The end of it, when something is wrong.
    Short,
    /// All of it.
    All,
}

/// Threads for seeds: as many as `SIM_THREADS` says, or as there are processors.
pub fn threads() -> usize {
    let said = std::env::var("SIM_THREADS");
    let said = said.ok().and_then(|said| said.parse().ok());
    let all = || std::thread::available_parallelism().map_or(2, usize::from);
    said.unwrap_or_else(all).max(1)
}

/// Whether a seed has two storms, two stories and all exams, and not one of each. What goes wrong in the second storm begins with what the first
/// has left, and few of what is planted need it; two short runs begin in two places, for the price of one.
#[must_use]
pub fn is_long(seed: u64) -> bool {
    seed >= LONG_FROM || seed % LONG_EVERY == LONG_AT
}

/// Runs one seed in this thread.
pub fn run(seed: u64, telling: Telling) -> Outcome {
    let done = run_paused(async move {
        match Storm::start(seed) {
            Ok(storm) => storm.through(telling).await,
            Err(error) => failed(seed, format!("the storm did not start: {error:#}")),
        }
    });
    done.unwrap_or_else(|error| failed(seed, format!("no runtime: {error}")))
}

fn sum(done: u64, by_fault: &BTreeMap<Fault, u64>) -> u64 {
    by_fault
        .values()
        .fold(done, |sum, n| sum.saturating_add(*n))
}

fn failed(seed: u64, wrong: String) -> Outcome {
    Outcome {
        seed,
        wrong: Some((wrong, Vec::new())),
        completed: 0,
        bindings: 0,
        faults: 0,
        prolonged: false,
        by_fault: BTreeMap::new(),
        writes: 0,
        steps: 0,
        digest: 0,
        time: Duration::ZERO,
        settled: Duration::ZERO,
        story: Vec::new(),
    }
}

/// What Muster installs, read once.
fn installed() -> &'static [Value] {
    static READ: OnceLock<Vec<Value>> = OnceLock::new();
    READ.get_or_init(|| {
        let printed = [manifests::crds(), manifests::rbac()];
        let read = printed.iter().filter_map(|text| yaml::all(text).ok());
        read.flatten().collect()
    })
}

fn operator_config(rng: &mut Rng) -> OperatorConfig {
    OperatorConfig {
        pods_per_second: rng.of(&[0.5, 2.0, 10.0]),
        burst: rng.of(&[1, 3, 30]),
        services: false,
        ..OperatorConfig::default()
    }
}

impl Storm {
    fn start(seed: u64) -> anyhow::Result<Self> {
        let mut rng = Rng::new(seed);
        let nodes = 3 + u32::try_from(rng.below(3))?;
        let policies = rng.chance(75);
        let log = Log::default();
        let holders: Arc<Mutex<BTreeMap<String, Vec<Holder>>>> = Arc::default();
        let noted = Arc::clone(&holders);
        let on_holders = move |node: &str, held: &[Holder]| {
            if let Ok(mut noted) = noted.lock() {
                noted.insert(node.to_owned(), held.to_vec());
            }
        };
        let mut builder = EmbeddedCluster::builder()
            .seed(seed)
            .operator(None)
            .kubelet(Some(KubeletConfig {
                on_holders: Some(Arc::new(on_holders)),
                ..KubeletConfig::default()
            }))
            .nodes(gpu_pool(usize::try_from(nodes)?))
            .nodes(NodePool::new("cpu", 1, 0));
        if policies {
            builder = builder.admission_policies();
        }
        let cluster = builder.start()?;
        for object in installed() {
            cluster.create(object.clone())?;
        }
        let operator_config = operator_config(&mut rng);
        let operator = cluster.start_operator(operator_config.clone())?;
        let script = Arc::new(Script::default());
        let judge = judge::Shared::default();
        let steps = Arc::new(Steps::new(STEPS_MAX));
        let faults = Weather::new(
            seed,
            Arc::clone(&script),
            Arc::clone(&judge),
            log.clone(),
            Arc::clone(&steps),
        );
        let weather = Arc::new(faults);
        cluster.set_faults(Arc::clone(&weather) as _);
        let (stop, eyes) = (CancellationToken::new(), judge::Eyes::new(&cluster)?);
        let eyes = tokio::spawn(eyes.follow(Arc::clone(&judge), stop.clone()));
        let doors = Arc::new(Doors::counting(Arc::clone(&steps)));
        let mut replicas = vec![Replica::new("muster", CLIENT)];
        if rng.chance(50) {
            replicas.push(Replica::new("muster-b", SECOND));
        }
        let names: Vec<&str> = replicas.iter().map(|replica| replica.door).collect();
        let agents = start_agents(&cluster, &doors, &names, seed)?;
        let kube_scheduler = cluster.start_scheduler(kube_scheduler(&doors, 100))?;
        let mut config = Config::default();
        // GPUs break in a storm as they never do. With the breaker as it comes little of it is soon believed, and the
        // judge cannot tell what: in those runs it looks at everything else.
        let is_breaking = rng.chance(25);
        if !is_breaking {
            config.inventory.quarantine_percent_max = 100;
        }
        judge::locked(&judge).believes_verdicts(!is_breaking);
        // Half of the runs forget agents soon: a silence of 30 s and more hardly fits into a storm.
        if rng.chance(50) {
            config.inventory.report_age_max = Span::secs(10);
            config.agents.heartbeat_every = Span::secs(4);
        }
        let believed = config.inventory.report_age_max;
        judge::locked(&judge).report_age_max(believed.0);
        config.gang.refused_node_for = Span::secs(60);
        log.note(format!(
            "{nodes} nodes of {} GPUs, {} scheduler(s), policies {policies}, breaker {is_breaking}, reports believed for {} s, {operator_config:?}",
            workload::GPUS,
            replicas.len(),
            believed.0.as_secs()
        ));
        Ok(Self {
            seed,
            only: std::env::var("SIM_STORY").ok(),
            rng,
            nodes,
            cluster,
            agents,
            doors,
            script,
            weather,
            judge,
            eyes: (stop, eyes),
            log,
            config,
            replicas,
            kube_scheduler,
            operator,
            operator_config,
            holders,
            sets: Vec::new(),
            undo: Vec::new(),
            strays: JoinSet::new(),
            impostors: BTreeMap::new(),
            made: 0,
            done: 0,
            prolonged: false,
            settled: Duration::ZERO,
            steps,
        })
    }

    async fn through(mut self, telling: Telling) -> Outcome {
        let steps = Arc::clone(&self.steps);
        let ended = tokio::select! {
            biased;
            () = steps.over() => Err(format!("L3: no end after {STEPS_MAX} steps: somebody writes or asks on and on")),
            ended = self.play() => ended,
        };
        let first = judge::locked(&self.judge).first();
        let wrong = match (ended, first) {
            (_, Some(first)) => Some((
                format!(
                    "at {} ms, {}: {}",
                    first.at_ms,
                    if first.stormy {
                        "in a storm"
                    } else {
                        "in calm"
                    },
                    first.text
                ),
                first.about,
            )),
            (Err(why), None) => Some((why, Vec::new())),
            (Ok(()), None) => None,
        };
        let story = match (&wrong, telling) {
            (_, Telling::All) => self.log.story(&self.cluster),
            (Some((_, about)), Telling::Short) => vec![self.log.short(&self.cluster, about)],
            (None, Telling::Short) => Vec::new(),
        };
        let by_fault = self.weather.happened();
        let (completed, bindings) = {
            let judge = judge::locked(&self.judge);
            (judge.completed(), judge.bindings())
        };
        let outcome = Outcome {
            seed: self.seed,
            wrong,
            completed,
            bindings,
            faults: sum(self.done, &by_fault),
            prolonged: self.prolonged,
            by_fault,
            writes: self.cluster.api().digest().0,
            steps: self.steps.taken(),
            digest: self.log.digest(&self.cluster),
            time: Duration::from_millis(self.log.now_ms()),
            settled: self.settled,
            story,
        };
        self.end().await;
        outcome
    }

    async fn play(&mut self) -> Result<(), String> {
        self.tend().await?;
        if is_long(self.seed) {
            self.storm().await?;
            self.clear_up();
            self.lull().await?;
        }
        self.storm().await?;
        self.clear_up();
        self.all_end().await?;
        self.stories().await?;
        self.submit_the_impossible();
        // A short run sits for one of the two exams.
        let (long, odd) = (is_long(self.seed), !self.seed.is_multiple_of(2));
        if long || odd {
            self.all_room_is_free().await?;
        }
        self.pass(Duration::from_secs(20)).await?;
        if long || !odd {
            self.restart_changes_nothing().await?;
            self.calls_are_answered().await?;
        }
        self.withdraw_the_impossible();
        self.pass(Duration::from_secs(20)).await?;
        self.nothing_more_is_written().await
    }

    async fn storm(&mut self) -> Result<(), String> {
        judge::locked(&self.judge).calm(false);
        self.log.note("a storm begins");
        self.weather.storm(true);
        let end = Instant::now() + Duration::from_secs(30 + self.rng.below(20));
        for _ in 0..3 {
            self.submit();
        }
        while Instant::now() < end || self.is_too_calm(end) {
            self.prolonged |= Instant::now() >= end;
            self.mischief().await?;
            self.take_back(false);
            self.tend().await?;
            let rest = self.rng.below(1600);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
        Ok(())
    }

    /// A short run has one storm to be one in: where little of it has come by then, it goes on, for a minute at most.
    fn is_too_calm(&self, end: Instant) -> bool {
        let faults = || sum(self.done, &self.weather.happened());
        !is_long(self.seed) && Instant::now() < end + CALM_MAX && faults() < FAULTS_MIN
    }

    async fn lull(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let lasts = |storm: &Self| match begun.elapsed() {
            short if short < LULL_MIN => true,
            long if long >= LULL_MAX => false,
            _ => judge::locked(&storm.judge).is_any_partial(),
        };
        while lasts(self) {
            if self.rng.chance(10) {
                self.submit();
            }
            self.pass(Duration::from_secs(3)).await?;
        }
        Ok(())
    }

    /// Looks after the schedulers, and asks the judge. An error ends the run.
    async fn tend(&mut self) -> Result<(), String> {
        let around = around!(self);
        for replica in &mut self.replicas {
            replica.tend(&around).await?;
            replica.audit()?;
        }
        while self.strays.try_join_next().is_some() {}
        if let Some(list) = self.weather.old_list() {
            return Err(format!("LEAD-1: {list} is content with an older state"));
        }
        let mut judge = judge::locked(&self.judge);
        judge.judge_time(Instant::now());
        match judge.first() {
            Some(first) => Err(first.text),
            None => Ok(()),
        }
    }

    fn a_replica(&mut self) -> Option<&mut Replica> {
        let at = self.rng.index(self.replicas.len());
        self.replicas.get_mut(at)
    }

    /// The pod that holds a device.
    fn holder(&self, node: &str, uuid: &str) -> Option<String> {
        let holders = self.holders.lock().ok()?;
        let holder = holders
            .get(node)?
            .iter()
            .find(|holder| holder.devices.iter().any(|device| device == uuid))?;
        Some(holder.name.clone())
    }

    fn start_kube_scheduler(&mut self) -> Result<(), String> {
        self.kube_scheduler.kill();
        let config = kube_scheduler(&self.doors, 100);
        let started = self.cluster.start_scheduler(config);
        self.kube_scheduler = started.map_err(|error| error.to_string())?;
        Ok(())
    }

    fn start_operator(&mut self) -> Result<(), String> {
        self.operator.kill();
        let started = self.cluster.start_operator(self.operator_config.clone());
        self.operator = started.map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Gangs, jobs and pods that have not ended, as lines.
    fn picture(&self) -> String {
        let mut lines = vec![format!("at {} ms", self.log.now_ms())];
        for gang in self.cluster.list(GANGS) {
            let of = |field: &str| value::text(&gang, &["status", field]).to_owned();
            lines.push(format!(
                "gang {} {} {} plan {} {}: {}",
                value::name(&gang),
                of("phase"),
                of("reason"),
                of("planId"),
                of("membersBound"),
                of("message")
            ));
        }
        for job in self.cluster.list(JOBS) {
            if !calm::has_ended(&job) {
                let policy = job.pointer("/spec/runPolicy").unwrap_or(&Value::Null);
                let marks = job.pointer("/metadata/annotations").unwrap_or(&Value::Null);
                lines.push(format!("job {} {policy} {marks}", value::name(&job)));
            }
        }
        for pod in self.cluster.list(PODS) {
            let phase = value::text(&pod, &["status", "phase"]);
            if phase != "Succeeded" {
                let scheduled = value::condition(&pod, "PodScheduled");
                lines.push(format!(
                    "pod {} {phase} {} {} {}",
                    value::name(&pod),
                    value::text(&pod, &["spec", "nodeName"]),
                    value::text(&pod, &["metadata", "deletionTimestamp"]),
                    scheduled.map_or("", |c| value::text(c, &["message"]))
                ));
            }
        }
        lines.join("\n")
    }

    async fn end(mut self) {
        for replica in &mut self.replicas {
            replica.end().await;
        }
        self.strays.shutdown().await;
        let (stop, eyes) = self.eyes;
        stop.cancel();
        // It has nothing more to say.
        let _ = eyes.await;
        self.agents.stop().await;
        self.cluster.stop().await;
    }
}
