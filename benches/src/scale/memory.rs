//! Memory of the scheduler with 5,000 nodes and 50,000 pods, half of them members of running gangs, the others
//! of DaemonSets.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use muster_embedded::value;
use serde_json::Value;

use super::figures::{Report, mib};
use super::objects::{self, Whose};
use super::process;
use super::world::{PODS, World};
use crate::http::metric;
use crate::programs::Programs;

/// Workers of a job, with one GPU each.
const WORKERS: u32 = 50;
/// Longest wait for all gangs to be known as running.
const KNOWN_MAX: Duration = Duration::from_secs(300);
/// Time without an event after which the scheduler counts as quiet.
const QUIET: Duration = Duration::from_secs(10);
/// Looks for that; later it is measured all the same.
const LOOKS_MAX: usize = 12;
/// No agents report: the case `agents` is about those.
const CONFIG: &str = "inventory: {nodesWithoutAgent: useAllocatable}\n";

/// Measures with so many nodes and pods.
pub async fn measure(programs: &Programs, nodes: u32, pods: u32) -> anyhow::Result<Report> {
    let jobs = pods.div_ceil(2) / WORKERS;
    let daemons = pods.saturating_sub(jobs * WORKERS);
    ensure!(
        jobs > 0 && jobs * WORKERS <= nodes * objects::GPUS,
        "pods do not fit"
    );
    let world = World::start(programs).await?;
    let names: Vec<String> = (0..nodes)
        .map(|index| format!("gpu-node-{index:05}"))
        .collect();
    for name in &names {
        world.cluster.create(objects::node(name))?;
    }
    eprintln!("memory: making {pods} pods");
    let bytes = run_jobs(&world, jobs, &names)? + run_daemons(&world, daemons, &names)?;
    let mut scheduler = world.scheduler(CONFIG).await?;
    let wanted = f64::from(jobs);
    let known = |page: &str| running(page) >= wanted;
    scheduler
        .until("all gangs to be running", KNOWN_MAX, known)
        .await?;
    let mut events = -1.0;
    for _ in 0..LOOKS_MAX {
        let page = scheduler.metrics().await?;
        let now = metric(&page, "muster_events_total");
        if (now - events).abs() < 0.5 {
            break;
        }
        events = now;
        tokio::time::sleep(QUIET).await;
    }
    let cost = process::watch(&mut scheduler.child, QUIET).await?;
    let peak = scheduler.child.usage()?.rss_peak_bytes;
    check(&scheduler.dump().await?, nodes, pods, jobs)?;
    let objects = [("nodes", nodes), ("pods", pods), ("jobs", jobs)];
    let mut report = Report::new(&objects.map(|(name, count)| (name, u64::from(count))));
    report.hold(
        "memory once all is known",
        mib(cost.rss_bytes),
        "MiB",
        mb(340.0),
        mb(85.0),
    );
    report.tell("memory at most since the start", mib(peak), "MiB");
    report.tell(
        "mean pod as JSON",
        bytes as f64 / f64::from(pods) / 1e3,
        "kB",
    );
    world.stop().await;
    Ok(report)
}

/// Megabytes as MiB.
fn mb(megabytes: f64) -> f64 {
    megabytes * 1e6 / f64::from(1_u32 << 20)
}

/// Gangs in phase Running.
fn running(page: &str) -> f64 {
    let lines = page.lines();
    let of = lines.filter(|line| line.starts_with("muster_gangs{") && line.contains("\"Running\""));
    of.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Makes jobs whose workers run. Returns the size of all pods, bytes of JSON.
fn run_jobs(world: &World, jobs: u32, nodes: &[String]) -> anyhow::Result<usize> {
    let mut bytes = 0;
    for number in 0..jobs {
        let name = format!("train-{number}");
        let job = world.cluster.create(objects::job(&name, WORKERS))?;
        let uid = value::uid(&job);
        for index in 0..WORKERS {
            let whose = Whose::Job { name: &name, uid };
            let at = (number * WORKERS + index) as usize % nodes.len();
            let node = nodes.get(at).context("a node")?;
            bytes += run(world, &objects::pod(&whose, index, 1, Some(node)))?;
        }
    }
    Ok(bytes)
}

/// Makes pods of DaemonSets that run, as many on each node.
fn run_daemons(world: &World, pods: u32, nodes: &[String]) -> anyhow::Result<usize> {
    let (mut bytes, mut left, mut number) = (0, pods as usize, 0);
    while left > 0 {
        let name = format!("daemon-{number}");
        let set = world.cluster.create(objects::daemon_set(&name))?;
        let uid = value::uid(&set);
        for (index, node) in (0_u32..).zip(nodes.iter().take(left)) {
            let whose = Whose::Daemon { name: &name, uid };
            bytes += run(world, &objects::pod(&whose, index, 0, Some(node)))?;
        }
        left = left.saturating_sub(nodes.len());
        number += 1;
    }
    Ok(bytes)
}

/// Makes a pod and lets it run. Returns its size, bytes of JSON.
fn run(world: &World, pod: &Value) -> anyhow::Result<usize> {
    let made = world.cluster.create(pod.clone())?;
    let (namespace, name) = (value::namespace(&made), value::name(&made));
    let all = world
        .cluster
        .patch(PODS, namespace, name, "status", &objects::running())?;
    Ok(all.to_string().len())
}

/// All of it must be known, or the memory is that of something smaller.
fn check(dump: &Value, nodes: u32, pods: u32, jobs: u32) -> anyhow::Result<()> {
    let list = |part: &str| value::items(dump, &[part]);
    let on = |node: &Value| value::items(node, &["pods"]).len();
    let found = [
        ("nodes", list("nodes").len(), nodes),
        ("gangs", list("gangs").len(), jobs),
        ("pods on nodes", list("nodes").iter().map(on).sum(), pods),
    ];
    for (what, found, wanted) in found {
        if found != wanted as usize {
            bail!("the scheduler knows {found} {what}, not {wanted}");
        }
    }
    Ok(())
}
