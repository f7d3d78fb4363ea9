//! The API server is away in the middle of things: what waits for it does not run out of time.

#[allow(dead_code)]
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::world::{World, gpus};
use muster_core::action::WriteKind;
use muster_core::event::{Event, WriteOutcome};
use muster_core::ids::GangKey;
use muster_core::time::Millis;
use muster_core::workload::Hold;

/// A gang of two that is bound in half, and a switch that makes every write fail.
fn half_bound() -> (World, GangKey, Rc<Cell<bool>>) {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    let (away, breaks) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(true)));
    let (is_away, is_broken) = (Rc::clone(&away), Rc::clone(&breaks));
    world.fail = Some(Box::new(move |write| match &write.what {
        _ if is_away.get() => Some(WriteOutcome::Unknown(Arc::from("no answer"))),
        WriteKind::Bind { pod, .. } if pod.name.ends_with("-1") && is_broken.get() => {
            Some(WriteOutcome::Unknown(Arc::from("no answer")))
        }
        _ => None,
    }));
    for _ in 0..40 {
        world.step();
    }
    world.scheduler = false;
    world.settle();
    breaks.set(false);
    assert_eq!(world.bound(&key), 1);
    (world, key, away)
}

fn tell(world: &mut World, event: Event) {
    world.engine.handle(event, world.now);
    world.settle();
}

#[test]
fn repair_deadline_stands_still_while_the_api_server_is_away() {
    let (mut world, key, away) = half_bound();
    world.pass(Millis::from_secs(10));
    away.set(true);
    // Five seconds had passed before it was noticed.
    world.pass(Millis::from_secs(5));
    tell(&mut world, Event::ApiAway(Millis::from_secs(5)));
    world.pass(Millis::from_secs(300));
    assert_eq!(world.bound(&key), 1);
    away.set(false);
    tell(&mut world, Event::ApiBack);
    world.pass(Millis::from_secs(19));
    assert_eq!(world.bound(&key), 1, "ten seconds of thirty had passed");
    world.pass(Millis::from_secs(2));
    assert_eq!(world.bound(&key), 0, "thirty seconds of a healthy API");
}

#[test]
fn gang_bound_in_half_before_an_outage_ends_whole_after_it() {
    let (mut world, key, away) = half_bound();
    away.set(true);
    tell(&mut world, Event::ApiAway(Millis(0)));
    world.pass(Millis::from_secs(45));
    away.set(false);
    tell(&mut world, Event::ApiBack);
    world.pass(Millis::from_secs(10));
    world.scheduler = true;
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    assert!(
        !world
            .announced
            .iter()
            .any(|said| said.starts_with("ReleasedWhole")),
        "{:?}",
        world.announced
    );
}

#[test]
fn several_outages_add_up() {
    let (mut world, key, _) = half_bound();
    for _ in 0..10 {
        tell(&mut world, Event::ApiAway(Millis(0)));
        world.pass(Millis::from_secs(20));
        tell(&mut world, Event::ApiBack);
        world.pass(Millis(2500));
    }
    assert_eq!(world.bound(&key), 1);
    world.pass(Millis::from_secs(6));
    assert_eq!(world.bound(&key), 0);
}

#[test]
fn leadership_that_begins_after_an_outage_begins_its_own_repair_deadline() {
    let (mut world, key, away) = half_bound();
    world.pass(Millis::from_secs(25));
    away.set(true);
    tell(&mut world, Event::ApiAway(Millis(0)));
    world.engine.handle(Event::LeadershipLost, world.now);
    world.pass(Millis::from_secs(60));
    away.set(false);
    world.engine.handle(
        Event::LeadershipGained {
            epoch: muster_core::ids::Epoch(2),
            first: false,
        },
        world.now,
    );
    world.pass(Millis::from_secs(29));
    assert_eq!(world.bound(&key), 1);
    world.pass(Millis::from_secs(3));
    assert_eq!(world.bound(&key), 0, "the new leader counts on");
}

#[test]
fn gang_that_gathers_is_not_given_up_for_the_silence_of_the_api_server() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    world.pass(Millis::from_secs(50));
    tell(&mut world, Event::ApiAway(Millis(0)));
    world.pass(Millis::from_secs(100));
    tell(&mut world, Event::ApiBack);
    world.pass(Millis::from_secs(9));
    assert!(world.phase(&key).starts_with("Starting"));
    world.pass(Millis::from_secs(2));
    assert!(!world.phase(&key).starts_with("Starting"));
}

#[test]
fn held_bind_is_answered_in_time_although_the_api_server_is_away() {
    let mut world = World::new(2, 8);
    world.scheduler = false;
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    let uid = world.member("train-Worker-0");
    let membership = world.pods[&uid].membership.clone();
    let muster_core::view::FilterAnswer::Only(node) =
        world.engine.view().filter(&uid, membership.as_ref())
    else {
        panic!("no node: {}", world.phase(&key));
    };
    let ticket = world.bind(&uid, &node);
    world.settle();
    tell(&mut world, Event::ApiAway(Millis(0)));
    world.pass(Millis::from_secs(151));
    assert!(world.answers[&ticket].is_err());
}
