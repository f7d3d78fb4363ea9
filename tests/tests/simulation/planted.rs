//! The storms find bugs that are planted: the quick ones here, all of them with
//! `cargo run -p muster-tests --bin planted`.

use muster_core::planted::{Bug, plant};
use muster_tests::sim::storm::{Telling, run};

/// Seeds within which each is found.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=4;

fn is_found(bug: Bug) -> bool {
    plant(Some(bug));
    let found = SEEDS
        .into_iter()
        .any(|seed| run(seed, Telling::Short).wrong.is_some());
    plant(None);
    found
}

#[test]
fn planted_bugs_are_found() {
    for bug in [Bug::BarrierOpensEarly, Bug::PlansForgotten] {
        assert!(is_found(bug), "{bug:?} is not found");
    }
}
