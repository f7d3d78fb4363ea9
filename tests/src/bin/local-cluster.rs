//! A real Kubernetes control plane with Muster, fake GPU nodes and fake agents, until Ctrl-C.
//!
//! ```text
//! cargo run -p muster-tests --bin local-cluster -- --nodes 500
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use muster_control_plane::{Cluster, Identity, NodeTemplate, Program, TrainingOperatorOptions};
use muster_tests::stack::{Stack, StackOptions, fleet, muster};
use tokio::signal::unix::{SignalKind, signal};

/// Pause between two looks at whether every program still runs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Starts a real control plane on loopback (etcd, kube-apiserver, kube-controller-manager, KWOK, training-operator), Muster with the rights
/// that it has in production, an unmodified kube-scheduler beside it, and a fake agent for each GPU node, and keeps all of it up until
/// Ctrl-C. Everything lives in one temporary folder and is gone afterwards.
///
/// The programs are built with Go on the first run (about 6 minutes on 2 cores), or taken from the folder that
/// MUSTER_CONTROL_PLANE_BIN names.
#[derive(Debug, Parser)]
#[command(name = "local-cluster")]
struct Arguments {
    /// GPU nodes with 8 fake H100s each, tainted nvidia.com/gpu=present:NoSchedule, named gpu-0 and so on; eight are a
    /// rack and eight racks a block, by the labels example.com/rack and example.com/block
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    nodes: u32,
    /// Nodes without GPUs and taints, named cpu-0 and so on
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=5_000))]
    cpu_nodes: u32,
    /// Do not install the admission policies: jobs are not held and pods not gated
    #[arg(long)]
    no_admission_policies: bool,
    /// Passed to training-operator: make a PodGroup for each job, for this scheduler
    #[arg(long, value_name = "NAME")]
    gang_scheduler_name: Option<String>,
}

/// Nodes of a rack, and of a block.
const PER_RACK: u32 = 8;
const PER_BLOCK: u32 = 64;

/// The levels of the network, for Muster's configuration.
const LEVELS: &str = "topology: {levels: [{name: block, label: example.com/block}, {name: rack, label: example.com/rack}]}\n";

/// The GPU nodes, rack by rack: `gpu-0` to `gpu-7` are the first rack of the first block.
fn racks(nodes: u32) -> impl Iterator<Item = NodeTemplate> {
    (0..nodes.div_ceil(PER_RACK)).map(move |rack| {
        let first = rack.saturating_mul(PER_RACK);
        let count = nodes.saturating_sub(first).min(PER_RACK);
        let mut pool = NodeTemplate {
            first,
            ..NodeTemplate::gpu_pool("gpu", count)
        };
        let block = first.div_euclid(PER_BLOCK);
        for (level, name) in [("block", format!("b{block}")), ("rack", format!("r{rack}"))] {
            pool.labels.insert(format!("example.com/{level}"), name);
        }
        pool
    })
}

fn options(arguments: &Arguments) -> StackOptions {
    let cpus = NodeTemplate::cpu_pool("cpu", arguments.cpu_nodes);
    StackOptions {
        pools: racks(arguments.nodes).chain([cpus]).collect(),
        config: LEVELS.to_owned(),
        policies: !arguments.no_admission_policies,
        operator: Some(TrainingOperatorOptions {
            gang_scheduler_name: arguments.gang_scheduler_name.clone(),
            ..TrainingOperatorOptions::default()
        }),
        progress: |what| eprintln!("local-cluster: {what}"),
        ..StackOptions::default()
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run_until_signal(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("local-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_until_signal(arguments: &Arguments) -> anyhow::Result<()> {
    // Asked for before anything starts, so that a signal in between still ends everything in order.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        result = run(arguments) => return result,
    }
    eprintln!("local-cluster: stopping");
    Ok(())
}

/// Brings everything up and watches over it; returns only when something failed.
async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let since = Instant::now();
    let stack = Stack::start(options(arguments)).await?;
    let cluster = &stack.cluster;
    eprintln!(
        "local-cluster: ready after {:.0} s; Ctrl-C ends it",
        since.elapsed().as_secs_f64()
    );
    println!(
        "export KUBECONFIG={}",
        cluster.kubeconfig(&Identity::Admin)?.display()
    );
    println!("# try:");
    println!("#   kubectl apply -f deploy/examples/pytorchjob-1-4.yaml");
    println!("#   kubectl get gangs -w");
    println!(
        "# kubectl of the same version: {}",
        cluster.binaries().kubectl.display()
    );
    println!("# metrics: http://{}/metrics", stack.http);
    println!(
        "# logs: {} {}",
        cluster.log(&muster()).display(),
        cluster.log(&fleet()).display()
    );
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        restart_ended(cluster).await?;
        cluster.check_all_running()?;
    }
}

/// Starts again what a Deployment or DaemonSet would. Leaders end themselves when a machine is so busy that they
/// cannot renew their Lease.
async fn restart_ended(cluster: &Cluster) -> anyhow::Result<()> {
    for program in [
        muster(),
        fleet(),
        Program::KubeScheduler,
        Program::TrainingOperator,
    ] {
        if let Err(error @ muster_control_plane::Error::Exited { .. }) =
            cluster.check_running(&program)
        {
            let first = error.to_string();
            eprintln!(
                "local-cluster: {}; starting it again",
                first.lines().next().unwrap_or_default()
            );
            cluster.start(&program).await?;
        }
    }
    Ok(())
}
