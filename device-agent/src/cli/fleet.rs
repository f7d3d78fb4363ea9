//! `muster-agent fleet`.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config};
use muster_agent::connector::FileToken;
use muster_agent::fleet::{Fleet, FleetConfig, FleetKubelet, FleetNode, NODES_MAX};
use muster_agent::profile::Profile;
use muster_agent::scenario::Scenario;

use super::{FakeArgs, SchedulerArgs, stop_signal, tokens};

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(2);

/// Arguments of `fleet`.
#[derive(Debug, Args)]
pub struct FleetArgs {
    #[command(flatten)]
    scheduler: SchedulerArgs,
    #[command(flatten)]
    fake: FakeArgs,
    /// Play the nodes of this cluster.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "count",
        conflicts_with = "count"
    )]
    kubeconfig: Option<PathBuf>,
    /// Only nodes with these labels, e.g. pool=gpu,!maintenance.
    #[arg(
        long,
        value_name = "SELECTOR",
        requires = "kubeconfig",
        conflicts_with = "count"
    )]
    node_selector: Option<String>,
    /// Play this many nodes without a cluster.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Names of counted nodes begin with this.
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "gpu-",
        conflicts_with = "kubeconfig"
    )]
    prefix: String,
    /// Directory with one token file per node, named as the node. Without it no token is presented (a scheduler with --insecure-loopback).
    #[arg(long, value_name = "DIR")]
    token_dir: Option<PathBuf>,
    /// Nodes start at random times within this many seconds. Default: 1 s per 500 nodes, at least 1.
    #[arg(long, value_name = "SECONDS")]
    spread: Option<f64>,
    /// Seed of start times and reconnects.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// What the nodes' kubelets say.
    #[arg(long, value_enum, default_value_t = KubeletKind::Simulated)]
    kubelet: KubeletKind,
}

/// What the nodes' kubelets say.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KubeletKind {
    /// Every device can be handed out, no pod holds any.
    Simulated,
    /// Nothing: they cannot be asked.
    Unknown,
}

struct Plan {
    profile: Arc<Profile>,
    scenario: Option<Arc<Scenario>>,
}

impl Plan {
    fn node(&self, name: String, uid: String) -> FleetNode {
        FleetNode {
            name,
            uid,
            profile: Arc::clone(&self.profile),
            scenario: self.scenario.clone(),
        }
    }
}

/// Plays nodes until a signal comes.
pub async fn fleet(args: FleetArgs) -> Result<ExitCode> {
    let tokens = tokens(args.token_dir.clone().map(FileToken::Directory));
    let connector = args.scheduler.connector(&tokens)?;
    let (profile, scenario) = args.fake.load()?;
    let plan = Plan { profile, scenario };
    let count = args.count.unwrap_or(0);
    if count > NODES_MAX {
        bail!("--count is {count}, must be at most {NODES_MAX}");
    }
    let spread = args
        .spread
        .unwrap_or_else(|| (count as f64 / 500.0).max(1.0));
    if !(0.0..=3600.0).contains(&spread) {
        bail!("--spread is {spread}, must be 0 to 3600 seconds");
    }
    let watching = match &args.kubeconfig {
        Some(path) => Some(watch_nodes(path, args.node_selector.as_deref()).await?),
        None => None,
    };
    let fleet = Fleet::start(FleetConfig {
        nodes: (0..count)
            .map(|n| plan.node(format!("{}{n}", args.prefix), String::new()))
            .collect(),
        start_spread: Duration::from_secs_f64(spread),
        seed: args.seed,
        kubelet: match args.kubelet {
            KubeletKind::Simulated => FleetKubelet::Simulated,
            KubeletKind::Unknown => FleetKubelet::Unknown,
        },
        ..FleetConfig::new(connector, tokens.provider)
    })?;
    play(fleet, plan, watching).await
}

type Nodes = BoxStream<'static, watcher::Result<Event<Node>>>;

async fn watch_nodes(path: &PathBuf, selector: Option<&str>) -> Result<Nodes> {
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .context("--kubeconfig")?;
    let nodes: Api<Node> = Api::all(Client::try_from(config)?);
    let mut filter = watcher::Config::default();
    if let Some(selector) = selector {
        filter = filter.labels(selector);
    }
    // With a wait between failures; a stream that only failed at once would spin.
    let stream = kube::runtime::WatchStreamExt::default_backoff(watcher::watcher(nodes, filter));
    Ok(stream.boxed())
}

async fn play(mut fleet: Fleet, plan: Plan, mut watching: Option<Nodes>) -> Result<ExitCode> {
    let mut progress = tokio::time::interval(PROGRESS);
    let mut shown = String::new();
    let mut listed = BTreeSet::new();
    let stop = stop_signal();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            reason = &mut stop => {
                reason?;
                break;
            }
            event = next_event(&mut watching) => match event {
                Ok(event) => follow(&mut fleet, &plan, &mut listed, event).await,
                Err(error) => tracing::warn!(%error, "watching nodes"),
            },
            _ = progress.tick() => show(&fleet, &mut shown),
        }
    }
    eprintln!("\nfleet: stopping {} nodes", fleet.nodes().count());
    fleet.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn next_event(watching: &mut Option<Nodes>) -> watcher::Result<Event<Node>> {
    if let Some(stream) = watching {
        if let Some(event) = stream.next().await {
            return event;
        }
        *watching = None;
    }
    std::future::pending().await
}

async fn follow(fleet: &mut Fleet, plan: &Plan, listed: &mut BTreeSet<String>, event: Event<Node>) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(node) => {
            listed.extend(node.metadata.name.clone());
            add(fleet, plan, node).await;
        }
        Event::InitDone => {
            let gone: Vec<String> = fleet
                .nodes()
                .filter(|name| !listed.contains(*name))
                .map(str::to_owned)
                .collect();
            for name in gone {
                remove(fleet, &name).await;
            }
        }
        Event::Apply(node) => add(fleet, plan, node).await,
        Event::Delete(node) => {
            if let Some(name) = node.metadata.name {
                remove(fleet, &name).await;
            }
        }
    }
}

async fn add(fleet: &mut Fleet, plan: &Plan, node: Node) {
    let (Some(name), uid) = (node.metadata.name, node.metadata.uid.unwrap_or_default()) else {
        return;
    };
    match fleet.uid(&name) {
        Ok(held) if held == uid => return,
        // The node was deleted and made again while nobody watched.
        Ok(_) => remove(fleet, &name).await,
        Err(_) => {}
    }
    if let Err(error) = fleet.add_node(plan.node(name, uid)) {
        tracing::warn!(%error, "cannot play the node");
    }
}

async fn remove(fleet: &mut Fleet, name: &str) {
    if let Err(error) = fleet.remove_node(name).await {
        tracing::debug!(%error, "a node went that was not played");
    }
}

/// One line that is drawn over on a terminal; elsewhere a line for each change.
fn show(fleet: &Fleet, shown: &mut String) {
    let line = format!(
        "fleet: {} nodes, {} streams up",
        fleet.nodes().count(),
        fleet.streams_up()
    );
    if *shown == line {
        return;
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r{line}   ");
    } else {
        eprintln!("{line}");
    }
    *shown = line;
}
