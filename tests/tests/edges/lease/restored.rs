//! What a replica notices of a store that was restored or stayed away.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_core::event::Event;
use muster_scheduler::config;
use muster_scheduler::frozen::{RESTORED_ANNOTATION, switch};
use muster_scheduler::lease::{EPOCH_ANNOTATION, ElectionEnd};
use serde_json::{Value, json};

use super::{Replica, Store, gained, replica, told};

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
