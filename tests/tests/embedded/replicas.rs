//! Two pairs of Muster and kube-scheduler, of which one leads: what becomes of gangs when it does not
//! any more.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use muster_embedded::value;
use muster_kubernetes::names;
use muster_scheduler::config::Config;
use muster_scheduler::gate;
use muster_scheduler::scheduler::Ended;
use muster_scheduler::span::Span;
use muster_tests::jobs::{Job, Role};
use muster_tests::replicas::{FAILOVER_MAX, LEASES, Replicas};
use muster_tests::sim::{NODES, PODS, bound};
use serde_json::json;
use tokio::time::Instant;

use super::{MINUTE, paused};

const PAIRS: [(&str, SignedDuration); 2] =
    [("a", SignedDuration::ZERO), ("b", SignedDuration::ZERO)];

async fn two(seed: u64) -> anyhow::Result<Replicas> {
    Replicas::start(seed, 4, &PAIRS, Config::default()).await
}

/// Four workers with two GPUs each: the whole cluster has room for four of these.
fn job(name: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", 4, 2)])
}

async fn runs(replicas: &Replicas, name: &str) -> anyhow::Result<Duration> {
    replicas.cluster.apply_yaml(&job(name).yaml())?;
    replicas.until_bound(&format!("{name}-worker-"), 4).await
}

/// A gang runs under the first leader; then `fault`; then the next gang must be bound in time, by `b`.
async fn taken_over(
    replicas: &mut Replicas,
    fault: impl AsyncFnOnce(&mut Replicas) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    runs(replicas, "before").await?;
    ensure!(replicas.working() == ["a"], "{:?}", replicas.working());
    let started = Instant::now();
    fault(replicas).await?;
    runs(replicas, "after").await?;
    let took = started.elapsed();
    ensure!(took <= FAILOVER_MAX, "{took:?}\n{}", replicas.picture());
    ensure!(
        replicas.leads("b") && replicas.works("b"),
        "{}",
        replicas.picture()
    );
    ensure!(
        bound(&replicas.cluster, "before-worker-").len() == 4,
        "it runs on"
    );
    Ok(())
}

#[test]
fn l5_the_other_pair_takes_over_when_the_node_of_the_leader_dies() -> anyhow::Result<()> {
    paused(async {
        let mut replicas = two(1).await?;
        taken_over(&mut replicas, async |replicas| {
            replicas.kill_pair("a").await
        })
        .await?;
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// The kube-scheduler of the dead Muster goes on asking nobody. When its Muster is back it follows, and
/// so does that kube-scheduler.
#[test]
fn a_kube_scheduler_whose_muster_has_died_ends_when_its_muster_follows() -> anyhow::Result<()> {
    paused(async {
        let mut replicas = two(2).await?;
        taken_over(&mut replicas, async |replicas| {
            replicas.kill_muster("a").await
        })
        .await?;
        replicas.start_muster("a")?;
        let closed = || replicas.holder(&names::kube_scheduler_lease("a")) == gate::CLOSED;
        replicas
            .until_true("only b works", || closed() && replicas.working() == ["b"])
            .await?;
        runs(&replicas, "last").await?;
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// The container of Muster crashes and is started again in its Pod: it need not wait for its own Lease,
/// and its kube-scheduler goes on.
#[test]
fn a_muster_that_is_started_again_in_its_pod_leads_at_once() -> anyhow::Result<()> {
    paused(async {
        let mut replicas = two(3).await?;
        runs(&replicas, "before").await?;
        let started = Instant::now();
        replicas.kill_muster("a").await?;
        replicas.start_muster("a")?;
        runs(&replicas, "after").await?;
        ensure!(
            started.elapsed() < Duration::from_secs(8),
            "{:?}",
            started.elapsed()
        );
        ensure!(replicas.leads("a") && replicas.working() == ["a"]);
        replicas.judge().await?;
        replicas.stop().await
    })
}

#[test]
fn the_other_pair_takes_over_when_the_leader_is_cut_off() -> anyhow::Result<()> {
    paused(async {
        let mut replicas = two(4).await?;
        taken_over(&mut replicas, async |replicas| {
            replicas.net.cut("a", true);
            Ok(())
        })
        .await?;
        ensure!(!replicas.leads("a"));
        // It has ended in all but this: it reads its Lease once more, to see whether it went back meanwhile.
        replicas.net.cut("a", false);
        let ended = replicas.ended("a").await?;
        ensure!(ended == Ended::LeadershipLost, "{ended}");
        replicas.start_muster("a")?;
        replicas.until_heard().await?;
        replicas
            .until_true("only b works", || replicas.working() == ["b"])
            .await?;
        taken_back(&mut replicas).await?;
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// What has followed for a while knows as much as one that has led.
async fn taken_back(replicas: &mut Replicas) -> anyhow::Result<()> {
    let started = Instant::now();
    replicas.kill_pair("b").await?;
    runs(replicas, "back").await?;
    let took = started.elapsed();
    ensure!(took <= FAILOVER_MAX, "{took:?}\n{}", replicas.picture());
    Ok(())
}

#[test]
fn clocks_that_differ_by_an_hour_neither_hasten_nor_delay_the_next_leader() -> anyhow::Result<()> {
    for (mine, other) in [(1, -1), (-1, 1)] {
        paused(async {
            let pairs = [
                ("a", SignedDuration::from_hours(mine)),
                ("b", SignedDuration::from_hours(other)),
            ];
            let mut replicas = Replicas::start(5, 4, &pairs, Config::default()).await?;
            replicas.pass(MINUTE * 3).await;
            ensure!(
                replicas.leads("a") && !replicas.leads("b"),
                "{}",
                replicas.picture()
            );
            taken_over(&mut replicas, async |replicas| {
                replicas.kill_pair("a").await
            })
            .await?;
            replicas.judge().await?;
            replicas.stop().await
        })?;
    }
    Ok(())
}

/// The leader is halted with a Binding on its way, which arrives when the next leader has planned the gang
/// anew, elsewhere.
#[test]
fn f14_a_binding_of_the_leader_before_arrives_too_late_and_is_refused() -> anyhow::Result<()> {
    paused(async {
        let mut config = Config::default();
        // The request is on its way for as long as that, and nobody gives it up.
        config.writes.attempt_timeout = Span::secs(100);
        config.writes.deadline = Span::secs(100);
        let replicas = Replicas::start(6, 5, &PAIRS, config).await?;
        replicas.net.hold_binding("a", Duration::from_secs(60));
        let wide = Job::new("wide", vec![Role::new("Worker", 1, 8)]);
        replicas.cluster.apply_yaml(&wide.yaml())?;
        replicas
            .until_true("a Binding on its way", || replicas.net.held_pod().is_some())
            .await?;
        let planned = planned_node(&replicas).unwrap_or_default();
        ensure!(planned.starts_with("gpu-"), "planned on {planned}");
        replicas.net.cut("a", true);
        let cordon = json!({"spec": {"unschedulable": true}});
        replicas.cluster.patch(NODES, "", &planned, "", &cordon)?;
        replicas.until_leads("b").await?;
        replicas.until_bound("wide-", 1).await?;
        let node = bound(&replicas.cluster, "wide-").into_values().next();
        ensure!(replicas.net.late_code().is_none(), "it is still on its way");
        ensure!(
            node.as_ref().is_some_and(|node| *node != planned),
            "{node:?}"
        );
        replicas.pass(MINUTE).await;
        ensure!(
            replicas.net.late_code() == Some(409),
            "{:?}",
            replicas.net.late_code()
        );
        let after = bound(&replicas.cluster, "wide-").into_values().next();
        ensure!(after == node, "{after:?}");
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// The same, and the next leader has planned but not bound: its kube-scheduler has not come yet.
#[test]
fn f14_a_late_binding_is_refused_before_the_next_leader_has_bound_anything() -> anyhow::Result<()> {
    paused(async {
        let mut config = Config::default();
        config.writes.attempt_timeout = Span::secs(100);
        config.writes.deadline = Span::secs(100);
        let mut replicas = Replicas::start(7, 5, &PAIRS, config).await?;
        replicas.net.hold_binding("a", Duration::from_secs(45));
        let wide = Job::new("wide", vec![Role::new("Worker", 1, 8)]);
        replicas.cluster.apply_yaml(&wide.yaml())?;
        replicas
            .until_true("a Binding on its way", || replicas.net.held_pod().is_some())
            .await?;
        replicas.kill_kube_scheduler("b").await?;
        replicas.net.cut("a", true);
        replicas
            .until_true("a late Binding's answer", || {
                replicas.net.late_code().is_some()
            })
            .await?;
        ensure!(replicas.leads("b"), "{}", replicas.picture());
        ensure!(
            replicas.net.late_code() == Some(409),
            "{:?}",
            replicas.net.late_code()
        );
        ensure!(bound(&replicas.cluster, "wide-").is_empty());
        replicas.start_kube_scheduler("b")?;
        replicas.until_bound("wide-", 1).await?;
        replicas.judge().await?;
        replicas.stop().await
    })
}

fn planned_node(replicas: &Replicas) -> Option<String> {
    let pod = replicas.net.held_pod()?;
    let pod = replicas.cluster.get(PODS, "default", &pod)?;
    let terms = pod.pointer(
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0",
    )?;
    let node = terms.pointer("/matchFields/0/values/0")?;
    Some(node.as_str()?.to_owned())
}

/// A leader without a kube-scheduler is of no use: the other pair leads after a minute.
#[test]
fn a_leader_whose_kube_scheduler_does_not_come_back_gives_the_leadership_away() -> anyhow::Result<()>
{
    paused(async {
        let mut replicas = two(8).await?;
        runs(&replicas, "before").await?;
        replicas.kill_kube_scheduler("a").await?;
        let ended = replicas.ended("a").await?;
        ensure!(ended == Ended::Deserted, "{ended}");
        replicas.start_muster("a")?;
        replicas.until_leads("b").await?;
        runs(&replicas, "after").await?;
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// A kube-scheduler that is killed and started again need not wait until its Lease expires.
#[test]
fn a_kube_scheduler_that_is_started_again_is_let_in_within_seconds() -> anyhow::Result<()> {
    paused(async {
        let mut replicas = two(9).await?;
        runs(&replicas, "before").await?;
        let started = Instant::now();
        replicas.kill_kube_scheduler("a").await?;
        replicas.start_kube_scheduler("a")?;
        runs(&replicas, "after").await?;
        ensure!(
            started.elapsed() < Duration::from_secs(15),
            "{:?}",
            started.elapsed()
        );
        ensure!(replicas.leads("a"));
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// Each pair is replaced by a new one while jobs come, as a rolling update does it.
#[test]
fn a_rolling_update_starts_gangs_throughout() -> anyhow::Result<()> {
    paused(async {
        let started = Replicas::start_with_room(10, 16, &PAIRS, &["c", "d"], Config::default());
        let mut replicas = started.await?;
        for (at, (new, old)) in [("c", "a"), ("d", "b")].into_iter().enumerate() {
            replicas.add_pair(new).await?;
            replicas
                .cluster
                .apply_yaml(&slow(&format!("held-{at}")).yaml())?;
            replicas.pass(Duration::from_secs(2)).await;
            let led = replicas.leads(old);
            replicas.stop_pair(old).await?;
            for number in 0..4 {
                let name = format!("roll-{at}-{number}");
                let took = runs(&replicas, &name).await?;
                ensure!(
                    took < Duration::from_secs(8),
                    "{name}: {took:?}, {old} led: {led}"
                );
                replicas.pass(Duration::from_secs(1)).await;
            }
            replicas
                .until_bound(&format!("held-{at}-worker-"), 8)
                .await?;
        }
        ensure!(replicas.working().len() == 1, "{:?}", replicas.working());
        let holder = replicas.holder("muster-scheduler");
        ensure!(
            holder.starts_with("c@") || holder.starts_with("d@"),
            "{holder}"
        );
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// A gang that stands at the barrier for seconds.
fn slow(name: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", 8, 1)])
}

/// Muster's Lease is deleted under a leader that has written nothing yet: the next one has a higher epoch
/// all the same, and the leader before ends.
#[test]
fn a_lease_that_is_deleted_gives_no_epoch_twice() -> anyhow::Result<()> {
    paused(async {
        let mut replicas = two(11).await?;
        let first = epoch(&replicas);
        replicas
            .cluster
            .delete(LEASES, names::NAMESPACE, "muster-scheduler")?;
        let ended = replicas.ended("a").await?;
        ensure!(ended == Ended::LeadershipLost, "{ended}");
        replicas.until_leads("b").await?;
        ensure!(
            epoch(&replicas) > first,
            "{first}, then {}",
            epoch(&replicas)
        );
        runs(&replicas, "after").await?;
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// For a moment two replicas lead, while jobs come.
#[test]
fn f15_jobs_that_come_while_two_replicas_lead_start_once() -> anyhow::Result<()> {
    paused(async {
        let mut replicas = two(12).await?;
        replicas
            .cluster
            .delete(LEASES, names::NAMESPACE, "muster-scheduler")?;
        for number in 0..15 {
            let one = Job::new(&format!("stream-{number}"), vec![Role::new("Worker", 2, 1)]);
            replicas.cluster.apply_yaml(&one.yaml())?;
            replicas.pass(Duration::from_millis(200)).await;
        }
        let ended = replicas.ended("a").await?;
        ensure!(ended == Ended::LeadershipLost, "{ended}");
        replicas.until_bound("stream-", 30).await?;
        replicas.judge().await?;
        replicas.stop().await
    })
}

/// The leader dies after each of its writes in turn, and the pair that has followed it takes the gangs over.
#[test]
fn f13_whatever_the_leader_has_written_its_follower_goes_on_from_there() -> anyhow::Result<()> {
    let mut tried = 0;
    for writes in 0..24 {
        let mut at = None;
        paused(async {
            let mut replicas = two(100 + u64::from(writes)).await?;
            runs(&replicas, "before").await?;
            replicas.net.cut_after("a", writes);
            replicas.cluster.apply_yaml(&job("gang").yaml())?;
            replicas.cluster.apply_yaml(&gated())?;
            replicas.pass(Duration::from_secs(5)).await;
            at = replicas.net.cut_at();
            if at.is_some() {
                replicas.kill_pair("a").await?;
            }
            replicas.until_bound("gang-worker-", 4).await?;
            replicas.until_bound("loose-", 3).await?;
            ensure!(
                bound(&replicas.cluster, "before-worker-").len() == 4,
                "it runs on"
            );
            replicas.judge().await?;
            replicas.stop().await
        })
        .with_context(|| format!("after {writes} writes, at {at:?}"))?;
        if at.is_none() {
            break;
        }
        tried += 1;
    }
    ensure!(tried >= 14, "only {tried} writes");
    println!("{tried} writes tried");
    Ok(())
}

/// Three pods that belong together by a label.
fn gated() -> String {
    let pod = |at: u32| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: loose-{at}\n  labels: {{muster.dev/gang: loose, muster.dev/index: \"{at}\"}}\n  \
             annotations: {{muster.dev/gang-size: \"3\"}}\nspec:\n  schedulerName: muster\n  tolerations: [{{key: nvidia.com/gpu, operator: Exists}}]\n  \
             containers: [{{name: main, image: x, resources: {{limits: {{nvidia.com/gpu: 4}}}}}}]\n"
        )
    };
    let pods: Vec<String> = (0..3).map(pod).collect();
    pods.join("---\n")
}

fn epoch(replicas: &Replicas) -> u64 {
    let lease = replicas
        .cluster
        .get(LEASES, names::NAMESPACE, "muster-scheduler");
    let epoch = lease.map(|lease| {
        value::text(&lease, &["metadata", "annotations", "muster.dev/epoch"]).to_owned()
    });
    epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}
