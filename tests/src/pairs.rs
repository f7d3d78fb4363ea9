//! Two pairs of Muster and an unmodified kube-scheduler on the real control plane, as the two Pods of the
//! Deployment are, and what may befall the one that leads.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::future::LocalBoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use muster_control_plane::history::{History, Recorder};
use muster_control_plane::{Cluster, NodeTemplate, Program, TrainingOperatorOptions};
use muster_kubernetes::{manifests, names};
use muster_scheduler::gate;

use crate::acts::PATIENCE;
use crate::fleet::{self, Fleet};
use crate::jobs::Job;
use crate::programs;
use crate::proxy::Proxy;
use crate::replicas::binding_of_an_earlier_leader;
use crate::stack::{self, PARTIAL_MAX};

/// Rights of a kube-scheduler for the account of the pair's Pod, as they are installed.
const SCHEDULER_RIGHTS: &str = include_str!("../../deploy/kustomize/base/scheduler-rights.yaml");
/// Muster's Lease.
const LEASE: &str = "muster-scheduler";
/// How soon a program that has ended is started again. The kubelet takes longer the more often it has ended; then nothing
/// would be killed.
const RESTART_AFTER: Duration = Duration::from_millis(300);
/// How often the cluster is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What befalls the pair that leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its node dies: SIGKILL for Muster and kube-scheduler.
    NodeDies,
    /// Muster is killed, and its kube-scheduler lives on.
    MusterKilled,
    /// Muster is halted (SIGSTOP), and its kube-scheduler lives on.
    MusterHalted,
    /// Nothing goes between the pair and the API server any more; no connection is closed.
    CutOff,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::NodeDies,
        Self::MusterKilled,
        Self::MusterHalted,
        Self::CutOff,
    ];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::NodeDies => "SIGKILL of Muster and kube-scheduler",
            Self::MusterKilled => "SIGKILL of Muster",
            Self::MusterHalted => "SIGSTOP of Muster",
            Self::CutOff => "cut off from the API server",
        }
    }
}

/// One pair.
struct Pair {
    name: &'static str,
    http: String,
    link: Proxy,
    /// Between the agents and their door.
    agents: Proxy,
}

impl Pair {
    fn muster(&self) -> Program {
        Program::Other(format!("muster-scheduler-{}", self.name))
    }

    fn kube_scheduler(&self) -> Program {
        Program::Other(format!("kube-scheduler-{}", self.name))
    }
}

/// The running pairs, and all that is around them.
pub struct Pairs {
    /// The control plane.
    pub cluster: Cluster,
    /// Records what the API server says.
    pub recorder: Recorder,
    pairs: Vec<Pair>,
    /// Time that a failover takes at most, for the judge.
    failover_max: Duration,
}

/// As the init container of a Pod does, before kube-scheduler starts.
async fn close_gate(name: &str, kubeconfig: &Path, config: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(programs::scheduler()?);
    command
        .args(["close-gate", "--replica", name])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--config")
        .arg(config);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "close-gate: {said}");
    Ok(())
}

impl Pairs {
    /// Starts everything and waits until one pair leads and the other follows. `config` are lines of Muster's
    /// configuration.
    pub async fn start(nodes: u32, config: &str, failover_max: Duration) -> anyhow::Result<Self> {
        let operator = TrainingOperatorOptions::default();
        Self::start_of(&["a", "b"], nodes, config, failover_max, &operator).await
    }

    /// The same with pairs of these names.
    ///
    /// Boxed, so that it is compiled here and not once more with each test program.
    pub fn start_of<'a>(
        names: &'a [&'static str],
        nodes: u32,
        config: &'a str,
        failover_max: Duration,
        operator: &'a TrainingOperatorOptions,
    ) -> LocalBoxFuture<'a, anyhow::Result<Self>> {
        Box::pin(Self::bring_up(names, nodes, config, failover_max, operator))
    }

    async fn bring_up(
        names: &[&'static str],
        nodes: u32,
        config: &str,
        failover_max: Duration,
        operator: &TrainingOperatorOptions,
    ) -> anyhow::Result<Self> {
        let pools = [NodeTemplate::gpu_pool("gpu", nodes)];
        let mut builder = Cluster::builder();
        for pool in &pools {
            builder = builder.nodes(pool.clone());
        }
        let cluster = builder.start().await?;
        cluster.install_job_crds().await?;
        stack::install(&cluster, true).await?;
        cluster.apply_yaml(SCHEDULER_RIGHTS).await?;
        stack::know_kinds(&cluster).await?;
        let recorder = stack::record(&cluster).await?;
        let mut pairs = Self {
            cluster,
            recorder,
            pairs: Vec::new(),
            failover_max,
        };
        for name in names.iter().copied() {
            pairs.add(name, config, &pools).await?;
        }
        pairs.settled().await?;
        pairs.cluster.start_training_operator(operator).await?;
        Ok(pairs)
    }

    /// Adds a pair of this name, with agents that report to it.
    pub async fn add(
        &mut self,
        name: &'static str,
        config: &str,
        pools: &[NodeTemplate],
    ) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        let address = cluster.api_url();
        let target = address.trim_start_matches("https://");
        let link = Proxy::to(target).await?;
        let folder = cluster.folder().join(format!("pair-{name}"));
        std::fs::create_dir_all(&folder)?;
        let account = cluster
            .service_account_kubeconfig("muster-system", "muster-scheduler")
            .await?;
        let kubeconfig = folder.join("kubeconfig");
        let through = format!("https://{}", link.address);
        let text = std::fs::read_to_string(&account)?;
        anyhow::ensure!(
            text.contains(&address),
            "no {address} in {}",
            account.display()
        );
        std::fs::write(&kubeconfig, text.replace(&address, &through))?;
        let (extender, agents, http) = (
            stack::free_address()?,
            stack::free_address()?,
            stack::free_address()?,
        );
        let (tls, client_tls) = stack::certificates(cluster, &folder)?;
        let file = folder.join("config.yaml");
        std::fs::write(&file, config)?;
        close_gate(name, &kubeconfig, &file).await?;
        let gate = self.holder(&names::kube_scheduler_lease(name)).await?;
        anyhow::ensure!(gate.as_deref() == Some(gate::CLOSED), "{gate:?}");
        let mut command = Command::new(programs::scheduler()?);
        command
            .args(["serve", "--replica", name])
            .args(["--extender-listen", &extender, "--agent-listen", &agents])
            .args(["--http-listen", &http])
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--config")
            .arg(&file)
            .arg("--tls-dir")
            .arg(&tls)
            .env("RUST_LOG", "info");
        let through = Proxy::to(&agents).await?;
        let address = through.address.to_string();
        let pair = Pair {
            name,
            http,
            link,
            agents: through,
        };
        cluster.spawn(&pair.muster().to_string(), &command).await?;
        self.pairs.push(pair);
        self.start_kube_scheduler(name, &folder, &extender, &client_tls, &kubeconfig)
            .await?;
        let fleet = Fleet {
            name: format!("muster-fleet-{name}"),
            ..Fleet::of(pools)
        };
        fleet::start_fleet(&self.cluster, &address, &fleet).await
    }

    /// Records what the API server says from now on: after its store was restored, an earlier record waits for what comes
    /// again only later.
    pub async fn record_afresh(&mut self) -> anyhow::Result<()> {
        self.recorder = stack::record(&self.cluster).await?;
        Ok(())
    }

    /// What is between a pair and the API server.
    pub fn to_api(&self, name: &str) -> anyhow::Result<&Proxy> {
        Ok(&self.pair(name)?.link)
    }

    /// What is between the agents and a pair.
    pub fn from_agents(&self, name: &str) -> anyhow::Result<&Proxy> {
        Ok(&self.pair(name)?.agents)
    }

    /// Muster and kube-scheduler of a pair.
    pub fn programs(&self, name: &str) -> anyhow::Result<[Program; 2]> {
        let pair = self.pair(name)?;
        Ok([pair.muster(), pair.kube_scheduler()])
    }

    /// A page that a pair's Muster serves, with its head.
    pub async fn page(&self, name: &str, path: &str) -> anyhow::Result<String> {
        Ok(stack::http_get(&self.pair(name)?.http, path).await?)
    }

    /// Starts the programs of a pair again whenever they have ended, as a kubelet does; for ever.
    pub async fn keep_running(&self, name: &str) -> anyhow::Result<()> {
        let [muster, kube_scheduler] = self.programs(name)?;
        tokio::try_join!(self.keep(&muster), self.keep(&kube_scheduler))?;
        Ok(())
    }

    async fn keep(&self, program: &Program) -> anyhow::Result<()> {
        loop {
            if !self.cluster.is_running(program) {
                // One that ends while it is waited for is started once more.
                let _ = self.cluster.start(program).await;
            }
            tokio::time::sleep(RESTART_AFTER).await;
        }
    }

    /// With the printed configuration, and the Lease of the pair by a flag, as in the Deployment.
    async fn start_kube_scheduler(
        &self,
        name: &str,
        folder: &Path,
        extender: &str,
        client_tls: &Path,
        kubeconfig: &Path,
    ) -> anyhow::Result<()> {
        let printed = manifests::kube_scheduler_config(&manifests::KubeSchedulerConfigOptions {
            extender_url: format!("https://{extender}"),
            tls_dir: Some(client_tls.display().to_string()),
            kubeconfig: Some(kubeconfig.display().to_string()),
            leader_elect: true,
            ..manifests::KubeSchedulerConfigOptions::default()
        });
        let file = folder.join("kube-scheduler.yaml");
        std::fs::write(&file, printed)?;
        let lease = names::kube_scheduler_lease(name);
        let flags = [format!("--leader-elect-resource-name={lease}")];
        let program = format!("kube-scheduler-{name}");
        let started = self
            .cluster
            .start_extra_kube_scheduler(&program, &file, &flags);
        Ok(started.await?)
    }

    fn pair(&self, name: &str) -> anyhow::Result<&Pair> {
        let found = self.pairs.iter().find(|pair| pair.name == name);
        found.with_context(|| format!("pair {name}"))
    }

    /// Holder of a Lease, empty where nobody holds it; `None` where there is no such Lease.
    async fn holder(&self, lease: &str) -> anyhow::Result<Option<String>> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.admin(), names::NAMESPACE);
        let lease = leases.get_opt(lease).await?;
        Ok(lease.map(|lease| {
            let spec = lease.spec.unwrap_or_default();
            spec.holder_identity.unwrap_or_default()
        }))
    }

    /// Name of the pair whose Muster holds Muster's Lease and whose kube-scheduler works.
    pub async fn leader(&self) -> anyhow::Result<Option<&'static str>> {
        let holder = self.holder(LEASE).await?.unwrap_or_default();
        for pair in &self.pairs {
            if holder.starts_with(&format!("{}@", pair.name)) {
                let gate = self.holder(&names::kube_scheduler_lease(pair.name)).await?;
                let works = gate.is_some_and(|gate| !gate.is_empty() && gate != gate::CLOSED);
                return Ok(works.then_some(pair.name));
            }
        }
        Ok(None)
    }

    /// Waits until one pair leads, and all others are ready and follow; returns the leader.
    pub async fn settled(&self) -> anyhow::Result<&'static str> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.leader().await?
                && self.others_follow(leader).await?
            {
                return Ok(leader);
            }
            if Instant::now() > end {
                bail!("no pair leads while the others follow\n{}", self.logs(30));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn others_follow(&self, leader: &str) -> anyhow::Result<bool> {
        for pair in &self.pairs {
            if !self.cluster.is_running(&pair.muster()) {
                continue;
            }
            let gate = self.holder(&names::kube_scheduler_lease(pair.name)).await?;
            let closed = gate.as_deref() == Some(gate::CLOSED);
            let heard = stack::http_get(&pair.http, "/metrics").await;
            let heard = heard.is_ok_and(|text| {
                let mut lines = text.lines();
                lines.any(|line| line == format!("muster_nodes_reported {}", self.nodes()))
            });
            let ready = stack::http_ok(&pair.http, "/readyz").await;
            if !(ready && heard && (closed || pair.name == leader)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// GPU nodes: each has an agent.
    fn nodes(&self) -> usize {
        let gpus = |world: &muster_control_plane::history::World| {
            let nodes = world.nodes.values();
            nodes
                .filter(|node| node.allocatable.contains_key("nvidia.com/gpu"))
                .count()
        };
        self.recorder.look(gpus)
    }

    /// Has a fault befall a pair.
    pub fn strike(&self, name: &str, fault: Fault) -> anyhow::Result<()> {
        let pair = self.pair(name)?;
        match fault {
            Fault::NodeDies => {
                self.cluster.kill(&pair.kube_scheduler())?;
                self.cluster.kill(&pair.muster())?;
            }
            Fault::MusterKilled => self.cluster.kill(&pair.muster())?,
            Fault::MusterHalted => self.cluster.pause(&pair.muster())?,
            Fault::CutOff => pair.link.cut(true),
        }
        Ok(())
    }

    /// Lets the struck pair go on as it does by itself, and waits until its Muster has ended: it has lost
    /// its Lease. Nothing is to be waited for where it was killed.
    pub async fn until_deposed(&self, name: &str, fault: Fault) -> anyhow::Result<()> {
        let pair = self.pair(name)?;
        match fault {
            Fault::NodeDies | Fault::MusterKilled => return Ok(()),
            Fault::MusterHalted => {
                // It may have ended before that is looked at.
                let _ = self.cluster.resume(&pair.muster()).await;
            }
            Fault::CutOff => pair.link.cut(false),
        }
        let what = format!("Muster of pair {name} to end without its Lease");
        self.wait_until(&what, async || !self.cluster.is_running(&pair.muster()))
            .await
    }

    /// Starts the programs of a pair that have ended, Muster first. A kube-scheduler that still runs is left
    /// alone: it ends when its Muster follows.
    pub async fn start_again(&self, name: &str) -> anyhow::Result<()> {
        let pair = self.pair(name)?;
        pair.link.cut(false);
        for program in [pair.muster(), pair.kube_scheduler()] {
            if !self.cluster.is_running(&program) {
                self.cluster.start(&program).await?;
            }
        }
        Ok(())
    }

    /// Waits until a pair's kube-scheduler has ended by itself: its Muster keeps it from leading.
    pub async fn until_kube_scheduler_ends(&self, name: &str) -> anyhow::Result<()> {
        let program = self.pair(name)?.kube_scheduler();
        self.wait_until("kube-scheduler to end", async || {
            !self.cluster.is_running(&program)
        })
        .await
    }

    /// Kills what is left of a pair and starts it anew, as a Pod that takes the place of another.
    pub async fn replace(&self, name: &str) -> anyhow::Result<()> {
        let pair = self.pair(name)?;
        for program in [pair.kube_scheduler(), pair.muster()] {
            self.cluster.kill(&program)?;
        }
        self.start_again(name).await
    }

    /// Ends a pair as the deletion of its Pod does: SIGTERM for both at once.
    pub async fn terminate(&self, name: &str) -> anyhow::Result<()> {
        let pair = self.pair(name)?;
        let programs = (pair.muster(), pair.kube_scheduler());
        let (muster, kube_scheduler) = tokio::join!(
            self.cluster.stop(&programs.0),
            self.cluster.stop(&programs.1)
        );
        muster?;
        Ok(kube_scheduler?)
    }

    /// PyTorchJobs of namespace `default`.
    pub fn jobs(&self) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob"),
            "pytorchjobs",
        );
        Api::default_namespaced_with(self.cluster.admin(), &kind)
    }

    /// Submits a job and waits until all of it is bound; returns when that was.
    pub async fn run(&self, job: &Job, timeout: Duration) -> anyhow::Result<Instant> {
        self.cluster.apply_yaml(&job.yaml()).await?;
        let end = Instant::now() + timeout;
        let pods = job.pods();
        while !self
            .recorder
            .look(|world| world.bound_of(&job.name) == pods)
        {
            if Instant::now() > end {
                bail!(
                    "{} is not bound after {timeout:?}\n{}",
                    job.name,
                    self.picture().await
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Instant::now())
    }

    /// Waits until an admission policy holds jobs: it takes some seconds to act.
    pub async fn until_jobs_are_held(&self) -> anyhow::Result<()> {
        let probe = Job::new("probe", vec![crate::jobs::Role::new("Worker", 1, 1)]);
        self.wait_until("a job to run", async || {
            self.run(&probe, Duration::from_secs(5)).await.is_ok()
        })
        .await?;
        self.remove("probe").await
    }

    /// Deletes a job and waits until its pods are gone.
    pub async fn remove(&self, job: &str) -> anyhow::Result<()> {
        self.jobs().delete(job, &DeleteParams::background()).await?;
        self.wait_until("no pods of a deleted job", async || {
            self.recorder.look(|world| world.pods_of(job).count() == 0)
        })
        .await
    }

    /// Polls until `condition` holds.
    pub async fn wait_until(
        &self,
        what: &str,
        condition: impl AsyncFn() -> bool,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while !condition().await {
            if Instant::now() > end {
                bail!("waited {PATIENCE:?} for {what}\n{}", self.picture().await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Judges what has happened: nothing over-committed, no gang in part for longer than a failover and a
    /// repair, no Binding of an earlier leader after one of a later.
    pub async fn judge(&self) -> anyhow::Result<History> {
        let history = self.recorder.caught_up(Duration::from_secs(30)).await?;
        if let Some(gaps) = history.unseen() {
            bail!(gaps);
        }
        if let Some(first) = history.over_commitments().first() {
            bail!("over-committed: {first}");
        }
        let [rule, ..] = stack::gang_rules(PARTIAL_MAX + self.failover_max);
        if let Some(first) = history.partial_gangs(&rule).first() {
            bail!("a partial gang: {first}");
        }
        if let Some(late) = binding_of_an_earlier_leader(&history) {
            bail!(late);
        }
        Ok(history)
    }

    async fn picture(&self) -> String {
        let show = ["get", "pytorchjobs,gangs,pods,leases", "-A", "-o", "wide"];
        let objects = match self.cluster.kubectl(&show).await {
            Ok(found) => found.stdout,
            Err(error) => error.to_string(),
        };
        format!("{objects}\n{}", self.logs(30))
    }

    /// The last lines of every log.
    fn logs(&self, lines: usize) -> String {
        let mut all = String::new();
        for pair in &self.pairs {
            for program in [pair.muster(), pair.kube_scheduler()] {
                let text = std::fs::read_to_string(self.cluster.log(&program)).unwrap_or_default();
                let tail = text.lines().count().saturating_sub(lines);
                let tail: Vec<&str> = text.lines().skip(tail).collect();
                all.push_str(&format!("{program}:\n{}\n", tail.join("\n")));
            }
        }
        all
    }
}
