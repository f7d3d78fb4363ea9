//! Plans and verdicts: the planner alone, on clusters in this process.
//!
//! Each is looked at first: a plan keeps to the rules, told by a judge of its own, and a verdict names its cause. What is compared is
//! done in turn, so that the machine's speed is the same for both; medians are told.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use muster_bench_clusters::{fault, gang, network, pod_by_pod, uneven};
use muster_core::config::Config;
use muster_core::plan::{GangRequest, plan};
use muster_core::snapshot::Snapshot;

use super::figures::Report;

/// Times that each is done.
const TIMES: usize = 201;

/// A cluster, and a gang of workers alone.
struct Work {
    snapshot: Snapshot,
    gang: GangRequest,
    config: Config,
}

impl Work {
    fn of((snapshot, config): (Snapshot, Config), workers: u32, gpus: u64) -> Self {
        let mut gang = gang(workers.saturating_add(1), gpus);
        gang.roles.remove(0);
        Self {
            snapshot,
            gang,
            config,
        }
    }

    /// 512 workers of 8 GPUs, all in one block, in as few racks as can be.
    fn in_a_block(nodes: usize) -> anyhow::Result<Self> {
        let mut work = Self::of(network(nodes), 512, 8);
        work.gang.topology.required = Some(0);
        work.gang.topology.preferred = Some(1);
        work.is_planned()?;
        Ok(work)
    }

    fn is_planned(&self) -> anyhow::Result<()> {
        match plan(&self.snapshot, &self.gang, &self.config) {
            Ok(placement) => match fault(&self.snapshot, &self.gang, &placement) {
                None => Ok(()),
                Some(fault) => bail!("the plan is not real: {fault}"),
            },
            Err(why) => bail!("there is a place, and none was found: {why}"),
        }
    }

    fn plan(&self) {
        let _ = black_box(plan(&self.snapshot, &self.gang, &self.config));
    }
}

/// Medians of the time that each takes, in turn.
fn medians<const N: usize>(works: [&dyn Fn(); N]) -> [Duration; N] {
    let mut taken = works.map(|_| Vec::with_capacity(TIMES));
    for _ in 0..TIMES {
        for (work, taken) in works.iter().zip(&mut taken) {
            let since = Instant::now();
            work();
            taken.push(since.elapsed());
        }
    }
    taken.map(|mut taken| {
        taken.sort_unstable();
        taken.get(TIMES / 2).copied().unwrap_or_default()
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Measures it.
///
/// # Errors
/// A plan is not real, or a verdict has another cause.
pub fn measure() -> anyhow::Result<Report> {
    let mut report = Report::new(&[("nodes", 5_000), ("times", TIMES as u64)]);
    let three = Work::of((uneven(5_000, 9), Config::default()), 3, 1);
    three.is_planned()?;
    let one_by_one = || drop(black_box(pod_by_pod(&three.snapshot, &three.gang)));
    ensure!(
        pod_by_pod(&three.snapshot, &three.gang).is_some_and(|places| places.len() == 3),
        "pod by pod finds three places too"
    );
    let [gang, pods] = medians([&|| three.plan(), &one_by_one]);
    report.tell("three pods on 5,000 nodes, pod by pod", micros(pods), "us");
    let part = gang.as_secs_f64() / pods.as_secs_f64();
    report.hold("as a gang, of pod by pod's", part, "", 0.1, 0.01);
    report.hold("as a gang", micros(gang), "us", micros(pods) / 10.0, 57.0);

    let [small, usual, big] = [1_000, 5_000, 20_000].map(Work::in_a_block);
    let (small, usual, big) = (small?, usual?, big?);
    let [at_1000, at_5000, at_20_000] =
        medians([&|| small.plan(), &|| usual.plan(), &|| big.plan()]);
    let millis = |time: Duration| micros(time) / 1e3;
    report.hold(
        "512 x 8 in a block, 5,000 nodes",
        millis(at_5000),
        "ms",
        5.0,
        0.5,
    );
    report.tell("the same, 20,000 nodes", millis(at_20_000), "ms");
    let growth = at_20_000.as_secs_f64() / at_1000.as_secs_f64();
    report.hold(
        "growth from 1,000 to 20,000 nodes",
        growth,
        "times",
        20.0,
        20.0,
    );

    let full = Work::of((uneven(500, 8), Config::default()), 10, 8);
    match plan(&full.snapshot, &full.gang, &full.config) {
        Ok(_) => bail!("no node has 8 free GPUs, and a plan was found"),
        Err(why) => ensure!(why.code() == "NotEnoughFree", "another cause: {why}"),
    }
    let [verdict] = medians([&|| full.plan()]);
    report.hold(
        "verdict, 10 x 8 on 500 full nodes",
        micros(verdict),
        "us",
        1_000.0,
        50.0,
    );
    Ok(report)
}

#[cfg(test)]
mod tests {
    use muster_bench_clusters::snapshot;

    use super::*;

    #[test]
    fn a_plan_that_breaks_a_rule_is_told_from_a_real_one() {
        let work = Work::of((snapshot(40, "half"), Config::default()), 12, 8);
        let placement = plan(&work.snapshot, &work.gang, &work.config).unwrap();
        assert_eq!(fault(&work.snapshot, &work.gang, &placement), None);
        let mut twice = placement.clone();
        twice.members[1].node = twice.members[0].node.clone();
        twice.members[1].devices = twice.members[0].devices.clone();
        assert!(fault(&work.snapshot, &work.gang, &twice).is_some());
        let mut less = placement;
        less.members.pop();
        assert!(fault(&work.snapshot, &work.gang, &less).is_some());
    }
}
