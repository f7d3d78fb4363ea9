//! What a user, an operator or a foreign controller does to the cluster, and looks at in it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use muster_control_plane::history::{Change, History};
use serde_json::{Value, json};

use crate::pods::PodGang;
use crate::stack::{GangSays, Stack};

/// Longest wait for anything that takes seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

impl GangSays {
    /// Planned nodes, one per member, in order of role and index.
    pub fn nodes(&self) -> Vec<String> {
        let members = self.status.get("members").and_then(Value::as_array);
        members
            .into_iter()
            .flatten()
            .filter_map(|member| member.get("node").and_then(Value::as_str))
            .map(str::to_owned)
            .collect()
    }

    /// Id of the durable plan, empty without one.
    pub fn plan(&self) -> &str {
        self.status
            .get("planId")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

fn missing_is_fine<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

impl Stack {
    /// Runs kubectl as admin; its standard output, or an error when it fails.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.cluster.kubectl(args).await?;
        let (out, err) = (&output.stdout, &output.stderr);
        anyhow::ensure!(output.success, "kubectl {}: {out}{err}", args.join(" "));
        Ok(output.stdout)
    }

    /// PyTorchJobs of namespace `default`.
    pub fn jobs(&self) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob"),
            "pytorchjobs",
        );
        Api::default_namespaced_with(self.cluster.admin(), &kind)
    }

    /// Pods of namespace `default`.
    pub fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.cluster.admin())
    }

    /// A job as the API server has it.
    pub async fn job(&self, name: &str) -> anyhow::Result<Value> {
        let job = self.jobs().get(name).await?;
        Ok(serde_json::to_value(job)?)
    }

    /// Changes a job by a merge patch, as its owner would.
    pub async fn patch_job(&self, name: &str, patch: &Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(patch);
        self.jobs()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("change job {name}"))?;
        Ok(())
    }

    /// Suspends a job, or lets it go on, as its user would.
    pub async fn suspend_job(&self, name: &str, suspend: bool) -> anyhow::Result<()> {
        let patch = json!({ "spec": { "runPolicy": { "suspend": suspend } } });
        self.patch_job(name, &patch).await
    }

    /// Deletes a job and waits until its pods and its Gang are gone.
    pub async fn end_job(&self, name: &str) -> anyhow::Result<()> {
        missing_is_fine(self.jobs().delete(name, &DeleteParams::background()).await)?;
        self.wait_world(PATIENCE, &format!("no pods of {name}"), |world| {
            world.pods_of(name).count() == 0
        })
        .await?;
        self.wait_no_gang(name).await
    }

    /// Deletes the pods of a gang without a job and waits until they and its Gang are gone.
    pub async fn end_pods(&self, gang: &PodGang) -> anyhow::Result<()> {
        for index in 0..gang.count {
            self.delete_pod(&format!("{}-{index}", gang.name)).await?;
        }
        self.wait_world(PATIENCE, &format!("no pods of {}", gang.name), |world| {
            gang.members(world).count() == 0
        })
        .await?;
        if !gang.head().is_empty() {
            let delete = ["delete", "podgroups.scheduling.x-k8s.io", &gang.name];
            self.cluster.kubectl(&delete).await?;
        }
        self.wait_no_gang(&gang.object()).await
    }

    async fn wait_no_gang(&self, object: &str) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while let Some(says) = self.gang("default", object).await? {
            if Instant::now() > end {
                bail!("waited {PATIENCE:?} for Gang {object} to go; it says {says:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Deletes a pod; one that is not there is no error.
    pub async fn delete_pod(&self, name: &str) -> anyhow::Result<()> {
        missing_is_fine(self.pods().delete(name, &DeleteParams::default()).await)?;
        Ok(())
    }

    /// Changes a node by a merge patch, as an administrator would.
    pub async fn patch_node(&self, name: &str, patch: &Value) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.cluster.admin());
        let patch = Patch::Merge(patch);
        nodes
            .patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("change node {name}"))?;
        Ok(())
    }

    /// Cordons or uncordons a node.
    pub async fn cordon(&self, name: &str, cordoned: bool) -> anyhow::Result<()> {
        let patch = json!({ "spec": { "unschedulable": cordoned } });
        self.patch_node(name, &patch).await
    }

    /// Sets the taints of a GPU node: its own, and one more if there is an effect.
    pub async fn taint(&self, name: &str, effect: Option<&str>) -> anyhow::Result<()> {
        let own = json!({ "key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule" });
        let more = effect.map(|effect| json!({ "key": "broken", "effect": effect }));
        let taints: Vec<Value> = std::iter::once(own).chain(more).collect();
        self.patch_node(name, &json!({ "spec": { "taints": taints } }))
            .await
    }

    /// Deletes a node.
    pub async fn delete_node(&self, name: &str) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.cluster.admin());
        missing_is_fine(nodes.delete(name, &DeleteParams::default()).await)?;
        Ok(())
    }

    /// Binds a pod to a node as another scheduler does.
    pub async fn bind(&self, name: &str, node: &str) -> anyhow::Result<()> {
        let target = json!({ "kind": "Node", "name": node });
        let binding = json!({ "metadata": { "name": name }, "target": target });
        let _: kube::core::Status = self
            .pods()
            .create_subresource("binding", name, &PostParams::default(), &binding)
            .await
            .with_context(|| format!("bind {name} to {node}"))?;
        Ok(())
    }

    /// Puts a pod on a node past all schedulers.
    pub async fn intrude(&self, name: &str, node: &str, gpus: u32) -> anyhow::Result<()> {
        let pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": { "nodeName": node, "tolerations": [{ "operator": "Exists" }],
                      "containers": [{ "name": "a", "image": "a",
                                       "resources": { "limits": { "nvidia.com/gpu": gpus.to_string() } } }] },
        }))?;
        self.pods().create(&PostParams::default(), &pod).await?;
        Ok(())
    }

    /// Waits until a gang has a durable plan; returns what the Gang says then.
    pub async fn wait_planned(&self, object: &str) -> anyhow::Result<GangSays> {
        self.wait_gang("default", object, PATIENCE, |says| !says.plan().is_empty())
            .await
    }

    /// Waits until all pods of a job are bound and its Gang says that it runs.
    pub async fn wait_running(&self, job: &str, pods: usize) -> anyhow::Result<GangSays> {
        self.wait_bound(job, pods, PATIENCE).await?;
        let bound = Some(u64::try_from(pods)?);
        self.wait_gang("default", job, PATIENCE, |says| {
            says.phase == "Running" && says.status.get("bound").and_then(Value::as_u64) == bound
        })
        .await
    }

    /// Nodes of a job's bound pods, sorted.
    pub fn nodes_of(&self, job: &str) -> Vec<String> {
        let mut nodes: Vec<String> = self.recorder.look(|world| {
            world
                .pods_of(job)
                .filter(|pod| pod.is_bound_and_live())
                .filter_map(|pod| pod.node.clone())
                .collect()
        });
        nodes.sort();
        nodes
    }
}

/// Pods of a controller that existed when the first of them was bound, and how many there were in
/// all; `None` when none was ever bound.
pub fn existing_at_first_bind(history: &History, controller: &str) -> Option<(usize, usize)> {
    let of = |pod: &muster_control_plane::history::PodState| {
        pod.controller
            .as_ref()
            .is_some_and(|(_, name, _)| name == controller)
    };
    let mut ever = std::collections::BTreeSet::new();
    let mut at_first = None;
    for event in history.events() {
        let Change::Pod(pod) = &event.change else {
            continue;
        };
        if !of(pod) {
            continue;
        }
        ever.insert(pod.uid.clone());
        if pod.node.is_some() && at_first.is_none() {
            at_first = Some(ever.len());
        }
    }
    at_first.map(|at_first| (at_first, ever.len()))
}
