//! Jobs on the real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
//! training-operator and KWOK, with Muster under its own account.

use std::time::Duration;

use muster_control_plane::NodeTemplate;
use muster_tests::jobs::{Job, Role};
use muster_tests::stack::{Stack, StackOptions};

const SOON: Duration = Duration::from_secs(60);

fn train(name: &str) -> Job {
    Job::new(
        name,
        vec![Role::new("Master", 1, 1), Role::new("Worker", 4, 1)],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pytorchjob_of_one_master_and_four_workers_runs_whole_and_ends() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions::default()).await?;
    stack.submit(&train("train").running_for(5)).await?;
    stack.wait_bound("train", 5, SOON).await?;
    let says = stack
        .wait_gang("default", "train", SOON, |says| says.phase == "Running")
        .await?;
    assert_eq!(says.status["members"].as_array().map(Vec::len), Some(5));
    let table = stack.cluster.kubectl(&["get", "gangs"]).await?;
    assert!(table.stdout.contains("5/5"), "{}", table.stdout);
    stack
        .wait_gang("default", "train", SOON, |says| says.phase == "Succeeded")
        .await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gangs_of_sixty_percent_run_one_after_the_other() -> anyhow::Result<()> {
    let options = StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", 10)],
        ..StackOptions::default()
    };
    let stack = Stack::start(options).await?;
    let job = |name: &str| Job::new(name, vec![Role::new("Worker", 6, 8)]).running_for(8);
    stack.submit(&job("first")).await?;
    stack.submit(&job("second")).await?;
    stack.wait_bound("first", 6, SOON).await?;
    let says = stack
        .wait_gang("default", "second", SOON, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    assert!(
        says.message
            .contains("needs room for 6 Worker with 8 nvidia.com/gpu each"),
        "{}",
        says.message
    );
    assert_eq!(
        stack.recorder.look(|world| world.pods_of("second").count()),
        0,
        "a gang that waits has no pods"
    );
    stack.wait_bound("second", 6, SOON).await?;
    stack.judge().await?;
    Ok(())
}
