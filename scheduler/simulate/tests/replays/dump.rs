//! What the planner sees in a replay, as a file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use crate::common::{example, run, simulation};
use muster_dump::report::{Answer, Report};
use muster_simulate::{Input, PolicyKind, Simulation, Until};

/// The dump of a scenario at a time, milliseconds, with writes that take so long.
fn dumped(name: &str, at_ms: u64, write_delay_ms: u64) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump.json");
    run(&Simulation {
        dump: Some((file.clone(), at_ms)),
        write_delay_ms,
        until: Some(Until::Time(7_200_000)),
        ..simulation(&example(name), Input::Scenario, PolicyKind::Muster)
    })
    .unwrap();
    std::fs::read_to_string(file).unwrap()
}

fn report(text: &str) -> Report {
    let state = muster_dump::read(text).unwrap();
    assert_eq!(muster_dump::write(&state).unwrap(), text);
    Report::of(&state, &muster_dump::replay(&state), None)
}

fn answers(report: &Report) -> Vec<(&str, Answer)> {
    let gangs = report.gangs.iter();
    gangs.map(|gang| (&*gang.name, gang.answer)).collect()
}

#[test]
fn state_of_a_replay_is_planned_again_from_its_dump() {
    // `whole` waits for the broken GPU, until 1200 s; the pool of 4 GPUs is in use.
    let text = dumped("broken-gpu", 600_000, 0);
    assert_eq!(dumped("broken-gpu", 600_000, 0), text);
    let report = report(&text);
    let wait = Answer::DoesNotFit;
    assert_eq!(
        answers(&report),
        [
            ("urgent", wait),
            ("whole", wait),
            ("patient", wait),
            ("busy", Answer::Stands)
        ]
    );
    let said = report.in_words();
    assert!(said.contains("unhealthy GPU 1"), "{said}");
}

#[test]
fn plans_that_are_on_their_way_are_the_same_when_they_are_planned_again() {
    // Each write takes 5 s: at 3 s the first small gang has a plan that is not written yet.
    let report = report(&dumped("large-among-small", 3_000, 5_000));
    assert_eq!(answers(&report), [("small-0", Answer::SamePlan)]);
    let members = &report.gangs[0].members;
    assert_eq!(members.len(), 2);
    assert_eq!(members[1].devices.len(), 2, "{members:?}");
}

#[test]
fn dump_at_the_end_shows_what_is_left() {
    let report = report(&dumped("lost-node", u64::MAX, 0));
    assert_eq!(answers(&report), []);
    assert_eq!(report.nodes, 5);
}

#[test]
fn baselines_have_no_dump() {
    let error = run(&Simulation {
        dump: Some(("dump.json".into(), 0)),
        ..simulation(&example("lost-node"), Input::Scenario, PolicyKind::Greedy)
    });
    let said = error.err().unwrap().to_string();
    assert!(
        said.starts_with("--policy is greedy: must be muster with --dump"),
        "{said}"
    );
}
