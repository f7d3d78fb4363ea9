//! What comes from outside, changed at random, for a few seconds. For longer: `cargo run --release -p muster-tests --bin
//! fuzz`, where `FUZZ_TARGET` and `FUZZ_SEED` repeat a failure.

// A test that cannot go on stops with the place and the value.
#![allow(clippy::expect_used)]

use std::time::{Duration, Instant};

use muster_tests::fuzz::{kept, mutated, round, target, targets};
use muster_tests::rng::Rng;

/// Time of one target.
const TIME: Duration = Duration::from_millis(1500);
/// Runs of a round.
const RUNS: u64 = 250;
/// Runs of a target that are enough to count as any: a machine that is very busy makes fewer than this in its time.
const RUNS_MIN: u64 = 500;
/// By how much all of it may make the process larger, KiB.
const GROWTH_MAX_KIB: u64 = 256 << 10;

/// Memory that the process has, KiB.
fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("VmRSS").parse().expect("a number")
}

/// Other schedulers' extenders panicked at a body that was null, or had no pod; their schedulers at objects that lacked a
/// part, or had a number below zero.
#[test]
fn f45_f46_nothing_from_outside_does_harm_whatever_it_is() {
    let mut total = 0;
    let names = targets().expect("targets");
    for name in names.iter().map(|target| target.name()) {
        let (started, before) = (Instant::now(), memory_kib());
        let (mut runs, mut outcomes, mut seed) = (0, 0, 1);
        while started.elapsed() < TIME || runs < RUNS_MIN {
            let mut target = target(name).expect("a target");
            let done = round(&mut *target, seed, RUNS);
            let done = done.unwrap_or_else(|failure| panic!("{failure}"));
            runs += done.runs;
            outcomes = outcomes.max(done.outcomes);
            seed += 1;
        }
        let grown = memory_kib().saturating_sub(before);
        println!("{name}: {runs} runs, up to {outcomes} outcomes, {grown} KiB");
        // One outcome for everything would mean that nothing is reached.
        assert!(outcomes >= 3, "{name}: {outcomes} outcomes");
        assert!(grown < GROWTH_MAX_KIB, "{name}: grown by {grown} KiB");
        total += runs;
    }
    println!("{total} runs");
}

/// What earlier and longer runs found is run first of all, on any machine.
#[test]
fn inputs_that_once_came_to_something_new_do_no_harm() {
    let mut total = 0;
    for mut target in targets().expect("targets") {
        let inputs = kept(target.name()).expect("tests/corpus");
        for input in &inputs {
            let done = target.run(input);
            assert!(
                done.is_ok(),
                "{}: {done:?}: {}",
                target.name(),
                input.escape_ascii()
            );
        }
        total += inputs.len();
    }
    assert!(total >= 100, "{total} inputs are kept");
}

/// The same seed gives the same round, so that a failure can be seen again.
#[test]
fn a_round_repeats_itself() {
    let outcomes = || {
        let all = targets().expect("targets");
        let rounds = all.into_iter().map(|mut target| {
            let done = round(&mut *target, 7, 200).unwrap_or_else(|failure| panic!("{failure}"));
            (target.name(), done.outcomes)
        });
        rounds.collect::<Vec<_>>()
    };
    assert_eq!(outcomes(), outcomes());
}

/// A bug is found, and told with its input.
#[test]
fn a_target_that_panics_or_objects_is_told_with_its_input() {
    struct Fragile(bool);
    impl muster_tests::fuzz::Target for Fragile {
        fn name(&self) -> &'static str {
            "fragile"
        }
        fn corpus(&self) -> Vec<Vec<u8>> {
            vec![br#"{"size": 3}"#.to_vec()]
        }
        fn run(&mut self, input: &[u8]) -> Result<String, String> {
            let value: serde_json::Value = serde_json::from_slice(input).unwrap_or_default();
            let size = value["size"].as_i64().unwrap_or(0);
            match (size < 0, self.0) {
                (true, true) => panic!("below zero"),
                (true, false) => Err("below zero".into()),
                _ => Ok("well".into()),
            }
        }
    }
    for panics in [true, false] {
        let failure = round(&mut Fragile(panics), 1, 50_000).expect_err("it is found");
        assert!(failure.why.contains("below zero"), "{failure}");
        assert!(
            failure
                .to_string()
                .contains("FUZZ_TARGET=fragile FUZZ_SEED=1"),
            "{failure}"
        );
        assert!(
            String::from_utf8_lossy(&failure.input).contains("size"),
            "{failure}"
        );
    }
}

/// A list of one long text was multiplied by 64, four times over: a fuzzer that should have told of memory asked for gigabytes itself.
#[test]
fn what_is_changed_again_and_again_stays_small() {
    let text = "x".repeat(60 << 10);
    let list = serde_json::to_vec(&[&text]).expect("JSON");
    let mut largest = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut input = list.clone();
        for _ in 0..4 {
            input = mutated(&mut rng, &input, &list);
            largest = largest.max(input.len());
        }
    }
    assert!(
        (32 << 10..=64 << 10).contains(&largest),
        "{largest} bytes are an input"
    );
}
