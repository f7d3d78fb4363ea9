//! What goes wrong around a gang, and what must come of it.

use std::time::Duration;

use anyhow::Context as _;
use muster_embedded::{EmbeddedCluster, value};
use muster_tests::sim::{
    GANGS, JOBS, NODES, PODS, SOON, Sim, SimOptions, bound, gang_field, phase_of,
};
use serde_json::json;

use super::{MINUTE, paused, slow_operator, template_is_clean, train, wide};

fn uid_of(cluster: &EmbeddedCluster, pod: &str) -> String {
    cluster
        .get(PODS, "default", pod)
        .map(|pod| value::uid(&pod).to_owned())
        .unwrap_or_default()
}

/// Nodes of the members in a gang's plan.
fn planned(cluster: &EmbeddedCluster, gang: &str) -> Vec<String> {
    let gang = cluster.get(GANGS, "default", gang).unwrap_or_default();
    value::items(&gang, &["status", "members"])
        .iter()
        .map(|member| value::text(member, &["node"]).to_owned())
        .collect()
}

fn suspend(sim: &Sim, job: &str, on: bool) -> anyhow::Result<()> {
    let patch = json!({"spec": {"runPolicy": {"suspend": on}}});
    sim.cluster.patch(JOBS, "default", job, "", &patch)?;
    Ok(())
}

#[test]
fn a_gpu_fails_under_a_running_gang_and_its_member_comes_back_elsewhere() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(6)).await?;
        sim.apply(&wide("train").yaml())?;
        sim.until_phase("train", "Running").await?;
        let node = bound(&sim.cluster, "train-worker-2")["train-worker-2"].clone();
        let before = uid_of(&sim.cluster, "train-worker-2");
        // Kubelets tell who holds what when a pod has started.
        sim.pass(Duration::from_secs(5)).await;
        let victim = sim.fail_gpu(&node, 3)?.context("the GPU is held")?;
        assert_eq!(victim, "train-worker-2");
        sim.until("the member is back", SOON, |c| {
            uid_of(c, "train-worker-2") != before && bound(c, "train-").len() == 5
        })
        .await?;
        let after = bound(&sim.cluster, "train-worker-2")["train-worker-2"].clone();
        assert_ne!(after, node, "away from the node that failed it");
        sim.until_phase("train", "Running").await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

#[test]
fn a_node_cordoned_between_plan_and_bind_is_planned_around() -> anyhow::Result<()> {
    paused(async {
        let options = SimOptions {
            operator: slow_operator(),
            ..SimOptions::nodes(6)
        };
        let sim = Sim::start(options).await?;
        sim.apply(&wide("train").yaml())?;
        sim.until("some members wait at the barrier", SOON, |c| {
            phase_of(c, "train") == "Starting" && c.list(PODS).len() == 2
        })
        .await?;
        let nodes = planned(&sim.cluster, "train");
        assert_eq!(nodes.len(), 5);
        let cordoned = nodes.last().context("five nodes")?;
        let cordon = json!({"spec": {"unschedulable": true}});
        sim.cluster.patch(NODES, "", cordoned, "", &cordon)?;
        sim.until("all are bound", MINUTE * 10, |c| {
            bound(c, "train-").len() == 5
        })
        .await?;
        let used = bound(&sim.cluster, "train-");
        assert!(used.values().all(|node| node != cordoned), "{used:?}");
        sim.until_phase("train", "Running").await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

#[test]
fn a_worker_deleted_and_made_again_under_its_name_joins_its_gang() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::default()).await?;
        sim.apply(&train("train").yaml())?;
        sim.until_phase("train", "Running").await?;
        let before = uid_of(&sim.cluster, "train-worker-1");
        sim.cluster.delete(PODS, "default", "train-worker-1")?;
        sim.until("another one is bound", SOON, |c| {
            uid_of(c, "train-worker-1") != before && bound(c, "train-").len() == 5
        })
        .await?;
        sim.until_phase("train", "Running").await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

#[test]
fn a_job_suspended_by_its_user_rests_and_runs_again_when_resumed() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::default()).await?;
        sim.apply(&train("train").yaml())?;
        sim.until_phase("train", "Running").await?;
        suspend(&sim, "train", true)?;
        sim.until_phase("train", "Suspended").await?;
        sim.until("nothing is left", SOON, |c| {
            c.list(PODS).is_empty() && template_is_clean(c, "train")
        })
        .await?;
        sim.pass(MINUTE * 5).await;
        assert_eq!(phase_of(&sim.cluster, "train"), "Suspended");
        assert!(sim.cluster.list(PODS).is_empty(), "it stays suspended");
        suspend(&sim, "train", false)?;
        sim.until_phase("train", "Running").await?;
        assert_eq!(bound(&sim.cluster, "train-").len(), 5);
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

#[test]
fn a_job_deleted_at_the_barrier_gives_all_its_room_back() -> anyhow::Result<()> {
    paused(async {
        let options = SimOptions {
            operator: slow_operator(),
            ..SimOptions::nodes(5)
        };
        let sim = Sim::start(options).await?;
        sim.apply(&wide("train").yaml())?;
        sim.until("some members wait at the barrier", SOON, |c| {
            phase_of(c, "train") == "Starting" && c.list(PODS).len() == 3
        })
        .await?;
        sim.apply(&wide("next").yaml())?;
        sim.until("a reason", SOON, |c| {
            gang_field(c, "next", "reason") == "NotEnoughFree"
        })
        .await?;
        sim.cluster.delete(JOBS, "default", "train")?;
        sim.until("the next one runs", MINUTE * 5, |c| {
            bound(c, "next-").len() == 5
        })
        .await?;
        assert!(sim.cluster.get(GANGS, "default", "train").is_none());
        let history = sim.judge().await?;
        let early = history.binds().into_iter();
        let early = early.filter(|(_, pod)| pod.name.starts_with("train-"));
        assert_eq!(early.count(), 0, "none of the deleted job was ever bound");
        sim.stop().await;
        Ok(())
    })
}

#[test]
fn kube_scheduler_killed_at_the_barrier_comes_back_and_the_gang_binds_whole() -> anyhow::Result<()>
{
    paused(async {
        let options = SimOptions {
            operator: slow_operator(),
            ..SimOptions::nodes(6)
        };
        let mut sim = Sim::start(options).await?;
        sim.apply(&wide("train").yaml())?;
        sim.until("some members wait at the barrier", SOON, |c| {
            c.list(PODS).len() == 3
        })
        .await?;
        sim.pass(Duration::from_secs(3)).await;
        assert_eq!(bound(&sim.cluster, "train-").len(), 0);
        sim.restart_kube_scheduler()?;
        sim.until("all are bound", MINUTE * 5, |c| {
            bound(c, "train-").len() == 5
        })
        .await?;
        sim.until_phase("train", "Running").await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}
