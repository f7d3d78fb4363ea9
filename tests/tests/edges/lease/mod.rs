//! Leader election against a stand-in that keeps one Lease.

mod restored;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use muster_core::event::Event;
use muster_core::ids::Epoch;
use muster_scheduler::clock::Wall;
use muster_scheduler::config;
use muster_scheduler::fence::Fence;
use muster_scheduler::frozen::{FROZEN_ANNOTATION, RESTORED_ANNOTATION, switch};
use muster_scheduler::inbox::{self, Outbox};
use muster_scheduler::lease::{EPOCH_ANNOTATION, ElectionEnd, Elector, Memory};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::standin::{Reply, Standin, ok, status};

/// One Lease with optimistic locking; `down` makes every call hang, `slow` is how long a GET takes, `refuses` is of every login.
/// Versions grow on when the Lease is made again, as those of an API server do.
#[derive(Clone, Default)]
struct Store {
    lease: Arc<Mutex<Option<Value>>>,
    version: Arc<Mutex<u64>>,
    down: Arc<Mutex<bool>>,
    slow: Arc<Mutex<Option<Duration>>>,
    refuses: Arc<Mutex<bool>>,
    /// Gangs that there are.
    gangs: Arc<Mutex<Gangs>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gangs {
    #[default]
    None,
    One,
    Unsaid,
}

impl Store {
    fn standin(&self) -> Standin {
        let store = self.clone();
        Standin::new(move |call| {
            if *store.down.lock().unwrap() {
                return Reply::Hang;
            }
            if *store.refuses.lock().unwrap() {
                return status(401, "Unauthorized");
            }
            if call.line() == "GET /apis/muster.dev/v1alpha1/gangs" {
                assert!(call.query.contains("limit=1"), "{}", call.query);
                let gang = json!({"metadata": {"name": "one"}});
                return match *store.gangs.lock().unwrap() {
                    Gangs::None => ok(json!({"metadata": {}, "items": []})),
                    Gangs::One => ok(json!({"metadata": {}, "items": [gang]})),
                    Gangs::Unsaid => status(503, "ServiceUnavailable"),
                };
            }
            let mut lease = store.lease.lock().unwrap();
            let mut version = store.version.lock().unwrap();
            match (&call.method, lease.as_mut()) {
                (&Method::GET, Some(lease)) => match store.slow.lock().unwrap().take() {
                    Some(slow) => Reply::Slow(slow, lease.clone()),
                    None => ok(lease.clone()),
                },
                (&Method::POST, None) => {
                    let mut made = call.body.clone();
                    *version += 1;
                    made["metadata"]["resourceVersion"] = json!(version.to_string());
                    *lease = Some(made.clone());
                    Reply::Json(201, made)
                }
                (&Method::POST, Some(_)) => status(409, "AlreadyExists"),
                (&Method::PUT, Some(lease)) => {
                    let held = lease["metadata"]["resourceVersion"]
                        .as_str()
                        .unwrap()
                        .to_owned();
                    if call.body["metadata"]["resourceVersion"] != held.as_str() {
                        return status(409, "Conflict");
                    }
                    *lease = call.body.clone();
                    *version += 1;
                    lease["metadata"]["resourceVersion"] = json!(version.to_string());
                    ok(lease.clone())
                }
                _ => status(404, "NotFound"),
            }
        })
    }

    fn get(&self, pointer: &str) -> Value {
        let lease = self.lease.lock().unwrap();
        lease
            .as_ref()
            .and_then(|lease| lease.pointer(pointer))
            .cloned()
            .unwrap_or_default()
    }
}

struct Replica {
    fence: Arc<Fence>,
    outbox: Outbox,
    stop: CancellationToken,
    task: JoinHandle<ElectionEnd>,
    memory: Arc<Memory>,
    rebuilt: watch::Sender<bool>,
    _synced: watch::Sender<bool>,
}

fn replica(store: &Store, identity: &str, seen: u64) -> Replica {
    let (inbox, outbox) = inbox::inbox();
    let fence = Arc::new(Fence::default());
    fence.see_ours(Epoch(seen));
    let (synced, synced_seen) = watch::channel(true);
    let (rebuilt_told, rebuilt) = watch::channel(false);
    let stop = CancellationToken::new();
    let (client, settings) = (store.standin().client(), config::Lease::default());
    let memory = Arc::new(Memory::new(client.clone(), settings.clone()));
    let elector = Elector {
        client,
        settings,
        identity: identity.into(),
        inbox,
        fence: Arc::clone(&fence),
        synced: synced_seen,
        wall: Wall::following(jiff::Timestamp::UNIX_EPOCH),
        rebuilt,
        memory: Arc::clone(&memory),
    };
    let task = tokio::spawn(elector.run(stop.clone()));
    Replica {
        fence,
        outbox,
        stop,
        task,
        memory,
        rebuilt: rebuilt_told,
        _synced: synced,
    }
}

#[tokio::test(start_paused = true)]
async fn epoch_is_above_all_that_was_seen_and_never_goes_back() {
    let store = Store::default();
    let mut first = replica(&store, "a", 41);
    // Nobody knows where the Lease has gone by which those Gangs were written.
    let why = told(&mut first).await.unwrap();
    assert!(why.contains("went back"), "{why}");
    first.gains(42, false).await;
    assert_eq!(first.fence.led(), Epoch(42));
    first.stop.cancel();
    assert_eq!(first.task.await.unwrap(), ElectionEnd::Stopped);
    assert_eq!(first.fence.led(), Epoch(0));
    assert_eq!(store.get("/spec/holderIdentity"), json!(""));
    let said = store.annotation(RESTORED_ANNOTATION);
    assert_eq!(said, "the lease knew of epoch 0, and a Gang of 41");
    // The next one has seen nothing of it, and need not wait: the Lease was given back.
    let started = tokio::time::Instant::now();
    let mut second = replica(&store, "b", 0);
    assert!(told(&mut second).await.is_some());
    second.gains(43, false).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(store.get("/spec/leaseTransitions"), json!(2));
    let pointer = format!(
        "/metadata/annotations/{}",
        EPOCH_ANNOTATION.replace('/', "~1")
    );
    assert_eq!(store.get(&pointer), json!("43"));
    second.stop.cancel();
    second.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leader_that_cannot_renew_stops_before_another_may_take_over() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    first.gains(1, true).await;
    *store.down.lock().unwrap() = true;
    let started = tokio::time::Instant::now();
    assert_eq!(first.outbox.wait().await, Some(Event::LeadershipLost));
    assert!(started.elapsed() <= config::Lease::default().duration.0);
    assert!(!first.fence.pass(Epoch(1)).await);
    assert_eq!(first.task.await.unwrap(), ElectionEnd::Lost);
}

#[tokio::test(start_paused = true)]
async fn lease_of_a_dead_leader_is_taken_after_its_duration_and_not_before() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    first.gains(1, true).await;
    first.task.abort();
    let started = tokio::time::Instant::now();
    let mut second = replica(&store, "b", 0);
    second.gains(2, false).await;
    assert!(started.elapsed() >= config::Lease::default().duration.0);
    second.stop.cancel();
    second.task.await.unwrap();
}

/// The Lease as it was renewed last came 9 s after it was asked for, and counted as 9 s old.
#[tokio::test(start_paused = true)]
async fn lease_whose_first_answer_takes_long_is_as_old_as_the_answer() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    first.gains(1, true).await;
    first.task.abort();
    let slow = Duration::from_secs(9);
    *store.slow.lock().unwrap() = Some(slow);
    let started = tokio::time::Instant::now();
    let mut second = replica(&store, "b", 0);
    second.gains(2, false).await;
    let took = started.elapsed();
    assert!(
        took >= slow + config::Lease::default().duration.0,
        "{took:?}"
    );
    second.stop.cancel();
    second.task.await.unwrap();
}

/// 3,200 pods that waited for Muster to be installed were stamped one by one, against nobody.
#[tokio::test(start_paused = true)]
async fn only_a_leader_that_nobody_can_have_led_before_is_the_first() {
    for (gangs, is_first) in [
        (Gangs::None, true),
        (Gangs::One, false),
        (Gangs::Unsaid, false),
    ] {
        let store = Store::default();
        *store.gangs.lock().unwrap() = gangs;
        let mut first = replica(&store, "a", 0);
        let gained = first.outbox.wait().await;
        assert_eq!(
            gained,
            Some(Event::LeadershipGained {
                epoch: Epoch(1),
                first: is_first
            }),
            "{gangs:?}"
        );
        first.stop.cancel();
        first.task.await.unwrap();
        // Whoever led before gave the Lease back, and may have left a Binding on its way.
        *store.gangs.lock().unwrap() = Gangs::None;
        let mut second = replica(&store, "b", 0);
        let gained = second.outbox.wait().await;
        assert!(
            matches!(gained, Some(Event::LeadershipGained { first: false, .. })),
            "{gained:?}"
        );
        second.stop.cancel();
        second.task.await.unwrap();
    }
}

/// The leader has written nothing yet, so no object tells of its epoch; for as long as it has not tried to
/// renew there are two leaders.
#[tokio::test(start_paused = true)]
async fn lease_deleted_under_a_leader_gives_no_epoch_twice() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    first.gains(1, true).await;
    // A standby that has seen it lead.
    let mut second = replica(&store, "b", 0);
    tokio::time::sleep(Duration::from_secs(3)).await;
    *store.lease.lock().unwrap() = None;
    let Some(Event::LeadershipGained {
        epoch,
        first: false,
    }) = second.outbox.wait().await
    else {
        panic!("b does not lead");
    };
    assert!(epoch > Epoch(1), "{epoch}");
    assert_eq!(first.outbox.wait().await, Some(Event::LeadershipLost));
    second.stop.cancel();
    second.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_started_again_takes_its_own_lease_at_once_and_nobody_elses() {
    let store = Store::default();
    let mut first = replica(&store, "pod-a@1", 0);
    first.gains(1, true).await;
    first.task.abort();
    let started = tokio::time::Instant::now();
    let mut again = replica(&store, "pod-a@2", 0);
    assert!(matches!(
        again.outbox.wait().await,
        Some(Event::LeadershipGained { .. })
    ));
    assert!(started.elapsed() < Duration::from_secs(1));
    again.task.abort();
    let started = tokio::time::Instant::now();
    let mut other = replica(&store, "pod@1", 0);
    assert!(matches!(
        other.outbox.wait().await,
        Some(Event::LeadershipGained { .. })
    ));
    assert!(started.elapsed() >= config::Lease::default().duration.0);
    other.stop.cancel();
    other.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leader_whose_lease_is_taken_stops() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    first.gains(1, true).await;
    {
        let mut lease = store.lease.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = json!("b");
        lease["metadata"]["annotations"][EPOCH_ANNOTATION] = json!("98");
        lease["metadata"]["resourceVersion"] = json!("99");
    }
    assert_eq!(first.outbox.wait().await, Some(Event::LeadershipLost));
    assert_eq!(first.task.await.unwrap(), ElectionEnd::Lost);
}

#[tokio::test(start_paused = true)]
async fn epoch_on_a_pod_is_no_ground_for_the_next_one_and_hides_no_later_leader() {
    for forged in [7, (1 << 40) - 2, u64::MAX] {
        let store = Store::default();
        let mut first = replica(&store, "a", 0);
        first.fence.see(Epoch(forged));
        let gained = first.outbox.wait().await;
        assert_eq!(
            gained,
            Some(Event::LeadershipGained {
                epoch: Epoch(1),
                first: false
            }),
            "{forged}"
        );
        first.fence.see(Epoch(forged));
        assert!(first.fence.pass(Epoch(1)).await, "{forged} is harmless");
        *store.lease.lock().unwrap() = None;
        let mut second = replica(&store, "b", 0);
        second.fence.see(Epoch(forged));
        let Some(Event::LeadershipGained { epoch, .. }) = second.outbox.wait().await else {
            panic!("b does not lead");
        };
        assert!(epoch > Epoch(1) && epoch < Epoch(7), "{forged}: {epoch}");
        // A stamp of the second is the first thing that the first gets to know of it.
        first.fence.see(epoch);
        assert!(!first.fence.pass(Epoch(1)).await, "{forged} hides {epoch}");
        assert_eq!(first.outbox.wait().await, Some(Event::LeadershipLost));
        second.stop.cancel();
        second.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn epoch_written_by_somebody_who_does_not_lead_is_harmless() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    first.gains(1, true).await;
    first.fence.see(Epoch(1000));
    assert!(
        first.fence.pass(Epoch(1)).await,
        "the lease was renewed, nobody else has led"
    );
    assert_eq!(first.fence.led(), Epoch(1));
    first.stop.cancel();
    assert_eq!(first.task.await.unwrap(), ElectionEnd::Stopped);
}

impl Store {
    fn annotation(&self, name: &str) -> Value {
        self.get(&format!(
            "/metadata/annotations/{}",
            name.replace('/', "~1")
        ))
    }

    /// As a restore of the API server's store does it: the Lease is what it was, at the version that it had.
    fn restore(&self, backup: (Value, u64)) {
        *self.lease.lock().unwrap() = Some(backup.0);
        *self.version.lock().unwrap() = backup.1;
    }

    fn backup(&self) -> (Value, u64) {
        let lease = self.lease.lock().unwrap().clone();
        (lease.unwrap(), *self.version.lock().unwrap())
    }
}

impl Replica {
    /// Waits for what it tells next: that it leads with this epoch, as the first ever or not.
    async fn gains(&mut self, epoch: u64, first: bool) {
        assert_eq!(
            self.outbox.wait().await,
            Some(Event::LeadershipGained {
                epoch: Epoch(epoch),
                first
            })
        );
    }
}

async fn gained(replica: &mut Replica) -> Epoch {
    match replica.outbox.wait().await {
        Some(Event::LeadershipGained { epoch, .. }) => epoch,
        other => panic!("{other:?}"),
    }
}

async fn told(replica: &mut Replica) -> Option<String> {
    match replica.outbox.wait().await {
        Some(Event::Frozen(why)) => why.map(|why| why.to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn operator_freezes_the_leader_and_every_leader_after_it_by_the_lease() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    gained(&mut first).await;
    let started = tokio::time::Instant::now();
    let (client, settings) = (store.standin().client(), config::Lease::default());
    let said = switch(client.clone(), &settings, Some("we look at rack 7")).await;
    assert_eq!(said.unwrap(), "a is frozen");
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
    let why = "frozen by an operator: we look at rack 7";
    assert_eq!(told(&mut first).await.as_deref(), Some(why));
    let again = switch(client.clone(), &settings, Some("we look at rack 7")).await;
    assert!(again.unwrap().contains("already"));
    first.task.abort();
    // Nobody leads: it counts for whoever does next, from its first moment on.
    let mut second = replica(&store, "b", 0);
    assert_eq!(told(&mut second).await.as_deref(), Some(why));
    gained(&mut second).await;
    second.rebuilt.send_replace(true);
    let thaw = switch(client, &settings, None).await;
    assert_eq!(thaw.unwrap(), "b goes on");
    assert_eq!(told(&mut second).await, None);
    assert_eq!(store.annotation(FROZEN_ANNOTATION), Value::Null);
    assert_ne!(store.annotation(EPOCH_ANNOTATION), Value::Null);
    second.stop.cancel();
    second.task.await.unwrap();
}
