//! Gang objects that outlive their gangs.

#[allow(dead_code)]
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::world::World;
use muster_core::action::{Action, WriteKind};
use muster_core::event::{Event, WriteOutcome};
use muster_core::ids::GangKey;
use muster_core::time::Millis;

fn lost() -> WriteOutcome {
    WriteOutcome::Unknown(Arc::from("no answer"))
}

#[test]
fn gang_object_of_a_label_is_deleted_however_often_that_fails() {
    for failure in [lost(), WriteOutcome::Refused(Arc::from("no"))] {
        let mut world = World::new(1, 8);
        let uid = world.labelled("a", "group", 1, 1, false);
        world.settle();
        let left = Rc::new(Cell::new(3));
        let count = Rc::clone(&left);
        world.fail = Some(Box::new(move |write| {
            (matches!(write.what, WriteKind::DeleteRecord { .. }) && count.get() > 0).then(|| {
                count.set(count.get() - 1);
                failure.clone()
            })
        }));
        world.delete_pod(&uid);
        world.settle();
        assert_eq!(left.get(), 2, "not tried again without a pause");
        world.pass(Millis::from_secs(60));
        assert!(world.gangs.is_empty());
        let writes = world.writes.len();
        world.pass(Millis::from_secs(600));
        assert_eq!(world.writes.len(), writes);
    }
}

#[test]
fn gang_object_left_over_before_a_restart_is_deleted_after_it() {
    let mut world = World::new(1, 8);
    let uid = world.labelled("a", "group", 1, 1, false);
    world.settle();
    world.fail = Some(Box::new(|write| {
        matches!(write.what, WriteKind::DeleteRecord { .. }).then(lost)
    }));
    world.delete_pod(&uid);
    world.settle();
    assert_eq!(world.gangs.len(), 1);
    world.fail = None;
    world.restart(2);
    world.settle();
    assert!(world.gangs.is_empty());
}

#[test]
fn gang_that_comes_back_keeps_the_object_that_could_not_be_deleted() {
    let mut world = World::new(1, 8);
    let uid = world.labelled("a", "group", 1, 1, false);
    world.settle();
    let mut left = 1;
    world.fail = Some(Box::new(move |write| {
        (matches!(write.what, WriteKind::DeleteRecord { .. }) && left > 0).then(|| {
            left -= 1;
            lost()
        })
    }));
    world.delete_pod(&uid);
    world.settle();
    world.labelled("b", "group", 1, 1, false);
    world.settle();
    world.pass(Millis::from_secs(60));
    let key = GangKey::labelled("default", "group");
    assert_eq!(world.phase(&key), "Running AllBound 1/1");
}

#[test]
fn gang_that_comes_back_writes_no_plan_into_the_object_that_is_being_deleted() {
    let mut world = World::new(1, 8);
    let uid = world.labelled("a", "group", 1, 1, false);
    world.settle();
    let key = GangKey::labelled("default", "group");
    let echo = world.gangs[&key].record.clone();
    world.delete_pod(&uid);
    while let Some(event) = world.watch.pop_front() {
        world.engine.handle(event, world.now);
    }
    world.engine.decide(world.now);
    // The deletion is on its way; the watch tells of the object once more.
    world.labelled("b", "group", 1, 1, false);
    while let Some(event) = world.watch.pop_front() {
        world.engine.handle(event, world.now);
    }
    world
        .engine
        .handle(Event::RecordApplied(echo.clone()), world.now);
    world.engine.decide(world.now);
    let mut kinds = Vec::new();
    while let Some(action) = world.engine.poll_action() {
        if let Action::Write(write) = action {
            kinds.push(write.what);
        }
    }
    assert!(
        matches!(
            kinds.as_slice(),
            [
                WriteKind::DeleteRecord { .. },
                WriteKind::CreateRecord { .. }
            ]
        ),
        "{kinds:?}"
    );
}
