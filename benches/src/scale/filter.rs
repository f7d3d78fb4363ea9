//! Filter under load: 64 callers on one connection, as kube-scheduler's parallel workers are at most.
//!
//! The server's times are those of its own histogram, `muster_filter_duration_seconds`: from the moment a
//! request's body is there until its answer is written, without the network. The callers' times have everything
//! in them, the callers' own work on the same cores included.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use muster_embedded::value;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::callers::Connection;
use super::figures::Report;
use super::objects::{self, GPUS, NAMESPACE, Whose};
use super::world::{PODS, Scheduler, World, until};
use crate::programs::Programs;

/// Callers at once.
const CALLERS: usize = 64;
/// Gangs in the picture, each of [`MEMBERS`] members that take a node each.
const GANGS: u32 = 16;
/// Members of a gang.
const MEMBERS: u32 = 64;
/// A gang that waits: no node has as many GPUs as its members ask for.
const WAITING: &str = "waits";
/// Longest wait for plans.
const PLANNED_MAX: Duration = Duration::from_secs(120);
/// Path of Filter as kube-scheduler is configured.
const FILTER: &str = "/v1/short/filter";
/// Nobody arrives at the barrier here; plans stay all the same. No agents report.
const CONFIG: &str = "inventory: {nodesWithoutAgent: useAllocatable}\ngang: {gatherQuietMax: 1h}\n";

/// A call and the answer that it must get, to the byte.
#[derive(Clone)]
struct Call {
    body: Bytes,
    answer: Bytes,
}

/// Measures for each kind of call for so many seconds.
pub async fn measure(programs: &Programs, nodes: u32, seconds: u64) -> anyhow::Result<Report> {
    let world = World::start(programs).await?;
    let names: Vec<String> = (0..nodes).map(node).collect();
    for name in &names {
        world.cluster.create(objects::node(name))?;
    }
    let scheduler = world.scheduler(CONFIG).await?;
    make_gangs(&world)?;
    let members = members(&world).await?;
    let connection = Arc::new(Connection::open(&world, &scheduler).await?);
    let mut report = Report::new(&[
        ("nodes", u64::from(nodes)),
        ("callers", CALLERS as u64),
        ("gangs", u64::from(GANGS)),
        ("membersOfEach", u64::from(MEMBERS)),
        ("secondsOfEach", seconds),
    ]);
    let (mut one, mut all, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (pod, place) in &members {
        let alone = std::slice::from_ref(place);
        one.push(checked(&connection, pod, alone, Some(place)).await?);
        all.push(checked(&connection, pod, &names, Some(place)).await?);
    }
    let waiting = pod(&world, WAITING, 0)?;
    let call = checked(&connection, &waiting, &names, None).await?;
    refused.resize(CALLERS, call);
    let span = Duration::from_secs(seconds);
    for (what, calls, floor, aim) in [
        ("planned node alone", one, 1.0, 0.1),
        (&*format!("planned, {nodes} names"), all, 5.0, 1.0),
        (
            &*format!("waiting, {nodes} names refused"),
            refused,
            5.0,
            1.0,
        ),
    ] {
        eprintln!("filter: {what}");
        // The first calls find cold caches.
        load(&connection, &calls, Duration::from_secs(1)).await?;
        let before = Histogram::of(&scheduler).await?;
        let mut seen = load(&connection, &calls, span).await?;
        let served = Histogram::of(&scheduler).await?.since(&before);
        seen.sort_unstable();
        ensure!(
            served.count() >= seen.len() as f64,
            "the server counts {} calls, the callers {}",
            served.count(),
            seen.len()
        );
        report.hold(
            &format!("{what}: p99, server"),
            served.quantile(0.99) * 1e3,
            "ms",
            floor,
            aim,
        );
        report.tell(
            &format!("{what}: p50, server"),
            served.quantile(0.5) * 1e3,
            "ms",
        );
        report.tell(&format!("{what}: p99, callers"), quantile(&seen, 99), "ms");
        report.tell(&format!("{what}: p50, callers"), quantile(&seen, 50), "ms");
        report.tell(
            &format!("{what}: calls"),
            seen.len() as f64 / span.as_secs_f64(),
            "1/s",
        );
    }
    drop(connection);
    world.stop().await;
    Ok(report)
}

fn node(index: u32) -> String {
    format!("gpu-node-{index:05}.cluster.internal")
}

fn gang(index: u32) -> String {
    format!("train-{index}")
}

fn make_gangs(world: &World) -> anyhow::Result<()> {
    for name in (0..GANGS).map(gang) {
        for index in 0..MEMBERS {
            let whose = Whose::Gang {
                name: &name,
                size: MEMBERS,
            };
            world
                .cluster
                .create(objects::pod(&whose, index, GPUS, None))?;
        }
    }
    let whose = Whose::Gang {
        name: WAITING,
        size: 1,
    };
    world
        .cluster
        .create(objects::pod(&whose, 0, GPUS * 2, None))?;
    Ok(())
}

fn pod(world: &World, gang: &str, index: u32) -> anyhow::Result<Value> {
    let name = format!("{gang}-{index}");
    let pod = world.cluster.get(PODS, NAMESPACE, &name);
    pod.with_context(|| format!("no pod {name}"))
}

/// A member for each caller, taken from all gangs in turn, with the node that the Gang's status says.
async fn members(world: &World) -> anyhow::Result<Vec<(Value, String)>> {
    let mut plans = Vec::new();
    for index in 0..GANGS {
        let object = format!("label-{}", gang(index));
        let what = format!("a plan of {object}");
        let places = until(&what, PLANNED_MAX, || {
            world.places(&object, MEMBERS as usize)
        });
        plans.push(places.await?);
    }
    let waits = format!("label-{WAITING}");
    until("the gang that waits to say why", PLANNED_MAX, || {
        let status = world.gang(&waits)?;
        (status.get("phase")?.as_str()? == "Waiting").then_some(())
    })
    .await?;
    // The picture is published right after the plan is written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    (0..CALLERS)
        .map(|caller| {
            let of = plans.get(caller % plans.len()).context("a plan")?;
            let (name, place) = of.get(caller).context("a member")?;
            let pod = world.cluster.get(PODS, NAMESPACE, name);
            Ok((pod.context("its pod")?, place.clone()))
        })
        .collect()
}

/// The call, after its answer was found to be what it must be: the planned node and no other, or each node
/// refused for the gang's reason.
async fn checked(
    connection: &Connection,
    pod: &Value,
    names: &[String],
    planned: Option<&String>,
) -> anyhow::Result<Call> {
    let body = Bytes::from(json!({"Pod": pod, "NodeNames": names}).to_string());
    let answer = connection.ask(FILTER, body.clone()).await?;
    let said: Value = serde_json::from_slice(&answer)?;
    let passed: Vec<&String> = planned.into_iter().collect();
    if said.get("Error") != Some(&json!("")) || said.get("NodeNames") != Some(&json!(passed)) {
        bail!("{} is answered {said}, not {planned:?}", value::name(pod));
    }
    if planned.is_none() {
        let refused = said
            .get("FailedAndUnresolvableNodes")
            .and_then(Value::as_object);
        let texts = refused.context("refusals")?.values();
        let known = texts.filter_map(Value::as_str);
        let count = known.filter(|text| text.starts_with("muster: ")).count();
        ensure!(count == names.len(), "{count} of {} refused", names.len());
    }
    Ok(Call { body, answer })
}

/// All callers ask as fast as they are answered. Returns how long each call took, microseconds.
async fn load(
    connection: &Arc<Connection>,
    calls: &[Call],
    span: Duration,
) -> anyhow::Result<Vec<u64>> {
    let end = Instant::now() + span;
    let mut callers = JoinSet::new();
    for call in calls.iter().take(CALLERS).cloned() {
        let connection = Arc::clone(connection);
        callers.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < end {
                let asked = Instant::now();
                let answer = connection.ask(FILTER, call.body.clone()).await?;
                took.push(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
                ensure!(answer == call.answer, "the same call is answered otherwise");
            }
            Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = callers.join_next().await {
        all.extend(took??);
    }
    Ok(all)
}

/// A percentile of sorted microseconds, milliseconds.
fn quantile(sorted: &[u64], percent: usize) -> f64 {
    let place = sorted.len().saturating_mul(percent) / 100;
    let found = sorted.get(place.min(sorted.len().saturating_sub(1)));
    found.map_or(f64::NAN, |micros| *micros as f64 / 1e3)
}

/// The server's histogram: calls that took up to so many seconds, by that.
#[derive(Clone, Debug, PartialEq)]
struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    async fn of(scheduler: &Scheduler) -> anyhow::Result<Self> {
        let read = Self::read(&scheduler.metrics().await?);
        read.context("no muster_filter_duration_seconds")
    }

    fn read(page: &str) -> Option<Self> {
        let bucket = |line: &str| {
            let rest = line.strip_prefix("muster_filter_duration_seconds_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            // OpenMetrics writes the last bound as +Inf.
            Some((bound.parse().ok()?, count.parse().ok()?))
        };
        let buckets: Vec<_> = page.lines().filter_map(bucket).collect();
        (!buckets.is_empty()).then_some(Self(buckets))
    }

    fn since(&self, before: &Self) -> Self {
        let pairs = self.0.iter().zip(&before.0);
        Self(
            pairs
                .map(|((bound, now), (_, then))| (*bound, now - then))
                .collect(),
        )
    }

    fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// Time within which such a share was answered, seconds, spread evenly within a bucket.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = self.count() * share;
        let (mut from, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= wanted && *count > below {
                let part = (wanted - below) / (count - below);
                return from + (bound - from) * part;
            }
            (from, below) = (*bound, *count);
        }
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_read_between_the_bounds_of_its_bucket() {
        let page = "muster_filter_duration_seconds_bucket{le=\"0.001\"} 50\n\
                    muster_filter_duration_seconds_bucket{le=\"0.002\"} 100\n\
                    muster_filter_duration_seconds_bucket{le=\"+Inf\"} 100\n";
        let all = Histogram::read(page).unwrap();
        assert_eq!(all.count(), 100.0);
        assert!((all.quantile(0.75) - 0.0015).abs() < 1e-9);
        let none = all.since(&all);
        assert!(none.quantile(0.99).is_nan());
        assert_eq!(Histogram::read("other 1\n"), None);
    }

    #[test]
    fn a_percentile_of_few_is_one_of_them() {
        assert_eq!(quantile(&[1_000, 2_000, 3_000], 99), 3.0);
        assert!(quantile(&[], 50).is_nan());
    }
}
