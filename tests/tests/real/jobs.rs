//! Jobs on the real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
//! training-operator and KWOK, with Muster under its own account.

use std::time::Duration;

use anyhow::Context as _;
use muster_control_plane::NodeTemplate;
use muster_control_plane::history::GangRule;
use muster_tests::acts::{PATIENCE, existing_at_first_bind};
use muster_tests::gangs::Gang;
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::stack::{PARTIAL_MAX, Stack, StackOptions, muster};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_start_whole_in_turn_and_one_by_one() -> anyhow::Result<()> {
    let stack = Stack::start(pools()).await?;
    first_gangs(&stack).await?;
    stack
        .step("two gangs of 60 percent", sixty_percent(&stack))
        .await?;
    stack
        .step("30 gangs at one and a half of the pool", overload(&stack))
        .await?;
    stack
        .step("healthy, and logs for machines", logs(&stack))
        .await?;
    let history = stack.judge().await?;
    assert_eq!(
        existing_at_first_bind(&history, "many"),
        Some((64, 64)),
        "pods that existed when the first was bound"
    );
    let rule = GangRule::new(PARTIAL_MAX);
    let whole = history
        .gangs(&rule)
        .into_iter()
        .filter(|gang| gang.name.starts_with("default/crowd-") && gang.whole.is_some());
    assert_eq!(whole.count(), 30, "gangs of the crowd that ran whole");
    Ok(())
}

/// The same first gangs without anything that holds pods back, and without agents; then gangs of pods
/// that come one by one, as slowly as the operator makes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_and_agents_gangs_that_trickle_in_start_whole() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        policies: false,
        agents: false,
        ..pools()
    })
    .await?;
    first_gangs(&stack).await?;
    trickling(&stack).await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gated_pods_that_trickle_in_start_whole() -> anyhow::Result<()> {
    let stack = Stack::start(pools()).await?;
    trickling(&stack).await?;
    stack.judge().await?;
    Ok(())
}

/// The shapes that everybody begins with, one after the other.
async fn first_gangs(stack: &Stack) -> anyhow::Result<()> {
    stack
        .step("one master and four workers", one_and_four(stack))
        .await?;
    stack
        .step("a master without GPUs and 4 x 8", cpu_master(stack))
        .await?;
    stack
        .step("64 workers at the operator's pace", sixty_four(stack))
        .await
}

fn pools() -> StackOptions {
    StackOptions {
        pools: vec![
            NodeTemplate::gpu_pool("gpu", 20),
            NodeTemplate::cpu_pool("cpu", 1),
        ],
        ..StackOptions::default()
    }
}

/// 64 pods of a gang, by label and by PodGroup, about ten a second: none is bound before the last exists.
async fn trickling(stack: &Stack) -> anyhow::Result<()> {
    for by in [By::Label, By::PodGroup] {
        let pods = PodGang::new(&format!("trickle-{by:?}").to_lowercase(), by, 64, 1);
        if !pods.head().is_empty() {
            stack.cluster.apply_yaml(&pods.head()).await?;
        }
        for index in 0..pods.count {
            stack.cluster.apply_yaml(&pods.pod(index)).await?;
            let last = index.saturating_add(1) == pods.count;
            let bound = stack.recorder.look(|world| pods.bound(world));
            anyhow::ensure!(last || bound == 0, "{bound} bound after {index} came");
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
        let gang = Gang::Pods(pods);
        let running = stack.wait_gang_running(&gang);
        stack.step("64 pods that came one by one", running).await?;
        stack.end_gang(&gang).await?;
    }
    Ok(())
}

/// Muster says that it is healthy, and each line of its log is JSON; those about a gang name it, and
/// its plan where there is one.
async fn logs(stack: &Stack) -> anyhow::Result<()> {
    let health = stack.page("/healthz").await?;
    let healthy = health.starts_with("HTTP/1.1 200 ") && health.ends_with("ok\n");
    assert!(healthy, "{health}");
    let metrics = stack.page("/metrics").await?;
    let events = metrics
        .lines()
        .filter(|line| line.contains("outcome=\"failed\"") && !line.ends_with(" 0"));
    assert_eq!(events.collect::<Vec<_>>(), Vec::<&str>::new(), "Events");
    let text = std::fs::read_to_string(stack.cluster.log(&muster()))?;
    let mut planned = 0;
    for line in text.lines() {
        assert!(!line.contains("is forbidden"), "a right is missing: {line}");
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        for field in ["timestamp", "level", "message", "target"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
        let of_gang = [
            "gang",
            "not bound",
            "kube-scheduler does not offer the planned node",
            "an invariant is broken",
        ];
        if of_gang.iter().any(|message| line["message"] == *message) {
            for field in ["gang", "plan"] {
                assert!(line[field].is_string(), "{field} in {line}");
            }
        }
        if line["message"] == "gang" {
            for field in ["phase", "reason"] {
                assert!(line[field].is_string(), "{field} in {line}");
            }
            planned += usize::from(line["plan"] != "");
        }
    }
    assert!(planned >= 30, "{planned} lines about a gang with a plan");
    Ok(())
}

async fn one_and_four(stack: &Stack) -> anyhow::Result<()> {
    let roles = vec![Role::new("Master", 1, 1), Role::new("Worker", 4, 1)];
    stack
        .submit(&Job::new("train", roles).running_for(6))
        .await?;
    let says = stack.wait_running("train", 5).await?;
    assert_eq!(says.status["members"].as_array().map(Vec::len), Some(5));
    let table = stack.cluster.kubectl(&["get", "gangs"]).await?;
    assert!(table.stdout.contains("5/5"), "{}", table.stdout);
    stack
        .wait_gang("default", "train", PATIENCE, |says| {
            says.phase == "Succeeded"
        })
        .await?;
    stack.end_job("train").await
}

async fn cpu_master(stack: &Stack) -> anyhow::Result<()> {
    let roles = vec![
        Role::new("Master", 1, 0).off_gpu_nodes(),
        Role::new("Worker", 4, 8),
    ];
    stack.submit(&Job::new("mixed", roles)).await?;
    stack.wait_running("mixed", 5).await?;
    let nodes = stack.nodes_of("mixed");
    assert_eq!(nodes.first().map(String::as_str), Some("cpu-0"));
    let workers: std::collections::BTreeSet<&String> = nodes.iter().skip(1).collect();
    assert_eq!(workers.len(), 4, "each worker has a node alone: {nodes:?}");
    stack.end_job("mixed").await
}

async fn sixty_four(stack: &Stack) -> anyhow::Result<()> {
    stack
        .submit(&Job::new("many", vec![Role::new("Worker", 64, 1)]))
        .await?;
    stack.wait_running("many", 64).await?;
    stack.end_job("many").await
}

async fn sixty_percent(stack: &Stack) -> anyhow::Result<()> {
    let job = |name: &str| Job::new(name, vec![Role::new("Worker", 12, 8)]);
    let both = format!("{}---\n{}", job("first").yaml(), job("second").yaml());
    stack.cluster.apply_yaml(&both).await?;
    stack.wait_running("first", 12).await?;
    let says = stack
        .wait_gang("default", "second", PATIENCE, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    assert!(
        says.message
            .contains("needs room for 12 Worker with 8 nvidia.com/gpu each"),
        "{}",
        says.message
    );
    let pods = stack.recorder.look(|world| world.pods_of("second").count());
    assert_eq!(pods, 0, "a gang that waits has no pods, so it holds no GPU");
    stack.end_job("first").await?;
    stack.wait_running("second", 12).await?;
    stack.end_job("second").await
}

async fn overload(stack: &Stack) -> anyhow::Result<()> {
    let name = |index: u32| format!("crowd-{index:02}");
    let all: Vec<String> = (0..30)
        .map(|index| Job::new(&name(index), vec![Role::new("Worker", 2, 4)]).yaml())
        .collect();
    stack.cluster.apply_yaml(&all.join("---\n")).await?;
    let bound = |index: u32| {
        stack
            .recorder
            .look(|world| world.bound_of(&name(index.min(99))))
    };
    stack
        .wait_until(PATIENCE, "20 of 30 gangs to run whole", async || {
            (0..30).filter(|index| bound(*index) == 2).count() == 20
        })
        .await?;
    let held = stack.recorder.look(|world| world.held("nvidia.com/gpu"));
    assert_eq!(held, 160, "GPUs held by the 20 gangs");
    let pods = stack.recorder.look(|world| {
        (0..30)
            .map(|index| world.pods_of(&name(index)).count())
            .sum::<usize>()
    });
    assert_eq!(pods, 40, "the other gangs have no pods");
    let running: Vec<u32> = (0..30).filter(|index| bound(*index) == 2).collect();
    for index in running.iter().take(10) {
        let job = stack.jobs();
        job.delete(&name(*index), &kube::api::DeleteParams::background())
            .await?;
    }
    let waiting: Vec<u32> = (0..30).filter(|index| !running.contains(index)).collect();
    stack
        .wait_until(PATIENCE, "the other 10 gangs to run", async || {
            waiting.iter().all(|index| bound(*index) == 2)
        })
        .await
}
