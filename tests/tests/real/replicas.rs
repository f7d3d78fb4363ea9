//! Two pairs of Muster and an unmodified kube-scheduler on the real control plane: whatever befalls the one
//! that leads, the other goes on.

use std::time::{Duration, Instant};

use muster_tests::jobs::{Job, Role};
use muster_tests::pairs::{Fault, Pairs};

/// A Lease that expires while a test waits for it. The failover times of the production Lease are measured by
/// `--bin failover`.
const CONFIG: &str = "lease: {duration: 8s, renewDeadline: 6s, retryPeriod: 1s}\n";
/// Longest time from a fault to the next bound gang, with room for a loaded machine.
const FAILOVER_MAX: Duration = Duration::from_secs(40);
/// Longest time in which a gang starts while pairs are replaced one by one, with room for a loaded machine.
const ROLLING_MAX: Duration = Duration::from_secs(20);

fn job(name: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", 4, 1)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gangs_start_whatever_befalls_the_pair_that_leads() -> anyhow::Result<()> {
    let pairs = Pairs::start(4, CONFIG, FAILOVER_MAX).await?;
    pairs.until_jobs_are_held().await?;
    pairs.run(&job("first"), FAILOVER_MAX).await?;
    // The death of a node is no more than both of these at once, and measured by `--bin failover`.
    for fault in [Fault::MusterKilled, Fault::MusterHalted, Fault::CutOff] {
        eprintln!("step: {}", fault.words());
        strike(&pairs, fault).await?;
    }
    eprintln!("step: pairs are replaced one by one");
    rolling(&pairs).await?;
    let first = pairs.recorder.look(|world| world.bound_of("first"));
    assert_eq!(first, 4, "what ran before runs on");
    pairs.judge().await?;
    Ok(())
}

async fn strike(pairs: &Pairs, fault: Fault) -> anyhow::Result<()> {
    let leader = pairs.settled().await?;
    let since = Instant::now();
    pairs.strike(leader, fault)?;
    let name = format!("{fault:?}").to_lowercase();
    let bound = pairs.run(&job(&name), FAILOVER_MAX).await?;
    let took = bound.duration_since(since);
    eprintln!("step: {}: {took:.1?} to the next bound gang", fault.words());
    assert!(took <= FAILOVER_MAX, "{fault:?}: {took:?}");
    let next = pairs.leader().await?;
    assert!(
        next.is_some_and(|next| next != leader),
        "{next:?} after {leader}"
    );
    pairs.until_deposed(leader, fault).await?;
    if fault == Fault::MusterKilled {
        // The kube-scheduler whose Muster has died ends when its Muster is back and follows.
        pairs.start_again(leader).await?;
        pairs.until_kube_scheduler_ends(leader).await?;
    }
    pairs.replace(leader).await?;
    pairs.remove(&name).await
}

/// Each pair is ended as the deletion of its Pod ends it, the leader first, while jobs come one after
/// the other.
async fn rolling(pairs: &Pairs) -> anyhow::Result<()> {
    for turn in 0..2 {
        let leader = pairs.settled().await?;
        let jobs = async {
            let mut longest = Duration::ZERO;
            for number in 0..4 {
                let name = format!("rolling-{turn}-{number}");
                let since = Instant::now();
                let bound = pairs.run(&job(&name), ROLLING_MAX).await?;
                longest = longest.max(bound.duration_since(since));
                pairs.remove(&name).await?;
            }
            anyhow::Ok(longest)
        };
        let (ended, longest) = tokio::join!(pairs.terminate(leader), jobs);
        ended?;
        let longest = longest?;
        eprintln!("step: {leader} was ended: no gang took longer than {longest:.1?} to be bound");
        pairs.start_again(leader).await?;
    }
    pairs.settled().await?;
    Ok(())
}
