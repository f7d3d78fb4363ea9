//! The whole production scheduler on the embedded cluster, on a paused clock.
//!
//! ```text
//!   places.rs     gangs of every kind are placed whole, wait with a reason, follow each other
//!   troubles.rs   GPUs fail, nodes are cordoned, pods are replaced, jobs suspended and deleted
//!   outages.rs    the API server is away in the middle of binding
//!   crashes.rs    the scheduler dies, or the API server fails, at every single write
//!   abuse.rs      tenants who copy, overstate and bypass
//!   replicas.rs   two pairs of Muster and kube-scheduler: the leader dies, is cut off, is replaced
//!   same_seed.rs  equal seeds give equal event logs
//!   demo.rs       `muster-scheduler demo`, on real time
//!   gpu_node.rs   `gpu-node` over the fake library, on real time
//! ```

mod abuse;
mod crashes;
mod demo;
mod gpu_node;
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
use muster_tests::sim::JOBS;

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
