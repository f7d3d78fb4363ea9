//! Changing a job, or what its status shows: one merge patch, made from the job as it is and refused when it is another one
//! or has changed since the engine saw it. The engine then decides again on what it sees.

use std::sync::Arc;

use muster_core::action::{JobChange, JobTarget, Write};
use muster_core::event::WriteOutcome;
use muster_core::workload::WorkloadKind;
use muster_kubernetes::write;
use tokio::time::Instant;

use super::Writer;
use super::step::{Request, Tried, text};

impl Writer {
    pub(super) async fn change_job(
        &self,
        write: &Write,
        job: &JobTarget,
        change: &JobChange,
        deadline: Instant,
    ) -> WriteOutcome {
        if job.kind != WorkloadKind::PyTorchJob {
            let said = format!("a {} cannot be held or released", job.kind.as_str());
            return WriteOutcome::Refused(Arc::from(said));
        }
        let path = format!(
            "/apis/kubeflow.org/v1/namespaces/{}/pytorchjobs/{}",
            job.namespace, job.name
        );
        let changed = match change {
            JobChange::Show => format!("{path}/status"),
            _ => path.clone(),
        };
        let mut attempts = self.attempts(write, deadline);
        loop {
            let current = match attempts.read(&path).await {
                Ok(Some(current)) if text(&current, "/metadata/uid") == &*job.uid => current,
                Ok(_) => return WriteOutcome::Gone,
                Err(outcome) => return outcome,
            };
            let version = job.resource_version.as_str();
            let Some(patch) = write::job_patch(&current, change, &job.uid, version) else {
                return WriteOutcome::Done(None);
            };
            if text(&current, "/metadata/resourceVersion") != version {
                return WriteOutcome::Conflict(None);
            }
            match attempts.send(&Request::patch(changed.clone(), patch)).await {
                Tried::Done(_) => return WriteOutcome::Done(None),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Conflict { .. } => return WriteOutcome::Conflict(None),
                Tried::Over(outcome) => return outcome,
                Tried::Doubt => attempts.pause().await,
            }
            if attempts.spent() {
                return attempts.unknown();
            }
        }
    }
}
