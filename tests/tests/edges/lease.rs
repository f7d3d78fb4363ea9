//! Leader election against a stand-in that keeps one Lease.

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
    assert_eq!(
        first.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(42),
            first: false
        })
    );
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
    assert_eq!(
        second.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(43),
            first: false
        })
    );
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
    assert_eq!(
        first.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(1),
            first: true
        })
    );
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
    assert_eq!(
        first.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(1),
            first: true
        })
    );
    first.task.abort();
    let started = tokio::time::Instant::now();
    let mut second = replica(&store, "b", 0);
    assert_eq!(
        second.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(2),
            first: false
        })
    );
    assert!(started.elapsed() >= config::Lease::default().duration.0);
    second.stop.cancel();
    second.task.await.unwrap();
}

/// The Lease as it was renewed last came 9 s after it was asked for, and counted as 9 s old.
#[tokio::test(start_paused = true)]
async fn lease_whose_first_answer_takes_long_is_as_old_as_the_answer() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    let gained = first.outbox.wait().await;
    assert_eq!(
        gained,
        Some(Event::LeadershipGained {
            epoch: Epoch(1),
            first: true
        })
    );
    first.task.abort();
    let slow = Duration::from_secs(9);
    *store.slow.lock().unwrap() = Some(slow);
    let started = tokio::time::Instant::now();
    let mut second = replica(&store, "b", 0);
    let gained = second.outbox.wait().await;
    assert_eq!(
        gained,
        Some(Event::LeadershipGained {
            epoch: Epoch(2),
            first: false
        })
    );
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
    let gained = first.outbox.wait().await;
    assert_eq!(
        gained,
        Some(Event::LeadershipGained {
            epoch: Epoch(1),
            first: true
        })
    );
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
    assert_eq!(
        first.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(1),
            first: true
        })
    );
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
    assert_eq!(
        first.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(1),
            first: true
        })
    );
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
    assert_eq!(
        first.outbox.wait().await,
        Some(Event::LeadershipGained {
            epoch: Epoch(1),
            first: true
        })
    );
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

/// Its watches would wait for versions that come again only later, and see nothing meanwhile.
#[tokio::test(start_paused = true)]
async fn leader_of_a_restored_cluster_ends_and_the_next_one_begins_frozen_until_it_knows_all() {
    let store = Store::default();
    let mut first = replica(&store, "a@1", 0);
    let led = gained(&mut first).await;
    let backup = store.backup();
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.restore(backup);
    assert_eq!(first.task.await.unwrap(), ElectionEnd::WentBack);
    assert!(!first.fence.pass(led).await);
    assert_ne!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    let mut second = replica(&store, "a@2", 0);
    let why = told(&mut second).await.unwrap();
    assert!(why.contains("went back"), "{why}");
    assert!(gained(&mut second).await > led, "no epoch is used twice");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_ne!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    // An operator who lifts a freeze of his own is told that this one is not his.
    let (client, settings) = (store.standin().client(), config::Lease::default());
    for _ in 0..2 {
        let said = switch(client.clone(), &settings, None).await.unwrap();
        let lifts = "annotate lease muster-scheduler muster.dev/restored-";
        assert!(
            said.contains("is still frozen") && said.ends_with(lifts),
            "{said}"
        );
    }
    second.rebuilt.send_replace(true);
    assert_eq!(told(&mut second).await, None);
    assert_eq!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    second.stop.cancel();
    second.task.await.unwrap();
}

/// A leader whose store is away for long has lost its Lease before it can see that; who waits for the Lease sees it.
#[tokio::test(start_paused = true)]
async fn replica_that_waits_for_the_lease_of_a_restored_cluster_ends_too() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    gained(&mut first).await;
    let backup = store.backup();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let second = replica(&store, "b", 0);
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.task.abort();
    *store.down.lock().unwrap() = true;
    tokio::time::sleep(Duration::from_secs(100)).await;
    store.restore(backup);
    *store.down.lock().unwrap() = false;
    assert_eq!(second.task.await.unwrap(), ElectionEnd::WentBack);
    assert_ne!(store.annotation(RESTORED_ANNOTATION), Value::Null);
}

/// Loses the leadership while nothing is answered.
async fn cut_off(store: &Store, replica: &mut Replica) {
    *store.down.lock().unwrap() = true;
    assert_eq!(replica.outbox.wait().await, Some(Event::LeadershipLost));
}

/// Looks at the Lease once more while the API server stays away for so long, and what it says then is put in place;
/// whether the Lease went back.
async fn looks_back(store: &Store, replica: &Replica, then: impl FnOnce(&Store)) -> bool {
    let (memory, alive) = (Arc::clone(&replica.memory), Arc::new(Mutex::new(0)));
    let calls = Arc::clone(&alive);
    let look = tokio::spawn(async move { memory.look_back(|| *calls.lock().unwrap() += 1).await });
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let called = std::mem::take(&mut *alive.lock().unwrap());
        assert!(called > 0, "it is alive all the time");
    }
    assert!(!look.is_finished());
    then(store);
    *store.down.lock().unwrap() = false;
    look.await.unwrap()
}

/// A test of a restored cluster on two busy cores had this: the API server was away for longer than the Lease lasts, the leader
/// ended, and what was started in its place knew of nothing.
#[tokio::test(start_paused = true)]
async fn leader_that_loses_the_lease_while_the_store_is_restored_says_so_once_it_is_answered() {
    let store = Store::default();
    let mut first = replica(&store, "a@1", 0);
    let led = gained(&mut first).await;
    let backup = store.backup();
    tokio::time::sleep(Duration::from_secs(60)).await;
    cut_off(&store, &mut first).await;
    assert!(looks_back(&store, &first, |store| store.restore(backup)).await);
    assert_ne!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    assert_eq!(first.task.await.unwrap(), ElectionEnd::Lost);
    let mut second = replica(&store, "a@2", 0);
    assert!(told(&mut second).await.is_some());
    assert!(gained(&mut second).await > led, "no epoch is used twice");
    second.stop.cancel();
    second.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leader_whose_lease_was_not_in_the_backup_says_so_by_the_version_of_the_next_one() {
    for away in [false, true] {
        let store = Store::default();
        let mut first = replica(&store, "a", 0);
        gained(&mut first).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let emptied = |store: &Store| {
            *store.lease.lock().unwrap() = None;
            *store.version.lock().unwrap() = 1;
        };
        if away {
            cut_off(&store, &mut first).await;
            assert!(looks_back(&store, &first, emptied).await);
        } else {
            emptied(&store);
            assert_eq!(first.outbox.wait().await, Some(Event::LeadershipLost));
            assert!(first.memory.look_back(|| ()).await);
        }
        assert_ne!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    }
}

#[tokio::test(start_paused = true)]
async fn leader_that_was_cut_off_for_long_finds_another_one_and_no_restored_cluster() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    gained(&mut first).await;
    cut_off(&store, &mut first).await;
    let taken = |store: &Store| {
        let mut lease = store.lease.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = json!("b");
        lease["metadata"]["annotations"][EPOCH_ANNOTATION] = json!("98");
        lease["metadata"]["resourceVersion"] = json!("99");
        *store.version.lock().unwrap() = 99;
    };
    assert!(!looks_back(&store, &first, taken).await);
    assert_eq!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    // What was read in time is not asked for again.
    let mut second = replica(&store, "b", 0);
    gained(&mut second).await;
    second.stop.cancel();
    assert_eq!(second.task.await.unwrap(), ElectionEnd::Stopped);
    *store.down.lock().unwrap() = true;
    assert!(!second.memory.look_back(|| ()).await);
}

/// Refused logins, for ever, and alive.
#[tokio::test(start_paused = true)]
async fn f44_leader_that_was_cut_off_and_may_not_log_in_any_more_ends() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    gained(&mut first).await;
    cut_off(&store, &mut first).await;
    *store.down.lock().unwrap() = false;
    *store.refuses.lock().unwrap() = true;
    let since = tokio::time::Instant::now();
    assert!(!first.memory.look_back(|| ()).await);
    let took = since.elapsed();
    assert!(
        took > Duration::from_secs(50) && took < Duration::from_secs(90),
        "{took:?}"
    );
}

/// An epoch comes of the Lease's version, and nobody writes a Lease while it expires: the leaders before and after the restore had
/// the same one, and by then the version was no older either.
#[tokio::test(start_paused = true)]
async fn leader_of_the_same_epoch_that_is_somebody_else_tells_of_a_restored_cluster() {
    let store = Store::default();
    let mut lost = replica(&store, "a", 0);
    gained(&mut lost).await;
    lost.task.abort();
    store.lease.lock().unwrap().as_mut().unwrap()["metadata"]["uid"] = json!("1");
    let (lease, _) = store.backup();
    let mut first = replica(&store, "b", 0);
    let led = gained(&mut first).await;
    let watches = replica(&store, "c", 0);
    tokio::time::sleep(Duration::from_secs(10)).await;
    first.task.abort();
    store.restore((lease, 1000));
    let mut again = replica(&store, "a", 0);
    assert_eq!(gained(&mut again).await, led);
    assert_eq!(watches.task.await.unwrap(), ElectionEnd::WentBack);
    assert!(told(&mut again).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn lease_that_somebody_deletes_is_no_restored_cluster() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    gained(&mut first).await;
    let waits = replica(&store, "b", 0);
    tokio::time::sleep(Duration::from_secs(10)).await;
    *store.lease.lock().unwrap() = None;
    assert_eq!(first.outbox.wait().await, Some(Event::LeadershipLost));
    assert!(!first.memory.look_back(|| ()).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waits.task.is_finished());
    assert_eq!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    waits.stop.cancel();
    waits.task.await.unwrap();
}

/// As `etcdutl snapshot restore --bump-revision` does it: what is there keeps its version, and the next write has one far above.
const BUMP: u64 = 1_000_000_000;

impl Store {
    fn restore_with_a_leap(&self, (lease, version): (Value, u64)) {
        self.restore((lease, version + BUMP));
    }

    /// Somebody writes something else into it.
    fn touch(&self) {
        let mut version = self.version.lock().unwrap();
        *version += 1;
        let mut lease = self.lease.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        lease["metadata"]["annotations"]["touched"] = json!("by hand");
        lease["metadata"]["resourceVersion"] = json!(version.to_string());
    }
}

/// An operator who freezes it right after the restore was the first to write the Lease: its version was above all that the leader had
/// seen, and it led on.
#[tokio::test(start_paused = true)]
async fn lease_that_was_touched_after_a_restore_with_a_leap_of_versions_hides_nothing() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    let led = gained(&mut first).await;
    let waits = replica(&store, "b", 0);
    let backup = store.backup();
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.restore_with_a_leap(backup);
    store.touch();
    assert_eq!(first.task.await.unwrap(), ElectionEnd::WentBack);
    assert_eq!(waits.task.await.unwrap(), ElectionEnd::WentBack);
    assert!(!first.fence.pass(led).await);
    let mut second = replica(&store, "a", 0);
    assert!(told(&mut second).await.is_some());
    assert!(gained(&mut second).await > led, "no epoch is used twice");
    second.stop.cancel();
    second.task.await.unwrap();
}

/// The backup was as new as the Lease: its renewal was a success, at a version that no number of writes leads to.
#[tokio::test(start_paused = true)]
async fn leader_whose_own_renewal_leaps_says_that_the_cluster_was_restored() {
    let store = Store::default();
    let mut first = replica(&store, "a", 0);
    gained(&mut first).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.restore_with_a_leap(store.backup());
    assert_eq!(first.task.await.unwrap(), ElectionEnd::WentBack);
    assert_ne!(store.annotation(RESTORED_ANNOTATION), Value::Null);
}

/// Everybody was dead when the store was restored: whoever takes the Lease first sees what it was, and what it becomes by that.
#[tokio::test(start_paused = true)]
async fn replica_that_remembers_nothing_notices_a_restore_with_a_leap_of_versions() {
    let store = Store::default();
    let mut dead = replica(&store, "a", 0);
    gained(&mut dead).await;
    dead.task.abort();
    store.restore_with_a_leap(store.backup());
    let first = replica(&store, "b", 0);
    assert_eq!(first.task.await.unwrap(), ElectionEnd::WentBack);
    assert_ne!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    let mut second = replica(&store, "b", 0);
    assert!(told(&mut second).await.is_some());
    gained(&mut second).await;
    second.rebuilt.send_replace(true);
    assert_eq!(told(&mut second).await, None);
    second.stop.cancel();
    second.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn versions_that_are_times_leap_always_and_tell_of_no_restored_cluster() {
    let store = Store::default();
    *store.version.lock().unwrap() = 1_764_000_000_000_000;
    let mut first = replica(&store, "a", 0);
    gained(&mut first).await;
    for _ in 0..5 {
        *store.version.lock().unwrap() += BUMP;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert!(!first.task.is_finished());
    assert_eq!(store.annotation(RESTORED_ANNOTATION), Value::Null);
    first.stop.cancel();
    first.task.await.unwrap();
}
