//! GPUs that pods hold by dynamic resource claims: the kubelet names the holder, and nothing is charged to
//! it.

use crate::world::{GPU, World, gpus};
#[allow(dead_code)]
use muster_core::ids::PodUid;
use muster_core::pod::PodPhase;
use muster_core::time::Millis;
use muster_core::workload::Hold;

fn free(world: &World) -> u64 {
    let view = world.engine.view();
    view.free.get("n0").map_or(0, |free| free.extended(GPU))
}

/// A pod of somebody else that runs on `n0`, asks for so many GPUs and holds these.
fn runs(world: &mut World, name: &str, asks: u64, holds: &[&str]) -> PodUid {
    let uid = world.stranger(name, gpus(asks), "n0");
    for device in holds {
        world.holders.insert((*device).into(), name.into());
    }
    world.settle();
    world.report_all();
    world.settle();
    uid
}

#[test]
fn gpu_that_a_pod_has_by_a_claim_is_not_free_for_a_gang() {
    let mut world = World::new(1, 8);
    let notebook = runs(&mut world, "notebook", 0, &["GPU-n0-3"]);
    assert_eq!(free(&world), 7);
    let key = world.submit("train", &[("Worker", 1, gpus(8))], Hold::Held);
    world.settle();
    world.pass(Millis::from_secs(5));
    assert_eq!(world.bound(&key), 0, "{}", world.phase(&key));
    // With the pod goes its claim.
    world.delete_pod(&notebook);
    world.holders.clear();
    world.settle();
    world.report_all();
    world.settle();
    world.pass(Millis::from_secs(5));
    assert_eq!(world.bound(&key), 1, "{}", world.phase(&key));
}

#[test]
fn gpus_that_pods_asked_for_are_counted_once_beside_a_claimed_one() {
    let mut world = World::new(1, 8);
    runs(&mut world, "server", 2, &["GPU-n0-0", "GPU-n0-1"]);
    assert_eq!(free(&world), 6, "charged, and not taken off again as held");
    runs(&mut world, "notebook", 0, &["GPU-n0-3"]);
    assert_eq!(free(&world), 5);
}

/// Another pod's charge must not be taken for that of the broken GPU: it is missing from what can
/// be used already.
#[test]
fn broken_gpu_under_a_claim_makes_no_room_beside_pods_that_are_charged() {
    let mut world = World::new(1, 8);
    runs(&mut world, "server", 2, &["GPU-n0-0", "GPU-n0-1"]);
    world.unhealthy.insert("GPU-n0-3".into());
    runs(&mut world, "notebook", 0, &["GPU-n0-3"]);
    assert_eq!(free(&world), 5);
}

#[test]
fn gpus_in_use_stay_so_while_no_kubelet_answers() {
    let mut world = World::new(1, 8);
    world.leaked.insert("GPU-n0-5".into());
    runs(&mut world, "notebook", 0, &["GPU-n0-3"]);
    assert_eq!(free(&world), 6);
    world.kubelets_away = true;
    world.report_all();
    world.settle();
    assert_eq!(free(&world), 6, "nobody says that they are free");
    world.kubelets_away = false;
    world.leaked.clear();
    world.report_all();
    world.settle();
    assert_eq!(free(&world), 7);
}

/// Kubelets name the devices of pods that have ended until somebody else needs them.
#[test]
fn gpu_of_a_pod_that_has_ended_is_free_while_the_kubelet_still_names_it() {
    let mut world = World::new(1, 8);
    let done = runs(&mut world, "done", 1, &["GPU-n0-3"]);
    assert_eq!(free(&world), 7);
    world.change_pod(&done, |pod| pod.phase = PodPhase::Succeeded);
    world.settle();
    assert_eq!(free(&world), 8);
    world.delete_pod(&done);
    world.settle();
    assert_eq!(free(&world), 8);
}
