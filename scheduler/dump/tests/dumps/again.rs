//! A state that is written, read and planned again gives what the engine decides on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_core::ids::GangKey;
use muster_core::interpod::{InterPodKind, InterPodRule};
use muster_core::ledger::Ledger;
use muster_core::node::{Requirement, SelectorOperator};
use muster_core::pod::PodShape;
use muster_core::state::{GangState, SlotState, State};
use muster_core::time::Millis;
use muster_core::topology::{Level, PREFERRED, REQUIRED, SEGMENT_LEVEL, SEGMENT_SIZE, Source};
use muster_core::workload::{Hold, Outcome};
use muster_dump::replay::{Found, replay};
use muster_dump::report::{Answer, Report};

use crate::world::{World, gpus, shape};

/// Takes in what has happened, without deciding on it.
fn take_in(world: &mut World) {
    while let Some(event) = world.watch.pop_front() {
        world.engine.handle(event, world.now);
    }
}

/// The state, by way of a file.
fn dumped(world: &World) -> State {
    let text = muster_dump::write(&world.engine.state(world.now)).unwrap();
    let state = muster_dump::read(&text).unwrap();
    assert_eq!(muster_dump::write(&state).unwrap(), text);
    state
}

fn gang<'a>(state: &'a State, key: &GangKey) -> &'a GangState {
    state.gangs.iter().find(|gang| gang.key == *key).unwrap()
}

/// Racks of four nodes, eight GPUs each, some of them broken, in use or leaked.
pub fn busy() -> World {
    let mut world = World::new(0, 8);
    let label: Arc<str> = Arc::from("net/rack");
    world.config.topology = vec![Level {
        name: Arc::from("rack"),
        source: Source::Label(Arc::clone(&label)),
    }];
    for index in 0..20 {
        let name = format!("n{index:02}");
        world.add_node(&name, 8);
        let rack = Arc::from(format!("r{}", index / 4));
        let node = world.nodes.get_mut(&name).unwrap();
        node.labels.insert(Arc::clone(&label), rack);
    }
    world.add_node("cpu", 0);
    world.unhealthy.insert("GPU-n03-2".into());
    world.leaked.insert("GPU-n07-1".into());
    world.restart(1);
    for (index, gpus_each) in [(1, 3), (2, 1), (3, 5)] {
        let job = format!("early-{index}");
        world.submit(&job, &[("Worker", 2, gpus(gpus_each))], Hold::Held);
    }
    world.settle();
    world
}

fn one_per_node() -> Arc<PodShape> {
    let own = Requirement {
        key: Arc::from("app"),
        operator: SelectorOperator::In([Arc::from("gang")].into()),
    };
    Arc::new(PodShape {
        between_pods: [InterPodRule {
            kind: InterPodKind::AntiAffinity,
            topology: Arc::from("kubernetes.io/hostname"),
            selector: [own].into(),
        }]
        .into(),
        ..shape(2)
    })
}

fn asked(world: &mut World, name: &str, settings: &[(&str, &str)]) -> GangKey {
    let key = world.submit(name, &[("Worker", 6, gpus(4))], Hold::Held);
    let pairs = settings.iter();
    let settings: BTreeMap<Arc<str>, Arc<str>> = pairs
        .map(|(key, value)| (Arc::from(*key), Arc::from(*value)))
        .collect();
    world.edit(&key, |job| job.settings = settings);
    key
}

/// Gangs of every kind that come at once: roles, rules, topology, segments, elastic, labels; and too large.
pub fn wave(world: &mut World) -> Vec<GangKey> {
    let roles = [("Master", 1, gpus(0)), ("Worker", 5, gpus(3))];
    let mut keys = vec![
        world.submit("mixed", &roles, Hold::Held),
        world.submit("apart", &[("Worker", 5, one_per_node())], Hold::Held),
        asked(world, "one-rack", &[(REQUIRED, "rack")]),
        asked(world, "few-racks", &[(PREFERRED, "rack")]),
        asked(
            world,
            "segments",
            &[(SEGMENT_LEVEL, "rack"), (SEGMENT_SIZE, "3")],
        ),
        world.submit("too-large", &[("Worker", 99, gpus(8))], Hold::Held),
    ];
    for member in ["w-1", "w-2", "w-3"] {
        world.labelled(member, "labelled", 3, 2, true);
    }
    keys.push(GangKey::labelled("default", "labelled"));
    // Takes what the others have left.
    let elastic = world.submit("elastic", &[("Worker", 40, gpus(4))], Hold::Held);
    world.edit(&elastic, |job| job.minimum = Some(2));
    keys.push(elastic);
    keys
}

#[test]
fn a_dump_of_a_busy_state_is_planned_as_the_engine_plans_it() {
    let mut world = busy();
    let keys = wave(&mut world);
    take_in(&mut world);
    let before = dumped(&world);
    let replayed = replay(&before);
    // The planning is all that this decision is about.
    world.engine.decide(world.now);
    let after = world.engine.state(world.now);
    let mut placed = 0;
    for key in &keys {
        let mut found = replayed.gangs.iter().filter(|found| found.gang.key == *key);
        let found = &found.next().unwrap().found;
        let gang = gang(&after, key);
        match (&gang.plan, found) {
            (Some(plan), Found::Places(members)) => {
                let line = |role: &dyn std::fmt::Display, index, node: &str, devices: &[_]| {
                    format!("{role} {index} {node} {devices:?}\n")
                };
                let live: String = plan
                    .slots
                    .iter()
                    .map(
                        |SlotState {
                             role,
                             index,
                             node,
                             devices,
                             ..
                         }| {
                            line(role, *index, node.as_ref().unwrap().as_str(), devices)
                        },
                    )
                    .collect();
                let again: String = members
                    .iter()
                    .map(|member| {
                        line(
                            &member.role,
                            member.index,
                            member.node.as_str(),
                            &member.devices,
                        )
                    })
                    .collect();
                assert_eq!(again, live, "{}", gang.name);
                placed += 1;
            }
            (None, Found::None(why)) => {
                let live = gang.why.as_ref().unwrap();
                assert_eq!(why.to_string(), &*live.text, "{}", gang.name);
            }
            (plan, found) => panic!("{}: {plan:?} {found:?}", gang.name),
        }
    }
    assert_eq!(placed, keys.len() - 1, "all but the one that is too large");
}

#[test]
fn plans_of_which_nobody_is_bound_are_the_same_when_they_are_planned_again() {
    let mut world = busy();
    let keys = wave(&mut world);
    // Nobody comes to the barrier.
    world.scheduler = false;
    world.settle();
    let state = dumped(&world);
    let replayed = replay(&state);
    let report = Report::of(&state, &replayed, None);
    let answers: BTreeMap<&str, Answer> = report
        .gangs
        .iter()
        .map(|gang| (&*gang.name, gang.answer))
        .collect();
    for key in &keys {
        let gang = gang(&state, key);
        let wanted = match &gang.plan {
            Some(plan) => {
                assert!(plan.durable && plan.asked.is_some(), "{}", gang.name);
                Answer::SamePlan
            }
            None => Answer::DoesNotFit,
        };
        assert_eq!(
            answers[&*gang.name],
            wanted,
            "{}\n{}",
            gang.name,
            report.in_words()
        );
    }
    assert_eq!(answers["early-1"], Answer::Stands);
    // A node with more room than is needed comes: the plans that there are stay, and would be others now.
    world.change_node("n00", |node| node.unschedulable = true);
    take_in(&mut world);
    world.engine.decide(world.now);
    let state = world.engine.state(world.now);
    let report = Report::of(&state, &replay(&state), None);
    let is_other = |gang: &&muster_dump::report::Verdict| gang.answer == Answer::OtherPlan;
    assert!(
        report.gangs.iter().any(|gang| is_other(&gang)),
        "{}",
        report.in_words()
    );
}

#[test]
fn members_that_were_lost_are_looked_for_again() {
    let mut world = World::new(2, 8);
    world.restart(1);
    let key = world.submit("job", &[("Worker", 2, gpus(8))], Hold::Held);
    world.settle();
    assert_eq!(world.bound(&key), 2);
    // One node is cordoned, and the member on it is lost.
    world.change_node("n1", |node| node.unschedulable = true);
    let lost = world
        .pods
        .values()
        .find(|pod| pod.node.as_ref().unwrap().as_str() == "n1");
    let lost = lost.unwrap().uid.clone();
    world.delete_pod(&lost);
    world.settle();
    world.pass(Millis::from_secs(2));
    let state = dumped(&world);
    let replayed = replay(&state);
    let report = Report::of(&state, &replayed, Some("default/job"));
    let [verdict] = report.gangs.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(verdict.answer, Answer::MembersMissing);
    assert_eq!(verdict.why[0].code, "NotEnoughFree", "{verdict:?}");
    // With the node back the same search finds its place there.
    world.change_node("n1", |node| node.unschedulable = false);
    take_in(&mut world);
    let state = dumped(&world);
    let report = Report::of(&state, &replay(&state), Some("default/job"));
    assert_eq!(report.gangs[0].members[0].node, "n1", "{report:?}");
    // Of one that has ended nobody is looked for.
    world.edit(&key, |job| job.finished = Some(Outcome::Succeeded));
    world.settle();
    let state = dumped(&world);
    let report = Report::of(&state, &replay(&state), Some("default/job"));
    assert_eq!(report.gangs[0].answer, Answer::Ended, "{report:?}");
}

#[test]
fn room_that_is_free_is_the_same_in_the_dump() {
    let mut world = busy();
    let mut keys = wave(&mut world);
    world.settle();
    keys.truncate(2);
    let state = dumped(&world);
    let (ledger, inventory): (Ledger, _) = (state.ledger(), state.inventory());
    let view = world.engine.view();
    assert_eq!(view.free.size(), 21);
    for (node, free) in &view.free {
        let capacity = ledger.capacity(node, &inventory, &state.config, state.at);
        assert_eq!(capacity.unwrap().free, **free, "{node}");
    }
}

#[test]
fn a_gang_is_found_by_its_own_name_and_by_that_of_its_object() {
    let mut world = busy();
    wave(&mut world);
    take_in(&mut world);
    let state = dumped(&world);
    let replayed = replay(&state);
    for name in ["default/labelled", "default/label-labelled"] {
        let report = Report::of(&state, &replayed, Some(name));
        assert_eq!(report.gangs.len(), 1, "{name}");
        assert_eq!(report.gangs[0].object, "label-labelled");
    }
    for name in ["labelled", "other/labelled", "default/no-such"] {
        assert!(
            Report::of(&state, &replayed, Some(name)).gangs.is_empty(),
            "{name}"
        );
    }
}
