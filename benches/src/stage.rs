//! A fresh cluster with one scheduler, warmed up by one gang that goes the way of all others. Where the
//! scheduler is to find the gangs when it starts, nothing is warmed up.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, Request};
use muster_control_plane::history::{Recorder, World};
use muster_control_plane::{Cluster, NodeTemplate};
use serde_json::Value;

use crate::case::{Case, GPUS_PER_NODE, Scene};
use crate::contender::Contender;
use crate::load::{self, Load};
use crate::muster::{self, Muster, Settings};
use crate::objects::{self, FILLER, GANG, Gang, NAMESPACE};
use crate::peers::Peers;
use crate::programs::Programs;
use crate::raw::{self, Places};
use crate::{coscheduling, fleet, kai};

/// Name of the gang that warms up.
const WARM: &str = "warm";
/// Longest wait for each step of the warm-up.
const WARM_MAX: Duration = Duration::from_secs(90);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time without a write after which the cluster counts as quiet: longer than the five seconds after
/// which the node controller looks for new nodes and makes an Event for each.
const QUIET: Duration = Duration::from_secs(6);
/// Longest wait for that; controllers have something to do on each new node.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// Time from a pod's binding until it runs, as a kubelet would need it at best. Without it KWOK's statuses compete
/// with the bindings for the API server, and KWOK writes some of them twice.
const POD_START: Duration = Duration::from_secs(1);

/// What is the same for all runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Muster's programs; absent when no contender needs them.
    pub programs: Option<Programs>,
    /// The programs of other gang schedulers.
    pub peers: Peers,
    /// Fake agents report the nodes.
    pub agents: bool,
    /// The API server writes an audit log, so that writes are known by client.
    pub audit: bool,
    /// Muster's `RUST_LOG`.
    pub log: String,
}

/// A cluster with what a contender needs, on which its scheduler may run already.
pub struct Stage {
    /// The control plane.
    pub cluster: Cluster,
    /// Every change of a pod.
    pub recorder: Recorder,
    /// Muster, where it runs.
    pub muster: Option<Muster>,
    /// The nodes.
    pub pool: NodeTemplate,
    contender: Contender,
    options: Options,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("cluster", &self.cluster)
            .field("muster", &self.muster)
            .finish_non_exhaustive()
    }
}

/// The nodes of a case.
pub fn pool(count: u32) -> NodeTemplate {
    NodeTemplate {
        gpus: GPUS_PER_NODE,
        ..NodeTemplate::gpu_pool("gpu", count)
    }
}

impl Stage {
    /// Makes a cluster and installs what the contender needs. Its scheduler does not run yet.
    pub async fn prepare(
        case: &Case,
        contender: Contender,
        options: &Options,
    ) -> anyhow::Result<Self> {
        if contender.is_peer() {
            // Says why it could not be built before a cluster is made for it.
            options.peers.folder(contender)?;
        }
        let pool = pool(case.nodes);
        let mut builder = Cluster::builder()
            .nodes(pool.clone())
            .pods_start_after(POD_START)
            .audit(options.audit);
        if contender == Contender::Native {
            builder = builder
                .feature_gate("GenericWorkload", true)
                .runtime_config("scheduling.k8s.io/v1beta1=true");
        }
        let cluster = builder.start().await?;
        let recorder = Recorder::start(cluster.admin()).await?;
        let stage = Self {
            cluster,
            recorder,
            muster: None,
            pool,
            contender,
            options: options.clone(),
        };
        match contender {
            Contender::Raw | Contender::Plain | Contender::Native => {}
            Contender::PlainJob => stage.cluster.install_job_crds().await?,
            Contender::Coscheduling => {
                let folder = stage.options.peers.folder(contender)?;
                coscheduling::install(&stage.cluster, folder).await?;
            }
            Contender::Kai => {
                let folder = stage.options.peers.folder(contender)?;
                kai::install(&stage.cluster, folder).await?;
            }
            Contender::MusterJob | Contender::MusterGate | Contender::MusterUngated => {
                Muster::install(&stage.cluster, &stage.settings()?).await?;
            }
        }
        stage.wait_policies().await?;
        Ok(stage)
    }

    /// Starts the contender's scheduler. Nothing is to be started for [`Contender::Raw`].
    pub async fn start_scheduler(&mut self) -> anyhow::Result<()> {
        match self.contender {
            Contender::Raw => {}
            Contender::Plain | Contender::PlainJob | Contender::Native => {
                let config = self.cluster.default_kube_scheduler_config()?;
                self.cluster.start_kube_scheduler(&config).await?;
            }
            Contender::Coscheduling => {
                let folder = self.options.peers.folder(self.contender)?;
                coscheduling::start(&self.cluster, folder).await?;
            }
            Contender::Kai => {
                let folder = self.options.peers.folder(self.contender)?;
                kai::start(&self.cluster, folder).await?;
            }
            Contender::MusterJob | Contender::MusterGate | Contender::MusterUngated => {
                let settings = self.settings()?;
                let muster = Muster::start(&self.cluster, &settings).await?;
                muster.start_kube_scheduler(&self.cluster).await?;
                if settings.agents {
                    fleet::start(&self.cluster, &muster, &settings.programs, &self.pool).await?;
                }
                self.muster = Some(muster);
            }
        }
        Ok(())
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings {
            programs: self.options.programs.clone().context("Muster's programs")?,
            policies: self.contender.has_policies(),
            agents: self.options.agents,
            log: self.options.log.clone(),
        })
    }

    /// Prepares a cluster, starts the scheduler, binds one gang of two pods and removes it again;
    /// then fills the nodes where the case wants them full.
    pub async fn start(
        case: &Case,
        contender: Contender,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let mut stage = Self::prepare(case, contender, options).await?;
        stage.start_scheduler().await?;
        stage.warm_up().await.context("the warm-up")?;
        if case.scene == Scene::Full {
            stage.fill().await.context("while the nodes are filled")?;
        }
        Ok(stage)
    }

    /// Submits gangs; for [`Contender::Raw`] with a place for each pod if `bind` says so.
    pub fn load(&self, gangs: &[Gang], interleaved: bool, bind: bool) -> Load {
        let raw = self.contender == Contender::Raw && bind;
        Load::start(
            &self.cluster.admin(),
            gangs.to_vec(),
            self.contender,
            interleaved,
            raw.then(|| self.places(gangs)),
        )
    }

    /// A place for each pod of the gangs.
    pub fn places(&self, gangs: &[Gang]) -> Places {
        raw::places(gangs, self.pool.names())
    }

    /// Takes every GPU by pods that are born on their nodes.
    async fn fill(&self) -> anyhow::Result<()> {
        let fillers = objects::fillers(self.pool.names(), GPUS_PER_NODE)?;
        let count = fillers.len();
        load::create_all(&self.cluster.admin(), fillers).await?;
        self.wait(WARM_MAX, "full nodes", None, |world| {
            let fillers = world.pods.values();
            let fillers = fillers.filter(|pod| pod.labels.contains_key(FILLER));
            fillers.filter(|pod| pod.phase == "Running").count() == count
        })
        .await?;
        self.wait_quiet().await
    }

    /// Waits until the recorded world is as wanted, and fails early when a program or the load does.
    pub async fn wait(
        &self,
        limit: Duration,
        what: &str,
        load: Option<&mut Load>,
        wanted: impl Fn(&World) -> bool,
    ) -> anyhow::Result<()> {
        let since = Instant::now();
        let mut load = load;
        while !self.recorder.look(&wanted) {
            self.cluster.check_all_running()?;
            if let Some(load) = load.as_deref_mut() {
                load.check()?;
            }
            if since.elapsed() > limit {
                let (pods, bound) = self.recorder.look(|world| {
                    let bound = world.pods.values().filter(|pod| pod.node.is_some());
                    (world.pods.len(), bound.count())
                });
                bail!(
                    "waited {limit:?} for {what}: {pods} pods, {bound} bound{}",
                    self.muster_says()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn muster_says(&self) -> String {
        if self.muster.is_none() {
            return String::new();
        }
        format!(
            "; Muster's last lines:\n{}",
            muster::log_tail(&self.cluster)
        )
    }

    /// A policy takes a few seconds to act after it was created: asks by dry runs until it does.
    async fn wait_policies(&self) -> anyhow::Result<()> {
        let contender = self.contender;
        if !contender.has_policies() {
            return Ok(());
        }
        let gang = warm_gang();
        let (object, held) = if contender == Contender::MusterJob {
            (objects::job(&gang, contender)?, "/spec/runPolicy/suspend")
        } else {
            let pod = objects::pods(&gang, contender)?.into_iter().next();
            (pod.context("a pod")?, "/spec/schedulingGates/0/name")
        };
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let since = Instant::now();
        loop {
            let request = Request::new(object.path.clone()).create(&dry, object.body.clone())?;
            let answer = self.cluster.admin().request_text(request).await;
            let answer = answer
                .ok()
                .and_then(|text| serde_json::from_str::<Value>(&text).ok());
            if answer.is_some_and(|made| made.pointer(held).is_some()) {
                return Ok(());
            }
            if since.elapsed() > WARM_MAX {
                bail!("waited {WARM_MAX:?} for the admission policies to act");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn warm_up(&self) -> anyhow::Result<()> {
        let gang = warm_gang();
        let pods = gang.pods;
        let mut load = self.load(&[gang], false, true);
        self.wait(WARM_MAX, "two bound pods", Some(&mut load), |world| {
            running(world) == pods
        })
        .await?;
        drop(load);
        self.remove().await?;
        self.wait(WARM_MAX, "the two pods to be gone", None, |world| {
            !world.pods.values().any(|pod| pod.labels.contains_key(GANG))
        })
        .await?;
        self.wait_quiet().await
    }

    /// Waits until nobody writes any more, Leases left out, so that what is late is not counted.
    pub async fn wait_quiet(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        let mut before = None;
        loop {
            let writes = self.cluster.api_writes().await?;
            let now = writes.count(|kind| kind.resource != "leases");
            if before == Some(now) {
                return Ok(());
            }
            if since.elapsed() > QUIET_MAX {
                bail!("waited {QUIET_MAX:?} for the cluster to be quiet");
            }
            before = Some(now);
            tokio::time::sleep(QUIET).await;
        }
    }

    /// Removes the gang that warmed up.
    async fn remove(&self) -> anyhow::Result<()> {
        let client = self.cluster.admin();
        let owner = if self.contender.has_jobs() {
            Some(("kubeflow.org/v1", "PyTorchJob"))
        } else {
            objects::pod_group_api(self.contender).map(|api| (api, "PodGroup"))
        };
        if let Some((api, kind)) = owner {
            let (group, version) = api
                .split_once('/')
                .context("an API group and its version")?;
            let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &kind);
            api.delete(WARM, &DeleteParams::background()).await?;
        }
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
        let pods: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &kind);
        pods.delete_collection(
            &DeleteParams::background().grace_period(0),
            &ListParams::default().labels(&format!("{GANG}={WARM}")),
        )
        .await?;
        Ok(())
    }
}

fn warm_gang() -> Gang {
    Gang {
        name: WARM.to_owned(),
        pods: 2,
        gpus: 1,
    }
}

/// Pods of the load that run.
pub fn running(world: &World) -> usize {
    world
        .pods
        .values()
        .filter(|pod| pod.labels.contains_key(GANG) && pod.phase == "Running")
        .count()
}

/// Pods of the load that are bound.
pub fn bound(world: &World) -> usize {
    world
        .pods
        .values()
        .filter(|pod| pod.labels.contains_key(GANG) && pod.node.is_some())
        .count()
}
