//! Muster dies between every two steps of starting a gang, on the real control plane.
//!
//! Before each step something is withheld from whoever takes it (a right, a quota, the processor),
//! so that the cluster stands still right there, by all that survives a crash. Then Muster is killed,
//! what was withheld is given back, and Muster starts again.

use std::time::Duration;

use anyhow::Context as _;
use muster_control_plane::history::World;
use muster_control_plane::{NodeTemplate, Program};
use muster_tests::acts::PATIENCE;
use muster_tests::gangs::Way;
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::rights::Without;
use muster_tests::stack::{Stack, StackOptions, muster};

/// Members of each gang.
const SIZE: usize = 3;

/// The place of a crash: what has not happened yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    GangCreated,
    Committed,
    Released,
    LastReleased,
    PodsBorn,
    LastPodBorn,
    Accepted,
    FirstBound,
    LastBound,
    BoundReported,
}

const ALL: &[Before] = &[
    Before::GangCreated,
    Before::Committed,
    Before::Released,
    Before::LastReleased,
    Before::PodsBorn,
    Before::LastPodBorn,
    Before::Accepted,
    Before::FirstBound,
    Before::LastBound,
    Before::BoundReported,
];

/// Two gangs that start together: a job, and pods without one.
struct Pair {
    job: Job,
    pods: PodGang,
}

impl Pair {
    fn new(at: Before, by: By) -> Self {
        let name = format!("{at:?}").to_lowercase();
        let workers = u32::try_from(SIZE).unwrap_or(0);
        Self {
            job: Job::new(&name, vec![Role::new("Worker", workers, 8)]),
            pods: PodGang::new(&format!("p-{name}"), by, workers, 8),
        }
    }

    /// How many of the pods without a job are there when Muster dies. A quota withholds a job's pods,
    /// and whoever makes pods without a job has not made them yet.
    fn bare(at: Before) -> usize {
        match at {
            Before::PodsBorn => 0,
            Before::LastPodBorn => SIZE - 1,
            _ => SIZE,
        }
    }

    async fn submit(&self, stack: &Stack, at: Before) -> anyhow::Result<()> {
        let bare = u32::try_from(Self::bare(at))?;
        let pods = (0..bare).map(|index| self.pods.pod(index));
        let bare: Vec<String> = std::iter::once(self.pods.head()).chain(pods).collect();
        if bare.iter().any(|document| !document.is_empty()) {
            stack.cluster.apply_yaml(&bare.join("---\n")).await?;
        }
        stack.submit(&self.job).await
    }

    /// Makes the pods without a job that were not there before.
    async fn complete(&self, stack: &Stack, at: Before) -> anyhow::Result<()> {
        if Self::bare(at) < SIZE {
            stack.cluster.apply_yaml(&self.pods.yaml()).await?;
        }
        Ok(())
    }

    fn bound(&self, world: &World) -> usize {
        world.bound_of(&self.job.name) + self.pods.bound(world)
    }

    fn born(&self, world: &World) -> usize {
        world.pods_of(&self.job.name).count() + self.pods.members(world).count()
    }

    async fn wait_plans(&self, stack: &Stack) -> anyhow::Result<()> {
        stack.wait_planned(&self.job.name).await?;
        stack.wait_planned(&self.pods.object()).await?;
        Ok(())
    }

    async fn end(&self, stack: &Stack) -> anyhow::Result<()> {
        stack.end_job(&self.job.name).await?;
        stack.end_pods(&self.pods).await
    }
}

async fn quota(stack: &Stack, pods: usize) -> anyhow::Result<()> {
    let yaml = format!(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: few, namespace: default}}\nspec: {{hard: {{pods: \"{pods}\"}}}}\n"
    );
    stack.cluster.apply_yaml(&yaml).await?;
    let show = [
        "get",
        "resourcequota",
        "few",
        "-o",
        "jsonpath={.status.hard.pods}",
    ];
    let wanted = pods.to_string();
    stack
        .wait_until(PATIENCE, "the quota to count", async || {
            let found = stack.cluster.kubectl(&show).await;
            found.is_ok_and(|found| found.stdout == wanted)
        })
        .await
}

/// Withholds what the step after this place needs.
async fn withhold(stack: &Stack, at: Before, pair: &Pair) -> anyhow::Result<()> {
    match at {
        Before::GangCreated => stack.take_rights(&[Without::Creating]).await,
        Before::Committed => stack.take_rights(&[Without::Committing]).await,
        Before::Released => {
            let release = [Without::ReleasingJobs, Without::ReleasingPods];
            stack.take_rights(&release).await
        }
        Before::LastReleased => {
            let first = vec![format!("{}-0", pair.pods.name)];
            let release = [Without::ReleasingPodsBut(first)];
            stack.take_rights(&release).await
        }
        Before::PodsBorn => quota(stack, 0).await,
        Before::LastPodBorn => quota(stack, 2 * (SIZE - 1)).await,
        Before::Accepted | Before::BoundReported => {
            Ok(stack.cluster.pause(&Program::KubeScheduler)?)
        }
        Before::FirstBound => stack.take_rights(&[Without::BindingBut(Vec::new())]).await,
        Before::LastBound => {
            let some = vec![
                format!("{}-worker-0", pair.job.name),
                format!("{}-0", pair.pods.name),
            ];
            stack.take_rights(&[Without::BindingBut(some)]).await
        }
    }
}

/// Waits until all has happened that comes before this place.
async fn wait_for_place(stack: &Stack, at: Before, pair: &Pair) -> anyhow::Result<()> {
    let born = |count: usize| move |world: &World| pair.born(world) == count;
    match at {
        Before::GangCreated => {
            stack
                .wait_log(PATIENCE, "a Gang whose creation was refused", |line| {
                    line.contains("\"CreateRecord\"") && line.contains("\"Refused\"")
                })
                .await?;
            let gang = stack.gang("default", &pair.job.name).await?;
            anyhow::ensure!(gang.is_none(), "a Gang without the right: {gang:?}");
            Ok(())
        }
        Before::Committed => {
            for object in [pair.job.name.clone(), pair.pods.object()] {
                let says = stack
                    .wait_gang("default", &object, PATIENCE, |_| true)
                    .await?;
                anyhow::ensure!(says.plan().is_empty(), "a plan without the right: {says:?}");
            }
            Ok(())
        }
        Before::Released => pair.wait_plans(stack).await,
        Before::LastReleased => {
            pair.wait_plans(stack).await?;
            stack
                .wait_world(PATIENCE, "one gate off, and all pods", |world| {
                    let free = pair.pods.members(world).filter(|pod| pod.gates.is_empty());
                    free.count() == 1 && pair.born(world) == 2 * SIZE
                })
                .await
        }
        Before::PodsBorn => stack.wait_planned(&pair.job.name).await.map(drop),
        Before::LastPodBorn => {
            stack.wait_planned(&pair.job.name).await?;
            stack
                .wait_world(PATIENCE, "all pods but two", born(2 * (SIZE - 1)))
                .await
        }
        Before::Accepted => {
            pair.wait_plans(stack).await?;
            stack
                .wait_world(PATIENCE, "all pods, gates off", |world| {
                    pair.born(world) == 2 * SIZE
                        && pair.pods.members(world).all(|pod| pod.gates.is_empty())
                })
                .await
        }
        Before::FirstBound => {
            stack
                .wait_log(PATIENCE, "a Binding that was refused", |line| {
                    line.contains("\"Bind\"") && line.contains("\"Refused\"")
                })
                .await
        }
        Before::LastBound => {
            stack
                .wait_world(PATIENCE, "one member of each bound", |world| {
                    pair.bound(world) == 2
                })
                .await
        }
        Before::BoundReported => {
            pair.wait_plans(stack).await?;
            stack
                .wait_world(PATIENCE, "all pods", born(2 * SIZE))
                .await?;
            stack.take_rights(&[Without::Committing]).await?;
            stack.cluster.resume(&Program::KubeScheduler).await?;
            stack
                .wait_world(PATIENCE, "all bound", |world| pair.bound(world) == 2 * SIZE)
                .await
        }
    }
}

async fn give_back(stack: &Stack, at: Before) -> anyhow::Result<()> {
    match at {
        Before::PodsBorn | Before::LastPodBorn => {
            stack
                .cluster
                .kubectl(&["delete", "resourcequota", "few"])
                .await?;
            Ok(())
        }
        Before::Accepted => Ok(stack.cluster.resume(&Program::KubeScheduler).await?),
        _ => stack.give_rights().await,
    }
}

/// What becomes of the Lease of a Muster that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    /// An administrator takes it from the holder that is gone.
    Released,
    /// It expires.
    Expires,
}

/// All places, and what makes the pods without a job a gang there: by turns a PodGroup and a label, the first of them at the first place.
fn places(first: By, second: By) -> impl Iterator<Item = (Before, By)> {
    ALL.iter().copied().zip([first, second].into_iter().cycle())
}

async fn crash(stack: &Stack, (at, by): (Before, By), lease: Lease) -> anyhow::Result<()> {
    let pair = Pair::new(at, by);
    withhold(stack, at, &pair).await?;
    pair.submit(stack, at).await?;
    wait_for_place(stack, at, &pair).await?;
    stack.cluster.kill(&muster())?;
    give_back(stack, at).await?;
    match lease {
        Lease::Released => stack.start_muster_again().await?,
        Lease::Expires => stack.cluster.start(&muster()).await?,
    }
    pair.complete(stack, at).await?;
    stack
        .wait_world(2 * PATIENCE, "both gangs to be whole", |world| {
            pair.bound(world) == 2 * SIZE
        })
        .await?;
    for object in [pair.job.name.clone(), pair.pods.object()] {
        stack
            .wait_gang("default", &object, PATIENCE, |says| says.phase == "Running")
            .await?;
    }
    pair.end(stack).await
}

fn options() -> StackOptions {
    StackOptions {
        pools: vec![NodeTemplate::gpu_pool(
            "gpu",
            2 * u32::try_from(SIZE).unwrap_or(0),
        )],
        ..StackOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_jobs_and_gated_pods_start_whole_wherever_muster_dies() -> anyhow::Result<()> {
    let stack = Stack::start(options()).await?;
    for (at, by) in places(By::Label, By::PodGroup) {
        let name = format!("Muster dies before {at:?}, {by:?}");
        let crash = crash(&stack, (at, by), Lease::Released);
        stack.step(&name, crash).await?;
    }
    others_die(&stack).await?;
    leadership_lapses(&stack).await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_agents_gangs_start_whole_wherever_muster_dies() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        agents: false,
        ..options()
    })
    .await?;
    for (at, by) in places(By::PodGroup, By::Label) {
        let name = format!("without agents, Muster dies before {at:?}, {by:?}");
        let crash = crash(&stack, (at, by), Lease::Released);
        stack.step(&name, crash).await?;
    }
    others_die(&stack).await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ungated_pods_start_whole_wherever_muster_dies() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        policies: false,
        ..options()
    })
    .await?;
    others_die(&stack).await?;
    shorten_lease(&stack).await?;
    for (at, by) in places(By::PodGroup, By::Label) {
        if matches!(at, Before::Released | Before::LastReleased) {
            // Nothing is held and there are no gates: nobody writes anything to release.
            continue;
        }
        let name = format!("without policies, Muster dies before {at:?}, {by:?}");
        let lease = match at {
            Before::Committed | Before::Accepted | Before::LastBound => Lease::Expires,
            _ => Lease::Released,
        };
        let crash = crash(&stack, (at, by), lease);
        stack.step(&name, crash).await?;
    }
    let halted = stands_still(&stack);
    stack
        .step(
            "T19: Muster stands still at the barrier for longer than its Lease",
            halted,
        )
        .await?;
    away_for_longer(&stack).await?;
    stack.judge().await?;
    Ok(())
}

/// A Lease that expires while a test waits for it.
const SHORT_LEASE: &str = "lease: {duration: 10s, renewDeadline: 7s, retryPeriod: 1s}\n";
/// Longer than that Lease.
const STANDSTILL: Duration = Duration::from_secs(13);

/// Gives the Lease such times.
async fn shorten_lease(stack: &Stack) -> anyhow::Result<()> {
    stack.set_lease(SHORT_LEASE)?;
    stack.cluster.kill(&muster())?;
    stack.start_muster_again().await?;
    stack.wait_ready(PATIENCE).await
}

/// While members stand at the barrier the leadership is lost, and gained anew.
async fn leadership_lapses(stack: &Stack) -> anyhow::Result<()> {
    shorten_lease(stack).await?;
    away_for_longer(stack).await
}

async fn away_for_longer(stack: &Stack) -> anyhow::Result<()> {
    let lapsed = at_barrier(stack, "lapsed", async || lease_lapses(stack).await);
    stack
        .step("the API server is away for longer than the Lease", lapsed)
        .await
}

/// Muster is halted while it holds the Binds of all members but the last, which comes meanwhile. When
/// it goes on, its Lease has expired: it ends itself, as it must, and is started again.
async fn stands_still(stack: &Stack) -> anyhow::Result<()> {
    quota(stack, SIZE - 1).await?;
    let workers = u32::try_from(SIZE)?;
    let job = Job::new("still", vec![Role::new("Worker", workers, 8)]);
    stack.submit(&job).await?;
    stack
        .wait_world(PATIENCE, "all pods but one", |world| {
            world.pods_of("still").count() == SIZE - 1
        })
        .await?;
    stack.wait_held(SIZE - 1).await?;
    stack.cluster.pause(&muster())?;
    give_back(stack, Before::LastPodBorn).await?;
    stack
        .wait_world(PATIENCE, "the last pod", |world| {
            world.pods_of("still").count() == SIZE
        })
        .await?;
    tokio::time::sleep(STANDSTILL).await;
    let bound = stack.recorder.look(|world| world.bound_of("still"));
    assert_eq!(bound, 0, "nobody binds while Muster stands still");
    let gone_on = stack.cluster.resume(&muster()).await;
    let ended = async || !stack.cluster.is_running(&muster());
    stack
        .wait_until(PATIENCE, "Muster to end without its Lease", ended)
        .await
        .with_context(|| format!("resumed: {gone_on:?}"))?;
    stack.cluster.start(&muster()).await?;
    stack.wait_bound("still", SIZE, 2 * PATIENCE).await?;
    stack.wait_running("still", SIZE).await?;
    stack.end_job("still").await
}

/// The API server is away for so long that Muster cannot renew its Lease: it ends itself, as it must,
/// and is started again.
async fn lease_lapses(stack: &Stack) -> anyhow::Result<()> {
    stack
        .cluster
        .stop_api_server_for(Duration::from_secs(20))
        .await?;
    let ended = async || !stack.cluster.is_running(&muster());
    stack
        .wait_until(PATIENCE, "Muster to end without its Lease", ended)
        .await?;
    stack.cluster.start(&muster()).await?;
    stack.wait_ready(PATIENCE).await
}

/// What else may die or be away while Muster holds Binds.
async fn others_die(stack: &Stack) -> anyhow::Result<()> {
    let dies = at_barrier(stack, "unscheduled", async || {
        stack.cluster.kill(&Program::KubeScheduler)?;
        stack.cluster.start(&Program::KubeScheduler).await?;
        Ok(())
    });
    stack
        .step("kube-scheduler dies at the barrier", dies)
        .await?;
    let away = at_barrier(stack, "offline", async || {
        stack
            .cluster
            .stop_api_server_for(Duration::from_secs(20))
            .await?;
        Ok(())
    });
    stack
        .step("the API server is away at the barrier", away)
        .await
}

/// A job and pods of which all members but one each stand at the barrier while something happens.
async fn at_barrier(
    stack: &Stack,
    what: &str,
    happens: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let size = u32::try_from(SIZE)?;
    let gangs = [Way::Job, Way::Pods(By::Label)].map(|way| way.gang_with_straggler(what, size, 8));
    for gang in &gangs {
        stack.submit_gang(gang).await?;
    }
    stack.wait_held(2 * (SIZE - 1)).await?;
    stack.recorder.caught_up(PATIENCE).await?;
    happens().await?;
    for gang in &gangs {
        let bound = stack.recorder.look(|world| gang.bound(world));
        assert_eq!(bound, 0, "bound members of {}", gang.name());
    }
    stack.let_go().await?;
    for gang in &gangs {
        stack.wait_gang_running(gang).await?;
    }
    for gang in &gangs {
        stack.end_gang(gang).await?;
    }
    stack.take_volume().await
}
