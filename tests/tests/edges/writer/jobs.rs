//! Writes of jobs.

use muster_core::action::{JobChange, JobTarget, WriteKind};
use muster_core::event::WriteOutcome;
use muster_core::workload::WorkloadKind;
use serde_json::json;

use super::outcome;
use crate::standin::{Standin, ok};

fn change(change: JobChange) -> WriteKind {
    WriteKind::ChangeJob {
        job: JobTarget {
            kind: WorkloadKind::PyTorchJob,
            namespace: "ns".into(),
            name: "g".into(),
            uid: "job-uid".into(),
            resource_version: "3".into(),
        },
        change,
    }
}

#[tokio::test(start_paused = true)]
async fn job_that_changed_since_is_not_patched() {
    let change = || change(JobChange::Hold);
    let job = |uid: &str, version: &str| {
        json!({
            "metadata": {"name": "g", "namespace": "ns", "uid": uid, "resourceVersion": version},
            "spec": {"runPolicy": {"suspend": false}, "pytorchReplicaSpecs": {}},
        })
    };
    let changed = Standin::new(move |_| ok(job("job-uid", "4")));
    assert_eq!(
        outcome(&changed, change()).await,
        WriteOutcome::Conflict(None)
    );
    let other = Standin::new(move |_| ok(job("another", "3")));
    assert_eq!(outcome(&other, change()).await, WriteOutcome::Gone);
    let same = Standin::new(move |call| {
        if call.method == http::Method::PATCH {
            assert_eq!(call.body["spec"]["runPolicy"]["suspend"], true);
            assert_eq!(call.body["metadata"]["resourceVersion"], "3");
        }
        ok(job("job-uid", "3"))
    });
    assert_eq!(outcome(&same, change()).await, WriteOutcome::Done(None));
    assert_eq!(same.lines().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_status_shows_is_written_to_the_status() {
    let change = || change(JobChange::Show);
    let job = || {
        json!({
            "metadata": {"name": "g", "namespace": "ns", "uid": "job-uid", "resourceVersion": "3",
                         "annotations": {"muster.dev/hold": "queued"}},
            "spec": {"runPolicy": {"suspend": true}, "pytorchReplicaSpecs": {}},
            "status": {"conditions": [{"type": "Suspended", "status": "True"}]},
        })
    };
    let standin = Standin::new(move |call| {
        if call.method == http::Method::PATCH {
            assert!(
                call.path.ends_with("/pytorchjobs/g/status"),
                "{}",
                call.path
            );
            assert_eq!(call.body["status"]["conditions"][1]["type"], "Queued");
        }
        ok(job())
    });
    assert_eq!(outcome(&standin, change()).await, WriteOutcome::Done(None));
    assert_eq!(standin.lines().len(), 2);
}
