//! The whole production scheduler on the embedded cluster, on a paused clock.
//!
//! ```text
//!   places.rs     gangs of every kind are placed whole, wait with a reason, follow each other
//!   troubles.rs   GPUs fail, nodes are cordoned, pods are replaced, jobs suspended and deleted
//!   outages.rs    the API server is away in the middle of binding
//!   frozen.rs     an operator freezes the scheduler and lets it go on
//!   crashes.rs    the scheduler dies, or the API server fails, at every single write
//!   abuse.rs      tenants who copy, overstate and bypass
//!   hostile.rs    callers and tenants who flood, evict and write whatever they like
//!   flows.rs      every flow once: rights and logs
//!   dump.rs       a dump of the running scheduler, with and without names, planned again
//!   liars.rs      agents that report what is not so
//!   replicas.rs   two pairs of Muster and kube-scheduler: the leader dies, is cut off, is replaced
//!   same_seed.rs  equal seeds give equal event logs
//!   demo.rs       `muster-scheduler demo`, on real time
//!   gpu_node.rs   `gpu-node` over the fake library, on real time
//! ```

mod abuse;
mod crashes;
mod demo;
mod dump;
mod flows;
mod frozen;
mod gpu_node;
mod hostile;
mod liars;
mod outages;
mod places;
mod replicas;
mod same_seed;
mod troubles;

use std::time::Duration;

use muster_embedded::cluster::run_paused;
use muster_embedded::standins::operator::OperatorConfig;
use muster_embedded::{EmbeddedCluster, value};
use muster_tests::jobs::{Job, Role};
use muster_tests::sim::{JOBS, PODS, SOON, Sim, SimOptions, phase_of};

/// Runs a scenario in one thread on the paused clock.
fn paused(scenario: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    run_paused(scenario)?
}

/// One master and four workers with one GPU each.
fn train(name: &str) -> Job {
    Job::new(
        name,
        vec![Role::new("Master", 1, 1), Role::new("Worker", 4, 1)],
    )
}

/// A gang that gathers slowly and has all that there is: two of its four members wait at the barrier, and what it has not taken yet is
/// reserved for it.
async fn gathering() -> anyhow::Result<Sim> {
    let options = SimOptions {
        operator: slow_operator(),
        ..SimOptions::nodes(2)
    };
    let sim = Sim::start(options).await?;
    let roles = vec![Role::new("Master", 1, 4), Role::new("Worker", 3, 4)];
    sim.apply(&Job::new("train", roles).yaml())?;
    sim.until("some members wait at the barrier", SOON, |c| {
        phase_of(c, "train") == "Starting" && c.list(PODS).len() == 2
    })
    .await?;
    Ok(sim)
}

/// One master and four workers with eight GPUs each: a node for every member.
fn wide(name: &str) -> Job {
    Job::new(
        name,
        vec![Role::new("Master", 1, 8), Role::new("Worker", 4, 8)],
    )
}

/// A training-operator that makes a pod every ten seconds: the barrier waits for most of a minute.
fn slow_operator() -> Option<OperatorConfig> {
    Some(OperatorConfig {
        pods_per_second: 0.1,
        burst: 1,
        ..OperatorConfig::default()
    })
}

/// Whether nothing of a plan is left in a job's templates and annotations.
fn template_is_clean(cluster: &EmbeddedCluster, job: &str) -> bool {
    let Some(job) = cluster.get(JOBS, "default", job) else {
        return false;
    };
    let specs = value::at(&job, &["spec", "pytorchReplicaSpecs"]);
    let pinned = value::at(&job, &["metadata", "annotations", "muster.dev/pinned"]);
    pinned.is_none() && specs.is_some_and(|specs| !specs.to_string().contains("matchFields"))
}

const MINUTE: Duration = Duration::from_secs(60);
