//! One gang of 1,000 members at the barrier, each with a Bind of its own on the one connection that
//! kube-scheduler has: none is answered before the last has come, then all are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use muster_embedded::value;
use serde_json::json;
use tokio::task::JoinSet;

use super::callers::Connection;
use super::figures::Report;
use super::objects::{self, GPUS, NAMESPACE, Whose};
use super::world::{PODS, World, until};
use crate::http::metric;
use crate::programs::Programs;

/// The gang.
const GANG: &str = "train";
/// Its Gang object.
const OBJECT: &str = "label-train";
/// Longest wait for each step.
const STEP_MAX: Duration = Duration::from_secs(120);
/// How long all but one member stand at the barrier.
const HELD_FOR: Duration = Duration::from_secs(2);
/// Path of Bind as kube-scheduler is configured.
const BIND: &str = "/v1/bind/bind";
/// No agents report.
const CONFIG: &str = "inventory: {nodesWithoutAgent: useAllocatable}\n";

/// A member's Bind.
struct Asked {
    pod: String,
    node: String,
    body: Bytes,
}

/// Measures a gang of so many members with one GPU each.
pub async fn measure(programs: &Programs, members: u32) -> anyhow::Result<Report> {
    let world = World::start(programs).await?;
    for index in 0..members.div_ceil(GPUS) {
        world
            .cluster
            .create(objects::node(&format!("gpu-{index:04}")))?;
    }
    let mut scheduler = world.scheduler(CONFIG).await?;
    for index in 0..members {
        let whose = Whose::Gang {
            name: GANG,
            size: members,
        };
        world.cluster.create(objects::pod(&whose, index, 1, None))?;
    }
    let places = until("a plan", STEP_MAX, || {
        world.places(OBJECT, members as usize)
    })
    .await?;
    let mut asked = binds(&world, &places)?;
    let connection = Arc::new(Connection::open(&world, &scheduler).await?);
    let last = asked.pop().context("a member")?;
    let held = asked.len();
    let mut answers = JoinSet::new();
    for bind in asked {
        spawn(&mut answers, &connection, bind);
    }
    let wanted = held as f64;
    let reached = |page: &str| metric(page, "muster_binds_held") >= wanted;
    scheduler
        .until("all Binds but one to be held", STEP_MAX, reached)
        .await?;
    tokio::time::sleep(HELD_FOR).await;
    ensure!(
        answers.try_join_next().is_none(),
        "a Bind was answered before the last member had come"
    );
    ensure!(
        bound(&world).is_empty(),
        "a pod was bound before the last member had come"
    );
    let page = scheduler.metrics().await?;
    ensure!(
        metric(&page, "muster_binds_held") >= wanted,
        "a Bind is not held any more"
    );
    let cpu = scheduler.child.usage()?.cpu;
    let since = Instant::now();
    spawn(&mut answers, &connection, last);
    let (mut errors, mut first) = (Vec::new(), None);
    while let Some(answer) = tokio::time::timeout(STEP_MAX, answers.join_next())
        .await
        .context("Binds are not answered")?
    {
        first.get_or_insert_with(|| since.elapsed());
        errors.extend(answer?.err());
    }
    let took = since.elapsed();
    let cpu = scheduler.child.usage()?.cpu.saturating_sub(cpu);
    if let Some(error) = errors.first() {
        eprintln!(
            "binds: {} of {members} failed, for example: {error:#}",
            errors.len()
        );
    }
    let planned: BTreeMap<String, String> = places.into_iter().collect();
    if errors.is_empty() && bound(&world) != planned {
        bail!("pods are not bound to the nodes of the plan");
    }
    let mut report = Report::new(&[("members", u64::from(members))]);
    report.hold(
        "Binds answered with an error",
        errors.len() as f64,
        "",
        0.0,
        0.0,
    );
    let first = first.unwrap_or_default().as_secs_f64();
    report.tell("last Bind to first answer", first, "s");
    report.tell("last Bind to last answer", took.as_secs_f64(), "s");
    report.tell("processor time of it", cpu.as_secs_f64(), "s");
    drop(connection);
    world.stop().await;
    Ok(report)
}

/// The Bind of each member, as kube-scheduler asks it.
fn binds(world: &World, places: &[(String, String)]) -> anyhow::Result<Vec<Asked>> {
    let bind = |(pod, node): &(String, String)| {
        let object = world.cluster.get(PODS, NAMESPACE, pod);
        let object = object.with_context(|| format!("no pod {pod}"))?;
        let body = json!({"PodName": pod, "PodNamespace": NAMESPACE, "PodUID": value::uid(&object), "Node": node});
        Ok(Asked {
            pod: pod.clone(),
            node: node.clone(),
            body: Bytes::from(body.to_string()),
        })
    };
    places.iter().map(bind).collect()
}

fn spawn(answers: &mut JoinSet<anyhow::Result<()>>, connection: &Arc<Connection>, asked: Asked) {
    let connection = Arc::clone(connection);
    answers.spawn(async move {
        let answer = connection.ask(BIND, asked.body).await?;
        if answer.as_ref() != br#"{"Error":""}"# {
            let said = String::from_utf8_lossy(&answer).into_owned();
            bail!("{} to {} is answered {said}", asked.pod, asked.node);
        }
        Ok(())
    });
}

/// Node of each pod that is bound.
fn bound(world: &World) -> BTreeMap<String, String> {
    let pods = world.cluster.list(PODS);
    let of = |pod: &serde_json::Value| {
        let name = value::name(pod);
        let node = value::text(pod, &["spec", "nodeName"]);
        (!node.is_empty()).then(|| (name.to_owned(), node.to_owned()))
    };
    pods.iter().filter_map(of).collect()
}
