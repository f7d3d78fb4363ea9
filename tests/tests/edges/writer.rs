//! What becomes of writes: lost answers, conflicts, limits, fences.

use std::sync::Arc;
use std::time::Duration;

use muster_core::action::{JobChange, JobTarget, PodTarget, Write, WriteKind};
use muster_core::event::{Event, WriteId, WriteOutcome};
use muster_core::ids::{Epoch, GangKey};
use muster_core::record::GangStatus;
use muster_core::time::Millis;
use muster_core::workload::WorkloadKind;
use muster_scheduler::api::{Answer, Caller};
use muster_scheduler::binds::Binds;
use muster_scheduler::clock::Wall;
use muster_scheduler::config;
use muster_scheduler::fence::Fence;
use muster_scheduler::hold::Hold;
use muster_scheduler::inbox;
use muster_scheduler::writer::Writer;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::standin::{Call, Reply, Standin, ok, status};

const POD: &str = "/api/v1/namespaces/ns/pods/p";
const GANG: &str = "/apis/muster.dev/v1alpha1/namespaces/ns/gangs/g";

fn target() -> PodTarget {
    PodTarget {
        namespace: "ns".into(),
        name: "p".into(),
        uid: "u1".into(),
        resource_version: "10".into(),
    }
}

fn bind() -> WriteKind {
    WriteKind::Bind {
        pod: target(),
        node: "n1".into(),
        plan: "e5-1".into(),
        devices: vec!["GPU-1".into()],
    }
}

fn pod(version: &str, spec: Value) -> Reply {
    let metadata = json!({"name": "p", "namespace": "ns", "uid": "u1", "resourceVersion": version});
    ok(json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec}))
}

async fn outcome_with(standin: &Standin, what: WriteKind, led: u64) -> WriteOutcome {
    let binds = Arc::new(Binds::new(1));
    let held = binds.hold("u1".into()).unwrap();
    let outcome = outcome_of(standin, what, led, binds).await;
    drop(held);
    outcome
}

async fn outcome_of(
    standin: &Standin,
    what: WriteKind,
    led: u64,
    binds: Arc<Binds>,
) -> WriteOutcome {
    let fence = Arc::new(Fence::default());
    fence.open(Epoch(led));
    let settings = config::Config::default().writes;
    let caller = Caller::new(standin.client(), settings.attempt_timeout.0);
    let writer = Writer::new(
        caller,
        fence,
        binds,
        Wall::default(),
        &settings,
        Arc::default(),
        Arc::default(),
        Hold::default(),
    );
    let (writes, queue) = mpsc::channel(4);
    let (inbox, mut outbox) = inbox::inbox();
    let stop = CancellationToken::new();
    let write = Write {
        id: WriteId(7),
        gang: GangKey::new("ns", "job-uid"),
        plan: None,
        epoch: Epoch(5),
        what,
    };
    writes.send(write).await.unwrap();
    let event = {
        let run = writer.run(queue, inbox, stop.clone());
        let wait = async {
            let event = outbox.wait().await;
            stop.cancel();
            event
        };
        futures::join!(run, wait).1
    };
    match event {
        Some(Event::WriteDone {
            id: WriteId(7),
            outcome,
        }) => outcome,
        other => panic!("expected the end of write 7, got {other:?}"),
    }
}

async fn outcome(standin: &Standin, what: WriteKind) -> WriteOutcome {
    outcome_with(standin, what, 5).await
}

/// A stand-in that answers by the call's line and how often that line came before.
fn scripted(mut script: impl FnMut(&str, usize, &Call) -> Reply + Send + 'static) -> Standin {
    let mut seen = std::collections::BTreeMap::new();
    Standin::new(move |call| {
        let line = call.line();
        let count = seen.entry(line.clone()).or_insert(0_usize);
        *count += 1;
        script(&line, *count, call)
    })
}

#[tokio::test(start_paused = true)]
async fn t22_bind_with_a_lost_answer_is_done_when_the_pod_says_so() {
    let standin = scripted(|line, _, call| match line {
        _ if line == format!("POST {POD}/binding") => {
            assert_eq!(call.body["metadata"]["uid"], "u1");
            assert_eq!(call.body["metadata"]["resourceVersion"], "10");
            assert_eq!(call.body["target"]["name"], "n1");
            Reply::Lost
        }
        _ => pod("11", json!({"nodeName": "n1"})),
    });
    assert_eq!(outcome(&standin, bind()).await, WriteOutcome::Done(None));
    assert_eq!(
        standin.lines(),
        [format!("POST {POD}/binding"), format!("GET {POD}")]
    );
}

#[tokio::test(start_paused = true)]
async fn t22_bind_that_did_not_arrive_is_sent_again_and_one_to_another_node_is_refused() {
    let standin = scripted(|line, count, _| match (line.starts_with("POST"), count) {
        (true, 1) => Reply::Hang,
        (true, _) => Reply::Json(201, json!({"kind": "Status", "status": "Success"})),
        _ => pod("10", json!({})),
    });
    assert_eq!(outcome(&standin, bind()).await, WriteOutcome::Done(None));
    let standin = scripted(|line, _, _| match line.starts_with("POST") {
        true => status(500, "InternalError"),
        false => pod("11", json!({"nodeName": "n2"})),
    });
    assert!(matches!(
        outcome(&standin, bind()).await,
        WriteOutcome::Refused(_)
    ));
}

/// A Binding that stood in line, or whose answer was lost, while kube-scheduler gave its Bind up: the pod
/// may be on its way to another node.
#[tokio::test(start_paused = true)]
async fn t21_bind_that_nobody_waits_for_any_more_is_not_sent_nor_sent_again() {
    let nobody = || Arc::new(Binds::new(1));
    let standin = scripted(|_, _, _| status(500, "InternalError"));
    let given_up = outcome_of(&standin, bind(), 5, nobody()).await;
    assert!(matches!(given_up, WriteOutcome::Refused(_)), "{given_up:?}");
    assert_eq!(standin.lines(), Vec::<String>::new());
    let binds = nobody();
    let (ticket, _answer) = binds.hold("u1".into()).unwrap();
    let seen = Arc::clone(&binds);
    let standin = scripted(move |line, _, _| match line.starts_with("POST") {
        true => {
            seen.forget(ticket);
            Reply::Hang
        }
        false => pod("10", json!({})),
    });
    let outcome = outcome_of(&standin, bind(), 5, binds).await;
    let WriteOutcome::BindingUnknown { cited, .. } = outcome else {
        panic!("the first may still apply: {outcome:?}")
    };
    assert_eq!(cited, "10".into());
    let posts = |lines: Vec<String>| lines.iter().filter(|line| line.starts_with("POST")).count();
    assert_eq!(posts(standin.lines()), 1);
}

#[tokio::test(start_paused = true)]
async fn t24_f25_bind_conflicts_by_cause() {
    let after_conflict = |metadata: Value, spec: Value| {
        scripted(move |line, _, _| match line.starts_with("POST") {
            true => status(409, "Conflict"),
            false => ok(json!({"metadata": metadata, "spec": spec})),
        })
    };
    let own = json!({"uid": "u1", "resourceVersion": "12"});
    let bound = after_conflict(own.clone(), json!({"nodeName": "n1"}));
    assert_eq!(outcome(&bound, bind()).await, WriteOutcome::Done(None));
    for (metadata, spec) in [
        (own.clone(), json!({"nodeName": "n2"})),
        (own.clone(), json!({"schedulingGates": [{"name": "x"}]})),
        (
            json!({"uid": "u1", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
            json!({}),
        ),
        (
            json!({"uid": "u1", "annotations": {"muster.dev/epoch": "6"}}),
            json!({}),
        ),
    ] {
        let standin = after_conflict(metadata, spec);
        assert!(matches!(
            outcome(&standin, bind()).await,
            WriteOutcome::Refused(_)
        ));
    }
    let other = after_conflict(json!({"uid": "u2"}), json!({}));
    assert_eq!(outcome(&other, bind()).await, WriteOutcome::Gone);
    let touched = scripted(
        |line, count, call| match (line.starts_with("POST"), count) {
            (true, 1) => status(409, "Conflict"),
            (true, _) => {
                assert_eq!(call.body["metadata"]["resourceVersion"], "12");
                Reply::Json(201, json!({}))
            }
            _ => ok(json!({"metadata": {"uid": "u1", "resourceVersion": "12"}, "spec": {}})),
        },
    );
    assert_eq!(outcome(&touched, bind()).await, WriteOutcome::Done(None));
    let restless = after_conflict(own, json!({}));
    assert!(matches!(
        outcome(&restless, bind()).await,
        WriteOutcome::Refused(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn bind_in_doubt_tells_the_version_that_it_cited_last() {
    let cited = |outcome: WriteOutcome| match outcome {
        WriteOutcome::BindingUnknown { cited, .. } => cited.as_str().to_owned(),
        other => panic!("{other:?}"),
    };
    // The pod has moved on after the first attempt; the second one cites it as it is then.
    let silent = scripted(|line, _, _| match line.starts_with("POST") {
        true => Reply::Hang,
        false => pod("12", json!({})),
    });
    assert_eq!(cited(outcome(&silent, bind()).await), "12");
    // A refusal of the second attempt says nothing about the first, at the version of which it stands.
    let refused = |version: &'static str| {
        scripted(
            move |line, count, _| match (line.starts_with("POST"), count) {
                (true, 1) => Reply::Hang,
                (true, _) => status(422, "Invalid"),
                _ => pod(version, json!({})),
            },
        )
    };
    assert_eq!(cited(outcome(&refused("10"), bind()).await), "10");
    assert!(matches!(
        outcome(&refused("11"), bind()).await,
        WriteOutcome::Refused(_)
    ));
    // Nor does a reading that is not answered.
    let mute = scripted(|line, _, _| match line.starts_with("POST") {
        true => status(500, "InternalError"),
        false => Reply::Hang,
    });
    assert_eq!(cited(outcome(&mute, bind()).await), "10");
}

#[tokio::test(start_paused = true)]
async fn t39_throttled_and_unreachable_servers() {
    let standin = scripted(|_, count, _| match count {
        1 => Reply::Later(3),
        _ => Reply::Json(201, json!({})),
    });
    let started = tokio::time::Instant::now();
    assert_eq!(outcome(&standin, bind()).await, WriteOutcome::Done(None));
    assert!(started.elapsed().as_secs() >= 3, "Retry-After is honoured");
    let silent = Standin::new(|_| Reply::Hang);
    let started = tokio::time::Instant::now();
    assert!(matches!(
        outcome(&silent, bind()).await,
        WriteOutcome::BindingUnknown { .. }
    ));
    assert!(started.elapsed() <= config::Config::default().writes.deadline.0 * 2);
}

#[tokio::test(start_paused = true)]
async fn t34_lead_1_nothing_is_sent_for_a_leadership_that_is_over() {
    let standin = Standin::new(|call| panic!("sent {}", call.line()));
    assert!(matches!(
        outcome_with(&standin, bind(), 6).await,
        WriteOutcome::Refused(_)
    ));
    assert!(standin.lines().is_empty());
}

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

#[tokio::test(start_paused = true)]
async fn t23_f21_s8_pod_recreated_under_its_name_is_left_alone() {
    for what in [
        WriteKind::ReleasePod {
            pod: target(),
            pin: None,
            plain: false,
        },
        WriteKind::ReleasePod {
            pod: target(),
            pin: None,
            plain: true,
        },
        WriteKind::DeletePod { pod: target() },
        WriteKind::WakePod {
            pod: target(),
            plan: "e5-1".into(),
        },
        WriteKind::StampPod { pod: target() },
    ] {
        let standin = scripted(|line, _, _| match line.starts_with("GET") {
            true => ok(json!({"metadata": {"uid": "u2", "resourceVersion": "1"}, "spec": {}})),
            false => status(409, "Conflict"),
        });
        assert_eq!(outcome(&standin, what).await, WriteOutcome::Gone);
    }
}

#[tokio::test(start_paused = true)]
async fn t40_release_takes_only_our_gate_and_is_done_when_it_is_off() {
    let standin = scripted(|line, _, call| {
        if line.starts_with("GET") {
            return pod(
                "10",
                json!({"schedulingGates": [{"name": "muster.dev/gang"}, {"name": "x"}]}),
            );
        }
        assert_eq!(call.body["spec"]["schedulingGates"], json!([{"name": "x"}]));
        assert_eq!(call.body["metadata"]["uid"], "u1");
        ok(json!({}))
    });
    let release = || WriteKind::ReleasePod {
        pod: target(),
        pin: Some("n1".into()),
        plain: false,
    };
    assert_eq!(outcome(&standin, release()).await, WriteOutcome::Done(None));
    let off = Standin::new(|call| {
        assert_eq!(call.line(), format!("GET {POD}"));
        pod("10", json!({"schedulingGates": [{"name": "x"}]}))
    });
    assert_eq!(outcome(&off, release()).await, WriteOutcome::Done(None));
}

/// Two leaders stamp at once. The one that was deposed and does not know it yet would lower the epoch on
/// the pod, and then bind it as if nobody had led since.
#[tokio::test(start_paused = true)]
async fn the_stamp_of_a_later_leader_is_not_written_over() {
    let stamped = json!({
        "metadata": {"uid": "u1", "resourceVersion": "11", "annotations": {"muster.dev/epoch": "9"}},
        "spec": {},
    });
    let standin = scripted(move |line, _, _| match line.starts_with("GET") {
        true => ok(stamped.clone()),
        false => status(409, "Conflict"),
    });
    let outcome = outcome(&standin, WriteKind::StampPod { pod: target() }).await;
    assert!(matches!(outcome, WriteOutcome::Unknown(_)), "{outcome:?}");
    let patches = standin
        .lines()
        .iter()
        .filter(|line| line.starts_with("PATCH"))
        .count();
    assert_eq!(
        patches, 1,
        "nothing is sent while the leadership is doubted"
    );
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

#[tokio::test(start_paused = true)]
async fn pod_that_its_maker_has_stamped_is_changed_all_the_same() {
    let stamp = || WriteKind::StampPod { pod: target() };
    let forged = json!({
        "metadata": {"uid": "u1", "resourceVersion": "11", "annotations": {"muster.dev/epoch": "5"}},
        "spec": {},
    });
    let marks = Arc::new(std::sync::Mutex::new(Vec::new()));
    let standin = scripted({
        let marks = Arc::clone(&marks);
        move |line, _, call| {
            if line.starts_with("GET") {
                return ok(forged.clone());
            }
            let mark = call.body["metadata"]["annotations"]["muster.dev/stamp-mark"].clone();
            marks.lock().unwrap().push(mark);
            // Somebody has changed the pod since: the first attempt cites a version that is gone.
            match call.body["metadata"]["resourceVersion"].as_str() {
                Some("11") => ok(json!({})),
                _ => status(409, "Conflict"),
            }
        }
    });
    assert_eq!(outcome(&standin, stamp()).await, WriteOutcome::Done(None));
    let marks = marks.lock().unwrap();
    assert_eq!(marks.len(), 2, "what the pod says of itself is no stamp");
    assert_ne!(marks[0], marks[1]);
}

#[tokio::test(start_paused = true)]
async fn plain_pod_is_released_without_being_read_unless_it_has_changed() {
    let release = || WriteKind::ReleasePod {
        pod: PodTarget {
            resource_version: "9".into(),
            ..target()
        },
        pin: Some("n1".into()),
        plain: true,
    };
    let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let pin =
        json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]);
    let plain = Standin::new({
        let pin = pin.clone();
        move |call| {
            assert_eq!(call.line(), format!("PATCH {POD}"));
            assert_eq!(call.body["spec"]["schedulingGates"], json!([]));
            assert_eq!(call.body.pointer(terms), Some(&pin));
            assert_eq!(call.body["metadata"]["uid"], "u1");
            assert_eq!(call.body["metadata"]["resourceVersion"], "9");
            ok(json!({}))
        }
    });
    assert_eq!(outcome(&plain, release()).await, WriteOutcome::Done(None));
    // Somebody put a gate of his own on it meanwhile: that one stays.
    let changed = scripted(|line, _, call| {
        if line.starts_with("GET") {
            return pod(
                "10",
                json!({"schedulingGates": [{"name": "muster.dev/gang"}, {"name": "x"}]}),
            );
        }
        if call.body["metadata"]["resourceVersion"] == "9" {
            return status(409, "Conflict");
        }
        assert_eq!(call.body["spec"]["schedulingGates"], json!([{"name": "x"}]));
        ok(json!({}))
    });
    assert_eq!(outcome(&changed, release()).await, WriteOutcome::Done(None));
}

#[tokio::test(start_paused = true)]
async fn job_that_changed_since_is_not_patched() {
    let change = || WriteKind::ChangeJob {
        job: JobTarget {
            kind: WorkloadKind::PyTorchJob,
            namespace: "ns".into(),
            name: "g".into(),
            uid: "job-uid".into(),
            resource_version: "3".into(),
        },
        change: JobChange::Hold,
    };
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
    let change = || WriteKind::ChangeJob {
        job: JobTarget {
            kind: WorkloadKind::PyTorchJob,
            namespace: "ns".into(),
            name: "g".into(),
            uid: "job-uid".into(),
            resource_version: "3".into(),
        },
        change: JobChange::Show,
    };
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

/// What the cycle is told of a write's attempts on a server that never answers, or only later.
#[tokio::test(start_paused = true)]
async fn attempt_that_the_end_of_its_write_cuts_short_does_not_make_the_api_server_away() {
    let standin = Standin::new(|_| Reply::Hang);
    let (inbox, outbox) = inbox::inbox();
    let caller = Caller::new(standin.client(), Duration::from_secs(5)).telling(inbox);
    let cut = Instant::now() + Duration::from_millis(40);
    let answer = caller.get(POD, cut).await;
    assert_eq!(answer, Answer::Unknown("no answer in time".into()));
    assert_eq!(outbox.collect(), [], "it had 40 ms");
    let fair = Instant::now() + Duration::from_secs(20);
    assert!(matches!(caller.get(POD, fair).await, Answer::Unknown(_)));
    assert_eq!(outbox.collect(), [Event::ApiAway(Millis(5000))]);
}

#[tokio::test(start_paused = true)]
async fn broken_connection_makes_the_api_server_away_however_little_time_was_left() {
    let standin = Standin::new(|_| Reply::Lost);
    let (inbox, outbox) = inbox::inbox();
    let caller = Caller::new(standin.client(), Duration::from_secs(5)).telling(inbox);
    let soon = Instant::now() + Duration::from_millis(40);
    assert!(matches!(caller.get(POD, soon).await, Answer::Unknown(_)));
    assert_eq!(outbox.collect(), [Event::ApiAway(Millis(0))]);
}

/// A plan that a new leader has adopted has the id that its pods may be marked with already.
#[tokio::test(start_paused = true)]
async fn pod_that_was_woken_for_the_same_plan_before_is_woken_again() {
    let woken_before = "e5-1/4-7";
    let standin = scripted(move |line, before, call| {
        let mark = &call.body["metadata"]["annotations"]["muster.dev/woken-for"];
        match (line.starts_with("GET"), before) {
            (false, 1) => {
                assert_eq!(*mark, "e5-1/5-7");
                Reply::Lost
            }
            // The first patch has not arrived: the mark is the one of before.
            (true, _) => ok(json!({"metadata": {"uid": "u1", "resourceVersion": "10",
                "annotations": {"muster.dev/woken-for": woken_before}}})),
            (false, _) => {
                assert_eq!(*mark, "e5-1/5-7", "a second attempt is the same write");
                ok(json!({}))
            }
        }
    });
    let wake = WriteKind::WakePod {
        pod: target(),
        plan: "e5-1".into(),
    };
    assert_eq!(outcome(&standin, wake).await, WriteOutcome::Done(None));
    assert_eq!(
        standin.lines(),
        [
            format!("PATCH {POD}"),
            format!("GET {POD}"),
            format!("PATCH {POD}")
        ]
    );
}
