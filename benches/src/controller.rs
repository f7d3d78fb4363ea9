//! A job controller without a rate limit: makes the pods of every PyTorchJob that is not suspended,
//! deletes them when it is suspended again, and writes nothing else. It stands in for
//! training-operator, whose default limits make about ten pods a second.

use std::collections::BTreeSet;

use anyhow::Context as _;
use futures::StreamExt as _;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::load::Step;
use crate::objects::{self, JOB_LABEL, NAMESPACE};

/// Errors of the watch in a row that are put up with: a kind that has just been defined is not served at once.
const ERRORS_MAX: usize = 5;

/// Watches jobs and hands the pods of each, once it is free to run, to the maker of objects. Runs
/// until the receiver is gone.
pub async fn run(client: Client, steps: mpsc::Sender<Step>) -> anyhow::Result<()> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &kind);
    let (mut started, mut ever) = (BTreeSet::new(), BTreeSet::new());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut errors: usize = 0;
    while let Some(event) = events.next().await {
        if event.is_err() && errors < ERRORS_MAX {
            errors = errors.saturating_add(1);
            continue;
        }
        errors = 0;
        let job = match event.context("watch jobs")? {
            watcher::Event::Apply(job) | watcher::Event::InitApply(job) => job,
            watcher::Event::Init | watcher::Event::InitDone | watcher::Event::Delete(_) => continue,
        };
        let suspended = job
            .data
            .pointer("/spec/runPolicy/suspend")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let uid = job.metadata.uid.clone().unwrap_or_default();
        if suspended {
            if started.remove(&uid) {
                delete_pods(&client, job.metadata.name.as_deref().unwrap_or_default()).await?;
            }
            continue;
        }
        if !started.insert(uid.clone()) {
            continue;
        }
        let job = serde_json::to_value(&job).context("encode a job")?;
        let step = Step {
            head: Vec::new(),
            pods: objects::pods_of_job(&job)?,
            again: !ever.insert(uid),
        };
        if steps.send(step).await.is_err() {
            return Ok(());
        }
    }
    anyhow::bail!("the watch of jobs ended")
}

/// Deletes the pods of a job, as training-operator does when it is suspended.
async fn delete_pods(client: &Client, job: &str) -> anyhow::Result<()> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &kind);
    let of_job = ListParams::default().labels(&format!("{JOB_LABEL}={job}"));
    pods.delete_collection(&DeleteParams::background(), &of_job)
        .await
        .with_context(|| format!("delete the pods of job {job}"))?;
    Ok(())
}
