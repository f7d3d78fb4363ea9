//! The gate of a pair, against a stand-in that keeps one Lease.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use muster_scheduler::gate::{CLOSED, DESERTED, Gate, GateEnd, PairLease, Problem};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::standin::{Reply, Standin, ok, status};

const HOLDER: &str = "/spec/holderIdentity";

/// The Lease of one pair, and who writes to it.
#[derive(Clone, Default)]
struct Store {
    lease: Arc<Mutex<Option<Value>>>,
    /// Who holds Muster's own Lease.
    leader: Arc<Mutex<String>>,
    /// What is refused, as by a Role that does not name the Lease.
    refused: Arc<Mutex<Option<Method>>>,
}

impl Store {
    fn standin(&self) -> Standin {
        let store = self.clone();
        Standin::new(move |call| {
            if call.path.ends_with("/leases/muster-scheduler") {
                let leader = store.leader.lock().unwrap().clone();
                return ok(json!({"metadata": {"name": "muster-scheduler"},
                    "spec": {"holderIdentity": leader}}));
            }
            if *store.refused.lock().unwrap() == Some(call.method.clone()) {
                return status(403, "Forbidden");
            }
            let mut lease = store.lease.lock().unwrap();
            match (&call.method, lease.as_mut()) {
                (&Method::GET, Some(lease)) => ok(lease.clone()),
                (&Method::POST, None) => {
                    let mut made = call.body.clone();
                    made["metadata"]["resourceVersion"] = json!("1");
                    *lease = Some(made.clone());
                    Reply::Json(201, made)
                }
                (&Method::PUT, Some(lease)) => {
                    if call.body["metadata"]["resourceVersion"]
                        != lease["metadata"]["resourceVersion"]
                    {
                        return status(409, "Conflict");
                    }
                    *lease = call.body.clone();
                    count_up(lease);
                    ok(lease.clone())
                }
                _ => status(404, "NotFound"),
            }
        })
    }

    fn get(&self, pointer: &str) -> Value {
        let lease = self.lease.lock().unwrap();
        let lease = lease.as_ref();
        lease
            .and_then(|lease| lease.pointer(pointer))
            .cloned()
            .unwrap_or_default()
    }

    /// kube-scheduler makes the Lease, as it does where there is none.
    fn made_by(&self, name: &str) {
        *self.lease.lock().unwrap() = Some(json!({
            "metadata": {"name": "muster-kube-scheduler-a", "resourceVersion": "1"},
            "spec": {"holderIdentity": name},
        }));
    }

    /// kube-scheduler takes or renews the Lease, if it may.
    fn renew(&self, name: &str) -> bool {
        let mut lease = self.lease.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        let holder = lease
            .pointer(HOLDER)
            .and_then(Value::as_str)
            .unwrap_or_default();
        if holder != name && !holder.is_empty() {
            return false;
        }
        lease["spec"]["holderIdentity"] = json!(name);
        count_up(lease);
        true
    }
}

fn count_up(lease: &mut Value) {
    let version: u64 = lease["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    lease["metadata"]["resourceVersion"] = json!((version + 1).to_string());
}

struct Kept {
    leads: watch::Sender<bool>,
    problem: Problem,
    stop: CancellationToken,
    task: JoinHandle<GateEnd>,
}

fn lease_of_a(store: &Store) -> PairLease {
    PairLease {
        client: store.standin().client(),
        namespace: "muster-system".into(),
        replica: "a".into(),
        uid: Some("u".into()),
    }
}

fn keep(store: &Store) -> Kept {
    let (leads, led) = watch::channel(false);
    let problem = Problem::default();
    let gate = Gate {
        lease: lease_of_a(store),
        muster: "muster-scheduler".into(),
        leads: led,
        problem: problem.clone(),
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(gate.run(stop.clone()));
    Kept {
        leads,
        problem,
        stop,
        task,
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn kube_scheduler_may_lead_while_its_muster_does() {
    let store = Store::default();
    let kept = keep(&store);
    let said = kept.problem.text().unwrap();
    assert!(said.contains("not looked at"), "{said}");
    pass(2).await;
    assert_eq!(store.get(HOLDER), json!(CLOSED));
    assert_eq!(store.get("/metadata/ownerReferences/0/uid"), json!("u"));
    assert_eq!(kept.problem.text(), None);
    assert!(!store.renew("ks"));
    kept.leads.send_replace(true);
    pass(1).await;
    for _ in 0..30 {
        assert!(store.renew("ks"), "{}", store.get(HOLDER));
        pass(1).await;
    }
    assert_eq!(kept.problem.text(), None);
    kept.leads.send_replace(false);
    pass(1).await;
    assert_eq!(store.get(HOLDER), json!(CLOSED));
    assert!(!store.renew("ks"), "it was the holder, and is not any more");
    kept.leads.send_replace(true);
    pass(1).await;
    assert!(store.renew("ks"));
    kept.stop.cancel();
    assert_eq!(kept.task.await.unwrap(), GateEnd::Stopped);
    assert_eq!(store.get(HOLDER), json!(CLOSED), "closed at the end");
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_kube_scheduler_is_not_ready_and_then_of_no_use() {
    let store = Store::default();
    let kept = keep(&store);
    kept.leads.send_replace(true);
    pass(2).await;
    assert!(store.renew("ks-1"));
    pass(3).await;
    assert!(!store.renew("ks-2"), "the first may be alive");
    pass(8).await;
    assert!(
        !store.renew("ks-2"),
        "it may work on until its renew deadline is over"
    );
    pass(3).await;
    let said = kept.problem.text().unwrap();
    assert!(said.contains("muster-kube-scheduler-a"), "{said}");
    assert!(
        store.renew("ks-2"),
        "the next one need not wait until it expires"
    );
    pass(2).await;
    assert_eq!(kept.problem.text(), None);
    let since = Instant::now();
    assert_eq!(kept.task.await.unwrap(), GateEnd::Deserted);
    assert!(
        since.elapsed() >= DESERTED - Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(store.get(HOLDER), json!(CLOSED), "nobody waits for it");
}

/// An upgrade whose Role came late: a leader that could not open its gate kept the leadership for ever, and
/// was ready.
#[tokio::test(start_paused = true)]
async fn a_leader_that_may_not_open_its_gate_says_so_and_gives_the_leadership_away() {
    for refused in [Method::GET, Method::PUT] {
        let store = Store::default();
        let kept = keep(&store);
        pass(2).await;
        *store.refused.lock().unwrap() = Some(refused.clone());
        let since = Instant::now();
        kept.leads.send_replace(true);
        pass(2).await;
        let said = kept.problem.text().unwrap();
        assert!(
            said.contains("muster-kube-scheduler-a") && said.contains("Forbidden"),
            "{said}"
        );
        let end = tokio::time::timeout(DESERTED * 2, kept.task).await;
        assert_eq!(end.unwrap().unwrap(), GateEnd::Deserted, "{refused}");
        assert!(since.elapsed() >= DESERTED, "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_may_not_close_its_gate_is_not_ready() {
    let store = Store::default();
    *store.refused.lock().unwrap() = Some(Method::POST);
    let kept = keep(&store);
    pass(2 * DESERTED.as_secs()).await;
    let said = kept.problem.text().unwrap();
    assert!(said.contains("Forbidden"), "{said}");
    *store.refused.lock().unwrap() = None;
    pass(2).await;
    assert_eq!(kept.problem.text(), None);
    kept.stop.cancel();
    assert_eq!(kept.task.await.unwrap(), GateEnd::Stopped);
}

/// It was left alone for ten seconds, in which two kube-schedulers worked.
#[tokio::test(start_paused = true)]
async fn a_kube_scheduler_that_was_there_before_its_muster_is_stopped_at_once() {
    let store = Store::default();
    *store.leader.lock().unwrap() = "b@1".into();
    store.made_by("ks");
    let kept = keep(&store);
    pass(1).await;
    assert_eq!(store.get(HOLDER), json!(CLOSED));
    assert_eq!(
        store.get("/metadata/ownerReferences/0/uid"),
        json!("u"),
        "it goes with its Pod, whoever has made it"
    );
    kept.stop.cancel();
    kept.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_is_closed_before_kube_scheduler_starts_lets_nobody_in() {
    let store = Store::default();
    lease_of_a(&store).close().await.unwrap();
    assert_eq!(store.get(HOLDER), json!(CLOSED));
    assert_eq!(store.get("/metadata/ownerReferences/0/name"), json!("a"));
    assert!(!store.renew("ks"));
    // Of a Pod that is started again after its node was.
    store.made_by("ks");
    lease_of_a(&store).close().await.unwrap();
    assert_eq!(store.get(HOLDER), json!(CLOSED));
    store.made_by("ks");
    *store.refused.lock().unwrap() = Some(Method::PUT);
    let error = lease_of_a(&store).close().await.unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("Forbidden"), "{said}");
}

/// A process that is started again in its Pod may be about to lead again: the kube-scheduler that worked is
/// left alone for a while, and no longer.
#[tokio::test(start_paused = true)]
async fn a_kube_scheduler_that_works_is_left_alone_right_after_a_restart() {
    let store = Store::default();
    let before = keep(&store);
    before.leads.send_replace(true);
    pass(2).await;
    assert!(store.renew("ks"));
    before.task.abort();
    *store.leader.lock().unwrap() = "a@1".into();
    let kept = keep(&store);
    for _ in 0..9 {
        pass(1).await;
        assert!(store.renew("ks"), "{}", store.get(HOLDER));
    }
    pass(3).await;
    assert!(!store.renew("ks"), "its Muster follows");
    kept.stop.cancel();
    kept.task.await.unwrap();
}
