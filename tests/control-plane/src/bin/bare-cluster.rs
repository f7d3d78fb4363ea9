//! A bare Kubernetes control plane with fake GPU nodes on this machine, until Ctrl-C: without Muster, for other schedulers.
//! `local-cluster` of the tests crate is the one with Muster in it.
//!
//! ```text
//! cargo run -p muster-control-plane --bin bare-cluster -- --nodes 500
//! ```

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use muster_control_plane::{Cluster, Identity, NodeTemplate, Program, TrainingOperatorOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Pause between two looks at whether every program still runs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Starts etcd, kube-apiserver, kube-controller-manager, kube-scheduler, KWOK and training-operator on loopback, with fake nodes, and
/// keeps them up until Ctrl-C. Everything lives in one temporary folder and is gone afterwards.
///
/// The programs are built with Go on the first run (about 6 minutes on 2 cores), or taken from the folder that
/// MUSTER_CONTROL_PLANE_BIN names.
#[derive(Debug, Parser)]
#[command(name = "bare-cluster")]
struct Arguments {
    /// GPU nodes, tainted nvidia.com/gpu=present:NoSchedule, named gpu-0 and so on
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    nodes: u32,
    /// GPUs on each GPU node
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1_024))]
    gpus: u32,
    /// Nodes without GPUs and taints, named cpu-0 and so on
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    cpu_nodes: u32,
    /// A KubeSchedulerConfiguration file for one more kube-scheduler beside the cluster's default one
    #[arg(long, value_name = "FILE")]
    kube_scheduler_config: Option<PathBuf>,
    /// Do not start training-operator
    #[arg(long)]
    no_training_operator: bool,
    /// Passed to training-operator: make a PodGroup for each job, for this scheduler
    #[arg(long, value_name = "NAME")]
    gang_scheduler_name: Option<String>,
    /// YAML to apply once the cluster is up (CRDs, RBAC, policies); may be given several times
    #[arg(long, value_name = "FILE")]
    apply: Vec<PathBuf>,
    /// A program to start beside the cluster and to end with it, as a line of words; {kubeconfig}, {api} and {folder} are replaced; may
    /// be given several times
    #[arg(long = "run", value_name = "NAME=COMMAND")]
    runs: Vec<String>,
    /// Write an audit log of all API writes
    #[arg(long)]
    audit: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run_until_signal(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bare-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_until_signal(arguments: &Arguments) -> anyhow::Result<()> {
    // Asked for before anything starts, so that a signal in between still ends everything in order.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::select! {
        () = stop => {
            eprintln!("bare-cluster: stopping");
            Ok(())
        }
        result = run(arguments) => result,
    }
}

/// Brings everything up and watches over it; returns only when something failed.
async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let since = Instant::now();
    let say = |what: &str| {
        eprintln!(
            "bare-cluster: {:5.1} s  {what}",
            since.elapsed().as_secs_f64()
        )
    };
    say("starting etcd, kube-apiserver, kube-controller-manager, KWOK");
    let cluster = Cluster::builder().audit(arguments.audit).start().await?;
    say(&format!(
        "adding {} GPU nodes and {} others",
        arguments.nodes, arguments.cpu_nodes
    ));
    let gpu_pool = NodeTemplate {
        gpus: arguments.gpus,
        ..NodeTemplate::gpu_pool("gpu", arguments.nodes)
    };
    cluster.add_nodes(&gpu_pool).await?;
    cluster
        .add_nodes(&NodeTemplate::cpu_pool("cpu", arguments.cpu_nodes))
        .await?;
    say("starting kube-scheduler");
    cluster
        .start_extra_kube_scheduler(
            "default-scheduler",
            &cluster.default_kube_scheduler_config()?,
            &[],
        )
        .await?;
    if !arguments.no_training_operator {
        say("starting training-operator");
        let options = TrainingOperatorOptions {
            gang_scheduler_name: arguments.gang_scheduler_name.clone(),
            ..TrainingOperatorOptions::default()
        };
        cluster.start_training_operator(&options).await?;
    }
    extra_programs(&cluster, arguments).await?;
    let kubeconfig = cluster.kubeconfig(&Identity::Admin)?;
    say("ready; Ctrl-C ends it");
    println!("export KUBECONFIG={}", kubeconfig.display());
    println!(
        "# kubectl of the same version: {}",
        cluster.binaries().kubectl.display()
    );
    println!("# logs: {}", cluster.folder().join("logs").display());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        cluster.check_all_running()?;
    }
}

/// What belongs beside a bare control plane: objects, one more kube-scheduler, programs of the caller's.
async fn extra_programs(cluster: &Cluster, arguments: &Arguments) -> anyhow::Result<()> {
    for file in &arguments.apply {
        cluster
            .apply_file(file)
            .await
            .with_context(|| format!("apply {}", file.display()))?;
    }
    if let Some(config) = &arguments.kube_scheduler_config {
        cluster.start_kube_scheduler(config).await?;
    }
    for run in &arguments.runs {
        let (name, line) = run
            .split_once('=')
            .with_context(|| format!("--run {run}: wanted NAME=COMMAND"))?;
        let command = command(cluster, line)?;
        cluster.spawn(name, &command).await?;
        eprintln!(
            "bare-cluster: {name} runs, log {}",
            cluster.log(&Program::Other(name.to_owned())).display()
        );
    }
    Ok(())
}

/// A command out of words separated by blanks, with the cluster's places filled in.
fn command(cluster: &Cluster, line: &str) -> anyhow::Result<Command> {
    let kubeconfig = cluster.kubeconfig(&Identity::Admin)?.display().to_string();
    let folder = cluster.folder().display().to_string();
    let mut words = line.split_whitespace().map(|word| {
        word.replace("{kubeconfig}", &kubeconfig)
            .replace("{api}", &cluster.api_url())
            .replace("{folder}", &folder)
    });
    let Some(program) = words.next() else {
        bail!("--run: the command is empty");
    };
    let mut command = Command::new(program);
    command.args(words).env("KUBECONFIG", kubeconfig);
    Ok(command)
}
