//! The whole production scheduler on the embedded cluster, in one thread on tokio's paused clock.
//!
//! ```text
//!   stand-in kube-scheduler ── extender's router, in process ──┐
//!   fake agents ── gRPC over pipes in memory ──────────────────┼──► Scheduler ── kube client, in process ──► API server
//!   Recorder: pods, nodes, jobs at every version ──► the same judge as on the real control plane
//!   Script: kills the scheduler after a write, refuses a write, loses an answer
//! ```
//!
//! Nothing here uses a socket, a file, a thread or the wall clock: equal seeds give equal event logs.

pub(crate) mod doors;
#[cfg(debug_assertions)]
pub mod planting;
mod script;
pub mod steps;
pub mod storm;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use muster_agent::connector::{Connector, IoConnector, Replica};
use muster_agent::profile::Profile;
use muster_agent::scenario::FaultEvent;
use muster_control_plane::history::{GangRule, History, Minimum, Recorder};
use muster_embedded::cluster::Running;
use muster_embedded::standins::agents::{Agents, AgentsConfig};
use muster_embedded::standins::extender::of_muster;
use muster_embedded::standins::kubelet::{Holder, KubeletConfig};
use muster_embedded::standins::operator::OperatorConfig;
use muster_embedded::standins::scheduler::SchedulerConfig;
use muster_embedded::{EmbeddedCluster, NodePool, value, yaml};
use muster_kubernetes::manifests;
use muster_scheduler::clock::Wall;
use muster_scheduler::config::Config;
use muster_scheduler::hold::Hold;
use muster_scheduler::scheduler::{Clients, Ended, Options, Scheduler};
use serde_json::{Value, json};

pub use script::{Script, Trap};

use crate::stack::PARTIAL_MAX;
use doors::Doors;

/// Group and plural of pods.
pub const PODS: (&str, &str) = ("", "pods");
/// Group and plural of nodes.
pub const NODES: (&str, &str) = ("", "nodes");
/// Group and plural of PyTorchJobs.
pub const JOBS: (&str, &str) = ("kubeflow.org", "pytorchjobs");
/// Group and plural of Gangs.
pub const GANGS: (&str, &str) = ("muster.dev", "gangs");
/// Group and plural of Leases.
pub const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
/// Long enough for anything that should happen; costs nothing on the paused clock.
pub const SOON: Duration = Duration::from_secs(120);
/// Time for another replica to take the Lease of one that was killed, and to list everything.
const TAKEOVER: Duration = Duration::from_secs(20);
/// The name of the scheduler's doors, where there is one scheduler.
pub(crate) const DOOR: &str = "muster";
/// The name under which the scheduler's requests appear in the log and to the script.
pub const CLIENT: &str = "muster-scheduler";

/// How a simulation is put together.
pub struct SimOptions {
    /// Seed of everything.
    pub seed: u64,
    /// Pools of nodes.
    pub pools: Vec<NodePool>,
    /// Install the admission policies that hold jobs and gate pods.
    pub policies: bool,
    /// How training-operator is run.
    pub operator: Option<OperatorConfig>,
    /// Muster's configuration.
    pub config: Config,
    /// `percentageOfNodesToScore` of kube-scheduler, where it is not what `print kube-scheduler-config` says.
    pub percentage_of_nodes: Option<u32>,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            pools: vec![gpu_pool(4), NodePool::new("cpu", 1, 0)],
            policies: true,
            operator: Some(OperatorConfig::default()),
            config: Config::default(),
            percentage_of_nodes: None,
        }
    }
}

impl SimOptions {
    /// With a pool of this many GPU nodes and one node without GPUs.
    pub fn nodes(count: usize) -> Self {
        Self {
            pools: vec![gpu_pool(count), NodePool::new("cpu", 1, 0)],
            ..Self::default()
        }
    }
}

/// Nodes of 8 GPUs, tainted as GPU pools are, named `gpu-000` and so on.
pub fn gpu_pool(count: usize) -> NodePool {
    NodePool::new("gpu", count, 8).taint("nvidia.com/gpu", "present", "NoSchedule")
}

/// What the fake kubelets said about devices.
#[derive(Debug, Default)]
struct Devices {
    held: BTreeMap<String, Vec<Holder>>,
    twice: Vec<String>,
}

impl Devices {
    fn note(&mut self, node: &str, holders: &[Holder]) {
        self.held.insert(node.to_owned(), holders.to_vec());
        let mut by_device: BTreeMap<&str, &str> = BTreeMap::new();
        for holder in holders {
            for device in &holder.devices {
                if let Some(other) = by_device.insert(device, &holder.name) {
                    self.twice
                        .push(format!("{device} on {node}: {other} and {}", holder.name));
                }
            }
        }
    }
}

/// The running simulation.
pub struct Sim {
    /// API server and stand-ins.
    pub cluster: EmbeddedCluster,
    /// What the API server said.
    pub recorder: Recorder,
    /// The fake agents.
    pub agents: Agents,
    /// Faults to come.
    pub script: Arc<Script>,
    doors: Arc<Doors>,
    devices: Arc<Mutex<Devices>>,
    scheduler: Option<Scheduler>,
    kube_scheduler: Running,
    percentage_of_nodes: u32,
    seed: u64,
    config: Config,
    starts: u32,
}

impl Sim {
    /// Starts everything and waits until the scheduler leads and every agent's stream is up.
    pub async fn start(options: SimOptions) -> anyhow::Result<Self> {
        let devices: Arc<Mutex<Devices>> = Arc::default();
        let noted = Arc::clone(&devices);
        let on_holders = move |node: &str, holders: &[Holder]| {
            noted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .note(node, holders);
        };
        let mut builder = EmbeddedCluster::builder()
            .seed(options.seed)
            .operator(options.operator)
            .kubelet(Some(KubeletConfig {
                on_holders: Some(Arc::new(on_holders)),
                ..KubeletConfig::default()
            }));
        for pool in options.pools {
            builder = builder.nodes(pool);
        }
        if options.policies {
            builder = builder.admission_policies();
        }
        let cluster = builder.start()?;
        cluster.apply_yaml(&manifests::crds())?;
        cluster.apply_yaml(&manifests::rbac())?;
        let script = Arc::new(Script::default());
        cluster.set_faults(Arc::clone(&script) as _);
        let time = cluster.api().clock().clone();
        let recorder =
            Recorder::start_with(cluster.client("recorder"), Arc::new(move || time.now())).await?;
        let doors = Arc::new(Doors::default());
        let agents = start_agents(&cluster, &doors, &[DOOR], options.seed)?;
        let percentage_of_nodes = match options.percentage_of_nodes {
            Some(percentage) => percentage,
            None => printed_percentage()?,
        };
        let config = kube_scheduler(&doors, percentage_of_nodes);
        let kube_scheduler = cluster.start_scheduler(config)?;
        let mut sim = Self {
            cluster,
            recorder,
            agents,
            script,
            doors,
            devices,
            scheduler: None,
            kube_scheduler,
            percentage_of_nodes,
            seed: options.seed,
            config: options.config,
            starts: 0,
        };
        sim.start_scheduler();
        sim.wait_ready().await?;
        Ok(sim)
    }

    /// Starts the scheduler, as a new process with its own identity.
    pub fn start_scheduler(&mut self) {
        self.starts = self.starts.saturating_add(1);
        let clients = Clients {
            watch: self.cluster.client(CLIENT),
            write: self.cluster.client(CLIENT),
            lease: self.cluster.client(CLIENT),
        };
        let options = Options {
            identity: format!("muster-{}", self.starts),
            seed: self.seed.wrapping_add(u64::from(self.starts)),
            wall: Wall::following(self.cluster.api().clock().now()),
            agents_believed: false,
        };
        self.script.allow();
        let scheduler = Scheduler::start(&clients, &self.config, &options);
        self.doors.open(DOOR, &scheduler, Hold::default());
        self.scheduler = Some(scheduler);
    }

    /// Ends the scheduler as SIGKILL does: its connections break, nothing is given back.
    pub async fn kill_scheduler(&mut self) {
        self.doors.close(DOOR);
        if let Some(scheduler) = self.scheduler.take() {
            scheduler.kill().await;
        }
    }

    /// Ends the stand-in for kube-scheduler with all it has in memory, Binds on their way included,
    /// and starts another.
    pub fn restart_kube_scheduler(&mut self) -> anyhow::Result<()> {
        self.kube_scheduler.kill();
        let config = kube_scheduler(&self.doors, self.percentage_of_nodes);
        self.kube_scheduler = self.cluster.start_scheduler(config)?;
        Ok(())
    }

    /// Waits until the scheduler leads and all agents have their streams.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let nodes = self.agents.with(|fleet| fleet.nodes().count()).unwrap_or(0);
        let up = || self.agents.with(|fleet| fleet.streams_up()).unwrap_or(0);
        let leads = || self.scheduler.as_ref().is_some_and(Scheduler::leads);
        let ready = async {
            while !leads() || up() < nodes {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(SOON, ready).await.is_err() {
            bail!(
                "waited {SOON:?}: leads {}, {} of {nodes} agents report",
                leads(),
                up()
            );
        }
        Ok(())
    }

    /// Waits until `holds`; it is asked after every write. Says how gangs and pods are when it is not
    /// in time.
    pub async fn until(
        &self,
        what: &str,
        timeout: Duration,
        holds: impl FnMut(&EmbeddedCluster) -> bool,
    ) -> anyhow::Result<()> {
        let done = self.cluster.wait_for(what, timeout, holds).await;
        done.with_context(|| self.picture())
    }

    /// Lets time pass.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Waits until a job's, PodGroup's or label's gang is in a phase.
    pub async fn until_phase(&self, gang: &str, phase: &str) -> anyhow::Result<()> {
        self.until(&format!("{gang} is {phase}"), SOON, |cluster| {
            phase_of(cluster, gang) == phase
        })
        .await
    }

    /// The scheduler's pages, to be asked while it ends.
    pub fn pages(&self) -> anyhow::Result<Router> {
        let scheduler = self.scheduler.as_ref();
        Ok(scheduler.context("no scheduler runs")?.pages())
    }

    /// Waits until the scheduler ends by itself, and starts another, as the kubelet does.
    pub async fn restart_when_ended(&mut self) -> anyhow::Result<()> {
        let ended = match &mut self.scheduler {
            Some(scheduler) => scheduler.ended().await,
            None => bail!("no scheduler runs"),
        };
        anyhow::ensure!(ended == Ended::LeadershipLost, "it ended: {ended}");
        self.kill_scheduler().await;
        self.start_scheduler();
        Ok(())
    }

    /// Waits until a trap of the script has sprung; `false` when it did not within `timeout`.
    pub async fn sprung(&self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.script.sprung())
            .await
            .is_ok()
    }

    /// Applies YAML as a user does.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        self.cluster.apply_yaml(yaml)?;
        Ok(())
    }

    /// A GPU falls off the bus: the agent reports XID 79, the device plugin takes it out, and the
    /// process that used it dies. Returns the pod.
    pub fn fail_gpu(&self, node: &str, gpu: u32) -> anyhow::Result<Option<String>> {
        let uuid = self
            .agents
            .with(|fleet| {
                fleet.devices(node).map(|devices| {
                    let found = devices.iter().find(|device| device.gpu == gpu);
                    found.map(|device| device.uuid.clone())
                })
            })
            .context("the fleet is stopped")??
            .with_context(|| format!("node {node} has no GPU {gpu}"))?;
        self.agents
            .inject(node, FaultEvent::Xid { gpu, code: 79 })?;
        let victim = self.devices().held.get(node).and_then(|holders| {
            let holder = holders.iter().find(|holder| holder.devices.contains(&uuid));
            holder.map(|holder| (holder.namespace.clone(), holder.name.clone()))
        });
        let Some((namespace, name)) = victim else {
            return Ok(None);
        };
        let status = json!({"status": {"phase": "Failed", "reason": "Error",
            "message": "the training process died: GPU has fallen off the bus"}});
        self.cluster
            .patch(PODS, &namespace, &name, "status", &status)?;
        Ok(Some(name))
    }

    /// Judges what has happened with the real control plane's judge: all of it was seen, nothing
    /// over-committed, no device held twice, no gang bound in part past its deadline, no invariant of the scheduler broken.
    pub async fn judge(&self) -> anyhow::Result<History> {
        self.judge_by(GangRule::new(self.partial_max())).await
    }

    /// The same for gangs by label, with their minimum by `namespace/value`.
    pub async fn judge_labelled(
        &self,
        label: &str,
        minimum: &[(&str, u32)],
    ) -> anyhow::Result<History> {
        let minimum = minimum.iter().map(|(key, n)| ((*key).to_owned(), *n));
        let rule = GangRule::new(self.partial_max())
            .group_by_label(label)
            .minimum(Minimum::Fixed(minimum.collect()));
        self.judge_by(rule).await
    }

    fn partial_max(&self) -> Duration {
        PARTIAL_MAX + TAKEOVER * self.starts.saturating_sub(1)
    }

    async fn judge_by(&self, rule: GangRule) -> anyhow::Result<History> {
        let history = self.recorder.caught_up(Duration::from_secs(30)).await?;
        if let Some(gaps) = history.unseen() {
            bail!(gaps);
        }
        let over = history.over_commitments();
        if let Some(first) = over.first() {
            bail!("{} over-commitments, the first: {first}", over.len());
        }
        let partial = history.partial_gangs(&rule);
        if let Some(first) = partial.first() {
            bail!("{} partial gangs, the first: {first}", partial.len());
        }
        if let Some(first) = self.devices().twice.first() {
            bail!("a device is held twice: {first}");
        }
        if let Some(scheduler) = &self.scheduler {
            let text = scheduler.metrics().text();
            let mut counters = text
                .lines()
                .filter(|line| line.starts_with("muster_invariant_violations"))
                .peekable();
            anyhow::ensure!(counters.peek().is_some(), "no invariant is counted");
            if let Some(line) = counters.find(|line| !line.ends_with(" 0")) {
                bail!("the scheduler found an invariant broken: {line}");
            }
        }
        Ok(history)
    }

    /// The extender of the running scheduler, to be called as kube-scheduler calls it; `None` while none runs.
    pub fn extender(&self) -> Option<axum::Router> {
        self.scheduler.as_ref().map(Scheduler::extender)
    }

    /// What the running scheduler serves at `/metrics`.
    pub fn metrics(&self) -> String {
        let text = |scheduler: &Scheduler| scheduler.metrics().text();
        self.scheduler.as_ref().map(text).unwrap_or_default()
    }

    /// Gangs of which the running scheduler remembers what it wrote last.
    pub fn remembered(&self) -> usize {
        let scheduler = self.scheduler.as_ref();
        scheduler.map_or(0, |scheduler| scheduler.remembered().len())
    }

    /// Filter calls that the running scheduler has answered.
    pub fn filter_calls(&self) -> u64 {
        self.counted("muster_filter_duration_seconds_count")
    }

    /// What the running scheduler serves of one series, named with its labels; 0 where it serves none.
    pub fn counted(&self, series: &str) -> u64 {
        let text = self
            .scheduler
            .as_ref()
            .map(|scheduler| scheduler.metrics().text())
            .unwrap_or_default();
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        count
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Devices by pod, as the kubelets gave them.
    pub fn devices_given(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut given: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for holder in self.devices().held.values().flatten() {
            let devices = given.entry(holder.name.clone()).or_default();
            devices.extend(holder.devices.iter().cloned());
        }
        given
    }

    fn devices(&self) -> std::sync::MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gangs, jobs and pods as lines.
    pub fn picture(&self) -> String {
        let mut lines = vec![format!(
            "at {} s",
            self.cluster.api().clock().elapsed().as_secs()
        )];
        for gang in self.cluster.list(GANGS) {
            lines.push(format!(
                "gang {} {} {} {}: {}",
                value::name(&gang),
                value::text(&gang, &["status", "phase"]),
                value::text(&gang, &["status", "reason"]),
                value::text(&gang, &["status", "membersBound"]),
                value::text(&gang, &["status", "message"])
            ));
        }
        for job in self.cluster.list(JOBS) {
            lines.push(format!(
                "job {} {}",
                value::name(&job),
                job.pointer("/spec/runPolicy").unwrap_or(&Value::Null)
            ));
        }
        for pod in self.cluster.list(PODS) {
            let scheduled = value::condition(&pod, "PodScheduled");
            lines.push(format!(
                "pod {} {} {} {}",
                value::name(&pod),
                value::text(&pod, &["status", "phase"]),
                value::text(&pod, &["spec", "nodeName"]),
                scheduled.map_or("", |c| value::text(c, &["message"]))
            ));
        }
        let mut writes = self.cluster.api().writes_since(0);
        writes.retain(|write| !write.resource.starts_with("leases"));
        let tail = writes.len().saturating_sub(30);
        lines.extend(
            writes
                .iter()
                .skip(tail)
                .map(muster_embedded::api::history::Write::line),
        );
        lines.join("\n")
    }

    /// Ends everything; returns the number of writes, the digest of the event log and its lines.
    pub async fn stop(mut self) -> (u64, u64, Vec<String>) {
        let (writes, digest) = self.cluster.api().digest();
        let lines = self.cluster.api().writes_since(0);
        let lines = lines
            .iter()
            .map(muster_embedded::api::history::Write::line)
            .collect();
        if let Some(mut scheduler) = self.scheduler.take() {
            scheduler.stop().await;
        }
        self.doors.close(DOOR);
        self.agents.stop().await;
        self.cluster.stop().await;
        (writes, digest, lines)
    }
}

/// The phase of a gang in namespace `default`; empty when there is none.
pub fn phase_of(cluster: &EmbeddedCluster, gang: &str) -> String {
    gang_field(cluster, gang, "phase")
}

/// A field of a Gang's status.
pub fn gang_field(cluster: &EmbeddedCluster, gang: &str, field: &str) -> String {
    cluster
        .get(GANGS, "default", gang)
        .map(|gang| value::text(&gang, &["status", field]).to_owned())
        .unwrap_or_default()
}

/// Names of the pods that are bound, live, and begin with a prefix, with their nodes.
pub fn bound(cluster: &EmbeddedCluster, prefix: &str) -> BTreeMap<String, String> {
    let pods = cluster.list(PODS);
    let live = pods.iter().filter(|pod| {
        value::name(pod).starts_with(prefix)
            && !value::text(pod, &["spec", "nodeName"]).is_empty()
            && !matches!(
                value::text(pod, &["status", "phase"]),
                "Succeeded" | "Failed"
            )
            && value::at(pod, &["metadata", "deletionTimestamp"]).is_none()
    });
    live.map(|pod| {
        let node = value::text(pod, &["spec", "nodeName"]);
        (value::name(pod).to_owned(), node.to_owned())
    })
    .collect()
}

/// `percentageOfNodesToScore` as `print kube-scheduler-config` prints it; 0 where it does not, as kube-scheduler reads that.
pub(crate) fn printed_percentage() -> anyhow::Result<u32> {
    let options = manifests::KubeSchedulerConfigOptions::default();
    let printed =
        yaml::all(&manifests::kube_scheduler_config(&options)).map_err(anyhow::Error::msg)?;
    let percentage = printed
        .first()
        .and_then(|config| value::at(config, &["percentageOfNodesToScore"]))
        .and_then(Value::as_u64)
        .unwrap_or(0);
    Ok(u32::try_from(percentage)?)
}

/// The two entries that `print kube-scheduler-config` prints, in process.
pub(crate) fn kube_scheduler(doors: &Arc<Doors>, percentage_of_nodes: u32) -> SchedulerConfig {
    let entries = of_muster("http://muster", &doors.transport());
    let mut config = SchedulerConfig::new("muster", entries);
    config.percentage_of_nodes = percentage_of_nodes;
    config
}

fn start_agents(
    cluster: &EmbeddedCluster,
    doors: &Arc<Doors>,
    names: &[&str],
    seed: u64,
) -> anyhow::Result<Agents> {
    let config = AgentsConfig {
        connector: connector(doors, names),
        profile: Arc::new(Profile::load("h100-8")?),
        start_spread: Duration::from_millis(500),
        seed,
    };
    Ok(Agents::start(cluster, config)?)
}

/// How agents reach the schedulers of these doors.
pub(crate) fn connector(doors: &Arc<Doors>, names: &[&str]) -> Arc<dyn Connector> {
    let doors = Arc::clone(doors);
    let open = move |replica: Replica| {
        let pipe = doors.connect(&replica.0);
        async move { pipe }
    };
    let names = names.iter().map(|name| (*name).to_owned());
    Arc::new(IoConnector::new(names, open))
}
