//! 15,000 agents on one scheduler, each with a TLS connection and a token that is reviewed: what they cost while
//! nothing happens, how they come back when the scheduler was killed, and what those that say too much do to it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use muster_control_plane::Child;

use super::figures::{Report, mib};
use super::flood::{self, Flood, Way};
use super::objects::{self, GPUS, NAMESPACE, Whose};
use super::process;
use super::world::{PODS, Scheduler, World};
use crate::http::metric;
use crate::programs::Programs;

/// Rest after the last agent has reported.
const REST: Duration = Duration::from_secs(20);
/// Longest wait for all agents.
const JOINED_MAX: Duration = Duration::from_secs(600);
/// Pause between two looks at a scheduler that starts.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Files of the scheduler, or of the fleet, besides a connection for each agent.
const OTHER_FILES: u64 = 300;
/// Name and size of the gang that is submitted while the scheduler is down.
const GANG: (&str, u32) = ("early", 10);
/// Time for memory and caches to settle under the flood.
const FLOOD_SETTLES: Duration = Duration::from_secs(15);
/// Time for which the flood is watched after that: longer than a report counts, so that an agent that is not
/// served shows.
const FLOOD_LASTS: Duration = Duration::from_secs(45);

/// Measures so many agents, and so many that say too much.
pub async fn measure(
    programs: &Programs,
    agents: u32,
    floods: u32,
    seconds: u64,
) -> anyhow::Result<Report> {
    let needed = u64::from(agents) + u64::from(floods) + OTHER_FILES;
    if let Some(files) = process::files_max() {
        ensure!(
            files >= needed,
            "a process may open {files} files here, {needed} are needed: raise `ulimit -n`, or give fewer --agents"
        );
    }
    let mut report = Report::new(&[
        ("agents", u64::from(agents)),
        ("floods", u64::from(floods)),
        ("seconds", seconds),
    ]);
    let world = World::start(programs).await?;
    let tokens = tokens(&world, agents)?;
    let most = (agents + floods + 100).max(20_000);
    let mut scheduler = world
        .scheduler(&format!("agents: {{streamsMax: {most}}}\n"))
        .await?;
    eprintln!("agents: starting {agents}");
    let mut fleet = start_fleet(&world, &scheduler, agents, &tokens)?;
    let all = |page: &str| is_complete(page, agents);
    scheduler.until("all agents", JOINED_MAX, all).await?;
    tokio::time::sleep(REST).await;
    idle(&mut scheduler, agents, seconds, &mut report).await?;
    restart(&world, &mut scheduler, agents, &mut report).await?;
    fleet.check_running()?;
    tokio::time::sleep(REST).await;
    flooded(&world, &mut scheduler, (agents, floods), &mut report).await?;
    fleet.check_running()?;
    world.stop().await;
    Ok(report)
}

/// Makes a node for each agent and a token for each node, in a file of the node's name.
fn tokens(world: &World, agents: u32) -> anyhow::Result<PathBuf> {
    let folder = world.file("tokens");
    std::fs::create_dir_all(&folder)?;
    for name in (0..agents).map(|index| format!("gpu-{index}")) {
        world.cluster.create(objects::node(&name))?;
        std::fs::write(folder.join(&name), world.cluster.mint_node_token(&name))?;
    }
    Ok(folder)
}

fn start_fleet(
    world: &World,
    scheduler: &Scheduler,
    agents: u32,
    tokens: &std::path::Path,
) -> anyhow::Result<Child> {
    let (count, url) = (agents.to_string(), flood::url(scheduler));
    let tokens = tokens.to_str().context("a path")?;
    let authority = world.authority.ca();
    let authority = authority.to_str().context("a path")?;
    let arguments = [
        "fleet",
        "--scheduler",
        &url,
        "--profile",
        "h100-8",
        "--count",
        &count,
        "--prefix",
        "gpu-",
        "--token-dir",
        tokens,
        "--ca-file",
        authority,
    ];
    world.agent(&arguments, &[])
}

/// Every agent has a stream, and what it says is believed.
fn is_complete(page: &str, agents: u32) -> bool {
    let least = f64::from(agents);
    metric(page, "muster_agents") >= least && metric(page, "muster_nodes_reported") >= least
}

async fn idle(
    scheduler: &mut Scheduler,
    agents: u32,
    seconds: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("agents: idle");
    let said = |page: &str| metric(page, "muster_agent_messages_total");
    let before = said(&scheduler.metrics().await?);
    let cost = process::watch(&mut scheduler.child, Duration::from_secs(seconds)).await?;
    let page = scheduler.metrics().await?;
    let messages = (said(&page) - before) / seconds as f64;
    ensure!(
        is_complete(&page, agents),
        "agents went away while nothing happened"
    );
    // A heartbeat each 10 s.
    ensure!(
        messages >= f64::from(agents) / 20.0,
        "agents say {messages} messages a second"
    );
    report.hold("memory", mib(cost.rss_bytes), "MiB", 1024.0, 512.0);
    report.hold(
        "idle: processor time, of a core",
        cost.cores * 100.0,
        "%",
        15.0,
        5.0,
    );
    report.tell("idle: messages", messages, "1/s");
    report.tell(
        "idle: others' share of the machine",
        cost.others * 100.0,
        "%",
    );
    Ok(())
}

/// What was seen after the scheduler was killed, by the time since then.
#[derive(Default)]
struct Seen {
    leads: Option<Duration>,
    complete: Option<Duration>,
    /// When the gang had a durable plan, and how many agents had reported by then.
    planned: Option<(Duration, f64)>,
}

/// Kills the scheduler, submits a gang while nobody is there, and starts it again.
async fn restart(
    world: &World,
    scheduler: &mut Scheduler,
    agents: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("agents: the scheduler is killed and starts again");
    let (gang, size) = GANG;
    scheduler.child.kill();
    let killed = Instant::now();
    for index in 0..size {
        let whose = Whose::Gang { name: gang, size };
        world
            .cluster
            .create(objects::pod(&whose, index, GPUS, None))?;
    }
    scheduler.child.start_again()?;
    let seen = watch_restart(world, scheduler, agents, killed).await?;
    let (Some(leads), Some(complete), Some((planned, heard))) =
        (seen.leads, seen.complete, seen.planned)
    else {
        bail!("not all was seen");
    };
    for index in 0..size {
        let name = format!("{gang}-{index}");
        world.cluster.delete(PODS, NAMESPACE, &name)?;
    }
    let peak = scheduler.child.usage()?.rss_peak_bytes;
    report.tell("restart: kill until it leads", leads.as_secs_f64(), "s");
    report.hold(
        "restart: kill until all agents are back",
        complete.as_secs_f64(),
        "s",
        60.0,
        30.0,
    );
    report.tell(
        "restart: kill until the first new plan",
        planned.as_secs_f64(),
        "s",
    );
    let missing = (f64::from(agents) - heard).max(0.0) / f64::from(agents) * 100.0;
    report.hold(
        "restart: agents not heard at that plan",
        missing,
        "%",
        5.0,
        1.0,
    );
    report.hold("restart: memory at most", mib(peak), "MiB", 1024.0, 512.0);
    Ok(())
}

async fn watch_restart(
    world: &World,
    scheduler: &mut Scheduler,
    agents: u32,
    killed: Instant,
) -> anyhow::Result<Seen> {
    let object = format!("label-{}", GANG.0);
    let mut seen = Seen::default();
    while seen.planned.is_none() || seen.complete.is_none() {
        let page = scheduler.metrics().await.unwrap_or_default();
        // Each agent that is back says everything once; the gauge of nodes is a second old at times.
        let heard = metric_of(&page, "muster_agent_messages_total{kind=\"snapshot\"}");
        if seen.leads.is_none() && metric(&page, "muster_leading") > 0.0 {
            seen.leads = Some(killed.elapsed());
        }
        if seen.complete.is_none() && is_complete(&page, agents) {
            seen.complete = Some(killed.elapsed());
        }
        let has_plan = || world.gang(&object)?.get("planId").map(|_| ());
        if seen.planned.is_none() && has_plan().is_some() {
            seen.planned = Some((killed.elapsed(), heard));
        }
        scheduler.child.check_running()?;
        if killed.elapsed() > JOINED_MAX {
            bail!(
                "after {JOINED_MAX:?} {heard} agents are back, planned: {:?}; the last lines:\n{}",
                seen.planned,
                scheduler.child.log_tail()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(seen)
}

/// One series of a page.
fn metric_of(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.and_then(|rest| rest.trim().parse().ok())
        .unwrap_or(0.0)
}

/// Some agents say too much; the others must be served, and memory must not grow.
async fn flooded(
    world: &World,
    scheduler: &mut Scheduler,
    (agents, floods): (u32, u32),
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("agents: {floods} more say too much");
    let enter = |name: String| -> anyhow::Result<(String, String)> {
        world.cluster.create(objects::node(&name))?;
        let token = world.cluster.mint_node_token(&name);
        Ok((name, token))
    };
    let loud: Vec<_> = (0..floods)
        .map(|index| enter(format!("loud-{index}")))
        .collect::<Result<_, _>>()?;
    let (quiet, token) = enter("quiet".to_owned())?;
    let way = Way::to(world, scheduler)?;
    let said = |page: &str| metric(page, "muster_agent_messages_total");
    let flood = Flood::start(&way, loud);
    tokio::time::sleep(FLOOD_SETTLES).await;
    let (first, before) = (scheduler.child.usage()?, scheduler.metrics().await?);
    let sent = flood.said();
    let witness = tokio::spawn(flood::witness(way, quiet, token, FLOOD_LASTS));
    let since = Instant::now();
    let mut unheard = 0.0_f64;
    let mut page = String::new();
    while since.elapsed() < FLOOD_LASTS {
        tokio::time::sleep(Duration::from_secs(1)).await;
        page = scheduler.metrics().await?;
        // The loud ones may count as heard or not: none of the others may be missing.
        unheard = unheard.max(f64::from(agents) - metric(&page, "muster_nodes_reported"));
    }
    let (last, seconds) = (scheduler.child.usage()?, since.elapsed().as_secs_f64());
    let sent = flood.said().saturating_sub(sent);
    drop(flood);
    let waits = witness.await??;
    let cut = metric_of(&page, "muster_agent_refusals_total{cause=\"limit\"}");
    ensure!(cut > 0.0, "nobody was cut off for saying too much");
    let most = f64::from(floods) / 2.0 * 5.0;
    let rate = sent as f64 / seconds;
    ensure!(
        rate > most,
        "the loud ones say {rate} reports a second only"
    );
    let grown = mib(last.rss_bytes) - mib(first.rss_bytes);
    report.hold("flood: memory grown in 45 s", grown, "MiB", 64.0, 16.0);
    report.hold(
        "flood: other agents not heard",
        unheard.max(0.0),
        "",
        0.0,
        0.0,
    );
    let place = waits.len().saturating_mul(99) / 100;
    let slow = waits.get(place.min(waits.len().saturating_sub(1)));
    let slow = slow.context("heartbeats")?.as_secs_f64() * 1e3;
    report.tell("flood: another agent waits for its answer, p99", slow, "ms");
    report.tell("flood: reports sent", rate, "1/s");
    let taken = (said(&page) - said(&before)) / seconds;
    report.tell("flood: messages taken in, of all agents", taken, "1/s");
    let used = last.cpu.saturating_sub(first.cpu).as_secs_f64() / seconds;
    report.tell("flood: processor time, of a core", used * 100.0, "%");
    Ok(())
}
