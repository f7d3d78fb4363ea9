//! Writes of Gangs.

use std::sync::Arc;

use muster_core::action::WriteKind;
use muster_core::event::WriteOutcome;
use muster_core::record::GangStatus;
use muster_core::workload::WorkloadKind;
use serde_json::{Value, json};

use super::{GANG, outcome, scripted};
use crate::standin::{Reply, Standin, ok, status};

fn gang(uid: &str, version: &str) -> Value {
    json!({
        "apiVersion": "muster.dev/v1alpha1", "kind": "Gang",
        "metadata": {"name": "g", "namespace": "ns", "uid": "gang-uid", "resourceVersion": version},
        "spec": {"workload": {"kind": "PyTorchJob", "name": "g", "uid": uid}},
    })
}

fn create() -> WriteKind {
    WriteKind::CreateRecord {
        object: "g".into(),
        kind: WorkloadKind::PyTorchJob,
        name: "g".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn f16_s10_record_that_exists_is_found_and_a_taken_name_is_avoided() {
    let standin = scripted(|line, _, _| match line.starts_with("POST") {
        true => status(409, "AlreadyExists"),
        false => ok(gang("job-uid", "3")),
    });
    let WriteOutcome::Done(Some(record)) = outcome(&standin, create()).await else {
        panic!("found");
    };
    assert_eq!(record.resource_version.as_str(), "3");
    let taken = scripted(
        |line, count, call| match (line.starts_with("POST"), count) {
            (true, 1) => status(409, "AlreadyExists"),
            (true, _) => {
                assert_eq!(call.body["metadata"]["name"], "g-jobui");
                Reply::Json(201, gang("job-uid", "4"))
            }
            _ => ok(gang("another", "3")),
        },
    );
    assert!(matches!(
        outcome(&taken, create()).await,
        WriteOutcome::Done(Some(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn status_conflict_says_what_the_object_says_now() {
    let put = || WriteKind::PutStatus {
        object: "g".into(),
        resource_version: "3".into(),
        status: GangStatus::default(),
    };
    let standin = scripted(|line, _, call| {
        if line == format!("PUT {GANG}/status") {
            assert_eq!(call.body["metadata"]["resourceVersion"], "3");
            return status(409, "Conflict");
        }
        ok(gang("job-uid", "9"))
    });
    let WriteOutcome::Conflict(Some(record)) = outcome(&standin, put()).await else {
        panic!("conflict with the record");
    };
    assert_eq!(record.resource_version.as_str(), "9");
    // The answer is lost, the write was applied: reading back finds exactly what was wanted.
    let stored = Arc::new(std::sync::Mutex::new(gang("job-uid", "3")));
    let lost = scripted(move |line, _, call| {
        let mut object = stored.lock().unwrap();
        if line.starts_with("PUT") {
            object["status"] = call.body["status"].clone();
            object["metadata"]["resourceVersion"] = json!("4");
            return Reply::Lost;
        }
        ok(object.clone())
    });
    assert!(matches!(
        outcome(&lost, put()).await,
        WriteOutcome::Done(Some(_))
    ));
    let gone = Standin::new(|_| status(404, "NotFound"));
    assert_eq!(outcome(&gone, put()).await, WriteOutcome::Gone);
}

fn stamp_record() -> WriteKind {
    WriteKind::StampRecord {
        object: "g".into(),
        uid: "gang-uid".into(),
        resource_version: "10".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn stamp_of_a_gang_is_answered_with_what_the_gang_says() {
    // Its status has been written since it was seen.
    let standin = scripted(|line, nth, call| {
        if line.starts_with("GET") {
            return ok(gang("job-uid", "11"));
        }
        assert_eq!(line, format!("PATCH {GANG}"));
        let metadata = &call.body["metadata"];
        assert_eq!(metadata["uid"], "gang-uid");
        assert_eq!(metadata["annotations"]["muster.dev/epoch"], "5");
        match metadata["resourceVersion"].as_str() {
            Some("11") => ok(gang("job-uid", "12")),
            seen => {
                assert_eq!((seen, nth), (Some("10"), 1));
                status(409, "Conflict")
            }
        }
    });
    let WriteOutcome::Done(Some(record)) = outcome(&standin, stamp_record()).await else {
        panic!("done, with the record");
    };
    assert_eq!(record.resource_version.as_str(), "12");
    // Made anew under its name: no plan was sent for that one.
    let anew = scripted(|line, _, _| match line.starts_with("GET") {
        true => {
            let mut other = gang("job-uid", "11");
            other["metadata"]["uid"] = json!("another");
            ok(other)
        }
        false => status(409, "Conflict"),
    });
    assert_eq!(outcome(&anew, stamp_record()).await, WriteOutcome::Gone);
}

#[tokio::test(start_paused = true)]
async fn the_stamp_of_a_later_leader_on_a_gang_is_not_written_over() {
    let standin = scripted(|line, _, _| match line.starts_with("GET") {
        true => {
            let mut later = gang("job-uid", "11");
            later["metadata"]["annotations"] = json!({"muster.dev/epoch": "9"});
            ok(later)
        }
        false => status(409, "Conflict"),
    });
    let outcome = outcome(&standin, stamp_record()).await;
    assert!(matches!(outcome, WriteOutcome::Unknown(_)), "{outcome:?}");
    let patches = standin.lines();
    let patches = patches.iter().filter(|line| line.starts_with("PATCH"));
    assert_eq!(patches.count(), 1, "nothing is sent while in doubt");
}

/// The answer says who leads before the watch does.
#[tokio::test(start_paused = true)]
async fn status_is_not_sent_again_once_a_later_leader_is_found_on_its_gang() {
    let put = WriteKind::PutStatus {
        object: "g".into(),
        resource_version: "3".into(),
        status: GangStatus::default(),
    };
    let standin = scripted(|line, nth, _| match (line.starts_with("GET"), nth) {
        (false, _) => Reply::Lost,
        (true, 1) => ok(gang("job-uid", "3")),
        (true, _) => {
            let mut later = gang("job-uid", "3");
            later["metadata"]["annotations"] = json!({"muster.dev/epoch": "9"});
            ok(later)
        }
    });
    let outcome = outcome(&standin, put).await;
    assert!(matches!(outcome, WriteOutcome::Unknown(_)), "{outcome:?}");
    let lines = standin.lines();
    let puts = lines.iter().filter(|line| line.starts_with("PUT"));
    assert_eq!(puts.count(), 1, "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn gang_object_that_a_later_leader_has_stamped_is_not_deleted() {
    let delete = || WriteKind::DeleteRecord {
        object: "g".into(),
        object_uid: "gang-uid".into(),
        resource_version: "10".into(),
    };
    let later = scripted(|line, _, call| {
        if line.starts_with("GET") {
            let mut later = gang("job-uid", "11");
            later["metadata"]["annotations"] = json!({"muster.dev/epoch": "9"});
            return ok(later);
        }
        assert_eq!(
            call.body["preconditions"],
            json!({"uid": "gang-uid", "resourceVersion": "10"})
        );
        status(409, "Conflict")
    });
    let said = outcome(&later, delete()).await;
    assert!(matches!(said, WriteOutcome::Unknown(_)), "{said:?}");
    // Somebody else has changed it: nobody leads but us.
    let changed = scripted(|line, _, call| {
        if line.starts_with("GET") {
            return ok(gang("job-uid", "11"));
        }
        match call.body["preconditions"]["resourceVersion"].as_str() {
            Some("11") => ok(json!({})),
            _ => status(409, "Conflict"),
        }
    });
    assert_eq!(outcome(&changed, delete()).await, WriteOutcome::Done(None));
}
