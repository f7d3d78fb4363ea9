//! Every command of `deploy/operations.md`, run as it stands there.

use muster_control_plane::NodeTemplate;
use muster_tests::acts::PATIENCE;
use muster_tests::guide::{self, Operator};
use muster_tests::jobs::{Job, Role};
use muster_tests::stack::{Stack, StackOptions, muster};

/// A Lease that expires while a test waits for it.
const SHORT_LEASE: &str = "lease: {duration: 10s, renewDeadline: 7s, retryPeriod: 1s}\n";

fn job(name: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", 2, 8)])
}

/// Runs the commands of a section that has as many; what each of them says.
async fn section<const COUNT: usize>(
    operator: &Operator,
    title: &str,
) -> anyhow::Result<[String; COUNT]> {
    let commands = guide::commands(title)?;
    let mut said = Vec::new();
    for command in commands {
        said.push(operator.run(command).await?);
    }
    let many = said.len();
    said.try_into()
        .map_err(|_| anyhow::anyhow!("{title} has {many} commands, the test knows {COUNT}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_guide_for_operators_says_is_what_happens() -> anyhow::Result<()> {
    let known = [
        "Look",
        "Freeze it",
        "Take a dump",
        "After etcd was restored",
    ];
    assert_eq!(guide::sections(), known, "each section is run here");
    let stack = Stack::start(StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", 4)],
        ..StackOptions::default()
    })
    .await?;
    // The next leader is not to be waited for as long as these tests let a loaded machine stand still.
    stack.set_lease(SHORT_LEASE)?;
    stack.cluster.kill(&muster())?;
    stack.start_muster_again().await?;
    stack.wait_ready(PATIENCE).await?;
    let operator = Operator::new(&stack.cluster, &stack.http)?;
    stack.submit(&job("runs")).await?;
    stack.wait_running("runs", 2).await?;
    // They are counted once a second, while anything happens.
    let counted = async || {
        stack
            .counted("muster_nodes_reported")
            .await
            .is_ok_and(|is| is > 3.5)
    };
    stack
        .wait_until(PATIENCE, "all agents to be counted", counted)
        .await?;
    stack.step("look", look(&operator)).await?;
    stack.step("freeze", freeze(&stack, &operator)).await?;
    dump(&operator).await?;
    // What "A wrong book" says to do then: the leader's Pod is deleted, and its successor is looked at in the same way.
    stack.cluster.stop(&muster()).await?;
    stack.cluster.start(&muster()).await?;
    stack.wait_ready(PATIENCE).await?;
    stack.wait_running("runs", 2).await?;
    dump(&operator).await?;
    // Nothing was restored here: the drill with a store that was is `restore`.
    let [restored, _] = section(&operator, "After etcd was restored").await?;
    assert_eq!(restored.trim(), "");
    stack.judge().await?;
    Ok(())
}

async fn look(operator: &Operator) -> anyhow::Result<()> {
    let [lease, gangs, metrics] = section(operator, "Look").await?;
    assert!(lease.contains("muster-scheduler"), "{lease}");
    assert!(
        gangs.contains("runs") && gangs.contains("Running"),
        "{gangs}"
    );
    for wanted in [
        "muster_leading 1",
        "muster_frozen 0",
        "muster_frozen_parts{kind=\"gang\"} 0",
        "muster_frozen_parts{kind=\"node\"} 0",
        "muster_invariant_violations_total{invariant=\"LEDGER-1\"} 0",
        "muster_nodes_reported 4",
    ] {
        let line = metrics.lines().any(|line| line == wanted);
        assert!(line, "no {wanted} in\n{metrics}");
    }
    Ok(())
}

/// With names and without.
async fn dump(operator: &Operator) -> anyhow::Result<()> {
    let [_, planned, _, redacted] = section(operator, "Take a dump").await?;
    assert!(planned.contains("default/runs ("), "{planned}");
    assert!(
        redacted.contains("gangs") && !redacted.contains("runs"),
        "{redacted}"
    );
    Ok(())
}

/// The commands one by one, with what happens between them.
async fn freeze(stack: &Stack, operator: &Operator) -> anyhow::Result<()> {
    let commands = guide::commands("Freeze it")?;
    let [freeze, show, gangs, unfreeze, annotate, take_off] = commands[..] else {
        anyhow::bail!("other commands than this test knows: {commands:?}");
    };
    let said = operator.run(freeze).await?;
    assert!(said.contains("is frozen"), "{said}");
    assert_eq!(operator.run(show).await?, "we look at rack 7");
    stays_frozen(stack, operator, "first", gangs).await?;
    // Whoever leads next finds it frozen.
    stack.cluster.kill(&muster())?;
    stack.cluster.start(&muster()).await?;
    stack.wait_ready(PATIENCE).await?;
    let frozen = async || {
        stack
            .counted("muster_frozen")
            .await
            .is_ok_and(|is| is > 0.5)
    };
    stack
        .wait_until(PATIENCE, "the next leader to be frozen", frozen)
        .await?;
    let bound = stack
        .recorder
        .look(|world| (world.bound_of("first"), world.bound_of("runs")));
    assert_eq!(bound, (0, 2), "what runs runs on");
    let said = operator.run(unfreeze).await?;
    assert!(said.contains("goes on"), "{said}");
    stack.wait_running("first", 2).await?;
    stack.end_job("first").await?;
    operator.run(annotate).await?;
    stack
        .wait_until(PATIENCE, "the leader to be frozen", frozen)
        .await?;
    stays_frozen(stack, operator, "second", gangs).await?;
    operator.run(take_off).await?;
    stack.wait_running("second", 2).await?;
    Ok(())
}

/// A gang that would fit says that all is frozen, and does not start.
async fn stays_frozen(
    stack: &Stack,
    operator: &Operator,
    name: &str,
    gangs: &str,
) -> anyhow::Result<()> {
    stack.submit(&job(name)).await?;
    let says = stack
        .wait_gang("default", name, PATIENCE, |says| says.reason == "Frozen")
        .await?;
    assert_eq!(says.phase, "Waiting");
    let why = "nothing new is bound for now: frozen by an operator: we look at rack 7";
    assert_eq!(says.message, why);
    let shown = operator.run(gangs).await?;
    let line = shown.lines().find(|line| line.starts_with(name));
    assert!(line.is_some_and(|line| line.contains("Frozen")), "{shown}");
    assert!(stack.counted("muster_frozen").await? > 0.5);
    let made = stack.recorder.look(|world| world.pods_of(name).count());
    assert_eq!(made, 0, "its job is held");
    Ok(())
}
