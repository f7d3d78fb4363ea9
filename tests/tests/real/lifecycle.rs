//! What users do to their jobs, on the real control plane.

use std::time::Duration;

use muster_control_plane::{Identity, NodeTemplate, TrainingOperatorOptions};
use muster_tests::acts::PATIENCE;
use muster_tests::gangs::{Gang, Way};
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::By;
use muster_tests::stack::{Stack, StackOptions};
use serde_json::{Value, json};

fn workers(name: &str, count: u32) -> Job {
    Job::new(name, vec![Role::new("Worker", count, 8)])
}

fn options() -> StackOptions {
    StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", 4)],
        // Slow enough to act between the first pod and the last.
        operator: Some(TrainingOperatorOptions {
            qps: 8,
            burst: 4,
            ..TrainingOperatorOptions::default()
        }),
        ..StackOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_and_pods_are_followed_through_what_their_users_do() -> anyhow::Result<()> {
    let stack = Stack::start(options()).await?;
    gangs_live(&stack).await?;
    jobs_live(&stack, Held::Yes).await?;
    stack
        .step(
            "a queued job is shown, applied again and taken out",
            queued(&stack),
        )
        .await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_and_agents_jobs_and_pods_are_followed_too() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        policies: false,
        agents: false,
        ..options()
    })
    .await?;
    gangs_live(&stack).await?;
    jobs_live(&stack, Held::No).await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_jobs_and_pods_are_followed_beside_agents() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        policies: false,
        ..options()
    })
    .await?;
    gangs_live(&stack).await?;
    jobs_live(&stack, Held::No).await?;
    stack.judge().await?;
    Ok(())
}

/// Whether jobs are suspended while they wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Yes,
    No,
}

/// What happens to gangs of every kind.
async fn gangs_live(stack: &Stack) -> anyhow::Result<()> {
    for way in Way::ALL {
        let word = way.word();
        let name = format!("{word}: a member is deleted and comes back");
        stack.step(&name, replaced(stack, way)).await?;
        let name = format!("{word}: deleted while members are being made");
        stack.step(&name, deleted_young(stack, way)).await?;
        let name = format!("{word}: deleted at the barrier");
        stack.step(&name, deleted_at_barrier(stack, way)).await?;
    }
    stack
        .step("a PodGroup is scaled", group_scaled(stack))
        .await
}

/// What users do to jobs only.
async fn jobs_live(stack: &Stack, held: Held) -> anyhow::Result<()> {
    stack
        .step("a job is suspended and resumed", suspended(stack, held))
        .await?;
    stack
        .step("a suspended job is left alone", born_suspended(stack, held))
        .await?;
    stack.step("a job is scaled", scaled(stack)).await?;
    stack
        .step("a queued job says why, and is edited", edited(stack, held))
        .await?;
    stack.step("a job that ended is clean", ended(stack)).await
}

/// Names and UIDs of a gang's bound pods, by name.
fn members(stack: &Stack, gang: &Gang) -> Vec<(String, String)> {
    stack.recorder.look(|world| {
        let live = gang.members(world).filter(|pod| pod.is_bound_and_live());
        let mut pods: Vec<_> = live
            .map(|pod| (pod.name.clone(), pod.uid.clone()))
            .collect();
        pods.sort();
        pods
    })
}

/// A rival waits for the room, and does not get the place of the deleted member.
async fn replaced(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let (team, rival) = (way.gang("team", 4, 8), way.gang("rival", 1, 8));
    stack.submit_gang(&team).await?;
    stack.wait_gang_running(&team).await?;
    stack.submit_gang(&rival).await?;
    stack.wait_gang_says(&rival, "NotEnoughFree").await?;
    let before = members(stack, &team);
    stack.delete_pod(&team.member(1)).await?;
    stack.revive(&team).await?;
    stack
        .wait_until(PATIENCE, "a new second member", async || {
            let now = members(stack, &team);
            now.len() == 4 && now[1].1 != before[1].1
        })
        .await?;
    let after = members(stack, &team);
    for index in [0, 2, 3] {
        assert_eq!(after[index], before[index], "the other members stay");
    }
    assert_eq!(stack.ever_bound(rival.name()), 0, "the rival got no place");
    stack.end_gang(&team).await?;
    stack.wait_gang_running(&rival).await?;
    stack.end_gang(&rival).await
}

/// The operator makes pods slowly, and a user may stop after some.
async fn deleted_young(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = way.gang("fleeting", 24, 1);
    match &gang {
        Gang::Job(job) => stack.submit(job).await?,
        Gang::Pods(pods) => {
            let some = (0..3).map(|index| pods.pod(index));
            let some: Vec<String> = std::iter::once(pods.head()).chain(some).collect();
            stack.cluster.apply_yaml(&some.join("---\n")).await?;
        }
    }
    stack
        .wait_world(PATIENCE, "some of its pods", |world| gang.born(world) >= 3)
        .await?;
    stack.end_gang(&gang).await?;
    assert_eq!(
        stack.ever_bound(gang.name()),
        0,
        "no member of it was bound"
    );
    Ok(())
}

/// All members but one stand at the barrier when it is deleted; the room is the next gang's.
async fn deleted_at_barrier(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = way.gang_with_straggler("doomed", 4, 8);
    stack.submit_gang(&gang).await?;
    stack.wait_held(3).await?;
    stack.end_gang(&gang).await?;
    assert_eq!(
        stack.ever_bound(gang.name()),
        0,
        "no member of it was bound"
    );
    let next = way.gang("next", 4, 8);
    stack.submit_gang(&next).await?;
    stack.wait_gang_running(&next).await?;
    stack.end_gang(&next).await
}

/// A running PodGroup wants a member more, and is content with fewer again.
async fn group_scaled(stack: &Stack) -> anyhow::Result<()> {
    let of = |count| Way::Pods(By::PodGroup).gang("breathing", count, 8);
    stack.submit_gang(&of(2)).await?;
    stack.wait_gang_running(&of(2)).await?;
    let before = members(stack, &of(2));
    stack.submit_gang(&of(4)).await?;
    stack.wait_gang_running(&of(4)).await?;
    let grown = members(stack, &of(4));
    assert_eq!(grown[..2], before, "the members from before stay");
    let minimum = json!({ "spec": { "minMember": 2 } }).to_string();
    let name = of(2).name().to_owned();
    stack
        .kubectl(&["patch", "podgroups", &name, "--type=merge", "-p", &minimum])
        .await?;
    for index in [2, 3] {
        stack.delete_pod(&of(4).member(index)).await?;
    }
    stack.wait_gang_running(&of(2)).await?;
    assert_eq!(members(stack, &of(2)), before, "the members that stay");
    stack.end_gang(&of(2)).await
}

/// What Muster may have left in a job: its annotations, and nodes named in a template.
fn marks(job: &Value) -> Vec<String> {
    let annotations = job["metadata"]["annotations"].as_object();
    let mut found: Vec<String> = annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("muster.dev/"))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    for (role, spec) in job["spec"]["pytorchReplicaSpecs"]
        .as_object()
        .into_iter()
        .flatten()
    {
        if spec["template"]["spec"].get("affinity").is_some() {
            found.push(format!("affinity in {role}"));
        }
    }
    found
}

async fn wait_clean(stack: &Stack, name: &str) -> anyhow::Result<()> {
    stack
        .wait_until(PATIENCE, &format!("no marks in {name}"), async || {
            stack
                .job(name)
                .await
                .is_ok_and(|job| marks(&job).is_empty())
        })
        .await
}

async fn suspended(stack: &Stack, held: Held) -> anyhow::Result<()> {
    stack.submit(&workers("pausing", 3)).await?;
    stack.wait_running("pausing", 3).await?;
    let marks = marks(&stack.job("pausing").await?);
    let pinned = marks.iter().any(|mark| mark == "affinity in Worker");
    assert_eq!(
        pinned,
        held == Held::Yes,
        "planned nodes are in the template of a held job: {marks:?}"
    );
    stack.suspend_job("pausing", true).await?;
    stack
        .wait_gang("default", "pausing", PATIENCE, |says| {
            says.phase == "Suspended"
        })
        .await?;
    stack
        .wait_world(PATIENCE, "its pods to go", |world| {
            world.pods_of("pausing").count() == 0
        })
        .await?;
    wait_clean(stack, "pausing").await?;
    stack.submit(&workers("guest", 4)).await?;
    stack.wait_running("guest", 4).await?;
    let job = stack.job("pausing").await?;
    assert_eq!(
        job["spec"]["runPolicy"]["suspend"],
        json!(true),
        "it stays suspended"
    );
    stack.end_job("guest").await?;
    stack.suspend_job("pausing", false).await?;
    stack.wait_running("pausing", 3).await?;
    stack.end_job("pausing").await
}

async fn born_suspended(stack: &Stack, held: Held) -> anyhow::Result<()> {
    stack
        .submit(&workers("sleeper", 2).policy("suspend: true"))
        .await?;
    stack.submit(&workers("busy", 4)).await?;
    stack.wait_running("busy", 4).await?;
    let job = stack.job("sleeper").await?;
    assert_eq!(job["spec"]["runPolicy"]["suspend"], json!(true));
    assert_eq!(marks(&job), Vec::<String>::new());
    let pods = stack
        .recorder
        .look(|world| world.pods_of("sleeper").count());
    assert_eq!(pods, 0);
    // Resumed while there is no room: it queues, without pods where it is held, and says so.
    stack.suspend_job("sleeper", false).await?;
    stack
        .wait_gang("default", "sleeper", PATIENCE, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    match held {
        Held::Yes => {
            wait_state(stack, "sleeper", "Queued").await?;
            assert_held(stack, "sleeper").await?;
        }
        Held::No => {
            stack
                .wait_world(PATIENCE, "the sleeper's pods", |world| {
                    world.pods_of("sleeper").count() == 2
                })
                .await?;
        }
    }
    assert_eq!(stack.nodes_of("sleeper"), Vec::<String>::new());
    stack.end_job("busy").await?;
    stack.wait_running("sleeper", 2).await?;
    wait_state(stack, "sleeper", "Running").await?;
    stack.end_job("sleeper").await
}

/// Waits until `kubectl get pytorchjobs` shows this state.
async fn wait_state(stack: &Stack, name: &str, state: &str) -> anyhow::Result<()> {
    let get = ["get", "pytorchjobs", name, "--no-headers"];
    let what = format!("kubectl to show {name} as {state}");
    stack
        .wait_until(PATIENCE, &what, async || {
            stack
                .cluster
                .kubectl(&get)
                .await
                .is_ok_and(|found| found.stdout.split_whitespace().nth(1) == Some(state))
        })
        .await
}

/// Suspended and marked by Muster, and without pods.
async fn assert_held(stack: &Stack, name: &str) -> anyhow::Result<()> {
    let job = stack.job(name).await?;
    assert_eq!(job["spec"]["runPolicy"]["suspend"], json!(true), "{name}");
    assert_eq!(
        job["metadata"]["annotations"]["muster.dev/hold"],
        json!("queued"),
        "{name}"
    );
    let pods = stack.recorder.look(|world| world.pods_of(name).count());
    assert_eq!(pods, 0, "pods of {name}");
    Ok(())
}

/// What a GitOps tool does again and again: the whole manifest, which says that the job is not
/// suspended, in each of kubectl's ways.
async fn apply_again(stack: &Stack, job: &Job) -> anyhow::Result<()> {
    let yaml = job.clone().policy("suspend: false").yaml();
    stack.cluster.apply_yaml(&yaml).await?;
    for args in [["apply", "-f", "-"], ["replace", "-f", "-"]] {
        let done = stack
            .cluster
            .kubectl_as(&Identity::Admin, &args, &yaml)
            .await?;
        assert!(done.success, "{args:?}: {}", done.stderr);
    }
    Ok(())
}

async fn queued(stack: &Stack) -> anyhow::Result<()> {
    let tenant = workers("tenant", 4);
    let hopeful = workers("hopeful", 2);
    stack.submit(&tenant).await?;
    stack.wait_running("tenant", 4).await?;
    wait_state(stack, "tenant", "Running").await?;
    stack.submit(&hopeful).await?;
    stack
        .wait_gang("default", "hopeful", PATIENCE, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    wait_state(stack, "hopeful", "Queued").await?;
    let writes = stack.cluster.api_writes().await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let more = stack.cluster.api_writes().await?.since(&writes);
    let of_jobs = more.count(|kind| kind.resource == "pytorchjobs");
    assert_eq!(of_jobs, 0, "writes of jobs while one waits: {more:?}");

    apply_again(stack, &hopeful).await?;
    assert_held(stack, "hopeful").await?;
    wait_state(stack, "hopeful", "Queued").await?;
    let members = |stack: &Stack| -> Vec<String> {
        stack
            .recorder
            .look(|world| world.pods_of("tenant").map(|pod| pod.uid.clone()).collect())
    };
    let before = members(stack);
    stack
        .cluster
        .apply_yaml(&tenant.clone().policy("suspend: false").yaml())
        .await?;
    let job = stack.job("tenant").await?;
    assert_eq!(job["spec"]["runPolicy"]["suspend"], json!(false));

    let annotate = ["annotate", "pytorchjobs", "hopeful", "muster.dev/hold-"];
    stack.cluster.kubectl(&annotate).await?;
    stack
        .wait_gang("default", "hopeful", PATIENCE, |says| {
            says.phase == "Suspended"
        })
        .await?;
    wait_state(stack, "hopeful", "Suspended").await?;
    stack.suspend_job("hopeful", false).await?;
    stack
        .wait_gang("default", "hopeful", PATIENCE, |says| {
            says.phase == "Waiting"
        })
        .await?;
    wait_state(stack, "hopeful", "Queued").await?;
    assert_held(stack, "hopeful").await?;

    assert_eq!(members(stack), before, "the running job kept its pods");
    stack.end_job("tenant").await?;
    stack.wait_running("hopeful", 2).await?;
    wait_state(stack, "hopeful", "Running").await?;
    stack.end_job("hopeful").await
}

fn replicas(count: u32) -> Value {
    json!({ "spec": { "pytorchReplicaSpecs": { "Worker": { "replicas": count } } } })
}

async fn scaled(stack: &Stack) -> anyhow::Result<()> {
    stack.submit(&workers("growing", 2)).await?;
    stack.wait_running("growing", 2).await?;
    stack.patch_job("growing", &replicas(4)).await?;
    stack.wait_running("growing", 4).await?;
    stack.patch_job("growing", &replicas(1)).await?;
    stack.wait_running("growing", 1).await?;
    stack.end_job("growing").await
}

async fn edited(stack: &Stack, held: Held) -> anyhow::Result<()> {
    stack.submit(&workers("dreamer", 5)).await?;
    let says = stack
        .wait_gang("default", "dreamer", PATIENCE, |says| {
            says.reason == "NeverFits"
        })
        .await?;
    assert!(
        says.message
            .contains("needs 5 Worker with 8 nvidia.com/gpu each"),
        "{}",
        says.message
    );
    let job = stack.job("dreamer").await?;
    let hold = job["metadata"]["annotations"].get("muster.dev/hold");
    let wanted = json!("queued");
    assert_eq!(hold, (held == Held::Yes).then_some(&wanted));
    let events = [
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=dreamer",
    ];
    stack
        .wait_until(PATIENCE, "an Event that says why", async || {
            stack
                .cluster
                .kubectl(&events)
                .await
                .is_ok_and(|found| found.stdout.contains("NeverFits"))
        })
        .await?;
    stack.patch_job("dreamer", &replicas(3)).await?;
    stack.wait_running("dreamer", 3).await?;
    stack.end_job("dreamer").await
}

async fn ended(stack: &Stack) -> anyhow::Result<()> {
    stack.submit(&workers("brief", 2).running_for(2)).await?;
    stack
        .wait_gang("default", "brief", PATIENCE, |says| {
            says.phase == "Succeeded"
        })
        .await?;
    wait_clean(stack, "brief").await?;
    stack.end_job("brief").await
}
