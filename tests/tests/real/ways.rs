//! Gangs of pods without a job, with gates and without any policy, and nodes without agents, on the
//! real control plane.

use std::fmt::Write as _;
use std::time::Duration;

use muster_control_plane::history::World;
use muster_control_plane::{NodeTemplate, TrainingOperatorOptions};
use muster_tests::acts::PATIENCE;
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::stack::{Stack, StackOptions};

const NODES: u32 = 6;

fn options() -> StackOptions {
    StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", NODES)],
        operator: None,
        ..StackOptions::default()
    }
}

async fn submit(stack: &Stack, gang: &PodGang) -> anyhow::Result<()> {
    Ok(stack.cluster.apply_yaml(&gang.yaml()).await?)
}

async fn wait_whole(stack: &Stack, gang: &PodGang) -> anyhow::Result<()> {
    let all = usize::try_from(gang.count)?;
    let whole = |world: &World| gang.bound(world) == all;
    stack
        .wait_world(
            PATIENCE,
            &format!("{all} bound pods of {}", gang.name),
            whole,
        )
        .await?;
    stack
        .wait_gang("default", &gang.object(), PATIENCE, |says| {
            says.phase == "Running"
        })
        .await?;
    Ok(())
}

/// The gang starts as a whole, and one that does not fit beside it waits with nothing.
async fn one_then_the_other(stack: &Stack, by: By, prefix: &str) -> anyhow::Result<()> {
    let first = PodGang::new(&format!("{prefix}-first"), by, NODES - 2, 8);
    let second = PodGang::new(&format!("{prefix}-second"), by, NODES - 2, 8);
    submit(stack, &first).await?;
    wait_whole(stack, &first).await?;
    submit(stack, &second).await?;
    let says = stack
        .wait_gang("default", &second.object(), PATIENCE, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    assert!(
        says.message.contains("with 8 nvidia.com/gpu each"),
        "{}",
        says.message
    );
    assert_eq!(stack.recorder.look(|world| second.bound(world)), 0);
    stack.end_pods(&first).await?;
    wait_whole(stack, &second).await?;
    stack.end_pods(&second).await
}

/// Gangs at one and a half of the pool, pods of all gangs by turns: as many whole ones as fit.
async fn interleaved(stack: &Stack, by: By, prefix: &str) -> anyhow::Result<()> {
    let gangs: Vec<PodGang> = (0..9)
        .map(|index| PodGang::new(&format!("{prefix}-{index}"), by, 4, 2))
        .collect();
    let mut yaml = String::new();
    for gang in &gangs {
        let _ = write!(yaml, "{}---\n", gang.head());
    }
    for index in 0..4 {
        for gang in &gangs {
            let _ = write!(yaml, "{}---\n", gang.pod(index));
        }
    }
    stack.cluster.apply_yaml(&yaml).await?;
    let counts =
        |world: &World| -> Vec<usize> { gangs.iter().map(|gang| gang.bound(world)).collect() };
    stack
        .wait_world(PATIENCE, "6 of 9 gangs whole", |world| {
            counts(world).iter().filter(|bound| **bound == 4).count() == 6
        })
        .await?;
    let bound = stack.recorder.look(|world| counts(world));
    assert_eq!(
        bound.iter().filter(|bound| **bound == 0).count(),
        3,
        "{bound:?}"
    );
    let (running, waiting): (Vec<_>, Vec<_>) =
        gangs.iter().zip(bound).partition(|(_, bound)| *bound == 4);
    for (gang, _) in running {
        stack.end_pods(gang).await?;
    }
    for (gang, _) in waiting {
        wait_whole(stack, gang).await?;
        stack.end_pods(gang).await?;
    }
    Ok(())
}

/// A pod of no gang, with GPUs, is a gang of one; a pod without GPUs is nobody's.
async fn single_pods(stack: &Stack) -> anyhow::Result<()> {
    let pod = |name: &str, resources: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  schedulerName: muster\n  \
             tolerations: [{{operator: Exists}}]\n  containers: [{{name: a, image: a, resources: {{limits: {{{resources}}}}}}}]\n"
        )
    };
    let both = format!(
        "{}---\n{}",
        pod("alone", "nvidia.com/gpu: 8"),
        pod("plain", "cpu: 1")
    );
    stack.cluster.apply_yaml(&both).await?;
    stack
        .wait_world(PATIENCE, "both pods bound", |world| {
            world
                .pods
                .values()
                .filter(|pod| pod.is_bound_and_live())
                .filter(|pod| pod.name == "alone" || pod.name == "plain")
                .count()
                == 2
        })
        .await?;
    stack
        .wait_gang("default", "pod-alone", PATIENCE, |says| {
            says.phase == "Running"
        })
        .await?;
    assert!(stack.gang("default", "pod-plain").await?.is_none());
    stack.delete_pod("alone").await?;
    stack.delete_pod("plain").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gated_pods_start_whole() -> anyhow::Result<()> {
    let stack = Stack::start(options()).await?;
    stack.step("single pods", single_pods(&stack)).await?;
    stack
        .step(
            "labelled pods",
            one_then_the_other(&stack, By::Label, "label"),
        )
        .await?;
    stack
        .step(
            "PodGroups",
            one_then_the_other(&stack, By::PodGroup, "group"),
        )
        .await?;
    stack
        .step(
            "labelled pods by turns",
            interleaved(&stack, By::Label, "lt"),
        )
        .await?;
    stack
        .step(
            "PodGroups by turns",
            interleaved(&stack, By::PodGroup, "gt"),
        )
        .await?;
    stack.step("batch Jobs", batch_jobs(&stack)).await?;
    stack
        .step("jobs that the operator names us in", named_jobs(&stack))
        .await?;
    stack.judge().await?;
    Ok(())
}

/// training-operator with `--gang-scheduler-name=muster`, jobs whose templates name no scheduler, and
/// no setting of Muster's. The operator makes a PodGroup for each and names the scheduler in the pods.
async fn named_jobs(stack: &Stack) -> anyhow::Result<()> {
    let operator = TrainingOperatorOptions {
        gang_scheduler_name: Some("muster".into()),
        ..TrainingOperatorOptions::default()
    };
    stack.cluster.start_training_operator(&operator).await?;
    let job = |name: &str| Job::new(name, vec![Role::new("Worker", NODES - 2, 8)]).unnamed();
    let all = usize::try_from(NODES - 2)?;
    stack.submit(&job("named-a")).await?;
    wait_born(stack, "named-a").await?;
    stack.wait_running("named-a", all).await?;
    let group = ["get", "podgroups.scheduling.x-k8s.io", "named-a"];
    stack.kubectl(&group).await?;
    stack.submit(&job("named-b")).await?;
    wait_born(stack, "named-b").await?;
    let says = stack
        .wait_gang("default", "named-b", PATIENCE, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    assert!(says.message.contains("Worker"), "{}", says.message);
    assert_eq!(stack.recorder.look(|world| world.bound_of("named-b")), 0);
    stack.end_job("named-a").await?;
    stack.wait_running("named-b", all).await?;
    stack.end_job("named-b").await
}

/// Waits for the first pod of a job for which the operator makes a PodGroup. On a busy machine the
/// operator may not see its own PodGroup in time and forget the job until that changes: then it is
/// touched.
async fn wait_born(stack: &Stack, name: &str) -> anyhow::Result<()> {
    for touch in 0..6 {
        for _ in 0..100 {
            if stack.recorder.look(|world| world.pods_of(name).count()) > 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mark = format!("test/touch={touch}");
        let annotate = ["annotate", "--overwrite", "pytorchjob", name, &mark];
        stack.kubectl(&annotate).await?;
    }
    anyhow::bail!("{name} has no pods after a minute");
}

/// Jobs of kube-controller-manager. Each pod is a gang of one, so that one with more pods than there
/// is room for runs them by turns; a label makes one gang of them.
async fn batch_jobs(stack: &Stack) -> anyhow::Result<()> {
    let job = |name: &str, pods: u32, marks: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  parallelism: {pods}\n  completions: {pods}\n  \
             template:\n    metadata: {{{marks}}}\n    spec:\n      schedulerName: muster\n      restartPolicy: Never\n      tolerations: [{{operator: Exists}}]\n      \
             containers: [{{name: a, image: a, resources: {{limits: {{nvidia.com/gpu: 8}}}}}}]\n"
        )
    };
    let ends = "annotations: {muster.dev/run-seconds: \"2\"}";
    let gang = format!(
        "labels: {{muster.dev/gang: batch-gang}}, annotations: {{muster.dev/gang-size: \"{}\", muster.dev/run-seconds: \"2\"}}",
        NODES - 1
    );
    let both = format!(
        "{}---\n{}",
        job("batch-many", NODES + 2, ends),
        job("batch-gang", NODES - 1, &gang)
    );
    stack.cluster.apply_yaml(&both).await?;
    for name in ["job/batch-many", "job/batch-gang"] {
        let wait = ["wait", "--for=condition=complete", name, "--timeout=120s"];
        stack.kubectl(&wait).await?;
    }
    let pods = stack.recorder.look(|world| {
        (
            world.pods_of("batch-many").count(),
            world.pods_of("batch-gang").count(),
        )
    });
    assert_eq!(
        pods,
        (usize::try_from(NODES + 2)?, usize::try_from(NODES - 1)?),
        "no pod was made twice"
    );
    let delete = ["delete", "jobs", "batch-many", "batch-gang"];
    stack.kubectl(&delete).await?;
    stack
        .wait_world(PATIENCE, "no pods of the Jobs", |world| {
            world.pods_of("batch-many").count() + world.pods_of("batch-gang").count() == 0
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_and_without_agents_pods_start_whole() -> anyhow::Result<()> {
    let options = StackOptions {
        policies: false,
        agents: false,
        operator: Some(TrainingOperatorOptions::default()),
        ..options()
    };
    let stack = Stack::start(options).await?;
    stack.step("single pods", single_pods(&stack)).await?;
    stack
        .step(
            "labelled pods",
            one_then_the_other(&stack, By::Label, "label"),
        )
        .await?;
    stack
        .step(
            "PodGroups",
            one_then_the_other(&stack, By::PodGroup, "group"),
        )
        .await?;
    stack
        .step(
            "labelled pods by turns",
            interleaved(&stack, By::Label, "lt"),
        )
        .await?;
    stack
        .step("jobs that are not held", free_jobs(&stack))
        .await?;
    stack.step("batch Jobs", batch_jobs(&stack)).await?;
    stack.judge().await?;
    Ok(())
}

/// Two jobs of 60 percent whose pods all exist from the start.
async fn free_jobs(stack: &Stack) -> anyhow::Result<()> {
    let job = |name: &str| Job::new(name, vec![Role::new("Worker", NODES - 2, 8)]);
    let both = format!("{}---\n{}", job("free-a").yaml(), job("free-b").yaml());
    stack.cluster.apply_yaml(&both).await?;
    let all = usize::try_from(NODES - 2)?;
    let bound = |name: &str| stack.recorder.look(|world| world.bound_of(name));
    stack
        .wait_until(PATIENCE, "one of two jobs to run", async || {
            bound("free-a").max(bound("free-b")) == all
        })
        .await?;
    assert_eq!(
        bound("free-a").min(bound("free-b")),
        0,
        "the other holds nothing"
    );
    let (first, second) = if bound("free-a") == all {
        ("free-a", "free-b")
    } else {
        ("free-b", "free-a")
    };
    stack
        .wait_gang("default", second, PATIENCE, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    stack.end_job(first).await?;
    stack.wait_running(second, all).await?;
    stack.end_job(second).await
}
