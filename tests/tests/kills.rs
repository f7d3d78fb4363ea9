//! Muster dies fifty times in about four minutes, under load; a thousand times: `--bin kills`.
//!
//! A program of its own, so that no other test runs beside it: deadlines are judged here on processes that already take all of two cores.

use std::time::Duration;

use muster_tests::kills::{self, Plan};

/// Jobs that have to come through in that time: a run in which little happens proves little.
const JOBS_MIN: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_given_twice_however_often_muster_is_killed() -> anyhow::Result<()> {
    let plan = Plan {
        kills: 50,
        in_flight: 200,
        nodes: 80,
        seed: 7,
        longest: Duration::from_secs(900),
    };
    let outcome = kills::run(plan, &|text| eprintln!("step: {text}")).await?;
    eprintln!("step: {outcome:?}");
    assert!(outcome.kills >= 50, "{outcome:?}");
    assert!(outcome.jobs >= JOBS_MIN, "{outcome:?}");
    // Among them each program that Muster depends on, killed while it ran.
    for program in ["kube-scheduler", "kube-apiserver", "etcd"] {
        let killed = outcome.faults.get(format!("SIGKILL of {program}").as_str());
        assert!(killed.is_some_and(|times| *times >= 1), "{outcome:?}");
    }
    assert_eq!(outcome.faults.len(), 9, "{outcome:?}");
    Ok(())
}
