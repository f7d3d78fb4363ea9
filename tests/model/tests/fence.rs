//! The model holds with every protection, and is violated without any one of them.

use std::time::Instant;

use muster_model::{Fence, Protections};
use stateright::{Checker, HasDiscoveries, Model};

const DOUBLE: &str = "no node takes two pods";
const LATE: &str = "nothing is bound by an earlier leader after a later one has planned";
const LATE_PLAN: &str = "nothing is promised by an earlier leader after a later one has planned";

/// Two leaderships, and no clock.
fn two_leaders(protections: Protections) -> Fence {
    Fence {
        protections,
        epochs_max: 2,
        requests_max: 2,
        losses_max: 0,
        returns_max: 0,
    }
}

/// One leader, that gives a plan back.
fn plan_given_back(protections: Protections) -> Fence {
    Fence {
        epochs_max: 1,
        returns_max: 1,
        ..two_leaders(protections)
    }
}

/// Two leaders, of which one gives a plan back.
fn plan_taken_over_and_given_back(protections: Protections) -> Fence {
    Fence {
        requests_max: 1,
        returns_max: 1,
        ..two_leaders(protections)
    }
}

/// A pod is lost and made again, which no stamp reaches: here the deadline counts.
fn with_repair(protections: Protections) -> Fence {
    Fence {
        losses_max: 1,
        requests_max: 1,
        ..two_leaders(protections)
    }
}

/// Looks at every state; panics with the way to a violation.
fn holds(name: &str, model: Fence) {
    let since = Instant::now();
    let checker = model.checker().threads(2).spawn_dfs().join();
    println!(
        "{name}: {} states in {:.1?}",
        checker.unique_state_count(),
        since.elapsed()
    );
    checker.assert_properties();
    assert!(
        checker.unique_state_count() > 10_000,
        "too few to tell anything"
    );
}

/// Finds a violation; returns its length.
fn is_violated(name: &str, model: Fence, properties: &[&'static str]) {
    let since = Instant::now();
    let ends = HasDiscoveries::AnyOf(properties.iter().copied().collect());
    let checker = model.checker().threads(2).finish_when(ends);
    let checker = checker.spawn_bfs().join();
    let found = properties
        .iter()
        .find_map(|property| checker.discovery(property));
    let count = checker.unique_state_count();
    let Some(found) = found else {
        panic!("{name}: none of {properties:?} is violated in {count} states");
    };
    let steps = found.into_actions().len();
    println!(
        "{name}: violated after {steps} steps, {count} states in {:.1?}",
        since.elapsed()
    );
}

#[test]
fn two_leaders_are_kept_apart_without_any_clock() {
    holds("two leaders", two_leaders(Protections::WITHOUT_CLOCK));
}

#[test]
fn a_plan_of_the_leader_before_is_given_back_only_when_nothing_of_it_is_bound() {
    holds(
        "a plan taken over and given back",
        plan_taken_over_and_given_back(Protections::ALL),
    );
}

#[test]
fn a_plan_is_given_back_without_giving_away_room_that_a_binding_may_take() {
    holds(
        "a plan given back",
        plan_given_back(Protections::WITHOUT_CLOCK),
    );
}

#[test]
fn a_lost_member_is_repaired_by_one_leader_alone() {
    holds("with repair", with_repair(Protections::ALL));
}

#[test]
fn without_any_one_protection_it_is_violated() {
    let all = Protections::WITHOUT_CLOCK;
    for (name, protections) in [
        (
            "Bindings without resourceVersion",
            Protections {
                version: false,
                ..all
            },
        ),
        (
            "no stamps",
            Protections {
                stamp: false,
                ..all
            },
        ),
        (
            "stamps of a later leader are written over",
            Protections {
                respect: false,
                ..all
            },
        ),
        (
            "no stepping down on a later epoch",
            Protections {
                step_down: false,
                ..all
            },
        ),
    ] {
        is_violated(name, two_leaders(protections), &[DOUBLE, LATE]);
    }
    let unlisted = Protections {
        list: false,
        ..Protections::ALL
    };
    let unlisted = plan_taken_over_and_given_back(unlisted);
    is_violated("no LIST after acquiring", unlisted, &[DOUBLE]);
    let unstamped = Protections {
        stamp_gangs: false,
        ..all
    };
    is_violated(
        "Gangs are not stamped",
        two_leaders(unstamped),
        &[LATE_PLAN],
    );
    let careless = Protections {
        doubt: false,
        ..all
    };
    is_violated(
        "room in doubt is given away",
        plan_given_back(careless),
        &[DOUBLE],
    );
}

#[test]
fn a_pod_that_was_made_again_needs_the_deadline() {
    let all = Protections::WITHOUT_CLOCK;
    is_violated("no deadline", with_repair(all), &[DOUBLE, LATE]);
}
