//! What the job's own status says of a suspension, and the one write that puts it right.

#[allow(dead_code)]
use std::sync::Arc;

use crate::world::{World, gpus};
use muster_core::action::{JobChange, Write, WriteKind};
use muster_core::event::WriteOutcome;
use muster_core::ids::GangKey;
use muster_core::time::Millis;
use muster_core::workload::{Hold, Outcome, Shown};

fn is_show(write: &Write) -> bool {
    matches!(
        &write.what,
        WriteKind::ChangeJob {
            change: JobChange::Show,
            ..
        }
    )
}

fn shows(world: &World) -> usize {
    world.writes.iter().filter(|write| is_show(write)).count()
}

/// A job that fills the cluster, and one behind it.
fn full(hold: Hold) -> (World, GangKey, GangKey) {
    let mut world = World::new(2, 8);
    let first = world.submit("first", &[("Worker", 2, gpus(8))], Hold::Held);
    let second = world.submit("second", &[("Worker", 2, gpus(8))], hold);
    world.settle();
    (world, first, second)
}

#[test]
fn status_that_says_queued_by_itself_costs_no_write() {
    let (mut world, first, second) = full(Hold::Held);
    assert_eq!(world.phase(&second), "Waiting NotEnoughFree 0/2");
    world.edit(&second, |job| job.shown = Shown::Queued);
    world.settle();
    world.pass(Millis::from_secs(120));
    world.edit(&first, |job| job.finished = Some(Outcome::Succeeded));
    world.settle();
    assert_eq!(world.phase(&second), "Running AllBound 2/2");
    assert_eq!(shows(&world), 0);
}

#[test]
fn job_that_changes_hands_while_it_is_suspended_says_so_by_one_write_each_time() {
    let (mut world, first, second) = full(Hold::SuspendedByUser);
    world.edit(&second, |job| job.shown = Shown::Suspended);
    world.settle();
    assert_eq!(shows(&world), 0, "suspended by its user, and says so");
    // Resumed: the admission policy holds it, and its controller sees no reason to write.
    world.edit(&second, |job| job.hold = Hold::Held);
    world.settle();
    assert_eq!(shows(&world), 1);
    assert_eq!(world.jobs[&second].shown, Shown::Queued);
    world.pass(Millis::from_secs(120));
    assert_eq!(shows(&world), 1, "and no write while it waits");
    world.edit(&second, |job| job.hold = Hold::SuspendedByUser);
    world.settle();
    assert_eq!(world.phase(&second), "Suspended SuspendedByUser 0/2");
    assert_eq!(world.jobs[&second].shown, Shown::Suspended);
    assert_eq!(shows(&world), 2);
    world.edit(&second, |job| job.hold = Hold::Held);
    world.edit(&first, |job| job.finished = Some(Outcome::Succeeded));
    world.settle();
    assert_eq!(world.phase(&second), "Running AllBound 2/2");
}

#[test]
fn resumed_job_that_fits_is_released_without_a_word_before() {
    let mut world = World::new(2, 8);
    let key = world.submit("train", &[("Worker", 2, gpus(8))], Hold::SuspendedByUser);
    world.edit(&key, |job| job.shown = Shown::Suspended);
    world.settle();
    world.edit(&key, |job| job.hold = Hold::Held);
    world.settle();
    assert_eq!(world.phase(&key), "Running AllBound 2/2");
    assert_eq!(shows(&world), 0);
}

/// Whether somebody else writes the job in between, or rights are missing, or no answer comes.
#[test]
fn failure_to_show_who_holds_a_job_keeps_it_from_nothing_and_is_not_repeated() {
    let text = || Arc::from("forbidden");
    for outcome in [
        WriteOutcome::Conflict(None),
        WriteOutcome::Refused(text()),
        WriteOutcome::Unknown(text()),
    ] {
        let (mut world, first, second) = full(Hold::SuspendedByUser);
        world.edit(&second, |job| job.shown = Shown::Suspended);
        let failure = outcome.clone();
        world.fail = Some(Box::new(move |write| {
            is_show(write).then(|| failure.clone())
        }));
        world.edit(&second, |job| job.hold = Hold::Held);
        world.settle();
        assert_eq!(world.phase(&second), "Waiting NotEnoughFree 0/2");
        world.pass(Millis::from_secs(120));
        assert_eq!(shows(&world), 1, "{outcome:?}");
        world.edit(&first, |job| job.finished = Some(Outcome::Succeeded));
        world.settle();
        assert_eq!(world.phase(&second), "Running AllBound 2/2", "{outcome:?}");
    }
}
