//! One run: counters before, the load, counters after, and what the history says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use muster_control_plane::{AuditPosition, Cluster, Usage, WriteKind, Writes};

use crate::analysis::{self, Outcome, percentile};
use crate::case::{Case, Scene};
use crate::contender::Contender;
use crate::load::{Created, Load};
use crate::machine;
use crate::objects::Gang;
use crate::row::{Row, Told};
use crate::stage::{self, Options, Stage};
use crate::verdict::{Ear, Verdict};

/// Time without a binding after which an overloaded cluster counts as settled.
const SETTLED: Duration = Duration::from_secs(5);
/// Time after the last pod runs in which late events and statuses may still be written.
const LATE: Duration = Duration::from_secs(3);
/// Time for which a settled, overloaded cluster is watched.
const AFTER: Duration = Duration::from_secs(10);
/// Longest wait for the record to be complete.
const RECORD_MAX: Duration = Duration::from_secs(60);
/// Name under which this program's own processor time is shown.
const OWN: &str = "bench";

/// Counters at one moment.
struct Counters {
    writes: Writes,
    audit: AuditPosition,
    usage: BTreeMap<String, Usage>,
    busy: Duration,
    at: Instant,
}

impl Counters {
    async fn read(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut usage: BTreeMap<String, Usage> = cluster
            .usages()
            .into_iter()
            .map(|(program, usage)| (program.to_string(), usage))
            .collect();
        usage.extend(Usage::of(std::process::id()).map(|usage| (OWN.to_owned(), usage)));
        Ok(Self {
            busy: machine::busy(),
            at: Instant::now(),
            usage,
            audit: cluster.audit_position(),
            writes: cluster.api_writes().await?,
        })
    }
}

/// Runs one case with one contender on a fresh cluster.
///
/// # Errors
/// Anything that did not come to pass within `limit`: a pod that was not bound, a gang that is
/// bound in part where gangs are all or nothing, a program that ended.
pub async fn run(
    case: &Case,
    contender: Contender,
    options: &Options,
    limit: Duration,
) -> anyhow::Result<Row> {
    let gangs = Gang::of(case);
    let mut run = Run::begin(case, contender, options, &gangs, limit).await?;
    let verdict = run.end(case, contender, limit).await?;
    let Run {
        stage,
        load,
        before,
        since,
        ..
    } = run;
    let after = Counters::read(&stage.cluster).await?;
    let mut row = figures(&before, &after, case, contender);
    row.writes = writes(&stage, &before, &after, options.audit)?;
    if case.is_overload() {
        tokio::time::sleep(AFTER).await;
        let later = stage.cluster.api_writes().await?.since(&after.writes);
        let later = later.count(|kind| is_cost(kind, contender) && kind.resource != "leases");
        row.writes_after_settling = Some(later);
    }
    let mut created = load.created();
    drop(load);
    if let Some(since) = since {
        created.submitted.values_mut().for_each(|at| *at = since);
    }
    let history = stage.recorder.caught_up(RECORD_MAX).await?;
    if let Some(gap) = history.gaps.first() {
        bail!("the record has a gap, {gap}");
    }
    if let Some(first) = history.over_commitments().first() {
        bail!("a node was over-committed: {first}");
    }
    let outcome = analysis::outcome(
        history.events(),
        &gangs,
        &created.submitted,
        Timestamp::now(),
    );
    if let Some(muster) = &stage.muster {
        row.muster_metrics = Some(muster.metrics().await?);
    }
    complete(&mut row, case, contender, &created, outcome)?;
    row.told = verdict.map(|verdict| told(verdict, &created));
    Ok(row)
}

/// A run between its counters.
struct Run {
    stage: Stage,
    load: Load,
    before: Counters,
    /// When the scheduler was started, where it came after the gangs.
    since: Option<Timestamp>,
    /// Listens for what is said of the gang, where that is the question.
    ear: Option<Ear>,
}

impl Run {
    /// Sets the stage, reads the counters and submits the gangs.
    async fn begin(
        case: &Case,
        contender: Contender,
        options: &Options,
        gangs: &[Gang],
        limit: Duration,
    ) -> anyhow::Result<Self> {
        if case.scene != Scene::NoScheduler {
            let stage = Stage::start(case, contender, options).await?;
            let full = gangs.first().filter(|_| case.scene == Scene::Full);
            let ear = full.map(|gang| Ear::open(stage.cluster.admin(), contender, gang));
            let before = Counters::read(&stage.cluster).await?;
            return Ok(Self {
                load: stage.load(gangs, case.interleaved, true),
                before,
                since: None,
                ear,
                stage,
            });
        }
        let mut stage = Stage::prepare(case, contender, options).await?;
        let mut load = stage.load(gangs, case.interleaved, false);
        wait_created(&stage, case, contender, &mut load, limit).await?;
        let before = Counters::read(&stage.cluster).await?;
        let since = Timestamp::now();
        stage.start_scheduler().await?;
        if contender == Contender::Raw {
            load.bind(&stage.cluster.admin(), stage.places(gangs));
        }
        Ok(Self {
            stage,
            load,
            before,
            since: Some(since),
            ear: None,
        })
    }

    /// Waits until there is nothing more to come. Returns the verdict, where one was waited for.
    async fn end(
        &mut self,
        case: &Case,
        contender: Contender,
        limit: Duration,
    ) -> anyhow::Result<Option<Verdict>> {
        let mut verdict = None;
        if let Some(ear) = &mut self.ear {
            let heard = tokio::time::timeout(limit, ear.verdict()).await;
            let heard = heard.with_context(|| {
                format!("nothing said within {limit:?} that the gang cannot run")
            })?;
            verdict = Some(heard?);
        } else if case.is_overload() {
            settle(&self.stage, case, contender, &mut self.load, limit).await?;
            return Ok(None);
        } else {
            let pods = case.pods_total();
            let wanted = |world: &_| stage::running(world) == pods;
            self.stage
                .wait(limit, "all pods to run", Some(&mut self.load), wanted)
                .await?;
        }
        tokio::time::sleep(LATE).await;
        self.load.check()?;
        Ok(verdict)
    }
}

/// Waits until everything that can be there without a scheduler is there: pods, or jobs that are held.
async fn wait_created(
    stage: &Stage,
    case: &Case,
    contender: Contender,
    load: &mut Load,
    limit: Duration,
) -> anyhow::Result<()> {
    let held = contender.is_muster() && contender.has_jobs();
    let since = Instant::now();
    loop {
        load.check()?;
        stage.cluster.check_all_running()?;
        let created = load.created();
        if created.pods >= case.pods_total() || (held && created.jobs >= case.gangs) {
            return stage.wait_quiet().await;
        }
        if since.elapsed() > limit {
            bail!(
                "waited {limit:?} for the load: {} jobs and {} pods are there",
                created.jobs,
                created.pods
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How soon a verdict came after the last creation.
fn told(verdict: Verdict, created: &Created) -> Told {
    let last = created.last_pod.or(created.last_job).unwrap_or(verdict.at);
    Told {
        after: verdict.at.duration_since(last).as_secs_f64().max(0.0),
        by: verdict.by,
        text: verdict.text,
    }
}

/// Waits until those that fit are bound and nothing is bound any more.
async fn settle(
    stage: &Stage,
    case: &Case,
    contender: Contender,
    load: &mut Load,
    limit: Duration,
) -> anyhow::Result<()> {
    let least = if contender.has_gangs() {
        case.fit().saturating_mul(case.pods)
    } else {
        1
    };
    let wanted = |world: &_| stage::bound(world) >= least;
    stage
        .wait(limit, "the gangs that fit", Some(load), wanted)
        .await?;
    let since = Instant::now();
    let (mut bound, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < SETTLED {
        if since.elapsed() > limit {
            bail!("waited {limit:?} for bindings to end");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        load.check()?;
        stage.cluster.check_all_running()?;
        let now = stage.recorder.look(stage::bound);
        if now != bound {
            (bound, quiet) = (now, Instant::now());
        }
    }
    Ok(())
}

fn figures(before: &Counters, after: &Counters, case: &Case, contender: Contender) -> Row {
    let zero = Usage::default();
    let spent = |name: &String, usage: &Usage| {
        let earlier = before.usage.get(name).unwrap_or(&zero);
        usage.cpu.saturating_sub(earlier.cpu)
    };
    let own: Duration = after
        .usage
        .iter()
        .map(|(name, usage)| spent(name, usage))
        .sum();
    let wall = after.at.duration_since(before.at).as_secs_f64();
    let machine = wall * std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let others = after.busy.saturating_sub(before.busy).saturating_sub(own);
    let writes = after.writes.since(&before.writes);
    let writes = writes.count(|kind| is_cost(kind, contender));
    Row {
        case: case.name.to_owned(),
        case_title: case.title(),
        nodes: case.nodes,
        pods: case.pods_total(),
        writes_per_pod: writes as f64 / case.pods_total() as f64,
        cpu: after
            .usage
            .iter()
            .map(|(name, usage)| (name.clone(), spent(name, usage).as_secs_f64()))
            .collect(),
        memory_peak_mib: after
            .usage
            .iter()
            .map(|(name, usage)| (name.clone(), usage.rss_peak_bytes >> 20))
            .collect(),
        others_cpu_share: (others.as_secs_f64() / machine).clamp(0.0, 1.0),
        ..Row::default()
    }
}

/// Whether a write is part of what scheduling costs. Left out are the load's own creation of pods,
/// jobs and PodGroups, what authorization turned away (controllers of the control plane that try
/// things which no run here is about), and statuses of pods that were refused as invalid: KWOK now
/// and then writes the status of a pod that runs already once more, with another address.
fn is_cost(kind: &WriteKind, contender: Contender) -> bool {
    let load = match kind.resource.as_str() {
        "pods" | "pytorchjobs" => true,
        // KAI makes its own.
        "podgroups" => contender != Contender::Kai,
        _ => false,
    };
    let load = load && kind.verb == "create" && kind.subresource.is_empty();
    let twice = kind.resource == "pods" && kind.subresource == "status" && kind.code == 422;
    !load && !twice && kind.code != 401 && kind.code != 403
}

fn writes(
    stage: &Stage,
    before: &Counters,
    after: &Counters,
    audit: bool,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let writes = if audit {
        stage.cluster.audit_writes(before.audit)?
    } else {
        after.writes.since(&before.writes)
    };
    let mut named: BTreeMap<String, u64> = BTreeMap::new();
    for (kind, count) in writes.iter() {
        let mut name = format!("{} {}", kind.verb, kind.resource);
        if !kind.subresource.is_empty() {
            name.push('/');
            name.push_str(&kind.subresource);
        }
        if !(200..300).contains(&kind.code) {
            name.push_str(&format!(" ({})", kind.code));
        }
        if !kind.user_agent.is_empty() || !kind.user.is_empty() {
            name = format!("{} {}: {name}", kind.user_agent, kind.user);
        }
        let entry = named.entry(name).or_default();
        *entry = entry.saturating_add(count);
    }
    Ok(named)
}

/// Adds what the history says, and refuses a run that did not bind what it should have.
fn complete(
    row: &mut Row,
    case: &Case,
    contender: Contender,
    created: &Created,
    outcome: Outcome,
) -> anyhow::Result<()> {
    let as_wanted = outcome.whole == case.fit() && outcome.partial == 0;
    if (contender.has_gangs() || !case.is_overload()) && !as_wanted {
        bail!(
            "{} whole gangs and {} in part at the end, {} and 0 were to be",
            outcome.whole,
            outcome.partial,
            case.fit()
        );
    }
    let seconds = |from: Timestamp, until: Timestamp| until.duration_since(from).as_secs_f64();
    let share = |values: &[Duration], share| {
        percentile(values, share).map_or(0.0, |value| value.as_secs_f64())
    };
    row.contender = contender.name().to_owned();
    row.pods_bound = outcome.bound;
    row.gang_p50 = share(&outcome.latencies, 0.5);
    if case.fit() > 0 {
        let first = created.submitted.values().min().copied();
        let (first, last) = first.zip(outcome.last_bound).context("nothing was bound")?;
        row.first_create_to_last_bound = seconds(first, last);
        row.to_first_bound = outcome
            .first_bound
            .map_or(0.0, |bound| seconds(first, bound));
        row.last_create_to_last_bound = created.last_pod.map_or(0.0, |made| seconds(made, last));
        let whole = row.first_create_to_last_bound.max(0.001);
        row.pods_per_second = outcome.bound as f64 / whole;
        row.half_share = row.gang_p50 / whole;
    }
    row.gang_p95 = share(&outcome.latencies, 0.95);
    row.gang_pods_p50 = share(&outcome.pod_latencies, 0.5);
    row.gang_pods_p95 = share(&outcome.pod_latencies, 0.95);
    row.gangs_whole = outcome.whole;
    row.gangs_partial = outcome.partial;
    row.gangs_partial_most = outcome.partial_most;
    row.partial_longest = outcome.partial_longest.as_secs_f64();
    row.waiting_gpus = outcome.waiting_gpus;
    row.waiting_gpus_most = outcome.waiting_gpus_most;
    row.timeline = outcome.timeline;
    Ok(())
}
