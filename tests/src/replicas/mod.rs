//! Several pairs of Muster and kube-scheduler on the embedded cluster, in one thread on the paused clock.
//!
//! ```text
//!   pair a: kube-scheduler ──► Muster ──┐               ┌── agents stream to every pair
//!              │ Lease of the pair      ├──► API server ┤
//!   pair b: kube-scheduler ──► Muster ──┘               └── Recorder and judge
//!              Net: cuts a pair off, brings a Binding late
//! ```
//!
//! A pair is what a Pod is in production: kube-scheduler asks only the Muster beside it, and follows a
//! Lease that this Muster keeps.

mod elected;
mod net;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::SignedDuration;
use muster_agent::connector::IoConnector;
use muster_agent::profile::Profile;
use muster_control_plane::history::{Change, GangRule, History, Recorder};
use muster_embedded::standins::agents::{Agents, AgentsConfig};
use muster_embedded::{EmbeddedCluster, NodePool, value};
use muster_kubernetes::{manifests, names};
use muster_scheduler::clock::Wall;
use muster_scheduler::config::Config;
use muster_scheduler::gate::PairLease;
use muster_scheduler::hold::Hold;
use muster_scheduler::scheduler::{Clients, Ended, Options, Scheduler};
use tokio::time::Instant;

use crate::sim::DOOR;
use crate::sim::doors::Doors;
use crate::sim::{self, GANGS, PODS, SOON, bound};
use crate::stack::PARTIAL_MAX;

pub use net::Net;

use elected::Elected;

/// Group and plural of Leases.
pub const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
/// Longest time from a fault to the next bound gang.
pub const FAILOVER_MAX: Duration = Duration::from_secs(20);

/// One pair.
struct Pair {
    doors: Arc<Doors>,
    muster: Option<Scheduler>,
    kube_scheduler: Option<Elected>,
    /// By how much its wall clock is wrong.
    skew: SignedDuration,
    starts: u32,
}

/// The running cluster with its pairs.
pub struct Replicas {
    /// API server and stand-ins.
    pub cluster: EmbeddedCluster,
    /// What the API server said.
    pub recorder: Recorder,
    /// The fake agents.
    pub agents: Agents,
    /// What is between pairs and API server.
    pub net: Arc<Net>,
    /// Muster's configuration.
    pub config: Config,
    doors: BTreeMap<&'static str, Arc<Doors>>,
    pairs: BTreeMap<&'static str, Pair>,
    seed: u64,
}

impl Replicas {
    /// Starts the cluster and the pairs of these names, one after the other: the first leads.
    pub async fn start(
        seed: u64,
        nodes: usize,
        pairs: &[(&'static str, SignedDuration)],
        config: Config,
    ) -> anyhow::Result<Self> {
        Self::start_with_room(seed, nodes, pairs, &[], config).await
    }

    /// The same, with addresses for further pairs that agents look for from the start.
    pub async fn start_with_room(
        seed: u64,
        nodes: usize,
        pairs: &[(&'static str, SignedDuration)],
        further: &[&'static str],
        config: Config,
    ) -> anyhow::Result<Self> {
        let cluster = EmbeddedCluster::builder()
            .seed(seed)
            .nodes(sim::gpu_pool(nodes))
            .nodes(NodePool::new("cpu", 1, 0))
            .admission_policies()
            .start()?;
        cluster.apply_yaml(&manifests::crds())?;
        cluster.apply_yaml(&manifests::rbac())?;
        let net = Arc::new(Net::default());
        cluster.set_faults(Arc::clone(&net) as _);
        let time = cluster.api().clock().clone();
        let recorder =
            Recorder::start_with(cluster.client("recorder"), Arc::new(move || time.now())).await?;
        let names = pairs.iter().map(|(name, _)| name).chain(further);
        let doors: BTreeMap<&'static str, Arc<Doors>> =
            names.map(|name| (*name, Arc::default())).collect();
        let agents = agents(&cluster, &doors, seed)?;
        let mut replicas = Self {
            cluster,
            recorder,
            agents,
            net,
            config,
            doors,
            pairs: BTreeMap::new(),
            seed,
        };
        for (name, skew) in pairs {
            replicas.make_pair(name, *skew)?;
            if replicas.pairs.len() == 1 {
                replicas.until_leads(name).await?;
            }
        }
        replicas.until_heard().await?;
        Ok(replicas)
    }

    fn make_pair(&mut self, name: &'static str, skew: SignedDuration) -> anyhow::Result<()> {
        let pair = Pair {
            doors: self.doors.get(name).cloned().context("no address")?,
            muster: None,
            kube_scheduler: None,
            skew,
            starts: 0,
        };
        self.pairs.insert(name, pair);
        self.start_muster(name)?;
        self.start_kube_scheduler(name)
    }

    /// Adds a pair, and waits until it counts as available: every agent has a stream to it.
    pub async fn add_pair(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.make_pair(name, SignedDuration::ZERO)?;
        self.until_heard().await
    }

    fn pair(&mut self, name: &str) -> anyhow::Result<&mut Pair> {
        self.pairs
            .get_mut(name)
            .with_context(|| format!("pair {name}"))
    }

    /// Starts a pair's Muster, as a new process of the same Pod.
    pub fn start_muster(&mut self, name: &'static str) -> anyhow::Result<()> {
        let client = self.cluster.client(&net::muster(name));
        let now = self.cluster.api().clock().now();
        let (config, seed) = (self.config.clone(), self.seed);
        let pair = self.pair(name)?;
        pair.starts = pair.starts.saturating_add(1);
        let options = Options {
            identity: format!("{name}@{}", pair.starts),
            seed: seed
                .wrapping_mul(31)
                .wrapping_add(u64::from(pair.starts))
                .wrapping_add(name.bytes().map(u64::from).sum()),
            wall: Wall::following(now.saturating_add(pair.skew)?),
            agents_believed: false,
        };
        let clients = Clients::from(client.clone());
        let mut muster = Scheduler::start(&clients, &config, &options);
        let lease = PairLease {
            client,
            namespace: config.lease.namespace.clone(),
            replica: name.to_owned(),
            uid: None,
        };
        muster.keep_gate(lease, &config.lease.name);
        pair.doors.open(DOOR, &muster, Hold::default());
        pair.muster = Some(muster);
        Ok(())
    }

    /// Starts a pair's kube-scheduler.
    pub fn start_kube_scheduler(&mut self, name: &'static str) -> anyhow::Result<()> {
        let api = self.cluster.api().clone();
        let client = self.cluster.client(&net::kube_scheduler(name));
        let pair = self.pair(name)?;
        let config = sim::kube_scheduler(&pair.doors, sim::printed_percentage()?);
        let lease = names::kube_scheduler_lease(name);
        pair.kube_scheduler = Some(Elected::start(api, client, lease, name, config));
        Ok(())
    }

    /// Ends a pair's Muster as SIGKILL does.
    pub async fn kill_muster(&mut self, name: &str) -> anyhow::Result<()> {
        let pair = self.pair(name)?;
        pair.doors.close(DOOR);
        if let Some(muster) = pair.muster.take() {
            muster.kill().await;
        }
        Ok(())
    }

    /// Ends both of a pair at once, as the death of its node does.
    pub async fn kill_pair(&mut self, name: &str) -> anyhow::Result<()> {
        self.kill_kube_scheduler(name).await?;
        self.kill_muster(name).await
    }

    /// Ends a pair's kube-scheduler as SIGKILL does.
    pub async fn kill_kube_scheduler(&mut self, name: &str) -> anyhow::Result<()> {
        if let Some(kube_scheduler) = self.pair(name)?.kube_scheduler.take() {
            kube_scheduler.kill().await;
        }
        Ok(())
    }

    /// Ends both of a pair as SIGTERM does: the Lease is given back.
    pub async fn stop_pair(&mut self, name: &str) -> anyhow::Result<()> {
        let pair = self.pair(name)?;
        if let Some(mut muster) = pair.muster.take() {
            muster.stop().await;
        }
        pair.doors.close(DOOR);
        self.kill_kube_scheduler(name).await
    }

    /// Waits until a pair's Muster ends by itself; says why. Its process is gone then.
    pub async fn ended(&mut self, name: &str) -> anyhow::Result<Ended> {
        let pair = self.pair(name)?;
        let muster = pair.muster.as_mut().context("no Muster runs")?;
        let ended = tokio::time::timeout(SOON, muster.ended()).await;
        let ended = ended.with_context(|| format!("{name} did not end within {SOON:?}"))?;
        self.kill_muster(name).await?;
        Ok(ended)
    }

    /// Whether a pair's Muster holds Muster's Lease, by its own word.
    pub fn leads(&self, name: &str) -> bool {
        let muster = self.pairs.get(name).and_then(|pair| pair.muster.as_ref());
        muster.is_some_and(Scheduler::leads)
    }

    /// Whether a pair's kube-scheduler works.
    pub fn works(&self, name: &str) -> bool {
        let pair = self.pairs.get(name);
        let kube_scheduler = pair.and_then(|pair| pair.kube_scheduler.as_ref());
        kube_scheduler.is_some_and(Elected::works)
    }

    /// Pairs whose kube-scheduler works.
    pub fn working(&self) -> Vec<&'static str> {
        let names = self.pairs.keys().copied();
        names.filter(|name| self.works(name)).collect()
    }

    /// What `/readyz` of a pair would complain of: the kube-scheduler beside it.
    pub fn metrics(&self, name: &str) -> String {
        let muster = self.pairs.get(name).and_then(|pair| pair.muster.as_ref());
        muster
            .map(|muster| muster.metrics().text())
            .unwrap_or_default()
    }

    /// Waits until a pair leads, its kube-scheduler with it.
    pub async fn until_leads(&self, name: &str) -> anyhow::Result<()> {
        self.until_true(&format!("{name} leads"), || {
            self.leads(name) && self.works(name)
        })
        .await
    }

    /// Waits until every agent has a stream to every pair whose Muster runs.
    pub async fn until_heard(&self) -> anyhow::Result<()> {
        let nodes = self.agents.with(|fleet| fleet.nodes().count()).unwrap_or(0);
        let up = || self.agents.with(|fleet| fleet.streams_up()).unwrap_or(0);
        let running = self.pairs.values().filter(|pair| pair.muster.is_some());
        let wanted = nodes.saturating_mul(running.count());
        self.until_true(&format!("{wanted} streams"), || up() >= wanted)
            .await
    }

    /// Waits until `holds`, looking ten times a second.
    pub async fn until_true(
        &self,
        what: &str,
        mut holds: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + SOON;
        while !holds() {
            if Instant::now() > end {
                bail!("waited {SOON:?} for: {what}\n{}", self.picture());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Waits until so many live pods with this prefix are bound; returns the time that it took.
    pub async fn until_bound(&self, prefix: &str, pods: usize) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let done = self
            .cluster
            .wait_for(&format!("{pods} bound of {prefix}"), SOON, |cluster| {
                bound(cluster, prefix).len() == pods
            })
            .await;
        done.with_context(|| self.picture())?;
        Ok(started.elapsed())
    }

    /// Lets time pass.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Who holds a Lease of Muster's namespace.
    pub fn holder(&self, lease: &str) -> String {
        let lease = self.cluster.get(LEASES, names::NAMESPACE, lease);
        lease
            .map(|lease| value::text(&lease, &["spec", "holderIdentity"]).to_owned())
            .unwrap_or_default()
    }

    /// Judges what has happened: all of it was seen, nothing over-committed, no gang in part for longer
    /// than a repair and a failover take, and no Binding of an earlier leader after one of a later.
    pub async fn judge(&self) -> anyhow::Result<History> {
        let history = self.recorder.caught_up(Duration::from_secs(30)).await?;
        if let Some(gaps) = history.unseen() {
            bail!(gaps);
        }
        if let Some(first) = history.over_commitments().first() {
            bail!("over-committed: {first}");
        }
        let rule = GangRule::new(PARTIAL_MAX + FAILOVER_MAX);
        if let Some(first) = history.partial_gangs(&rule).first() {
            bail!("a partial gang: {first}");
        }
        if let Some(late) = binding_of_an_earlier_leader(&history) {
            bail!("{late}\n{}", self.picture());
        }
        for name in self.pairs.keys() {
            let text = self.metrics(name);
            let broken = text.lines().find(|line| {
                line.starts_with("muster_invariant_violations") && !line.ends_with(" 0")
            });
            if let Some(line) = broken {
                bail!("{name} found an invariant broken: {line}");
            }
        }
        Ok(history)
    }

    /// Leases, gangs, pods and the last writes as lines.
    pub fn picture(&self) -> String {
        let seconds = self.cluster.api().clock().elapsed().as_secs();
        let mut lines = vec![format!("at {seconds} s")];
        for (name, pair) in &self.pairs {
            let runs = pair.muster.is_some();
            let (leads, works) = (self.leads(name), self.works(name));
            lines.push(format!(
                "pair {name}: Muster runs {runs}, leads {leads}, kube-scheduler works {works}"
            ));
        }
        for lease in self.cluster.list(LEASES) {
            let holder = value::text(&lease, &["spec", "holderIdentity"]);
            lines.push(format!("lease {} {holder}", value::name(&lease)));
        }
        for (kind, fields) in [
            (GANGS, [["status", "phase"], ["status", "message"]]),
            (PODS, [["status", "phase"], ["spec", "nodeName"]]),
        ] {
            for object in self.cluster.list(kind) {
                let [one, other] = fields.map(|path| value::text(&object, &path).to_owned());
                lines.push(format!("{} {} {one} {other}", kind.1, value::name(&object)));
            }
        }
        let mut writes = self.cluster.api().writes_since(0);
        writes.retain(|write| !write.resource.starts_with("leases"));
        let tail = writes.len().saturating_sub(30);
        let tail = writes.iter().skip(tail);
        lines.extend(tail.map(muster_embedded::api::history::Write::line));
        lines.join("\n")
    }

    /// Ends everything.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let names: Vec<&'static str> = self.pairs.keys().copied().collect();
        for name in names {
            self.stop_pair(name).await?;
        }
        self.agents.stop().await;
        self.cluster.stop().await;
        Ok(())
    }
}

/// A pod that was bound under an earlier epoch than one before it, as the records on the pods say.
pub fn binding_of_an_earlier_leader(history: &History) -> Option<String> {
    let mut bound: BTreeSet<&str> = BTreeSet::new();
    let mut highest = 0_u64;
    for event in history.events() {
        let Change::Pod(pod) = &event.change else {
            continue;
        };
        if pod.node.is_none() || !bound.insert(&pod.uid) {
            continue;
        }
        let epoch = pod.annotations.get(names::EPOCH);
        let Some(epoch) = epoch.and_then(|epoch| epoch.parse::<u64>().ok()) else {
            continue;
        };
        // In a gap nobody knows who was bound first.
        if epoch < highest && !history.is_unseen_at(event.at) {
            let name = &pod.name;
            return Some(format!(
                "{name} was bound in epoch {epoch}, after epoch {highest} had bound others"
            ));
        }
        highest = highest.max(epoch);
    }
    None
}

fn agents(
    cluster: &EmbeddedCluster,
    doors: &BTreeMap<&'static str, Arc<Doors>>,
    seed: u64,
) -> anyhow::Result<Agents> {
    let names: Vec<String> = doors.keys().map(|name| (*name).to_owned()).collect();
    let doors: BTreeMap<String, Arc<Doors>> = doors
        .iter()
        .map(|(name, doors)| ((*name).to_owned(), Arc::clone(doors)))
        .collect();
    let open = move |replica: muster_agent::connector::Replica| {
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let pipe = match doors.get(&replica.0) {
            Some(doors) => doors.connect(DOOR),
            None => Err(refused()),
        };
        async move { pipe }
    };
    let config = AgentsConfig {
        connector: Arc::new(IoConnector::new(names, open)),
        profile: Arc::new(Profile::load("h100-8")?),
        start_spread: Duration::from_millis(500),
        seed,
    };
    Ok(Agents::start(cluster, config)?)
}
