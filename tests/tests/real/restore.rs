//! etcd is restored from a snapshot, as the guide for operators says: what was written after the backup is gone, what was there before
//! has the versions that it had, and whatever is written from then on has versions far above all that there were. Whoever leads next
//! begins frozen, reads everything afresh, and goes on by itself; also where nobody is left who remembers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt as _;
use kube::api::Api;
use muster_control_plane::{Program, TrainingOperatorOptions};
use muster_scheduler::frozen::RESTORED_ANNOTATION;
use muster_tests::acts::PATIENCE;
use muster_tests::guide::{self, Operator};
use muster_tests::jobs::{Job, Role};
use muster_tests::pairs::Pairs;

/// Longest from the restore to the next bound gang: a Lease, two looks of the auditor 15 s apart, and a loaded machine.
const RESTORE_MAX: Duration = Duration::from_secs(180);

/// How far the guide lets versions leap, so that none comes twice.
const BUMP: u64 = 1_000_000_000;

fn job(name: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", 2, 8)])
}

/// What `etcdctl snapshot save` has saved.
fn snapshot(pairs: &Pairs) -> PathBuf {
    pairs.cluster.folder().join("backup.db")
}

/// The store is what it was at the time of the backup, by the command of the guide for operators; its clients but Muster and its
/// kube-scheduler are started again.
async fn restore(pairs: &Pairs) -> anyhow::Result<()> {
    let flags = guide::flags("etcdutl snapshot restore")?;
    let cluster = &pairs.cluster;
    cluster.restore_snapshot(&snapshot(pairs), &flags).await?;
    for program in [
        Program::Etcd,
        Program::KubeApiserver,
        Program::KubeControllerManager,
        Program::Kwok,
        Program::TrainingOperator,
    ] {
        cluster.kill(&program)?;
        cluster.start(&program).await?;
    }
    Ok(())
}

async fn lease(pairs: &Pairs) -> Option<Lease> {
    let leases: Api<Lease> = Api::namespaced(pairs.cluster.admin(), "muster-system");
    leases.get_opt("muster-scheduler").await.ok().flatten()
}

async fn is_marked(pairs: &Pairs) -> Option<bool> {
    let lease = lease(pairs).await?;
    Some(lease.annotations().contains_key(RESTORED_ANNOTATION))
}

fn version(lease: &Lease) -> u64 {
    let version = lease.resource_version();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// Lines of both Musters' logs that say this.
fn said(pairs: &Pairs, words: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for name in ["a", "b"] {
        let [muster, _] = pairs.programs(name)?;
        let log = std::fs::read_to_string(pairs.cluster.log(&muster))?;
        let lines = log.lines().filter(|line| line.contains(words));
        found.extend(lines.map(str::to_owned));
    }
    Ok(found)
}

/// Does it while the pairs are kept running, as kubelets keep them: on a loaded machine the store may be down for longer than a
/// Lease lasts, and a pair that has ended remembers nothing.
async fn kept_running<T>(
    pairs: &Pairs,
    what: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let done = tokio::select! {
        kept = pairs.keep_running("a") => kept.and_then(|()| anyhow::bail!("nobody starts a")),
        kept = pairs.keep_running("b") => kept.and_then(|()| anyhow::bail!("nobody starts b")),
        done = what => done,
    };
    done.inspect_err(|_| pairs.cluster.keep_logs())
}

/// A gang before the backup and one after it, and a Lease that was renewed since.
async fn live_on(pairs: &Pairs) -> anyhow::Result<()> {
    pairs.run(&job("before"), PATIENCE).await?;
    pairs.cluster.save_snapshot(&snapshot(pairs)).await?;
    let backed_up = lease(pairs).await.map_or(0, |lease| version(&lease));
    pairs.run(&job("after"), PATIENCE).await?;
    // A backup is older than a renewal of the Lease, or nothing of it tells that it is one. The leader renews every two seconds,
    // whoever waits looks every second.
    let renewed = async || {
        let lease = lease(pairs).await;
        lease.is_some_and(|lease| version(&lease) > backed_up)
    };
    pairs
        .wait_until("the Lease to be renewed after the backup", renewed)
        .await?;
    pairs.settled().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_cluster_begins_frozen_and_goes_on_once_everything_was_read_afresh()
-> anyhow::Result<()> {
    let operator = TrainingOperatorOptions::default();
    let mut pairs = Pairs::start_of(&["a", "b"], 4, "", PATIENCE, &operator).await?;
    pairs.until_jobs_are_held().await?;
    kept_running(&pairs, async {
        live_on(&pairs).await?;
        restore(&pairs).await
    })
    .await?;
    pairs.record_afresh().await?;
    kept_running(&pairs, goes_on(&pairs)).await?;
    let history = pairs.recorder.caught_up(PATIENCE).await?;
    assert_eq!(history.over_commitments(), Vec::new());
    eprintln!("step: once more, with nobody left who remembers");
    for name in ["a", "b"] {
        for program in pairs.programs(name)? {
            pairs.cluster.kill(&program)?;
        }
    }
    restore(&pairs).await?;
    pairs.record_afresh().await?;
    nobody_remembers(&pairs).await?;
    let history = pairs.recorder.caught_up(PATIENCE).await?;
    assert_eq!(history.over_commitments(), Vec::new());
    Ok(())
}

async fn goes_on(pairs: &Pairs) -> anyhow::Result<()> {
    let since = Instant::now();
    let marked = async || is_marked(pairs).await == Some(true);
    pairs
        .wait_until("the Lease to say that the cluster was restored", marked)
        .await?;
    eprintln!("step: noticed after {:.1?}", since.elapsed());
    let written = lease(pairs).await.map_or(0, |lease| version(&lease));
    anyhow::ensure!(written > BUMP, "the Lease's version is {written}");
    // training-operator may make the pods of a job anew that it still remembers. Nobody binds them, and the garbage collector
    // takes them.
    let there = || {
        pairs
            .recorder
            .look(|world| (world.bound_of("before"), world.bound_of("after")))
    };
    assert_eq!(there(), (2, 0), "the store is what it was");
    let gone = async || pairs.recorder.look(|world| world.pods_of("after").count()) == 0;
    pairs
        .wait_until("what came after the backup to be gone", gone)
        .await?;
    assert_eq!(there(), (2, 0));
    let next = job("next");
    let gang = pairs.run(&next, RESTORE_MAX);
    let (bound, ()) = tokio::try_join!(gang, async {
        // While it is marked nothing is bound.
        while is_marked(pairs).await != Some(false) {
            let bound = pairs.recorder.look(|world| world.bound_of("next"));
            // It may have been taken off between the two looks.
            let still = is_marked(pairs).await == Some(true);
            anyhow::ensure!(bound == 0 || !still, "bound while frozen");
            anyhow::ensure!(since.elapsed() < RESTORE_MAX, "it stays frozen");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        eprintln!("step: goes on after {:.1?}", since.elapsed());
        Ok(())
    })?;
    eprintln!(
        "step: next gang bound after {:.1?}",
        bound.duration_since(since)
    );
    let kept = pairs.recorder.look(|world| world.bound_of("before"));
    assert_eq!(kept, 2, "what ran before the backup runs on");
    anyhow::ensure!(!said(pairs, "was restored from a backup")?.is_empty());
    let found = said(pairs, "what is known was compared with what is reported")?;
    anyhow::ensure!(
        found
            .iter()
            .any(|line| line.contains("gpus_of_unknown_pods")),
        "{found:?}"
    );
    anyhow::ensure!(said(pairs, "an invariant is broken")?.is_empty());
    Ok(())
}

/// All replicas were killed before. The first write of the Lease tells nevertheless; an operator looks, and lets it go on at once.
async fn nobody_remembers(pairs: &Pairs) -> anyhow::Result<()> {
    assert_eq!(is_marked(pairs).await, Some(false), "nobody has said it");
    let operator = Operator::new(&pairs.cluster, "no page")?;
    let look = async {
        let marked = async || is_marked(pairs).await == Some(true);
        pairs
            .wait_until("the Lease to say that the cluster was restored", marked)
            .await?;
        let bound = pairs.recorder.look(|world| world.bound_of("before"));
        assert_eq!(bound, 2, "what ran before the backup runs on");
        let [show, lift] = guide::commands("After etcd was restored")?[..] else {
            anyhow::bail!("other commands than this test knows");
        };
        let why = operator.run(show).await?;
        anyhow::ensure!(why.contains("was seen, and then 1000"), "{why}");
        operator.run(lift).await?;
        pairs.run(&job("next"), PATIENCE).await
    };
    kept_running(pairs, look).await?;
    Ok(())
}
