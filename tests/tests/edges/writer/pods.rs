//! Writes of pods that are no Bindings.

use std::sync::Arc;

use muster_core::action::{PodTarget, WriteKind};
use muster_core::event::WriteOutcome;
use serde_json::json;

use super::{POD, outcome, pod, scripted, target};
use crate::standin::{Reply, Standin, ok, status};

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
