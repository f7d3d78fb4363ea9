//! Gangs of pods without a job, with gates and without any policy, and nodes without agents, on the
//! real control plane.

use std::time::Duration;

use muster_control_plane::history::World;
use muster_control_plane::{NodeTemplate, TrainingOperatorOptions};
use muster_tests::acts::PATIENCE;
use muster_tests::crowd::operator;
use muster_tests::gangs::Gang;
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::stack::{Stack, StackOptions};

const NODES: u32 = 10;

/// Gangs at one and a half of them.
const CROWD: u32 = 30;

/// GPUs of them all.
const GPUS: u32 = NODES * 8;

fn options() -> StackOptions {
    StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", NODES)],
        operator: None,
        ..StackOptions::default()
    }
}

/// Pods of several gangs by turns, as one file: first members first.
fn by_turns(gangs: &[PodGang]) -> String {
    let heads = gangs.iter().map(PodGang::head);
    let most = gangs.iter().map(|gang| gang.count).max().unwrap_or(0);
    let pods = (0..most).flat_map(|index| gangs.iter().map(move |gang| gang.pod(index)));
    let documents: Vec<String> = heads.chain(pods).collect();
    documents.join("---\n")
}

async fn wait_whole(stack: &Stack, gang: &PodGang) -> anyhow::Result<()> {
    stack.wait_gang_running(&Gang::Pods(gang.clone())).await?;
    Ok(())
}

/// Two gangs of 60 percent of the pool, their pods by turns: exactly one runs, the other holds
/// nothing, says why, and starts when the first ends.
async fn one_then_the_other(stack: &Stack, by: By, prefix: &str) -> anyhow::Result<()> {
    let count = NODES * 6 / 10;
    let gangs =
        ["first", "second"].map(|which| PodGang::new(&format!("{prefix}-{which}"), by, count, 8));
    stack.cluster.apply_yaml(&by_turns(&gangs)).await?;
    let all = usize::try_from(count)?;
    stack
        .wait_world(PATIENCE, "one of two gangs to run", |world| {
            gangs.iter().any(|gang| gang.bound(world) == all)
        })
        .await?;
    let [first, second] = &gangs;
    let first_runs = stack.recorder.look(|world| first.bound(world) == all);
    let (runs, waits) = if first_runs {
        (first, second)
    } else {
        (second, first)
    };
    let says = stack
        .wait_gang("default", &waits.object(), PATIENCE, |says| {
            says.reason == "NotEnoughFree"
        })
        .await?;
    assert!(
        says.message.contains("with 8 nvidia.com/gpu each"),
        "{}",
        says.message
    );
    described(stack, waits).await?;
    assert_eq!(stack.ever_bound(&waits.name), 0, "the other holds nothing");
    wait_whole(stack, runs).await?;
    stack.end_pods(runs).await?;
    wait_whole(stack, waits).await?;
    stack.end_pods(waits).await
}

/// `kubectl describe` of what the user has made shows the Event that says why the gang waits.
async fn described(stack: &Stack, gang: &PodGang) -> anyhow::Result<()> {
    let (kind, name) = match gang.by {
        By::Label => ("gangs.muster.dev", gang.object()),
        By::PodGroup => ("podgroups.scheduling.x-k8s.io", gang.name.clone()),
    };
    let describe = ["describe", kind, &name];
    stack
        .wait_until(PATIENCE, "an Event of the gang that waits", async || {
            let found = stack.cluster.kubectl(&describe).await;
            found.is_ok_and(|found| {
                let events = found.stdout.split_once("\nEvents:");
                events.is_some_and(|(_, events)| events.contains("NotEnoughFree"))
            })
        })
        .await
}

/// 30 gangs at one and a half of the pool, pods of all gangs by turns: as many whole ones as fit, and
/// nothing of the others.
async fn interleaved(stack: &Stack, by: By, prefix: &str) -> anyhow::Result<()> {
    let gangs: Vec<PodGang> = (0..CROWD)
        .map(|index| {
            PodGang::new(
                &format!("{prefix}-{index:02}"),
                by,
                4,
                GPUS * 3 / 2 / CROWD / 4,
            )
        })
        .collect();
    stack.cluster.apply_yaml(&by_turns(&gangs)).await?;
    let counts =
        |world: &World| -> Vec<usize> { gangs.iter().map(|gang| gang.bound(world)).collect() };
    let fits = usize::try_from(CROWD * 2 / 3)?;
    stack
        .wait_world(PATIENCE, "20 of 30 gangs whole", |world| {
            counts(world).iter().filter(|bound| **bound == 4).count() == fits
        })
        .await?;
    let bound = stack.recorder.look(|world| counts(world));
    let (running, waiting): (Vec<_>, Vec<_>) =
        gangs.iter().zip(bound).partition(|(_, bound)| *bound == 4);
    for (gang, _) in &waiting {
        assert_eq!(stack.ever_bound(&gang.name), 0, "{} waits", gang.name);
    }
    let held = stack.recorder.look(|world| world.held("nvidia.com/gpu"));
    assert_eq!(held, i128::from(GPUS), "all GPUs are in use");
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
    crowds(&stack).await?;
    stack.step("batch Jobs", batch_jobs(&stack)).await?;
    stack.step("Jobs of JobSets", job_sets(&stack)).await?;
    stack
        .step("jobs that the operator names us in", named_jobs(&stack))
        .await?;
    stack.judge().await?;
    Ok(())
}

/// Gangs that compete for room, known by label and by PodGroup.
async fn crowds(stack: &Stack) -> anyhow::Result<()> {
    for (by, prefix) in [(By::Label, "label"), (By::PodGroup, "group")] {
        let name = format!("{prefix}: two gangs of 60 percent by turns");
        let two = one_then_the_other(stack, by, prefix);
        stack.step(&name, two).await?;
        let name = format!("{prefix}: 30 gangs at one and a half of the pool by turns");
        let many = interleaved(stack, by, prefix);
        stack.step(&name, many).await?;
    }
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
    let job = |name: &str| Job::new(name, vec![Role::new("Worker", NODES * 6 / 10, 8)]).unnamed();
    let all = usize::try_from(NODES * 6 / 10)?;
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

/// The Jobs that JobSet's controller makes of a JobSet with a leader and workers: its labels on Jobs
/// and pods, the user's own in every template. Without ours each pod is a gang of one; with ours the
/// pods of all its Jobs are one gang, and a second one waits without holding anything.
async fn job_sets(stack: &Stack) -> anyhow::Result<()> {
    let job = |set: &str, part: &str, pods: u32, marks: (&str, &str)| {
        let of_set = format!(
            "jobset.sigs.k8s.io/jobset-name: {set}, jobset.sigs.k8s.io/replicatedjob-name: {part}"
        );
        let (labels, annotations) = marks;
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {set}-{part}-0, namespace: default, labels: {{{of_set}}}}}\nspec:\n  \
             parallelism: {pods}\n  completions: {pods}\n  completionMode: Indexed\n  template:\n    \
             metadata: {{labels: {{{of_set}{labels}}}, annotations: {{{annotations}}}}}\n    spec:\n      schedulerName: muster\n      \
             restartPolicy: Never\n      tolerations: [{{operator: Exists}}]\n      \
             containers: [{{name: a, image: a, resources: {{limits: {{nvidia.com/gpu: 8}}}}}}]\n"
        )
    };
    let set = |set: &str, marks: (&str, &str)| {
        let workers = NODES * 6 / 10 - 1;
        let (leader, workers) = (
            job(set, "leader", 1, marks),
            job(set, "worker", workers, marks),
        );
        format!("{leader}---\n{workers}")
    };
    let run = "muster.dev/run-seconds: \"3\"";
    let sized = format!("muster.dev/gang-size: \"{}\", {run}", NODES * 6 / 10);
    let all = [
        set("plain", ("", run)),
        set("one", (", muster.dev/gang: one", &sized)),
        set("two", (", muster.dev/gang: two", &sized)),
    ];
    stack.cluster.apply_yaml(&all.join("---\n")).await?;
    let names: Vec<String> = ["plain", "one", "two"]
        .iter()
        .flat_map(|set| ["leader", "worker"].map(|part| format!("job/{set}-{part}-0")))
        .collect();
    for name in &names {
        let wait = ["wait", "--for=condition=complete", name, "--timeout=120s"];
        stack.kubectl(&wait).await?;
    }
    let mut delete = vec!["delete"];
    delete.extend(names.iter().map(String::as_str));
    stack.kubectl(&delete).await?;
    stack
        .wait_world(PATIENCE, "no pods of the Jobs", |world| {
            let of_set = |label| {
                world
                    .pods
                    .values()
                    .any(|pod| pod.labels.contains_key(label))
            };
            !of_set("jobset.sigs.k8s.io/jobset-name")
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_agents_gated_pods_start_whole() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        agents: false,
        ..options()
    })
    .await?;
    crowds(&stack).await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_pods_start_whole_beside_agents() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        policies: false,
        operator: Some(operator()),
        ..options()
    })
    .await?;
    crowds(&stack).await?;
    stack
        .step("jobs that are not held", free_jobs(&stack))
        .await?;
    stack
        .step("30 jobs that are not held", free_crowd(&stack))
        .await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_and_without_agents_pods_start_whole() -> anyhow::Result<()> {
    let options = StackOptions {
        policies: false,
        agents: false,
        operator: Some(operator()),
        ..options()
    };
    let stack = Stack::start(options).await?;
    stack.step("single pods", single_pods(&stack)).await?;
    crowds(&stack).await?;
    stack
        .step("jobs that are not held", free_jobs(&stack))
        .await?;
    stack
        .step("30 jobs that are not held", free_crowd(&stack))
        .await?;
    stack.step("batch Jobs", batch_jobs(&stack)).await?;
    stack.step("Jobs of JobSets", job_sets(&stack)).await?;
    stack.judge().await?;
    Ok(())
}

/// Two jobs of 60 percent whose pods all exist from the start.
async fn free_jobs(stack: &Stack) -> anyhow::Result<()> {
    let job = |name: &str| Job::new(name, vec![Role::new("Worker", NODES * 6 / 10, 8)]);
    let both = format!("{}---\n{}", job("free-a").yaml(), job("free-b").yaml());
    stack.cluster.apply_yaml(&both).await?;
    let all = usize::try_from(NODES * 6 / 10)?;
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

/// 30 jobs at one and a half of the pool, whose pods all exist from the start: as many whole ones as fit,
/// none of the others' pods is bound before there is room for all of its gang.
async fn free_crowd(stack: &Stack) -> anyhow::Result<()> {
    const WORKERS: u32 = 2;
    let names: Vec<String> = (0..CROWD)
        .map(|index| format!("crowd-{index:02}"))
        .collect();
    let gpus = GPUS * 3 / 2 / CROWD / WORKERS;
    let all: Vec<String> = names
        .iter()
        .map(|name| Job::new(name, vec![Role::new("Worker", WORKERS, gpus)]).yaml())
        .collect();
    stack.cluster.apply_yaml(&all.join("---\n")).await?;
    let whole = usize::try_from(WORKERS)?;
    let bound = |name: &String| stack.recorder.look(|world| world.bound_of(name));
    let fits = usize::try_from(CROWD * 2 / 3)?;
    let pods = usize::try_from(CROWD * WORKERS)?;
    stack
        .wait_until(PATIENCE, "all pods, and 20 of 30 jobs whole", async || {
            let made = |world: &World| names.iter().map(|name| world.pods_of(name).count()).sum();
            let made: usize = stack.recorder.look(made);
            made == pods && names.iter().filter(|name| bound(name) == whole).count() == fits
        })
        .await?;
    let (running, waiting): (Vec<_>, Vec<_>) = names.iter().partition(|name| bound(name) == whole);
    for name in &waiting {
        assert_eq!(stack.ever_bound(name), 0, "{name} waits");
    }
    let held = stack.recorder.look(|world| world.held("nvidia.com/gpu"));
    assert_eq!(held, i128::from(GPUS), "all GPUs are in use");
    for name in running {
        stack.end_job(name).await?;
    }
    for name in waiting {
        stack.wait_running(name, whole).await?;
        stack.end_job(name).await?;
    }
    Ok(())
}
