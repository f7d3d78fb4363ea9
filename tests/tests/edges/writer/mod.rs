//! What becomes of writes: lost answers, conflicts, limits, fences.

mod gangs;
mod jobs;
mod pods;

use std::sync::Arc;
use std::time::Duration;

use muster_core::action::{PodTarget, Write, WriteKind};
use muster_core::event::{Event, WriteId, WriteOutcome};
use muster_core::ids::{Epoch, GangKey};
use muster_core::time::Millis;
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
