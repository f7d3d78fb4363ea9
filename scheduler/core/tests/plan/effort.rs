//! What planning costs, counted in steps: one gang may not hold up everybody.

use muster_core::config::Config;
use muster_core::plan::{Answer, STEPS_MAX, plan_part};
use muster_core::reason::Unplaceable;

use super::read;

const NODES: usize = 5000;
const MEMBERS: usize = 16_384;

fn cluster(label: impl Fn(usize) -> String) -> String {
    (0..NODES)
        .map(|at| format!("node n{at:04} gpu=8 {}\n", label(at)))
        .collect()
}

/// Spreads over hosts that differ from each other.
fn host_spreads(count: usize) -> String {
    (1..=count)
        .map(|skew| format!(" spread=host:{skew}"))
        .collect()
}

fn ask(text: &str, spare: u32) -> Answer {
    let (snapshot, gang) = read(text);
    plan_part(&snapshot, &gang, spare, &Config::default())
}

#[test]
fn largest_gang_with_thirty_host_spreads_on_5000_nodes_is_planned_with_little_work() {
    let text = cluster(|_| String::new());
    let text = format!("{text}role worker {MEMBERS}x1{}", host_spreads(30));
    let answer = ask(&text, 0);
    assert_eq!(answer.placement.unwrap().members.len(), MEMBERS);
    assert!(answer.steps < STEPS_MAX / 10, "{} steps", answer.steps);
}

#[test]
fn largest_gang_that_does_not_fit_by_its_host_spreads_is_explained_once() {
    // One full node holds every other one to a single worker.
    let text = cluster(|at| if at == 0 { "used=8" } else { "" }.to_owned());
    let text = format!("{text}role worker {MEMBERS}x1{}", host_spreads(30));
    let whole = ask(&text, 0);
    assert_eq!(whole.placement.unwrap_err().code(), "SpreadNotMet");
    assert!(whole.steps < STEPS_MAX, "{} steps", whole.steps);
    // Each smaller part costs a placement, not an explanation.
    let part = ask(&text, 16_383);
    assert_eq!(part.placement.unwrap().members.len(), NODES - 1);
    assert!(part.steps < STEPS_MAX / 2, "{} steps", part.steps);
}

#[test]
fn search_that_is_too_much_work_gives_up_and_says_so() {
    // Pairs of nodes: of 2,500 racks each has to be looked at for every member.
    let text = cluster(|at| format!("label=rack:r{}", at / 2));
    let text = format!("{text}role worker {MEMBERS}x1 spread=rack:8 spread=host:8");
    let answer = ask(&text, 0);
    assert!(answer.steps >= STEPS_MAX && answer.steps < STEPS_MAX + STEPS_MAX / 100);
    let why = answer.placement.unwrap_err();
    assert!(matches!(why, Unplaceable::TooComplex { .. }));
    assert_eq!(
        format!("{}: {why}", why.code()),
        "SearchLimit: too complex to plan: the search for 16384 members with 2 rules between them was \
         given up; there may be a place, and it is looked for again; fewer members or rules can be planned"
    );
}
