//! Agents that report what is not so: it gives nobody anything, and who runs the cluster is told.

use std::time::Duration;

use anyhow::Context as _;
use muster_agent::scenario::FaultEvent;
use muster_embedded::value;
use muster_tests::jobs::{Job, Role};
use muster_tests::sim::{Sim, SimOptions, bound, phase_of};
use serde_json::Value;

use super::{MINUTE, paused};

/// UUIDs of a node's GPUs, by index.
fn uuids(sim: &Sim, node: &str) -> anyhow::Result<Vec<(u32, String)>> {
    let devices = sim.agents.with(|fleet| {
        let devices = fleet.devices(node)?.iter();
        let uuids = devices.map(|device| (device.gpu, device.uuid.clone()));
        anyhow::Ok(uuids.collect())
    });
    devices.context("the fleet runs")?
}

/// Waits until a gauge has a value; they are looked at once a second.
async fn shows(sim: &Sim, gauge: &str, value: u64) -> anyhow::Result<()> {
    for _ in 0..60 {
        if sim.counted(gauge) == value {
            return Ok(());
        }
        sim.pass(Duration::from_secs(1)).await;
    }
    anyhow::bail!("{gauge} is {}: should be {value}", sim.counted(gauge))
}

/// Events about Nodes: node, type and message.
fn told_of_nodes(sim: &Sim) -> Vec<(String, String, String)> {
    let events = sim.cluster.list(("", "events")).into_iter();
    let events = events.filter(|event| value::text(event, &["involvedObject", "kind"]) == "Node");
    let text = |event: &Value, path: &[&str]| value::text(event, path).to_owned();
    let mut told: Vec<_> = events
        .filter(|event| value::text(event, &["source", "component"]) == "muster")
        .map(|event| {
            let node = text(&event, &["involvedObject", "name"]);
            (node, text(&event, &["type"]), text(&event, &["message"]))
        })
        .collect();
    told.sort();
    told
}

/// A node that was made of a copy of another one's disk, or whose agent lies. Nobody was told why its GPUs stood idle.
#[test]
fn abuse_gang_of_eight_fits_on_neither_node_of_a_clone_and_both_are_told_of() -> anyhow::Result<()>
{
    paused(async {
        let sim = Sim::start(SimOptions::nodes(2)).await?;
        for (gpu, uuid) in uuids(&sim, "gpu-000")? {
            sim.agents
                .inject("gpu-001", FaultEvent::CloneUuid { gpu, uuid })?;
        }
        shows(&sim, "muster_devices_cloned", 8).await?;
        sim.apply(&Job::new("eight", vec![Role::new("Worker", 1, 8)]).yaml())?;
        sim.pass(MINUTE).await;
        anyhow::ensure!(phase_of(&sim.cluster, "eight") == "Waiting");
        anyhow::ensure!(bound(&sim.cluster, "eight-").is_empty());
        let said = |other: &str| {
            format!(
                "of what the agent reports, 8 GPUs have UUIDs that come from {other} as well: they are given to nobody"
            )
        };
        let warned = |node: &str, other: &str| (node.to_owned(), "Warning".to_owned(), said(other));
        let both = [warned("gpu-000", "gpu-001"), warned("gpu-001", "gpu-000")];
        anyhow::ensure!(told_of_nodes(&sim) == both, "{:?}", told_of_nodes(&sim));
        sim.pass(MINUTE * 10).await;
        anyhow::ensure!(told_of_nodes(&sim).len() == 2, "once");
        sim.agents
            .inject("gpu-001", FaultEvent::Back { gpu: None })?;
        sim.until_phase("eight", "Running").await?;
        shows(&sim, "muster_devices_cloned", 0).await?;
        sim.pass(MINUTE).await;
        anyhow::ensure!(told_of_nodes(&sim).len() == 4, "that it is over");
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

#[test]
fn abuse_devices_beyond_what_the_kubelet_offers_do_not_count_and_are_told_of() -> anyhow::Result<()>
{
    paused(async {
        let sim = Sim::start(SimOptions::nodes(1)).await?;
        for (_, uuid) in uuids(&sim, "gpu-000")?.iter().take(3) {
            sim.cluster
                .kubelet()
                .set_device_health("gpu-000", uuid, false);
        }
        shows(&sim, "muster_devices_beyond_allocatable", 3).await?;
        sim.apply(&Job::new("eight", vec![Role::new("Worker", 1, 8)]).yaml())?;
        sim.apply(&Job::new("five", vec![Role::new("Worker", 1, 5)]).yaml())?;
        sim.until_phase("five", "Running").await?;
        sim.pass(MINUTE).await;
        anyhow::ensure!(phase_of(&sim.cluster, "eight") == "Waiting");
        let told = told_of_nodes(&sim);
        let said =
            "of what the agent reports, 3 GPUs are more than the kubelet offers: they do not count";
        let one = [("gpu-000".to_owned(), "Warning".to_owned(), said.to_owned())];
        anyhow::ensure!(told == one, "{told:?}");
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}
