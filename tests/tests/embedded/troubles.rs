//! What goes wrong around a gang, and what must come of it.

use std::time::Duration;

use anyhow::Context as _;
use muster_embedded::{EmbeddedCluster, value};
use muster_tests::jobs::{Job, Role};
use muster_tests::sim::{
    GANGS, JOBS, NODES, PODS, SOON, Sim, SimOptions, bound, gang_field, phase_of,
};
use serde_json::{Value, json};

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
fn f22_a_job_deleted_at_the_barrier_gives_all_its_room_back() -> anyhow::Result<()> {
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
fn t33_kube_scheduler_killed_at_the_barrier_comes_back_and_the_gang_binds_whole()
-> anyhow::Result<()> {
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

/// Kubelets that stand still admit nothing. When they go on, one finds a device gone that was there
/// when the gang was planned and bound.
#[test]
fn t41_a_member_that_its_kubelet_turns_away_comes_back_on_another_node() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(6)).await?;
        let names: Vec<String> = (0..6).map(|at| format!("gpu-{at:03}")).collect();
        for node in &names {
            sim.cluster.kubelet().set_silent(node, true);
        }
        sim.apply(&wide("train").yaml())?;
        sim.until("all are bound", SOON, |c| bound(c, "train-").len() == 5)
            .await?;
        let node = bound(&sim.cluster, "train-worker-2")["train-worker-2"].clone();
        let before = uid_of(&sim.cluster, "train-worker-2");
        let devices = sim.agents.with(|fleet| {
            let found = fleet.devices(&node);
            found.map(|devices| devices.first().map(|device| device.uuid.clone()))
        });
        let device = devices.context("the fleet runs")??.context("a device")?;
        sim.cluster
            .kubelet()
            .set_device_health(&node, &device, false);
        for node in &names {
            sim.cluster.kubelet().set_silent(node, false);
        }
        sim.until("another one is bound", SOON, |c| {
            uid_of(c, "train-worker-2") != before && bound(c, "train-").len() == 5
        })
        .await?;
        let after = bound(&sim.cluster, "train-worker-2")["train-worker-2"].clone();
        assert_ne!(after, node, "away from the node that turned it away");
        let writes = sim.cluster.api().writes_since(0);
        let turned_away = writes.iter().filter(|write| {
            write
                .line()
                .contains("status.reason=UnexpectedAdmissionError")
        });
        assert_eq!(turned_away.count(), 1);
        sim.until_phase("train", "Running").await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

/// One of two pods that are a gang by a label and fill a node each.
fn half_of(gang: &str, member: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{gang}-{member}"),
            "labels": {"muster.dev/gang": gang},
            "annotations": {"muster.dev/gang-size": "2"}},
        "spec": {"schedulerName": "muster", "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "c", "image": "i",
                "resources": {"limits": {"nvidia.com/gpu": "8"}}}]}})
}

/// Filter calls from the creation of a pod of no gang until a minute after it was bound.
async fn filter_calls_for_a_plain_pod(sim: &Sim) -> anyhow::Result<u64> {
    let before = sim.filter_calls();
    sim.cluster.create(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"},
        "spec": {"schedulerName": "muster", "containers": [{"name": "c", "image": "i"}]}}),
    )?;
    sim.until("the plain pod is bound", SOON, |c| {
        bound(c, "plain").len() == 1
    })
    .await?;
    sim.pass(MINUTE).await;
    Ok(sim.filter_calls() - before)
}

/// A pod that is bound, whoever's it is, wakes every pod that an extender has refused. Gangs that
/// wait are suspended or gated instead of refused, so there is nothing to wake.
#[test]
fn t13_a_bound_pod_wakes_none_of_the_gangs_that_wait() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(2)).await?;
        let fill = Job::new("fill", vec![Role::new("Worker", 2, 8)]);
        sim.apply(&fill.yaml())?;
        sim.until_phase("fill", "Running").await?;
        for at in 0..20 {
            sim.apply(&Job::new(&format!("job-{at:02}"), vec![Role::new("Worker", 8, 8)]).yaml())?;
            for member in 0..2 {
                sim.cluster
                    .create(half_of(&format!("group-{at:02}"), member))?;
            }
        }
        sim.until("all have a reason", SOON, |c| {
            c.list(GANGS).len() == 41
                && (0..20).all(|at| {
                    !gang_field(c, &format!("job-{at:02}"), "reason").is_empty()
                        && !gang_field(c, &format!("label-group-{at:02}"), "reason").is_empty()
                })
        })
        .await?;
        sim.pass(MINUTE).await;
        let calls = filter_calls_for_a_plain_pod(&sim).await?;
        assert_eq!(calls, 1, "Filter calls for one pod");
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

/// Without the policies the pods of waiting gangs exist, and Filter refuses them. Each change of
/// another pod (made, bound, running) wakes each of them once, and no more than once: the text of the
/// refusal stays the same.
#[test]
fn t13_without_policies_a_pod_wakes_each_waiting_one_once_for_each_change() -> anyhow::Result<()> {
    const WAITING: u64 = 40;
    paused(async {
        let sim = Sim::start(SimOptions {
            policies: false,
            // One node stays free: without it kube-scheduler asks no extender.
            ..SimOptions::nodes(3)
        })
        .await?;
        for member in 0..2 {
            sim.cluster.create(half_of("fill", member))?;
        }
        sim.until_phase("label-fill", "Running").await?;
        for at in 0..WAITING {
            let gang = format!("group-{:02}", at / 2);
            sim.cluster.create(half_of(&gang, at % 2))?;
        }
        sim.until("all have a reason", SOON, |c| {
            (0..WAITING / 2).all(|at| {
                gang_field(c, &format!("label-group-{at:02}"), "reason") == "NotEnoughFree"
            })
        })
        .await?;
        sim.pass(10 * MINUTE).await;
        let calls = filter_calls_for_a_plain_pod(&sim).await?;
        println!("{calls} Filter calls for one bound pod, {WAITING} refused ones");
        assert!(calls > WAITING, "the waiting pods are woken: {calls}");
        assert!(calls <= 3 * WAITING + 1, "once for each change: {calls}");
        let before = sim.filter_calls();
        sim.pass(10 * MINUTE).await;
        let later = sim.filter_calls() - before;
        // kube-scheduler looks at what it could not place every five minutes.
        assert!(later <= 3 * WAITING, "and not again and again: {later}");
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}
