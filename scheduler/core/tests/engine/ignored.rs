//! Keys under `muster.dev/` that nobody reads: the gang is planned, and it is said once.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
use std::sync::Arc;

use crate::world::{World, gpus};
use muster_core::action::WriteKind;
use muster_core::ids::GangKey;
use muster_core::time::Millis;
use muster_core::workload::Hold;

const TYPED: &str = "muster.dev/required-topolgy";
const SAID: &str =
    "muster.dev/required-topolgy is ignored, did you mean muster.dev/required-topology?";

fn ignored(world: &World, key: &GangKey) -> Option<Arc<str>> {
    world.gangs[key].status.as_ref().unwrap().ignored.clone()
}

/// Events and status writes so far that speak of it.
fn events(world: &World) -> usize {
    let said = world.announced.iter();
    said.filter(|event| event.contains("UnknownKey")).count()
}

fn statuses(world: &World) -> usize {
    let writes = world.writes.iter();
    writes
        .filter(|write| matches!(write.what, WriteKind::PutStatus { .. }))
        .count()
}

#[test]
fn a_gang_with_a_mistyped_key_runs_and_says_so_once() {
    let (mut plain, mut typed) = (World::new(2, 8), World::new(2, 8));
    let mut keys = Vec::new();
    for (world, setting) in [(&mut plain, None), (&mut typed, Some(TYPED))] {
        world.restart(1);
        let key = world.submit("job", &[("Worker", 2, gpus(4))], Hold::Held);
        world.edit(&key, |job| {
            let pairs = setting.iter();
            job.settings = pairs
                .map(|key| (Arc::from(*key), Arc::from("rack")))
                .collect();
        });
        world.settle();
        world.pass(Millis::from_secs(60));
        assert_eq!(world.phase(&key), "Running AllBound 2/2");
        keys.push(key);
    }
    let key = keys.pop().unwrap();
    assert_eq!(ignored(&typed, &key).as_deref(), Some(SAID));
    assert_eq!((events(&plain), events(&typed)), (0, 1));
    assert_eq!(statuses(&typed), statuses(&plain), "no write of its own");
    // A restart says nothing again.
    typed.restart(2);
    typed.pass(Millis::from_secs(60));
    assert_eq!(events(&typed), 1);
    assert_eq!(ignored(&typed, &key).as_deref(), Some(SAID));
    // The slip is mended: one write takes it back.
    let before = statuses(&typed);
    typed.edit(&key, |job| job.settings.clear());
    typed.settle();
    assert_eq!(ignored(&typed, &key), None);
    assert_eq!((events(&typed), statuses(&typed)), (1, before + 1));
}

#[test]
fn a_waiting_gang_says_it_beside_its_reason_whatever_makes_it_a_gang() {
    let mut world = World::new(1, 2);
    world.restart(1);
    for member in ["a", "b"] {
        let pod = world.labelled(member, "group", 2, 4, true);
        world.change_pod(&pod, |pod| {
            pod.settings.insert(Arc::from(TYPED), Arc::from("rack"));
        });
    }
    world.settle();
    world.pass(Millis::from_secs(60));
    let key = GangKey::labelled("default", "group");
    // The reason stays what keeps it.
    assert_eq!(world.phase(&key), "Waiting NeverFits 0/2");
    assert_eq!(ignored(&world, &key).as_deref(), Some(SAID));
    assert_eq!(events(&world), 1, "{:?}", world.announced);
}
