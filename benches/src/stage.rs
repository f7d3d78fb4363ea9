//! A fresh cluster with one scheduler, warmed up by one gang that goes the way of all others.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, Request};
use muster_control_plane::history::{Recorder, World};
use muster_control_plane::{Cluster, NodeTemplate};
use serde_json::Value;

use crate::case::{Case, GPUS_PER_NODE};
use crate::contender::Contender;
use crate::fleet;
use crate::load::Load;
use crate::muster::{self, Muster, Settings};
use crate::objects::{self, GANG, Gang, NAMESPACE};
use crate::programs::Programs;

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
    /// Fake agents report the nodes.
    pub agents: bool,
    /// The API server writes an audit log, so that writes are known by client.
    pub audit: bool,
    /// Muster's `RUST_LOG`.
    pub log: String,
}

/// A cluster ready to be measured.
pub struct Stage {
    /// The control plane.
    pub cluster: Cluster,
    /// Every change of a pod.
    pub recorder: Recorder,
    /// Muster, where it is the contender.
    pub muster: Option<Muster>,
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
    /// Starts everything, binds one gang of two pods and removes it again.
    pub async fn start(
        case: &Case,
        contender: Contender,
        options: &Options,
    ) -> anyhow::Result<Self> {
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
        let muster = if contender.is_muster() {
            Some(start_muster(&cluster, contender, options, &pool).await?)
        } else {
            let config = cluster.default_kube_scheduler_config()?;
            cluster.start_kube_scheduler(&config).await?;
            None
        };
        let recorder = Recorder::start(cluster.admin()).await?;
        let stage = Self {
            cluster,
            recorder,
            muster,
        };
        stage.wait_policies(contender).await?;
        stage.warm_up(contender).await.context("the warm-up")?;
        Ok(stage)
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
    async fn wait_policies(&self, contender: Contender) -> anyhow::Result<()> {
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

    async fn warm_up(&self, contender: Contender) -> anyhow::Result<()> {
        let gang = warm_gang();
        let pods = gang.pods;
        let mut load = Load::start(&self.cluster.admin(), vec![gang], contender, false);
        self.wait(WARM_MAX, "two bound pods", Some(&mut load), |world| {
            running(world) == pods
        })
        .await?;
        drop(load);
        self.remove(contender).await?;
        self.wait(WARM_MAX, "the two pods to be gone", None, |world| {
            !world.pods.values().any(|pod| pod.labels.contains_key(GANG))
        })
        .await?;
        self.wait_quiet().await
    }

    /// Waits until nobody writes any more, Leases left out, so that what is late is not counted.
    async fn wait_quiet(&self) -> anyhow::Result<()> {
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
    async fn remove(&self, contender: Contender) -> anyhow::Result<()> {
        let client = self.cluster.admin();
        let owner = match contender {
            Contender::MusterJob => Some(("kubeflow.org", "v1", "PyTorchJob")),
            Contender::Native => Some(("scheduling.k8s.io", "v1beta1", "PodGroup")),
            _ => None,
        };
        if let Some((group, version, kind)) = owner {
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

async fn start_muster(
    cluster: &Cluster,
    contender: Contender,
    options: &Options,
    pool: &NodeTemplate,
) -> anyhow::Result<Muster> {
    let programs = options.programs.clone().context("Muster's programs")?;
    let settings = Settings {
        programs,
        policies: contender.has_policies(),
        agents: options.agents,
        log: options.log.clone(),
    };
    let muster = Muster::start(cluster, &settings).await?;
    muster.start_kube_scheduler(cluster).await?;
    if options.agents {
        fleet::start(cluster, &muster, &settings.programs, pool).await?;
    }
    Ok(muster)
}
