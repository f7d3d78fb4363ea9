//! How fast are gangs of plain pods bound on this machine, and what does each pod cost?
//!
//! ```text
//! cargo run -p muster-control-plane --example throughput -- --nodes 500 --gangs 200 --members 16 [--native-gangs]
//! ```
//! Pods are created as fast as the API server takes them, on a fresh cluster with KWOK nodes of 8 GPUs, and bound by the default
//! kube-scheduler: without gangs, or with its native gang scheduling (beta in 1.37, off by default). Compare figures of one machine
//! only with each other.

use std::time::Duration;

use clap::Parser;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use muster_control_plane::history::{GangRule, History, Recorder};
use muster_control_plane::{Cluster, NodeTemplate};
use serde_json::{Value, json};

/// Pods created at once.
const PARALLEL: usize = 32;
/// Longest wait for the last binding.
const BOUND_TIMEOUT: Duration = Duration::from_secs(600);

/// Binds gangs of plain pods with kube-scheduler and prints times and costs.
#[derive(Debug, Parser)]
struct Arguments {
    /// Nodes of 8 GPUs
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// Gangs
    #[arg(long, default_value_t = 20)]
    gangs: u32,
    /// Pods in each gang
    #[arg(long, default_value_t = 16)]
    members: u32,
    /// GPUs of each pod
    #[arg(long, default_value_t = 1)]
    gpus: u32,
    /// kube-scheduler's native gang scheduling instead of none
    #[arg(long)]
    native_gangs: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut builder = Cluster::builder().nodes(NodeTemplate::gpu_pool("gpu", arguments.nodes));
    if arguments.native_gangs {
        builder = builder
            .feature_gate("GenericWorkload", true)
            .runtime_config("scheduling.k8s.io/v1beta1=true");
    }
    let cluster = builder.start().await?;
    cluster
        .start_kube_scheduler(&cluster.default_kube_scheduler_config()?)
        .await?;
    if arguments.native_gangs {
        create_pod_groups(&cluster, &arguments).await?;
    }
    cluster
        .wait_until_quiet(Duration::from_secs(1), BOUND_TIMEOUT)
        .await?;
    let recorder = Recorder::start(cluster.admin()).await?;
    let writes_before = cluster.api_writes().await?;
    let usage_before = cluster.usages();

    create_pods(&cluster, &arguments).await?;
    let running = |world: &muster_control_plane::history::World| {
        world.pods.values().all(|pod| pod.phase == "Running")
    };
    recorder
        .wait_for(BOUND_TIMEOUT, "all pods running", running)
        .await?;

    let history = recorder.caught_up(BOUND_TIMEOUT).await?;
    print_times(&history);
    let binds = history.binds().len();
    let writes = cluster.api_writes().await?.since(&writes_before);
    let per_pod = writes.accepted() as f64 / binds.max(1) as f64;
    println!(
        "API writes per pod {per_pod:.2}, refused {}",
        writes.total() - writes.accepted()
    );
    for (kind, count) in writes
        .iter()
        .filter(|(_, count)| *count >= u64::from(arguments.gangs))
    {
        println!(
            "  {count:6} {} {}/{} {}",
            kind.verb, kind.resource, kind.subresource, kind.code
        );
    }
    for (program, usage) in cluster.usages() {
        let before = usage_before
            .iter()
            .find(|(name, _)| *name == program)
            .map(|(_, usage)| usage.cpu);
        let cpu = usage
            .cpu
            .saturating_sub(before.unwrap_or_default())
            .as_secs_f64();
        println!(
            "{program}: {cpu:.1} CPU s, {} MiB resident",
            usage.rss_bytes >> 20
        );
    }
    Ok(())
}

async fn create_pods(cluster: &Cluster, arguments: &Arguments) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
    let all = (0..arguments.gangs)
        .flat_map(|gang| (0..arguments.members).map(move |member| (gang, member)));
    futures::stream::iter(all)
        .map(|(gang, member)| {
            let (pods, value) = (pods.clone(), pod(arguments, gang, member));
            async move {
                anyhow::Ok(
                    pods.create(&PostParams::default(), &serde_json::from_value(value)?)
                        .await?,
                )
            }
        })
        .buffer_unordered(PARALLEL)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(())
}

fn print_times(history: &History) {
    let gangs = history.gangs(&GangRule::new(BOUND_TIMEOUT).group_by_label("gang"));
    let first = gangs.iter().map(|gang| gang.first_seen).min();
    let last = gangs.iter().filter_map(|gang| gang.last_bound).max();
    let binds = history.binds().len();
    if let (Some(first), Some(last)) = (first, last) {
        let seconds = last.duration_since(first).as_secs_f64();
        println!(
            "first create to last bound {seconds:.1} s, {binds} pods, {:.0} pods/s",
            binds as f64 / seconds
        );
    }
    let mut latencies: Vec<f64> = gangs
        .iter()
        .filter_map(|gang| gang.latency())
        .map(|l| l.as_secs_f64())
        .collect();
    latencies.sort_by(f64::total_cmp);
    let percentile = |p: usize| {
        latencies
            .get(latencies.len().saturating_sub(1) * p / 100)
            .copied()
            .unwrap_or(0.0)
    };
    println!(
        "gang latency p50 {:.1} s, p95 {:.1} s",
        percentile(50),
        percentile(95)
    );
}

fn pod(arguments: &Arguments, gang: u32, member: u32) -> Value {
    let group = arguments
        .native_gangs
        .then(|| json!({ "podGroupName": format!("gang-{gang}") }));
    json!({
        "metadata": { "name": format!("gang-{gang}-{member}"), "labels": { "gang": format!("gang-{gang}") } },
        "spec": {
            "schedulingGroup": group,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{ "name": "c", "image": "i", "resources": { "limits": { "nvidia.com/gpu": arguments.gpus } } }],
        },
    })
}

async fn create_pod_groups(cluster: &Cluster, arguments: &Arguments) -> anyhow::Result<()> {
    let group = |gang: u32| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1beta1",
            "kind": "PodGroup",
            "metadata": { "name": format!("gang-{gang}"), "namespace": "default" },
            "spec": { "schedulingPolicy": { "gang": { "minCount": arguments.members } } },
        })
    };
    let items: Vec<Value> = (0..arguments.gangs).map(group).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    cluster.apply_yaml(&list.to_string()).await?;
    Ok(())
}
