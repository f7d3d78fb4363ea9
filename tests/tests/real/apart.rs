//! Gangs with rules between their own members, on the real control plane: an unmodified kube-scheduler
//! accepts each member where it was planned, at the first attempt.

use std::collections::{BTreeMap, BTreeSet};

use muster_control_plane::NodeTemplate;
use muster_tests::acts::PATIENCE;
use muster_tests::jobs::{Job, Role};
use muster_tests::stack::{Stack, StackOptions};

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A term about the pods of the job `name`, by the label that training-operator gives them.
fn term(name: &str, key: &str) -> String {
    format!(
        "requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: {key}, \
         labelSelector: {{matchLabels: {{training.kubeflow.org/job-name: {name}}}}}}}]"
    )
}

fn apart(name: &str, key: &str) -> String {
    format!("affinity: {{podAntiAffinity: {{{}}}}}", term(name, key))
}

fn workers(name: &str, count: u32, line: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", count, 1).with(line)])
}

/// Two zones with as many nodes each.
fn zones(nodes: u32) -> Vec<NodeTemplate> {
    ["x", "y"]
        .map(|zone| {
            let mut pool = NodeTemplate::gpu_pool(zone, nodes);
            pool.labels.insert(ZONE.into(), zone.into());
            pool
        })
        .into()
}

/// Members on each node, and in each zone.
fn counts(nodes: &[String]) -> (BTreeMap<&str, u32>, BTreeMap<&str, u32>) {
    let (mut by_node, mut by_zone) = (BTreeMap::new(), BTreeMap::new());
    for node in nodes {
        *by_node.entry(node.as_str()).or_default() += 1;
        let (zone, _) = node.split_once('-').unwrap_or((node, ""));
        *by_zone.entry(zone).or_default() += 1;
    }
    (by_node, by_zone)
}

/// Runs the job whole and returns the nodes of its members.
async fn nodes_of(stack: &Stack, job: &Job) -> anyhow::Result<Vec<String>> {
    stack.submit(job).await?;
    stack.wait_running(&job.name, job.pods()).await?;
    Ok(stack.nodes_of(&job.name))
}

/// kube-scheduler's refusals so far.
async fn refusals(stack: &Stack) -> anyhow::Result<String> {
    let show = [
        "get",
        "events",
        "-A",
        "--field-selector",
        "reason=FailedScheduling",
        "-o",
        "custom-columns=POD:.involvedObject.name,TEXT:.message",
        "--no-headers",
    ];
    Ok(stack.cluster.kubectl(&show).await?.stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_planned_where_kube_scheduler_accepts_them_beside_each_other()
-> anyhow::Result<()> {
    let options = StackOptions {
        pools: zones(2),
        ..StackOptions::default()
    };
    let stack = Stack::start(options).await?;
    // The probe by which the start waits for the admission policies may have been refused.
    let before = refusals(&stack).await?;
    stack.step("one worker per host", by_host(&stack)).await?;
    stack
        .step("master and workers apart", with_master(&stack))
        .await?;
    stack.step("one worker per zone", by_zone(&stack)).await?;
    stack.step("spread over zones", spread(&stack)).await?;
    stack.step("in one zone, apart", together(&stack)).await?;
    stack.step("labelled pods apart", labelled(&stack)).await?;
    assert_eq!(
        refusals(&stack).await?,
        before,
        "a planned node was refused"
    );
    stack.step("one too many", one_too_many(&stack)).await?;
    stack.step("replacement", replacement(&stack)).await?;
    stack.judge().await?;
    Ok(())
}

/// The shape that people use most: without the rule all four would share a node.
async fn by_host(stack: &Stack) -> anyhow::Result<()> {
    let nodes = nodes_of(stack, &workers("hosts", 4, &apart("hosts", HOST))).await?;
    assert_eq!(counts(&nodes).0.len(), 4, "{nodes:?}");
    stack.end_job("hosts").await
}

async fn with_master(stack: &Stack) -> anyhow::Result<()> {
    let rule = apart("whole", HOST);
    let roles = vec![
        Role::new("Master", 1, 1).with(&rule),
        Role::new("Worker", 3, 2).with(&rule),
    ];
    let nodes = nodes_of(stack, &Job::new("whole", roles)).await?;
    assert_eq!(counts(&nodes).0.len(), 4, "{nodes:?}");
    stack.end_job("whole").await
}

async fn by_zone(stack: &Stack) -> anyhow::Result<()> {
    let nodes = nodes_of(stack, &workers("zones", 2, &apart("zones", ZONE))).await?;
    assert_eq!(counts(&nodes).1.len(), 2, "{nodes:?}");
    stack.end_job("zones").await
}

async fn spread(stack: &Stack) -> anyhow::Result<()> {
    let line = format!(
        "topologySpreadConstraints: [{{topologyKey: {ZONE}, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, \
         labelSelector: {{matchLabels: {{training.kubeflow.org/job-name: even}}}}}}]"
    );
    let nodes = nodes_of(stack, &workers("even", 6, &line)).await?;
    let (_, by_zone) = counts(&nodes);
    assert_eq!(by_zone, [("x", 3), ("y", 3)].into(), "{nodes:?}");
    stack.end_job("even").await
}

async fn together(stack: &Stack) -> anyhow::Result<()> {
    let line = format!(
        "affinity: {{podAffinity: {{{}}}, podAntiAffinity: {{{}}}}}",
        term("close", ZONE),
        term("close", HOST)
    );
    let nodes = nodes_of(stack, &workers("close", 2, &line)).await?;
    let (by_node, by_zone) = counts(&nodes);
    assert_eq!((by_node.len(), by_zone.len()), (2, 1), "{nodes:?}");
    stack.end_job("close").await
}

async fn labelled(stack: &Stack) -> anyhow::Result<()> {
    let pod = |index: u32| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: sweep-{index}, namespace: default, \
             labels: {{muster.dev/gang: sweep, app: sweep}}, annotations: {{muster.dev/gang-size: \"3\"}}}}\n\
             spec: {{schedulerName: muster, tolerations: [{{operator: Exists}}], \
             affinity: {{podAntiAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: {HOST}, \
             labelSelector: {{matchExpressions: [{{key: app, operator: In, values: [sweep]}}]}}}}]}}}}, \
             containers: [{{name: a, image: a, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]}}\n"
        )
    };
    let pods: Vec<String> = (0..3).map(pod).collect();
    stack.cluster.apply_yaml(&pods.join("---\n")).await?;
    let bound = |world: &muster_control_plane::history::World| -> Vec<String> {
        let own = world
            .pods
            .values()
            .filter(|pod| pod.name.starts_with("sweep-"));
        own.filter_map(|pod| pod.node.clone()).collect()
    };
    stack
        .wait_world(PATIENCE, "three labelled pods", |world| {
            bound(world).len() == 3
        })
        .await?;
    let nodes: BTreeSet<String> = stack.recorder.look(bound).into_iter().collect();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    for index in 0..3 {
        stack.delete_pod(&format!("sweep-{index}")).await?;
    }
    stack
        .wait_world(PATIENCE, "no labelled pods", |world| {
            bound(world).is_empty()
        })
        .await
}

async fn one_too_many(stack: &Stack) -> anyhow::Result<()> {
    stack
        .submit(&workers("crowd", 5, &apart("crowd", HOST)))
        .await?;
    let says = stack
        .wait_gang("default", "crowd", PATIENCE, |says| {
            says.reason == "AntiAffinityNotMet"
        })
        .await?;
    assert!(
        says.message.contains(
            "needs room for 5 Worker kept apart by anti-affinity on kubernetes.io/hostname; found \
             room for 4, and when the cluster is empty for 4"
        ),
        "{}",
        says.message
    );
    let pods = stack.recorder.look(|world| world.pods_of("crowd").count());
    assert_eq!(pods, 0, "it has no pods while it waits");
    stack.end_job("crowd").await
}

/// A worker whose node is cordoned and that dies comes back on the one host without another.
async fn replacement(stack: &Stack) -> anyhow::Result<()> {
    let nodes = nodes_of(stack, &workers("again", 3, &apart("again", HOST))).await?;
    let lost = stack.recorder.look(|world| {
        let mut pods = world.pods_of("again");
        pods.find(|pod| pod.name == "again-worker-1")
            .and_then(|pod| pod.node.clone())
    });
    let lost = lost.ok_or_else(|| anyhow::anyhow!("again-worker-1 has no node"))?;
    stack.cordon(&lost, true).await?;
    stack.delete_pod("again-worker-1").await?;
    stack
        .wait_world(PATIENCE, "the worker on another host", |world| {
            let bound = world.pods_of("again").filter(|pod| pod.is_bound_and_live());
            let bound: Vec<&String> = bound.filter_map(|pod| pod.node.as_ref()).collect();
            bound.len() == 3 && !bound.contains(&&lost)
        })
        .await?;
    let after = stack.nodes_of("again");
    assert_eq!(counts(&after).0.len(), 3, "{nodes:?}, then {after:?}");
    stack.cordon(&lost, false).await?;
    stack.end_job("again").await
}
