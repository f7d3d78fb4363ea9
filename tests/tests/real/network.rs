//! Gangs that ask something of the network: racks and blocks by labels of nodes, on the real control
//! plane, for jobs and for pods.

use muster_control_plane::NodeTemplate;
use muster_tests::acts::PATIENCE;
use muster_tests::gangs::{Gang, Way};
use muster_tests::jobs::{Job, Role};
use muster_tests::stack::{Stack, StackOptions};

const LEVELS: &str =
    "topology: {levels: [{name: block, label: net/block}, {name: rack, label: net/rack}]}\n";

/// Three racks of three nodes; the first two in one block.
fn racks() -> Vec<NodeTemplate> {
    let rack = |name: &str, block: &str| {
        let mut pool = NodeTemplate::gpu_pool(name, 3);
        pool.labels.insert("net/block".into(), block.into());
        pool.labels.insert("net/rack".into(), name.into());
        pool
    };
    vec![rack("r1", "b1"), rack("r2", "b1"), rack("r3", "b2")]
}

/// Racks of nodes, each once.
fn racks_of(mut nodes: Vec<String>) -> Vec<String> {
    for node in &mut nodes {
        node.truncate(2);
    }
    nodes.sort();
    nodes.dedup();
    nodes
}

fn annotated(way: Way, what: &str, count: u32, asked: &[(&str, &str)]) -> Gang {
    let mut gang = way.gang(what, count, 8);
    for (key, value) in asked {
        gang = gang.annotated(&format!("muster.dev/{key}"), value);
    }
    gang
}

#[tokio::test(flavor = "multi_thread")]
async fn gangs_run_in_the_rack_block_or_segments_that_they_ask_for() -> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        pools: racks(),
        config: LEVELS.into(),
        ..StackOptions::default()
    })
    .await?;
    let required = [("required-topology", "rack")];
    let mut first = Vec::new();
    for way in Way::ALL {
        let gang = annotated(way, "rack", 3, &required);
        stack.submit_gang(&gang).await?;
        stack.wait_gang_running(&gang).await?;
        let racks = racks_of(stack.gang_nodes(&gang));
        anyhow::ensure!(racks.len() == 1, "{} runs in {racks:?}", gang.name());
        first.push(gang);
    }
    // Each has a rack of its own: nothing is left for a fourth, and nothing ever is for one of four.
    let fourth = annotated(Way::Job, "fourth", 3, &required);
    stack.submit_gang(&fourth).await?;
    stack.wait_gang_says(&fourth, "NotEnoughFree").await?;
    let wide = annotated(Way::Job, "wide", 4, &required);
    stack.submit_gang(&wide).await?;
    // No want of room, though there is none: no rack ever takes it.
    let says = stack.wait_gang_says(&wide, "TopologyNotMet").await?;
    anyhow::ensure!(
        says.message.contains("needs room for 4 Worker in one rack")
            && says.message.contains("when the cluster is empty for 3"),
        "{}",
        says.message
    );
    for gang in &first[..2] {
        stack.end_gang(gang).await?;
    }
    stack.wait_gang_running(&fourth).await?;
    stack.end_gang(&fourth).await?;
    stack.end_gang(&wide).await?;
    let block = annotated(
        Way::Job,
        "block",
        4,
        &[
            ("required-topology", "block"),
            ("preferred-topology", "rack"),
        ],
    );
    for gang in &first[2..] {
        stack.end_gang(gang).await?;
    }
    stack.submit_gang(&block).await?;
    stack.wait_gang_running(&block).await?;
    let racks = racks_of(stack.gang_nodes(&block));
    anyhow::ensure!(racks == ["r1", "r2"], "the block of two racks: {racks:?}");
    let wrong = annotated(Way::Job, "wrong", 2, &[("required-topology", "shelf")]);
    stack.submit_gang(&wrong).await?;
    let says = stack.wait_gang_says(&wrong, "InvalidWorkload").await?;
    anyhow::ensure!(says.message.contains("block, rack"), "{}", says.message);
    stack.end_gang(&wrong).await?;
    segments(&stack, &block).await?;
    stack.judge().await?;
    Ok(())
}

/// A worker that is lost comes back to its segment's rack.
async fn segments(stack: &Stack, before: &Gang) -> anyhow::Result<()> {
    stack.end_gang(before).await?;
    let job = Job::new("segments", vec![Role::new("Worker", 6, 8)])
        .annotation("muster.dev/segment-size", "2")
        .annotation("muster.dev/segment-topology", "rack");
    stack.submit(&job).await?;
    stack.wait_bound("segments", 6, PATIENCE).await?;
    let node_of = |index: u32| {
        let name = format!("segments-worker-{index}");
        stack.recorder.look(|world| {
            let mut pods = world.pods.values();
            let live = pods.find(|pod| pod.name == name && pod.is_bound_and_live());
            live.and_then(|pod| pod.node.clone()).unwrap_or_default()
        })
    };
    let rack_of = |index| node_of(index).chars().take(2).collect::<String>();
    for first in [0, 2, 4] {
        anyhow::ensure!(rack_of(first) == rack_of(first + 1), "segment of {first}");
    }
    let rack = rack_of(3);
    let pod = "segments-worker-3";
    stack
        .cluster
        .kubectl(&["delete", "pod", pod, "--now"])
        .await?;
    stack.wait_bound("segments", 6, PATIENCE).await?;
    anyhow::ensure!(rack_of(3) == rack, "{} and {rack}", node_of(3));
    Ok(())
}
