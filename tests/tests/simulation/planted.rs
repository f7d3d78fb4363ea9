//! The storms find bugs that are planted: the quick ones here, all of them with
//! `cargo run -p muster-tests --bin planted`, or `SIM_PLANTED= cargo test ... planted` where the tests are built already.

use muster_core::planted::Bug;
use muster_tests::sim::planting;

use super::setting;

/// Seeds within which each is found.
const SEEDS: u64 = 4;
/// Seeds within which the judge of storms sees what is closed overlooked.
const IN_STORM_SEEDS: u64 = 200;

#[test]
fn planted_bugs_are_found() -> anyhow::Result<()> {
    if let Ok(names) = std::env::var("SIM_PLANTED") {
        let seeds = setting("SIM_SEEDS").unwrap_or(100);
        return planting::try_these(&planting::named(&names)?, seeds);
    }
    let quick = [
        Bug::BarrierOpensEarly,
        Bug::BindingWithoutUid,
        Bug::PlansForgotten,
    ];
    planting::try_these(&quick, SEEDS)
}

/// The judge forgave everything that a storm closes for a minute, and a storm is over by then: only the exams afterwards
/// found these. (Agents that are silent are mostly heard again before a plan made meanwhile is held against anybody: overlooked
/// silence is found by the exams still.)
#[test]
fn what_a_storm_has_closed_is_held_against_a_scheduler_while_it_lasts() -> anyhow::Result<()> {
    for (bug, rule) in [
        (Bug::CordonsOverlooked, "PLACE-1: "),
        (Bug::StrangersOverlooked, "DEV-1: "),
    ] {
        let in_storm = |said: &str| said.contains(&format!("in a storm: {rule}"));
        let found = planting::first_that_says(bug, IN_STORM_SEEDS, in_storm);
        println!("{bug:?}: {found:?}");
        anyhow::ensure!(found.is_some(), "{bug:?} in {IN_STORM_SEEDS} seeds");
    }
    Ok(())
}
