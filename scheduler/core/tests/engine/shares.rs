//! Parts of devices through the whole engine: planned, reserved, bound, given back, found again.

#[allow(dead_code)]
use std::sync::Arc;

use crate::world::{GPU, World, gpus, shape};
use muster_core::pod::{PodPhase, PodShape, Share};
use muster_core::time::Millis;
use muster_core::workload::Hold;

fn share(milli: u32) -> Arc<PodShape> {
    Arc::new(PodShape {
        share: Share::new(GPU.into(), milli),
        ..shape(0)
    })
}

fn free(world: &World) -> u64 {
    let view = world.engine.view();
    view.free.get("n0").map_or(0, |free| free.extended(GPU))
}

fn settle(world: &mut World) {
    world.settle();
    world.pass(Millis::from_secs(5));
    let violations = world.engine.audit();
    assert!(violations.is_empty(), "{violations:?}");
}

#[test]
fn shares_fill_devices_and_leave_the_others_whole() {
    let mut world = World::new(1, 8);
    let key = world.submit("many", &[("Worker", 5, share(400))], Hold::Held);
    settle(&mut world);
    assert_eq!(world.bound(&key), 5, "{}", world.phase(&key));
    assert_eq!(free(&world), 5, "two on a device, one on the last");
    let whole = world.submit("whole", &[("Worker", 1, gpus(5))], Hold::Held);
    settle(&mut world);
    assert_eq!(world.bound(&whole), 1, "{}", world.phase(&whole));
    let more = world.submit("more", &[("Worker", 2, share(400))], Hold::Held);
    settle(&mut world);
    assert_eq!(
        world.bound(&more),
        0,
        "one finds a part, and the gang waits"
    );
    let small = world.submit("small", &[("Worker", 4, share(200))], Hold::Held);
    settle(&mut world);
    assert_eq!(world.bound(&small), 4, "{}", world.reason(&small));
}

#[test]
fn share_that_is_given_back_wakes_who_waits_for_it() {
    let mut world = World::new(1, 1);
    world.submit("first", &[("Worker", 1, share(700))], Hold::Held);
    settle(&mut world);
    let next = world.submit("next", &[("Worker", 1, share(400))], Hold::Held);
    settle(&mut world);
    assert_eq!(world.bound(&next), 0);
    let done = world.member("first-Worker-0");
    world.change_pod(&done, |pod| pod.phase = PodPhase::Succeeded);
    settle(&mut world);
    assert_eq!(world.bound(&next), 1, "{}", world.reason(&next));
}

#[test]
fn shares_are_known_again_after_a_restart() {
    let mut world = World::new(1, 2);
    world.submit("many", &[("Worker", 3, share(300))], Hold::Held);
    settle(&mut world);
    assert_eq!(free(&world), 1);
    world.restart(2);
    world.report_all();
    settle(&mut world);
    assert_eq!(free(&world), 1);
    let next = world.submit("next", &[("Worker", 2, share(600))], Hold::Held);
    settle(&mut world);
    assert_eq!(world.bound(&next), 0, "100 and a whole device are left");
    let small = world.submit("small", &[("Worker", 1, share(100))], Hold::Held);
    settle(&mut world);
    assert_eq!(world.bound(&small), 1);
    assert_eq!(free(&world), 1, "what was left of the one was enough");
}

#[test]
fn shares_are_a_part_of_something() {
    assert_eq!(Share::new(GPU.into(), 0), None);
    assert_eq!(Share::new(GPU.into(), 1000), None);
    assert_eq!(Share::new(GPU.into(), 70_000), None);
    assert_eq!(
        Share::new(GPU.into(), 999).map(|share| share.milli()),
        Some(999)
    );
}
