//! Input that cannot be carried out, on the real control plane: each gets a clear condition, and the
//! jobs beside it run as if it were not there.

use muster_control_plane::NodeTemplate;
use muster_tests::acts::PATIENCE;
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::stack::{Stack, StackOptions};
use serde_json::Value;

/// Something bad: what to submit, its Gang, the reason, and parts of the message.
#[derive(Clone)]
struct Bad {
    yaml: String,
    object: String,
    reason: &'static str,
    says: Vec<String>,
}

fn job(name: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", 2, 1)])
}

fn bad_job(job: Job, reason: &'static str, says: &[&str]) -> Bad {
    Bad {
        object: job.name.clone(),
        yaml: job.yaml(),
        reason,
        says: says.iter().map(|part| (*part).to_owned()).collect(),
    }
}

fn minimum(name: &str, minimum: &str, reason: &'static str, says: &[&str]) -> Bad {
    let policy = format!("schedulingPolicy: {{minAvailable: {minimum}}}");
    bad_job(job(name).policy(&policy), reason, says)
}

/// A job whose template has one text replaced.
fn edited(name: &str, from: &str, to: &str, reason: &'static str, says: &[&str]) -> Bad {
    let mut bad = bad_job(job(name), reason, says);
    assert!(bad.yaml.contains(from), "{from} in {}", bad.yaml);
    bad.yaml = bad.yaml.replace(from, to);
    bad
}

fn bad_minimums() -> Vec<Bad> {
    const FIELD: &str = "spec.runPolicy.schedulingPolicy.minAvailable";
    let invalid = "InvalidWorkload";
    let too_large = "MinimumTooLarge";
    let class = "schedulingPolicy: {priorityClass: no-such-class, minAvailable: 9}";
    let two = vec![Role::new("Master", 1, 1), Role::new("Worker", 1, 1)];
    let nine = ["minAvailable 9", "2 members"];
    vec![
        minimum("minus", "-1", invalid, &[FIELD, "is -1", "0 to"]),
        minimum(
            "billion",
            "1000000000",
            invalid,
            &[FIELD, "is 1000000000", "0 to"],
        ),
        minimum("above", "3", too_large, &["minAvailable 3", "2 members"]),
        bad_job(Job::new("classless", two).policy(class), too_large, &nine),
    ]
}

fn bad_templates() -> Vec<Bad> {
    let invalid = "InvalidWorkload";
    let memory = "memory: 1Gi";
    let gpus = "nvidia.com/gpu: 1";
    let requests = "containers[0].resources.requests[memory]";
    let replicas = "replicas: 2";
    let of = |amount: &str| format!("memory: {amount}");
    let vast = of("99999999999999999999Ei");
    let negative = of("-1Gi");
    let scheduler = "schedulerName: muster";
    let long = "x".repeat(300);
    let selector = format!("{scheduler}\n          nodeSelector: {{pool: {long}}}");
    let split = "nvidia.com/gpu: 1500m";
    let typo = ["nvidia.com/gpus", "did you mean nvidia.com/gpu"];
    let huge = ["1000000 nvidia.com/gpu each", "largest node offers 8"];
    let many = ["Worker.replicas", "2000000000", "0 to"];
    vec![
        edited(
            "vast",
            memory,
            &vast,
            "NeverFits",
            &["bytes of memory each", "largest"],
        ),
        edited(
            "negative",
            memory,
            &negative,
            invalid,
            &[requests, "is -1Gi", "negative"],
        ),
        edited(
            "split",
            gpus,
            split,
            invalid,
            &["[nvidia.com/gpu]", "1500m", "whole"],
        ),
        edited("many", replicas, "replicas: 2000000000", invalid, &many),
        edited(
            "selector",
            scheduler,
            &selector,
            "NoMatchingNode",
            &["selector 2"],
        ),
        edited("typo", gpus, "nvidia.com/gpus: 1", "NoSuchResource", &typo),
        edited("huge", gpus, "nvidia.com/gpu: 1000000", "NeverFits", &huge),
    ]
}

fn bad_pods() -> Vec<Bad> {
    let sized = |name: &str, size: &str, says: &[&str]| {
        let gang = PodGang::new(name, By::Label, 2, 1);
        let stated = "muster.dev/gang-size: \"2\"";
        assert!(gang.yaml().contains(stated));
        Bad {
            object: gang.object(),
            yaml: gang
                .yaml()
                .replace(stated, &format!("muster.dev/gang-size: \"{size}\"")),
            reason: "InvalidWorkload",
            says: says.iter().map(|part| (*part).to_owned()).collect(),
        }
    };
    let long = "9".repeat(300);
    let group = PodGang::new("below-zero", By::PodGroup, 2, 1);
    vec![
        sized("zero", "0", &["muster.dev/gang-size", "0", "1 to"]),
        sized("below", "-4", &["muster.dev/gang-size", "-4", "1 to"]),
        sized("endless", &long, &["muster.dev/gang-size", "99999", "1 to"]),
        sized("letters", "many", &["muster.dev/gang-size", "many", "1 to"]),
        Bad {
            object: group.object(),
            yaml: group.yaml().replace("minMember: 2", "minMember: -2"),
            reason: "InvalidWorkload",
            says: vec!["spec.minMember".into(), "-2".into()],
        },
    ]
}

async fn refused_clearly(stack: &Stack, bad: &Bad) -> anyhow::Result<()> {
    let says = stack
        .wait_gang("default", &bad.object, PATIENCE, |says| {
            says.reason == bad.reason
        })
        .await?;
    for part in &bad.says {
        anyhow::ensure!(
            says.message.contains(part.as_str()),
            "{}: no {part} in: {}",
            bad.object,
            says.message
        );
    }
    anyhow::ensure!(says.message.len() < 600, "{}: a long message", bad.object);
    let conditions = says.status.get("conditions").and_then(Value::as_array);
    let placed = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.get("type").is_some_and(|kind| kind == "Placed"));
    let placed = placed.map(|condition| (&condition["status"], &condition["reason"]));
    anyhow::ensure!(
        placed == Some((&Value::from("False"), &Value::from(bad.reason))),
        "{}: condition {placed:?}",
        bad.object
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_named_and_disturbs_nobody() -> anyhow::Result<()> {
    named(StackOptions::default()).await
}

/// Nothing holds the jobs then: their pods are there, as far as the API server takes them, and wait in
/// Filter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_and_agents_bad_input_is_named_and_disturbs_nobody() -> anyhow::Result<()>
{
    let options = StackOptions {
        policies: false,
        agents: false,
        ..StackOptions::default()
    };
    named(options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_bad_input_is_named_and_disturbs_nobody_beside_agents()
-> anyhow::Result<()> {
    let options = StackOptions {
        policies: false,
        ..StackOptions::default()
    };
    named(options).await
}

async fn named(options: StackOptions) -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", 2)],
        ..options.clone()
    })
    .await?;
    let mut all: Vec<Bad> = [bad_minimums(), bad_templates(), bad_pods()].concat();
    if !options.policies {
        // training-operator itself dies of 2,000,000,000 replicas that nothing holds: out of memory.
        all.retain(|bad| bad.object != "many");
    }
    let good = job("good-before");
    stack.submit(&good).await?;
    let mut refused_at_the_door = Vec::new();
    for bad in &all {
        if let Err(error) = stack.cluster.apply_yaml(&bad.yaml).await {
            refused_at_the_door.push(format!("{}: {error}", bad.object));
        }
    }
    assert_eq!(
        refused_at_the_door,
        Vec::<String>::new(),
        "the API server takes them"
    );
    stack
        .step(
            "a good job beside them",
            stack.wait_running("good-before", 2),
        )
        .await?;
    let mut wrong = Vec::new();
    for bad in &all {
        let look = refused_clearly(&stack, bad);
        if let Err(error) = stack.step(&bad.object, look).await {
            wrong.push(format!("{error:#}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    stack
        .step("no minimum means all", async {
            let zero = job("zero-is-all").policy("schedulingPolicy: {minAvailable: 0}");
            stack.submit(&zero).await?;
            stack.wait_running("zero-is-all", 2).await
        })
        .await?;
    let bound = stack.recorder.look(|world| {
        world
            .pods
            .values()
            .filter(|pod| pod.scheduler == "muster" && pod.node.is_some())
            .count()
    });
    assert_eq!(bound, 4, "nothing but the two good jobs is bound");
    stack.cluster.check_all_running()?;
    stack.judge().await?;
    Ok(())
}
