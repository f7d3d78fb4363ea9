//! What Filter says of a gang's members, state by state. kube-scheduler writes the text into the pod and tries the pod
//! again when its status has changed: a text that differs without a change of state makes both go on without end.

use std::sync::Arc;

use crate::world::World;
use muster_core::event::{Event, WriteOutcome};
use muster_core::ids::{GangKey, PodUid};
use muster_core::time::Millis;
use muster_core::view::{FilterAnswer, NOT_LEADING, UNKNOWN_GANG};

/// How often each state is asked, with something that happens in between each time.
const ASKED: u32 = 6;

fn gang() -> GangKey {
    GangKey::labelled("default", "g")
}

/// What Filter says of a pod now: the text of a refusal, or the node.
fn said(world: &World, uid: &PodUid) -> Result<String, Arc<str>> {
    let membership = world.pods.get(uid).and_then(|pod| pod.membership.as_ref());
    match world.engine.view().filter(uid, membership) {
        FilterAnswer::Only(node) => Ok(node.to_string()),
        FilterAnswer::Nowhere(text) => Err(text),
        FilterAnswer::Later(text) => Err(Arc::from(text)),
        FilterAnswer::WhereRoom => panic!("{uid} is a member"),
    }
}

/// Things that happen all the time and change no state: kube-scheduler writes into pods what it was told, agents
/// report, a node's label changes, a pod of somebody else comes and goes, time passes.
fn nothing_of_note(world: &mut World, uid: &PodUid, round: u32) {
    if let Err(text) = said(world, uid)
        && world.pods.get(uid).is_some_and(|pod| pod.node.is_none())
    {
        world.change_pod(uid, |pod| {
            pod.unschedulable = Some(Arc::from(format!("0/3 nodes are available: {text}")));
        });
    }
    world.change_node("n0", |node| {
        let label = (Arc::from("note"), Arc::from(round.to_string()));
        node.labels.extend([label]);
    });
    let other = world.stranger("other", crate::world::gpus(0), "n2");
    world.settle();
    world.delete_pod(&other);
    world.pass(Millis(50));
}

/// Asks for as long as the state lasts, and expects this every time.
fn stays(world: &mut World, uid: &PodUid, state: &str, expected: &Result<String, Arc<str>>) {
    for round in 0..ASKED {
        assert_eq!(said(world, uid), *expected, "{state}, asked {round} times");
        nothing_of_note(world, uid, round);
    }
    assert_eq!(said(world, uid), *expected, "{state}, at its end");
}

fn waits(code: &str) -> Result<String, Arc<str>> {
    Err(Arc::from(format!(
        "muster: gang g waits ({code}); see: kubectl describe gang label-g"
    )))
}

#[test]
fn t12_text_1_one_gang_through_its_states_says_one_documented_text_in_each() {
    let mut world = World::new(3, 8);
    world.scheduler = false;
    let first = world.labelled("first", "g", 2, 8, false);
    let unknown = Err(Arc::from(UNKNOWN_GANG));
    assert_eq!(
        said(&world, &first),
        unknown,
        "the watch has not told of it"
    );
    world.settle();
    stays(
        &mut world,
        &first,
        "a member is missing",
        &waits("MembersMissing"),
    );

    for name in ["n1", "n2"] {
        world.change_node(name, |node| node.unschedulable = true);
    }
    let second = world.labelled("second", "g", 2, 8, false);
    world.settle();
    stays(
        &mut world,
        &first,
        "a node is missing",
        &waits("NotEnoughFree"),
    );
    stays(
        &mut world,
        &second,
        "a node is missing",
        &waits("NotEnoughFree"),
    );

    // Planned, and the plan is not written yet.
    world.fail = Some(Box::new(|write| {
        let is_plan = matches!(
            &write.what,
            muster_core::action::WriteKind::PutStatus { status, .. } if status.plan.is_some()
        );
        is_plan.then(|| WriteOutcome::Unknown(Arc::from("no answer")))
    }));
    for name in ["n1", "n2"] {
        world.change_node(name, |node| node.unschedulable = false);
    }
    world.settle();
    stays(&mut world, &first, "not durable", &waits("Gathering"));

    world.fail = None;
    world.pass(Millis::from_secs(20));
    stays(&mut world, &first, "planned", &Ok("n0".to_owned()));
    stays(&mut world, &second, "planned", &Ok("n1".to_owned()));
    let third = world.labelled("third", "g", 2, 16, false);
    world.settle();
    stays(&mut world, &third, "beyond the plan", &waits("Gathering"));

    for uid in [&first, &second] {
        let Ok(node) = said(&world, uid) else {
            panic!("{uid} has a node");
        };
        world.bind(uid, &node.as_str().into());
    }
    world.settle();
    assert_eq!(world.phase(&gang()), "Running AllBound 2/2");
    stays(
        &mut world,
        &third,
        "beyond those that run",
        &waits("AllBound"),
    );

    world.delete_pod(&second);
    world.settle();
    stays(
        &mut world,
        &third,
        "a member is lost",
        &waits("MembersLost"),
    );
    world.pass(Millis::from_secs(31));
    stays(
        &mut world,
        &third,
        "released whole",
        &waits("ReleasedWhole"),
    );
    world.pass(Millis::from_secs(60));
    stays(
        &mut world,
        &third,
        "it alone is left",
        &waits("MembersMissing"),
    );

    world.engine.handle(Event::LeadershipLost, world.now);
    let later = Err(Arc::from(NOT_LEADING));
    world.engine.decide(world.now);
    assert_eq!(said(&world, &third), later, "another replica leads");
}
