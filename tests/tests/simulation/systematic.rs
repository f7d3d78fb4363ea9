//! One disturbance at each place of a reference run, for every place; the end is as without it.
//!
//! ```text
//!   crash   after each write that carries a decision: the process dies, another one starts
//!   unseen  each event of a watch: the watch expires before it, and the next LIST comes seconds later
//!   stale   at each write that carries a decision: all watches stand still for seconds
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_agent::scenario::FaultEvent;
use muster_embedded::EmbeddedCluster;
use muster_embedded::api::faults::{After, Before, Faults, OnEvent, RequestInfo};
use muster_embedded::api::store::{Change, Stored};
use muster_embedded::cluster::run_paused;
use muster_embedded::value;
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::sim::{CLIENT, GANGS, JOBS, PODS, Script, Sim, SimOptions, Trap, bound};
use tokio::time::Instant;

/// How long what is not seen is not listed either.
const UNSEEN: Duration = Duration::from_secs(4);
/// How long all watches stand still.
const STALE: Duration = Duration::from_secs(6);
/// Longest time until all has ended.
const ENDED_MAX: Duration = Duration::from_secs(600);

/// What is done, and at which place, counted from 1.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    None,
    Crash(u32),
    Unseen(u32),
    Stale(u32),
}

#[derive(Default)]
struct State {
    events: u32,
    writes: u32,
    /// Resource that is not listed until then.
    unlisted: Option<(String, Instant)>,
    stale_until: Option<Instant>,
}

/// The disturbance as faults of the API.
struct View {
    script: Arc<Script>,
    disturbance: Disturbance,
    state: Mutex<State>,
}

impl View {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn carries_decision(request: &RequestInfo) -> bool {
    let resource = request.resource.as_str();
    let verb = request.verb.as_str();
    matches!(verb, "create" | "update" | "patch" | "delete")
        && !matches!(resource, "leases" | "events" | "tokenreviews")
}

impl Faults for View {
    fn before(&self, request: &RequestInfo) -> Before {
        if request.client == CLIENT && carries_decision(request) {
            let mut state = self.state();
            state.writes += 1;
            if matches!(self.disturbance, Disturbance::Stale(at) if at == state.writes) {
                state.stale_until = Some(Instant::now() + STALE);
            }
        }
        if request.client == CLIENT && request.verb == "list" {
            let state = self.state();
            let now = Instant::now();
            if let Some((resource, until)) = &state.unlisted
                && *resource == request.resource
                && *until > now
            {
                return Before::Delay(*until - now);
            }
        }
        self.script.before(request)
    }

    fn after(&self, request: &RequestInfo, code: u16) -> After {
        self.script.after(request, code)
    }

    fn watch_event(&self, request: &RequestInfo, _: &Change) -> OnEvent {
        if request.client != CLIENT {
            return OnEvent::Deliver;
        }
        let mut state = self.state();
        state.events += 1;
        let now = Instant::now();
        if matches!(self.disturbance, Disturbance::Unseen(at) if at == state.events) {
            state.unlisted = Some((request.resource.clone(), now + UNSEEN));
            return OnEvent::Expire;
        }
        match state.stale_until {
            Some(until) if until > now => OnEvent::Lag(until - now),
            _ => OnEvent::Deliver,
        }
    }
}

/// How all ended: each job and Gang by phase, each pod with how often it was made.
#[derive(Debug, PartialEq, Eq)]
struct End {
    phases: BTreeMap<String, String>,
    pods: BTreeMap<String, String>,
}

/// What a run came to, and how many places it has for each disturbance.
struct Run {
    end: End,
    writes: u32,
    events: u32,
}

/// What is submitted to two nodes of 8 GPUs, and what it comes to.
#[derive(Clone, Copy)]
struct Trace {
    name: &'static str,
    submit: fn(&Sim) -> anyhow::Result<()>,
    /// A GPU falls off the bus when everything runs, and is as new some time later.
    breaks: bool,
    /// Pods, and objects with a phase.
    pods: usize,
    phases: usize,
}

/// Two jobs and a pair of bare pods, more than fit at once.
const CROWD: Trace = Trace {
    name: "crowd",
    submit: submit_crowd,
    breaks: false,
    pods: 8,
    phases: 5,
};

/// A PodGroup beside a job for which there is no room meanwhile.
const GROUP: Trace = Trace {
    name: "group",
    submit: submit_group,
    breaks: false,
    pods: 5,
    phases: 3,
};

/// A job one of whose GPUs breaks while it runs: the member comes back elsewhere.
const BROKEN: Trace = Trace {
    name: "broken",
    submit: submit_broken,
    breaks: true,
    pods: 2,
    phases: 2,
};

/// When the GPU breaks, and after that when it is as new.
const BREAKS_AT: Duration = Duration::from_secs(12);
const AS_NEW_AFTER: Duration = Duration::from_secs(30);

fn submit_crowd(sim: &Sim) -> anyhow::Result<()> {
    let first = vec![Role::new("Master", 1, 1), Role::new("Worker", 3, 2)];
    sim.apply(&Job::new("first", first).running_for(40).yaml())?;
    let whole = vec![Role::new("Worker", 2, 8)];
    sim.apply(&Job::new("whole", whole).running_for(20).yaml())?;
    for at in 0..2 {
        sim.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pair-{at}\n  labels: {{muster.dev/gang: pair, muster.dev/index: \"{at}\"}}\n  \
             annotations: {{muster.dev/gang-size: \"2\", muster.dev/run-seconds: \"30\"}}\nspec:\n  schedulerName: muster\n  \
             tolerations: [{{key: nvidia.com/gpu, operator: Exists}}]\n  \
             containers: [{{name: main, image: x, resources: {{limits: {{nvidia.com/gpu: 4}}}}}}]\n"
        ))?;
    }
    Ok(())
}

fn submit_group(sim: &Sim) -> anyhow::Result<()> {
    let trio = PodGang::new("trio", By::PodGroup, 3, 4).running_for(30);
    sim.apply(&trio.yaml())?;
    let whole = vec![Role::new("Worker", 2, 8)];
    sim.apply(&Job::new("whole", whole).running_for(20).yaml())
}

fn submit_broken(sim: &Sim) -> anyhow::Result<()> {
    let roles = vec![Role::new("Worker", 2, 4)];
    sim.apply(&Job::new("train", roles).running_for(40).yaml())
}

fn all_ended(sim: &EmbeddedCluster, pods: usize) -> bool {
    let found = sim.look(PODS);
    let done = |pod: &Arc<Stored>| value::text(&pod.value, &["status", "phase"]) == "Succeeded";
    found.len() == pods && found.iter().all(done)
}

async fn start_anew(sim: &mut Sim) -> anyhow::Result<()> {
    sim.kill_scheduler().await;
    sim.start_scheduler();
    sim.wait_ready().await
}

/// Waits until then. When the trap springs before, the process dies, and another one starts.
async fn pass_until(sim: &mut Sim, until: Instant, dies: &mut bool) -> anyhow::Result<()> {
    if *dies && sim.sprung(until - Instant::now()).await {
        *dies = false;
        start_anew(sim).await?;
    }
    tokio::time::sleep_until(until).await;
    Ok(())
}

async fn play(trace: Trace, disturbance: Disturbance) -> anyhow::Result<Run> {
    let mut sim = Sim::start(SimOptions::nodes(2)).await?;
    let view = Arc::new(View {
        script: Arc::clone(&sim.script),
        disturbance,
        state: Mutex::default(),
    });
    sim.cluster.set_faults(Arc::clone(&view) as _);
    let mut dies = false;
    if let Disturbance::Crash(at) = disturbance {
        sim.script.set(Trap::CrashAfter(at));
        dies = true;
    }
    let begun = Instant::now();
    (trace.submit)(&sim)?;
    if trace.breaks {
        pass_until(&mut sim, begun + BREAKS_AT, &mut dies).await?;
        let node = bound(&sim.cluster, "train").into_values().next();
        let node = node.unwrap_or_else(|| "gpu-000".to_owned());
        for gpu in 0..4 {
            sim.fail_gpu(&node, gpu)?;
        }
        pass_until(&mut sim, begun + BREAKS_AT + AS_NEW_AFTER, &mut dies).await?;
        sim.agents.inject(&node, FaultEvent::Back { gpu: None })?;
    }
    if dies && sim.sprung(ENDED_MAX).await {
        start_anew(&mut sim).await?;
    }
    let ended = |cluster: &EmbeddedCluster| all_ended(cluster, trace.pods);
    sim.until("all has ended", ENDED_MAX, ended).await?;
    sim.pass(Duration::from_secs(40)).await;
    sim.judge().await?;
    let mut phases = BTreeMap::new();
    for gang in sim.cluster.list(GANGS) {
        let phase = value::text(&gang, &["status", "phase"]);
        phases.insert(format!("gang {}", value::name(&gang)), phase.to_owned());
    }
    for job in sim.cluster.list(JOBS) {
        let ended = value::condition(&job, "Succeeded");
        let ended = ended.map_or("", |ended| value::text(ended, &["status"]));
        phases.insert(format!("job {}", value::name(&job)), ended.to_owned());
    }
    let mut pods = BTreeMap::new();
    for pod in sim.cluster.list(PODS) {
        let phase = value::text(&pod, &["status", "phase"]);
        pods.insert(value::name(&pod).to_owned(), phase.to_owned());
    }
    let (writes, events) = {
        let state = view.state();
        (state.writes, state.events)
    };
    sim.stop().await;
    Ok(Run {
        end: End { phases, pods },
        writes,
        events,
    })
}

/// Disturbs a trace at each of these places, on two threads; the end is that of the reference.
fn at_each(
    trace: Trace,
    places: u32,
    disturb: impl Fn(u32) -> Disturbance + Sync,
    end: &End,
) -> anyhow::Result<()> {
    let next = AtomicU32::new(1);
    let failures = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at > places {
                return;
            }
            let disturbance = disturb(at);
            let why = match run_paused(play(trace, disturbance)) {
                Ok(Ok(run)) if run.end == *end => continue,
                Ok(Ok(run)) => format!("it ends otherwise: {:?}", run.end),
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) => format!("{error:#}"),
            };
            let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.insert(at, format!("{disturbance:?}: {why}"));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let told: Vec<String> = failures.values().take(3).cloned().collect();
    anyhow::ensure!(
        failures.is_empty(),
        "{}: {} of {places} places: {:?}\n{}",
        trace.name,
        failures.len(),
        failures.keys(),
        told.join("\n\n")
    );
    Ok(())
}

fn reference(trace: Trace) -> anyhow::Result<Run> {
    let run = run_paused(play(trace, Disturbance::None))??;
    anyhow::ensure!(run.end.phases.len() == trace.phases, "{:?}", run.end);
    println!(
        "{}: {} writes, {} events",
        trace.name, run.writes, run.events
    );
    anyhow::ensure!(run.writes >= 8 && run.events >= 20, "{}", trace.name);
    Ok(run)
}

fn killed_after_each_write(trace: Trace) -> anyhow::Result<()> {
    let run = reference(trace)?;
    at_each(trace, run.writes, Disturbance::Crash, &run.end)
}

fn with_each_event_unseen(trace: Trace) -> anyhow::Result<()> {
    let run = reference(trace)?;
    at_each(trace, run.events, Disturbance::Unseen, &run.end)
}

fn with_a_stale_view_at_each_decision(trace: Trace) -> anyhow::Result<()> {
    let run = reference(trace)?;
    at_each(trace, run.writes, Disturbance::Stale, &run.end)
}

#[test]
fn s16_killed_after_each_write_all_ends_as_without() -> anyhow::Result<()> {
    killed_after_each_write(CROWD)
}

#[test]
fn with_each_watch_event_unseen_all_ends_as_without() -> anyhow::Result<()> {
    with_each_event_unseen(CROWD)
}

#[test]
fn with_a_stale_view_at_each_decision_all_ends_as_without() -> anyhow::Result<()> {
    with_a_stale_view_at_each_decision(CROWD)
}

#[test]
fn a_podgroup_whose_scheduler_is_disturbed_at_any_place_ends_as_without() -> anyhow::Result<()> {
    killed_after_each_write(GROUP)?;
    with_each_event_unseen(GROUP)?;
    with_a_stale_view_at_each_decision(GROUP)
}

#[test]
fn a_job_whose_gpu_breaks_ends_as_without_whatever_disturbs_its_scheduler() -> anyhow::Result<()> {
    killed_after_each_write(BROKEN)?;
    with_each_event_unseen(BROKEN)?;
    with_a_stale_view_at_each_decision(BROKEN)
}
