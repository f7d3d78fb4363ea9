//! One scenario on both clusters: the embedded one and the real control plane. The stand-ins are right when the
//! outcomes agree.
//!
//! ```text
//!   STEPS ──► Place (a kube client, nothing else) on ┌ embedded cluster, paused clock ─► outcomes ┐
//!                                                    └ etcd, kube-apiserver, ...      ─► outcomes ┴► equal
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use muster_control_plane::NodeTemplate;
use muster_embedded::cluster::run_paused;
use muster_embedded::{NodePool, value, yaml};
use muster_tests::jobs::{Job, Role};
use muster_tests::sim::{Sim, SimOptions, gpu_pool};
use muster_tests::stack::{Stack, StackOptions};
use serde_json::{Value, json};

/// GPU nodes of 8 GPUs in both clusters.
const NODES: usize = 5;
/// Longest wait for a step, on real time.
const STEP_MAX: Duration = Duration::from_secs(120);

/// What happens next.
enum Step {
    /// A user applies YAML.
    Apply(String),
    /// A user suspends a job, or resumes it.
    Suspend(&'static str, bool),
    /// A user sets an annotation of a job, or takes it off.
    Annotate(&'static str, &'static str, Value),
    /// A user deletes an object and waits until it, and the pods with this prefix, are gone.
    Delete(&'static str, &'static str),
    /// A pod goes away and comes back with another UID.
    Replace(&'static str),
    /// A pod gets to run.
    Started(&'static str),
    /// A gang gets this phase and this reason.
    Until(&'static str, &'static str, &'static str),
    /// The outcome so far is written down.
    Look(&'static str),
}

use Step::{Annotate, Apply, Delete, Look, Replace, Started, Suspend, Until};

/// A pod of ours that asks for no GPU.
const PLAIN_POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: plain, namespace: default}\nspec: {schedulerName: muster, \
                         containers: [{name: a, image: a, resources: {requests: {cpu: 100m}}}]}\n";

fn workers(name: &str, replicas: u32, seconds: u32) -> String {
    Job::new(name, vec![Role::new("Worker", replicas, 8)])
        .running_for(seconds)
        .yaml()
}

fn train(name: &str) -> Job {
    let roles = vec![Role::new("Master", 1, 1), Role::new("Worker", 4, 1)];
    Job::new(name, roles)
}

fn example(text: &str) -> Step {
    Apply(text.to_owned())
}

fn steps() -> Vec<Step> {
    vec![
        Apply(train("train").running_for(5).yaml()),
        Until("train", "Succeeded", ""),
        Look("a job has run to its end"),
        Apply(workers("first", 3, 60)),
        Until("first", "Running", ""),
        Apply(workers("second", 3, 5)),
        Until("second", "Waiting", "NotEnoughFree"),
        Look("one of two gangs of sixty percent runs, the other holds nothing"),
        Suspend("second", false),
        Look("resuming a queued job makes no difference"),
        Annotate("second", "muster.dev/hold", Value::Null),
        Until("second", "Suspended", ""),
        Look("its user has taken it out of the queue"),
        Suspend("second", false),
        Until("second", "Waiting", "NotEnoughFree"),
        Look("and put it back"),
        Until("second", "Succeeded", ""),
        Look("the other has run after it"),
        example(include_str!(
            "../../../deploy/examples/pytorchjob-impossible.yaml"
        )),
        Until("train-impossible", "Waiting", ""),
        Look("an impossible gang waits and says why"),
        Delete("PyTorchJob", "train-impossible"),
        example(include_str!("../../../deploy/examples/labelled-pods.yaml")),
        Until("label-sweep", "Running", ""),
        Look("labelled pods run"),
        Delete("Pod", "sweep-0"),
        Delete("Pod", "sweep-1"),
        example(include_str!("../../../deploy/examples/podgroup.yaml")),
        Until("podgroup-evaluate", "Running", ""),
        Look("a PodGroup's pods run"),
        Delete("Pod", "evaluate-0"),
        Delete("Pod", "evaluate-1"),
        Delete("PodGroup", "evaluate"),
        Apply(train("rest").yaml()),
        Until("rest", "Running", ""),
        Look("a job runs"),
        Suspend("rest", true),
        Until("rest", "Suspended", ""),
        Look("its user has suspended it"),
        Suspend("rest", false),
        Until("rest", "Running", ""),
        Look("its user has resumed it"),
        Replace("rest-worker-2"),
        Until("rest", "Running", ""),
        Look("a worker was replaced"),
        Delete("PyTorchJob", "rest"),
        example(include_str!("../../../deploy/examples/gpu-pod.yaml")),
        Until("pod-notebook", "Waiting", ""),
        Look("a pod waits for a node that is not there"),
        Delete("Pod", "notebook"),
        Apply(PLAIN_POD.to_owned()),
        Started("plain"),
        Look("a pod without GPUs is nobody's gang"),
        Delete("Pod", "plain"),
        Apply(
            train("queued")
                .label("kueue.x-k8s.io/queue-name", "team")
                .yaml(),
        ),
        Until("queued", "Running", ""),
        Look("a job that Kueue queues is not suspended by us"),
        Delete("PyTorchJob", "queued"),
        Look("all is tidy"),
    ]
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
struct Place {
    client: Client,
}

impl Place {
    fn api(&self, kind: &str) -> anyhow::Result<Api<DynamicObject>> {
        let (group, version, plural) = match kind {
            "PyTorchJob" => ("kubeflow.org", "v1", "pytorchjobs"),
            "PodGroup" => ("scheduling.x-k8s.io", "v1alpha1", "podgroups"),
            "Pod" => ("", "v1", "pods"),
            "Gang" => ("muster.dev", "v1alpha1", "gangs"),
            other => bail!("kind {other} is not known here"),
        };
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let client = self.client.clone();
        Ok(Api::namespaced_with(client, "default", &resource))
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

    /// The outcome, once it is the same for two seconds.
    async fn settled(&self) -> anyhow::Result<Outcome> {
        let mut before = self.look().await?;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = self.look().await?;
            if now == before {
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

    async fn take(&self, step: &Step) -> anyhow::Result<()> {
        match step {
            Apply(text) => {
                for document in yaml::all(text).map_err(anyhow::Error::msg)? {
                    let api = self.api(value::text(&document, &["kind"]))?;
                    let name = value::name(&document).to_owned();
                    api.patch(&name, &PatchParams::apply("user"), &Patch::Apply(&document))
                        .await?;
                }
            }
            Suspend(job, on) => {
                let patch = json!({"spec": {"runPolicy": {"suspend": on}}});
                let api = self.api("PyTorchJob")?;
                api.patch(job, &PatchParams::default(), &Patch::Merge(&patch))
                    .await?;
            }
            Annotate(job, key, value) => {
                let patch = json!({"metadata": {"annotations": {*key: value}}});
                let api = self.api("PyTorchJob")?;
                api.patch(job, &PatchParams::default(), &Patch::Merge(&patch))
                    .await?;
            }
            Delete(kind, name) => {
                self.api(kind)?
                    .delete(name, &DeleteParams::default())
                    .await?;
                self.until(&format!("{kind} {name} and its pods to go"), async || {
                    let pods = self.list("Pod").await?;
                    let left = pods.keys().any(|pod| pod.starts_with(name));
                    Ok(!left && self.uid(kind, name).await?.is_none())
                })
                .await?;
            }
            Replace(pod) => {
                let before = self.uid("Pod", pod).await?;
                self.api("Pod")?
                    .delete(pod, &DeleteParams::default())
                    .await?;
                self.until(&format!("pod {pod} to be made again"), async || {
                    let now = self.uid("Pod", pod).await?;
                    Ok(now.is_some() && now != before)
                })
                .await?;
            }
            Started(pod) => {
                self.until(&format!("pod {pod} to run"), async || {
                    let pods = self.list("Pod").await?;
                    let found = pods.get(*pod);
                    Ok(
                        found
                            .is_some_and(|pod| value::text(pod, &["status", "phase"]) == "Running"),
                    )
                })
                .await?;
            }
            Until(gang, phase, reason) => {
                self.until(&format!("{gang} to be {phase} {reason}"), async || {
                    let gangs = self.list("Gang").await?;
                    let Some(found) = gangs.get(*gang) else {
                        return Ok(false);
                    };
                    let says = |field| value::text(found, &["status", field]);
                    Ok(says("phase") == *phase && (reason.is_empty() || says("reason") == *reason))
                })
                .await?;
            }
            Look(_) => {}
        }
        Ok(())
    }

    async fn play(&self) -> anyhow::Result<Vec<(&'static str, Outcome)>> {
        let mut outcomes = Vec::new();
        for (at, step) in steps().iter().enumerate() {
            self.take(step)
                .await
                .with_context(|| format!("step {at}"))?;
            if let Look(what) = step {
                outcomes.push((*what, self.settled().await?));
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

fn on_the_embedded_cluster() -> anyhow::Result<Vec<(&'static str, Outcome)>> {
    run_paused(async {
        let sim = Sim::start(SimOptions {
            pools: vec![gpu_pool(NODES), NodePool::new("cpu", 1, 0)],
            ..SimOptions::default()
        })
        .await?;
        let client = sim.cluster.client("user");
        let outcomes = Place { client }.play().await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(outcomes)
    })?
}

fn on_the_real_control_plane() -> anyhow::Result<Vec<(&'static str, Outcome)>> {
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
            ..StackOptions::default()
        })
        .await?;
        let client = stack.cluster.admin();
        let outcomes = Place { client }.play().await?;
        stack.judge().await?;
        Ok(outcomes)
    })
}

#[test]
fn one_scenario_has_the_same_outcomes_on_both_clusters() -> anyhow::Result<()> {
    let embedded = on_the_embedded_cluster()?;
    let real = on_the_real_control_plane()?;
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
