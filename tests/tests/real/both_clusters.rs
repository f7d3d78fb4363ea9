//! One scenario on both clusters: the embedded one and the real control plane. The stand-ins are right when the
//! outcomes agree.
//!
//! ```text
//!   file ───► Place (a kube client, nothing else) on ┌ embedded cluster, paused clock ─► outcomes ┐
//!                                                    └ etcd, kube-apiserver, ...      ─► outcomes ┴► equal
//! ```
//!
//! What breaks, and what an administrator forbids, is done by the cluster's owner: `owner.rs`.

mod owner;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use muster_control_plane::NodeTemplate;
use muster_embedded::cluster::run_paused;
use muster_embedded::{NodePool, value, yaml};
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::sim::{Sim, SimOptions, gpu_pool};
use muster_tests::stack::{Stack, StackOptions};
use owner::Owner;
use serde::Deserialize;
use serde_json::{Value, json};

/// GPU nodes of 8 GPUs in both clusters.
const NODES: usize = 5;
/// Longest wait for a step, on real time.
const STEP_MAX: Duration = Duration::from_secs(120);

/// What happens next.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Step {
    /// A user submits a PyTorchJob.
    Job(JobStep),
    /// A user makes the pods of a gang without a job.
    Pods(PodsStep),
    /// A user applies a file of `deploy/examples`.
    Example(String),
    /// A pod of ours that asks for no GPU.
    Plain { name: String },
    /// A pod that names its node itself.
    Foreign {
        name: String,
        gpus: u32,
        node: usize,
    },
    /// A user suspends a job, or resumes it.
    Suspend { job: String, on: bool },
    /// A user sets an annotation of a job, or takes it off.
    Annotate {
        job: String,
        key: String,
        value: Option<String>,
    },
    /// A user changes the number of a job's workers.
    Scale { job: String, workers: u32 },
    /// An administrator cordons a node, or takes that back.
    Cordon { node: usize, on: bool },
    /// An administrator taints a node, or takes that back.
    Taint { node: usize, effect: Option<String> },
    /// A GPU falls off the bus; the device plugin offers it no more.
    Xid { node: usize, gpu: u32 },
    /// A node's GPUs are repaired, all of them.
    Repair { node: usize },
    /// A node's kubelet is not heard any more, or is again.
    Ready { node: usize, on: bool },
    /// A node is deleted, and the pods that were there are given up.
    Lose { node: usize },
    /// An administrator's policy refuses the Bindings of pods with this prefix, or is taken away.
    Refuse { prefix: String, on: bool },
    /// A user deletes an object and waits until it, and the pods with this prefix, are gone.
    Delete { kind: String, name: String },
    /// A pod is deleted and comes back with another UID.
    Replace(String),
    /// A pod gets to run.
    Runs(String),
    /// A pod goes away.
    Gone(String),
    /// A gang gets this phase and this reason.
    Until {
        gang: String,
        phase: String,
        reason: Option<String>,
    },
    /// The outcome so far is written down under this name.
    Look(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JobStep {
    name: String,
    #[serde(default)]
    master: u32,
    workers: u32,
    gpus: u32,
    /// Seconds after which each pod ends well.
    ends: Option<u32>,
    /// A line of `spec.runPolicy`.
    run_policy: Option<String>,
    label: Option<Label>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Label {
    key: String,
    value: String,
}

impl JobStep {
    fn yaml(&self) -> String {
        let master = (self.master > 0).then(|| Role::new("Master", self.master, self.gpus));
        let workers = Role::new("Worker", self.workers, self.gpus);
        let mut job = Job::new(&self.name, master.into_iter().chain([workers]).collect());
        job.run_seconds = self.ends;
        job.run_policy.extend(self.run_policy.clone());
        if let Some(label) = &self.label {
            job = job.label(&label.key, &label.value);
        }
        job.yaml()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodsStep {
    name: String,
    by: Mark,
    count: u32,
    gpus: u32,
}

/// What makes pods a gang.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Mark {
    Label,
    PodGroup,
}

impl PodsStep {
    fn yaml(&self) -> String {
        let by = match self.by {
            Mark::Label => By::Label,
            Mark::PodGroup => By::PodGroup,
        };
        PodGang::new(&self.name, by, self.count, self.gpus).yaml()
    }
}

fn plain_pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec: {{schedulerName: muster, \
         containers: [{{name: a, image: a, resources: {{requests: {{cpu: 100m}}}}}}]}}\n"
    )
}

fn foreign_pod(name: &str, gpus: u32, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec: {{nodeName: {node}, \
         tolerations: [{{operator: Exists}}], \
         containers: [{{name: a, image: a, resources: {{limits: {{nvidia.com/gpu: {gpus}}}}}}}]}}\n"
    )
}

/// Reads a file of `folder`, which is relative to this crate.
fn read(folder: &str, name: &str) -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn scenario(name: &str) -> anyhow::Result<Vec<Step>> {
    let steps: Vec<Step> = serde_saphyr::from_str(&read("scenarios", name)?)
        .map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
    ensure!(!steps.is_empty(), "{name} has no steps");
    Ok(steps)
}

/// The parts of the cluster that must agree: nothing with a name that chance or a cluster gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Phase, reason and members bound, by gang.
    gangs: BTreeMap<String, String>,
    /// Suspended or not, held or not, template clean or not, by job.
    jobs: BTreeMap<String, String>,
    /// Phase, bound or not, gates, by pod.
    pods: BTreeMap<String, String>,
}

/// A cluster, as its users see it.
struct Place<'a> {
    client: Client,
    /// What its users cannot do.
    owner: Owner<'a>,
}

impl Place<'_> {
    fn api(&self, kind: &str) -> anyhow::Result<Api<DynamicObject>> {
        let (group, version, plural) = match kind {
            "PyTorchJob" => ("kubeflow.org", "v1", "pytorchjobs"),
            "PodGroup" => ("scheduling.x-k8s.io", "v1alpha1", "podgroups"),
            "Pod" => ("", "v1", "pods"),
            "Gang" => ("muster.dev", "v1alpha1", "gangs"),
            "Node" => ("", "v1", "nodes"),
            other => bail!("kind {other} is not known here"),
        };
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let client = self.client.clone();
        Ok(match kind {
            "Node" => Api::all_with(client, &resource),
            _ => Api::namespaced_with(client, "default", &resource),
        })
    }

    async fn list(&self, kind: &str) -> anyhow::Result<BTreeMap<String, Value>> {
        let list = self.api(kind)?.list(&ListParams::default()).await?;
        let named = list.items.into_iter().map(|object| {
            let name = object.metadata.name.clone().unwrap_or_default();
            Ok((name, serde_json::to_value(&object)?))
        });
        named.collect()
    }

    async fn look(&self) -> anyhow::Result<Outcome> {
        let flat = |objects: BTreeMap<String, Value>, show: fn(&Value) -> String| {
            let shown = objects.into_iter();
            shown.map(|(name, object)| (name, show(&object))).collect()
        };
        Ok(Outcome {
            gangs: flat(self.list("Gang").await?, show_gang),
            jobs: flat(self.list("PyTorchJob").await?, show_job),
            pods: flat(self.list("Pod").await?, show_pod),
        })
    }

    /// The outcome, once it is the same for a second. A job's own status may come later than all else, on a busy machine by seconds.
    async fn settled(&self) -> anyhow::Result<Outcome> {
        let mut before = self.look().await?;
        for second in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.look().await?;
            let mut jobs = now.jobs.values();
            if now == before && (second >= 10 || !jobs.any(|job| job.ends_with("state "))) {
                break;
            }
            before = now;
        }
        Ok(before)
    }

    async fn until(
        &self,
        what: &str,
        holds: impl AsyncFn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + STEP_MAX;
        while !holds().await? {
            if tokio::time::Instant::now() > end {
                bail!("waited {STEP_MAX:?} for {what}: {:#?}", self.look().await?);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn uid(&self, kind: &str, name: &str) -> anyhow::Result<Option<String>> {
        let found = self.api(kind)?.get_opt(name).await?;
        Ok(found.and_then(|object| object.metadata.uid))
    }

    async fn apply(&self, text: &str) -> anyhow::Result<()> {
        for document in yaml::all(text).map_err(anyhow::Error::msg)? {
            let api = self.api(value::text(&document, &["kind"]))?;
            let name = value::name(&document).to_owned();
            api.patch(&name, &PatchParams::apply("user"), &Patch::Apply(&document))
                .await?;
        }
        Ok(())
    }

    async fn merge(&self, kind: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
        let api = self.api(kind)?;
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Name of a GPU node.
    async fn node(&self, index: usize) -> anyhow::Result<String> {
        let nodes = self.list("Node").await?;
        let mut gpu = nodes.into_keys().filter(|name| name.starts_with("gpu-"));
        gpu.nth(index)
            .with_context(|| format!("there is no GPU node {index}"))
    }

    async fn change_node(&self, index: usize, patch: &Value) -> anyhow::Result<()> {
        let name = self.node(index).await?;
        self.merge("Node", &name, patch).await
    }

    async fn delete(&self, kind: &str, name: &str) -> anyhow::Result<()> {
        let api = self.api(kind)?;
        api.delete(name, &DeleteParams::default()).await?;
        self.until(&format!("{kind} {name} and its pods to go"), async || {
            let pods = self.list("Pod").await?;
            let left = pods.keys().any(|pod| pod.starts_with(name));
            Ok(!left && self.uid(kind, name).await?.is_none())
        })
        .await
    }

    async fn lose(&self, node: usize) -> anyhow::Result<()> {
        let name = self.node(node).await?;
        let nodes = self.api("Node")?;
        nodes.delete(&name, &DeleteParams::default()).await?;
        let at_once = DeleteParams::default().grace_period(0);
        for (pod, object) in self.list("Pod").await? {
            if value::text(&object, &["spec", "nodeName"]) == name {
                self.api("Pod")?.delete(&pod, &at_once).await?;
            }
        }
        Ok(())
    }

    async fn replace(&self, pod: &str) -> anyhow::Result<()> {
        let before = self.uid("Pod", pod).await?;
        let api = self.api("Pod")?;
        api.delete(pod, &DeleteParams::default()).await?;
        self.until(&format!("pod {pod} to be made again"), async || {
            let now = self.uid("Pod", pod).await?;
            Ok(now.is_some() && now != before)
        })
        .await
    }

    async fn take(&self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Job(job) => self.apply(&job.yaml()).await,
            Step::Pods(pods) => self.apply(&pods.yaml()).await,
            Step::Example(file) => self.apply(&read("../deploy/examples", file)?).await,
            Step::Plain { name } => self.apply(&plain_pod(name)).await,
            Step::Foreign { name, gpus, node } => {
                let node = self.node(*node).await?;
                self.apply(&foreign_pod(name, *gpus, &node)).await
            }
            Step::Suspend { job, on } => {
                let patch = json!({"spec": {"runPolicy": {"suspend": on}}});
                self.merge("PyTorchJob", job, &patch).await
            }
            Step::Annotate { job, key, value } => {
                let patch = json!({"metadata": {"annotations": {key: value}}});
                self.merge("PyTorchJob", job, &patch).await
            }
            Step::Scale { job, workers } => {
                let specs = json!({"Worker": {"replicas": workers}});
                let patch = json!({"spec": {"pytorchReplicaSpecs": specs}});
                self.merge("PyTorchJob", job, &patch).await
            }
            Step::Cordon { node, on } => {
                let patch = json!({"spec": {"unschedulable": on}});
                self.change_node(*node, &patch).await
            }
            Step::Taint { node, effect } => {
                let own =
                    json!({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"});
                let more = effect
                    .as_ref()
                    .map(|effect| json!({"key": "broken", "effect": effect}));
                let taints: Vec<Value> = std::iter::once(own).chain(more).collect();
                let patch = json!({"spec": {"taints": taints}});
                self.change_node(*node, &patch).await
            }
            Step::Xid { node, gpu } => self.owner.xid(&self.node(*node).await?, *gpu).await,
            Step::Repair { node } => self.owner.repair(&self.node(*node).await?).await,
            Step::Ready { node, on } => self.owner.ready(&self.node(*node).await?, *on).await,
            Step::Lose { node } => self.lose(*node).await,
            Step::Refuse { prefix, on } => self.owner.refuse(prefix, *on).await,
            Step::Delete { kind, name } => self.delete(kind, name).await,
            Step::Replace(pod) => self.replace(pod).await,
            Step::Look(_) => Ok(()),
            Step::Runs(_) | Step::Gone(_) | Step::Until { .. } => self.wait(step).await,
        }
    }

    async fn wait(&self, step: &Step) -> anyhow::Result<()> {
        self.until(&format!("{step:?}"), async || match step {
            Step::Runs(pod) => {
                let pods = self.list("Pod").await?;
                let runs = |pod: &Value| value::text(pod, &["status", "phase"]) == "Running";
                Ok(pods.get(pod).is_some_and(runs))
            }
            Step::Gone(pod) => Ok(self.uid("Pod", pod).await?.is_none()),
            Step::Until {
                gang,
                phase,
                reason,
            } => {
                let gangs = self.list("Gang").await?;
                let is = |gang: &Value| {
                    let says = |field| value::text(gang, &["status", field]);
                    says("phase") == phase
                        && reason
                            .as_ref()
                            .is_none_or(|reason| says("reason") == reason)
                };
                Ok(gangs.get(gang).is_some_and(is))
            }
            _ => Ok(true),
        })
        .await
    }

    async fn play(&self, steps: &[Step]) -> anyhow::Result<Vec<(String, Outcome)>> {
        let mut outcomes = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            self.take(step)
                .await
                .with_context(|| format!("step {at}, {step:?}"))?;
            if let Step::Look(what) = step {
                outcomes.push((what.clone(), self.settled().await?));
            }
        }
        Ok(outcomes)
    }
}

fn show_gang(gang: &Value) -> String {
    let says = |field| value::text(gang, &["status", field]);
    let bound = says("membersBound");
    format!(
        "{} {} {bound}: {}",
        says("phase"),
        says("reason"),
        says("message")
    )
}

fn show_job(job: &Value) -> String {
    let suspended = value::flag(job, &["spec", "runPolicy", "suspend"]);
    let annotation = |key| value::at(job, &["metadata", "annotations", key]).is_some();
    let specs = value::at(job, &["spec", "pytorchReplicaSpecs"]);
    let pinned = specs.is_some_and(|specs| specs.to_string().contains("matchFields"));
    // What kubectl shows in the column STATE.
    let last = value::items(job, &["status", "conditions"]).last();
    format!(
        "suspended {suspended}, held {}, pinned {} {pinned}, state {}",
        annotation("muster.dev/hold"),
        annotation("muster.dev/pinned"),
        last.map_or("", |condition| value::text(condition, &["type"]))
    )
}

fn show_pod(pod: &Value) -> String {
    let bound = !value::text(pod, &["spec", "nodeName"]).is_empty();
    let gates = value::items(pod, &["spec", "schedulingGates"]).len();
    let devices = value::at(pod, &["metadata", "annotations", "muster.dev/devices"]);
    format!(
        "{} bound {bound} gates {gates} devices named {}",
        value::text(pod, &["status", "phase"]),
        devices.is_some()
    )
}

fn on_the_embedded_cluster(
    steps: &[Step],
    policies: bool,
) -> anyhow::Result<Vec<(String, Outcome)>> {
    run_paused(async {
        let sim = Sim::start(SimOptions {
            pools: vec![gpu_pool(NODES), NodePool::new("cpu", 1, 0)],
            policies,
            ..SimOptions::default()
        })
        .await?;
        let client = sim.cluster.client("user");
        let owner = Owner::Embedded(&sim);
        let outcomes = Place { client, owner }.play(steps).await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(outcomes)
    })?
}

fn on_the_real_control_plane(
    steps: &[Step],
    policies: bool,
) -> anyhow::Result<Vec<(String, Outcome)>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stack = Stack::start(StackOptions {
            pools: vec![
                NodeTemplate::gpu_pool("gpu", u32::try_from(NODES)?),
                NodeTemplate::cpu_pool("cpu", 1),
            ],
            policies,
            ..StackOptions::default()
        })
        .await?;
        let place = Place {
            client: stack.cluster.admin(),
            owner: Owner::real(&stack),
        };
        let outcomes = stack.step("the scenario", place.play(steps)).await?;
        stack.judge().await?;
        Ok(outcomes)
    })
}

fn play_on_both(file: &str, policies: bool) -> anyhow::Result<()> {
    let steps = scenario(file)?;
    let embedded = on_the_embedded_cluster(&steps, policies)?;
    let real = on_the_real_control_plane(&steps, policies)?;
    assert_eq!(embedded.len(), real.len());
    let differing: Vec<String> = embedded
        .iter()
        .zip(&real)
        .filter(|(embedded, real)| embedded != real)
        .map(|(embedded, real)| {
            format!(
                "{}\nembedded {:#?}\nreal {:#?}",
                embedded.0, embedded.1, real.1
            )
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{} of {} outcomes differ:\n{}",
        differing.len(),
        embedded.len(),
        differing.join("\n\n")
    );
    Ok(())
}

#[test]
fn one_scenario_has_the_same_outcomes_on_both_clusters() -> anyhow::Result<()> {
    play_on_both("held.yaml", true)
}

#[test]
fn one_scenario_without_policies_has_the_same_outcomes_on_both_clusters() -> anyhow::Result<()> {
    play_on_both("ungated.yaml", false)
}

#[test]
fn gpus_and_nodes_that_fail_and_bindings_refused_have_the_same_outcomes_on_both_clusters()
-> anyhow::Result<()> {
    play_on_both("faults.yaml", true)
}

#[test]
fn without_policies_what_fails_and_is_refused_has_the_same_outcomes_on_both_clusters()
-> anyhow::Result<()> {
    play_on_both("faults.yaml", false)
}
